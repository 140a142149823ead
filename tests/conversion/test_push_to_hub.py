"""Pushes to a Hub on this machine with the real client: what arrives, what is refused, what a cut leaves behind."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_process import HubProcess
from huggingface_hub import ModelCard
from huggingface_hub.hf_api import RepoFile
from local_hub import Fault, File, LocalHub
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
from video_files import encode

from conversion.convert_to_hf import convert
from conversion.hub import Remote, Target, check_tag, find_changes
from conversion.infer_config import ConfigChoices
from conversion.model_card import MARK, CardFacts
from conversion.push_to_hub import main
from conversion.saving import sha256
from conversion.space import OURS, PACKAGES, stage_space
from conversion.staging import PushError, run_alone, stage, verify_checkpoint, write_card
from flux_hf import (
    FluxForVideoClassification,
    FluxViTConfig,
    FluxViTForVideoClassification,
    FluxViTModel,
    FluxViTVideoProcessor,
)
from flux_hf.checkpoint_files import SOURCE_FILES


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
PUSHED = {"README.md", "config.json", "conversion_report.json", "model.safetensors", "video_preprocessor_config.json"}

# Runs where flux_hf cannot be imported; prints the logits of the pipeline's model for a clip, and its labels.
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "flux_hf":
            raise ModuleNotFoundError("No module named 'flux_hf'", name=name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import pipeline

source, clip = sys.argv[1:]
classify = pipeline("video-classification", model=source, trust_remote_code=True)
with torch.no_grad():
    logits = classify.model(**classify.preprocess(clip)).logits
print(json.dumps({"logits": logits.tolist(), "labels": classify(clip, top_k=7)}))
"""


def stranger(environment: dict[str, str], home: Path, source: str, clip: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", STRANGER, source, str(clip)]
    home.mkdir()
    environment = {**environment, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)


def printed(process: subprocess.Popen) -> dict:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as local_hub:
        yield local_hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    with HubProcess(hub.environment(folder / "home"), folder) as process:
        yield process


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny_fluxvit"
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
    convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", folder, choices, labels=[f"class {n}" for n in range(7)])
    return folder


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


@pytest.fixture(scope="module")
def staged(checkpoint, tmp_path_factory) -> Path:
    return stage_anew(checkpoint, tmp_path_factory.mktemp("staged"), None)


@pytest.fixture(scope="module")
def staged_in_shards(checkpoint, tmp_path_factory) -> Path:
    return stage_anew(checkpoint, tmp_path_factory.mktemp("shards"), "400KB")


def stage_anew(checkpoint: Path, folder: Path, max_shard_size: str | None) -> Path:
    model = verify_checkpoint(checkpoint)
    stage(checkpoint, folder / "staged", model, max_shard_size)
    write_card(checkpoint, folder / "staged", model.config, CardFacts("tester/tiny", "apache-2.0"), False)
    return folder / "staged"


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def faults(hub):
    """The hub's faults, and an end to them."""
    yield hub.faults
    hub.faults.clear()


# The whole way -------------------------------------------------------------------------------------------------------


def test_a_stranger_gets_the_logits_of_before_the_push(hub, client, checkpoint, faults, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode("libx264", 20))
    environment = hub.environment(tmp_path)
    faults.append(Fault("GET .*/model.safetensors", cut_response=100_000))  # the download goes on where it was cut
    before = printed(stranger(environment, tmp_path / "before", str(checkpoint), clip))
    result = client.run("command", str(checkpoint), "tiny", "--license", "apache-2.0", "--tag", "v1.0", "--private")
    assert result.status == 0, result.errors
    after = printed(stranger(environment, tmp_path / "after", "tester/tiny", clip))
    assert after == before
    assert faults[0].fired.is_set()

    repository = hub.repository("tester/tiny")
    assert list(repository.titles.values()) == ["initial commit", "Upload FluxViT checkpoint"]
    assert repository.private
    assert set(repository.contents()) == PUSHED | set(SOURCE_FILES)
    assert repository.contents()["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert repository.tags == {"v1.0": repository.branches["main"]}
    assert "the same outputs bit by bit" in result.output and "tagged v1.0" in result.output


def test_flux_around_another_encoder_is_pushed_with_a_card_of_its_own(hub, client, tmp_path):
    config = VideoMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32, num_frames=4
    )
    flux = FluxForVideoClassification.from_backbone(VideoMAEForVideoClassification(config))
    flux.save_pretrained(tmp_path / "flux")
    FluxViTVideoProcessor(size=32, num_frames=4, patch_size=16).save_pretrained(tmp_path / "flux")
    result = client.run("command", str(tmp_path / "flux"), "flux-videomae", "--license", "cc-by-nc-4.0")
    assert result.status == 0, result.errors
    card = hub.repository("tester/flux-videomae").contents()["README.md"].decode()
    assert "- flux_video\n" in card and "Flux around videomae samples a video densely" in card
    assert "| 8 | 4 x 32 |" in card and "| 2 | 4 x 32 |" in card
    assert "the same outputs bit by bit" in result.output


@pytest.mark.slow
def test_what_arrived_damaged_is_noticed(hub, client, checkpoint, copied):
    change_weights(copied, lambda tensors: tensors["fc_norm.bias"].add_(0.5))
    # what the Hub believes to be the weights, so that it does not ask for them
    hub.objects[sha256(checkpoint / "model.safetensors")] = (copied / "model.safetensors").read_bytes()
    result = client.run("command", str(checkpoint), "damaged", "--license", "mit", "--tag", "v1")
    hub.objects.clear()
    assert result.status == 1 and "gives other outputs than the checkpoint" in result.errors
    assert not hub.repository("tester/damaged").tags


def test_a_dry_run_lists_and_sends_nothing(hub, client, checkpoint):
    start = len(hub.log)
    result = client.run("command", str(checkpoint), "tester/dry", "--license", "mit", "--private", "--dry_run")
    assert result.status == 0, result.errors
    assert all(line.startswith("GET ") for line in hub.log[start:])
    size = (checkpoint / "model.safetensors").stat().st_size
    assert f"send {size:>15,}  model.safetensors" in result.output
    assert "tester/dry (new, private)" in result.output and "nothing was sent" in result.output


def test_push_to_hub_of_the_classes(hub, client, checkpoint):
    result = client.run("objects", str(checkpoint))
    assert result.status == 0, result.errors
    pieces, whole = hub.repository("tester/pieces"), hub.repository("tester/whole")
    assert len(pieces.commits) == 3 and len(whole.commits) == 2
    assert whole.private and not pieces.private
    for repository in (pieces, whole):
        assert set(repository.contents()) == (PUSHED | set(SOURCE_FILES)) - {"conversion_report.json"}
        weights = repository.contents()["model.safetensors"]
        assert weights == (checkpoint / "model.safetensors").read_bytes()


def test_a_space_is_sent_whole_and_loses_only_our_old_files(hub, client, staged, tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.space.requirements", lambda: ["torch==2.14.1", "gradio==6.31.0"])
    stage_space(tmp_path / "space", "tester/tiny", "abc123")
    names = {path.relative_to(tmp_path / "space").as_posix() for path in (tmp_path / "space").rglob("*.*")}
    assert {"README.md", "app.py", "requirements.txt", "flux_hf/__init__.py", "flux_hf/app/page.py"} <= names
    assert all(name.endswith(".py") for name in names - {"README.md", "requirements.txt"})
    card = ModelCard.load(tmp_path / "space" / "README.md").data.to_dict()
    assert (card["sdk"], card["sdk_version"], card["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert card["models"] == ["tester/tiny"]
    assert '"tester/tiny", "--revision", "abc123"' in (tmp_path / "space" / "app.py").read_text()
    target = {"repo_id": "tester/page", "repo_type": "space", "private": True}
    result = client.run("send", str(tmp_path / "space"), target)
    assert result.status == 0, result.errors
    space = hub.repository("tester/page", "space")
    assert result.output.split()[1] == f"{hub.url}/spaces/tester/page/commit/{space.branches['main']}"
    assert space.sdk == "gradio" and space.private and set(space.contents()) == names
    files = {name: RepoFile(path=name, size=1, oid="") for name in ("flux_hf/old.py", "flux_hf/data.bin", "own.py")}
    assert find_changes(tmp_path / "space", Remote(True, True, "abc", files), OURS).delete == ["flux_hf/old.py"]


def test_what_a_space_installs_is_what_the_package_needs():
    setup = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert all(re.search(rf"^    {re.escape(name)}>=", setup, flags=re.MULTILINE) for name in PACKAGES)


def test_a_space_is_refused_before_anything_is_sent(hub, client, checkpoint, tmp_path):
    start = len(hub.log)
    flags = ("--license", "mit", "--space", "tester/page", "--create_pr")
    result = client.run("command", str(checkpoint), "tester/refused", *flags)
    assert result.status == 1 and "not with --create_pr" in result.errors
    assert all(line.startswith("GET ") for line in hub.log[start:])


# What the options do -------------------------------------------------------------------------------------------------


def test_a_pull_request_leaves_main_as_it_was(hub, client, staged):
    repository = hub.add_repository("someone/model")
    result = client.run("send", str(staged), {"repo_id": "someone/model", "create_pr": True})
    assert result.status == 0, result.errors
    assert result.output.split()[1] == f"{hub.url}/someone/model/discussions/1"
    assert repository.contents() == {}
    assert repository.contents("refs/pr/1") == contents_of(staged)


def test_a_branch_is_made_and_main_left_as_it_was(hub, client, staged):
    hub.add_repository("tester/branched")
    target = {"repo_id": "tester/branched", "revision": "small/v2", "commit_message": "Smaller"}
    assert client.run("send", str(staged), target).status == 0
    repository = hub.repository("tester/branched")
    assert repository.contents() == {} and repository.contents("small/v2") == contents_of(staged)
    assert repository.titles[repository.branches["small/v2"]] == "Smaller"


def test_a_new_branch_does_not_keep_the_weights_of_main(hub, client, staged, staged_in_shards):
    target = {"repo_id": "tester/two-layouts"}
    assert client.run("send", str(staged), target).status == 0
    assert client.run("send", str(staged_in_shards), {**target, "revision": "shards"}).status == 0
    repository = hub.repository("tester/two-layouts")
    assert repository.contents() == contents_of(staged)
    assert repository.contents("shards") == contents_of(staged_in_shards)


def test_a_pull_request_can_be_added_to(hub, client, staged, staged_in_shards):
    repository = hub.add_repository("tester/asked")
    assert client.run("send", str(staged), {"repo_id": "tester/asked", "create_pr": True}).status == 0
    again = client.run("send", str(staged_in_shards), {"repo_id": "tester/asked", "revision": "refs/pr/1"})
    assert again.status == 0, again.errors
    assert list(repository.branches) == ["main", "refs/pr/1"]
    assert repository.contents("refs/pr/1") == contents_of(staged_in_shards)
    for revision in ("refs/pr/1", repository.branches["refs/pr/1"]):
        result = client.run("snapshot", "tester/asked", revision)
        assert result.status == 0, result.errors
        assert contents_of(Path(result.output.strip())) == contents_of(staged_in_shards)


def test_shards_replace_the_single_file_and_back(hub, client, staged, staged_in_shards):
    for folder in (staged, staged_in_shards, staged):
        result = client.run("send", str(folder), {"repo_id": "tester/shards"})
        assert result.status == 0, result.errors
        assert hub.repository("tester/shards").contents() == contents_of(folder)
    assert len([path for path in staged_in_shards.iterdir() if path.suffix == ".safetensors"]) == 2


def test_nothing_changed_is_no_commit(hub, client, staged):
    first, second = (client.run("send", str(staged), {"repo_id": "tester/twice"}) for _ in range(2))
    assert first.output == second.output
    assert len(hub.repository("tester/twice").commits) == 2


def test_large_files_in_parts(hub, client, staged):
    hub.part_size = 200_000
    try:
        hub.objects.clear()
        assert client.run("send", str(staged), {"repo_id": "tester/parts"}).status == 0
    finally:
        hub.part_size = None
    assert hub.repository("tester/parts").contents() == contents_of(staged)


@pytest.mark.parametrize(("text", "kept"), [("Mine.", True), (MARK, False)])
def test_a_card_is_replaced_on_the_hub_if_it_was_made_here(hub, client, staged, text, kept):
    repository = hub.add_repository(f"tester/edited-{kept}")
    card = f"---\nlicense: mit\n---\n\n{text}\n".encode()
    repository.commit("main", {"README.md": File(card)}, "a card")
    result = client.run("send", str(staged), {"repo_id": repository.repo_id}, True)
    assert result.status == 0, result.errors
    assert repository.contents() == {**contents_of(staged), **({"README.md": card} if kept else {})}


# Cuts ----------------------------------------------------------------------------------------------------------------


def cut_and_finish(hub, client, fault: Fault, old: Path, new: Path, name: str) -> bool:
    """Kills a push of `new` over `old` when the fault strikes, then pushes again; whether it had struck."""
    old_contents = {**contents_of(old), "README.md": b"---\nlicense: mit\n---\n\nAn earlier card.\n"}
    new_contents = contents_of(new)
    repository = hub.add_repository(name)
    repository.commit("main", {path: File(content) for path, content in old_contents.items()}, "old")
    hub.objects.clear()
    hub.faults[:] = [fault]
    client.run_until(fault.fired, "send", str(new), {"repo_id": name})
    hub.faults.clear()
    if not fault.fired.is_set():
        return False
    assert repository.contents() in (old_contents, new_contents)

    arrived, start = set(hub.objects), len(hub.log)
    again = client.run("send", str(new), {"repo_id": name})
    assert again.status == 0, again.errors
    assert repository.contents() == new_contents
    assert len(repository.commits) == 3
    sent = [line.removeprefix("PUT /lfs/") for line in hub.log[start:] if line.startswith("PUT /lfs/")]
    assert not arrived & set(sent)
    return True


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param({"cut_response": 0}, id="unanswered"),
        pytest.param({"cut_request": 0}, id="unheard", marks=pytest.mark.slow),  # as the one before it unanswered
    ],
)
def test_a_push_killed_at_any_request_leaves_old_or_new_and_can_be_finished(
    hub, client, staged, staged_in_shards, faults, cut
):
    requests = 0
    for index in range(1, 40):
        fault = Fault("", first=index, times=None, **cut)
        name = f"tester/killed-{next(iter(cut)).replace('_', '-')}-{index}"
        if not cut_and_finish(hub, client, fault, staged, staged_in_shards, name):
            break
        requests = index
    # whoami, repository, permission, refs, files; card, modes, objects, 2 x (file, check), commit
    assert requests == 13


def test_a_push_killed_in_the_middle_of_a_file(hub, client, staged, staged_in_shards, faults):
    fault = Fault("PUT /lfs/", cut_request=100_000, times=None)
    assert cut_and_finish(hub, client, fault, staged, staged_in_shards, "tester/half")


def test_a_new_repository_killed_at_any_request_can_be_finished(hub, client, staged, faults):
    requests = 0
    for index in range(1, 40):
        fault = Fault("", first=index, times=None, cut_response=0)
        hub.objects.clear()
        faults[:] = [fault]
        target = {"repo_id": f"tester/new-{index}", "private": True}
        client.run_until(fault.fired, "send", str(staged), target)
        faults.clear()
        if not fault.fired.is_set():
            break
        requests = index
        assert client.run("send", str(staged), target).status == 0
        repository = hub.repository(target["repo_id"])
        assert repository.contents() == contents_of(staged) and repository.private
        assert len(repository.commits) == 2
    # whoami, model, data set, space; repository, card, modes, objects, file, check, commit
    assert requests == 11


@pytest.mark.slow
def test_a_push_killed_before_any_of_its_renames_leaves_folder_and_repository_as_they_were(
    hub, client, copied, staged_in_shards
):
    """Renames are of files that are staged, and of the repository's card, which is looked at before."""
    old = {"README.md": f"---\n---\n{MARK}\nAn earlier card.\n".encode(), "model.safetensors": b"old"}
    repository = hub.add_repository("tester/renames")
    repository.commit("main", {path: File(content) for path, content in old.items()}, "old")
    arguments = [str(copied), "tester/renames", "--license", "apache-2.0", "--max_shard_size", "400KB"]
    before = contents_of(copied)
    for stop in itertools.count(1):
        pushed = client.run("dies", stop, *arguments)
        assert contents_of(copied) == before
        if pushed.status != -signal.SIGKILL:
            break
        assert repository.contents() == old
    assert pushed.status == 0, pushed.errors
    assert stop > len(SOURCE_FILES) + 3 and repository.contents().keys() == contents_of(staged_in_shards).keys()


def test_one_error_of_the_server_is_got_over(hub, client, staged, faults):
    hub.objects.clear()
    faults.append(Fault("PUT /lfs/", status=503))
    result = client.run("send", str(staged), {"repo_id": "tester/hiccup"})
    assert result.status == 0, result.errors
    assert hub.repository("tester/hiccup").contents() == contents_of(staged)


# Refusals ------------------------------------------------------------------------------------------------------------


def refused(result, message: str) -> None:
    assert result.status == 1
    assert message in result.errors
    assert "Traceback" not in result.errors


@pytest.mark.parametrize(
    ("repo_id", "environment", "message"),
    [
        ("tester/x", {"HF_TOKEN": None}, "no token: run `hf auth login`"),
        ("tester/x", {"HF_TOKEN": "hf_wrong"}, "the token is not valid"),
        ("tester/x", {"HF_TOKEN": "hf_read"}, "the token may only read"),
        ("stranger/x", {}, "no permission: tester cannot create repositories of 'stranger'"),
        ("stranger/public", {}, "no permission to write to stranger/public: --create_pr asks its owner to"),
        ("tester/clips", {}, "tester/clips is a dataset on the Hub, not a model"),
        ("tester/a/b", {}, "tester/a/b"),
    ],
)
def test_refusals_of_the_hub_are_explained(hub, client, checkpoint, repo_id, environment, message):
    hub.add_repository("stranger/public")
    hub.add_repository("tester/clips", "dataset")
    start = len(hub.log)
    result = client.run("command", str(checkpoint), repo_id, "--license", "mit", **environment)
    refused(result, f"not pushed: {message}" if repo_id != "tester/a/b" else message)
    assert not [line for line in hub.log[start:] if not line.startswith("GET ")]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"repo_id": "tester/open", "private": True}, "exists and is public: --private cannot hide it"),
        ({"repo_id": "tester/none", "create_pr": True}, "--create_pr needs a repository"),
        ({"repo_id": "tester/open", "revision": "refs/pr/7"}, "tester/open has no refs/pr/7"),
    ],
)
def test_requests_the_repository_does_not_allow(hub, client, staged, target, message):
    hub.add_repository("tester/open")
    refused(client.run("send", str(staged), target), message)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("POST /api/repos/create", status=403, message="quota"), "no permission to write to tester/failing"),
        (
            Fault("POST /api/repos/create", status=500),
            "the same command goes on where this one stopped (the Hub says 500",
        ),
        (Fault("POST /api/repos/create", cut_request=0), "no connection to http://127.0.0.1"),
        (Fault("POST /api/validate-yaml", status=400, message="bad license"), "- bad license"),
        (Fault("PUT /lfs/", status=403, message="expired"), "no permission to write to tester/failing"),
        (Fault("POST .*/commit/main", status=500), "the same command goes on where this one stopped"),
        (Fault("POST .*/commit/main", status=409, message="busy"), "another operation is in progress"),
        (Fault("POST .*/commit/main", status=412, message="moved"), "tester/failing has changed meanwhile"),
    ],
    ids=lambda value: getattr(value, "pattern", None),
)
def test_failures_on_the_way_are_explained(hub, client, staged, faults, fault, message):
    hub.repositories.pop(("model", "tester/failing"), None)
    hub.objects.clear()
    faults.append(fault)
    refused(client.run("send", str(staged), {"repo_id": "tester/failing"}), message)
    faults.clear()
    assert client.run("send", str(staged), {"repo_id": "tester/failing"}).status == 0


def test_no_network_is_explained(checkpoint, tmp_path):
    with LocalHub() as closed:
        environment = closed.environment(tmp_path)
    command = [sys.executable, "-m", "conversion.push_to_hub", str(checkpoint), "tester/x", "--license", "mit"]
    environment["PYTHONPATH"] = str(GOLDEN.parents[2])
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"not pushed: no connection to {environment['HF_ENDPOINT']}" in result.stderr
    assert "Traceback" not in result.stderr


def test_offline_mode_is_explained(checkpoint, capsys):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert main([str(checkpoint), "tester/x", "--license", "mit"]) == 1
    assert "not pushed: HF_HUB_OFFLINE=1 forbids every connection" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"create_pr": True, "revision": "dev"}, "not with --revision dev"),
        ({"create_pr": True, "tag": "v1"}, "--tag v1 names what is published"),
    ],
)
def test_options_that_exclude_each_other(flags, message):
    with pytest.raises(ValueError, match=message):
        Target("tester/x", **flags)


def test_a_tag_is_not_moved(staged):
    remote = Remote(exists=True, has_revision=True, head="b" * 40, tags={"v1": "a" * 40, "v2": "b" * 40})
    nothing = find_changes(staged, remote)
    nothing.send.clear()
    for tag in ("v2", "v3"):
        check_tag(Target("tester/x", tag=tag), remote, nothing)
    with pytest.raises(PushError, match="has a tag v1 of another commit"):
        check_tag(Target("tester/x", tag="v1"), remote, nothing)
    with pytest.raises(PushError, match="has a tag v2 of another commit"):
        check_tag(Target("tester/x", tag="v2"), remote, find_changes(staged, remote))


# The checkpoint ------------------------------------------------------------------------------------------------------


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: change_json(folder / "conversion_report.json", verified=False), "was not verified"),
        (lambda folder: change_json(folder / "conversion_report.json", verified=None), "was not verified"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "video_preprocessor_config.json").unlink(), "has no video processor"),
        (
            lambda folder: change_json(folder / "config.json", model_type="vjepa2"),
            "is of model type 'vjepa2', not one of",
        ),
        (lambda folder: change_json(folder / "config.json", auto_map={"AutoModel": "x--y.Z"}), "other source files"),
        (lambda folder: change_json(folder / "config.json", architectures=["Other"]), "got \\['Other'\\]"),
        (lambda folder: change_weights(folder, lambda t: t.pop("fc_norm.weight")), "missing_keys: fc_norm.weight"),
        (lambda folder: change_weights(folder, lambda t: t.update(more=torch.ones(1))), "unexpected_keys: more"),
        (
            lambda folder: change_weights(folder, lambda t: t.update({"fc_norm.bias": torch.ones(2)})),
            "cannot be loaded",
        ),
        (lambda folder: os.truncate(folder / "model.safetensors", 100_000), "cannot be loaded"),
        (lambda folder: change_weights(folder, lambda t: t["fc_norm.bias"].fill_(torch.nan)), "NaN or infinite"),
    ],
)
def test_checkpoints_that_are_not_pushed(copied, spoil, message):
    spoil(copied)
    with pytest.raises(ValueError, match=message):
        verify_checkpoint(copied)


def test_a_missing_shard_is_named(staged_in_shards, tmp_path):
    folder = Path(shutil.copytree(staged_in_shards, tmp_path / "shards"))
    next(folder.glob("*-00002-of-*")).unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002.*which is not there"):
        verify_checkpoint(folder)
    change_json(folder / "model.safetensors.index.json", weight_map={"x": "../model.safetensors"})
    with pytest.raises(ValueError, match="names files outside its folder"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("model_class", [FluxViTForVideoClassification, FluxViTModel])
def test_a_checkpoint_without_conversion_is_verified_there_and_then(tmp_path, model_class):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = FluxViTConfig(**sizes, num_pooling_heads=2, image_size=28, num_frames=4, num_labels=3)
    model_class(config).save_pretrained(tmp_path / "trained")
    FluxViTVideoProcessor(num_frames=4).save_pretrained(tmp_path / "trained")
    folder = stage_anew(tmp_path / "trained", tmp_path, None)
    card = (folder / "README.md").read_text()
    assert "No conversion: the checkpoint was loaded strictly" in card
    tag = "video-classification" if model_class is FluxViTForVideoClassification else "feature-extraction"
    assert f"pipeline_tag: {tag}" in card
    size = config.num_labels if model_class is FluxViTForVideoClassification else config.projection_dim
    assert len(run_alone(str(folder))) == size


def test_the_folders_own_card_is_kept_unless_it_is_to_be_overwritten(copied, tmp_path):
    own = "---\nlicense: cc-by-4.0\nlibrary_name: other\n---\n\nMine.\n"
    (copied / "README.md").write_text(own)
    config = FluxViTConfig.from_pretrained(copied)
    target = tmp_path / "target"
    target.mkdir()
    assert not write_card(copied, target, config, CardFacts("tester/x"), overwrite=False)
    assert (target / "README.md").read_text() == own
    assert not write_card(copied, target, config, CardFacts("tester/x", "cc-by-4.0"), overwrite=False)
    with pytest.raises(PushError, match="does not say --license, --datasets: --overwrite_card"):
        write_card(copied, target, config, CardFacts("tester/x", "mit", datasets=["a/b"]), overwrite=False)
    assert write_card(copied, target, config, CardFacts("tester/x"), overwrite=True)
    made = (target / "README.md").read_text()
    assert MARK in made and "license: cc-by-4.0" in made  # the license that the checkpoint stated


def test_source_files_are_those_the_weights_were_verified_with(copied, tmp_path):
    (copied / "modeling_fluxvit.py").write_text("raise SystemExit('not ours')\n")
    folder = stage_anew(copied, tmp_path, None)
    assert "class FluxViTModel" in (folder / "modeling_fluxvit.py").read_text()
