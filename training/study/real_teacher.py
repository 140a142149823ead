# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A real teacher without labels, and what its students are worth on real clips.

    python -m conversion.dinov2_from_onnx vit_s_focus.onnx dinov2
    python -m training.study.real_teacher --output_dir study_output --teacher dinov2 --unlabelled FOLDER ... \\
        --real_data FOLDER

Students of the study's size learn the teacher's features of all clips of the folders (split.csv, column path) by
Flux-UMT, and are then tuned by Flux-Multi on the parts of the real set as the study's models from scratch are; beside
them the same from scratch, for the steps of the tuning and for as many as pretraining and tuning take together. The
folders may hold the real set's own clips, those that are tested too: no label is read.

What is finished is kept; a run whose record is in --results_dir is not done again.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conversion.saving import sha256
from flux_hf.checkpoint_files import write_csv, write_json

from ..arguments import read_recipe
from ..pretrain_arguments import PretrainArguments
from .__main__ import QUICK
from .design import MODEL_CONFIGS, merged_recipe, with_steps
from .pretraining import PRETRAINING
from .records import Records
from .report import report
from .runs import Options, do, for_each_seed, train_by
from .tasks import Task, count, make_real_tasks, read_rows


# As the real sets' recipes. The teacher is asked once for each clip and epoch, of which only so many differ, and in
# half precision: else it takes longer than all the rest.
FLAGS = {
    "teacher_dtype": "bfloat16",
    "frame_cache_short_side": 64,
    "frame_cache_max_frames": 64,
    "sampling_rule": None,
    "cached_epochs": 8,
}
NUM_FOLDS = 5


def list_unlabelled(folders: Sequence[Path], path: Path) -> Path:
    """Writes a csv of all clips of the folders. Returns it."""
    clips = [os.path.abspath(folder / row["path"]) for folder in folders for row in read_rows(folder / "split.csv")]
    write_csv(path, ("path",), [(clip,) for clip in clips])
    return path


def pretraining_flags() -> dict[str, Any]:
    """Of the students, whatever they read."""
    return read_recipe(PRETRAINING, PretrainArguments) | FLAGS


def pretrain(seed: int, teacher: Path, clips: Path, directory: Path, options: Options) -> None:
    """A seed's student, in `directory`."""
    flags = with_steps(pretraining_flags(), options.share)
    flags |= {
        "eval_steps": "no",
        "config_name": str(options.output_dir / "model_config.json"),
        "teacher": str(teacher.absolute()),
        "data": str(clips),
        "frame_cache": str(options.output_dir / "frames"),
        "feature_cache": str(directory / "features"),
        "per_device_train_batch_size": min(flags["per_device_train_batch_size"], len(read_rows(clips))),
        "seed": seed,
    }
    train_by(flags, directory / f"seed{seed}", options, "training.pretrain")


def make_tasks(scratch: Task, directory: Path, options: Options) -> dict[str, tuple[Task, Options]]:
    """For each start the task, all of the recipe from scratch, and its options."""
    steps = merged_recipe(scratch.recipe, "multi")["max_train_steps"]
    longer = (steps + pretraining_flags()["max_train_steps"]) / steps
    base = scratch.name.removesuffix("scratch")
    return {
        "scratch": (scratch, options),
        "distilled": (replace(scratch, name=f"{base}distilled", pretrained=str(directory / "seed{seed}")), options),
        "scratch_long": (
            replace(scratch, name=f"{base}scratch_long"),
            replace(options, share=longer * options.share),
        ),
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="models, and all that goes on if killed")
    parser.add_argument("--results_dir", type=Path, help="records and tables; OUTPUT_DIR/results/real_teacher")
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of the teacher")
    parser.add_argument("--unlabelled", type=Path, nargs="+", required=True, help="folders of clips to pretrain on")
    parser.add_argument("--real_data", type=Path, required=True, help="folder of the clips to tune on and test")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--threads", type=count, default=1, help="of each run; others round otherwise")
    parser.add_argument("--quick", action="store_true", help="all of it at a size that only tests the code")
    args = parser.parse_args(arguments)
    args.output_dir = args.output_dir.absolute()
    args.results_dir = (args.results_dir or args.output_dir / "results" / "real_teacher").absolute()
    args.share, args.num_folds, args.max_clips = 1.0, NUM_FOLDS, None
    if args.quick:
        vars(args).update({name: QUICK[name] for name in ("share", "num_folds", "max_clips")})
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs share."""
    return {
        "model": MODEL_CONFIGS["fluxvit"],
        "teacher": sha256(args.teacher),
        "unlabelled": {folder.resolve().name: len(read_rows(folder / "split.csv")) for folder in args.unlabelled},
        "share_of_steps": args.share,
        "num_folds": args.num_folds,
        "max_clips": args.max_clips,
        "pretraining": pretraining_flags(),
        "tuning": merged_recipe("real_scratch", "multi"),
    }


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    records, options = Records(args.results_dir, settings_of(args)), Options(args.output_dir, args.threads, args.share)
    write_json(args.output_dir / "model_config.json", MODEL_CONFIGS["fluxvit"])
    directory = args.output_dir / "distilled"
    [scratch] = make_real_tasks(args.output_dir, args.real_data, "split.csv", args.num_folds, None, args.max_clips)
    tasks = make_tasks(scratch, directory, options)
    clips = list_unlabelled(args.unlabelled, directory / "unlabelled.csv")
    for task, _ in tasks.values():
        records.put_clips(task.name, task.groups)

    def run(start: str, seed: int) -> None:
        task, own_options = tasks[start]
        if start == "distilled" and records.get(task.name, "multi", seed) is None:
            pretrain(seed, args.teacher, clips, directory, options)
        do(task, "multi", seed, own_options, records)

    for_each_seed(run, tasks, args.seeds, args.jobs)
    print(f"\n{report(records)}\nresults: {args.results_dir}")


if __name__ == "__main__":
    main()
