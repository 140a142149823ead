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

from flux_hf.checkpoint_files import remove_leftovers_of, write_csv

from .arguments import CheckpointArguments, LoaderArguments, ViewArguments, flag, parse_command
from .data.reader import Clip, VideoFile
from .data.sources import read_clips, spread, video_files
from .inference.command import load_checkpoint, model_predictor
from .inference.points import resolve_point
from .inference.prediction import Predictions


TABLE_SUFFIXES = (".csv", ".txt", ".tsv")


@dataclass
class PredictArguments(CheckpointArguments, LoaderArguments, ViewArguments):
    output: str | None = flag(None, "csv with the columns name,rank,label,score,error (required)")
    top_k: int = flag(1, "labels a clip, a row each")
    token_budget: int | None = flag(None, "tokens encoded of a view; the model's if not given")
    num_frames: int | None = flag(None, "frames of a view")
    size: int | None = flag(None, "side of a view in pixels")


SOURCES = "folders of clips, csv files with a column path, video files, URLs"


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
    args = parse_command(PredictArguments, __doc__, arguments, sources=SOURCES)
    if args.output is None:
        raise ValueError("--output must be given")
    accelerator = Accelerator()
    model, processor = load_checkpoint(args, accelerator)
    point = resolve_point(model.config, processor, args.num_frames, args.size, args.token_budget)
    clips = spread(find_clips(args.sources), args.max_eval_samples)
    predictions = model_predictor(model, processor, accelerator, args, args.dataloader_num_workers)(clips, [point])
    if accelerator.is_main_process:
        rows = prediction_rows(clips, predictions, model.config, args.top_k)
        remove_leftovers_of(Path(args.output))
        write_csv(args.output, ["name", "rank", "label", "score", "error"], rows)
        print(f"{int(predictions.decoded.sum())} of {len(clips)} clips labelled at {point}: {args.output}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if predictions.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
