# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Finds, for each token budget, how many frames of which size it is best spent on, and writes that plan down.

    accelerate launch -m training.optimize_tokens --model_name_or_path CHECKPOINT --data val.csv \\
        --token_budgets 2048 1024 512

The same number of tokens can be kept of a few large frames or of many small ones. Every pair of the grid is measured on
a validation split (never the test split: the best of many is picked), each clip being decoded once for all of them. A
pair with fewer tokens than the budget does not spend it and is left out (the paper prints those in grey), unless the
whole grid has too few. Equal accuracy goes to the pair with fewer dense tokens, then to fewer frames.

Without --output_dir the plan goes into the checkpoint itself: `token_plan` in config.json and in the video processor's
settings, where pipeline and processor find it; budgets not searched keep the entries they had. With --output_dir a copy
of the checkpoint with the plan is written there. Beside it lies token_plan_search.json with every pair's accuracy.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .command_line import (
    add_data_arguments,
    count,
    describe_run,
    format_table,
    load_checkpoint,
    new_parser,
    read_labelled_clips,
    run_model,
)
from .engine.checkpoint import publish, write_json
from .inference.prediction import EvalPoint, default_shape, evaluate_scores, label_targets, resolve_point


FRAMES = (4, 6, 8, 10, 12, 16, 20, 24)
PATCHES_A_SIDE = (12, 14, 16, 18)  # 168, 196, 224 and 252 pixels of patches of 14
SEARCH_FILE = "token_plan_search.json"
# Where a processor's settings may be, and under which key of the file; transformers looks in this order.
PROCESSOR_FILES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
)


# The search ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BudgetSearch:
    """What was found for one budget; accuracies as shares of 1."""

    token_budget: int
    measured: dict[EvalPoint, float]
    too_few_tokens: tuple[EvalPoint, ...]  # left out
    best: EvalPoint
    direct: EvalPoint  # the default clip at this budget
    direct_accuracy: float


def candidates(grid: Sequence[EvalPoint], config: FluxViTConfig) -> tuple[list[EvalPoint], list[EvalPoint]]:
    """Points of one budget that spend it, and those with too few tokens to; if none has enough, all are candidates."""
    enough = [point for point in grid if point.dense_tokens(config) >= point.token_budget]
    if not enough:
        return list(grid), []
    return enough, [point for point in grid if point not in enough]


def best_point(measured: dict[EvalPoint, float], config: FluxViTConfig) -> EvalPoint:
    """The most accurate point; of equals the one with fewer dense tokens, then fewer frames."""
    return min(measured, key=lambda point: (-measured[point], point.dense_tokens(config), point.num_frames))


def make_grid(
    config: FluxViTConfig, frames: Sequence[int] | None = None, sizes: Sequence[int] | None = None
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


def search_report(search: BudgetSearch, model: FluxViTForVideoClassification) -> dict[str, Any]:
    """One budget of token_plan_search.json."""

    def describe(point: EvalPoint, accuracy: float | None) -> dict[str, Any]:
        return {
            "num_frames": point.num_frames,
            "size": point.size,
            "dense_tokens": point.dense_tokens(model.config),
            "kept_tokens": point.kept_tokens(model.config),
            "gflops_per_view": model.flops(point.num_frames, point.size, point.token_budget) / 1e9,
            "accuracy": accuracy,
        }

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


# Writing the plan ----------------------------------------------------------------------------------------------------


def write_plan(checkpoint: Path, plan: dict[int, list[int]]) -> dict[int, list[int]]:
    """Enters a plan into a checkpoint's config.json and its processor's settings, each file replaced in one go.

    Entries for other budgets stay. Everything else in the files stays as it is.

    Returns:
        The whole plan that the checkpoint now has.

    Raises:
        ValueError: the plan does not fit the model, or the folder has no processor's settings.
    """
    config_file = checkpoint / "config.json"
    config = json.loads(config_file.read_text())
    whole = {**FluxViTConfig.from_dict(config).token_plan, **plan} if config.get("token_plan") else dict(plan)
    whole = {budget: whole[budget] for budget in sorted(whole, reverse=True)}
    FluxViTConfig.from_dict({**config, "token_plan": whole})
    for name, key in PROCESSOR_FILES:
        file = checkpoint / name
        content = json.loads(file.read_text()) if file.is_file() else None
        if content is not None and (key is None or key in content):
            break
    else:
        raise ValueError(f"{checkpoint} has none of {[name for name, _ in PROCESSOR_FILES]}")
    (content if key is None else content[key])["token_plan"] = whole
    write_json(file, content)
    write_json(config_file, {**config, "token_plan": whole})
    return whole


def save_results(
    model: FluxViTForVideoClassification,
    processor: FluxViTVideoProcessor,
    plan: dict[int, list[int]],
    report: dict[str, Any],
    checkpoint: str,
    output_dir: Path | None,
) -> Path:
    """Writes plan and report into the checkpoint, or into a copy of it at `output_dir`. Returns the folder."""
    if output_dir is None:
        target = Path(checkpoint)
        report = {**report, "token_plan": write_plan(target, plan)}
        write_json(target / SEARCH_FILE, report)
        return target
    output_dir.mkdir(parents=True, exist_ok=True)
    staging = output_dir / f".staging.{os.getpid()}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    write_json(staging / SEARCH_FILE, {**report, "token_plan": write_plan(staging, plan)})
    publish(staging, output_dir)
    return output_dir


# The command ---------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags. Raises ValueError where the plan could not be written in the end."""
    parser = new_parser(__doc__)
    add_data_arguments(parser)
    parser.add_argument("--token_budgets", type=count, nargs="+", help="the model's trained ones if not given")
    parser.add_argument("--frames", type=count, nargs="+", help=f"{FRAMES} if not given")
    parser.add_argument("--sizes", type=count, nargs="+", help=f"sides of {PATCHES_A_SIDE} patches if not given")
    parser.add_argument("--output_dir", type=Path, help="write a copy of the checkpoint, with the plan, here")
    args = parser.parse_args(arguments)
    if args.output_dir is None and not Path(args.model_name_or_path).is_dir():
        raise ValueError(f"{args.model_name_or_path!r} is no folder to write a plan into: give --output_dir")
    if args.output_dir is not None and args.output_dir.exists() and any(args.output_dir.iterdir()):
        raise ValueError(f"--output_dir {str(args.output_dir)!r} holds files: give a new folder")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(args.model_name_or_path, accelerator)
    config = model.config
    budgets = sorted(set(args.token_budgets or config.token_budgets), reverse=True)
    grid = make_grid(config, args.frames, args.sizes)
    default = default_shape(config, processor)
    splits = [candidates([EvalPoint(*pair, budget) for pair in grid], config) for budget in budgets]
    directs = [resolve_point(config, processor, default.num_frames, default.size, budget) for budget in budgets]
    points = list(dict.fromkeys([*(point for measured, _ in splits for point in measured), *directs]))

    clips = read_labelled_clips(args)
    targets = label_targets(clips, config)
    predictions = run_model(model, processor, clips, points, accelerator, args)
    metric = "mean_average_precision" if targets.ndim == 2 else "top1"
    accuracies = {
        point: evaluate_scores(scores, targets)[metric]
        for point, scores in zip(points, predictions.scores, strict=True)
    }
    searches = []
    for budget, (chosen, left_out), direct in zip(budgets, splits, directs, strict=True):
        measured = {point: accuracies[point] for point in chosen}
        best = best_point(measured, config)
        searches.append(BudgetSearch(budget, measured, tuple(left_out), best, direct, accuracies[direct]))
    if accelerator.is_main_process:
        plan = {search.token_budget: [search.best.num_frames, search.best.size] for search in searches}
        report = {
            **describe_run(args, accelerator, predictions),
            "metric": metric,
            "budgets": [search_report(search, model) for search in searches],
        }
        target = save_results(model, processor, plan, report, args.model_name_or_path, args.output_dir)
        print("\n\n".join(map(search_table, searches)))
        print(f"\nplan written into {target}: {plan}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
