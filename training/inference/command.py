# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What the evaluating commands share: loading, the description of a run, tables."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor

import flux_hf
from flux_hf.loading import load_classifier, load_processor
from flux_hf.protocol import VideoTokenClassifier, logits_at_budgets, logits_clip_by_clip, selects_by_threshold
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..arguments import CheckpointArguments, InferenceArguments, SourceArguments, ViewArguments
from ..data.reader import Clip, VideoFile
from ..data.sources import read_clips, video_files
from ..data.targets import MULTI_LABEL
from .prediction import Predictions, Predictor


SOURCES = "folders of clips, csv files with a column path, video files, URLs"
TABLE_SUFFIXES = (".csv", ".txt", ".tsv")
PATIENCE = timedelta(days=30)


def start_accelerator() -> Accelerator:
    """One whose processes wait for each other as long as it takes: one may have hours of video and the others none."""
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])


def load_checkpoint(
    args: CheckpointArguments, accelerator: Accelerator
) -> tuple[VideoTokenClassifier, FluxViTVideoProcessor]:
    """A model on the accelerator's device in evaluation mode, one whole copy a process, and its processor.

    Raises:
        ValueError: no checkpoint is named.
    """
    name = args.model_name_or_path
    if name is None:
        raise ValueError("--model_name_or_path must be given")
    model = load_classifier(name, **args.hub_options(), **args.model_options())
    processor = load_processor(name, model.config, **args.hub_options())
    return model.eval().requires_grad_(False).to(accelerator.device), processor


def model_predictor(
    model: VideoTokenClassifier,
    processor: FluxViTVideoProcessor,
    accelerator: Accelerator,
    views: ViewArguments,
    num_workers: int,
) -> Predictor:
    """Scores clips by a model, in the accelerator's mixed precision.

    Where each clip keeps another number of tokens, the predictions have its costs.
    """

    def forward(values: Tensor, token_budgets: Sequence[int | None]) -> list[Tensor]:
        with accelerator.autocast():
            return logits_at_budgets(model, values, token_budgets)

    def forward_with_costs(values: Tensor, token_budgets: Sequence[int | None]) -> list[Tensor]:
        with accelerator.autocast():
            found = logits_clip_by_clip(model, values, token_budgets)
        shape = values.shape[1], values.shape[-1]
        costs = [[(number, model.flops(*shape, number)) for number in kept.tolist()] for _, kept in found]
        logits = [logits.float() for logits, _ in found]
        return [torch.cat([one, one.new_tensor(of_one)], 1) for one, of_one in zip(logits, costs, strict=True)]

    by_threshold = selects_by_threshold(model)
    return Predictor(
        forward_with_costs if by_threshold else forward,
        processor,
        accelerator,
        views,
        num_workers,
        multi_label=model.config.problem_type == MULTI_LABEL,
        verbose=True,
        with_costs=by_threshold,
    )


def list_clips(args: SourceArguments, labelled: bool = True) -> Sequence[Clip]:
    """The clips of the source that a command's flags name. Raises as `read_clips`."""
    return read_clips(
        args.dataset_name or args.data,
        root=args.data_root,
        frame_template=args.frame_template,
        labelled=labelled,
        multi_label=args.multi_label,
        **args.set_options(),
    )


def find_clips(sources: Sequence[str]) -> Sequence[Clip]:
    """The clips of folders (searched recursively), tables and files, in their order, each name once.

    Raises:
        ValueError: a folder without a video file, a malformed table, or a name that occurs twice.
    """
    parts: list[Sequence[Clip]] = []
    for source in sources:
        if os.path.isdir(source):
            parts.append([VideoFile(str(path), None, str(path)) for path in video_files(Path(source))])
        elif source.lower().endswith(TABLE_SUFFIXES):
            parts.append(read_clips(source, labelled=False))
        else:
            parts.append([VideoFile(source, None, source)])
    clips = parts[0] if len(parts) == 1 else [clip for part in parts for clip in part]  # a long table stays one
    twice = [name for name, times in Counter(clip.name for clip in clips).items() if times > 1]
    if twice:  # in two tables, or a file given twice
        raise ValueError(f"every clip must have a name of its own, got {len(twice)} twice, the first {twice[0]!r}")
    return clips


def describe_run(args: InferenceArguments, accelerator: Accelerator, predictions: Predictions) -> dict[str, Any]:
    """What a result must say to be repeated: model, data, views, precision, versions; and what could not be read."""
    return {
        **describe_command(args, args, args.max_eval_samples, accelerator),
        "views": {"num_clips": args.num_clips, "num_crops": args.num_crops},
        "clips": predictions.scores.shape[1],
        "clips_counted": int(predictions.decoded.sum()),
        "failures": [{"name": name, "reason": reason} for name, reason in predictions.failures],
    }


def describe_command(
    model: CheckpointArguments, source: SourceArguments, max_eval_samples: int | None, accelerator: Accelerator
) -> dict[str, Any]:
    """Model, data, precision, versions."""
    return {
        "model": model.model_name_or_path,
        "revision": model.revision,
        "data": source.data or source.dataset_name,
        "split": source.split,
        "data_root": source.data_root,
        "max_eval_samples": max_eval_samples,
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "versions": {
            "python": platform.python_version(),
            **{library.__name__: library.__version__ for library in (flux_hf, transformers, accelerate, torch)},
        },
    }


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the header, as right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
