"""Pushes a model and its page to a Hub on this machine; the page that arrives runs on its own files alone."""

import shutil
from pathlib import Path

import pytest
from hub_process import HubProcess
from local_hub import Fault, LocalHub

from conversion.convert_to_hf import convert
from conversion.infer_config import ConfigChoices
from conversion.space import run_page, stage_space
from conversion.staging import PushError


pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="a page needs the extra `app`: pip install 'flux-hf[app]'")
REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
    convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", folder, choices, labels=[f"class {n}" for n in range(7)])
    return folder


@pytest.mark.timeout(1800)
def test_a_page_is_pushed_behind_its_model_in_one_commit_and_kept_up_to_date(checkpoint, tmp_path):
    with LocalHub() as hub, HubProcess(hub.environment(tmp_path / "home"), tmp_path) as client:
        flags = (str(checkpoint), "tiny", "--license", "mit", "--space", "page")
        dry = client.run("command", *flags, "--dry_run")
        assert dry.status == 0, dry.errors
        assert "tester/page (new, public)" in dry.output and "flux_hf/app/page.py" in dry.output
        assert hub.repositories == {}
        first = client.run("command", *flags)
        assert first.status == 0, first.errors
        assert "its page served with the model from the Hub, the same scores bit by bit" in first.output
        model, space = hub.repository("tester/tiny"), hub.repository("tester/page", "space")
        assert len(space.commits) == 2  # the Hub's own first one, and the page
        assert model.branches["main"] in space.contents()["app.py"].decode()
        assert b"flux_hf/app" not in b"".join(name.encode() for name in model.contents())

        # The card is now its owner's; an old file of ours goes.
        files = dict(space.commits[space.branches["main"]])
        files["README.md"] = type(files["README.md"])(b"---\ntitle: Mine\nsdk: gradio\napp_file: app.py\n---\nmine\n")
        files["flux_hf/old.py"] = files["own.py"] = files["app.py"]
        space.commit("main", files, "by hand")
        third = client.run("command", *flags)
        assert third.status == 0 and "already there" in third.output, third.errors
        assert "the Space's own README.md is kept" in third.output
        contents = space.contents()
        assert contents["README.md"].endswith(b"mine\n") and "own.py" in contents and "flux_hf/old.py" not in contents

        # A cut leaves the Space as it was.
        space.commit("main", {"own.py": files["app.py"]}, "emptied by hand")
        hub.faults.append(Fault("POST /api/spaces/.*/commit/", status=500, times=None))
        cut = client.run("command", *flags)
        assert cut.status == 1 and "made to fail" in cut.errors and set(space.contents()) == {"own.py"}


def test_a_place_that_is_not_ours_is_refused_before_the_model_is_sent(checkpoint, tmp_path):
    with LocalHub() as hub, HubProcess(hub.environment(tmp_path / "home"), tmp_path) as client:
        refused = client.run("command", str(checkpoint), "tiny", "--license", "mit", "--space", "other/page")
        assert refused.status == 1 and "cannot create repositories of 'other'" in refused.errors
        assert hub.repositories == {}


def test_a_page_must_be_served_and_from_its_own_files(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    stage_space(tmp_path / "space", "tester/tiny", "main")
    found = run_page(tmp_path / "space", checkpoint)
    assert found["title"] and sum(found["labels"].values()) <= 1.001
    shutil.rmtree(tmp_path / "space" / "flux_hf")
    with pytest.raises(PushError, match="another copy of flux_hf"):
        run_page(tmp_path / "space", checkpoint)
    (tmp_path / "space" / "app.py").write_text("raise SystemExit('no page today')\n")
    with pytest.raises(PushError, match="could not be served: no page today"):
        run_page(tmp_path / "space", checkpoint)
