# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's claim at a size for two CPU cores: flexible training against a fixed grid, at fewer and fewer tokens.

    python -m training.study --output_dir study_output --real_data FOLDER

Three ways to train the same small model on the same clips, each from several seeds: on one fixed clip shape, by
Flux-Single and by Flux-Multi. Each is measured on the test split at all, 1/2, 1/4 and 1/8 of its tokens, in three ways:
"direct", the default clip with the selector keeping the budget; "fewer frames" of that clip; and "TO", token
optimization: the number of frames and the size that did best at this budget on the validation split, the selector
keeping the budget. The test split chooses nothing.

The clips are the generator's (`motion_clips.py`), and with `--real_data` those of a folder with split.csv (columns
path,label,group,split), where training goes on from the same method and seed's model of the generator's clips.
Without a validation split there, some groups of the training split are held out once, to choose the shapes; the models
that are tested are then trained on all of it.

Everything that is finished is kept: run the command again and it goes on where it was. Writes results.json, results.md
and a plot a data set. Run from the top of the checkout; needs no network.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from flux_hf.checkpoint_files import write_json

from ..arguments import read_recipe
from .design import CLIPS, DEFAULT_METHODS, ENCODERS, METHODS, MODEL_CONFIGS, RECIPES
from .report import report
from .runs import Options, run_task
from .tasks import make_generator_task, make_real_task


def count(text: str) -> int:
    """A flag's whole number of at least 1; for argparse, which names flag and value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="results, and all that goes on from if killed")
    parser.add_argument("--real_data", type=Path, help="folder of real clips")
    parser.add_argument("--real_split_csv", default="split.csv", help="its table: path,label,group,split")
    parser.add_argument("--generator_only", action="store_true", help="leave the real clips out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--encoder", choices=ENCODERS, default="fluxvit", help="the model's kind, all of one size")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--jobs", type=count, default=min(os.cpu_count(), 4), help="runs at a time; they share the cores"
    )
    parser.add_argument(
        "--num_clips",
        nargs=3,
        type=count,
        default=[2400, 300, 600],
        help="of the generator: training, validation, test",
    )
    parser.add_argument("--max_train_steps", type=count, help="instead of the recipes' numbers, for a short try")
    args = parser.parse_args(arguments)
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ValueError(f"--seeds must be different numbers of at least 0, got {args.seeds}")
    return args


def keep_settings(output_dir: Path, args: argparse.Namespace) -> None:
    """Writes down what all runs of a study share.

    Raises:
        ValueError: the folder holds runs of other settings.
    """
    settings = {
        "model": MODEL_CONFIGS[args.encoder],
        "clips": json.loads(json.dumps(asdict(CLIPS))),
        "num_clips": list(args.num_clips),
        "max_train_steps": args.max_train_steps,
        "recipes": {path.name: read_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))},
    }
    file = output_dir / "settings.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name in settings if kept.get(name) != settings[name]]
        if other:
            raise ValueError(f"{output_dir} holds runs of a study with other {other}: give a new --output_dir")
    write_json(file, settings)
    write_json(output_dir / "model_config.json", MODEL_CONFIGS[args.encoder])


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    begin = time.perf_counter()
    output_dir = args.output_dir.absolute()
    keep_settings(output_dir, args)
    options = Options(output_dir, max(1, os.cpu_count() // args.jobs), args.max_train_steps, args.encoder)
    tasks = [make_generator_task(output_dir, args.num_clips)]
    if args.real_data is not None and not args.generator_only:
        tasks.append(make_real_task(output_dir, args.real_data, args.real_split_csv))
    results = {}
    for task in tasks:
        results[task.name] = run_task(task, args.methods, args.seeds, args.jobs, options)
        text = report(output_dir, results, args.seeds, args.encoder)
    print(f"\n{text}\nresults: {output_dir}; {(time.perf_counter() - begin) / 60:.0f} min")


if __name__ == "__main__":
    main()
