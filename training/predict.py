# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels every clip of a folder, a csv, or a list of files.

    accelerate launch -m training.predict --model_name_or_path CHECKPOINT clips/ --token_budget 1024 \\
        --output predictions.csv

A folder is searched with all its sub-folders. A clip that cannot be read gets a row with the error; the others are
done all the same, and the exit status is 1. Frames and size are chosen as the pipeline does: those given, else the
token plan's for the budget, else the checkpoint's own.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator

from flux_hf.configuration_fluxvit import FluxViTConfig

from .command_line import count, load_checkpoint, new_parser, run_model, write_csv
from .data.reader import VIDEO_SUFFIXES, Clip, VideoFile
from .data.sources import read_clips
from .inference.prediction import Predictions, resolve_point


TABLE_SUFFIXES = (".csv", ".txt", ".tsv")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = new_parser(__doc__)
    parser.add_argument("sources", nargs="+", help="folders of clips, csv files with a column path, video files, URLs")
    parser.add_argument("--output", type=Path, required=True, help="csv with the columns name,rank,label,score,error")
    parser.add_argument("--top_k", type=count, default=1, help="labels a clip, a row each")
    parser.add_argument("--token_budget", type=count, help="tokens encoded of a view; the model's if not given")
    parser.add_argument("--num_frames", type=count, help="frames of a view")
    parser.add_argument("--size", type=count, help="side of a view in pixels")
    return parser.parse_args(arguments)


def find_clips(sources: Sequence[str], verify: bool = True) -> list[Clip]:
    """The clips of folders (searched recursively), tables and files, in their order, each name once.

    Raises:
        ValueError: a folder without a video file, a malformed table, or a name that occurs twice.
    """
    clips: list[Clip] = []
    for source in sources:
        if os.path.isdir(source):
            clips += _clips_in_folder(Path(source), verify)
        elif source.lower().endswith(TABLE_SUFFIXES):
            clips += read_clips(source, labelled=False, verify=verify)
        else:
            clips.append(VideoFile(source, None, source, verify))
    twice = [name for name, times in Counter(clip.name for clip in clips).items() if times > 1]
    if twice:  # in two tables, or a file given twice
        raise ValueError(f"every clip must have a name of its own, got {len(twice)} twice, the first {twice[0]!r}")
    return clips


def _clips_in_folder(folder: Path, verify: bool) -> list[Clip]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(f"{folder} must hold videos ({' '.join(VIDEO_SUFFIXES)}), it has none")
    return [VideoFile(str(path), None, str(path), verify) for path in files]


def prediction_rows(
    clips: Sequence[Clip], predictions: Predictions, config: FluxViTConfig, top_k: int
) -> Iterator[list]:
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
    args = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(args.model_name_or_path, accelerator)
    point = resolve_point(model.config, processor, args.num_frames, args.size, args.token_budget)
    clips = find_clips(args.sources, verify=not args.no_verify)
    predictions = run_model(model, processor, clips, [point], accelerator, args)
    if accelerator.is_main_process:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        rows = prediction_rows(clips, predictions, model.config, args.top_k)
        write_csv(args.output, ["name", "rank", "label", "score", "error"], rows)
        print(f"{int(predictions.decoded.sum())} of {len(clips)} clips labelled at {point}: {args.output}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if predictions.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
