# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Token optimization: which frames and size a token budget is best spent on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flux_hf.protocol import VideoTokenClassifier

from ..data.reader import Clip
from ..data.targets import label_targets
from .command import format_table
from .metrics import mean_average_precision
from .points import EvalPoint, default_shape
from .prediction import Predictions, Predictor
from .report import describe_point


FRAMES = (4, 6, 8, 10, 12, 16, 20, 24)
PATCHES_A_SIDE = (12, 14, 16, 18)  # 168, 196, 224 and 252 pixels of patches of 14


@dataclass(frozen=True)
class BudgetSearch:
    """What was found for one budget; accuracies as shares of 1."""

    token_budget: int
    metric: str  # that the accuracies are of
    measured: dict[EvalPoint, float]
    too_few_tokens: tuple[EvalPoint, ...]  # left out
    best: EvalPoint
    direct: EvalPoint  # the default clip at this budget
    direct_accuracy: float


def candidates(grid: Sequence[EvalPoint], config: Any) -> tuple[list[EvalPoint], list[EvalPoint]]:
    """Points of one budget that spend it, and those with too few tokens to; if none has enough, all are candidates."""
    enough = [point for point in grid if point.dense_tokens(config) >= point.token_budget]
    if not enough:
        return list(grid), []
    return enough, [point for point in grid if point not in enough]


def best_point(measured: dict[EvalPoint, float], config: Any) -> EvalPoint:
    """The most accurate point; of equals the one with fewer dense tokens, then fewer frames."""
    return min(measured, key=lambda point: (-measured[point], point.dense_tokens(config), point.num_frames))


def make_grid(
    config: Any, frames: Sequence[int] | None = None, sizes: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """(frames, size) pairs: those given, or the paper's as far as the model's tubelets and patches allow.

    Raises:
        ValueError: frames given that are not whole tubelets, or sizes that are not whole patches.
    """
    if frames is None:
        frames = [number for number in FRAMES if number % config.tubelet_size == 0]
        if not frames:
            raise ValueError(f"give frames, none of {FRAMES} is a multiple of tubelet_size={config.tubelet_size}")
    sizes = [patches * config.patch_size for patches in PATCHES_A_SIDE] if sizes is None else sizes
    grid = [(number, size) for number in sorted(set(frames)) for size in sorted(set(sizes))]
    for number, size in grid:
        EvalPoint(number, size).dense_tokens(config)
    return grid


def search_report(search: BudgetSearch, model: VideoTokenClassifier) -> dict[str, Any]:
    """One budget of token_plan_search.json."""

    def describe(point: EvalPoint, accuracy: float | None) -> dict[str, Any]:
        return {**describe_point(model, point), "accuracy": accuracy}

    return {
        "token_budget": search.token_budget,
        "best": describe(search.best, search.measured[search.best]),
        "direct": describe(search.direct, search.direct_accuracy),
        "points": [describe(point, accuracy) for point, accuracy in search.measured.items()],
        "too_few_tokens": [describe(point, None) for point in search.too_few_tokens],
    }


def search_table(search: BudgetSearch) -> str:
    """Accuracy in percent, frames down and sizes across, as in the paper's Table 11; the best with a star."""
    points = [*search.measured, *search.too_few_tokens]
    sizes = sorted({point.size for point in points})
    rows = [["frames \\ size", *map(str, sizes)]]
    for number in sorted({point.num_frames for point in points}):
        cells = [str(number)]
        for size in sizes:
            point = EvalPoint(number, size, search.token_budget)
            star = "*" if point == search.best else " "
            cells.append(f"{100 * search.measured[point]:.2f}{star}" if point in search.measured else "- ")
        rows.append(cells)
    best, direct = search.best, search.direct
    lines = [f"token budget {search.token_budget}", format_table(rows)]
    lines.append(
        f"best {best.num_frames}x{best.size} {100 * search.measured[best]:.2f}, "
        f"default clip {direct.num_frames}x{direct.size} {100 * search.direct_accuracy:.2f}"
    )
    if search.too_few_tokens:
        lines.append(f"- has fewer than {search.token_budget} tokens")
    if search.direct_accuracy > search.measured[best]:
        lines.append("the default clip is better than the whole grid: search a wider one")
    return "\n".join(lines)


def search(
    model: VideoTokenClassifier,
    predict: Predictor,
    clips: Sequence[Clip],
    token_budgets: Sequence[int],
    grid: Sequence[tuple[int, int]],
) -> tuple[list[BudgetSearch], Predictions]:
    """Measures every (frames, size) of a grid that spends a budget, and the default clip, each clip decoded once.

    Returns:
        What was found for each budget, and the predictions it rests on (collective: the same on every process).
    """
    config, default = model.config, default_shape(model.config, predict.processor)
    splits = [candidates([EvalPoint(*pair, budget) for pair in grid], config) for budget in token_budgets]
    directs = [EvalPoint(default.num_frames, default.size, budget) for budget in token_budgets]
    points = list(dict.fromkeys([*(point for measured, _ in splits for point in measured), *directs]))
    targets = label_targets(clips, config)
    if targets.ndim == 2:
        metric, predictions = "mean_average_precision", predict(clips, points)
        values = [mean_average_precision(scores, targets) for scores in predictions.scores]
    else:

        def is_right(scores: Tensor, indices: list[int]) -> Tensor:
            """(points, n, 1): 1 or 0, NaN of NaN."""
            best = scores.sort(dim=-1, descending=True, stable=True).indices[..., 0]
            right = (best == targets[indices]).float().masked_fill(scores.isnan().any(-1), math.nan)
            return right[..., None]

        metric, predictions = "top1", predict(clips, points, is_right)
        if not predictions.decoded.any():
            raise ValueError(f"none of {len(clips)} clips could be decoded")
        values = predictions.scores[..., 0].nanmean(1).tolist()
    accuracies = dict(zip(points, values, strict=True))
    searches = []
    for budget, (chosen, left_out), direct in zip(token_budgets, splits, directs, strict=True):
        measured = {point: accuracies[point] for point in chosen}
        best = best_point(measured, config)
        searches.append(BudgetSearch(budget, metric, measured, tuple(left_out), best, direct, accuracies[direct]))
    return searches, predictions
