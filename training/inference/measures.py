# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a model finds of parts of videos, in whichever process it stands."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .parts import Part, UnitBatch
from .points import EvalPoint


# MKL's products else depend on where in memory their factors lie, and so on what a process did before: by the last bit.
SAME_BITS = ("MKL_CBWR", "AUTO,STRICT")


class Measure(Protocol):
    """A model that is on its device, with all that stands around it."""

    model: Any
    processor: FluxViTVideoProcessor
    point: EvalPoint

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, S, S) uint8 -> (B, *shape) float32, one of each view."""


Source = Callable[[Accelerator], Measure]  # loads it; travels between processes


def measured(batch: UnitBatch, measure: Callable[[Tensor], Tensor], views: int) -> tuple[UnitBatch, Tensor | None]:
    """A batch without its pixels, and (n, *shape) of its n readable parts: means over the views of a `Measure`."""
    pixels = [part.pixels for part in batch.parts if part.pixels is not None]
    parts = [Part(part.name, part.start, part.end, error=part.error) for part in batch.parts]
    values = measure(torch.cat(pixels)).unflatten(0, (-1, views)).mean(1).cpu() if pixels else None
    return UnitBatch(batch.unit, batch.number, parts, batch.is_last), values


def refuse_nan(parts: Sequence[Part], broken: Tensor) -> None:
    """Raises FloatingPointError where what was found of a part is broken (n,), naming the first."""
    if broken.any():
        part = parts[int(broken.nonzero()[0])]
        raise FloatingPointError(f"what the model gives for {broken.sum()} clips is not numbers, first for {part.name}")
