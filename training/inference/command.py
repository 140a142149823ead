# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What the evaluating commands share: loading, running with a word on what failed, the description of a run, tables."""

import platform
import sys
from collections.abc import Sequence
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

import flux_hf
from flux_hf.protocol import VideoTokenClassifier, logits_at_budgets
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..arguments import CheckpointArguments, SourceArguments, ViewArguments
from ..data.reader import Clip
from ..data.sources import read_clips, spread
from ..data.targets import MULTI_LABEL
from .points import EvalPoint
from .prediction import Predictions, predict_clips


SHOWN_FAILURES = 10


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
    hub = {"revision": args.revision, "cache_dir": args.cache_dir}
    attention = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    model = AutoModelForVideoClassification.from_pretrained(name, **hub, **attention)
    return model.eval().requires_grad_(False).to(accelerator.device), AutoVideoProcessor.from_pretrained(name, **hub)


def list_clips(args: SourceArguments, labelled: bool = True) -> list[Clip]:
    """The clips of the source that a command's flags name. Raises as `read_clips`."""
    return read_clips(
        args.dataset_name or args.data,
        root=args.data_root,
        split=args.split,
        dataset_config=args.dataset_config_name,
        hub=args.dataset_name is not None,
        frame_template=args.frame_template,
        video_column=args.video_column,
        label_column=args.label_column,
        labelled=labelled,
        multi_label=args.multi_label,
    )


def read_labelled_clips(source: SourceArguments, views: ViewArguments) -> list[Clip]:
    """The clips of a source in their order, evenly thinned out to `--max_eval_samples`. Raises as `read_clips`."""
    return spread(list_clips(source), views.max_eval_samples)


def run_model(
    model: VideoTokenClassifier,
    processor: FluxViTVideoProcessor,
    clips: Sequence[Clip],
    points: Sequence[EvalPoint],
    accelerator: Accelerator,
    views: ViewArguments,
    num_workers: int,
) -> Predictions:
    """`predict_clips` in the accelerator's mixed precision; names on stderr what could not be read."""

    def forward(values: Tensor, token_budgets: Sequence[int | None]) -> list[Tensor]:
        with accelerator.autocast():
            return logits_at_budgets(model, values, token_budgets)

    multi_label = model.config.problem_type == MULTI_LABEL
    predictions = predict_clips(
        forward, processor, clips, points, accelerator, views, num_workers, multi_label, show_progress=True
    )
    failures = predictions.failures
    if failures and accelerator.is_main_process:
        print(f"{len(failures)} of {len(clips)} clips could not be decoded:", file=sys.stderr)
        for name, reason in failures[:SHOWN_FAILURES]:
            print(f"  {name}: {reason}", file=sys.stderr)
        if len(failures) > SHOWN_FAILURES:
            print(f"  and {len(failures) - SHOWN_FAILURES} more", file=sys.stderr)
    return predictions


def describe_run(
    model: CheckpointArguments,
    source: SourceArguments,
    views: ViewArguments,
    accelerator: Accelerator,
    predictions: Predictions,
) -> dict[str, Any]:
    """What a result must say to be repeated: model, data, views, precision, versions; and what could not be read."""
    return {
        "model": model.model_name_or_path,
        "revision": model.revision,
        "data": source.data or source.dataset_name,
        "split": source.split,
        "data_root": source.data_root,
        "max_eval_samples": views.max_eval_samples,
        "views": {"num_clips": views.num_clips, "num_crops": views.num_crops},
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "versions": {
            "flux_hf": flux_hf.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "clips": predictions.scores.shape[1],
        "clips_counted": int(predictions.decoded.sum()),
        "failures": [{"name": name, "reason": reason} for name, reason in predictions.failures],
    }


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the header, as right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
