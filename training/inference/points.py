# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Points: ways to look at a video, each with its frames, size and token budget."""

import re
from dataclasses import dataclass
from typing import Any

from flux_hf.auto_budgets import AUTO
from flux_hf.protocol import VideoTokenClassifier
from flux_hf.token_selection import as_count
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..data.sampling import ClipShape


@dataclass(frozen=True)
class EvalPoint:
    """A way to look at a video: `num_frames` frames of `size` x `size` pixels, `token_budget` of their tokens encoded.

    A `token_budget` of None is the model's default. Written `8x224@2048`, or `8x224`.

    Raises:
        ValueError: a value below 1 or not whole.
    """

    num_frames: int
    size: int
    token_budget: int | None = None

    def __post_init__(self):
        for name in ("num_frames", "size", "token_budget"):
            if name != "token_budget" or self.token_budget is not None:
                as_count(name, getattr(self, name))

    @classmethod
    def parse(cls, text: str) -> "EvalPoint":
        """The point that `str` would write as `text`. Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+))?", text)
        if match is None:
            raise ValueError(f"a point is written FRAMESxSIZE@BUDGET, such as 8x224@2048, got {text!r}")
        return cls(*(None if number is None else int(number) for number in match.groups()))

    def __str__(self) -> str:
        budget = "" if self.token_budget is None else f"@{self.token_budget}"
        return f"{self.num_frames}x{self.size}{budget}"

    @property
    def shape(self) -> ClipShape:
        return ClipShape(self.num_frames, self.size)

    def dense_tokens(self, config: Any) -> int:
        """Tokens before selection.

        Raises:
            ValueError: frames that are not whole tubelets of the model, or a size that is not whole patches.
        """
        if self.num_frames % config.tubelet_size:
            raise ValueError(f"{self}: frames must be multiples of tubelet_size={config.tubelet_size}")
        if self.size % config.patch_size:
            raise ValueError(f"{self}: the size must be a multiple of patch_size={config.patch_size}")
        return self.shape.num_tokens(config.patch_size, config.tubelet_size)

    def kept_tokens(self, model: VideoTokenClassifier) -> int:
        """Tokens that the model encodes, by a threshold at most; raises as `dense_tokens`."""
        self.dense_tokens(model.config)
        return model.count_kept(self.num_frames, self.size, self.size, self.token_budget)


def default_shape(config: Any, processor: FluxViTVideoProcessor) -> ClipShape:
    """The clip that the pipeline samples where nothing is said. Raises ValueError if its crop is not square."""
    crop = dict(processor.crop_size)
    if crop["height"] != crop["width"]:
        raise ValueError(f"clips are square here, and the checkpoint's crop is {crop}: give a size")
    return ClipShape(processor.num_frames or config.num_frames, crop["height"])


def resolve_point(
    config: Any,
    processor: FluxViTVideoProcessor,
    num_frames: int | None = None,
    size: int | None = None,
    token_budget: int | None = None,
) -> EvalPoint:
    """The point that the pipeline would use: what is given, else the plan's for the budget, else the default clip's.

    Raises:
        ValueError: a value out of range, or one that the model's tubelets or patches do not divide.
    """
    planned = (config.token_plan or {}).get(token_budget)
    if num_frames is None and size is None and planned is not None:
        num_frames, size = planned
    if num_frames is None:
        num_frames = processor.num_frames or config.num_frames
    if size is None:
        size = default_shape(config, processor).size
    point = EvalPoint(num_frames, size, token_budget)
    point.dense_tokens(config)
    return point


@dataclass(frozen=True)
class AutoPoint:
    """Clips of one shape, each encoded at the budget that it needs. Written `8x224@auto`."""

    num_frames: int
    size: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.size}@{AUTO}"
