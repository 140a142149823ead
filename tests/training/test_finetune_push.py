"""`training.finetune --push_to_hub` against a Hub on this machine."""

from pathlib import Path

import pytest
from local_hub import LocalHub
from training_runs import flags, launch, write_data

from conversion.staging import verify_checkpoint
from flux_hf.checkpoint_files import SOURCE_FILES
from training.arguments import parse_arguments


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), num_train=8, num_val=2)


def short_run(data, output_dir) -> list[str]:
    steps = {"max_train_steps": 2, "checkpointing_steps": 1, "push_to_hub": True, "hub_license": "mit"}
    return flags(data, output_dir, **steps, hub_model_id="trained", hub_private_repo=True)


@pytest.mark.slow
def test_the_model_is_pushed_in_one_commit_without_the_checkpoints(data, tmp_path):
    with LocalHub() as hub:
        launch(short_run(data, tmp_path / "out"), environment=hub.environment(tmp_path / "home"))
        repository = hub.repository("tester/trained")
    assert repository.private
    assert list(repository.titles.values()) == ["initial commit", "Model fine-tuned with flux-hf"]
    contents = repository.contents()
    settings = {"config.json", "video_preprocessor_config.json", "model.safetensors"}
    assert settings | {"README.md", *SOURCE_FILES} <= set(contents)
    assert {Path(name).suffix for name in contents} <= {".json", ".safetensors", ".md", ".py", ""}
    assert not [name for name in contents if "/" in name or name.startswith(("training_", "all_results"))]
    for name in settings:
        assert contents[name] == (tmp_path / "out" / name).read_bytes()
    verify_checkpoint(tmp_path / "out")
    card = contents["README.md"].decode()
    assert "license: mit" in card and "| `objective` | multi |" in card and "2 optimiser steps" in card
    assert str(data) not in card


def test_a_push_without_a_license_is_refused_at_once(data, tmp_path):
    with pytest.raises(ValueError, match="--hub_license"):
        parse_arguments([word for word in short_run(data, tmp_path) if word not in ("--hub_license", "mit")])


def test_a_token_that_may_not_write_stops_the_run_before_the_first_step(data, tmp_path):
    with LocalHub() as hub:
        with pytest.raises(RuntimeError, match="token may only read"):
            launch(short_run(data, tmp_path / "out"), environment=hub.environment(tmp_path / "home", "hf_read"))
    assert not list((tmp_path / "out").glob("checkpoint-*"))
