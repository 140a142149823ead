# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs what `conversion.export` wrote, on ONNX Runtime, OpenVINO or torch, in place of the model it came from.

Programs and runners are transformers' own (`transformers.exporters`, 5.23 and later); what is added is which of a
folder's programs serves which token budget, and for what clip.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .budget_models import FluxViTForVideoClassificationOutput


MANIFEST = "export.json"  # transformers' own, with a section of ours
SECTION = "flux_hf"
# What each format is run by. `onnx_ir`, of onnxscript, reads the graph's file for transformers' runner.
NEEDED = {"onnx": ("onnxruntime", "onnx_ir"), "openvino": ("openvino",), "dynamo": ()}


class ExportedClassifier:
    """A classifier at the token budgets it was exported for, each with one shape of clips; called as a model is.

    `token_budgets` lists them, falling. `config` is the model's, with the clip of each budget as its `token_plan`.
    """

    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)

    def __init__(self, exported: Any, models: dict[int, dict[str, Any]], folder: Path, runner_options: dict[str, Any]):
        """`exported`: transformers' `ExportedModel`; `models`: budget -> what the folder's manifest says of it."""
        self.exported, self.models, self.folder, self.runner_options = exported, models, folder, runner_options
        self.token_budgets = sorted(models, reverse=True)
        self.config = exported.config

    @property
    def device(self) -> torch.device:
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        return self.exported.dtype

    def to(self, device: torch.device | str) -> "ExportedClassifier":
        """Loads the programs on another device, where the format's runner can."""
        if torch.device(device) != self.device:
            self.exported.to(device, **self.runner_options)
        return self

    def can_generate(self) -> bool:
        """Of no classifier; the pipeline asks."""
        return False

    def count_kept(self, num_frames: int, height: int, width: int, token_budget: int | None = None) -> int:
        """How many tokens of a clip are kept. Args and errors as of a call."""
        _, about = self._model_for(token_budget, (num_frames, self.config.num_channels, height, width))
        return about["kept_tokens"]

    def __call__(self, pixel_values_videos: Tensor, token_budget: int | None = None) -> Any:
        """Classifies clips.

        Args:
            pixel_values_videos: (B, T, 3, H, W), float32, of the budget's T, H and W; B of any size.
            token_budget: One of `token_budgets`; `config.token_budget` if not given.

        Returns:
            An output with `logits` (B, num_labels) and `keep_indices` (B, K).

        Raises:
            ValueError: a budget that was not exported, or a clip of another shape than it was exported for.
        """
        if not isinstance(pixel_values_videos, Tensor):
            raise ValueError("an exported model takes clips of one shape, in a tensor (B, T, 3, H, W), not a list")
        name, _ = self._model_for(token_budget, tuple(pixel_values_videos.shape[1:]))
        outputs = self.exported.runners[name](pixel_values_videos=pixel_values_videos.to(self.dtype))
        return FluxViTForVideoClassificationOutput(**outputs)

    def _model_for(self, token_budget: int | None, clip: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
        """The component for a budget, and what the manifest says of it."""
        budget = self.config.token_budget if token_budget is None else token_budget
        if budget not in self.models:
            raise ValueError(
                f"token_budget={budget} is not one of {self.token_budgets}, which {self.folder} was exported for"
            )
        about = self.models[budget]
        wanted = (about["num_frames"], self.config.num_channels, about["height"], about["width"])
        if clip != wanted:
            raise ValueError(
                f"at token_budget={budget} {self.folder} was exported for clips (frames, channels, height, width) of "
                f"{wanted}, got {clip}"
            )
        return about["component"], about


def load_exported(
    folder: str | os.PathLike,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    **runner_options: Any,
) -> ExportedClassifier:
    """Loads a folder of `conversion.export`. `FluxViTVideoClassificationPipeline` takes the result as its model.

    Args:
        folder: The folder.
        device: Where to run it; it was verified on a CPU.
        trust_remote_code: Needed for `--format torch`: loading such a file may run code that it holds.
        runner_options: Of transformers' runner: `providers` and `session_options` for ONNX Runtime; for OpenVINO
            `config`, the compiled model's properties (float32 unless they say otherwise), and `torch_threads`.

    Raises:
        ValueError: no such folder, or one that something else wrote.
        ImportError: the format's runtime, or a transformers with runners, is not installed.
    """
    path = Path(folder)
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path} is no exported folder: it has no {MANIFEST}")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if SECTION not in manifest:
        raise ValueError(f"{path / MANIFEST} was not written by conversion.export: it has no {SECTION!r}")
    export_format = manifest["export_format"]
    check_installed(export_format)
    from transformers.exporters import ExportedModel

    if export_format == "openvino":  # a CPU that has bfloat16 would use it
        runner_options["config"] = {"INFERENCE_PRECISION_HINT": "f32", **runner_options.get("config", {})}
    where = None if "providers" in runner_options else device  # which say it themselves
    exported = ExportedModel.from_pretrained(
        path, device=where, trust_remote_code=trust_remote_code, local_files_only=True, **runner_options
    )
    models = {int(budget): about for budget, about in manifest[SECTION]["models"].items()}
    return ExportedClassifier(exported, models, path, runner_options)


def check_installed(export_format: str, *more: str) -> None:
    """Raises ImportError, with what to install, unless a format's runtime, `more` and a fit transformers are there."""
    if importlib.util.find_spec("transformers.exporters") is None:
        raise ImportError("exports need exporters and runners of transformers: pip install 'transformers>=5.23'")
    missing = [name for name in (*NEEDED[export_format], *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} is missing: pip install 'flux-hf[{export_format}]'")


__all__ = ["ExportedClassifier", "check_installed", "load_exported"]
