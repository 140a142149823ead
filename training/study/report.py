# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The study's results: tables, differences with their intervals, and plots, of all runs that are kept."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flux_hf.checkpoint_files import write_text

from ..inference.report import drawing
from .design import BASELINE, BUDGETS, METHODS, OWN_SELECTOR, SELECTORS, TOKENS, WAYS
from .intervals import Difference, paired_difference
from .records import Records, unpack
from .tasks import STARTS


class Cell(NamedTuple):
    """What is compared: a method measured in a way (with a selector) at a budget."""

    method: str
    way: str
    budget: int


class Results:
    """All runs of one data set.

    Args:
        records: The study.
        name: The set's.
    """

    def __init__(self, records: Records, name: str):
        self.name, self.groups = name, records.groups(name)
        self.runs = {
            method: {seed: records.get(name, method, seed) for seed in records.seeds(name, method)}
            for method in METHODS
        }
        self.methods = [method for method in METHODS if self.runs[method]]

    def shares(self, cell: Cell) -> list[float]:
        """Top-1 in percent of each seed; empty if it was not measured."""
        runs = self.runs[cell.method].values()
        return [
            100 * run[cell.way][str(cell.budget)]["top1"] for run in runs if str(cell.budget) in run.get(cell.way, {})
        ]

    def hits(self, cell: Cell, seeds: Sequence[int]) -> np.ndarray:
        """(seeds, clips) bool."""
        of_seeds = [self.runs[cell.method][seed][cell.way][str(cell.budget)]["hits"] for seed in seeds]
        return np.stack([unpack(text, len(self.groups)) for text in of_seeds])

    def difference(self, ours: Cell, other: Cell, results: "Results | None" = None) -> Difference | None:
        """Over the seeds that both were run from; None where there is none or one was not measured.

        Args:
            ours: Of these results.
            other: Likewise, or of `results`, of the same clips.
            results: Where the other is from.
        """
        theirs = self if results is None else results
        seeds = sorted(set(self.runs[ours.method]) & set(theirs.runs[other.method]))
        if not seeds or not self.shares(ours) or not theirs.shares(other):
            return None
        return paired_difference(self.hits(ours, seeds), theirs.hits(other, seeds), self.groups)


def table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers to the right."""
    return [
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not shares:
        return ""
    deviation = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1f}{deviation}"


def accuracy_rows(results: Results) -> Iterator[list[str]]:
    for method in results.methods:
        for way, title in WAYS.items():
            cells = [spread(results.shares(Cell(method, way, budget))) for budget in BUDGETS]
            yield [f"{METHODS[method]}, {title}", *cells]


# What of a gain is what: a difference of (method, way) pairs.
PARTS = {
    "more training: fixed grid at equal compute - fixed grid": (("fixed_equal", "direct"), ("fixed", "direct")),
    "flexible sampling: Flux-Single - fixed grid": (("single", "direct"), ("fixed", "direct")),
    "several budgets: Flux-Multi, not aligned - Flux-Single": (("multi_unaligned", "direct"), ("single", "direct")),
    "alignment: Flux-Multi - Flux-Multi, not aligned": (("multi", "direct"), ("multi_unaligned", "direct")),
    "TO on the fixed grid at equal compute": (("fixed_equal", "to"), ("fixed_equal", "direct")),
    "TO on Flux-Single": (("single", "to"), ("single", "direct")),
    "TO on Flux-Multi": (("multi", "to"), ("multi", "direct")),
    "alignment, with TO on both sides": (("multi", "to"), ("multi_unaligned", "to")),
    "Flux-Single - fixed grid, equal steps, with TO on both sides": (("single", "to"), ("fixed", "to")),
    "Flux-Single - fixed grid at equal compute, with TO on both sides": (("single", "to"), (BASELINE, "to")),
    "Flux-Multi - fixed grid, equal steps, direct": (("multi", "direct"), ("fixed", "direct")),
    "Flux-Multi - fixed grid, equal steps, with TO on both sides": (("multi", "to"), ("fixed", "to")),
    "Flux-Multi - fixed grid at equal compute, direct": (("multi", "direct"), (BASELINE, "direct")),
    "Flux-Multi - fixed grid at equal compute, with TO on both sides": (("multi", "to"), (BASELINE, "to")),
}


def part_rows(results: Results) -> Iterator[list[str]]:
    for title, (ours, other) in PARTS.items():
        found = [results.difference(Cell(*ours, budget), Cell(*other, budget)) for budget in BUDGETS]
        if any(found):
            yield [title, *("" if difference is None else str(difference) for difference in found)]


def start_rows(records: Records, name: str) -> Iterator[list[str]]:
    """What it brings on a real set to begin in one way and not in another, those from scratch being the others."""
    results = {start: Results(records, f"{name}_{start}") for start in STARTS if records.has(f"{name}_{start}")}
    for other, start in itertools.combinations(results, 2):
        if not other.startswith("scratch"):
            continue
        for method in results[start].methods:
            for way in ("direct", "to"):
                cells = [Cell(method, way, budget) for budget in BUDGETS]
                found = [results[start].difference(cell, cell, results[other]) for cell in cells]
                if any(found):
                    yield [f"{METHODS[method]}, {WAYS[way]}, {STARTS[start]} - {STARTS[other]}", *map(str, found)]


def start_markdown(records: Records) -> Iterator[str]:
    """A table for each real set that models began on in several ways."""
    names = {folder.rpartition("_scratch")[0] for folder in records.sets() if folder.endswith("_scratch")}
    for name in sorted(names):
        if rows := list(start_rows(records, name)):
            lines = [f"## {name}: where models begin", "", "Differences in points, with 95 % intervals:", ""]
            yield "\n".join([*lines, *table(["", *(f"{budget} tokens" for budget in BUDGETS)], iter(rows)), ""])


def claim_lines(results: Results) -> Iterator[str]:
    """Flux-Multi with TO at fewer tokens against the fixed grid at equal compute at all of them."""
    for way in ("direct", "to"):
        for budget in BUDGETS[1:]:
            found = results.difference(Cell("multi", "to", budget), Cell(BASELINE, way, TOKENS))
            if found is not None:
                yield f"- Flux-Multi, TO, at {budget} tokens - {METHODS[BASELINE]}, {WAYS[way]}, at {TOKENS}: {found}"


def selector_rows(results: Results) -> Iterator[list[str]]:
    """Accuracy with the model's own selector, and what another one changes."""
    for method in results.methods:
        for way in ("direct", "to"):
            own = [Cell(method, way, budget) for budget in BUDGETS]
            for selector, title in SELECTORS.items():
                name = f"{METHODS[method]}, {WAYS[way]}, {title}"
                if selector == OWN_SELECTOR:
                    yield [name, *(spread(results.shares(cell)) for cell in own)]
                    continue
                found = [results.difference(cell._replace(way=f"{way}, {selector}"), cell) for cell in own]
                if any(found):
                    yield [name, *map(str, found)]


def training_rows(results: Results) -> Iterator[list[str]]:
    """What each method's training cost, and how far the validation clips' accuracy still rose over its last third."""
    for method in results.methods:
        runs = results.runs[method].values()
        cost = next(iter(runs))["training"]
        rises = [rise for run in runs if (rise := last_rise(run.get("curve", []))) is not None]
        yield [METHODS[method], str(cost["steps"]), str(cost["clips"]), str(cost["tera_multiply_adds"]), spread(rises)]


def last_rise(curve: Sequence[tuple[int, float]]) -> float | None:
    """Points from two thirds of a training to its end; None of a curve of fewer than three looks."""
    if len(curve) < 3:
        return None
    before = [share for step, share in curve if step <= curve[-1][0] * 2 / 3]
    return 100 * (curve[-1][1] - before[-1])


def set_markdown(results: Results) -> str:
    """All tables of a data set."""
    tokens = [f"{budget} tokens" for budget in BUDGETS]
    seeds = ", ".join(f"{METHODS[method]} {len(results.runs[method])}" for method in results.methods)
    lines = [f"## {results.name}", "", f"{len(results.groups)} test clips. Seeds: {seeds}.", ""]
    lines += ["Top-1 in percent, mean ± standard deviation over seeds:", ""]
    lines += table(["", *tokens], accuracy_rows(results))
    lines += ["", "What the gain is made of: differences in points, with 95 % intervals over clips and seeds.", ""]
    lines += [*table(["", *tokens], part_rows(results)), "", *claim_lines(results), ""]
    if any(
        f"direct, {selector}" in run
        for runs in results.runs.values()
        for run in runs.values()
        for selector in SELECTORS
    ):
        lines += ["The selector replaced at test time: top-1 with the trained one, then differences from it.", ""]
        lines += [*table(["", *tokens], selector_rows(results)), ""]
    lines += ["What training cost; the rise is that of the validation clips' top-1 over its last third, in points.", ""]
    lines += table(["", "steps", "clips", "10^12 multiply-adds", "rise"], training_rows(results))
    return "\n".join([*lines, ""])


def draw_accuracies(path: Path, title: str, results: Results) -> None:
    """Accuracy over tokens: direct dashed, TO solid, bars of one standard deviation."""
    with drawing(path) as axes:
        for index, method in enumerate(results.methods):
            for way, style in (("direct", "--"), ("to", "-")):
                line = [(budget, results.shares(Cell(method, way, budget))) for budget in BUDGETS]
                axes.errorbar(
                    [budget * 1.03 ** (index - 2) for budget, _ in line],  # side by side, not on top of each other
                    [statistics.mean(shares) for _, shares in line],
                    [statistics.stdev(shares) if len(shares) > 1 else 0.0 for _, shares in line],
                    fmt=f"o{style}",
                    color=f"C{index}",
                    capsize=3,
                    label=f"{METHODS[method]}, {WAYS[way]}",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axes.minorticks_off()
        axes.set(xlabel="tokens encoded", ylabel="top-1 (%)", title=title)


def draw_curves(path: Path, title: str, results: Results) -> None:
    """The validation clips' accuracy over the share of each training that is done, a line a run."""
    with drawing(path) as axes:
        for index, method in enumerate(results.methods):
            for number, run in enumerate(results.runs[method].values()):
                steps, shares = zip(*run["curve"], strict=True)
                label = f"{METHODS[method]}, {steps[-1]} steps" if number == 0 else None
                done = [step / steps[-1] for step in steps]
                axes.plot(done, [100 * share for share in shares], color=f"C{index}", label=label, linewidth=1)
        axes.axvline(2 / 3, color="black", linewidth=0.5)
        axes.set(xlabel="share of the steps", ylabel=f"validation top-1 at {TOKENS} tokens (%)", title=title)


def report(records: Records, encoder: str = "fluxvit") -> str:
    """Writes results.md and the plots of each data set beside the runs. Returns the text."""
    texts = []
    for name in records.sets():
        results, folder = Results(records, name), records.directory / name
        if not results.methods:
            continue
        texts.append(set_markdown(results))
        draw_accuracies(folder / "accuracy.png", f"{results.name}, {encoder}", results)
        if all("curve" in run for runs in results.runs.values() for run in runs.values()):
            draw_curves(folder / "validation.png", f"{results.name}, {encoder}", results)
    text = "\n".join([*texts, *start_markdown(records)])
    write_text(records.directory / "results.md", text)
    return text
