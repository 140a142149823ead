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

    accelerate launch -m training.optimize_tokens --model_name_or_path CHECKPOINT --data val.csv --auto

calibrates budgets that choose themselves instead (`token_budget="auto"`): a clip is encoded at few tokens, and at more
where the model is not sure. Measured at each of --token_budgets, on one clip shape: --frames and --sizes of one value,
else the plan's for the largest budget, else the default clip. A temperature is fitted for each budget, and of all ways
through some of them, with thresholds between, the one of least mean GFLOPs is taken that is within --auto_tolerance
points of the largest budget's accuracy, or reaches --auto_target, each by a standard error. It goes into `auto_budgets`
of config.json, and auto_budgets_calibration.json lies beside it. Use the views here that the model is used with.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from flux_hf.auto_budgets import BudgetLadder, check_one_label
from flux_hf.checkpoint_files import finish_replacing, replacing_folder, write_json
from flux_hf.loading import CLASSIFIERS
from flux_hf.protocol import check_exact_budgets
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import InferenceArguments, flag, parse_command
from .data.reader import Clip
from .data.sources import spread
from .data.targets import label_targets
from .inference.calibration import Wanted, auto_shape, calibrate, calibration_report, calibration_table
from .inference.command import describe_run, list_clips, load_checkpoint, model_predictor, start_accelerator
from .inference.points import EvalPoint
from .inference.prediction import Predictor
from .inference.search import FRAMES, PATCHES_A_SIDE, make_grid, search, search_report, search_table


SEARCH_FILE, CALIBRATION_FILE = "token_plan_search.json", "auto_budgets_calibration.json"
# Where a processor's settings may be, and under which key of the file; transformers looks in this order.
PROCESSOR_FILES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
)


@dataclass
class SearchArguments(InferenceArguments):
    token_budgets: list[int] | None = flag(None, "the model's trained ones if not given")
    frames: list[int] | None = flag(None, f"{FRAMES} if not given")
    sizes: list[int] | None = flag(None, f"sides of {PATCHES_A_SIDE} patches if not given")
    auto: bool = flag(False, "calibrate budgets that choose themselves")
    auto_tolerance: float | None = flag(None, "with --auto, points below the largest budget's accuracy (0.5)")
    auto_target: float | None = flag(None, "with --auto, in its place: accuracy to reach, in percent")
    output_dir: str | None = flag(None, "write a copy of the checkpoint, with the plan, here")


def parse_arguments(arguments: list[str] | None = None) -> SearchArguments:
    """The flags. Raises ValueError where the plan could not be written in the end."""
    args = parse_command(SearchArguments, __doc__, arguments)
    checkpoint, output_dir = args.model_name_or_path, args.output_dir
    given = [name for name in ("auto_tolerance", "auto_target") if getattr(args, name) is not None]
    if given and not args.auto:
        raise ValueError(f"--{given[0]} {getattr(args, given[0])} is for --auto")
    if len(given) == 2:
        raise ValueError(f"give --auto_tolerance or --auto_target, got {args.auto_tolerance} and {args.auto_target}")
    for name in given:
        if not 0 <= getattr(args, name) <= 100:
            raise ValueError(f"--{name} must be in [0, 100], got {getattr(args, name)}")
    if output_dir is None and not Path(checkpoint or "").is_dir():
        raise ValueError(f"{checkpoint!r} is no folder to write a plan into: give --output_dir")
    if output_dir is not None and Path(output_dir).exists() and any(Path(output_dir).iterdir()):
        raise ValueError(f"--output_dir {output_dir!r} holds files: give a new folder")
    return args


def check_writable(checkpoint: Path) -> None:
    """Raises ValueError for a folder of the library's own encoder, which has no place for a plan."""
    model_type = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type not in CLASSIFIERS:
        raise ValueError(f"{checkpoint} is a plain {model_type}, without a place for a plan: give --output_dir")


def write_plan(checkpoint: Path, plan: dict[int, list[int]]) -> dict[int, list[int]]:
    """Enters a plan into a checkpoint's config.json and its processor's settings, each file replaced in one go.

    Entries for other budgets stay. Everything else in the files stays as it is.

    Returns:
        The whole plan that the checkpoint now has.

    Raises:
        ValueError: the plan does not fit the model, or the folder has no processor's settings.
    """
    config_file = checkpoint / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    kind = CLASSIFIERS[config["model_type"]].config_class
    whole = {**kind.from_dict(config).token_plan, **plan} if config.get("token_plan") else dict(plan)
    whole = {budget: whole[budget] for budget in sorted(whole, reverse=True)}
    kind.from_dict({**config, "token_plan": whole})
    for name, key in PROCESSOR_FILES:
        file = checkpoint / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if content is not None and (key is None or key in content):
            break
    else:
        raise ValueError(f"{checkpoint} has none of {[name for name, _ in PROCESSOR_FILES]}")
    (content if key is None else content[key])["token_plan"] = whole
    write_json(file, content)
    write_json(config_file, {**config, "token_plan": whole})
    return whole


def write_auto_budgets(checkpoint: Path, ladder: BudgetLadder) -> dict[str, Any]:
    """Enters automatic budgets into a checkpoint's config.json, replaced in one go. Returns them.

    Raises:
        ValueError: they do not fit the model.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["auto_budgets"] = ladder.to_config()
    CLASSIFIERS[config["model_type"]].config_class.from_dict(config)
    write_json(checkpoint / "config.json", config)
    return config["auto_budgets"]


def save_results(
    model: PreTrainedModel,
    processor: FluxViTVideoProcessor,
    args: SearchArguments,
    report: dict[str, Any],
    file: str,
    enter: Callable[[Path], dict[str, Any]],
) -> Path:
    """Writes what was found into the checkpoint, or into a copy of it at `output_dir`, in one go.

    Args:
        model, processor: Of the checkpoint.
        args: The flags.
        report: Goes into `file`.
        file: Name of the report.
        enter: Enters what was found into a checkpoint folder, and returns what the report says of that.

    Returns:
        The folder.
    """
    target = Path(args.output_dir or args.model_name_or_path)
    with replacing_folder(target) as folder:
        if args.output_dir is not None:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        write_json(folder / file, {**report, **enter(folder)})
    return target


def optimize_plan(
    args: SearchArguments, accelerator: Accelerator, model: PreTrainedModel, predict: Predictor, clips: Sequence[Clip]
) -> str:
    """Finds each budget's clip and writes the plan down (collective). Returns what to print."""
    budgets = sorted(set(args.token_budgets or model.config.token_budgets), reverse=True)
    grid = make_grid(model.config, args.frames, args.sizes)
    searches, predictions = search(model, predict, clips, budgets, grid)
    if not accelerator.is_main_process:
        return ""
    plan = {found.token_budget: [found.best.num_frames, found.best.size] for found in searches}
    report = {
        **describe_run(args, accelerator, predictions),
        "metric": searches[0].metric,
        "budgets": [search_report(found, model) for found in searches],
    }

    def enter(folder: Path) -> dict[str, Any]:
        return {"token_plan": write_plan(folder, plan)}

    target = save_results(model, predict.processor, args, report, SEARCH_FILE, enter)
    tables = "\n\n".join(map(search_table, searches))
    return f"{tables}\n\nplan written into {target}: {plan}"


def calibrate_auto(
    args: SearchArguments, accelerator: Accelerator, model: PreTrainedModel, predict: Predictor, clips: Sequence[Clip]
) -> str:
    """Calibrates budgets that choose themselves and writes them down (collective). Returns what to print.

    Raises:
        ValueError: a model without one label a clip, or what `calibrate` raises.
    """
    check_one_label(model.config)
    budgets = sorted(set(args.token_budgets or model.config.token_budgets))
    shape = auto_shape(model.config, predict.processor, budgets[-1], args.frames, args.sizes)
    targets = label_targets(clips, model.config)
    predictions = predict(clips, [EvalPoint(shape.num_frames, shape.size, budget) for budget in budgets])
    decoded = predictions.decoded
    if not decoded.any():
        raise ValueError(f"none of {len(clips)} clips could be decoded")
    if args.auto_target is None:
        wanted = Wanted(tolerance=(0.5 if args.auto_tolerance is None else args.auto_tolerance) / 100)
    else:
        wanted = Wanted(target=args.auto_target / 100)
    found = calibrate(model, shape, budgets, predictions.scores[:, decoded], targets[decoded], wanted)
    if not accelerator.is_main_process:
        return ""
    report = {**describe_run(args, accelerator, predictions), "wanted": asdict(wanted), **calibration_report(found)}

    def enter(folder: Path) -> dict[str, Any]:
        return {"auto_budgets": write_auto_budgets(folder, found.ladder)}

    target = save_results(model, predict.processor, args, report, CALIBRATION_FILE, enter)
    return f"{calibration_table(found)}\n\nauto_budgets written into {target}"


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = start_accelerator()
    if args.output_dir is None and accelerator.is_main_process:
        finish_replacing(args.model_name_or_path)  # else what a killed run left half-way could not be loaded
    accelerator.wait_for_everyone()
    model, processor = load_checkpoint(args, accelerator)
    check_exact_budgets(model, "a search")
    if args.output_dir is None:
        check_writable(Path(args.model_name_or_path))
    clips = spread(list_clips(args), args.max_eval_samples)
    predict = model_predictor(model, processor, accelerator, args, args.dataloader_num_workers)
    said = (calibrate_auto if args.auto else optimize_plan)(args, accelerator, model, predict, clips)
    if accelerator.is_main_process:
        print(said)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
