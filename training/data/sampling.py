# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flexible sampling: which clips make up a batch, and with how many frames and at which size they are read.

This is the only place where the randomness of Flux lives. Everything drawn is a pure function of (seed, epoch, step),
so a run that was interrupted goes on with the batches it would have had, and any number of processes shares out the
same global batches. Source: the paper's section on Flux augmentation and its Tables 4, 14 and 16; the official code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Sampler

from flux_hf.token_selection import as_count
from flux_hf.video_decoding import sample_frame_indices


SAMPLING_RULES = ("kinetics", "ssv2", "center")


@dataclass(frozen=True)
class ClipShape:
    """How a clip is read: `num_frames` frames of `size` x `size` pixels."""

    num_frames: int
    size: int

    def num_tokens(self, patch_size: int = 14, tubelet_size: int = 1) -> int:
        return self.num_frames // tubelet_size * (self.size // patch_size) ** 2


@dataclass(frozen=True)
class ClipRequest:
    """What a data set is asked for: clip `index`, read as `num_frames` x `size`, in its version of `epoch`."""

    index: int
    num_frames: int
    size: int
    epoch: int


@dataclass(frozen=True)
class FlexibleSampling:
    """The numbers of frames and sizes to draw from, and the window their dense tokens must lie in, ends included."""

    frames: tuple[int, ...]
    sizes: tuple[int, ...]
    token_window: tuple[int, int]

    def in_units_of(self, patch_size: int, tubelet_size: int) -> "FlexibleSampling":
        """These frames and sizes, given for FluxViT's patches of 14 and one frame, as those with as many patches."""
        frames = tuple(frames * tubelet_size for frames in self.frames)
        return replace(self, frames=frames, sizes=tuple(size // 14 * patch_size for size in self.sizes))

    def legal_shapes(self, patch_size: int = 14, tubelet_size: int = 1) -> list[ClipShape]:
        """Every (frames, size) whose dense token count lies in the window, frames first, both rising.

        Raises:
            ValueError: a number of frames that is not whole tubelets, a size that is not whole patches, or no pair
                within the window.
        """
        low, high = self.token_window
        for frames in self.frames:
            if as_count("frames", frames) % tubelet_size:
                raise ValueError(f"frames must be multiples of tubelet_size={tubelet_size}, got {frames}")
        for size in self.sizes:
            if as_count("sizes", size) % patch_size:
                raise ValueError(f"sizes must be multiples of patch_size={patch_size}, got {size}")
        shapes = [ClipShape(frames, size) for frames in sorted(set(self.frames)) for size in sorted(set(self.sizes))]
        legal = [shape for shape in shapes if low <= shape.num_tokens(patch_size, tubelet_size) <= high]
        if not legal:
            counts = sorted({shape.num_tokens(patch_size, tubelet_size) for shape in shapes})
            raise ValueError(f"no pair of frames and size has a token count in {[low, high]}; there are {counts}")
        return legal


# "paper": Table 14 and 16, the window of the best ablation in Table 4. "released": the official fine-tuning script.
SAMPLING_PRESETS = {
    "paper": FlexibleSampling(tuple(range(4, 26, 2)), tuple(range(168, 280, 28)), (2048, 4096)),
    "released": FlexibleSampling(tuple(range(6, 26, 2)), tuple(range(112, 364, 28)), (2048, 6144)),
}


# The last word of each seed: numpy pads seeds with zeros, so that without it those of different draws could be equal.
_FOR_ORDER, _FOR_SHAPE, _FOR_BATCH = 6, 7, 8


def draw_shape(shapes: Sequence[ClipShape], seed: int, epoch: int, step: int, rank: int | None = None) -> ClipShape:
    """One of `shapes`, uniformly; with `rank` given, independently of other ranks."""
    words = [seed, epoch, step, 0 if rank is None else rank + 1, _FOR_SHAPE]
    return shapes[np.random.default_rng(words).integers(len(shapes))]


@dataclass(eq=False)
class FluxBatchSampler(Sampler[list[ClipRequest]]):
    """Batches of `ClipRequest`s for one process, all of a batch with one shape.

    An epoch is a permutation of the clips cut into global batches of `world_size * batch_size`; process r takes the
    r-th part of each, so every number of processes with the same global batch sees the same clips at a step. Clips
    that do not fill a last global batch wait for another epoch's permutation, as in the official code. Pictures among
    videos are in batches of their own, which come in any order.

    Args:
        num_clips: Clips of the set.
        batch_size: Clips a process takes at a step.
        shapes: What to draw from; a single one for a fixed grid.
        seed: With epoch and step, decides everything.
        rank: This process.
        world_size: Number of processes.
        clip_weights: How likely each clip is to be drawn, with replacement; a permutation if not given.
        same_shape_on_all_ranks: Whether all processes draw the same shape at a step, so that none waits for another;
            the official code draws independently.
        pictures: Which clips are pictures; none if not given.
        picture_shapes: What to draw from for these.

    Raises:
        ValueError: a count below 1, a rank outside the world, fewer clips than a global batch, of pictures and videos
            each, or weights beside pictures.
    """

    num_clips: int
    batch_size: int
    shapes: Sequence[ClipShape]
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    same_shape_on_all_ranks: bool = True
    clip_weights: np.ndarray | None = None
    pictures: np.ndarray | None = None
    picture_shapes: Sequence[ClipShape] = ()

    def __post_init__(self):
        as_count("batch_size", self.batch_size)
        if not self.shapes:
            raise ValueError("shapes must hold at least one ClipShape, got none")
        if not 0 <= self.rank < as_count("world_size", self.world_size):
            raise ValueError(f"rank must lie in [0, {self.world_size}), got {self.rank}")
        global_batch = self.batch_size * self.world_size
        if self.num_clips < global_batch:
            raise ValueError(f"a global batch takes {global_batch} clips, but there are only {self.num_clips}")
        kinds = [np.arange(self.num_clips)]
        if self.pictures is not None and self.pictures.any():
            kinds = [np.flatnonzero(~self.pictures), np.flatnonzero(self.pictures)]
            if 0 < len(kinds[0]) < global_batch or len(kinds[1]) < global_batch:
                counts = f"{len(kinds[1])} pictures and {len(kinds[0])} videos"
                raise ValueError(f"a global batch takes {global_batch} clips of one kind, but there are {counts}")
            if self.clip_weights is not None:
                raise ValueError("clips cannot be drawn by weight where pictures are among them")
        self._kinds = [(len(clips) // global_batch, clips) for clips in kinds]
        self.epoch, self.skipped = 0, 0

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Chooses the epoch of the next iteration, which leaves out its first `skip_batches` (when resuming)."""
        self.epoch, self.skipped = epoch, skip_batches

    def shape_of(self, epoch: int, step: int, of_pictures: bool = False) -> ClipShape:
        """The shape of this process's batch at `step` of `epoch`."""
        shapes = self.picture_shapes if of_pictures else self.shapes
        return draw_shape(shapes, self.seed, epoch, step, None if self.same_shape_on_all_ranks else self.rank)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return sum(number for number, _ in self._kinds)

    def _order(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The clips of an epoch's global batches (batches, clips), and which of these are of pictures (batches,)."""
        global_batch, parts = self.batch_size * self.world_size, []
        if self.clip_weights is not None:
            order = rng.choice(self.num_clips, self.num_clips, p=self.clip_weights / self.clip_weights.sum())
            parts.append(order[: len(self) * global_batch])
        else:
            parts += [rng.permutation(clips)[: number * global_batch] for number, clips in self._kinds]
        batches = np.concatenate(parts).reshape(-1, global_batch)
        of_pictures = np.arange(len(batches)) >= self._kinds[0][0]
        if len(self._kinds) > 1:
            mixed = rng.permutation(len(batches))
            batches, of_pictures = batches[mixed], of_pictures[mixed]
        return batches, of_pictures

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        epoch, first = self.epoch, self.rank * self.batch_size
        batches, of_pictures = self._order(np.random.default_rng([self.seed, epoch, _FOR_ORDER]))
        for step in range(self.skipped, len(self)):
            shape = self.shape_of(epoch, step, bool(of_pictures[step]))
            mine = batches[step, first : first + self.batch_size]
            yield [ClipRequest(int(index), shape.num_frames, shape.size, epoch) for index in mine]


def step_generator(seed: int, epoch: int, step: int, rank: int) -> torch.Generator:
    """The generator for what is drawn once a batch (mixup and cutmix), a function of its arguments alone."""
    draw = np.random.default_rng([seed, epoch, step, rank, _FOR_BATCH]).integers(2**63)
    return torch.Generator().manual_seed(int(draw))


def pick_frames(total_frames: int, num_frames: int, rule: str, rng: np.random.Generator) -> np.ndarray:
    """Indices of the frames of a training clip.

    - `kinetics`: with seg = (N-1)/T, frame i is uniform among round(seg*i) .. round(seg*(i+1)), both included, at
      most N-1 (round half to even).
    - `ssv2`: with d = N//T, frame i is uniform among the d frames from i*d on; the last N - T*d are never seen. Of a
      clip with fewer than T frames each is repeated about equally often, in order (the official code repeats the
      first frame alone, which leaves little of the motion).
    - `center`: not random, the rule of the validation of videos.

    Args:
        total_frames: N.
        num_frames: T.
        rule: One of these.
        rng: Is drawn from.

    Returns:
        (num_frames,) int64, not decreasing.
    """
    if rule == "center":
        return sample_frame_indices(total_frames, num_frames)[0]
    as_count("total_frames", total_frames)
    steps = np.arange(as_count("num_frames", num_frames))
    if rule == "kinetics":
        bounds = np.round((total_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
        return np.minimum(rng.integers(bounds[:-1], bounds[1:], endpoint=True), total_frames - 1)
    if rule == "ssv2":
        length = total_frames // num_frames
        if length == 0:
            return steps * total_frames // num_frames
        return steps * length + rng.integers(length, size=num_frames)
    raise ValueError(f"rule must be one of {list(SAMPLING_RULES)}, got {rule!r}")


def sample_views(total_frames: int, num_frames: int, num_clips: int, rule: str) -> np.ndarray:
    """Indices of an evaluation's temporal views, by the rule of the data: (num_clips, num_frames) int64, rising.

    - `ssv2`: one view takes the middle of each of T equal parts, frame i*d + d//2 with d = N//T; view c of S takes
      int(c*tick/S + tick*i) with tick = N/T. A clip with fewer frames than T repeats some.
    - others: `sample_frame_indices`.
    """
    if rule != "ssv2":
        return sample_frame_indices(total_frames, num_frames, num_clips)
    as_count("total_frames", total_frames)
    steps, length = np.arange(as_count("num_frames", num_frames)), total_frames // num_frames
    if as_count("num_clips", num_clips) == 1 and length > 0:
        return (steps * length + length // 2)[None]
    tick = total_frames / num_frames
    return np.array([[int(clip * tick / num_clips + tick * step) for step in steps] for clip in range(num_clips)])


def check_rule(rule: str | None) -> None:
    """Raises ValueError for a `rule` that `pick_frames` does not know; None leaves it to the kind of clip."""
    if rule is not None and rule not in SAMPLING_RULES:
        raise ValueError(f"sampling_rule must be one of {list(SAMPLING_RULES)}, got {rule!r}")
