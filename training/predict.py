# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels every clip of a folder, a csv, or a list of files.

    accelerate launch -m training.predict --model_name_or_path CHECKPOINT clips/ --token_budget 1024 \\
        --output predictions.csv

A folder is searched with all its sub-folders. A clip that cannot be read gets a row with the error; the others are
done all the same, and the exit status is 1. Frames and size are chosen as the pipeline does: those given, else the
token plan's for the budget, else the checkpoint's own.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flux_hf.checkpoint_files import write_csv

from .arguments import CheckpointArguments, LoaderArguments, ViewArguments, flag, parse_groups
from .data.reader import VIDEO_SUFFIXES, Clip, VideoFile
from .data.sources import read_clips, spread
from .inference.command import load_checkpoint, run_model
from .inference.points import resolve_point
from .inference.prediction import Predictions


TABLE_SUFFIXES = (".csv", ".txt", ".tsv")


@dataclass
class PredictArguments:
    output: str | None = flag(None, "csv with the columns name,rank,label,score,error (required)")
    top_k: int = flag(1, "labels a clip, a row each")
    token_budget: int | None = flag(None, "tokens encoded of a view; the model's if not given")
    num_frames: int | None = flag(None, "frames of a view")
    size: int | None = flag(None, "side of a view in pixels")


GROUPS = (CheckpointArguments, LoaderArguments, ViewArguments, PredictArguments)
SOURCES = "folders of clips, csv files with a column path, video files, URLs"


def parse_arguments(arguments: list[str] | None = None) -> tuple:
    """The groups of flags, and the sources. Raises ValueError, naming the flag, where one is missing or illegal."""
    *groups, positional = parse_groups(GROUPS, __doc__, arguments, sources=SOURCES)
    if groups[-1].output is None:
        raise ValueError("--output must be given")
    return (*groups, positional.sources)


def find_clips(sources: Sequence[str]) -> list[Clip]:
    """The clips of folders (searched recursively), tables and files, in their order, each name once.

    Raises:
        ValueError: a folder without a video file, a malformed table, or a name that occurs twice.
    """
    clips: list[Clip] = []
    for source in sources:
        if os.path.isdir(source):
            clips += _clips_in_folder(Path(source))
        elif source.lower().endswith(TABLE_SUFFIXES):
            clips += read_clips(source, labelled=False)
        else:
            clips.append(VideoFile(source, None, source))
    twice = [name for name, times in Counter(clip.name for clip in clips).items() if times > 1]
    if twice:  # in two tables, or a file given twice
        raise ValueError(f"every clip must have a name of its own, got {len(twice)} twice, the first {twice[0]!r}")
    return clips


def _clips_in_folder(folder: Path) -> list[Clip]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(f"{folder} must hold videos ({' '.join(VIDEO_SUFFIXES)}), it has none")
    return [VideoFile(str(path), None, str(path)) for path in files]


def prediction_rows(clips: Sequence[Clip], predictions: Predictions, config: Any, top_k: int) -> Iterator[list]:
    """Rows of the csv: `top_k` a clip, best first, or one with the error."""
    reasons = dict(predictions.failures)
    values, indices = predictions.scores[0].sort(dim=-1, descending=True, stable=True)
    for clip, scores, order in zip(clips, values[:, :top_k].tolist(), indices[:, :top_k].tolist(), strict=True):
        if clip.name in reasons:
            yield [clip.name, "", "", "", reasons[clip.name]]
            continue
        for rank, (score, index) in enumerate(zip(scores, order, strict=True), start=1):
            yield [clip.name, rank, config.id2label[index], score, ""]


def main(arguments: list[str] | None = None) -> None:
    checkpoint, loader, views, args, sources = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(checkpoint, accelerator)
    point = resolve_point(model.config, processor, args.num_frames, args.size, args.token_budget)
    clips = spread(find_clips(sources), views.max_eval_samples)
    predictions = run_model(model, processor, clips, [point], accelerator, views, loader.dataloader_num_workers)
    if accelerator.is_main_process:
        rows = prediction_rows(clips, predictions, model.config, args.top_k)
        write_csv(args.output, ["name", "rank", "label", "score", "error"], rows)
        print(f"{int(predictions.decoded.sum())} of {len(clips)} clips labelled at {point}: {args.output}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if predictions.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
