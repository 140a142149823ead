# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The study's runs: each trains, searches and is measured through the commands, and is not done again once it is."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from flux_hf.checkpoint_files import write_text

from ..inference.points import EvalPoint
from .design import (
    BUDGETS,
    NUM_FRAMES,
    OWN_SELECTOR,
    SEARCH_FRAMES,
    SEARCH_SIZES,
    SELECTORS,
    SIZE,
    TOKENS,
    merged_recipe,
    points_of,
    training_cost,
    with_steps,
)
from .records import Records, machine, pack, read_curve, read_hits
from .tasks import Fold, Task, read_rows


EVALUATION = ("--per_device_eval_batch_size", "48", "--dataloader_num_workers", "0")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
Plan = dict[int, tuple[int, int]]  # budget -> (num_frames, size)
# Way, and selector where it is not the model's own -> budget -> test clip -> right or wrong.
Measured = dict[str, dict[int, dict[str, bool]]]


@dataclass(frozen=True)
class Options:
    """What all runs share."""

    output_dir: Path
    threads: int
    share: float = 1.0  # of the recipes' steps
    encoder: str = "fluxvit"


@dataclass(frozen=True)
class Run:
    """One training of one method from one seed on one part of a data set."""

    task: Task
    fold: Fold
    method: str
    seed: int

    def directory(self, output_dir: Path) -> Path:
        return output_dir / self.task.name / f"{self.method}_seed{self.seed}" / self.fold.name

    @property
    def start(self) -> "Run":
        """The run on the generator's clips that a run on real ones goes on from."""
        return replace(self, task=self.task.made_up, fold=self.task.made_up.folds[0])

    def root(self) -> list[str]:
        return [] if self.task.root is None else ["--data_root", str(self.task.root)]


def launch(threads: int, module: str = "training.finetune") -> list[str]:
    """What `python -m` runs to train on the CPU by `accelerate launch`, before the training's flags."""
    words = (
        "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    )
    return [*words.split(), "--num_cpu_threads_per_process", str(threads), "-m", module]


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


def method_flags(task: Task, method: str, options: Options) -> dict[str, Any]:
    """The flags of a method's trainings, whatever they read and where they begin."""
    return with_steps(merged_recipe(task.recipe, method, options.encoder), options.share)


def run_flags(run: Run, options: Options) -> dict[str, Any]:
    """The flags of a run's training."""
    task = run.task
    flags = method_flags(task, run.method, options)
    if task.made_up is not None:
        flags["model_name_or_path"] = str(run.start.directory(options.output_dir))
    elif task.pretrained is not None:
        flags["model_name_or_path"] = task.pretrained.format(seed=run.seed)
    else:
        flags["config_name"] = str(options.output_dir / "model_config.json")
    num_clips = len(read_rows(run.fold.train))
    flags.update(
        data=str(run.fold.train),
        per_device_train_batch_size=min(flags["per_device_train_batch_size"], num_clips),  # a small set has fewer
        frame_cache=str(options.output_dir / "frames"),
        horizontal_flip=task.horizontal_flip,
        seed=run.seed,
    )
    if task.root is not None:
        flags["data_root"] = str(task.root)
    if task.validation is None:
        flags["eval_steps"] = "no"
    else:
        flags["validation_data"] = str(task.validation)
    return flags


def train(run: Run, options: Options) -> None:
    """Trains through `training.finetune`, or goes on with training, unless it is done."""
    train_by(run_flags(run, options), run.directory(options.output_dir), options)


def train_by(flags: dict[str, Any], directory: Path, options: Options, module: str = "training.finetune") -> None:
    """Trains by these flags into a folder, or goes on with training, unless it is done.

    Raises:
        ValueError: it was done by other flags.
    """
    recipe = directory.with_suffix(".yaml")
    if (directory / "all_results.json").exists():
        kept = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        if other := sorted(name for name in {*kept, *flags} if kept.get(name) != flags.get(name)):
            raise ValueError(f"{directory} was trained with other {other}: give another --output_dir")
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_text(recipe, yaml.safe_dump(flags, sort_keys=False))
    arguments = ["--recipe", str(recipe), "--output_dir", str(directory), "--resume_from_checkpoint", "latest"]
    call([*launch(options.threads, module), *arguments], recipe.with_suffix(".log"), options.threads)


def search(run: Run, options: Options) -> Plan:
    """Token optimization through `training.optimize_tokens`, unless it is done. Returns the shape of each budget."""
    directory = run.directory(options.output_dir)
    found = directory / "token_plan_search.json"
    if not found.exists():
        command = ["training.optimize_tokens", "--model_name_or_path", str(directory)]
        command += ["--data", str(run.task.validation), *run.root()]
        command += ["--token_budgets", *map(str, BUDGETS), "--frames", *map(str, SEARCH_FRAMES)]
        command += ["--sizes", *map(str, SEARCH_SIZES), *EVALUATION, *run.task.views]
        call(command, directory.with_suffix(".log"), options.threads)
    plan = json.loads(found.read_text(encoding="utf-8"))["token_plan"]
    return {int(budget): tuple(shape) for budget, shape in plan.items()}


def evaluate(
    run: Run, points: Sequence[EvalPoint], options: Options, selector: str = OWN_SELECTOR
) -> dict[str, dict[str, bool]]:
    """Hits on the test clips through `training.evaluate`, unless they are there: point -> clip -> right or wrong."""
    directory = run.directory(options.output_dir)
    folder = directory / f"test_{selector}"
    if not (folder / "metrics.json").exists():
        command = ["training.evaluate", "--model_name_or_path", str(directory), "--output_dir", str(folder)]
        command += ["--data", str(run.fold.test), *run.root(), "--token_selection", selector]
        command += ["--points", *map(str, points), *EVALUATION, *run.task.views]
        call(command, directory.with_suffix(".log"), options.threads)
    return read_hits(folder / "predictions.csv")


def measure(run: Run, options: Options) -> tuple[Measured, Plan]:
    """A run's hits at all points, token optimization choosing by the validation clips, and its plan."""
    plan = search(run, options)
    ways = points_of(plan)
    measured = {}
    for selector in SELECTORS:
        own = selector == OWN_SELECTOR
        taken = ways if own else {way: ways[way] for way in ("direct", "to")}
        points = list(dict.fromkeys(point for of_way in taken.values() for point in of_way.values()))
        hits = evaluate(run, points, options, selector)
        for way, of_way in taken.items():
            name = way if own else f"{way}, {selector}"
            measured[name] = {budget: hits[str(point)] for budget, point in of_way.items()}
    return measured, plan


def cross_measure(runs: Sequence[Run], options: Options) -> tuple[Measured, list[Plan]]:
    """Hits of all parts' runs, each tested on its own part, and the plan of each.

    Token optimization takes for a part the shape that was best on all the others, each tested by its own run: neither
    the labels of the part nor its run are asked.
    """
    default = points_of(dict.fromkeys(BUDGETS, (NUM_FRAMES, SIZE)))
    grid = [(frames, size) for frames in SEARCH_FRAMES for size in SEARCH_SIZES]
    wanted = [point for way in ("direct", "fewer") for point in default[way].values()]
    wanted += [EvalPoint(*shape, budget) for shape in grid for budget in BUDGETS]
    hits = [evaluate(run, list(dict.fromkeys(wanted)), options) for run in runs]
    plans = [choose_by_others(hits, index, grid) for index in range(len(runs))]
    measured: Measured = {way: {budget: {} for budget in of_way} for way, of_way in default.items()}
    for plan, of_part in zip(plans, hits, strict=True):
        for way, points in points_of(plan).items():
            for budget, point in points.items():
                measured[way][budget] |= of_part[str(point)]
    return measured, plans


def choose_by_others(
    hits: Sequence[dict[str, dict[str, bool]]], left_out: int, grid: Sequence[tuple[int, int]]
) -> Plan:
    """Budget -> the shape of most hits on all parts but one; of equals the first."""
    others = [of_part for index, of_part in enumerate(hits) if index != left_out]

    def score(shape: tuple[int, int], budget: int) -> int:
        return sum(sum(of_part[str(EvalPoint(*shape, budget))].values()) for of_part in others)

    return {budget: max(grid, key=lambda shape: score(shape, budget)) for budget in BUDGETS}


def do(task: Task, method: str, seed: int, options: Options, records: Records) -> None:
    """Trains and measures a method from a seed on all of a data set, unless its record is there."""
    if records.get(task.name, method, seed) is not None:
        return
    begin = time.perf_counter()
    runs = [Run(task, fold, method, seed) for fold in task.folds]
    if task.made_up is not None:
        train(runs[0].start, options)
    for run in runs:
        train(run, options)
    measured, plan = cross_measure(runs, options) if task.validation is None else measure(runs[0], options)
    record = {
        "machine": machine(options.threads),
        "training": training_cost(method_flags(task, method, options), options.encoder),
        "plan": plan,
    }
    if task.validation is not None:
        record["curve"] = read_curve(runs[0].directory(options.output_dir) / "training_log.jsonl", TOKENS)
    for way, budgets in measured.items():
        ordered = {budget: [hits[name] for name in task.groups] for budget, hits in budgets.items()}
        record[way] = {budget: {"top1": sum(hits) / len(hits), "hits": pack(hits)} for budget, hits in ordered.items()}
    records.put(task.name, method, seed, record)
    shares = " ".join(f"{record[way][TOKENS]['top1']:.1%} {way}," for way in ("direct", "to"))
    print(f"{task.name} {method} seed {seed}: {shares} {time.perf_counter() - begin:.0f} s", flush=True)


def do_all(
    task: Task, methods: Sequence[str], seeds: Sequence[int], jobs: int, options: Options, records: Records
) -> None:
    """All runs of a data set, `jobs` at a time."""
    records.put_clips(task.name, task.groups)
    for_each_seed(lambda method, seed: do(task, method, seed, options, records), methods, seeds, jobs)


def for_each_seed(run: Callable[[str, int], None], kinds: Iterable[str], seeds: Sequence[int], jobs: int) -> None:
    """Runs all kinds of a seed before the next seed, so that a study cut short is still a comparison, `jobs` at a time.

    Where one fails, those that have not begun do not.
    """
    kinds = list(kinds)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run, kind, seed) for seed in seeds for kind in kinds]
        try:
            for one in waiting:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)
