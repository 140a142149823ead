"""The converter on official layouts, from the golden checkpoints and from key sets built to the official shapes."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from official_layouts import fluxvit_shapes
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

from conversion.convert_to_hf import convert, main
from conversion.infer_config import ConfigChoices, infer_config
from conversion.key_mapping import translate_key
from conversion.report import ConversionError
from conversion.saving import sha256
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel


REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"
TINY = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
TINY_FLAGS = ["--num_attention_heads", "3", "--num_pooling_heads", "4", "--position_frames", "8"]


@pytest.fixture(scope="module")
def fluxvit_weights() -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / "fluxvit_tiny_checkpoint.pth", weights_only=True)["module"]


@pytest.fixture(scope="module")
def internvideo2_weights() -> dict[str, torch.Tensor]:
    content = torch.load(GOLDEN / "internvideo2_tiny_checkpoint.pth", weights_only=True)
    return content.get("module", content)


def clip(frames: int = 8, size: int = 56) -> torch.Tensor:
    return torch.randn(1, frames, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "width", "positions", "parameters"),
    [("small", 384, 7776, 28_845_948), ("base", 768, 12_800, 104_560_380)],
)
def test_official_key_set_maps_onto_the_published_sizes(size, width, positions, parameters):
    shapes = fluxvit_shapes(width, 12, positions, labels=400)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    notes: list[str] = []
    config = infer_config(weights, ConfigChoices(), notes)
    assert config.to_diff_dict() == getattr(FluxViTConfig, size)(num_labels=400).to_diff_dict()
    assert notes == []
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in FluxViTForVideoClassification(config).state_dict().items()}
    converted = {}
    for name, tensor in weights.items():
        new_name, change = translate_key(name)
        converted[new_name] = change(tensor).shape
    assert converted == expected


def test_patch_kernel_becomes_the_matmul_it_stands_for(fluxvit_weights):
    kernel, bias = fluxvit_weights["patch_embed.proj.weight"], fluxvit_weights["patch_embed.proj.bias"]
    video = clip(2, 28)
    convolved = torch.nn.functional.conv3d(video.transpose(1, 2), kernel, bias, stride=kernel.shape[2:])
    _, change = translate_key("patch_embed.proj.weight")
    embeddings = FluxViTModel(FluxViTConfig.small(num_hidden_layers=1)).embeddings.patch_embeddings
    multiplied = embeddings.patchify(video) @ change(kernel).T + bias
    torch.testing.assert_close(multiplied.flatten(1, 2), convolved.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def expected_logits(tmp_path_factory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("reference") / "model"
    convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", folder, TINY)
    with torch.no_grad():
        return FluxViTForVideoClassification.from_pretrained(folder).eval()(clip(), token_budget=40).logits


def wrap_prefix(prefix: str):
    return lambda weights: {"model": {prefix + name: tensor for name, tensor in weights.items()}}


LAYOUTS = {
    "module": lambda weights: {"module": weights},
    "model": lambda weights: {"model": weights, "epoch": 4, "args": argparse.Namespace(lr=1e-3, out=Path("runs"))},
    "flat": lambda weights: weights,
    "backbone.": wrap_prefix("backbone."),
    "encoder.": wrap_prefix("encoder."),
    "vision_encoder.": wrap_prefix("vision_encoder."),
    "module.vision_encoder.": wrap_prefix("module.vision_encoder."),
    "module._orig_mod.": wrap_prefix("module._orig_mod."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_layouts_and_prefixes(fluxvit_weights, expected_logits, tmp_path, layout, suffix):
    source = tmp_path / f"checkpoint{suffix}"
    torch.save(LAYOUTS[layout](fluxvit_weights), source)
    report = convert(source, tmp_path / "out", TINY)
    assert len(report.converted) == len(fluxvit_weights)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(clip(), token_budget=40).logits, expected_logits)


def test_safetensors(fluxvit_weights, expected_logits, tmp_path):
    save_file({f"backbone.{name}": tensor for name, tensor in fluxvit_weights.items()}, tmp_path / "w.safetensors")
    convert(tmp_path / "w.safetensors", tmp_path / "out", TINY)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(clip(), token_budget=40).logits, expected_logits)


@pytest.mark.parametrize("tagged", [False, True])
def test_deepspeed_folder(fluxvit_weights, tmp_path, tagged):
    folder = tmp_path / "checkpoint-best"
    states = folder / "global_step12" if tagged else folder
    states.mkdir(parents=True)
    torch.save({"module": fluxvit_weights, "global_steps": 12}, states / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, states / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    if tagged:
        (folder / "latest").write_text("global_step12")
    report = convert(folder, tmp_path / "out", TINY)
    assert len(report.converted) == len(fluxvit_weights)


def test_bfloat16_checkpoints_stay_bfloat16(fluxvit_weights, tmp_path):
    torch.save({"module": {name: tensor.bfloat16() for name, tensor in fluxvit_weights.items()}}, tmp_path / "b.pth")
    convert(tmp_path / "b.pth", tmp_path / "out", TINY)
    assert AutoModelForVideoClassification.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_mixed_dtypes_become_float32(fluxvit_weights, expected_logits, tmp_path):
    mixed = {n: t if t.ndim == 1 else t.bfloat16() for n, t in fluxvit_weights.items()}
    torch.save({"module": mixed}, tmp_path / "mixed.pth")
    report = convert(tmp_path / "mixed.pth", tmp_path / "out", TINY)
    assert any("torch.bfloat16, torch.float32" in note for note in report.notes)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(model(clip(), token_budget=40).logits, expected_logits, atol=0.2, rtol=0.2)


@pytest.mark.parametrize(
    "content",
    [
        lambda weights: {"model": weights, "max_accuracy": np.float64(81.2), "best": np.int64(3)},
        lambda weights: {"model": weights, "args": argparse.Namespace(frames=range(6, 26, 2))},
        lambda weights: {"model": {"name": "fluxvit_small"}, "module": weights},
        lambda weights: {"model": {"module": weights}},
        lambda weights: {"state_dict": weights, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    ],
)
def test_training_state_beside_the_weights(fluxvit_weights, tmp_path, content):
    torch.save(content(fluxvit_weights), tmp_path / "state.pth")
    assert len(convert(tmp_path / "state.pth", tmp_path / "out", TINY).converted) == 111


def test_a_position_table_is_known_by_its_rows_only_in_published_sizes():
    def weights(width: int, rows: int) -> dict[str, torch.Tensor]:
        shapes = fluxvit_shapes(width, 12, rows, labels=5)
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    for rows, grid in ((1024, [4, 16, 16]), (2048, [8, 16, 16]), (4096, [16, 16, 16]), (7776, [24, 18, 18])):
        assert infer_config(weights(384, rows), ConfigChoices(), []).position_embedding_grid == grid
    with pytest.raises(ValueError, match="--position_frames"):
        infer_config(weights(96, 1024), ConfigChoices(num_attention_heads=3), [])
    choices = ConfigChoices(num_attention_heads=3, position_frames=16)
    assert infer_config(weights(96, 1024), choices, []).position_embedding_grid == [16, 8, 8]


@pytest.mark.parametrize(
    "flag", ["num_attention_heads", "num_pooling_heads", "position_frames", "num_frames", "image_size", "token_budget"]
)
def test_zero_is_no_choice(tmp_path, flag, capsys):
    flags = [*TINY_FLAGS, f"--{flag}", "0"]
    assert main([str(GOLDEN / "fluxvit_tiny_checkpoint.pth"), str(tmp_path / "out"), *flags]) == 1
    assert "0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fluxvit_without_classifier(fluxvit_weights, tmp_path):
    weights = {name: tensor for name, tensor in fluxvit_weights.items() if not name.startswith("head.")}
    torch.save({"module": weights}, tmp_path / "pretrained.pth")
    report = convert(tmp_path / "pretrained.pth", tmp_path / "out", TINY)
    assert len(report.dropped) == 10  # two alignment decoders and the classifier's norm
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is FluxViTModel


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="OUT_DIR must be a folder"):
        convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", tmp_path / "out", TINY)
    assert (tmp_path / "out").read_text() == "mine"


def test_internvideo2_pretraining_parts_are_dropped_by_name(internvideo2_weights, tmp_path):
    extra = {
        "clip_pos_embed": torch.zeros(1, 129, 48),
        "mae_pos_embed": torch.zeros(1, 128, 48),
        "mae_decoder.0.head.weight": torch.zeros(4, 48),
        "clip_decoder.0.head.0.weight": torch.zeros(8, 48),
        "final_clip_decoder.head.weight": torch.zeros(32, 32),
        "clip_img_pos_embed": torch.zeros(1, 17, 48),
        "img_pos_embed": torch.zeros(1, 17, 48),
    }
    stage2 = {f"vision_encoder.{name}": tensor for name, tensor in {**internvideo2_weights, **extra}.items()}
    stage2 |= {"text_encoder.bert.weight": torch.zeros(2), "itm_head.weight": torch.zeros(2, 4), "temp": torch.ones(1)}
    torch.save(stage2, tmp_path / "stage2.pth")
    report = convert(tmp_path / "stage2.pth", tmp_path / "out", TINY)
    assert {name.removeprefix("vision_encoder.") for name in report.dropped} == {
        *extra,
        "text_encoder.bert.weight",
        "itm_head.weight",
        "temp",
    }
    assert all(report.dropped.values())
    assert "clip_pos_embed" in "\n".join(report.lines())


def test_a_teacher_without_classifier_becomes_the_bare_encoder(internvideo2_weights, tmp_path):
    weights = {
        name: tensor for name, tensor in internvideo2_weights.items() if not name.startswith(("head.", "fc_norm"))
    }
    torch.save({"module": weights}, tmp_path / "teacher.pth")
    convert(tmp_path / "teacher.pth", tmp_path / "out", TINY)
    convert(GOLDEN / "internvideo2_tiny_checkpoint.pth", tmp_path / "full", TINY)
    bare, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(bare) is FluxViTModel
    assert not loading["missing_keys"]
    with torch.no_grad():
        expected = AutoModelForVideoClassification.from_pretrained(tmp_path / "full").eval()(clip()).pooler_output
        torch.testing.assert_close(bare.eval()(clip()).pooler_output, expected)


def test_config_and_processor_of_an_unpublished_size(tmp_path):
    report = convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", tmp_path / "out", TINY)
    config = FluxViTConfig.from_pretrained(tmp_path / "out")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 3, 3)
    assert (config.position_embedding_grid, config.num_frames, config.image_size) == ([8, 4, 4], 8, 56)
    assert (config.token_budgets, config.token_budget) == ([128, 85, 43], 85)  # 1, 2/3 and 1/3 of 8 frames of 4x4
    assert any("[128, 85, 43]" in note for note in report.notes)
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "out")
    assert (processor.num_frames, dict(processor.size)["shortest_edge"]) == (8, 56)


def test_flags_say_what_shapes_cannot(tmp_path, capsys):
    flags = [*TINY_FLAGS, "--hidden_act", "gelu", "--num_frames", "12", "--image_size", "84"]
    flags += ["--token_budgets", "192", "128", "64", "--token_budget", "100"]
    assert main([str(GOLDEN / "fluxvit_tiny_checkpoint.pth"), str(tmp_path / "out"), *flags]) == 0
    config = FluxViTConfig.from_pretrained(tmp_path / "out")
    assert (config.hidden_act, config.num_frames, config.image_size) == ("gelu", 12, 84)
    assert (config.token_budgets, config.token_budget) == ([192, 128, 64], 100)
    printed = capsys.readouterr().out
    assert "converted 111 keys, dropped 0" in printed
    assert "assumed" not in printed


def test_command_line_in_its_own_process(tmp_path):
    command = [sys.executable, "-m", "conversion.convert_to_hf", GOLDEN / "internvideo2_tiny_checkpoint.pth"]
    finished = subprocess.run(
        [*map(str, command), str(tmp_path / "out"), *TINY_FLAGS], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert "converted 61 keys" in finished.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_report_file_records_source_and_verification(tmp_path):
    source = GOLDEN / "fluxvit_tiny_checkpoint.pth"
    convert(source, tmp_path / "out", TINY)
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["verified"] is True
    assert report["source_sha256"] == sha256(source)
    assert len(report["converted"]) == 111


@pytest.mark.parametrize("how", ["first rows", "label map", "label map as lines"])
def test_label_slicing(fluxvit_weights, tmp_path, how):
    rows = [0, 1, 2, 3] if how == "first rows" else [5, 0, 6]
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(f"row {row}" for row in rows) + "\n")
    flags = ["--num_labels", "4"]
    if how != "first rows":
        label_map = tmp_path / "map.json"
        label_map.write_text(json.dumps(rows) if how == "label map" else "\n".join(map(str, rows)))
        flags = ["--label_map", str(label_map)]
    source = str(GOLDEN / "fluxvit_tiny_checkpoint.pth")
    assert main([source, str(tmp_path / "out"), *TINY_FLAGS, *flags, "--labels", str(names)]) == 0
    model = FluxViTForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {index: f"row {row}" for index, row in enumerate(rows)}
    for head in range(3):
        assert torch.equal(model.classifiers[head].weight, fluxvit_weights[f"head.{head}.weight"][rows])
        assert torch.equal(model.classifiers[head].bias, fluxvit_weights[f"head.{head}.bias"][rows])


@pytest.mark.parametrize(
    "content",
    ['["a", "b", "c", "d", "e", "f", "g"]', '{"0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f", "6": "g"}'],
)
def test_label_files(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    source = str(GOLDEN / "fluxvit_tiny_checkpoint.pth")
    assert main([source, str(tmp_path / "out"), *TINY_FLAGS, "--labels", str(tmp_path / "labels.json")]) == 0
    assert list(FluxViTConfig.from_pretrained(tmp_path / "out").id2label.values()) == list("abcdefg")


def refuse(weights, tmp_path, message: str, choices: ConfigChoices = TINY, error=ValueError, **arguments):
    torch.save({"module": weights}, tmp_path / "bad.pth")
    with pytest.raises(error, match=message):
        convert(tmp_path / "bad.pth", tmp_path / "out", choices, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]  # nothing is left behind


def test_missing_unexpected_and_misshapen_keys_stop_it_with_the_list(fluxvit_weights, tmp_path):
    weights = dict(fluxvit_weights)
    del weights["blocks.1.norm2.weight"], weights["clip_projector.2.cross_attn.k_bias"]
    refuse(weights, tmp_path, r"(?s)2 keys.*missing: .*layer\.1\.norm2\.weight.*missing: .*", error=ConversionError)
    weights = {**fluxvit_weights, "blocks.0.attn.rope": torch.ones(3), "decoder.x": torch.ones(1)}
    refuse(weights, tmp_path, r"2 unexpected keys: blocks\.0\.attn\.rope, decoder\.x", error=ConversionError)
    weights = {**fluxvit_weights, "blocks.2.mlp.fc2.bias": torch.ones(47)}
    refuse(weights, tmp_path, r"misshapen: blocks\.2\.mlp\.fc2\.bias -> .* is \(47,\).*\(48,\)", error=ConversionError)


def test_two_keys_with_one_meaning(fluxvit_weights, tmp_path):
    weights = {**fluxvit_weights, "backbone.cls_token": fluxvit_weights["cls_token"]}
    refuse(weights, tmp_path, "cls_token", error=ConversionError)


def test_nan_weights(fluxvit_weights, tmp_path):
    weights = {**fluxvit_weights, "cls_token": torch.full_like(fluxvit_weights["cls_token"], float("nan"))}
    refuse(weights, tmp_path, "NaN", error=ConversionError)


def test_choices_that_are_needed_or_impossible(fluxvit_weights, tmp_path):
    refuse(fluxvit_weights, tmp_path, "--num_attention_heads", ConfigChoices())
    refuse(fluxvit_weights, tmp_path, r"--position_frames, one of 2 \(2x8x8\), 8", ConfigChoices(num_attention_heads=3))
    refuse(fluxvit_weights, tmp_path, "--position_frames 3", ConfigChoices(num_attention_heads=3, position_frames=3))
    wrong = ConfigChoices(num_attention_heads=5, num_pooling_heads=4, position_frames=8)
    refuse(fluxvit_weights, tmp_path, "num_attention_heads.*5", wrong)
    budgets = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8, token_budgets=[128, 64])
    refuse(fluxvit_weights, tmp_path, "3 heads.*2", budgets)


def test_labels_that_do_not_fit(fluxvit_weights, tmp_path):
    refuse(fluxvit_weights, tmp_path, "2 labels.*7", error=ConversionError, labels=["a", "b"])
    refuse(fluxvit_weights, tmp_path, r"more than once: \['a'\]", error=ConversionError, labels=list("abacdef"))
    refuse(fluxvit_weights, tmp_path, r"\[7\].*7", error=ConversionError, label_rows=[0, 7])
    refuse(fluxvit_weights, tmp_path, r"\[-1\].*7", error=ConversionError, label_rows=[-1])


class Malicious:
    """Unpickled without care, this would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_with_code_are_refused_unrun(fluxvit_weights, tmp_path):
    trap = tmp_path / "trap"
    torch.save({"module": fluxvit_weights, "hook": Malicious(trap)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="more than tensors and plain data"):
        convert(tmp_path / "bad.pth", tmp_path / "out", TINY)
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path, content, suffix, capsys):
    source = tmp_path / f"damaged{suffix}"
    source.write_bytes(content)
    assert main([str(source), str(tmp_path / "out"), *TINY_FLAGS]) == 1
    assert f"damaged{suffix}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_truncated_checkpoint(tmp_path):
    whole = (GOLDEN / "fluxvit_tiny_checkpoint.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth"):
        convert(tmp_path / "cut.pth", tmp_path / "out", TINY)


def test_not_a_checkpoint(tmp_path, capsys):
    assert main([str(tmp_path / "absent.pth"), str(tmp_path / "out")]) == 1
    assert "absent.pth" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="mp_rank_00_model_states.pt"):
        convert(tmp_path / "empty", tmp_path / "out")
    torch.save({"module": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a FluxViT or InternVideo2 checkpoint.*pos_embed"):
        convert(tmp_path / "other.pth", tmp_path / "out")


def test_existing_output_is_replaced_whole_and_kept_on_failure(fluxvit_weights, tmp_path):
    out = tmp_path / "out"
    convert(GOLDEN / "internvideo2_tiny_checkpoint.pth", out, TINY)
    (out / "notes.txt").write_text("mine")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError):
        convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", out)
    assert (out / "model.safetensors").read_bytes() == before
    convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", out, TINY)
    assert (out / "notes.txt").read_text() == "mine"
    assert AutoModelForVideoClassification.from_pretrained(out).config.token_budgets == [128, 85, 43]
