# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Measures a checkpoint's accuracy at one or more points (frames, size, token budget).

    accelerate launch -m training.evaluate --model_name_or_path CHECKPOINT --data val.csv --output_dir results \\
        --points 8x224@2048 8x224@1024 16x196@512 --num_clips 4 --num_crops 3

Every clip is decoded once for all points and counts once, on any number of processes. Writes metrics.json,
predictions.csv, accuracy_gflops.png and, with --per_class, per_class.csv and a confusion matrix a point. Without
--points, --token_budgets and --use_token_plan the points are the model's own clip at each of its trained budgets.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .command_line import (
    add_data_arguments,
    count,
    describe_run,
    eval_point,
    format_table,
    load_checkpoint,
    new_parser,
    read_labelled_clips,
    run_model,
    temporary_name,
    write_csv,
)
from .data.reader import Clip
from .engine.checkpoint import write_json
from .inference.prediction import (
    EvalPoint,
    Predictions,
    average_precisions,
    evaluate_scores,
    label_targets,
    resolve_point,
)


METRIC_NAMES = {"top1": "top-1", "top5": "top-5", "mean_average_precision": "mAP"}


# Arguments -----------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags. Raises ValueError for two ways to give the points."""
    parser = new_parser(__doc__)
    add_data_arguments(parser)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--points", type=eval_point, nargs="+", help="FRAMESxSIZE@BUDGET, such as 8x224@2048")
    parser.add_argument("--token_budgets", type=count, nargs="+", help="at --num_frames and --size")
    parser.add_argument("--num_frames", type=count, help="frames of a view; the model's default if not given")
    parser.add_argument("--size", type=count, help="side of a view in pixels; the model's default if not given")
    parser.add_argument(
        "--use_token_plan", action="store_true", help="the clips that optimize_tokens chose, of --token_budgets or all"
    )
    parser.add_argument("--per_class", action="store_true", help="also report every class, and confusion matrices")
    args = parser.parse_args(arguments)
    clip = [name for name in ("num_frames", "size") if getattr(args, name) is not None]
    if args.points and (clip or args.token_budgets or args.use_token_plan):
        raise ValueError("--points says it all: not together with --token_budgets, --num_frames, --size or a plan")
    if args.use_token_plan and clip:
        raise ValueError(f"--use_token_plan sets frames and size, got --{clip[0]} {getattr(args, clip[0])} too")
    return args


def choose_points(args: argparse.Namespace, config: FluxViTConfig, processor: FluxViTVideoProcessor) -> list[EvalPoint]:
    """The points that the flags ask for, each once.

    Raises:
        ValueError: a point the model cannot take, or a budget that its plan does not hold.
    """
    if args.use_token_plan:
        plan = config.token_plan or {}
        budgets = args.token_budgets or sorted(plan, reverse=True)
        missing = [budget for budget in budgets if budget not in plan]
        if not plan:
            raise ValueError(f"{args.model_name_or_path} has no token plan: training.optimize_tokens makes one")
        if missing:
            raise ValueError(f"--token_budgets must be some of the plan's {sorted(plan)}, got {missing}")
        points = [EvalPoint(*plan[budget], budget) for budget in budgets]
    elif args.points:
        points = args.points
    else:
        clip = resolve_point(config, processor, args.num_frames, args.size)
        points = [
            EvalPoint(clip.num_frames, clip.size, budget) for budget in args.token_budgets or config.token_budgets
        ]
    for point in points:
        point.dense_tokens(config)
    return list(dict.fromkeys(points))


# Results -------------------------------------------------------------------------------------------------------------


def point_results(
    model: FluxViTForVideoClassification, points: Sequence[EvalPoint], predictions: Predictions, targets: Tensor
) -> list[dict[str, Any]]:
    """What is known of each point: the clip, what it costs, how well it does."""
    return [
        {
            "point": str(point),
            "num_frames": point.num_frames,
            "size": point.size,
            "token_budget": point.token_budget,
            "dense_tokens": point.dense_tokens(model.config),
            "kept_tokens": point.kept_tokens(model.config),
            "gflops_per_view": model.flops(point.num_frames, point.size, point.token_budget) / 1e9,
            **evaluate_scores(scores, targets),
            "clips_counted": int(predictions.decoded.sum()),
            "failures": len(predictions.failures),
        }
        for point, scores in zip(points, predictions.scores, strict=True)
    ]


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """A row a point, for people."""
    metrics = [name for name in METRIC_NAMES if name in results[0]]
    rows = [["point", "tokens", "GFLOPs/view", *(METRIC_NAMES[name] for name in metrics), "clips"]]
    for result in results:
        tokens = f"{result['kept_tokens']} of {result['dense_tokens']}"
        shares = [f"{100 * result[name]:.2f}" for name in metrics]
        rows.append(
            [result["point"], tokens, f"{result['gflops_per_view']:.4g}", *shares, str(result["clips_counted"])]
        )
    return format_table(rows)


def prediction_rows(
    clips: Sequence[Clip],
    points: Sequence[EvalPoint],
    predictions: Predictions,
    targets: Tensor,
    config: FluxViTConfig,
) -> Iterator[list]:
    """Rows of predictions.csv: one a point and clip; `top5` is json, pairs of label and score."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    reasons = dict(predictions.failures)
    if targets.ndim == 2:
        labels = ["|".join(names[index] for index in row.nonzero()[:, 0].tolist()) for row in targets]
    else:
        labels = [names[index] for index in targets.tolist()]
    for point, scores in zip(points, predictions.scores, strict=True):
        values, indices = scores.sort(dim=-1, descending=True, stable=True)
        for clip, label, row, order in zip(clips, labels, values[:, :5].tolist(), indices[:, :5].tolist(), strict=True):
            if clip.name in reasons:
                yield [str(point), clip.name, label, "", "", "", reasons[clip.name]]
                continue
            best = [[names[index], score] for index, score in zip(order, row, strict=True)]
            yield [str(point), clip.name, label, best[0][0], best[0][1], json.dumps(best, ensure_ascii=False), ""]


def draw_results(path: Path, results: Sequence[dict[str, Any]], title: str) -> None:
    """Draws accuracy over GFLOPs, one line a clip shape through its budgets; written under a temporary name."""
    metric = next(name for name in METRIC_NAMES if name in results[0])
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for shape in dict.fromkeys((result["num_frames"], result["size"]) for result in results):
        line = [result for result in results if (result["num_frames"], result["size"]) == shape]
        line.sort(key=lambda result: result["gflops_per_view"])
        gflops = [result["gflops_per_view"] for result in line]
        shares = [100 * result[metric] for result in line]
        axes.plot(gflops, shares, marker="o", label=f"{shape[0]} frames of {shape[1]}x{shape[1]}")
        for x, y, result in zip(gflops, shares, line, strict=True):
            text = f"{result['kept_tokens']} tokens"
            axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 5), fontsize=8)
    axes.set(xlabel="GFLOPs a view", ylabel=f"{METRIC_NAMES[metric]} (%)", title=title)
    axes.margins(x=0.25, y=0.15)  # room for the texts
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    temporary = temporary_name(path)
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)


def write_class_report(
    output_dir: Path,
    points: Sequence[EvalPoint],
    predictions: Predictions,
    targets: Tensor,
    config: FluxViTConfig,
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


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(args.model_name_or_path, accelerator)
    config = model.config
    points = choose_points(args, config, processor)
    clips = read_labelled_clips(args)
    targets = label_targets(clips, config)

    start = time.perf_counter()
    predictions = run_model(model, processor, clips, points, accelerator, args)
    seconds = time.perf_counter() - start
    results = point_results(model, points, predictions, targets)
    if accelerator.is_main_process:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        columns = ["point", "name", "label", "predicted", "score", "top5", "error"]
        rows = prediction_rows(clips, points, predictions, targets, config)
        write_csv(args.output_dir / "predictions.csv", columns, rows)
        if args.per_class:
            write_class_report(args.output_dir, points, predictions, targets, config)
        views = f"{args.num_clips} x {args.num_crops} views"
        draw_results(args.output_dir / "accuracy_gflops.png", results, f"{args.model_name_or_path}, {views}")
        # last: a folder with metrics.json has the rest too
        run = describe_run(args, accelerator, predictions)
        write_json(args.output_dir / "metrics.json", {**run, "seconds": round(seconds, 1), "points": results})
        print(results_table(results))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
