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

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

import flux_hf
from flux_hf.checkpoint_files import remove_leftovers, write_csv
from flux_hf.loading import load_encoder, load_processor
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import CheckpointArguments, LoaderArguments, ViewArguments, flag, parse_command
from .data.reader import Clip
from .data.sources import spread
from .digests import clips_digest, weights_digest
from .inference.command import SOURCES, find_clips
from .inference.features import KINDS, FeatureMaker, Shards
from .inference.parts import Part, Units, WholeClips, Windows, make_units, stacked
from .inference.points import resolve_point
from .inference.prediction import normalize


# MKL's products else depend on where in memory their factors lie, and so on what a process did before: by the last bit.
SAME_BITS = ("MKL_CBWR", "AUTO,STRICT")
# Flags that the rows, or how they lie in files, depend on.
OF_ROWS = "features layer window stride num_clips num_crops per_device_eval_batch_size dtype clips_per_shard"


@dataclass
class FeatureArguments(CheckpointArguments, LoaderArguments, ViewArguments):
    output_dir: str | None = flag(None, "folder of the features (required)")
    features: str = flag("pooled", "one vector, one a time step, or all kept patches on their grid", list(KINDS))
    layer: int | None = flag(None, "with --features time or tokens, whose output, from 0; the last one's if not given")
    window: float | None = flag(None, "seconds of a window; whole clips if not given")
    stride: float | None = flag(None, "seconds from a window to the next; one behind the other if not given")
    token_budget: int | None = flag(None, "tokens encoded of a view; the model's if not given")
    num_frames: int | None = flag(None, "frames of a view")
    size: int | None = flag(None, "side of a view in pixels")
    dtype: str = flag("float16", "of the features in the files", ["float16", "float32"])
    clips_per_shard: int = flag(64, "clips of a file")


def parse_arguments(arguments: list[str] | None = None) -> FeatureArguments:
    """The flags.

    Raises:
        ValueError: some that do not go together.
    """
    args = parse_command(FeatureArguments, __doc__, arguments, sources=SOURCES)
    if args.output_dir is None or args.model_name_or_path is None:
        raise ValueError("--model_name_or_path and --output_dir must be given")
    if args.stride is not None and args.window is None:
        raise ValueError(f"--stride {args.stride} is for windows: give --window too")
    for name in ("window", "stride"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be finite and above 0, got {value}")
    if args.window is not None and args.num_clips != 1:
        raise ValueError(f"--num_clips {args.num_clips} is for whole clips, --window shows each window once")
    if args.features != "pooled" and args.num_clips * args.num_crops != 1:
        raise ValueError(f"--features {args.features} is of one view: leave out --num_clips and --num_crops")
    if args.layer is not None and args.features == "pooled":
        raise ValueError(f"--layer {args.layer} is for --features time or tokens")
    return args


def extract(
    units: Sequence[tuple[int, Sequence[Clip]]],
    parts_of: WholeClips | Windows,
    maker: FeatureMaker,
    shards: Shards,
    args: FeatureArguments,
    accelerator: Accelerator,
) -> None:
    """This process's units, one shard after the other."""
    views = args.num_clips * args.num_crops
    loader = DataLoader(
        Units(units, parts_of, max(1, args.per_device_eval_batch_size // views)),
        batch_size=None,
        num_workers=min(args.dataloader_num_workers, len(units)),
        generator=torch.Generator(),
    )
    waiting: dict[int, tuple[list[Part], list[torch.Tensor]]] = {}
    shown = tqdm(total=sum(len(clips) for _, clips in units), unit="clip", disable=not accelerator.is_main_process)
    sizes = {unit: len(clips) for unit, clips in units}
    for batch in loader:
        parts, found = waiting.setdefault(batch.unit, ([], []))
        pixels = stacked(batch.parts)
        if pixels is not None:
            with accelerator.autocast():
                features = maker(normalize(pixels.to(accelerator.device), parts_of.processor))
            found.append(features.unflatten(0, (-1, views)).mean(1).cpu())
        parts += [Part(part.name, part.start, part.end, error=part.error) for part in batch.parts]
        if batch.is_last:
            shards.write(batch.unit, parts, torch.cat(found) if found else torch.empty(0, *maker.shape))
            del waiting[batch.unit]
            shown.update(sizes[batch.unit])
    shown.close()


def origin_of(
    args: FeatureArguments,
    accelerator: Accelerator,
    maker: FeatureMaker,
    processor: FluxViTVideoProcessor,
    clips: Sequence[Clip],
) -> dict[str, Any]:
    """All that the rows depend on."""
    return {
        **{name: getattr(args, name) for name in OF_ROWS.split()},
        "point": str(maker.point),
        "precision": accelerator.mixed_precision,
        "flux_hf": flux_hf.__version__,
        "model": weights_digest(maker.model),
        "config": maker.model.config.to_json_string(),
        "processor": processor.to_json_string(),
        "clips": clips_digest(clips),
    }


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    os.environ.setdefault(*SAME_BITS)
    accelerator = Accelerator()
    model = load_encoder(args.model_name_or_path, **args.hub_options(), **args.model_options())
    processor = load_processor(args.model_name_or_path, model.config, **args.hub_options())
    model = model.eval().requires_grad_(False).to(accelerator.device)
    point = resolve_point(model.config, processor, args.num_frames, args.size, args.token_budget)
    last = model.config.num_hidden_layers - 1
    if args.layer is not None and args.layer > last:
        raise ValueError(f"--layer must be from 0 to {last}, got {args.layer}")
    maker = FeatureMaker(model, point, args.features, args.layer)
    clips = spread(find_clips(args.sources), args.max_eval_samples)
    origin = origin_of(args, accelerator, maker, processor, clips)
    directory = Path(args.output_dir)
    shards = Shards(directory, origin, maker.shape, args.dtype)
    if accelerator.is_main_process:
        os.makedirs(directory, exist_ok=True)
        remove_leftovers(directory)
        shards.prepare()
    accelerator.wait_for_everyone()
    units = list(enumerate(make_units(clips, args.clips_per_shard)))
    missing = [unit for unit in units if not shards.is_done(unit[0])]
    accelerator.wait_for_everyone()  # all have looked before one writes
    if args.window is None:
        parts_of = WholeClips(processor, point, args.num_clips, args.num_crops)
    else:
        parts_of = Windows(processor, point, args.window, args.stride or args.window, args.num_crops)
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if mine:
        extract(mine, parts_of, maker, shards, args, accelerator)
    accelerator.wait_for_everyone()
    failed = shards.failures()
    if accelerator.is_main_process:
        write_csv(directory / "failures.csv", ("video", "error"), failed)
        print(f"features of {len(clips)} clips at {point}, {len(failed)} of them not read to their end: {directory}")
    accelerator.end_training()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
