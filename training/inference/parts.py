# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a model is shown of videos, in units of work: whole clips, or windows of videos of any length.

A unit is a few clips that follow each other. One worker makes all parts of a unit, in order, in batches that are the
unit's own: what is computed of a part does not depend on the processes, the workers, or where an earlier run ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..data.reader import READ_ERRORS, Clip, describe_failure
from ..data.sampling import sample_views
from .points import EvalPoint
from .prediction import pick_views, square_crops


@dataclass(frozen=True)
class Part:
    """A clip, or a window of it.

    Args:
        name: The clip's.
        start, end: In seconds; None of a whole clip.
        pixels: (V, T, 3, S, S) uint8, the views; None where it cannot be read.
        error: Why not; empty where it can.
    """

    name: str
    start: float | None = None
    end: float | None = None
    pixels: Tensor | None = None
    error: str = ""


@dataclass(frozen=True)
class WholeClips:
    """Views of whole clips, as `evaluate` takes them."""

    processor: FluxViTVideoProcessor
    point: EvalPoint
    num_clips: int = 1
    num_crops: int = 1

    def __call__(self, clip: Clip) -> Iterator[Part]:
        """One part. Raises one of `READ_ERRORS`."""
        chosen = np.empty(0, dtype=np.int64)

        def sampler(total_frames: int) -> np.ndarray:
            nonlocal chosen
            chosen = sample_views(total_frames, self.point.num_frames, self.num_clips, clip.sampling_rule)
            return np.unique(chosen)

        frames = clip.read(sampler)
        crops = square_crops(self.processor, frames, self.point.size, self.num_crops)
        yield Part(clip.name, pixels=pick_views(crops, np.searchsorted(np.unique(chosen), chosen)))


@dataclass(frozen=True)
class Windows:
    """Windows of videos, in seconds."""

    processor: FluxViTVideoProcessor
    point: EvalPoint
    window: float
    stride: float
    num_crops: int = 1

    def __call__(self, clip: Clip) -> Iterator[Part]:
        """Its windows, in order. Raises one of `READ_ERRORS` behind those before the damage."""
        for window in clip.windows(self.window, self.stride, self.point.num_frames):
            crops = square_crops(self.processor, window.frames.permute(0, 3, 1, 2), self.point.size, self.num_crops)
            yield Part(clip.name, window.start, window.end, crops)


@dataclass(frozen=True)
class UnitBatch:
    """Successive parts of a unit: which of its batches they are, and whether the last."""

    unit: int
    number: int
    parts: list[Part]
    is_last: bool


@dataclass(frozen=True)
class UnitMaker:
    """Makes the batches of a unit.

    Args:
        parts_of: Makes the parts of a clip.
        views: Of each part.
        batch_size: Views of a batch; a part's stay together.
    """

    parts_of: WholeClips | Windows
    views: int
    batch_size: int

    def __call__(self, unit: int, clips: Sequence[Clip]) -> Iterator[UnitBatch]:
        """At least one batch, the last of which is called so; what cannot be read is a part with its error."""
        batch: list[Part] = []
        number = 0
        for clip in clips:
            for part in self._readable_parts(clip):
                if len(batch) == max(1, self.batch_size // self.views):
                    yield UnitBatch(unit, number, batch, is_last=False)
                    batch, number = [], number + 1
                batch.append(part)
        yield UnitBatch(unit, number, batch, is_last=True)

    def _readable_parts(self, clip: Clip) -> Iterator[Part]:
        try:
            yield from self.parts_of(clip)
        except READ_ERRORS as error:
            yield Part(clip.name, error=describe_failure(error))


class Units(IterableDataset):
    """Batches of units; each loader worker takes every n-th unit."""

    def __init__(self, units: Sequence[tuple[int, Sequence[Clip]]], make: UnitMaker):
        super().__init__()
        self.units, self.make = units, make

    def __iter__(self) -> Iterator[UnitBatch]:
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for unit, clips in self.units[start::step]:
            yield from self.make(unit, clips)


def make_units(clips: Sequence[Clip], clips_per_unit: int) -> list[Sequence[Clip]]:
    """The clips cut into units."""
    return [clips[start : start + clips_per_unit] for start in range(0, len(clips), clips_per_unit)]
