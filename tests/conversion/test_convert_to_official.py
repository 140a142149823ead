"""From here to the official layout: the converter's inverse, bit for bit, and what the official code cannot hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official_layouts import fluxvit_shapes

from conversion.convert_to_hf import convert, empty_model
from conversion.convert_to_official import export, main
from conversion.infer_config import ConfigChoices
from conversion.key_mapping import official_key, translate_key
from conversion.report import ConversionError
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel


REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"
TINY = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)


def tiny_config(**overrides) -> FluxViTConfig:
    values = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "num_pooling_heads": 4,
        "projection_dim": 32,
        "position_embedding_grid": [8, 4, 4],
        "image_size": 56,
        "num_frames": 8,
        "token_budgets": [96, 64, 32],
        "token_budget": 64,
        "layer_scale_init_value": 0.3,
        "num_labels": 5,
    }
    return FluxViTConfig(**{**values, **overrides})


def save_model(folder: Path, kind=FluxViTForVideoClassification, **overrides):
    """A model none of whose parameters has a special value."""
    torch.manual_seed(0)
    model = kind(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return model


def clip() -> torch.Tensor:
    return torch.randn(1, 8, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["fluxvit", "internvideo2"])
def test_official_to_here_and_back_is_bit_equal(tmp_path, name, dtype):
    weights = torch.load(GOLDEN / f"{name}_tiny_checkpoint.pth", weights_only=True)["module"]
    weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
    torch.save({"module": weights}, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "here", TINY)
    report = export(tmp_path / "here", tmp_path / "back.pth")
    assert_same_tensors(torch.load(tmp_path / "back.pth", weights_only=True)["model"], weights)
    assert set(report.converted.values()) == weights.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "here", "official.pth"]


@pytest.mark.parametrize(
    "config",
    [
        FluxViTConfig.small(num_labels=400),
        FluxViTConfig.base(),
        FluxViTConfig.internvideo2("6B"),
        tiny_config(qkv_bias=True),
        tiny_config(use_qk_norm=False, use_dual_patch_norm=False, token_budgets=[9, 8, 7, 6]),
        tiny_config(tubelet_size=2, num_channels=1, patch_size=4),
    ],
)
def test_the_table_covers_every_parameter_and_is_its_own_inverse(config):
    expected = empty_model(config, has_classifier=True).state_dict()
    official = {name: official_key(name) for name in expected}
    assert None not in official.values()
    assert len({name for name, _ in official.values()}) == len(expected)
    for name, (official_name, to_official) in official.items():
        new_name, to_ours = translate_key(official_name)
        assert new_name == name
        assert to_ours(to_official(expected[name], config)).shape == expected[name].shape


def test_official_names_and_shapes_are_those_of_the_published_checkpoints():
    for config, shapes in (
        (FluxViTConfig.small(num_labels=400), fluxvit_shapes(384, 12, 7776, 400)),
        (FluxViTConfig.base(num_labels=174), fluxvit_shapes(768, 12, 12_800, 174)),
    ):
        found = {}
        for name, tensor in empty_model(config, has_classifier=True).state_dict().items():
            official, change = official_key(name)
            found[official] = tuple(change(tensor, config).shape)
        assert found == shapes


def test_a_patch_kernel_of_any_shape_comes_back(tmp_path):
    config = tiny_config(tubelet_size=2, num_channels=4, patch_size=7)
    kernel = torch.randn(48, 4, 2, 7, 7)
    name, to_ours = translate_key("patch_embed.proj.weight")
    _, to_official = official_key(name)
    assert torch.equal(to_official(to_ours(kernel), config), kernel)


def test_a_model_saved_by_training_in_shards(tmp_path):
    model = save_model(tmp_path / "model")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    # what a training leaves beside it must not be taken for the model
    (tmp_path / "sharded" / "latest").write_text("deepspeed")
    torch.save({"objective": {"x": torch.ones(1)}}, tmp_path / "sharded" / "training_state.pt")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    export(tmp_path / "model", tmp_path / "one.pth")
    export(tmp_path / "sharded", tmp_path / "two.pth")
    one, two = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("one.pth", "two.pth"))
    assert_same_tensors(one, two)


def test_a_bare_encoder(tmp_path):
    model = save_model(tmp_path / "model", kind=FluxViTModel)
    report = export(tmp_path / "model", tmp_path / "encoder.pth")
    assert not any("num_classes" in note for note in report.notes)
    convert(tmp_path / "encoder.pth", tmp_path / "back", TINY)
    assert_same_tensors(FluxViTModel.from_pretrained(tmp_path / "back").state_dict(), model.state_dict())


@torch.no_grad()
def test_without_glpe_the_official_model_gets_encodings_that_add_nothing(tmp_path):
    model = save_model(tmp_path / "model", use_glpe=False)
    report = export(tmp_path / "model", tmp_path / "official.pth")
    assert any("no GLPE" in note for note in report.notes)
    convert(tmp_path / "official.pth", tmp_path / "back", TINY)
    back = FluxViTForVideoClassification.from_pretrained(tmp_path / "back").eval()
    assert back.config.use_glpe
    for head in range(3):
        torch.testing.assert_close(
            back(clip(), head=head, token_budget=40).logits, model(clip(), head=head, token_budget=40).logits
        )


@torch.no_grad()
def test_the_head_of_a_model_of_one_budget_is_copied(tmp_path):
    model = save_model(tmp_path / "model", token_budgets=[64])
    report = export(tmp_path / "model", tmp_path / "official.pth")
    assert any("copied to all 3" in note for note in report.notes)
    weights = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    golden = torch.load(GOLDEN / "fluxvit_tiny_checkpoint.pth", weights_only=True)["module"]
    decoders = {name: tensor for name, tensor in golden.items() if name.startswith("final_clip")}
    assert weights.keys() | decoders.keys() == {name for name in golden if not name.startswith("blocks.2.")}
    torch.save({"model": weights | decoders}, tmp_path / "whole.pth")
    convert(tmp_path / "whole.pth", tmp_path / "back", TINY)
    back = FluxViTForVideoClassification.from_pretrained(tmp_path / "back").eval()
    for head in range(3):
        torch.testing.assert_close(
            back(clip(), head=head, token_budget=40).logits, model(clip(), token_budget=40).logits
        )


def test_what_the_official_code_must_be_told_is_noted(tmp_path):
    plan = {64: [8, 56]}
    overrides = {"use_dual_patch_norm": False, "qkv_bias": True, "use_qk_norm": False, "hidden_act": "gelu"}
    overrides |= {"id2label": dict(enumerate("abcde")), "label2id": {label: i for i, label in enumerate("abcde")}}
    save_model(tmp_path / "model", token_selection="dynamic_l2", token_plan=plan, **overrides)
    notes = "\n".join(export(tmp_path / "model", tmp_path / "official.pth").notes)
    constructor = "img_size 56, patch_size 14, num_frames 8, embed_dim 48, depth 2, num_heads 3, mlp_ratio 2, "
    constructor += "attn_pool_num_heads 4, clip_embed_dim 32, num_classes 5"
    for expected in (
        f"the official FluxViT has to be built with {constructor}",
        "exact GELU",
        "bias for queries",
        "without normalisation of queries",
        "without dual patch norm",
        "dynamic_l2",
        "token_plan {64: [8, 56]}",
        "the heads' token_budgets [96, 64, 32]",
        "the names of the 5 labels",
    ):
        assert expected in notes, expected


def test_a_published_model_needs_no_more_than_its_constructor_values(tmp_path):
    save_model(tmp_path / "model")
    first, *others = export(tmp_path / "model", tmp_path / "official.pth").notes
    assert first.startswith("the official FluxViT has to be built with")
    assert [note.split(":")[0] for note in others] == ["not part of the file", "verified"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tubelet_size": 2}, "tubelet_size is 2, of the official models 1"),
        ({"num_channels": 1}, "num_channels is 1, of the official models 3"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, of the official models 1e-06"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, of the official models 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
        (
            {"position_embedding_grid": [8, 4, 5]},
            r"position_embedding_grid is \[8, 4, 5\], .* square",
        ),
        ({"token_budgets": [64, 32]}, r"token_budgets is \[64, 32\], of the official FluxViT 3 budgets"),
    ],
)
def test_what_the_official_code_cannot_hold_is_refused(tmp_path, overrides, message):
    save_model(tmp_path / "model", **overrides)
    with pytest.raises(ConversionError, match=message):
        export(tmp_path / "model", tmp_path / "official.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def damage_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def falsify_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))


def make_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "not a whole safetensors file"),
        (damage_config, "config.json"),
        (change_config, "missing: fluxvit.encoder.layer.2.norm1.weight"),
        (falsify_config, "hidden_size"),
        (make_adapter, "merge it"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_damaged_folders_leave_the_old_file_as_it_was(tmp_path, capsys, damage, message):
    save_model(tmp_path / "model")
    damage(tmp_path / "model")
    (tmp_path / "official.pth").write_bytes(b"mine")
    assert main([str(tmp_path / "model"), str(tmp_path / "official.pth")]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "official.pth").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "official.pth"]


def test_nan_weights(tmp_path):
    model = save_model(tmp_path / "model")
    with torch.no_grad():
        model.fc_norm.bias[3] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConversionError, match="NaN or infinite values in 1 keys: fc_norm.bias"):
        export(tmp_path / "model", tmp_path / "official.pth")


@pytest.mark.parametrize("name", ["official", "official.safetensors", "folder.pth"])
def test_outputs_that_cannot_be(tmp_path, name):
    save_model(tmp_path / "model")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match="OUT must be a file ending in one of .pth, .pt, .bin"):
        export(tmp_path / "model", tmp_path / name)


def test_command_line_in_its_own_process(tmp_path):
    save_model(tmp_path / "model")
    (tmp_path / "official.pth").write_bytes(b"old")
    command = [sys.executable, "-m", "conversion.convert_to_official", tmp_path / "model", tmp_path / "official.pth"]
    finished = subprocess.run([*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "converted 96 keys" in finished.stdout
    assert "verified: read again" in finished.stdout
    assert set(torch.load(tmp_path / "official.pth", weights_only=True)) == {"model"}
