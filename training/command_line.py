# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What `evaluate`, `predict` and `optimize_tokens` share: flags, loading, the description of a run, tables and csv."""

import argparse
import csv
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor

import flux_hf
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .data.reader import Clip
from .data.sources import read_clips
from .inference.prediction import MULTI_LABEL, EvalPoint, Predictions, predict_clips


SHOWN_FAILURES = 10


# Flags ---------------------------------------------------------------------------------------------------------------


def count(text: str) -> int:
    """A flag's whole number of at least 1; for argparse, which names flag and value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def eval_point(text: str) -> EvalPoint:
    """A flag's `EvalPoint`; for argparse."""
    try:
        return EvalPoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every command: the model, the views, and how the work is done."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument("--num_clips", type=count, default=1, help="temporal views of a clip (published: 4, SSv2 2)")
    parser.add_argument("--num_crops", type=count, default=1, help="spatial views of each of them (published: 3)")
    parser.add_argument(
        "--per_device_eval_batch_size", "--batch_size", type=count, default=8, help="views in a forward pass"
    )
    parser.add_argument("--no_verify", action="store_true", help="do not look for damage; for files known to be sound")
    parser.add_argument("--dataloader_num_workers", type=int, default=2, help="decoding processes of each process")
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that choose labelled clips, read by `read_labelled_clips`."""
    parser.add_argument("--data", required=True, help="csv (path,label), folder per class, or saved `datasets` set")
    parser.add_argument("--split", help="rows of this split of --data (column split), or split of the data set")
    parser.add_argument("--root", help="folder that the csv's paths are relative to; the csv's own if not given")
    parser.add_argument("--max_eval_samples", type=count, help="use only so many clips, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of that draw; nothing else is random")


def read_labelled_clips(args: argparse.Namespace) -> list[Clip]:
    """The clips of `add_data_arguments`' flags, in their order. Raises as `read_clips`."""
    clips = read_clips(args.data, root=args.root, split=args.split, verify=not args.no_verify)
    if args.max_eval_samples is not None and args.max_eval_samples < len(clips):
        drawn = np.random.default_rng(args.seed).choice(len(clips), args.max_eval_samples, replace=False)
        clips = [clips[index] for index in sorted(drawn.tolist())]
    return clips


# Running -------------------------------------------------------------------------------------------------------------


def load_checkpoint(name: str, accelerator: Accelerator) -> tuple[FluxViTForVideoClassification, FluxViTVideoProcessor]:
    """A model on the accelerator's device, in evaluation mode and its mixed precision, and its processor."""
    model = FluxViTForVideoClassification.from_pretrained(name).eval().requires_grad_(False)
    # one whole copy a process, whatever wrapper training would use
    model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
    return model, FluxViTVideoProcessor.from_pretrained(name)


def run_model(
    model: FluxViTForVideoClassification,
    processor: FluxViTVideoProcessor,
    clips: Sequence[Clip],
    points: Sequence[EvalPoint],
    accelerator: Accelerator,
    args: argparse.Namespace,
) -> Predictions:
    """`predict_clips` with the views and the batches of the command line; names on stderr what could not be read."""

    def forward(values: Tensor, token_budget: int | None) -> Tensor:
        return model(values, token_budget=token_budget).logits

    predictions = predict_clips(
        forward,
        processor,
        clips,
        points,
        accelerator,
        num_clips=args.num_clips,
        num_crops=args.num_crops,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        multi_label=model.config.problem_type == MULTI_LABEL,
        show_progress=True,
    )
    failures = predictions.failures
    if failures and accelerator.is_main_process:
        print(f"{len(failures)} of {len(clips)} clips could not be decoded:", file=sys.stderr)
        for name, reason in failures[:SHOWN_FAILURES]:
            print(f"  {name}: {reason}", file=sys.stderr)
        if len(failures) > SHOWN_FAILURES:
            print(f"  and {len(failures) - SHOWN_FAILURES} more", file=sys.stderr)
    return predictions


def describe_run(args: argparse.Namespace, accelerator: Accelerator, predictions: Predictions) -> dict[str, Any]:
    """What a result must say to be repeated: model, data, views, precision, versions; and what could not be read."""
    return {
        "model": args.model_name_or_path,
        "data": args.data,
        "split": args.split,
        "root": args.root,
        "max_eval_samples": args.max_eval_samples,
        "seed": args.seed,
        "views": {"num_clips": args.num_clips, "num_crops": args.num_crops},
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


# Results -------------------------------------------------------------------------------------------------------------


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the header, as right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a csv under a temporary name, then renames it."""
    temporary = temporary_name(path)
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    os.replace(temporary, path)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
