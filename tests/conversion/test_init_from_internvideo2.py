"""The start of Flux training: InternVideo2 in every published layout, and what FluxViT adds to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official_layouts import INTERNVIDEO2_LAYOUTS
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

from conversion.convert_to_hf import convert, empty_model, official_vision_weights
from conversion.infer_config import ConfigChoices, infer_config, infer_encoder
from conversion.init_from_internvideo2 import StartChoices, fluxvit_config, initialize, main
from conversion.key_mapping import translate_key
from conversion.report import ConversionError, KeyReport
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel
from flux_hf.configuration_fluxvit import INTERNVIDEO2_SIZES


REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"
CHECKPOINT = GOLDEN / "internvideo2_tiny_checkpoint.pth"
TINY = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
TINY_FLAGS = ["--num_attention_heads", "3", "--num_pooling_heads", "4", "--position_frames", "8"]
PLAIN = StartChoices(dual_patch_norm=False)
EVERYTHING = 10**6


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return torch.load(CHECKPOINT, weights_only=True)["module"]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "internvideo2_tiny_golden.safetensors")


def pixels(video_uint8: torch.Tensor) -> torch.Tensor:
    return (video_uint8.float() / 255 * 6 - 3).transpose(1, 2).contiguous()


def test_without_dual_patch_norm_every_head_starts_as_internvideo2(golden, tmp_path):
    report = initialize(CHECKPOINT, tmp_path / "start", TINY, PLAIN)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "start").eval()
    assert model.config.use_glpe and not model.config.use_dual_patch_norm
    assert len(model.config.token_budgets) == len(model.classifiers) == 3
    with torch.no_grad():
        for head in range(3):
            outputs = model(pixels(golden["video_uint8"]), token_budget=EVERYTHING, head=head)
            torch.testing.assert_close(outputs.logits, golden["logits"], atol=1e-5, rtol=1e-5)
    assert len(report.converted) == 61
    assert len(report.replicated) == 16 and all(len(names) == 3 for names in report.replicated.values())


def test_what_is_new_starts_as_said(tmp_path):
    report = initialize(CHECKPOINT, tmp_path / "start", TINY)
    model = FluxViTForVideoClassification.from_pretrained(tmp_path / "start")
    parameters = dict(model.named_parameters())
    converted = {*report.converted.values(), *(name for names in report.replicated.values() for name in names)}
    assert converted.isdisjoint(report.new)
    assert converted | report.new.keys() == parameters.keys()
    ones = zeros = 0
    for name, how in report.new.items():
        if "alignment_decoders" in name and name.endswith("dense.weight"):
            # trunc_normal of standard deviation 0.02
            assert how == "official initialisation"
            assert 0.015 < parameters[name].std() < 0.025
            continue
        lpe = "local_position_encoding" in name
        one = name.endswith("weight") and not lpe
        assert (how == "zero: adds nothing") == lpe
        assert torch.equal(parameters[name], torch.full_like(parameters[name], float(one))), name
        ones, zeros = ones + one, zeros + (not one)
    assert (ones, zeros) == (1 + 2 + 2, 2 * 3 + 1 + 2 + 2)  # GPE, two norms, two decoders; LPE, GPE, decoders' biases


def test_what_is_random_follows_the_seed_and_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    decoders = []
    for run, seed in enumerate((3, 3, 4)):
        initialize(CHECKPOINT, tmp_path / str(run), TINY, StartChoices(seed=seed))
        decoders.append(load_file(tmp_path / str(run) / "model.safetensors")["alignment_decoders.1.dense.weight"])
    assert torch.equal(decoders[0], decoders[1])
    assert not torch.equal(decoders[0], decoders[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_positions_are_interpolated_as_the_official_model_does(weights, tmp_path):
    # The official FluxViT's table, its GPE applied, in the place of InternVideo2's: its positions for another grid
    # are known.
    fluxvit = torch.load(GOLDEN / "fluxvit_tiny_checkpoint.pth", weights_only=True)["module"]
    scale, offset = fluxvit["gpe_proj.depthwise_conv.weight"].flatten(), fluxvit["gpe_proj.depthwise_conv.bias"]
    table = torch.cat([fluxvit["pos_embed"][:, :1], fluxvit["pos_embed"][:, 1:] * scale + offset], dim=1)
    torch.save({"module": {**weights, "pos_embed": table}}, tmp_path / "c.pth")
    report = initialize(tmp_path / "c.pth", tmp_path / "start", TINY, StartChoices(position_grid=[12, 6, 6]))
    assert report.interpolated == {"pos_embed": "from 8x4x4 to 12x6x6"}
    saved = load_file(tmp_path / "start" / "model.safetensors")["fluxvit.embeddings.position_embeddings.table"]
    expected = load_file(GOLDEN / "fluxvit_tiny_golden.safetensors")["denser.position_embeddings"]
    torch.testing.assert_close(saved, expected, atol=1e-5, rtol=1e-5)
    config = FluxViTConfig.from_pretrained(tmp_path / "start")
    assert (config.position_embedding_grid, config.num_frames, config.image_size) == ([12, 6, 6], 12, 84)


def true_layouts() -> list[tuple[str, str]]:
    return [(name, size) for name, layout in INTERNVIDEO2_LAYOUTS.items() for size in layout.sizes]


@pytest.mark.parametrize(("layout_name", "size"), true_layouts())
def test_every_published_layout_in_its_true_shapes(layout_name, size):
    layout, known = INTERNVIDEO2_LAYOUTS[layout_name], INTERNVIDEO2_SIZES[size]
    shapes = layout.shapes(known["hidden_size"], known["num_hidden_layers"], known["intermediate_size"])
    checkpoint = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    report, notes = KeyReport(), []
    encoder = official_vision_weights(checkpoint, report)
    assert report.dropped.keys() == {layout.prefix + name for name in layout.dropped} | set(layout.text)
    # as a teacher
    frames, tokens = layout.frames, layout.frames * 256
    grids = {"position_embedding_grid": [frames, 16, 16], "num_frames": frames}
    budgets = {"token_budgets": [tokens], "token_budget": tokens}
    labels = {} if layout.labels is None else {"num_labels": layout.labels}
    teacher = infer_config(encoder, ConfigChoices(), notes)
    expected = FluxViTConfig.internvideo2(size, **grids, **budgets, **labels)
    assert teacher.to_diff_dict() == expected.to_diff_dict()
    translated = {name: translate_key(name) for name in encoder}
    assert None not in translated.values()
    model = empty_model(teacher, has_classifier=True).state_dict()
    if layout.labels is None:
        model = {name: tensor for name, tensor in model.items() if name.startswith("fluxvit.")}
    found = {new: change(encoder[name]).shape for name, (new, change) in translated.items()}
    assert found == {name: tensor.shape for name, tensor in model.items()}
    # as FluxViT's start
    start = fluxvit_config(infer_encoder(encoder, ConfigChoices(), notes), ConfigChoices(), StartChoices(), notes)
    if size in "SB":
        published = FluxViTConfig.small(**labels) if size == "S" else FluxViTConfig.base(**labels)
        assert start.to_diff_dict() == published.to_diff_dict()
        assert notes == []
    else:
        wanted = {**known, **grids, **labels, "token_budgets": [3072, 2048, 1024], "token_budget": 2048}
        assert start.to_diff_dict() == FluxViTConfig(**wanted).to_diff_dict()
        assert notes == [f"no FluxViT of this size is published: the position grid stays [{frames}, 16, 16]"]


@pytest.mark.parametrize("layout_name", INTERNVIDEO2_LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_every_layout_in_small_starts_as_its_teacher(weights, tmp_path, layout_name, suffix):
    layout = INTERNVIDEO2_LAYOUTS[layout_name]
    wanted = layout.shapes(48, 3, 192, side=4, projection=32)
    checkpoint = {}
    for name, shape in wanted.items():
        known = weights.get(name.removeprefix(layout.prefix))
        checkpoint[name] = torch.ones(shape) if known is None else known
    if layout.frames == 4:
        checkpoint["vision_encoder.pos_embed"] = weights["pos_embed"][:, : 1 + 4 * 16].clone()
    source = tmp_path / f"c{suffix}"
    torch.save(layout.wrap(checkpoint), source)
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=layout.frames)
    convert(source, tmp_path / "teacher", choices)
    report = initialize(source, tmp_path / "start", choices, PLAIN)
    assert report.dropped.keys() == {layout.prefix + name for name in layout.dropped} | set(layout.text)
    assert all(report.dropped.values())
    kind = FluxViTModel if layout.labels is None else FluxViTForVideoClassification
    teacher, start = (kind.from_pretrained(tmp_path / name).eval() for name in ("teacher", "start"))
    video = torch.randn(1, layout.frames, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for head in range(3):
            same = start(video, token_budget=40, head=head).pooler_output
            torch.testing.assert_close(same, teacher(video, token_budget=40).pooler_output, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_without_classifier_can_get_a_new_one(weights, tmp_path):
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(("head.", "fc_norm."))}
    torch.save(encoder, tmp_path / "encoder.bin")
    (tmp_path / "labels.txt").write_text("up\ndown\nleft\n")
    flags = [str(tmp_path / "encoder.bin"), str(tmp_path / "start"), *TINY_FLAGS]
    assert main([*flags, "--new_classifier", "3", "--labels", str(tmp_path / "labels.txt")]) == 0
    model, loading = FluxViTForVideoClassification.from_pretrained(tmp_path / "start", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert list(model.config.id2label.values()) == ["up", "down", "left"]
    for classifier in model.classifiers:
        assert 0.015 < classifier.weight.std() < 0.025
        assert not classifier.bias.any()
    assert bool((model.fc_norm.weight == 1).all()) and not model.fc_norm.bias.any()
    record = json.loads((tmp_path / "start" / "conversion_report.json").read_text())
    assert record["new"]["classifiers.2.weight"] == "official initialisation: the checkpoint has no classifier"


def test_a_start_without_classifier_is_what_training_loads(weights, tmp_path):
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(("head.", "fc_norm."))}
    torch.save(encoder, tmp_path / "encoder.bin")
    initialize(tmp_path / "encoder.bin", tmp_path / "start", TINY)
    bare = FluxViTModel.from_pretrained(tmp_path / "start").state_dict()
    model, loading = FluxViTForVideoClassification.from_pretrained(
        tmp_path / "start", num_labels=3, output_loading_info=True
    )
    started = model.fluxvit.state_dict()
    assert started.keys() == bare.keys()
    assert all(torch.equal(tensor, started[name]) for name, tensor in bare.items())
    new_parts = {name.split(".")[0] for name in loading["missing_keys"]}
    assert new_parts == {"classifiers", "fc_norm", "alignment_decoders"}


def test_flags(tmp_path, capsys):
    flags = [*TINY_FLAGS, "--num_labels", "4", "--position_grid", "6", "5", "5", "--token_budgets", "40", "20"]
    flags += ["--token_budget", "30", "--num_frames", "12", "--image_size", "84", "--hidden_act", "gelu", "--seed", "1"]
    assert main([str(CHECKPOINT), str(tmp_path / "start"), *flags]) == 0
    config = FluxViTConfig.from_pretrained(tmp_path / "start")
    assert (config.num_labels, config.position_embedding_grid, config.hidden_act) == (4, [6, 5, 5], "gelu")
    assert (config.token_budgets, config.token_budget) == ([40, 20], 30)
    assert (config.num_frames, config.image_size, config.use_dual_patch_norm) == (12, 84, True)
    assert AutoVideoProcessor.from_pretrained(tmp_path / "start").num_frames == 12
    printed = capsys.readouterr().out
    assert "copied 44 keys, replicated 16, interpolated 1, dropped 0; 14 are new" in printed
    assert "interpolated from 8x4x4 to 6x5x5: pos_embed" in printed
    assert "assumed" not in printed


def test_half_precision_checkpoints_stay_so(weights, tmp_path):
    torch.save({"module": {name: tensor.bfloat16() for name, tensor in weights.items()}}, tmp_path / "b.pth")
    initialize(tmp_path / "b.pth", tmp_path / "start", TINY, StartChoices(position_grid=[4, 4, 4]))
    saved = load_file(tmp_path / "start" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_tubelets_and_patches_of_other_sizes(weights, tmp_path):
    torch.save({**weights, "patch_embed.proj.weight": torch.randn(48, 3, 5, 6, 6)}, tmp_path / "c.pth")
    initialize(tmp_path / "c.pth", tmp_path / "start", TINY, StartChoices(position_grid=[2, 5, 5]))
    config = FluxViTConfig.from_pretrained(tmp_path / "start")
    assert (config.tubelet_size, config.patch_size, config.num_frames, config.image_size) == (5, 6, 10, 30)


def test_one_budget_has_no_copies_and_no_decoders(tmp_path):
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8, token_budgets=[64])
    report = initialize(CHECKPOINT, tmp_path / "start", choices)
    assert report.replicated == {}
    assert not [name for name in report.new if name.startswith("alignment_decoders")]


def refuse(weights, tmp_path, message: str, choices=TINY, start=None, error=ValueError, **arguments):
    torch.save({"module": weights}, tmp_path / "bad.pth")
    with pytest.raises(error, match=message):
        initialize(tmp_path / "bad.pth", tmp_path / "out", choices, start, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]  # nothing is left behind


def test_what_does_not_fit_is_refused(weights, tmp_path):
    fluxvit = torch.load(GOLDEN / "fluxvit_tiny_checkpoint.pth", weights_only=True)["module"]
    refuse(fluxvit, tmp_path, "FluxViT already")
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(("head.", "fc_norm."))}
    refuse(encoder, tmp_path, "no new one is asked for", labels=["a", "b"], error=ConversionError)
    refuse(encoder, tmp_path, "no classifier", label_rows=[0], error=ConversionError)
    refuse(weights, tmp_path, "7 labels", start=StartChoices(num_labels=9))
    refuse(encoder, tmp_path, "num_labels.*0", start=StartChoices(num_labels=0))
    refuse(weights, tmp_path, r"--position_grid.*\[8, 0, 4\]", start=StartChoices(position_grid=[8, 0, 4]))
    lacking = {name: tensor for name, tensor in weights.items() if name not in ("head.bias", "blocks.1.ls1.gamma")}
    refuse(lacking, tmp_path, r"(?s)4 keys.*classifiers\.2\.bias.*layer\.1", error=ConversionError)
    refuse({**weights, "blocks.0.x": torch.ones(1)}, tmp_path, "unexpected.*blocks.0.x", error=ConversionError)
    refuse({**weights, "blocks.0.ls1.gamma": torch.ones(9)}, tmp_path, "misshapen", error=ConversionError)
    nan = torch.full((48,), float("nan"))
    refuse({**weights, "blocks.0.ls1.gamma": nan}, tmp_path, "NaN", error=ConversionError)


def test_command_line_in_its_own_process(tmp_path):
    command = [sys.executable, "-m", "conversion.init_from_internvideo2", str(CHECKPOINT), str(tmp_path / "start")]
    finished = subprocess.run([*command, *TINY_FLAGS], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "copied 45 keys, replicated 16, interpolated 0, dropped 0; 18 are new" in finished.stdout
    assert main([str(CHECKPOINT), str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()
