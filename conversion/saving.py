# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Saves a converted model, loads it again, compares, and only then moves it to where it was wanted."""

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError

from conversion.report import ConversionError, KeyReport
from flux_hf import FluxViTConfig, FluxViTVideoProcessor
from flux_hf.checkpoint_files import replacing_folder, write_json


REPORT_NAME = "conversion_report.json"


def check_output_directory(path: str | os.PathLike) -> None:
    """Raises ValueError where a folder cannot be made."""
    if Path(path).is_file():
        raise ValueError(f"OUT_DIR must be a folder, {path} is a file")


def make_processor(config: FluxViTConfig) -> FluxViTVideoProcessor:
    """The video processor of a model: its default clip, and its patch size for sides that are not square."""
    height, width = config.image_height_width
    size = {"shortest_edge": height} if height == width else {"height": height, "width": width}
    return FluxViTVideoProcessor(
        size=size,
        crop_size={"height": height, "width": width},
        num_frames=config.num_frames,
        patch_size=config.patch_size,
    )


def save_verified(model: torch.nn.Module, output: Path, source: Path, report: KeyReport) -> None:
    """Saves to a folder beside `output`, loads that again, compares, and only then puts it in place, in one go.

    Other files in an `output` that is there already stay.
    """
    with replacing_folder(output) as whole, tempfile.TemporaryDirectory(prefix=".", dir=whole) as folder:
        staging = Path(folder)
        try:
            model.save_pretrained(staging)
        except SafetensorError as error:
            raise OSError(f"the weights could not be written to {output}: {error}") from error
        make_processor(model.config).save_pretrained(staging)
        difference = _compare_with_saved(model, staging)
        report.notes.append(
            f"verified: loaded again, every tensor is bit-equal, a random clip's features within {difference:.0e}"
        )
        made = {"source": source.name, "source_sha256": sha256(source), "verified": True}
        write_json(staging / REPORT_NAME, {**made, **report.record()})
        for path in staging.iterdir():
            os.replace(path, whole / path.name)


def _compare_with_saved(model: torch.nn.Module, saved: Path) -> float:
    """Largest difference between the pooled features of `model` and of what is saved, on one random clip.

    It need not be 0 for equal weights: where tensors lie in memory decides which kernels multiply them.

    Raises:
        ConversionError: a saved tensor is not bit-equal, or the features differ by more than rounding.
    """
    reloaded = type(model).from_pretrained(saved).eval()
    restored = reloaded.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.dtype != restored[name].dtype or not torch.equal(tensor, restored[name]):
            raise ConversionError(f"{name} is not what was saved")
    config = model.config
    height, width = config.image_height_width
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_frames, config.num_channels, height, width)
    clip = torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)
    with torch.no_grad():
        first, second = model(clip).pooler_output, reloaded(clip).pooler_output
    difference = (first - second).abs().max().item()
    allowed = 100 * torch.finfo(first.dtype).eps * first.abs().max().item()
    if difference > allowed:
        raise ConversionError(f"the saved checkpoint's pooled features differ by {difference}, {allowed} is rounding")
    return difference


def sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and contents in order."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
