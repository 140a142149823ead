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

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from flux_hf.checkpoint_files import replacing_folder, write_json
from flux_hf.loading import CLASSIFIERS
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import InferenceArguments, flag, parse_command
from .data.sources import spread
from .inference.command import describe_run, list_clips, load_checkpoint, model_predictor
from .inference.search import FRAMES, PATCHES_A_SIDE, make_grid, search, search_report, search_table


SEARCH_FILE = "token_plan_search.json"
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
    output_dir: str | None = flag(None, "write a copy of the checkpoint, with the plan, here")


def parse_arguments(arguments: list[str] | None = None) -> SearchArguments:
    """The flags. Raises ValueError where the plan could not be written in the end."""
    args = parse_command(SearchArguments, __doc__, arguments)
    checkpoint, output_dir = args.model_name_or_path, args.output_dir
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


def save_results(
    model: PreTrainedModel,
    processor: FluxViTVideoProcessor,
    plan: dict[int, list[int]],
    report: dict[str, Any],
    checkpoint: str,
    output_dir: Path | None,
) -> Path:
    """Writes plan and report into the checkpoint, or into a copy of it at `output_dir`. Returns the folder."""
    target = Path(checkpoint) if output_dir is None else output_dir
    with replacing_folder(target) as folder:
        if output_dir is not None:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        write_json(folder / SEARCH_FILE, {**report, "token_plan": write_plan(folder, plan)})
    return target


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(args, accelerator)
    if args.output_dir is None:
        check_writable(Path(args.model_name_or_path))
    budgets = sorted(set(args.token_budgets or model.config.token_budgets), reverse=True)
    grid = make_grid(model.config, args.frames, args.sizes)
    clips = spread(list_clips(args), args.max_eval_samples)
    predict = model_predictor(model, processor, accelerator, args, args.dataloader_num_workers)
    searches, predictions = search(model, predict, clips, budgets, grid)
    if accelerator.is_main_process:
        plan = {found.token_budget: [found.best.num_frames, found.best.size] for found in searches}
        report = {
            **describe_run(args, accelerator, predictions),
            "metric": searches[0].metric,
            "budgets": [search_report(found, model) for found in searches],
        }
        output_dir = None if args.output_dir is None else Path(args.output_dir)
        target = save_results(model, processor, plan, report, args.model_name_or_path, output_dir)
        print("\n\n".join(map(search_table, searches)))
        print(f"\nplan written into {target}: {plan}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
