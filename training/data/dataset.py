# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips by index: a reader that answers requests, and the data set that joins frames, targets and augmentation.

Whatever is random is a function of the seed, the epoch and the clip, so it depends neither on the number of workers and
processes nor on the order they work in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flux_hf.token_selection import as_count

from .clip_table import distinct_labels
from .failures import Failure, all_failed
from .reader import READ_ERRORS, Clip, describe_failure
from .sampling import ClipRequest, check_rule, pick_frames
from .targets import TargetEncoder


Augment = Callable[[Tensor, int, torch.Generator], Tensor | dict[str, Tensor]]

MAX_TRIES = 20  # clips tried for one place of a batch; nearly all of a set must be bad for so many to fail

# The fifth and last word of a seed, so that draws for different ends differ, from those of the sampler too. None is 0:
# numpy pads seeds with zeros, and a shorter seed would equal a longer one.
FOR_FRAMES, FOR_AUGMENT, FOR_REPLACEMENT, FOR_STREAM = 2, 3, 4, 5


class ReadClip(NamedTuple):
    """Frames (T, 3, H, W) uint8, the index of the clip they are of, and the clips that could not be read."""

    frames: Tensor
    index: int
    failures: list[Failure]


class ClipReader:
    """Answers requests for clips of a list.

    A clip that cannot be read is replaced by another, drawn from the seed and its index, and named in `failures`; all
    the others keep their places, so none of them is lost.

    Args:
        clips: The set.
        seed: With epoch and index, decides everything random.
        sampling_rule: Of `pick_frames`; if not given, `ssv2` for folders of frames and `kinetics` for others.

    Raises:
        ValueError: no clips, or an unknown rule.
    """

    def __init__(self, clips: Sequence[Clip], seed: int = 0, sampling_rule: str | None = None):
        if not clips:
            raise ValueError("clips must hold at least one clip, got none")
        check_rule(sampling_rule)
        self.clips, self.seed, self.sampling_rule = clips, seed, sampling_rule

    def read(self, request: ClipRequest) -> ReadClip:
        """Raises TooManyFailedClips where neither the clip nor any of those tried in its place can be read."""
        failures = []
        for attempt, index in enumerate(self._candidates(request.index)):
            clip = self.clips[index]
            rule = self.sampling_rule or clip.sampling_rule
            words = [self.seed, request.epoch, request.index, attempt, FOR_FRAMES]

            def sampler(total_frames: int, rule: str = rule, words: list[int] = words) -> np.ndarray:
                return pick_frames(total_frames, request.num_frames, rule, np.random.default_rng(words))

            try:
                return ReadClip(clip.read(sampler), index, failures)
            except READ_ERRORS as error:
                failures.append((clip.name, describe_failure(error)))
        raise all_failed(failures)

    def _candidates(self, index: int) -> Iterator[int]:
        """The clip itself, then others in a random order, up to MAX_TRIES in all."""
        yield index
        rng = np.random.default_rng([self.seed, 0, index, 0, FOR_REPLACEMENT])
        tried = {index}
        while len(tried) < min(len(self.clips), MAX_TRIES):
            candidate = int(rng.integers(len(self.clips)))
            if candidate not in tried:
                tried.add(candidate)
                yield candidate


@dataclass(frozen=True)
class SampleMaker:
    """What by-index and streamed data sets make of the frames and targets they have read.

    Args:
        augment: `(frames (T, 3, H, W) uint8, size, generator) -> (T, 3, size, size)`, or a dict of that as
            `pixel_values_videos` and what else of a clip the training step needs. Batches wait in shared memory: best
            uint8.
        seed: With epoch, index and copy, decides everything random.
        num_sample: Augmented copies of each clip, which is decoded once (repeated augmentation).

    Raises:
        ValueError: a negative seed, or `num_sample` below 1.
    """

    augment: Augment
    seed: int = 0
    num_sample: int = 1

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        as_count("num_sample", self.num_sample)

    def make(
        self, frames: Tensor, targets: Mapping[str, Tensor], request: ClipRequest, failures: list[Failure]
    ) -> dict[str, Any]:
        """A sample of a clip's frames (T, 3, H, W); the copies and their targets stand in the first dimension."""
        seeds = [
            int(np.random.default_rng([self.seed, request.epoch, request.index, copy, FOR_AUGMENT]).integers(2**63))
            for copy in range(self.num_sample)
        ]
        made = [self.augment(frames, request.size, torch.Generator().manual_seed(seed)) for seed in seeds]
        copies = [copy if isinstance(copy, dict) else {"pixel_values_videos": copy} for copy in made]
        return {
            **{name: torch.stack([copy[name] for copy in copies]) for name in copies[0]},
            **{name: torch.stack([target] * self.num_sample) for name, target in targets.items()},
            "seeds": torch.tensor(seeds),
            "failures": failures,
        }


class ClipDataset(torch.utils.data.Dataset):
    """Clips by index, read, encoded and augmented.

    Args:
        clips: The set.
        targets: Encodes their labels, all of them at once, so that a label that does not fit is an error now.
        augment, seed, num_sample: As in `SampleMaker`.
        sampling_rule: As in `ClipReader`.

    Raises:
        ValueError: as `ClipReader`, `SampleMaker` and the target encoder.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        targets: TargetEncoder,
        augment: Augment,
        seed: int = 0,
        num_sample: int = 1,
        sampling_rule: str | None = None,
    ):
        self.maker = SampleMaker(augment, seed, num_sample)
        self.reader = ClipReader(clips, seed, sampling_rule)
        self.targets = targets
        labels, _, firsts = distinct_labels(clips)
        for label, first in zip(labels, firsts, strict=True):
            targets.encode(label, clips[first].name)

    def __len__(self) -> int:
        return len(self.reader.clips)

    def __getitem__(self, request: ClipRequest) -> dict[str, Any]:
        """Reads the clip that `request` names.

        Returns:
            `pixel_values_videos` (num_sample, T, 3, size, size) and all else that `augment` gives, the targets with
            num_sample in front, `seeds` (num_sample,) int64 of the copies' generators, and `failures`, the
            (name, reason) of clips that could not be read.

        Raises:
            TooManyFailedClips: neither it nor any of those tried in its place can be read.
        """
        frames, index, failures = self.reader.read(request)
        clip = self.reader.clips[index]
        return self.maker.make(frames, self.targets.encode(clip.label, clip.name), request, failures)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins samples of one shape: tensors with B * num_sample in front, copies of a clip adjacent, failures joined."""
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0] if name != "failures"}
    return {**batch, "failures": [failure for sample in samples for failure in sample["failures"]]}
