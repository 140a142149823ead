"""`training.finetune --push_to_hub` against a Hub on this machine."""

import pytest
from local_hub import LocalHub
from training_runs import flags, launch, write_data

from conversion.model_card import CardFacts, make_card
from conversion.push_to_hub import verify_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), num_train=8, num_val=2)


def short_run(data, output_dir) -> list[str]:
    steps = {"max_train_steps": 2, "checkpointing_steps": 1}
    return flags(data, output_dir, **steps, push_to_hub=True, hub_model_id="trained", hub_private_repo=True)


def test_the_model_is_pushed_in_one_commit_without_the_checkpoints(data, tmp_path):
    with LocalHub() as hub:
        launch(short_run(data, tmp_path / "out"), environment=hub.environment(tmp_path / "home"))
        repository = hub.repository("tester/trained")
    assert repository.private
    assert list(repository.titles.values()) == ["initial commit", "Model fine-tuned with flux-hf"]
    contents = repository.contents()
    assert {"model.safetensors", "config.json", "video_preprocessor_config.json", "modeling_fluxvit.py"} <= set(
        contents
    )
    assert not [name for name in contents if name.startswith(("checkpoint-", "."))]
    for name, content in contents.items():
        assert content == (tmp_path / "out" / name).read_bytes()

    model = verify_checkpoint(tmp_path / "out")
    card = make_card(tmp_path / "out", model.config, CardFacts("tester/trained", "mit"))
    assert "| `objective` | multi |" in card.text and "2 optimiser steps" in card.text
    assert str(data) not in card.text


def test_a_token_that_may_not_write_stops_the_run_before_the_first_step(data, tmp_path):
    with LocalHub() as hub:
        with pytest.raises(RuntimeError, match="403 Forbidden"):
            launch(short_run(data, tmp_path / "out"), environment=hub.environment(tmp_path / "home", "hf_read"))
    assert not list((tmp_path / "out").glob("checkpoint-*"))
