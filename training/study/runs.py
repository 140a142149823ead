# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The study's runs: each trains, searches and is measured through the commands, and is not done again once it is."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from flux_hf.checkpoint_files import write_text

from .design import BUDGETS, METHODS, SEARCH_FRAMES, SEARCH_SIZES, TOKENS, merged_recipe, points_of, training_cost
from .tasks import Task


EVALUATION = ("--per_device_eval_batch_size", "48", "--dataloader_num_workers", "0")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Options:
    """What all runs share."""

    output_dir: Path
    threads: int
    max_train_steps: int | None
    encoder: str = "fluxvit"


@dataclass(frozen=True)
class Run:
    """One training of one method from one seed; `search_only`: it chooses clip shapes and is not tested."""

    task: Task
    method: str
    seed: int
    search_only: bool = False

    def directory(self, output_dir: Path) -> Path:
        name = f"{self.method}_search" if self.search_only else f"{self.method}_seed{self.seed}"
        return output_dir / self.task.name / name


def launch(threads: int) -> list[str]:
    """What `python -m` runs to train on the CPU by `accelerate launch`, before the training's flags."""
    words = (
        "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    )
    return [*words.split(), "--num_cpu_threads_per_process", str(threads), "-m", "training.finetune"]


def call(command: Sequence[str], log: Path, threads: int) -> None:
    """Runs `python -m ...` with its output in a file.

    Raises:
        RuntimeError: it failed; says where the log is and how it ends.
    """
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{command[0]} failed with exit status {done.returncode}, see {log}:\n{tail}")


def train(run: Run, options: Options) -> None:
    """Trains through `training.finetune`, or goes on with training, unless it is done."""
    directory = run.directory(options.output_dir)
    if (directory / "all_results.json").exists():
        return
    flags = merged_recipe(run.task.recipe, run.method)
    if run.task.recipe == "generator":
        flags["config_name"] = str(options.output_dir / "model_config.json")
    else:
        start = replace(run, task=replace(run.task, name="generator"), search_only=False)
        flags["model_name_or_path"] = str(start.directory(options.output_dir))
    clips = run.task.search_train if run.search_only else run.task.train
    with open(clips, newline="", encoding="utf-8") as file:
        num_clips = sum(1 for _ in csv.DictReader(file))
    flags.update(
        data=str(clips),
        per_device_train_batch_size=min(flags["per_device_train_batch_size"], num_clips),  # a small set has fewer
        frame_cache=str(options.output_dir / "frames"),
        horizontal_flip=run.task.horizontal_flip,
        seed=run.seed,
    )
    if options.max_train_steps is not None:
        flags["max_train_steps"] = options.max_train_steps
    directory.mkdir(parents=True, exist_ok=True)
    recipe = options.output_dir / run.task.name / f"{directory.name}.yaml"
    write_text(recipe, yaml.safe_dump(flags, sort_keys=False))
    arguments = ["--recipe", str(recipe), "--output_dir", str(directory), "--resume_from_checkpoint", "latest"]
    call([*launch(options.threads), *arguments], recipe.with_suffix(".log"), options.threads)


def search(run: Run, options: Options) -> dict[int, tuple[int, int]]:
    """Token optimization through `training.optimize_tokens`, unless it is done.

    Returns:
        (num_frames, size) of each budget.
    """
    directory = run.directory(options.output_dir)
    found = directory / "token_plan_search.json"
    if not found.exists():
        command = ["training.optimize_tokens", "--model_name_or_path", str(directory), "--data", str(run.task.search)]
        command += ["--token_budgets", *map(str, BUDGETS), "--frames", *map(str, SEARCH_FRAMES)]
        command += ["--sizes", *map(str, SEARCH_SIZES), *EVALUATION, *run.task.views]
        call(command, directory.with_suffix(".log"), options.threads)
    plan = json.loads(found.read_text(encoding="utf-8"))["token_plan"]
    return {int(budget): tuple(shape) for budget, shape in plan.items()}


def measure(run: Run, plan: dict[int, tuple[int, int]], options: Options) -> dict[str, dict[int, dict]]:
    """Accuracies on the test split through `training.evaluate`, unless they are there.

    Returns:
        Way -> budget -> that point of metrics.json.
    """
    directory, ways = run.directory(options.output_dir), points_of(plan)
    metrics = directory / "test" / "metrics.json"
    if not metrics.exists():
        points = dict.fromkeys(str(point) for points in ways.values() for point in points.values())
        command = ["training.evaluate", "--model_name_or_path", str(directory), "--data", str(run.task.test)]
        command += ["--output_dir", str(metrics.parent), "--points", *points, *EVALUATION, *run.task.views]
        call(command, directory.with_suffix(".log"), options.threads)
    measured = {point["point"]: point for point in json.loads(metrics.read_text(encoding="utf-8"))["points"]}
    return {way: {budget: measured[str(point)] for budget, point in points.items()} for way, points in ways.items()}


def run_task(task: Task, methods: Sequence[str], seeds: Sequence[int], jobs: int, options: Options) -> dict[str, Any]:
    """All runs of a data set. Returns method -> {"seeds": {seed: measured}, "training": its cost}."""

    def choose(method: str) -> dict[int, tuple[int, int]] | None:
        if task.search_train is None:
            return None
        chooser = Run(task, method, seeds[0], search_only=True)
        train(chooser, options)
        return search(chooser, options)

    def test(method: str, seed: int, plan: dict[int, tuple[int, int]] | None) -> dict[str, dict[int, dict]]:
        run = Run(task, method, seed)
        begin = time.perf_counter()
        train(run, options)
        measured = measure(run, plan or search(run, options), options)
        direct, best = (measured[way][TOKENS]["top1"] for way in ("direct", "to"))
        seconds = time.perf_counter() - begin
        print(f"{task.name} {method} seed {seed}: {direct:.1%} direct, {best:.1%} TO; {seconds:.0f} s", flush=True)
        return measured

    with ThreadPoolExecutor(jobs) as pool:
        plans = dict(zip(methods, pool.map(choose, methods), strict=True))
        # All methods of a seed before the next seed: a study cut short is still a comparison.
        runs = [(method, seed, plans[method]) for seed in seeds for method in methods]
        measured = dict(zip([run[:2] for run in runs], pool.map(test, *zip(*runs, strict=True)), strict=True))
    return {
        method: {
            "title": METHODS[method],
            "training": training_cost(task.recipe, method, options.max_train_steps, options.encoder),
            "seeds": {seed: measured[method, seed] for seed in seeds},
        }
        for method in methods
    }
