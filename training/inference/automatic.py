# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Budgets that choose themselves, of clips whose scores are known at every step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flux_hf.auto_budgets import BudgetLadder
from flux_hf.budget_models import TokenBudgetClassifier

from .metrics import evaluate_scores
from .points import AutoPoint, EvalPoint
from .prediction import Predictions


def auto_points(config: Any, num_frames: int | None = None, size: int | None = None) -> list[EvalPoint]:
    """The steps of a model's ladder.

    Raises:
        ValueError: it has none, or one of other clips.
    """
    ladder = BudgetLadder.of(config)
    return [EvalPoint(*ladder.clip(num_frames, size), budget) for budget in ladder.token_budgets]


def add_auto(
    model: TokenBudgetClassifier, points: Sequence[EvalPoint], predictions: Predictions, targets: Tensor
) -> tuple[dict[str, Any], list[EvalPoint | AutoPoint], Predictions]:
    """Another point: each clip's scores are those of the step of the model's ladder at which it stops.

    Args:
        model: Its `config.auto_budgets` say where.
        points: All steps among them.
        predictions, targets: Of the points.

    Returns:
        Its results; the points with it, an `AutoPoint`; and the predictions with it, and its `budgets`.
    """
    ladder, config = BudgetLadder.of(model.config), model.config
    of_steps = predictions.scores[[points.index(point) for point in auto_points(config)]]
    stops = ladder.stop(list(of_steps))
    scores = of_steps[stops, torch.arange(len(stops))]
    counted = stops[predictions.decoded]
    shares = torch.bincount(counted, minlength=len(of_steps)).double() / len(counted)
    shape = ladder.num_frames, ladder.size

    kept = [point.kept_tokens(model) for point in auto_points(config)]
    results = {
        "point": str(AutoPoint(*shape)),
        "num_frames": shape[0],
        "size": shape[1],
        "dense_tokens": auto_points(config)[0].dense_tokens(config),
        "kept_tokens": sum(share * tokens for share, tokens in zip(shares.tolist(), kept, strict=True)),
        "gflops_per_view": ladder.mean_flops(model, shares.tolist()) / 1e9,
        "gflops_per_view_with_dense_embedding": ladder.mean_flops(model, shares.tolist(), dense_embedding=True) / 1e9,
        "shares": dict(zip(map(str, ladder.token_budgets), shares.tolist(), strict=True)),
        **evaluate_scores(scores, targets),
        "clips_counted": len(counted),
        "failures": len(predictions.failures),
        "auto_budgets": ladder.to_config(),
    }
    budgets = torch.tensor(ladder.token_budgets)[stops]
    added = replace(predictions, scores=torch.cat([predictions.scores, scores[None]]), budgets=budgets)
    return results, [*points, AutoPoint(*shape)], added
