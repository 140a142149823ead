# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What probes say: accuracies of all runs of a probe at a point, and tables of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


RESULT_COLUMNS = ("point", "tokens", "probe", "shots", "accuracy", "spread", "runs")


@dataclass
class ProbeResult:
    """A probe at a point, fitted on all training clips or on `shots` of each class.

    Args:
        point: The point's name.
        tokens: That the encoder keeps.
        probe: The probe's name.
        shots: Clips of a class, drawn anew for each run; None: all.
        accuracies: Of the runs: folds, times draws of few shots.
        chosen: In each run.
    """

    point: str
    tokens: int
    probe: str
    shots: int | None
    accuracies: list[float] = field(default_factory=list)
    chosen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """For people."""
        shots = "" if self.shots is None else f", {self.shots} shot" + "s" * (self.shots > 1)
        return self.probe + shots

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the runs; None of one run."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """For json."""
        named = {"point": self.point, "tokens": self.tokens, "probe": self.probe, "shots": self.shots}
        runs = {"accuracies": self.accuracies, "chosen": self.chosen}
        return {**named, "accuracy": self.mean, "spread": self.spread, **runs}

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def result_rows(results: Sequence[ProbeResult]) -> list[tuple]:
    """Rows of results.csv; accuracies as shares of 1."""
    return [
        (result.point, result.tokens, result.probe, result.shots, result.mean, result.spread, len(result.accuracies))
        for result in results
    ]


def markdown_table(results: Sequence[ProbeResult]) -> str:
    """Accuracies in percent with their spread, a row a probe, a column a budget."""
    columns = list(dict.fromkeys((result.point, result.tokens) for result in results))
    cells = {(result.title, result.point): str(result) for result in results}
    lines = [["probe", *(f"{tokens} tokens" for _, tokens in columns)], ["---", *["---:"] * len(columns)]]
    for title in dict.fromkeys(result.title for result in results):
        lines.append([title, *(cells[title, point] for point, _ in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
