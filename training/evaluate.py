# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Measures a checkpoint's accuracy at one or more points (frames, size, token budget).

    accelerate launch -m training.evaluate --model_name_or_path CHECKPOINT --data val.csv --output_dir results \\
        --points 8x224@2048 8x224@1024 16x196@512 --num_clips 4 --num_crops 3

Every clip is decoded once for all points and counts once, on any number of processes. Writes metrics.json,
predictions.csv, accuracy_gflops.png and, with --per_class, per_class.csv and a confusion matrix a point. Without
--points, --token_budgets and --use_token_plan the points are the model's own clip at each of its trained budgets.

`--token_budgets auto 3072` also measures budgets that choose themselves, by what training.optimize_tokens --auto
calibrated: each clip's scores are those of the budget that it stops at, and the GFLOPs those of all passes on the way.
Here, and here alone, every clip is encoded at all of the steps, which are points themselves.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed
from torch import Tensor

from flux_hf.auto_budgets import AUTO, as_budgets
from flux_hf.checkpoint_files import replacing_folder, write_csv, write_json
from flux_hf.protocol import VideoTokenClassifier
from flux_hf.token_selection import TOKEN_SELECTORS
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import InferenceArguments, flag, parse_command
from .data.reader import Clip
from .data.sources import spread
from .data.targets import label_targets
from .inference.automatic import add_auto, auto_points
from .inference.command import describe_run, list_clips, load_checkpoint, model_predictor, start_accelerator
from .inference.points import EvalPoint, resolve_point
from .inference.prediction import Predictions, Predictor
from .inference.report import (
    PREDICTION_COLUMNS,
    draw_results,
    point_results,
    prediction_rows,
    results_table,
    write_class_report,
)


@dataclass
class EvaluateArguments(InferenceArguments):
    output_dir: str | None = flag(None, "where the results go (required)")
    points: list[str] | None = flag(None, "FRAMESxSIZE@BUDGET, such as 8x224@2048")
    token_budgets: list[str] | None = flag(None, "at --num_frames and --size; auto: what each clip needs")
    num_frames: int | None = flag(None, "frames of a view; the model's default if not given")
    size: int | None = flag(None, "side of a view in pixels; the model's default if not given")
    use_token_plan: bool = flag(False, "the clips that optimize_tokens chose, of --token_budgets or all")
    per_class: bool = flag(False, "also report every class, and confusion matrices")
    token_selection: str | None = flag(None, "selector in place of the model's own", list(TOKEN_SELECTORS))
    token_threshold: float | None = flag(None, "of the threshold selector, in place of the model's own")
    seed: int = flag(0, "of the selectors that draw at random")

    def __post_init__(self):
        if self.token_budgets is not None:
            self.token_budgets = as_budgets("--token_budgets", self.token_budgets)

    @property
    def fixed_budgets(self) -> list[int]:
        """The numbers among --token_budgets."""
        return [budget for budget in self.token_budgets or () if budget != AUTO]

    @property
    def auto(self) -> bool:
        return AUTO in (self.token_budgets or ())


def parse_arguments(arguments: list[str] | None = None) -> EvaluateArguments:
    """The flags. Raises ValueError for two ways to give the points, or one that cannot be read."""
    args = parse_command(EvaluateArguments, __doc__, arguments)
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
    return args


def choose_points(args: EvaluateArguments, config: Any, processor: FluxViTVideoProcessor) -> list[EvalPoint]:
    """The points that the flags ask for, each once.

    Raises:
        ValueError: a point the model cannot take, or a budget that its plan does not hold; or automatic budgets that it
            is not calibrated for.
    """
    steps = auto_points(config, args.num_frames, args.size) if args.auto else []
    if steps and not (args.fixed_budgets or args.use_token_plan):
        points = []
    elif args.use_token_plan:
        plan = config.token_plan or {}
        budgets = args.fixed_budgets or sorted(plan, reverse=True)
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
            EvalPoint(clip.num_frames, clip.size, budget) for budget in args.fixed_budgets or config.token_budgets
        ]
    for point in points:
        point.dense_tokens(config)
    return list(dict.fromkeys([*points, *steps]))


def replace_selector(config: Any, name: str | None, threshold: float | None) -> None:
    """Puts another selector in place of the model's own, for this run.

    Raises:
        ValueError: the threshold selector without a threshold, one that cannot be, or one for another selector.
    """
    config.token_selection = name or config.token_selection
    if threshold is not None and not config.selects_by_threshold:
        raise ValueError(f"--token_threshold {threshold} is for the threshold selector, not {config.token_selection!r}")
    config.token_threshold = config.token_threshold if threshold is None else threshold
    config.validate_selection()


def evaluate(
    model: VideoTokenClassifier, predict: Predictor, clips: Sequence[Clip], points: Sequence[EvalPoint]
) -> tuple[list[dict[str, Any]], Predictions, Tensor]:
    """Measures a model (collective). Returns each point's results, the predictions, and the clips' targets."""
    targets = label_targets(clips, model.config)
    predictions = predict(clips, points)
    return point_results(model, points, predictions, targets), predictions, targets


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = start_accelerator()
    model, processor = load_checkpoint(args, accelerator)
    config = model.config
    replace_selector(config, args.token_selection, args.token_threshold)
    set_seed(args.seed, device_specific=True)  # what a process draws; its clips are others than its neighbours'
    points = choose_points(args, config, processor)
    clips = spread(list_clips(args), args.max_eval_samples)

    start = time.perf_counter()
    predict = model_predictor(model, processor, accelerator, args, args.dataloader_num_workers)
    results, predictions, targets = evaluate(model, predict, clips, points)
    auto = None
    if args.auto:
        auto, points, predictions = add_auto(model, points, predictions, targets)
    seconds = time.perf_counter() - start
    if accelerator.is_main_process:
        title = f"{args.model_name_or_path}, {args.num_clips} x {args.num_crops} views"
        run = describe_run(args, accelerator, predictions)
        with replacing_folder(args.output_dir) as folder:
            rows = prediction_rows(clips, points, predictions, targets, config)
            write_csv(folder / "predictions.csv", PREDICTION_COLUMNS, rows)
            if args.per_class:
                write_class_report(folder, points, predictions, targets, config)
            draw_results(folder / "accuracy_gflops.png", results, title, auto)
            run |= {"token_selection": config.token_selection, "token_threshold": config.token_threshold}
            run |= {"seed": args.seed, "seconds": round(seconds, 1)}
            write_json(folder / "metrics.json", {**run, "points": results, "auto": auto})
        print(results_table(results, auto))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
