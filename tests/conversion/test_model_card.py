"""Model cards: what they say is what the folder and the measurements say, and the Hub's own tools read it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from evaluation_parts import tiny_model, tiny_processor, write_clips
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from tiny import tiny_config

from conversion.convert_to_hf import convert
from conversion.infer_config import ConfigChoices
from conversion.init_from_internvideo2 import initialize
from conversion.model_card import CardFacts, main, make_card, parse_card
from conversion.saving import sha256
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel
from training import evaluate


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
FACTS = CardFacts("tester/tiny", "apache-2.0")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A checkpoint in model/ and what `training.evaluate` measured of it in results/."""
    folder = tmp_path_factory.mktemp("measured")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    rows = [f"{path.relative_to(folder)},class {n}\n" for n, path in enumerate(write_clips(folder))]
    (folder / "clips.csv").write_text("path,label\n" + "".join(rows))
    flags = [
        "--model_name_or_path",
        folder / "model",
        "--data",
        folder / "clips.csv",
        "--output_dir",
        folder / "results",
    ]
    points = ["--points", "4x28@4", "4x28@16", "6x28", "--num_clips", "2", "--dataloader_num_workers", "0"]
    evaluate.main([*map(str, flags), *points])
    return folder


def card_of(folder: Path, **facts) -> ModelCard:
    facts = CardFacts(**{"repo_id": "tester/tiny", "license": "apache-2.0", **facts})
    return make_card(folder, FluxViTConfig.from_pretrained(folder), facts)


def table_of(card: ModelCard) -> list[list[str]]:
    """The cells of the budgets table, without its header."""
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    start = next(index for index, row in enumerate(rows) if row[0] == "token_budget")
    body = rows[start + 2 :]
    return [row for row in body if row[0].isdigit()]


def test_metadata_say_the_same_when_the_hubs_tools_read_them(measured, tmp_path):
    facts = {"datasets": ["tester/clips"], "base_model": "tester/before", "metrics": measured / "results/metrics.json"}
    card = card_of(measured / "model", **facts)
    card.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == card.data.to_dict()
    data = metadata_load(tmp_path / "README.md")
    expected = {
        "library_name": "transformers",
        "pipeline_tag": "video-classification",
        "license": "apache-2.0",
        "datasets": ["tester/clips"],
        "base_model": "tester/before",
        "metrics": ["accuracy"],
    }
    assert expected.items() <= data.items()
    assert "fluxvit" in data["tags"]


def test_measured_accuracies_are_those_of_the_file(measured):
    points = json.loads((measured / "results/metrics.json").read_text())["points"]
    card = card_of(measured / "model", metrics=measured / "results/metrics.json", eval_dataset="tester/held-out")
    found = {
        (result.metric_name, result.metric_value)
        for result in card.data.eval_results
        if result.dataset_type == "tester/held-out" and result.task_type == "video-classification"
    }
    expected = set()
    for point in points:
        budget = point["token_budget"] or 8  # the model's default
        clip = f"{budget} tokens of {point['num_frames']}x{point['size']}"
        expected |= {(f"top-1, {clip}", point["top1"]), (f"top-5, {clip}", point["top5"])}
    assert found == expected and len(found) == 6
    rows = {tuple(row) for row in table_of(card)}
    for point in points:
        accuracies = [f"{100 * point[name]:.2f} %" for name in ("top1", "top5")]
        clip = f"{point['num_frames']} x {point['size']}"
        assert (str(point["token_budget"] or 8), clip, f"{point['gflops_per_view']:.4g}", *accuracies) in rows
    assert "6 clips" in card.text and "2 x 1 views" in card.text


def test_gflops_are_the_models(measured):
    model = FluxViTForVideoClassification.from_pretrained(measured / "model")
    rows = table_of(card_of(measured / "model"))
    assert rows == [[str(n), "4 x 28", f"{model.flops(4, 28, n) / 1e9:.4g}"] for n in (16, 8, 4)]
    assert "No accuracy has been measured" in card_of(measured / "model").text


def test_planned_clips_are_in_the_table(tmp_path):
    config = tiny_config(token_plan={8: [6, 42], 2: [4, 28]}, architectures=["FluxViTForVideoClassification"])
    rows = table_of(make_card(tmp_path, config, FACTS))
    assert [row[:2] for row in rows] == [["16", "4 x 28"], ["8", "6 x 42"], ["4", "4 x 28"], ["2", "4 x 28"]]


def test_a_conversion_is_named_with_its_hash(tmp_path):
    source = GOLDEN / "fluxvit_tiny_checkpoint.pth"
    convert(source, tmp_path / "tiny", ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8))
    text = card_of(tmp_path / "tiny").text
    assert f"Converted from `{source.name}`, SHA-256 `{sha256(source)}`" in text


def test_a_start_from_internvideo2_is_said_to_be_untrained(tmp_path):
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8, token_budgets=[128, 64])
    initialize(GOLDEN / "internvideo2_tiny_checkpoint.pth", tmp_path / "start", choices)
    text = card_of(tmp_path / "start").text
    assert "Initialised from `internvideo2_tiny_checkpoint.pth`" in text and "Untrained" in text


def test_a_trained_models_recipe_tells_nothing_of_the_machine(measured, tmp_path):
    folder = Path(shutil.copytree(measured / "model", tmp_path / "trained"))
    recipe = {"objective": "multi", "token_budgets": [16, 8], "learning_rate": 2e-4, "data": "/home/me/clips.csv"}
    (folder / "training_arguments.json").write_text(json.dumps({**recipe, "mixup": 0.0, "hub_token": None}))
    (folder / "all_results.json").write_text(json.dumps({"train_steps": 150}))
    text = card_of(folder).text
    for line in ("| `objective` | multi |", "| `token_budgets` | 16, 8 |", "| `learning_rate` | 0.0002 |"):
        assert line in text
    assert "| `mixup` | 0.0 |" in text and "150 optimiser steps" in text
    assert "/home/me" not in text and "hub_token" not in text


def test_a_bare_encoder_extracts_features(tmp_path):
    FluxViTModel(tiny_config()).save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert card.data.pipeline_tag == "feature-extraction"
    assert "AutoModel.from_pretrained" in card.text and "classify(" not in card.text
    with pytest.raises(ValueError, match="the checkpoint has no classifier"):
        card_of(tmp_path, metrics=tmp_path / "metrics.json")


def test_snippets_are_python(measured):
    blocks = re.findall(r"```python\n(.*?)```", card_of(measured / "model").text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"license": None}, "the checkpoint states no license: say which with --license"),
        ({"license": "Apache 2.0"}, "got 'Apache 2.0'"),
        ({"license": "other"}, "needs --license_name and --license_link"),
        ({"license": "other", "license_name": "mine"}, "needs --license_name and --license_link"),
    ],
)
def test_a_license_is_never_invented(measured, facts, message):
    with pytest.raises(ValueError, match=message):
        card_of(measured / "model", **facts)


def test_a_license_that_the_folder_states_is_taken(measured, tmp_path):
    folder = Path(shutil.copytree(measured / "model", tmp_path / "licensed"))
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    data = card_of(folder, license=None).data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "LICENSE")
    assert card_of(folder, license="mit").data.to_dict().get("license_name") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metrics: metrics["points"][0].update(gflops_per_view=1.0), "was measured on another model: 1 GFLOPs"),
        (lambda metrics: metrics["points"][0].pop("kept_tokens"), "a point lacks \\['kept_tokens'\\]"),
        (lambda metrics: metrics.update(points=[]), "is not a metrics.json of training.evaluate"),
        (lambda metrics: metrics.pop("views"), "is not a metrics.json of training.evaluate"),
    ],
)
def test_metrics_that_are_not_this_models(measured, tmp_path, change, message):
    metrics = json.loads((measured / "results/metrics.json").read_text())
    change(metrics)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=message):
        card_of(measured / "model", metrics=tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A card\n", "x has no metadata block"),
        ("---\nlibrary_name: transformers\n---\n", "x states no license"),
        ("---\nlicense: [mit\n---\n", "x has metadata that cannot be read"),
        ("---\n- license\n---\n", "x has metadata that cannot be read"),
        (
            "---\nlicense: mit\nmodel-index:\n- name: x\n  results:\n  - task: {}\n---\n",
            "x has metadata that cannot be",
        ),
    ],
)
def test_cards_that_the_hub_would_not_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse_card(text, "x")


def test_the_command_prints_the_card(measured, capsys):
    model = str(measured / "model")
    assert main([model, "tester/tiny", "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    assert printed == str(card_of(measured / "model", license="mit"))
    assert main([model, "tester/tiny"]) == 1
    assert "no card: the checkpoint states no license" in capsys.readouterr().err
