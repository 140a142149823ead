# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What probes are fitted on and tested by: clips with their labels, groups and features, and how they are parted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.groups import part_groups


@dataclass(frozen=True)
class Samples:
    """What is known of n clips.

    Args:
        names: (n,).
        labels: (n,) int64, positions in a list of classes.
        groups: (n,): clips of a group are alike, and are never parted.
        vectors: (n, P) float32.
        tokens: (n, K, D), for attentive probes.
    """

    names: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    vectors: np.ndarray | None = None
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: np.ndarray) -> "Samples":
        """Those of the rows."""
        groups, vectors = (None if array is None else array[rows] for array in (self.groups, self.vectors))
        tokens = None if self.tokens is None else self.tokens[torch.from_numpy(rows)]
        return Samples(self.names[rows], self.labels[rows], groups, vectors, tokens)


def splits(train: Samples, test: Samples | None, num_folds: int | None) -> Iterator[tuple[Samples, Samples]]:
    """(clips to train on, clips to test): the two that are given, or without the second each fold of the first.

    Whole groups are tested together.

    Raises:
        ValueError: fewer groups than folds.
    """
    if test is not None:
        yield train, test
        return
    part_of = part_groups(train.groups.tolist(), num_folds)
    parts = np.array([part_of[group] for group in train.groups.tolist()])
    for part in range(num_folds):
        yield train.at(np.flatnonzero(parts != part)), train.at(np.flatnonzero(parts == part))


def check_classes(train: Samples, test: Samples, classes: Sequence[str], shots: int) -> None:
    """Raises ValueError where a tested class has no training clip, or a class fewer than the `shots` to be drawn."""
    counts = np.bincount(train.labels, minlength=len(classes))
    unseen = [classes[label] for label in np.unique(test.labels) if counts[label] == 0]
    if unseen:
        raise ValueError(f"each class must have training clips, {unseen} have none")
    few = {classes[label]: int(counts[label]) for label in np.unique(train.labels) if counts[label] < shots}
    if few:
        raise ValueError(f"--shots {shots} needs as many training clips of each class, there are only {few}")


def draw_shots(labels: np.ndarray, shots: int, seed: int, draw: int) -> np.ndarray:
    """Rows of `shots` clips of each class, rising; of one draw the fewer are among the more."""
    rng = np.random.default_rng([seed, draw])
    rows = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))
