# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A real teacher without labels, and what its students are worth on real clips: the study's third start.

    python -m conversion.dinov2_from_onnx vit_s_focus.onnx dinov2
    python -m training.study.real_teacher --output_dir study_output --teacher dinov2 --unlabelled FOLDER ... \\
        --real_data FOLDER

Students of the study's size learn the teacher's features of all clips of the folders (split.csv, column path) by
Flux-UMT, and are then tuned by Flux-Multi on the parts of the real set as the study's other starts are, for half the
steps of those from scratch. The folders may hold the real set's own clips, those that are tested too: no label is read.
Records go where the study's are, which they are compared with. What is finished is kept.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from flux_hf.checkpoint_files import write_csv, write_json

from ..arguments import read_recipe
from ..pretrain_arguments import PretrainArguments
from .__main__ import parse_arguments as parse_study
from .__main__ import settings_of
from .design import MODEL_CONFIGS, with_steps
from .pretraining import PRETRAINING
from .records import Records
from .report import report
from .runs import Options, do_all, train_by
from .tasks import Task, count, make_generator_task, make_real_tasks, read_rows


FRAMES = {
    "frame_cache_short_side": 64,
    "frame_cache_max_frames": 64,
    "sampling_rule": None,
}  # as the real sets' recipes


def list_unlabelled(folders: list[Path], path: Path) -> Path:
    """Writes a csv of all clips of the folders. Returns it."""
    clips = [os.path.abspath(folder / row["path"]) for folder in folders for row in read_rows(folder / "split.csv")]
    write_csv(path, ("path",), [(clip,) for clip in clips])
    return path


def make_task(args: argparse.Namespace, real_data: Path, made_up: Task, directory: Path) -> Task:
    """The real set's task whose models begin as the students."""
    scratch, _ = make_real_tasks(args.output_dir, real_data, "split.csv", args.num_folds, made_up, args.max_clips)
    name = scratch.name.removesuffix("scratch") + "distilled"
    return replace(scratch, name=name, recipe="real_made_up", pretrained=str(directory / "seed{seed}"))


def pretrain(seed: int, teacher: Path, clips: Path, directory: Path, options: Options) -> None:
    """A seed's student."""
    flags = with_steps(read_recipe(PRETRAINING, PretrainArguments), options.share)
    flags |= FRAMES | {
        "config_name": str(options.output_dir / "model_config.json"),
        "teacher": str(teacher.absolute()),
        "data": str(clips),
        "frame_cache": str(options.output_dir / "frames"),
        "feature_cache": str(directory / "features"),
        "eval_steps": "no",
        "per_device_train_batch_size": min(flags["per_device_train_batch_size"], len(read_rows(clips))),
        "seed": seed,
    }
    train_by(flags, directory / f"seed{seed}", options, "training.pretrain")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the study's")
    parser.add_argument("--results_dir", type=Path, help="the study's; OUTPUT_DIR/results")
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of the teacher")
    parser.add_argument("--unlabelled", type=Path, nargs="+", required=True, help="folders of clips to pretrain on")
    parser.add_argument("--real_data", type=Path, required=True, help="folder of the clips to tune on and test")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="all of it at a size that only tests the code")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    own = parse_arguments(arguments)
    words = ["--output_dir", str(own.output_dir), *(["--quick"] if own.quick else [])]
    words += ["--results_dir", str(own.results_dir)] if own.results_dir else []
    args = parse_study(words)
    records, options = Records(args.results_dir, settings_of(args)), Options(args.output_dir, args.threads, args.share)
    write_json(args.output_dir / "model_config.json", MODEL_CONFIGS["fluxvit"])
    directory = args.output_dir / "distilled"
    made_up = make_generator_task(args.output_dir, args.num_clips)
    task = make_task(args, own.real_data, made_up, directory)
    clips = list_unlabelled(own.unlabelled, directory / "unlabelled.csv")
    missing = [seed for seed in own.seeds if records.get(task.name, "multi", seed) is None]
    with ThreadPoolExecutor(own.jobs) as pool:
        list(pool.map(lambda seed: pretrain(seed, own.teacher, clips, directory, options), missing))
    do_all(task, ["multi"], own.seeds, own.jobs, options, records)
    print(f"\n{report(records)}\nresults: {args.results_dir}")


if __name__ == "__main__":
    main()
