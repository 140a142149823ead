# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""How sure a difference between two ways to train or test is: the bootstrap over clips and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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
        ours: (seeds, clips), right or wrong, or how often right.
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
    seed_counts, group_counts = _draws(len(ours), len(names), resamples)
    drawn = 100 * ((group_counts @ sums.T) * seed_counts).sum(1) / (len(ours) * (group_counts @ sizes))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(100 * sums.sum() / ours.size), float(low), float(high))


@lru_cache(maxsize=4)
def _draws(num_seeds: int, num_groups: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each group is drawn: (resamples, num_seeds) and (resamples, num_groups)."""
    rng = np.random.default_rng(0)
    counts = [rng.multinomial(number, np.full(number, 1 / number), resamples) for number in (num_seeds, num_groups)]
    return counts[0].astype(float), counts[1].astype(float)
