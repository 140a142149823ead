# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""How sure a difference between two ways to train or test is: the bootstrap over clips and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies in points, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        text = f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"
        return f"**{text}**" if self.is_sure else text


def paired_difference(
    ours: np.ndarray, other: np.ndarray, groups: Sequence[str], resamples: int = RESAMPLES
) -> Difference:
    """The paired difference, resampling seeds and clips at once: percentile bootstrap of 95 %.

    A resample draws as many seeds as there are, and as many groups of clips, both with replacement; a drawn seed or
    group counts on both sides alike. With one seed the interval says nothing of what another would have given.

    Args:
        ours: (seeds, clips) bool, right or wrong.
        other: Likewise, of the same seeds and clips.
        groups: Of each clip: clips that are alike are drawn together.
        resamples: Number of them; drawn from a fixed seed.

    Raises:
        ValueError: shapes that differ.
    """
    if ours.shape != other.shape or ours.ndim != 2 or ours.shape[1] != len(groups):
        raise ValueError(f"both must be (seeds, {len(groups)} clips), got {ours.shape} and {other.shape}")
    names, of_clip = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(ours), len(names)))
    for seed, gained in enumerate(ours.astype(float) - other.astype(float)):
        np.add.at(sums[seed], of_clip, gained)
    sizes = np.bincount(of_clip)
    rng = np.random.default_rng(0)
    seed_counts = rng.multinomial(len(ours), np.full(len(ours), 1 / len(ours)), size=resamples)
    group_counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    of_seeds = seed_counts @ sums / len(ours)
    drawn = 100 * (of_seeds * group_counts).sum(1) / (group_counts @ sizes)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(100 * sums.sum() / ours.size), float(low), float(high))
