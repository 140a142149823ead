# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads every clip of a set completely, and lists those that are damaged, missing or empty.

    python -m training.check_videos train.csv --num_workers 8 --output bad.csv

takes every source that training takes. Exits with 1 if any clip is bad.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .data.dataset import Failure
from .data.reader import FRAME_TEMPLATE, READ_ERRORS, Clip, FrameFolder, VideoFile, describe_failure, iter_frames
from .data.sources import read_clips


class _Checks(torch.utils.data.Dataset):
    """Item i: (frames, reason) of clip i, the reason None where all of it can be read."""

    def __init__(self, clips: Sequence[Clip]):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, str | None]:
        clip, frames = self.clips[index], 0
        try:
            if isinstance(clip, VideoFile) and os.path.isfile(clip.path) and os.path.getsize(clip.path) == 0:
                return 0, f"{clip.path} is empty (0 bytes)"
            if isinstance(clip, FrameFolder) and clip.num_frames == 0:
                return 0, f"{clip.path} is listed with 0 frames"
            for part in iter_frames(clip):
                frames += len(part)
        except READ_ERRORS as error:
            return frames, describe_failure(error)
        return frames, None


def check_clips(clips: Sequence[Clip], num_workers: int = 2) -> Iterator[tuple[Clip, int, str | None]]:
    """Reads every frame of every clip, looking for damage, in `num_workers` processes (0: in this one).

    Yields:
        (clip, frames read, why it is bad or None), in order.
    """
    loader = torch.utils.data.DataLoader(_Checks(clips), batch_size=None, num_workers=num_workers)
    for clip, (frames, reason) in zip(clips, loader, strict=True):
        yield clip, frames, reason


def write_failures(path: str | os.PathLike, failures: Sequence[Failure]) -> None:
    """Writes a csv with the columns name,reason, under a temporary name that is then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", newline="") as file:
        csv.writer(file).writerows([("name", "reason"), *failures])
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    """Prints the bad clips and the counts. Returns the exit status: 0, or 1 if any clip is bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="csv or txt, folder of classes, or datasets set, as training takes it")
    parser.add_argument("--root", help="what relative paths of a file are relative to; default: the file's folder")
    parser.add_argument("--split", help="rows, sub-folder or split to check; default: all")
    parser.add_argument("--dataset_config", help="configuration of a datasets set")
    parser.add_argument("--frame_template", default=FRAME_TEMPLATE, help="names of the frames in folders of frames")
    parser.add_argument("--video_column", help="of a datasets set; default: its only Video column")
    parser.add_argument("--num_workers", type=int, default=2, help="processes")
    parser.add_argument("--output", help="csv to write the bad clips to (columns name,reason)")
    args = parser.parse_args(arguments)
    if args.num_workers < 0:
        raise ValueError(f"--num_workers must not be negative, got {args.num_workers}")
    clips = read_clips(
        args.source,
        args.root,
        args.split,
        dataset_config=args.dataset_config,
        frame_template=args.frame_template,
        video_column=args.video_column,
        labelled=False,
    )
    failures: list[Failure] = []
    total_frames = 0
    width = max(len(clip.name) for clip in clips)
    for clip, frames, reason in check_clips(clips, args.num_workers):
        total_frames += frames
        if reason is not None:
            failures.append((clip.name, reason))
            print(f"{clip.name:<{width}}  {reason}", flush=True)
    print(f"{len(clips)} clips, {total_frames} frames read, {len(failures)} bad")
    if args.output:
        write_failures(args.output, failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
