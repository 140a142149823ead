# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The study's results: tables, claims and plots."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flux_hf.checkpoint_files import write_json, write_text

from ..inference.points import EvalPoint
from ..inference.report import drawing
from .design import BUDGETS, METHODS, TOKENS, WAYS, new_model, point_flops


Rows = dict[tuple[str, str, int], dict[str, Any]]


def summarise(results: dict[str, Any], seeds: Sequence[int], encoder: str = "fluxvit") -> Rows:
    """A row a method, way and budget: accuracy of each seed in percent, mean and standard deviation, cost."""
    rows, model = {}, new_model(encoder)
    for method, result in results.items():
        for way, budget in ((way, budget) for way in WAYS for budget in BUDGETS):
            points = [result["seeds"][seed][way].get(budget) for seed in seeds]
            if points[0] is None:
                continue
            shapes = [EvalPoint.parse(point["point"]) for point in points]
            flops = [sum(point_flops(model, shape).values()) for shape in shapes]
            shares = [100 * point["top1"] for point in points]
            encoder = [point_flops(model, shape)["encoder"] for shape in shapes]
            rows[method, way, budget] = {
                "method": method,
                "way": way,
                "tokens": budget,
                "mean": statistics.mean(shares),
                "std": statistics.stdev(shares) if len(shares) > 1 else 0.0,
                "seeds": dict(zip(seeds, shares, strict=True)),
                "clips": [f"{shape.num_frames}x{shape.size}" for shape in shapes],
                "mega_multiply_adds": statistics.mean(flops) / 1e6,
                "encoder_mega_multiply_adds": statistics.mean(encoder) / 1e6,
            }
    return rows


def check_claims(rows: Rows) -> list[dict[str, Any]]:
    """Flux-Multi with TO against the fixed grid: at a quarter of its tokens against all, and at equal ones."""
    claims = []
    for tokens, other_tokens in [(TOKENS // 4, TOKENS), *((budget, budget) for budget in BUDGETS)]:
        ours, other = rows.get(("multi", "to", tokens)), rows.get(("fixed", "direct", other_tokens))
        if ours is not None and other is not None:
            gains = [ours["seeds"][seed] - other["seeds"][seed] for seed in ours["seeds"]]
            claims.append(
                {
                    "claim": f"Flux-Multi + TO at {tokens} tokens against fixed grid, direct, at {other_tokens}",
                    "gain": statistics.mean(gains),
                    "gain_of_each_seed": gains,
                    "holds_on_average": statistics.mean(gains) >= 0,
                    "holds_for_every_seed": min(gains) >= 0,
                }
            )
    return claims


def results_markdown(task: str, results: dict[str, Any], rows: Rows, seeds: Sequence[int]) -> str:
    """Tables of accuracies, of what training cost, and the claims."""
    lines = [
        f"## {task}",
        "",
        f"Top-1 in percent on the test clips, mean and standard deviation of {len(seeds)} seeds.",
        "",
    ]
    lines += [
        f"| method | | {' | '.join(f'{budget} tokens' for budget in BUDGETS)} |",
        "|---|---|" + "---|" * len(BUDGETS),
    ]
    for method in results:
        for way, title in WAYS.items():
            cells = []
            for budget in BUDGETS:
                row = rows.get((method, way, budget))
                if row is None:
                    cells.append("")
                    continue
                clips = f" ({', '.join(dict.fromkeys(row['clips']))})" if way == "to" else ""
                cells.append(f"{row['mean']:.1f} ± {row['std']:.1f}{clips}")
            lines.append(f"| {METHODS[method]} | {title} | {' | '.join(cells)} |")
    lines += ["", "| training | steps | clips | 10^12 multiply-adds |", "|---|---|---|---|"]
    for method, result in results.items():
        cost = result["training"]
        lines.append(f"| {METHODS[method]} | {cost['steps']} | {cost['clips']} | {cost['tera_multiply_adds']} |")
    lines.append("")
    for claim in check_claims(rows):
        gains = ", ".join(f"{gain:+.1f}" for gain in claim["gain_of_each_seed"])
        lines.append(f"- {claim['claim']}: {claim['gain']:+.1f} points (seeds: {gains})")
    return "\n".join([*lines, ""])


def draw(path: Path, title: str, results: dict[str, Any], rows: Rows) -> None:
    """Accuracy over tokens: direct dashed, TO solid, bars of one standard deviation."""
    with drawing(path) as axes:
        for index, method in enumerate(results):
            for way, style in (("direct", "--"), ("to", "-")):
                line = [row for key, row in rows.items() if key[:2] == (method, way)]
                axes.errorbar(
                    [row["tokens"] * 1.03 ** (index - 1) for row in line],  # side by side, not on top of each other
                    [row["mean"] for row in line],
                    [row["std"] for row in line],
                    fmt=f"o{style}",
                    color=f"C{index}",
                    capsize=3,
                    label=f"{METHODS[method]}, {WAYS[way]}",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axes.minorticks_off()
        axes.set(xlabel="tokens encoded", ylabel="top-1 (%)", title=title)


def report(output_dir: Path, tasks: dict[str, dict[str, Any]], seeds: Sequence[int], encoder: str = "fluxvit") -> str:
    """Writes results.json, results.md and a plot a data set. Returns the text."""
    whole, texts = {}, []
    for name, results in tasks.items():
        rows = summarise(results, seeds, encoder)
        training = {method: result["training"] for method, result in results.items()}
        whole[name] = {"rows": list(rows.values()), "claims": check_claims(rows), "training": training}
        texts.append(results_markdown(name, results, rows, seeds))
        draw(output_dir / f"{name}.png", f"{name}, {encoder}: {len(seeds)} seeds", results, rows)
    write_json(output_dir / "results.json", whole)
    write_text(output_dir / "results.md", "\n".join(texts))
    return "\n".join(texts)
