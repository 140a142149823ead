# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of scores: accuracies, and average precisions where a clip may have several labels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def accuracy(scores: Tensor, labels: Tensor, top_k: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of clips whose label is among the k best scores: {"top1": ..., "top5": ...}.

    Args:
        scores: (clips, num_labels); rows of NaN, clips that could not be decoded, do not count.
        labels: (clips,) int64.
        top_k: The ks.

    Raises:
        ValueError: no clip counts.
    """
    scores, labels = _counted(scores, labels)
    # stable, so that equal scores rank alike on every machine
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, : max(top_k)]
    hits = best == labels[:, None]
    return {f"top{k}": hits[:, :k].any(1).float().mean().item() for k in top_k}


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each label, (num_labels,) float64; NaN for a label that no clip has.

    The area under the steps of precision over recall: the sum over distinct scores, falling, of the recall gained at
    it times the precision there. Clips of equal score count together.

    Args:
        scores: (clips, num_labels); rows of NaN do not count.
        targets: (clips, num_labels) of 0 and 1.

    Raises:
        ValueError: no clip counts.
    """
    scores, targets = _counted(scores, targets)
    precisions = []
    for column, target in zip(scores.unbind(1), targets.double().unbind(1), strict=True):
        column, order = column.sort(descending=True)
        last_of_equals = torch.cat([column[1:] != column[:-1], torch.ones(1, dtype=torch.bool)])
        found = target[order].cumsum(0)[last_of_equals]
        seen = torch.arange(1, len(column) + 1)[last_of_equals]
        gained = torch.diff(found, prepend=torch.zeros(1, dtype=found.dtype))
        precisions.append((gained * found / seen).sum() / target.sum())  # 0 / 0 is NaN
    return torch.stack(precisions)


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean of `average_precisions` over the labels that some clip has. Raises ValueError if none has any."""
    precisions = average_precisions(scores, targets)
    if precisions.isnan().all():
        raise ValueError(f"none of {len(targets)} clips has a label")
    return precisions.nanmean().item()


def evaluate_scores(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Metrics of one point: top1 and top5, or mean_average_precision for multi-label targets (clips, num_labels)."""
    if targets.ndim == 2:
        return {"mean_average_precision": mean_average_precision(scores, targets)}
    return accuracy(scores, targets)


def _counted(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if len(scores) != len(targets):
        raise ValueError(f"there must be one target a clip, got {len(targets)} for {len(scores)} clips")
    counted = ~scores.isnan().any(1)
    if not counted.any():
        raise ValueError(f"none of {len(scores)} clips has scores")
    return scores[counted], targets[counted]
