# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's claim at a size for two CPU cores: flexible training against a fixed grid, at fewer and fewer tokens.

    python -m training.study --output_dir study_output --real_data FOLDER ...

The same small model is trained on the same clips, from several seeds: on one fixed clip shape, for as many steps as the
others and for as many multiply-adds as Flux-Multi; by Flux-Single; by Flux-Multi without and with alignment. Each is
measured on test clips at all, 1/2, 1/4 and 1/8 of its tokens, in three ways: "direct", the default clip with the
selector keeping the budget; "fewer frames" of that clip; and "TO", token optimization: the number of frames and the
size that did best at this budget on other clips, the selector keeping the budget. Test clips choose nothing.

The clips are the generator's (`motion_clips.py`), and those of each folder of --real_data with split.csv (columns
path,label,group), parted by groups, each part tested by a model trained on the others: from scratch, and from the same
method and seed's model of the generator's clips.

Everything that is finished is kept: run the command again and it goes on where it was. What a run got right is kept in
--results_dir, with tables and plots of all that is there; a run that is kept there is not done again. With one thread a
run the figures are the same bit for bit on machines of one kind, whatever the number of cores. Run from the top of the
checkout; needs no network.
"""

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flux_hf.checkpoint_files import write_json

from ..arguments import read_recipe
from .design import CLIPS, ENCODERS, METHODS, MODEL_CONFIGS, RECIPES
from .records import Records
from .report import report
from .runs import Options, do_all
from .tasks import count, make_generator_task, make_real_tasks


NUM_CLIPS = (3200, 480, 960)
# To test the code: all of it, at a size that proves nothing.
QUICK = {"num_clips": (32, 16, 24), "share": 0.001, "num_folds": 2, "max_clips": 24, "seeds": (0,)}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="clips, models, and all that goes on if killed")
    parser.add_argument("--results_dir", type=Path, help="what runs got right, tables, plots; OUTPUT_DIR/results")
    parser.add_argument("--real_data", nargs="*", type=Path, default=[], help="folders of real clips")
    parser.add_argument("--real_split_csv", default="split.csv", help="their tables: path,label,group")
    parser.add_argument(
        "--num_folds", type=count, default=5, help="parts of a real set that take turns at being tested"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--encoder", choices=ENCODERS, default="fluxvit", help="the model's kind, all of one size")
    parser.add_argument("--seeds", nargs="+", type=int, help="0 to 4 if not given")
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--threads", type=count, default=1, help="of each run; others round otherwise")
    parser.add_argument(
        "--num_clips", nargs=3, type=count, default=list(NUM_CLIPS), help="of the generator: training, validation, test"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the recipes' steps: 2 trains twice as long")
    parser.add_argument("--quick", action="store_true", help="all of it at a size that only tests the code")
    parser.add_argument("--report_only", action="store_true", help="only tables and plots of what was done")
    args = parser.parse_args(arguments)
    args.max_clips = None
    if not args.share > 0:
        raise ValueError(f"--share must be above 0, got {args.share}")
    if args.quick:
        vars(args).update({**QUICK, "seeds": args.seeds or QUICK["seeds"]})
    args.seeds = list(range(5)) if args.seeds is None else list(args.seeds)
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ValueError(f"--seeds must be different numbers of at least 0, got {args.seeds}")
    args.output_dir = args.output_dir.absolute()
    args.results_dir = (args.results_dir or args.output_dir / "results").absolute()
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a study share."""
    return {
        "model": MODEL_CONFIGS[args.encoder],
        "clips": asdict(CLIPS),
        "num_clips": args.num_clips,
        "share_of_steps": args.share,
        "num_folds": args.num_folds,
        "max_clips": args.max_clips,
        "recipes": {path.name: read_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))},
    }


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    begin = time.perf_counter()
    records = Records(args.results_dir, settings_of(args))
    if not args.report_only:
        write_json(args.output_dir / "model_config.json", MODEL_CONFIGS[args.encoder])
        options = Options(args.output_dir, args.threads, args.share, args.encoder)
        made_up = make_generator_task(args.output_dir, args.num_clips)
        tasks = [made_up]
        for folder in args.real_data:
            parted = (args.real_split_csv, args.num_folds, made_up, args.max_clips)
            tasks += make_real_tasks(args.output_dir, folder, *parted)
        for task in tasks:
            do_all(task, args.methods, args.seeds, args.jobs, options, records)
    text = report(records, args.encoder)
    print(f"\n{text}\nresults: {args.results_dir}; {(time.perf_counter() - begin) / 60:.0f} min")


if __name__ == "__main__":
    main()
