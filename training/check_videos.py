# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads every clip of a set completely, and lists those that are damaged, missing or empty.

    python -m training.check_videos --data train.csv --dataloader_num_workers 8 --output bad.csv

takes every source that training takes. Exits with 1 if any clip is bad.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from flux_hf.checkpoint_files import write_csv

from .arguments import LoaderArguments, SourceArguments, flag, parse_command
from .data.failures import Failure
from .data.reader import READ_ERRORS, Clip, FrameFolder, VideoFile, describe_failure, iter_frames
from .inference.command import list_clips


@dataclass
class CheckArguments(SourceArguments, LoaderArguments):
    output: str | None = flag(None, "csv to write the bad clips to (columns name,reason)")


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


def main(arguments: list[str] | None = None) -> int:
    """Prints the bad clips and the counts. Returns the exit status: 0, or 1 if any clip is bad."""
    args = parse_command(CheckArguments, __doc__, arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    clips = list_clips(args, labelled=False)
    failures: list[Failure] = []
    total_frames = 0
    width = max(len(clip.name) for clip in clips)
    for clip, frames, reason in check_clips(clips, args.dataloader_num_workers):
        total_frames += frames
        if reason is not None:
            failures.append((clip.name, reason))
            print(f"{clip.name:<{width}}  {reason}", flush=True)
    print(f"{len(clips)} clips, {total_frames} frames read, {len(failures)} bad")
    if args.output:
        write_csv(args.output, ("name", "reason"), failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
