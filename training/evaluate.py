# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Measures a checkpoint's accuracy at one or more points (frames, size, token budget).

    accelerate launch -m training.evaluate --model_name_or_path CHECKPOINT --data val.csv --output_dir results \\
        --points 8x224@2048 8x224@1024 16x196@512 --num_clips 4 --num_crops 3

Every clip is decoded once for all points and counts once, on any number of processes. Writes metrics.json,
predictions.csv, accuracy_gflops.png and, with --per_class, per_class.csv and a confusion matrix a point. Without
--points, --token_budgets and --use_token_plan the points are the model's own clip at each of its trained budgets.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from flux_hf.checkpoint_files import write_csv, write_json
from flux_hf.protocol import VideoTokenClassifier
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import (
    CheckpointArguments,
    LoaderArguments,
    SourceArguments,
    ViewArguments,
    check_source,
    flag,
    parse_groups,
)
from .data.reader import Clip
from .data.targets import label_targets
from .inference.command import describe_run, load_checkpoint, read_labelled_clips, run_model
from .inference.points import EvalPoint, resolve_point
from .inference.prediction import Predictions
from .inference.report import draw_results, point_results, prediction_rows, results_table, write_class_report


@dataclass
class PointArguments:
    output_dir: str | None = flag(None, "where the results go (required)")
    points: list[str] | None = flag(None, "FRAMESxSIZE@BUDGET, such as 8x224@2048")
    token_budgets: list[int] | None = flag(None, "at --num_frames and --size")
    num_frames: int | None = flag(None, "frames of a view; the model's default if not given")
    size: int | None = flag(None, "side of a view in pixels; the model's default if not given")
    use_token_plan: bool = flag(False, "the clips that optimize_tokens chose, of --token_budgets or all")
    per_class: bool = flag(False, "also report every class, and confusion matrices")


GROUPS = (CheckpointArguments, SourceArguments, LoaderArguments, ViewArguments, PointArguments)


def parse_arguments(arguments: list[str] | None = None) -> tuple:
    """The groups of flags. Raises ValueError for two ways to give the points, or one that cannot be read."""
    groups = parse_groups(GROUPS, __doc__, arguments)
    args = groups[-1]
    check_source(groups[1])
    if args.output_dir is None:
        raise ValueError("--output_dir must be given")
    clip = [name for name in ("num_frames", "size") if getattr(args, name) is not None]
    if args.points and (clip or args.token_budgets or args.use_token_plan):
        raise ValueError("--points says it all: not together with --token_budgets, --num_frames, --size or a plan")
    if args.use_token_plan and clip:
        raise ValueError(f"--use_token_plan sets frames and size, got --{clip[0]} {getattr(args, clip[0])} too")
    for text in args.points or []:
        try:
            EvalPoint.parse(text)
        except ValueError as error:
            raise ValueError(f"--points: {error}") from error
    return groups


def choose_points(args: PointArguments, config: Any, processor: FluxViTVideoProcessor) -> list[EvalPoint]:
    """The points that the flags ask for, each once.

    Raises:
        ValueError: a point the model cannot take, or a budget that its plan does not hold.
    """
    if args.use_token_plan:
        plan = config.token_plan or {}
        budgets = args.token_budgets or sorted(plan, reverse=True)
        missing = [budget for budget in budgets if budget not in plan]
        if not plan:
            raise ValueError("the checkpoint has no token plan: training.optimize_tokens makes one")
        if missing:
            raise ValueError(f"--token_budgets must be some of the plan's {sorted(plan)}, got {missing}")
        points = [EvalPoint(*plan[budget], budget) for budget in budgets]
    elif args.points:
        points = [EvalPoint.parse(text) for text in args.points]
    else:
        clip = resolve_point(config, processor, args.num_frames, args.size)
        points = [
            EvalPoint(clip.num_frames, clip.size, budget) for budget in args.token_budgets or config.token_budgets
        ]
    for point in points:
        point.dense_tokens(config)
    return list(dict.fromkeys(points))


def evaluate(
    model: VideoTokenClassifier,
    processor: FluxViTVideoProcessor,
    clips: Sequence[Clip],
    points: Sequence[EvalPoint],
    accelerator: Accelerator,
    views: ViewArguments,
    num_workers: int,
) -> tuple[list[dict[str, Any]], Predictions, Tensor]:
    """Measures a model (collective). Returns each point's results, the predictions, and the clips' targets."""
    targets = label_targets(clips, model.config)
    predictions = run_model(model, processor, clips, points, accelerator, views, num_workers)
    return point_results(model, points, predictions, targets), predictions, targets


def main(arguments: list[str] | None = None) -> None:
    checkpoint, source, loader, views, args = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(checkpoint, accelerator)
    config, output_dir = model.config, Path(args.output_dir)
    points = choose_points(args, config, processor)
    clips = read_labelled_clips(source, views)

    start = time.perf_counter()
    results, predictions, targets = evaluate(
        model, processor, clips, points, accelerator, views, loader.dataloader_num_workers
    )
    seconds = time.perf_counter() - start
    if accelerator.is_main_process:
        columns = ["point", "name", "label", "predicted", "score", "top5", "error"]
        rows = prediction_rows(clips, points, predictions, targets, config)
        write_csv(output_dir / "predictions.csv", columns, rows)
        if args.per_class:
            write_class_report(output_dir, points, predictions, targets, config)
        title = f"{checkpoint.model_name_or_path}, {views.num_clips} x {views.num_crops} views"
        draw_results(output_dir / "accuracy_gflops.png", results, title)
        # last: a folder with metrics.json has the rest too
        run = describe_run(checkpoint, source, views, accelerator, predictions)
        write_json(output_dir / "metrics.json", {**run, "seconds": round(seconds, 1), "points": results})
        print(results_table(results))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
