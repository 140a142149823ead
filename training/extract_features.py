# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Writes an encoder's features of clips, or of windows of videos of any length, into a folder of parquet files.

    accelerate launch -m training.extract_features FOLDER --model_name_or_path CHECKPOINT --output_dir features
    accelerate launch -m training.extract_features hours.mp4 --model_name_or_path CHECKPOINT --output_dir features \\
        --window 2 --stride 1 --token_budget 512 --features time

    datasets.load_dataset("parquet", data_files="features/*.parquet")       # columns video, start, end, vector

A folder is searched with all its sub-folders. What cannot be read is listed in failures.csv, the rest is done all the
same, and the exit status is 1. Every --clips_per_shard clips are one file, written whole or not at all: a run that is
killed loses the files it was at, and the same command makes those and no others, on any number of processes, with the
rows it would have had.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator

import flux_hf
from flux_hf.auto_budgets import AUTO
from flux_hf.checkpoint_files import write_csv

from .arguments import PartArguments, flag, parse_command
from .data.reader import Clip
from .data.sources import spread
from .digests import clips_digest, weights_digest
from .inference.command import SOURCES, find_clips, start_accelerator
from .inference.features import KINDS, Features, FeatureShards, FeatureSource
from .inference.measures import SAME_BITS
from .inference.units import go_through_parts


# Flags that the rows, or how they lie in files, depend on.
OF_ROWS = "features layer window stride num_clips num_crops per_device_eval_batch_size dtype clips_per_shard"


@dataclass
class FeatureArguments(PartArguments):
    output_dir: str | None = flag(None, "folder of the features (required)")
    features: str = flag("pooled", "one vector, one a time step, or all kept patches on their grid", list(KINDS))
    layer: int | None = flag(None, "with --features time or tokens, whose output, from 0; the last one's if not given")
    dtype: str = flag("float16", "of the features in the files", ["float16", "float32"])


def parse_arguments(arguments: list[str] | None = None) -> FeatureArguments:
    """The flags.

    Raises:
        ValueError: some that do not go together.
    """
    args = parse_command(FeatureArguments, __doc__, arguments, sources=SOURCES)
    if args.output_dir is None or args.model_name_or_path is None:
        raise ValueError("--model_name_or_path and --output_dir must be given")
    args.check_parts()
    if args.token_budget == AUTO:
        raise ValueError("--token_budget auto is for labels: all features are of one budget")
    if args.features != "pooled" and args.num_clips * args.num_crops != 1:
        raise ValueError(f"--features {args.features} is of one view: leave out --num_clips and --num_crops")
    if args.layer is not None and args.features == "pooled":
        raise ValueError(f"--layer {args.layer} is for --features time or tokens")
    return args


def origin_of(
    args: FeatureArguments, accelerator: Accelerator, features: Features, clips: Sequence[Clip]
) -> dict[str, Any]:
    """All that the rows depend on."""
    return {
        **{name: getattr(args, name) for name in OF_ROWS.split()},
        "point": str(features.point),
        "precision": accelerator.mixed_precision,
        "flux_hf": flux_hf.__version__,
        "model": weights_digest(features.model),
        "config": features.model.config.to_json_string(),
        "processor": features.processor.to_json_string(),
        "clips": clips_digest(clips),
    }


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    os.environ.setdefault(*SAME_BITS)
    datasets.disable_progress_bars()  # one for each shard
    accelerator = start_accelerator()
    source = FeatureSource(
        args.checkpoint(), args.num_frames, args.size, args.token_budget, kind=args.features, layer=args.layer
    )
    features = source(accelerator)
    clips = spread(find_clips(args.sources), args.max_eval_samples)
    directory = Path(args.output_dir)
    shards = FeatureShards(directory, origin_of(args, accelerator, features, clips), features.maker.shape, args.dtype)
    go_through_parts(clips, source, features, shards, args, accelerator)
    failed = shards.failures()
    if accelerator.is_main_process:
        write_csv(directory / "failures.csv", ("video", "error"), failed)
        print(
            f"features of {len(clips)} clips at {features.point}, {len(failed)} of them not read to their end: "
            f"{directory}"
        )
    accelerator.end_training()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
