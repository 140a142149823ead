"""Exported folders on ONNX Runtime, OpenVINO and torch against the models they came from; ties, batches, errors."""

import json
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from flux_models import flux_model, library_model, with_random_weights
from tiny import tiny_config
from transformers import VideoMAEVideoProcessor, pipeline
from video_files import encode

from flux_hf import (
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
    load_classifier,
    load_exported,
)
from flux_hf.token_selection import select_tokens


REPOSITORY = Path(__file__).parents[2]
FORMATS = pytest.mark.parametrize(
    "export_format",
    ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "torch"))],
)
LABELS = {"id2label": {0: "left", 1: "right", 2: "up"}, "label2id": {"left": 0, "right": 1, "up": 2}}


@pytest.fixture(scope="module")
def conversion():
    """Imported here: machines that only train have no ONNX."""
    from conversion import export

    return export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """8 frames of 4 x 4 patches, 128 tokens; at 16 tokens the plan wants 4 frames."""
    folder = tmp_path_factory.mktemp("checkpoint") / "motions"
    config = tiny_config(num_frames=8, image_size=56, token_budget=40, token_plan={16: [4, 56]}, **LABELS)
    with_random_weights(FluxViTForVideoClassification(config)).save_pretrained(folder)
    FluxViTVideoProcessor(num_frames=8, size=56).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(conversion, checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Exports by format, made when first asked for; of torch, which takes the least time, two budgets."""

    class Exports(dict):
        def __missing__(self, name: str) -> Path:
            export_format, _, int8 = name.partition(" ")
            folder = self[name] = tmp_path_factory.mktemp("exports") / name.replace(" ", "-")
            budgets = [40, 16] if export_format == "torch" else [40]
            conversion.export(str(checkpoint), str(folder), export_format, budgets, int8=bool(int8))
            return folder

    return Exports()


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(encode("libx264", 30, size=(160, 96)))
    return str(path)


def tied_clips(batch: int, frames: int = 8, side: int = 56, patch: int = 14) -> torch.Tensor:
    """Of patches that are one of two pictures, mostly the first: two scores, and many zeros among them."""
    generator = torch.Generator().manual_seed(batch)
    pictures = torch.randn(2, 3, patch, patch, generator=generator)
    chosen = pictures[(torch.rand(batch, frames, side // patch, side // patch, generator=generator) < 0.2).long()]
    return chosen.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, 3, side, side)


@FORMATS
@torch.no_grad()
def test_an_export_keeps_the_tokens_and_gives_the_logits_of_the_model(folders, checkpoint, export_format):
    model, exported = load_classifier(checkpoint).eval(), load_exported(folders[export_format], trust_remote_code=True)
    static = torch.randn(1, 1, 3, 56, 56, generator=torch.Generator().manual_seed(5)).expand(1, 8, 3, 56, 56)
    grey = torch.full((1, 8, 3, 56, 56), 0.25)
    clips = {"tied": tied_clips(3), "tied alone": tied_clips(1), "static": static, "grey": grey}
    clips["random"] = torch.randn(5, 8, 3, 56, 56, generator=torch.Generator().manual_seed(6))
    for name, clip in clips.items():
        wanted, got = model(clip, token_budget=40), exported(clip, token_budget=40)
        assert got.keep_indices.dtype == torch.int64 and torch.equal(got.keep_indices, wanted.keep_indices), name
        torch.testing.assert_close(got.logits, wanted.logits, atol=1e-4, rtol=0)
    assert model(clips["tied"]).logits.std() > 0.01
    # of a static clip the earliest of each of the 4 groups of 2 frames of 16 patches
    earliest = [32 * group + index for group in range(4) for index in range(10)]
    assert exported(static).keep_indices.tolist() == [earliest]


@pytest.mark.slow
def test_the_folder_says_what_it_holds(folders, checkpoint):
    folder = folders["torch"]
    section = json.loads((folder / "export.json").read_text())["flux_hf"]
    assert {path.name for path in folder.iterdir()} == {
        *("model_40.pt2", "model_16.pt2", "config.json", "video_preprocessor_config.json", "export.json")
    }
    assert section["source"] == "motions" and section["format"] == "torch" and section["int8"] is False
    assert section["packages"]["torch"] == torch.__version__.partition("+")[0]
    sizes = {
        budget: [about["file"], about["num_frames"], about["height"]] for budget, about in section["models"].items()
    }
    assert sizes == {"40": ["model_40.pt2", 8, 56], "16": ["model_16.pt2", 4, 56]}
    for about in section["models"].values():
        assert about["verification"]["clips"] >= 8 and about["verification"]["logits_difference"] < 1e-4
    config = load_exported(folder, trust_remote_code=True).config
    assert config.token_plan == {40: [8, 56], 16: [4, 56]} and config.token_budget == 40
    assert config.id2label == LABELS["id2label"]


@FORMATS
def test_the_pipeline_runs_an_exported_folder(folders, checkpoint, clip_file, export_format, caplog):
    options = {"task": "video-classification", "pipeline_class": FluxViTVideoClassificationPipeline}
    exported = load_exported(folders[export_format], trust_remote_code=True)
    classify, eager = pipeline(model=exported, **options), pipeline(model=str(checkpoint), device="cpu", **options)
    assert "not supported" not in caplog.text
    calls = [{}, {"num_clips": 2, "num_crops": 3}, *([{"token_budget": 16}] if export_format == "torch" else [])]
    for call in calls:
        for got, wanted in zip(classify(clip_file, **call), eager(clip_file, **call), strict=True):
            assert got["label"] == wanted["label"] and got["score"] == pytest.approx(wanted["score"], abs=1e-5)
    [first] = classify(clip_file, window=1.0)[:1]
    assert first["labels"][0]["label"] == eager(clip_file, window=1.0)[0]["labels"][0]["label"]
    both = classify([clip_file, clip_file], batch_size=2)
    assert both[0] == both[1]
    with pytest.raises(ValueError, match=r"token_budget=20 is not one of \[40"):
        classify(clip_file, token_budget=20)
    with pytest.raises(ValueError, match=r"token_budget=40.*of \(8, 3, 56, 56\), got \(4, 3, 56, 56\)"):
        classify(clip_file, token_budget=40, num_frames=4)
    with pytest.raises(ValueError, match=r"none for 'auto'; it has \[40"):
        classify(clip_file, token_budget="auto")


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("onnx", [0]), {}, "token_budget must be a whole number of at least 1, got 0"),
        (("onnx", []), {}, "at least one budget"),
        (("tflite", [40]), {}, "format must be one of .*, got 'tflite'"),
        (("torch", [40], None, None, True), {}, "int8 is for onnx and openvino, not for torch"),
        (("torch", [40], 8, 50), {}, "multiples of 14, got 50x50"),
        (("torch", [40]), {"token_selection": "random"}, "'random' draws anew at each call"),
        (("torch", [40]), {"token_selection": "threshold", "token_threshold": 1.0}, "'threshold' keeps another number"),
    ],
)
def test_what_cannot_be_exported_is_refused(conversion, checkpoint, tmp_path, arguments, changes, message):
    source = checkpoint
    if changes:
        load_classifier(checkpoint, **changes).save_pretrained(tmp_path / "changed")
        source = tmp_path / "changed"
    with pytest.raises(ValueError, match=message):
        conversion.export(str(source), str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def later_first(patches: torch.Tensor, budgets: list) -> list[torch.Tensor]:
    """Selection by the same scores whose ties go to the later token."""
    [kept] = [select_tokens(patches.flip(1, 2), budget) for budget in budgets]
    return [patches.shape[1] * patches.shape[2] - 1 - kept.flip(1)]


def test_verification_sees_another_tie_rule_and_other_logits(conversion, folders, checkpoint):
    model, exported = load_classifier(checkpoint).eval(), load_exported(folders["onnx"])
    told = conversion.verify(model, exported, 40, exact=True)
    assert told["clips"] == 8 and told["logits_difference"] < 1e-5
    model.classifiers[0].bias.data += 1e-3
    assert conversion.verify(model, exported, 40, exact=False)["logits_difference"] == pytest.approx(1e-3, rel=0.01)
    with pytest.raises(ValueError, match="model_40.onnx: logits differ from the model's by 1.0e-03, allowed is 0.0001"):
        conversion.verify(model, exported, 40, exact=True)
    model = load_classifier(checkpoint).eval()
    model.fluxvit.select = later_first
    with pytest.raises(
        ValueError, match=r"model_40.onnx on \w+ clips, batch \d: \d+ of \d+ kept tokens are not the model's"
    ):
        conversion.verify(model, exported, 40, exact=True)


@torch.no_grad()
def test_clips_for_verification_do_not_hang_on_rounding(checkpoint):
    from conversion.export_verification import CLEAR, border_gap, clear_clips

    model = load_classifier(checkpoint).eval()
    for budget in (36, 40, 128):  # 9 or 10 of each 2 frames, whose scores are the same: within such a pair, or between
        assert border_gap(model, model.embed(clear_clips(model, budget, (8, 3, 56, 56)))[0], budget) > CLEAR
    for sixth, gap in ((1.0, 0.1), (1.0 - 1e-6, 1e-6), (0.98, 0.02)):  # of what moved, five patches are kept
        patches = torch.zeros(1, 8, 16, 1)
        patches[0, 1, :7, 0] = torch.tensor([1.5, 1.4, 1.3, 1.2, 1.0, sixth, 0.9])
        assert border_gap(model, patches, 40) == pytest.approx(gap, rel=0.1)


@pytest.mark.slow
def test_a_program_that_does_something_else_is_not_written(conversion, checkpoint, tmp_path, monkeypatch, capsys):
    export_at = conversion.export_at

    def with_other_ties(model, *rest):
        model.fluxvit.select = later_first
        component = export_at(model, *rest)
        del model.fluxvit.select
        return component

    monkeypatch.setattr(conversion, "export_at", with_other_ties)
    command = [str(checkpoint), str(tmp_path / "out"), "--format", "torch", "--token_budget", "40"]
    assert conversion.main(command) == 1
    assert "kept tokens are not the model's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_folders_that_something_else_wrote_are_refused(conversion, folders, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no exported folder: it has no export.json"):
        load_exported(checkpoint)
    (tmp_path / "export.json").write_text('{"export_format": "onnx"}')
    with pytest.raises(ValueError, match="not written by conversion.export"):
        load_exported(tmp_path)
    with pytest.raises(ValueError, match="does not exist or is empty"):
        conversion.export(str(checkpoint), str(tmp_path), "onnx", [40])


@pytest.mark.slow
def test_torchs_files_are_loaded_by_consent_only(folders):
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_exported(folders["torch"])


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["onnx", "openvino"])
@torch.no_grad()
def test_in_int8_the_same_tokens_are_kept(folders, checkpoint, export_format):
    folder = folders[f"{export_format} int8"]
    model, exported = load_classifier(checkpoint).eval(), load_exported(folder)
    for clip in (tied_clips(3), torch.randn(5, 8, 3, 56, 56, generator=torch.Generator().manual_seed(6))):
        wanted, got = model(clip), exported(clip)
        assert torch.equal(got.keep_indices, wanted.keep_indices)
        difference = (got.logits - wanted.logits).abs().max().item()
        assert 1e-4 < difference < 0.2  # it is quantized, and not broken
    section = json.loads((folder / "export.json").read_text())["flux_hf"]
    assert section["int8"] is True and section["models"]["40"]["verification"]["logits_difference"] > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["onnx", "openvino", "torch"])
@torch.no_grad()
def test_other_encoders(conversion, tmp_path, export_format):
    library_model("videomae").save_pretrained(tmp_path / "videomae")
    VideoMAEVideoProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "videomae")
    for name in ("vivit", "vjepa2"):
        flux_model(name).save_pretrained(tmp_path / name)
        FluxViTVideoProcessor(num_frames=8, size=32, patch_size=8).save_pretrained(tmp_path / name)
    clips = torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    consent = {"trust_remote_code": True}
    for name in ("videomae", "vivit", "vjepa2"):
        budgets = [64, 20] if name == "videomae" else [20]  # of 64 tokens
        conversion.export(str(tmp_path / name), str(tmp_path / f"{name}-out"), export_format, budgets)
        model, exported = load_classifier(tmp_path / name).eval(), load_exported(tmp_path / f"{name}-out", **consent)
        for budget in budgets:
            wanted, got = model(clips, token_budget=budget), exported(clips, token_budget=budget)
            assert torch.equal(got.keep_indices, wanted.keep_indices)
            torch.testing.assert_close(got.logits, wanted.logits, atol=1e-4, rtol=0)


class Selector(torch.nn.Module):
    def __init__(self, budget: int):
        super().__init__()
        self.budget = budget

    def forward(self, pixel_values_videos):
        return {"keep_indices": select_tokens(pixel_values_videos, self.budget)}


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["onnx", "openvino"])
@pytest.mark.parametrize(("frames", "patches", "budget"), [(3, 5, 4), (8, 16, 50), (12, 256, 1024), (24, 256, 3071)])
def test_ties_go_to_the_earlier_token(conversion, export_format, frames, patches, budget):
    """Runtimes rank few and many scores by different code: selection alone, with few distinct scores."""
    from conversion.export_formats import exporter_of, quiet

    features = torch.randint(0, 3, (2, frames, patches, 1), generator=torch.Generator().manual_seed(frames)).float()
    with quiet():
        exporter, options, config = exporter_of(export_format, int8=False)
        shapes = {"pixel_values_videos": {0: torch.export.Dim("batch", min=1)}}
        exported = exporter.export(
            Selector(budget), {"pixel_values_videos": features}, config(dynamic_shapes=shapes, **options)
        )
        for clips in (features, features[:1], features.repeat(3, 1, 1, 1)):
            kept = exported(pixel_values_videos=clips)["keep_indices"]
            assert torch.equal(kept, select_tokens(clips, budget))


def readme_example() -> str:
    """The program of conversion/README.md that classifies with ONNX Runtime alone."""
    text = (REPOSITORY / "conversion/README.md").read_text(encoding="utf-8")
    [program] = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "onnxruntime" in block]
    return program


@pytest.mark.slow
def test_the_readmes_program_needs_no_torch(folders, checkpoint, clip_file, tmp_path):
    """In a new environment that holds ONNX Runtime, NumPy and PyAV, installed from the package index."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    packages = ["onnxruntime", "numpy", "av", "--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, **options)
    missing = subprocess.run([python, "-c", "import torch"], **options)
    assert missing.returncode != 0 and "No module named 'torch'" in missing.stderr
    program = tmp_path / "classify.py"
    program.write_text(readme_example(), encoding="utf-8")
    ran = subprocess.run([python, program, folders["onnx"], clip_file, "40"], **options)
    assert ran.returncode == 0, ran.stderr
    score, label = ran.stdout.split()
    eager = FluxViTVideoClassificationPipeline(
        load_classifier(checkpoint).eval(),
        video_processor=FluxViTVideoProcessor.from_pretrained(checkpoint),
        device="cpu",
    )
    [best] = eager(clip_file, token_budget=40, top_k=1)
    assert label == best["label"] and float(score) == pytest.approx(best["score"], abs=0.02)
