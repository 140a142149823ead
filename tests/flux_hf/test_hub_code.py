"""Checkpoints as others meet them: through Auto classes, and in a process that has transformers but not flux_hf."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    pipeline,
)
from video_files import encode

from conversion.convert_to_hf import convert
from conversion.infer_config import ConfigChoices
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel, FluxViTVideoProcessor


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
HUB_FILES = {
    "budget_models.py",
    "checkpoint_files.py",
    "ffmpeg_log.py",
    "configuration_flux.py",
    "configuration_fluxvit.py",
    "flux_backbones.py",
    "flux_videomae.py",
    "flux_vivit.py",
    "flux_vjepa2.py",
    "modeling_flux.py",
    "modeling_fluxvit.py",
    "modeling_fluxvit_pretraining.py",
    "patch_grids.py",
    "token_selection.py",
    "video_decoding.py",
    "video_frames.py",
    "video_inputs.py",
    "video_processing_fluxvit.py",
    "video_streams.py",
    "video_transforms.py",
}
AUTO_CLASSES = {
    "AutoConfig",
    "AutoModel",
    "AutoModelForPreTraining",
    "AutoModelForVideoClassification",
    "AutoVideoProcessor",
}

# Runs where flux_hf cannot be imported, whatever is installed; prints one line of JSON.
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "flux_hf":
            raise ModuleNotFoundError("No module named 'flux_hf'", name=name)

sys.meta_path.insert(0, Absent())
checkpoint, clip, resaved = sys.argv[1:]
import torch
from transformers import AutoModelForVideoClassification, AutoVideoProcessor, pipeline

model = AutoModelForVideoClassification.from_pretrained(checkpoint, trust_remote_code=True).eval()
processor = AutoVideoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(clip, return_tensors="pt"), token_budget=40).logits
scores = pipeline("video-classification", model=checkpoint, trust_remote_code=True)(clip, top_k=7)
model.save_pretrained(resaved)
processor.save_pretrained(resaved)
assert not [name for name in sys.modules if name.split(".")[0] == "flux_hf"]
print(json.dumps({"module": type(model).__module__, "logits": logits.tolist(), "scores": scores}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny_fluxvit"
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
    convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", folder, choices, labels=[f"class {n}" for n in range(7)])
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(encode("libx264", 20))
    return path


def run_stranger(checkpoint: Path, clip: Path, resaved: Path) -> dict:
    command = [sys.executable, "-c", STRANGER, str(checkpoint), str(clip), str(resaved)]
    finished = subprocess.run(command, cwd=resaved.parent, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("source", ["converter", "model", "processor", "bare model"])
def test_every_save_writes_the_hub_files_and_the_auto_map(checkpoint, tmp_path, source):
    if source == "converter":
        folder = checkpoint
    else:
        folder = tmp_path
        {
            "model": lambda: FluxViTForVideoClassification.from_pretrained(checkpoint),
            "bare model": lambda: FluxViTModel.from_pretrained(checkpoint),
            "processor": lambda: FluxViTVideoProcessor.from_pretrained(checkpoint),
        }[source]().save_pretrained(folder)
    assert {path.name for path in folder.glob("*.py")} == HUB_FILES
    package = Path(sys.modules["flux_hf"].__file__).parent
    assert all((folder / name).read_bytes() == (package / name).read_bytes() for name in HUB_FILES)
    configs = [folder / name for name in ("config.json", "video_preprocessor_config.json") if (folder / name).exists()]
    assert configs
    for config in configs:
        assert set(json.loads(config.read_text())["auto_map"]) == AUTO_CLASSES


def test_auto_classes_find_ours_with_and_without_trust(checkpoint):
    for trust in ({}, {"trust_remote_code": True}):
        assert type(AutoConfig.from_pretrained(checkpoint, **trust)) is FluxViTConfig
        assert type(AutoModel.from_pretrained(checkpoint, **trust)) is FluxViTModel
        model = AutoModelForVideoClassification.from_pretrained(checkpoint, **trust)
        assert type(model) is FluxViTForVideoClassification
        assert type(AutoVideoProcessor.from_pretrained(checkpoint, **trust)) is FluxViTVideoProcessor


def test_same_logits_without_flux_hf_and_again_after_saving_there(checkpoint, clip, tmp_path):
    model = FluxViTForVideoClassification.from_pretrained(checkpoint).eval()
    processor = FluxViTVideoProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = model(**processor(str(clip), return_tensors="pt"), token_budget=40).logits
    scores = pipeline("video-classification", model=str(checkpoint))(str(clip), top_k=7)
    first = run_stranger(checkpoint, clip, tmp_path / "resaved")
    second = run_stranger(tmp_path / "resaved", clip, tmp_path / "resaved_again")
    for found in (first, second):
        assert found["module"].startswith("transformers_modules.")
        torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-6, rtol=1e-6)
        assert [entry["label"] for entry in found["scores"]] == [entry["label"] for entry in scores]
        for ours, theirs in zip(scores, found["scores"], strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_stock_pipeline_logs_no_error(checkpoint, clip, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        classify = pipeline("video-classification", model=str(checkpoint))
        result = classify(str(clip), top_k=3)
    finally:
        logger.removeHandler(caplog.handler)
    assert len(result) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
