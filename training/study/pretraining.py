# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Does pretraining without labels help where labels are few? At a size for two CPU cores.

    python -m training.study.pretraining --output_dir study_output

The teacher is the study's Flux-Multi of seed 0, trained with all labels of the generator's clips. Students of its size
learn its features of the same clips without labels, by Flux-UMT and on a fixed grid (all tokens of one clip shape), and
are then tuned by Flux-Multi with 5 % and 20 % of the labels; beside them the same tuning from scratch, for as many
steps in all. Each is measured on the study's test clips, direct and with token optimization.

What is finished is kept; a run whose record is in --results_dir is not done again.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flux_hf.checkpoint_files import write_csv, write_json, write_text

from ..arguments import read_recipe
from ..pretrain_arguments import PretrainArguments
from .__main__ import NUM_CLIPS
from .design import BUDGETS, MODEL_CONFIGS, TOKENS, WAYS, merged_recipe, points_of, with_steps
from .intervals import paired_difference
from .records import Records, machine, pack, unpack
from .report import spread, table
from .runs import Options, Run, evaluate, for_each_seed, search, train, train_by
from .tasks import Fold, Task, count, make_generator_task, read_rows


STARTS = {"scratch": "from scratch", "fixed": "fixed-grid pretraining", "flux": "Flux pretraining"}
SHARES = (0.05, 0.2)  # of the labels
TUNING_STEPS = 600
PRETRAINING = Path(__file__).parents[1] / "recipes" / "pretrain_small.yaml"
FIXED_GRID = {
    **{"sampling": "fixed", "frames": None, "sizes": None, "token_window": None},
    "student_budgets": [TOKENS],
}
MEASURED = ("direct", "to")


@dataclass(frozen=True)
class Setting:
    """What all runs share: the study's options, its generator's clips, the teacher's folder."""

    options: Options
    clips: Task
    teacher: Path


def name_of(share: float) -> str:
    """Of the records of a share of the labels."""
    return f"labels_{100 * share:02.0f}"


def pretraining_flags(start: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Of the pretraining whose student is tuned."""
    flags = read_recipe(PRETRAINING, PretrainArguments) | (FIXED_GRID if start == "fixed" else {})
    flags = with_steps(flags, setting.options.share)
    return flags | {
        "config_name": str(setting.options.output_dir / "model_config.json"),
        "teacher": str(setting.teacher),
        "data": str(setting.clips.folds[0].train),
        "validation_data": str(setting.clips.validation),
        "frame_cache": str(setting.options.output_dir / "frames"),
        "seed": seed,
    }


def tuning_flags(start: str, seed: int, labelled: Path, setting: Setting) -> dict[str, Any]:
    """Of Flux-Multi on the labelled clips; from scratch for as many steps as pretraining and tuning take together."""
    flags = merged_recipe("generator", "multi")
    steps = TUNING_STEPS
    if start == "scratch":
        steps += read_recipe(PRETRAINING, PretrainArguments)["max_train_steps"]
    warmup = round(steps * flags["num_warmup_steps"] / flags["max_train_steps"])
    flags |= {"max_train_steps": steps, "num_warmup_steps": warmup}
    flags = with_steps(flags, setting.options.share)
    if start == "scratch":
        flags["config_name"] = str(setting.options.output_dir / "model_config.json")
    else:
        flags["model_name_or_path"] = str(folder_of(start, seed, setting))
    batch = min(flags["per_device_train_batch_size"], len(read_rows(labelled)))
    return flags | {
        "data": str(labelled),
        "validation_data": str(setting.clips.validation),
        "frame_cache": str(setting.options.output_dir / "frames"),
        "per_device_train_batch_size": batch,
        "horizontal_flip": 0.0,
        "seed": seed,
    }


def folder_of(start: str, seed: int, setting: Setting) -> Path:
    """Of a pretrained student."""
    return setting.options.output_dir / "pretraining" / f"{start}_seed{seed}"


def labelled_part(clips: Task, share: float, seed: int, directory: Path) -> Path:
    """Writes a csv of a share of the training clips, as many of each label, at least one. Returns it."""
    rows = read_rows(clips.folds[0].train)
    root = clips.folds[0].train.parent
    taken = []
    for index, label in enumerate(sorted({row["label"] for row in rows})):
        of_label = [row for row in rows if row["label"] == label]
        order = np.random.default_rng([seed, index]).permutation(len(of_label))
        taken += [of_label[place] for place in sorted(order[: max(1, round(share * len(of_label)))])]
    path = directory / f"{name_of(share)}_seed{seed}.csv"
    write_csv(path, ("path", "label"), [(str(root / row["path"]), row["label"]) for row in taken])
    return path


def do(start: str, seed: int, setting: Setting, records: Records) -> None:
    """One start from a seed: pretrained, tuned and measured with each share of the labels, unless it is recorded."""
    if all(records.get(name_of(share), start, seed) is not None for share in SHARES):
        return
    options, clips = setting.options, setting.clips
    if start != "scratch":
        flags, directory = pretraining_flags(start, seed, setting), folder_of(start, seed, setting)
        train_by(flags, directory, options, "training.pretrain")
    for share in SHARES:
        begin = time.perf_counter()
        if records.get(name_of(share), start, seed) is not None:
            continue
        labelled = labelled_part(clips, share, seed, options.output_dir / "pretraining")
        fold = Fold("all", labelled, clips.folds[0].test)
        task = Task(f"pretraining/{name_of(share)}", "generator", (fold,), clips.groups, clips.validation)
        run = Run(task, fold, start, seed)
        flags = tuning_flags(start, seed, labelled, setting)
        train_by(flags, run.directory(options.output_dir), options)
        plan = search(run, options)
        ways = {way: points for way, points in points_of(plan).items() if way in MEASURED}
        hits = evaluate(
            run, list(dict.fromkeys(point for of_way in ways.values() for point in of_way.values())), options
        )
        record: dict[str, Any] = {"machine": machine(options.threads), "steps": flags["max_train_steps"], "plan": plan}
        for way, points in ways.items():
            found = {budget: [hits[str(point)][clip] for clip in clips.groups] for budget, point in points.items()}
            record[way] = {budget: {"top1": sum(of) / len(of), "hits": pack(of)} for budget, of in found.items()}
        records.put(name_of(share), start, seed, record)
        shares = " ".join(f"{record[way][TOKENS]['top1']:.1%} {way}," for way in MEASURED)
        print(f"{name_of(share)} {start} seed {seed}: {shares} {time.perf_counter() - begin:.0f} s", flush=True)


def hits_of(records: Records, name: str, start: str, seeds: Sequence[int], way: str, budget: int) -> np.ndarray:
    """(seeds, clips) bool."""
    number = len(records.groups(name))
    found = (records.get(name, start, seed)[way][str(budget)]["hits"] for seed in seeds)
    return np.stack([unpack(text, number) for text in found])


def accuracy_rows(records: Records, name: str) -> Iterator[list[str]]:
    for start, title in STARTS.items():
        runs = [records.get(name, start, seed) for seed in records.seeds(name, start)]
        for way in MEASURED:
            if runs:
                shares = ([100 * run[way][str(budget)]["top1"] for run in runs] for budget in BUDGETS)
                yield [f"{title}, {WAYS[way]}", *map(spread, shares)]


def difference_rows(records: Records, name: str) -> Iterator[list[str]]:
    """Flux pretraining against each other start."""
    groups = records.groups(name)
    for other in ("scratch", "fixed"):
        seeds = sorted(set(records.seeds(name, "flux")) & set(records.seeds(name, other)))
        for way in MEASURED:
            if seeds:
                sides = ([hits_of(records, name, start, seeds, way, b) for start in ("flux", other)] for b in BUDGETS)
                found = [paired_difference(*pair, groups) for pair in sides]
                yield [f"Flux pretraining - {STARTS[other]}, {WAYS[way]}", *map(str, found)]


def report(records: Records) -> str:
    """Writes results.md of all that is recorded. Returns the text."""
    lines, tokens = [], [f"{budget} tokens" for budget in BUDGETS]
    for share in SHARES:
        name = name_of(share)
        counts = {STARTS[start]: len(records.seeds(name, start)) for start in STARTS}
        if not any(counts.values()):
            continue
        lines += [f"## {100 * share:.0f} % of the labels", ""]
        lines += ["Seeds: " + ", ".join(f"{title} {number}" for title, number in counts.items()) + ".", ""]
        lines += ["Top-1 in percent, mean ± standard deviation over seeds:", ""]
        lines += [*table(["", *tokens], accuracy_rows(records, name)), ""]
        lines += ["Differences in points, with 95 % intervals over clips and seeds:", ""]
        lines += [*table(["", *tokens], difference_rows(records, name)), ""]
    text = "\n".join(lines)
    write_text(records.directory / "results.md", text)
    return text


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the study's: clips, models, the teacher")
    parser.add_argument("--results_dir", type=Path, help="records and tables; OUTPUT_DIR/results/pretraining")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--threads", type=count, default=1, help="of each run; others round otherwise")
    parser.add_argument("--num_clips", nargs=3, type=count, default=list(NUM_CLIPS), help="training, validation, test")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps; less only tests the code")
    parser.add_argument("--report_only", action="store_true", help="only the tables of what was done")
    args = parser.parse_args(arguments)
    args.output_dir = args.output_dir.absolute()
    args.results_dir = (args.results_dir or args.output_dir / "results" / "pretraining").absolute()
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs share."""
    return {
        "model": MODEL_CONFIGS["fluxvit"],
        "num_clips": args.num_clips,
        "share_of_steps": args.share,
        "pretraining": read_recipe(PRETRAINING, PretrainArguments),
        "tuning": {**merged_recipe("generator", "multi"), "max_train_steps": TUNING_STEPS},
    }


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    records = Records(args.results_dir, settings_of(args))
    if not args.report_only:
        write_json(args.output_dir / "model_config.json", MODEL_CONFIGS["fluxvit"])
        options = Options(args.output_dir, args.threads, args.share)
        clips = make_generator_task(args.output_dir, args.num_clips)
        teacher = Run(clips, clips.folds[0], "multi", 0)
        train(teacher, options)
        setting = Setting(options, clips, teacher.directory(args.output_dir))
        for share in SHARES:
            records.put_clips(name_of(share), clips.groups)
        for_each_seed(lambda start, seed: do(start, seed, setting, records), args.starts, args.seeds, args.jobs)
    print(f"\n{report(records)}\nresults: {args.results_dir}")


if __name__ == "__main__":
    main()
