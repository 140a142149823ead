# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation says: results of points, predictions of clips, reports of classes, and a plot."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from flux_hf.checkpoint_files import replacing, write_csv
from flux_hf.protocol import VideoTokenClassifier

from ..data.reader import Clip
from .command import format_table
from .metrics import average_precisions, evaluate_scores
from .points import AutoPoint, EvalPoint
from .prediction import Predictions


METRIC_NAMES = {"top1": "top-1", "top5": "top-5", "mean_average_precision": "mAP"}


def describe_point(model: VideoTokenClassifier, point: EvalPoint) -> dict[str, Any]:
    """A point's clip, and what it costs."""
    kept = point.kept_tokens(model)
    return {
        "num_frames": point.num_frames,
        "size": point.size,
        "dense_tokens": point.dense_tokens(model.config),
        "kept_tokens": kept,
        "gflops_per_view": model.flops(point.num_frames, point.size, kept) / 1e9,
    }


def point_results(
    model: VideoTokenClassifier, points: Sequence[EvalPoint], predictions: Predictions, targets: Tensor
) -> list[dict[str, Any]]:
    """What is known of each point: the clip, what it costs (the mean, where clips differ in that), how well it does."""
    counts = {"clips_counted": int(predictions.decoded.sum()), "failures": len(predictions.failures)}
    results = [
        {
            "point": str(point),
            "token_budget": point.token_budget,
            **describe_point(model, point),
            **evaluate_scores(scores, targets),
            **counts,
        }
        for point, scores in zip(points, predictions.scores, strict=True)
    ]
    if predictions.costs is not None:
        for result, costs in zip(results, predictions.costs[:, predictions.decoded].double().mean(1), strict=True):
            result |= {"kept_tokens": costs[0].item(), "gflops_per_view": costs[1].item() / 1e9}
    return results


def results_table(results: Sequence[dict[str, Any]], auto: dict[str, Any] | None = None) -> str:
    """A row a point, for people; and of budgets that choose themselves, with the share of clips at each."""
    metrics = [name for name in METRIC_NAMES if name in results[0]]
    rows = [["point", "tokens", "GFLOPs/view", *(METRIC_NAMES[name] for name in metrics), "clips"]]
    for result in [*results, *([] if auto is None else [auto])]:
        tokens = f"{round(result['kept_tokens'], 1):g} of {result['dense_tokens']}"
        shares = [f"{100 * result[name]:.2f}" for name in metrics]
        rows.append(
            [result["point"], tokens, f"{result['gflops_per_view']:.4g}", *shares, str(result["clips_counted"])]
        )
    table = format_table(rows)
    if auto is not None:
        shares = ", ".join(f"{100 * share:.1f} % at {budget} tokens" for budget, share in auto["shares"].items())
        table += f"\n{auto['point']}: means over clips, of all passes tried; {shares}"
    return table


PREDICTION_COLUMNS = ("point", "name", "label", "predicted", "score", "top5", "error", "token_budget")


def prediction_rows(
    clips: Sequence[Clip],
    points: Sequence[EvalPoint | AutoPoint],
    predictions: Predictions,
    targets: Tensor,
    config: Any,
) -> Iterator[list]:
    """Rows of predictions.csv, one a point and clip; `top5` is json, pairs of label and score, and `token_budget` the
    point's, or the one at which the clip stopped."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    reasons = dict(predictions.failures)
    if targets.ndim == 2:
        labels = ["|".join(names[index] for index in row.nonzero()[:, 0].tolist()) for row in targets]
    else:
        labels = [names[index] for index in targets.tolist()]
    for point, scores in zip(points, predictions.scores, strict=True):
        values, indices = (part[:, :5].tolist() for part in scores.sort(dim=-1, descending=True, stable=True))
        budgets = [getattr(point, "token_budget", None)] * len(clips)
        if isinstance(point, AutoPoint):
            budgets = predictions.budgets.tolist()
        for clip, label, row, order, budget in zip(clips, labels, values, indices, budgets, strict=True):
            if clip.name in reasons:
                yield [str(point), clip.name, label, "", "", "", reasons[clip.name], ""]
                continue
            best = [[names[index], score] for index, score in zip(order, row, strict=True)]
            yield [
                *(str(point), clip.name, label, best[0][0], best[0][1]),
                *(json.dumps(best, ensure_ascii=False), "", "" if budget is None else budget),
            ]


@contextmanager
def drawing(path: Path) -> Iterator[Axes]:
    """Axes to draw labelled lines on, written as png with grid and legend."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    yield axes
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw_results(path: Path, results: Sequence[dict[str, Any]], title: str, auto: dict[str, Any] | None = None) -> None:
    """Draws accuracy over GFLOPs, one line a clip shape through its budgets, and a star for automatic budgets."""
    metric = next(name for name in METRIC_NAMES if name in results[0])
    with drawing(path) as axes:
        for shape in dict.fromkeys((result["num_frames"], result["size"]) for result in results):
            line = [result for result in results if (result["num_frames"], result["size"]) == shape]
            line.sort(key=lambda result: result["gflops_per_view"])
            gflops = [result["gflops_per_view"] for result in line]
            shares = [100 * result[metric] for result in line]
            axes.plot(gflops, shares, marker="o", label=f"{shape[0]} frames of {shape[1]}x{shape[1]}")
            for x, y, result in zip(gflops, shares, line, strict=True):
                text = f"{round(result['kept_tokens'], 1):g} tokens"
                axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 5), fontsize=8)
        if auto is not None:
            label = f"auto, {auto['num_frames']} frames of {auto['size']}x{auto['size']}"
            axes.plot(auto["gflops_per_view"], 100 * auto[metric], "k*", markersize=12, label=label)
        axes.set(xlabel="GFLOPs a view", ylabel=f"{METRIC_NAMES[metric]} (%)", title=title)
        axes.margins(x=0.25, y=0.15)  # room for the texts


def write_class_report(
    output_dir: Path,
    points: Sequence[EvalPoint | AutoPoint],
    predictions: Predictions,
    targets: Tensor,
    config: Any,
) -> None:
    """Writes per_class.csv and, for a model that gives one label, a confusion matrix (true by predicted) a point."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    counted = predictions.decoded
    rows = []
    for point, scores in zip(points, predictions.scores, strict=True):
        if targets.ndim == 2:
            shares = average_precisions(scores, targets).tolist()
            totals = targets[counted].sum(0).int().tolist()
        else:
            best = scores[counted].sort(dim=-1, descending=True, stable=True).indices[:, 0]
            matrix = np.zeros((config.num_labels, config.num_labels), dtype=np.int64)
            np.add.at(matrix, (targets[counted].numpy(), best.numpy()), 1)
            totals = matrix.sum(1).tolist()
            shares = [hits / total if total else "" for hits, total in zip(matrix.diagonal(), totals, strict=True)]
            body = ([name, *line] for name, line in zip(names, matrix.tolist(), strict=True))
            write_csv(output_dir / f"confusion_{point}.csv", ["true / predicted", *names], body)
        rows += [
            [str(point), name, total, share if total else ""]
            for name, total, share in zip(names, totals, shares, strict=True)
        ]
    metric = "average_precision" if targets.ndim == 2 else "accuracy"
    write_csv(output_dir / "per_class.csv", ["point", "label", "clips", metric], rows)
