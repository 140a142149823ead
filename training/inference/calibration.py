# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What `token_budget="auto"` goes by, chosen on validation clips: temperatures, which budgets are tried, thresholds."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flux_hf.auto_budgets import BudgetLadder, confidence
from flux_hf.budget_models import TokenBudgetClassifier

from ..data.sampling import ClipShape
from .command import format_table
from .points import EvalPoint, default_shape


TEMPERATURES = (0.05, 20.0)  # the range; its ends are for scores that are always right, or say nothing
CUTS = 20  # parts that the confidences of the clips which come to a budget are cut into, for thresholds to be tried
MAX_LADDERS = 200_000  # of more budgets than five fewer thresholds are tried


@dataclass(frozen=True)
class Calibration:
    """A ladder, and what it does on the clips that it was chosen by; accuracies as shares of 1."""

    ladder: BudgetLadder
    accuracy: float
    gflops_per_view: float  # mean over clips of all passes tried
    shares: tuple[float, ...]  # of the clips, stopping at each of its budgets
    token_budgets: tuple[int, ...]  # that were there to choose from, rising
    temperatures: tuple[float, ...]  # of these
    accuracies: tuple[float, ...]  # likewise, of all clips at the one budget
    gflops: tuple[float, ...]  # likewise
    suffices: tuple[bool, ...]  # likewise, whether that alone is accurate enough


@dataclass(frozen=True)
class Wanted:
    """How accurate a ladder must be: a top-1, or within `tolerance` of the largest budget's; shares of 1.

    It counts only as far as it is sure, less one standard error: the cheapest of thousands of ladders that just reach a
    number on some clips is the luckiest, and misses it on others.
    """

    tolerance: float | None = None
    target: float | None = None

    def holds(self, clips: int, hits: int, gained: int, lost: int) -> bool:
        """Of a ladder with so many hits of so many clips, `gained` of them wrong at the largest budget, `lost` the
        other way."""
        if self.target is not None:
            share = hits / clips
            return share - math.sqrt(share * (1 - share) / clips) >= self.target - 1e-9
        short = (lost - gained) / clips
        return short + math.sqrt(max(0.0, (lost + gained) / clips - short**2) / clips) <= self.tolerance + 1e-9


def fit_temperature(scores: Tensor, targets: Tensor) -> float:
    """The temperature at which scores are likeliest, in `TEMPERATURES` (Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017).

    Args:
        scores: (N, C), each summing to 1.
        targets: (N,) int64.
    """
    logs = scores.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    above = logs - logs.gather(1, targets[:, None])  # of each label, how far above the right one
    low, high = (math.log(1 / limit) for limit in reversed(TEMPERATURES))
    for _ in range(60):  # the slope rises with 1 / temperature: halve the range that it is 0 in
        middle = (low + high) / 2
        slope = ((logs * math.exp(middle)).softmax(-1) * above).sum(-1).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


@dataclass(frozen=True)
class _Found:
    """A ladder that could be: steps are indices into the budgets there are."""

    steps: tuple[int, ...]
    thresholds: tuple[float, ...]
    hits: int = 0
    gained: int = 0
    lost: int = 0
    cost: float = 0.0  # of all clips

    def stopping(self, step: int, right: np.ndarray, reference: np.ndarray, cost: float) -> "_Found":
        """With some clips, right or wrong there and at the largest budget, stopping at a further step."""
        return _Found(
            (*self.steps, step),
            self.thresholds,
            self.hits + int(right.sum()),
            self.gained + int((right & ~reference).sum()),
            self.lost + int((reference & ~right).sum()),
            self.cost + len(right) * cost,
        )


@dataclass(frozen=True)
class _Ladders:
    """All ladders that are tried.

    Args:
        confidences: (S, N) of each budget, rising, and clip.
        hits: (S, N) bool.
        cost: Of passes at some of the budgets, by their indices.
    """

    confidences: np.ndarray
    hits: np.ndarray
    cost: Callable[[tuple[int, ...]], float]

    def all(self) -> Iterator[_Found]:
        number, clips = self.hits.shape
        cuts = CUTS if number < 2 else min(CUTS, int(MAX_LADDERS ** (1 / (number - 1))))
        yield from self._from(0, np.arange(clips), _Found((), ()), cuts)

    def _from(self, step: int, left: np.ndarray, before: _Found, cuts: int) -> Iterator[_Found]:
        """Those that go on with this budget or a later one, for the clips that are left."""
        right, reference = self.hits[step, left], self.hits[-1, left]
        cost = self.cost((*before.steps, step))
        yield before.stopping(step, right, reference, cost)
        if step + 1 == len(self.hits):
            return
        yield from self._from(step + 1, left, before, cuts)  # without this budget
        sure = self.confidences[step, left]
        for threshold in _cut(sure, cuts):
            stops = sure >= threshold
            so_far = before.stopping(step, right[stops], reference[stops], cost)
            so_far = replace(so_far, thresholds=(*before.thresholds, threshold))
            yield from self._from(step + 1, left[~stops], so_far, cuts)


def _cut(values: np.ndarray, parts: int) -> Iterator[float]:
    """Where values can be cut into so many parts of one size: between two neighbours, on neither."""
    ordered, before = np.sort(values), None
    for part in range(1, parts):
        index = part * len(ordered) // parts
        if index and index != before and ordered[index - 1] < ordered[index]:
            before = index
            yield float((float(ordered[index - 1]) + float(ordered[index])) / 2)


def calibrate(
    model: TokenBudgetClassifier,
    shape: ClipShape,
    token_budgets: Sequence[int],
    scores: Tensor,
    targets: Tensor,
    wanted: Wanted,
) -> Calibration:
    """Fits a temperature for each budget, and finds the ladder of least mean cost that is accurate enough.

    A ladder tries some of the budgets, rising, and ends at any of them.

    Args:
        model: Says what passes cost.
        shape: The clip that the scores are of.
        token_budgets: Rising.
        scores: (S, N, C) of each budget and clip.
        targets: (N,) int64.
        wanted: How accurate.

    Raises:
        ValueError: no ladder is.
    """
    temperatures = [fit_temperature(of_budget, targets) for of_budget in scores]
    hits = (scores.sort(dim=-1, descending=True, stable=True).indices[..., 0] == targets).numpy()
    sure = np.stack([confidence(s, t).numpy() for s, t in zip(scores, temperatures, strict=True)])

    @cache
    def cost(steps: tuple[int, ...]) -> float:
        return model.flops(shape.num_frames, shape.size, [token_budgets[step] for step in steps]) / 1e9

    clips = len(targets)
    found = list(_Ladders(sure, hits, cost).all())
    enough = [one for one in found if wanted.holds(clips, one.hits, one.gained, one.lost)]
    if not enough:
        most = max(one.hits for one in found) / clips
        raise ValueError(
            f"no way through {list(token_budgets)} is surely above {100 * wanted.target:.2f} % on {clips} clips: the "
            f"best has {100 * most:.2f} %, and one standard error counts off"
        )
    best = min(enough, key=lambda one: (one.cost, -one.hits))
    ladder = BudgetLadder(
        shape.num_frames,
        shape.size,
        tuple(token_budgets[step] for step in best.steps),
        tuple(temperatures[step] for step in best.steps),
        best.thresholds,
    )
    stops = ladder.stop([scores[step] for step in best.steps])
    return Calibration(
        ladder,
        best.hits / clips,
        best.cost / clips,
        tuple((stops == step).float().mean().item() for step in range(len(best.steps))),
        tuple(token_budgets),
        tuple(temperatures),
        tuple(hits.mean(1).tolist()),
        tuple(cost((step,)) for step in range(len(token_budgets))),
        tuple(any(one.steps == (step,) for one in enough) for step in range(len(token_budgets))),
    )


def auto_shape(
    config: Any, processor: Any, largest: int, frames: Sequence[int] | None, sizes: Sequence[int] | None
) -> ClipShape:
    """The one clip of all budgets: the one given, else the plan's for the largest of them, else the default one.

    Raises:
        ValueError: several are given, or one that the model cannot take.
    """
    for name, values in (("frames", frames), ("sizes", sizes)):
        if values is not None and len(values) != 1:
            raise ValueError(f"with --auto all budgets look at one clip: give one of --{name}, got {values}")
    default = default_shape(config, processor)
    if frames is None and sizes is None:
        shape = ClipShape(*(config.token_plan or {}).get(largest, (default.num_frames, default.size)))
    else:
        shape = ClipShape((frames or [default.num_frames])[0], (sizes or [default.size])[0])
    EvalPoint(shape.num_frames, shape.size).dense_tokens(config)
    return shape


def calibration_report(found: Calibration) -> dict[str, Any]:
    """What auto_budgets_calibration.json says of a calibration."""
    names = ("token_budget", "temperature", "accuracy", "gflops_per_view", "suffices_alone")
    values = (found.token_budgets, found.temperatures, found.accuracies, found.gflops, found.suffices)
    of_budgets = zip(*values, strict=True)
    return {
        "auto_budgets": found.ladder.to_config(),
        "accuracy": found.accuracy,
        "gflops_per_view": found.gflops_per_view,
        "shares": dict(zip(map(str, found.ladder.token_budgets), found.shares, strict=True)),
        "budgets": [dict(zip(names, values, strict=True)) for values in of_budgets],
    }


def calibration_table(found: Calibration) -> str:
    """A row a budget, and the ladder, for people."""
    ladder = found.ladder
    rows = [["budget", "top-1", "GFLOPs/view", "temperature", "threshold", "clips that stop"]]
    for values in zip(found.token_budgets, found.accuracies, found.gflops, found.temperatures, strict=True):
        budget, accuracy, gflops, temperature = values
        threshold, share = "", ""
        if budget in ladder.token_budgets:
            step = ladder.token_budgets.index(budget)
            threshold = f"{ladder.thresholds[step]:.3f}" if step < len(ladder.thresholds) else ""
            share = f"{100 * found.shares[step]:.1f} %"
        rows.append([str(budget), f"{100 * accuracy:.2f}", f"{gflops:.4g}", f"{temperature:.2f}", threshold, share])
    rows.append(["auto", f"{100 * found.accuracy:.2f}", f"{found.gflops_per_view:.4g}", "", "", ""])
    return f"clips of {ladder.num_frames}x{ladder.size}\n{format_table(rows)}"
