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
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification

from ..arguments import FinetuneArguments, read_recipe
from ..command_line import count, write_csv
from ..data.sampling import ClipShape, FlexibleSampling
from ..engine.checkpoint import write_json
from ..inference.prediction import EvalPoint
from .motion_clips import PATTERNS, MotionClipConfig, write_motion_clips


RECIPES = Path(__file__).parent / "recipes"
METHODS = {
    "fixed": "fixed grid",
    "single": "Flux-Single",
    "multi": "Flux-Multi",
    "fixed_long": "fixed grid, 2x steps",
}
DEFAULT_METHODS = ("fixed", "single", "multi")
WAYS = {"direct": "direct", "fewer": "fewer frames", "to": "TO"}

# Two frames a patch: a single layer can then see motion. LayerScale and initialisation are for short runs from scratch.
MODEL_CONFIG = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "num_pooling_heads": 3,
    "projection_dim": 96,
    "tubelet_size": 2,
    "position_embedding_grid": [8, 6, 6],
    "layer_scale_init_value": 1.0,
    "initializer_range": 0.08,
}
# The class is where the object goes and which pattern it bears; how fast it goes is left open. Of 8 frames the fastest
# crosses two fifths of the frame between two, of 32 a tenth.
CLIPS = MotionClipConfig(
    num_frames=32,
    path_length=(0.6, 3.2),
    patterns=PATTERNS[:2],
    object_radius=(0.13, 0.18),
    num_still_objects=3,
    background_contrast=12.0,
)
NUM_FRAMES, SIZE = 8, 84
TOKENS = 144  # of 4 x 6 x 6 patches: the default clip's
BUDGETS = (TOKENS, TOKENS // 2, TOKENS // 4, TOKENS // 8)
SEARCH_FRAMES, SEARCH_SIZES = (8, 16, 32), (84, 98)
HELD_OUT_SHARE = 0.4  # few clips choose badly; what is tested is trained on all of them
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val"}


# Data ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A data set with what is done on it.

    Args:
        name: Of its folder in the output.
        recipe: `study_RECIPE.yaml` holds the flags of all its runs.
        train: csv of the training clips.
        test: csv of the clips that results are reported on.
        search: csv of the clips that token optimization chooses by.
        search_train: csv to train the models on that are only there to choose by `search`; None if `search` is no part
            of `train`, when each model chooses for itself.
        views: Flags of the evaluation.
        horizontal_flip: Probability in training.
    """

    name: str
    recipe: str
    train: Path
    test: Path
    search: Path
    search_train: Path | None = None
    views: tuple[str, ...] = ()
    horizontal_flip: float = 0.0


def make_generator_task(output_dir: Path, num_clips: Sequence[int]) -> Task:
    """Writes the generator's clips (training, validation, test) unless they are there."""
    directory = output_dir / "generator" / "clips"
    for split, number in zip(("train", "val", "test"), num_clips, strict=True):
        listed = directory / f"{split}.csv"
        if not listed.exists() or len(listed.read_text().splitlines()) != number + 1:
            write_motion_clips(directory, number, 0, split, CLIPS)
    return Task("generator", "generator", *(directory / f"{split}.csv" for split in ("train", "test", "val")))


def make_real_task(output_dir: Path, data_dir: Path, split_csv: str) -> Task:
    """Lists a real set's clips by what they are for.

    Training mirrors them unless a label names a side: "left" would become "right".

    Raises:
        ValueError: a column is missing, or no training or test clips.
    """
    table = data_dir / split_csv
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = sorted({"path", "label", "split"} - set(rows[0] if rows else ()))
    if missing:
        raise ValueError(f"{table} must have columns path, label and split, {missing} missing")
    of_split: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for row in rows:
        of_split.setdefault(SPLIT_NAMES.get(row["split"], row["split"]), []).append(row)
    if not of_split["train"] or not of_split["test"]:
        found = {name: len(part) for name, part in of_split.items()}
        raise ValueError(f"{table} must have rows of the splits train and test, got {found}")
    name = f"real_{data_dir.resolve().name}"
    directory = output_dir / name / "clips"
    directory.mkdir(parents=True, exist_ok=True)

    def listed(part_name: str, part: Iterable[dict]) -> Path:
        lines = [(os.path.abspath(data_dir / row["path"]), row["label"]) for row in part]
        write_csv(directory / f"{part_name}.csv", ("path", "label"), lines)
        return directory / f"{part_name}.csv"

    sided = any(re.search(r"(?<![a-z])(left|right)(?![a-z])", row["label"].lower()) for row in rows)
    task = Task(
        name,
        "real",
        listed("train", of_split["train"]),
        listed("test", of_split["test"]),
        listed("val", of_split["val"]),
        views=("--num_crops", "3"),
        horizontal_flip=0.0 if sided else 0.5,
    )
    if of_split["val"]:
        return task
    kept, held_out = hold_out(of_split["train"], HELD_OUT_SHARE)
    return replace(task, search=listed("held_out", held_out), search_train=listed("kept", kept))


def hold_out(rows: Sequence[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Parts training rows into those kept and those held out, about `share` of them.

    Whole groups (column `group`) are held out where every label keeps clips on both sides, else clips of each label.

    Raises:
        ValueError: a label has a single clip.
    """
    labels = {row["label"] for row in rows}
    groups = sorted({row.get("group") or "" for row in rows})
    order = np.random.default_rng(0).permutation(len(groups))
    chosen: set[str] = set()
    for index in order:
        if sum((row.get("group") or "") in chosen for row in rows) >= share * len(rows):
            break
        chosen.add(groups[index])
    parts: tuple[list[dict], list[dict]] = ([], [])
    for row in rows:
        parts[(row.get("group") or "") in chosen].append(row)
    if all({row["label"] for row in part} == labels for part in parts):
        return parts
    parts = ([], [])
    for label in sorted(labels):
        of_label = [row for row in rows if row["label"] == label]
        if len(of_label) < 2:
            raise ValueError(f"label {label!r} has a single training clip, none of which can be held out")
        number = max(1, round(share * len(of_label)))
        parts[1].extend(of_label[:number])
        parts[0].extend(of_label[number:])
    return parts


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What all runs share."""

    output_dir: Path
    threads: int
    max_train_steps: int | None


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


def merged_recipe(recipe: str, method: str) -> dict[str, Any]:
    """The flags of a run: those of all runs of the kind of data, and over them those of the method."""
    longer = method == "fixed_long"
    flags = {
        **read_recipe(RECIPES / f"study_{recipe}.yaml"),
        **read_recipe(RECIPES / f"study_{'fixed' if longer else method}.yaml"),
    }
    return {**flags, "max_train_steps": 2 * flags["max_train_steps"]} if longer else flags


def call(command: Sequence[str], log: Path, threads: int) -> None:
    """Runs `python -m ...` with its output in a file.

    Raises:
        RuntimeError: it failed; says where the log is and how it ends.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
    }
    with open(log, "a") as file:
        done = subprocess.run([sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
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
        train_data=str(clips),
        per_device_train_batch_size=min(flags["per_device_train_batch_size"], num_clips),  # a small set has fewer
        frame_cache=str(options.output_dir / "frames"),
        horizontal_flip=run.task.horizontal_flip,
        seed=run.seed,
    )
    if options.max_train_steps is not None:
        flags["max_train_steps"] = options.max_train_steps
    directory.mkdir(parents=True, exist_ok=True)
    recipe = options.output_dir / run.task.name / f"{directory.name}.yaml"
    recipe.write_text(yaml.safe_dump(flags, sort_keys=False))
    launch = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no"
    launch += f" --dynamo_backend no --num_cpu_threads_per_process {options.threads} -m training.finetune"
    arguments = ["--recipe", str(recipe), "--output_dir", str(directory), "--resume_from_checkpoint", "latest"]
    call([*launch.split(), *arguments], recipe.with_suffix(".log"), options.threads)


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
        command += ["--sizes", *map(str, SEARCH_SIZES), "--batch_size", "48", "--dataloader_num_workers", "0"]
        call([*command, *run.task.views], directory.with_suffix(".log"), options.threads)
    plan = json.loads(found.read_text())["token_plan"]
    return {int(budget): tuple(shape) for budget, shape in plan.items()}


def points_of(plan: dict[int, tuple[int, int]]) -> dict[str, dict[int, EvalPoint]]:
    """What is measured: way of `WAYS` -> budget -> point; fewer frames only where whole tubelets are left."""
    tubelet = MODEL_CONFIG["tubelet_size"]
    fewer = {budget: NUM_FRAMES * budget // TOKENS for budget in BUDGETS}
    return {
        "direct": {budget: EvalPoint(NUM_FRAMES, SIZE, budget) for budget in BUDGETS},
        "fewer": {budget: EvalPoint(frames, SIZE, budget) for budget, frames in fewer.items() if frames >= tubelet},
        "to": {budget: EvalPoint(*plan[budget], budget) for budget in BUDGETS},
    }


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
        command += ["--output_dir", str(metrics.parent), "--points", *points, "--batch_size", "48"]
        command += ["--dataloader_num_workers", "0", *run.task.views]
        call(command, directory.with_suffix(".log"), options.threads)
    measured = {point["point"]: point for point in json.loads(metrics.read_text())["points"]}
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
            "training": training_cost(task.recipe, method, options.max_train_steps),
            "seeds": {seed: measured[method, seed] for seed in seeds},
        }
        for method in methods
    }


def training_cost(recipe: str, method: str, max_train_steps: int | None) -> dict[str, float]:
    """What a run of a method costs: optimiser steps, clips seen, and 10^12 multiply-adds forward and backward.

    A backward pass counts as two forward ones. All patches of a clip are embedded, once for all budgets.
    """
    flags = {**vars(FinetuneArguments()), **merged_recipe(recipe, method)}
    model = new_model()
    if flags["sampling"] == "fixed":
        shapes = [ClipShape(NUM_FRAMES, SIZE)]
    else:
        window = FlexibleSampling(*(tuple(flags[name]) for name in ("frames", "sizes", "token_window")))
        shapes = window.legal_shapes(model.config.patch_size, model.config.tubelet_size)
    of_shape = []
    for shape in shapes:
        points = [EvalPoint(shape.num_frames, shape.size, budget) for budget in flags["token_budgets"]]
        dense = point_flops(model, replace(points[0], token_budget=None))
        of_shape.append(dense["embedding"] + sum(point_flops(model, point)["encoder"] for point in points))
    steps = max_train_steps or flags["max_train_steps"]
    clips = steps * flags["per_device_train_batch_size"]
    return {
        "steps": steps,
        "clips": clips,
        "tera_multiply_adds": round(3 * clips * statistics.mean(of_shape) / 1e12, 2),
    }


def new_model() -> FluxViTForVideoClassification:
    config = {**MODEL_CONFIG, "token_budgets": [TOKENS], "token_budget": None}
    return FluxViTForVideoClassification(FluxViTConfig(**config, num_labels=len(CLIPS.labels)))


def point_flops(model: FluxViTForVideoClassification, point: EvalPoint) -> dict[str, int]:
    """Multiply-adds of one view: of embedding every patch, which the selector needs, and of all that comes after."""
    config = model.config
    patch = config.num_channels * config.tubelet_size * config.patch_size**2 * config.hidden_size
    kept, dense = point.kept_tokens(config), point.dense_tokens(config)
    whole = model.flops(point.num_frames, point.size, point.token_budget or dense)
    return {"embedding": dense * patch, "encoder": whole - kept * patch}


# Results -------------------------------------------------------------------------------------------------------------


def summarise(results: dict[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row a method, way and budget: accuracy of each seed in percent, mean and standard deviation, cost."""
    rows, model = [], new_model()
    for method, result in results.items():
        for way, budget in ((way, budget) for way in WAYS for budget in BUDGETS):
            points = [result["seeds"][seed][way].get(budget) for seed in seeds]
            if points[0] is None:
                continue
            shapes = [EvalPoint.parse(point["point"]) for point in points]
            flops = [sum(point_flops(model, shape).values()) for shape in shapes]
            shares = [100 * point["top1"] for point in points]
            rows.append(
                {
                    "method": method,
                    "way": way,
                    "tokens": budget,
                    "mean": statistics.mean(shares),
                    "std": statistics.stdev(shares) if len(shares) > 1 else 0.0,
                    "seeds": dict(zip(seeds, shares, strict=True)),
                    "clips": [f"{shape.num_frames}x{shape.size}" for shape in shapes],
                    "mega_multiply_adds": statistics.mean(flops) / 1e6,
                    "encoder_mega_multiply_adds": statistics.mean(
                        point_flops(model, shape)["encoder"] / 1e6 for shape in shapes
                    ),
                }
            )
    return rows


def find_row(rows: Sequence[dict[str, Any]], method: str, way: str, tokens: int) -> dict[str, Any] | None:
    for row in rows:
        if (row["method"], row["way"], row["tokens"]) == (method, way, tokens):
            return row
    return None


def check_claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Flux-Multi with TO against the fixed grid: at a quarter of its tokens against all, and at equal ones."""
    claims = []
    for tokens, other_tokens in [(TOKENS // 4, TOKENS), *((budget, budget) for budget in BUDGETS)]:
        ours, other = find_row(rows, "multi", "to", tokens), find_row(rows, "fixed", "direct", other_tokens)
        if ours is not None and other is not None:
            gains = [ours["seeds"][seed] - other["seeds"][seed] for seed in ours["seeds"]]
            claims.append(
                {
                    "claim": f"Flux-Multi + TO at {tokens} tokens against fixed grid, direct, at {other_tokens}",
                    "gain": statistics.mean(gains),
                    "gain_of_each_seed": gains,
                    "holds_on_average": statistics.mean(gains) >= 0,
                    "holds_for_every_seed": min(gains) >= 0,
                }
            )
    return claims


def results_markdown(task: str, results: dict[str, Any], rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """Tables of accuracies, of what training cost, and the claims."""
    lines = [
        f"## {task}",
        "",
        f"Top-1 in percent on the test clips, mean and standard deviation of {len(seeds)} seeds.",
        "",
    ]
    lines += [
        f"| method | | {' | '.join(f'{budget} tokens' for budget in BUDGETS)} |",
        "|---|---|" + "---|" * len(BUDGETS),
    ]
    for method in results:
        for way, title in WAYS.items():
            cells = []
            for budget in BUDGETS:
                row = find_row(rows, method, way, budget)
                if row is None:
                    cells.append("")
                    continue
                clips = f" ({', '.join(dict.fromkeys(row['clips']))})" if way == "to" else ""
                cells.append(f"{row['mean']:.1f} ± {row['std']:.1f}{clips}")
            lines.append(f"| {METHODS[method]} | {title} | {' | '.join(cells)} |")
    lines += ["", "| training | steps | clips | 10^12 multiply-adds |", "|---|---|---|---|"]
    for method, result in results.items():
        cost = result["training"]
        lines.append(f"| {METHODS[method]} | {cost['steps']} | {cost['clips']} | {cost['tera_multiply_adds']} |")
    lines.append("")
    for claim in check_claims(rows):
        gains = ", ".join(f"{gain:+.1f}" for gain in claim["gain_of_each_seed"])
        lines.append(f"- {claim['claim']}: {claim['gain']:+.1f} points (seeds: {gains})")
    return "\n".join([*lines, ""])


def draw(path: Path, title: str, results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Accuracy over tokens: direct dashed, TO solid, bars of one standard deviation."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, method in enumerate(results):
        for way, style in (("direct", "--"), ("to", "-")):
            line = [row for row in rows if (row["method"], row["way"]) == (method, way)]
            axes.errorbar(
                [row["tokens"] * 1.03 ** (index - 1) for row in line],  # side by side, not on top of each other
                [row["mean"] for row in line],
                [row["std"] for row in line],
                fmt=f"o{style}",
                color=f"C{index}",
                capsize=3,
                label=f"{METHODS[method]}, {WAYS[way]}",
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.set(xlabel="tokens encoded", ylabel="top-1 (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)


def report(output_dir: Path, tasks: dict[str, dict[str, Any]], seeds: Sequence[int]) -> str:
    """Writes results.json, results.md and a plot a data set. Returns the text."""
    whole, texts = {}, []
    for name, results in tasks.items():
        rows = summarise(results, seeds)
        training = {method: result["training"] for method, result in results.items()}
        whole[name] = {"rows": rows, "claims": check_claims(rows), "training": training}
        texts.append(results_markdown(name, results, rows, seeds))
        draw(output_dir / f"{name}.png", f"{name}: {len(seeds)} seeds", results, rows)
    write_json(output_dir / "results.json", whole)
    (output_dir / "results.md").write_text("\n".join(texts))
    return "\n".join(texts)


# Main ----------------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="results, and all that goes on from if killed")
    parser.add_argument("--real_data", type=Path, help="folder of real clips")
    parser.add_argument("--real_split_csv", default="split.csv", help="its table: path,label,group,split")
    parser.add_argument("--generator_only", action="store_true", help="leave the real clips out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
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
        "model": MODEL_CONFIG,
        "clips": json.loads(json.dumps(asdict(CLIPS))),
        "num_clips": list(args.num_clips),
        "max_train_steps": args.max_train_steps,
        "recipes": {path.name: read_recipe(path) for path in sorted(RECIPES.glob("study_*.yaml"))},
    }
    file = output_dir / "settings.json"
    if file.exists():
        kept = json.loads(file.read_text())
        other = [name for name in settings if kept.get(name) != settings[name]]
        if other:
            raise ValueError(f"{output_dir} holds runs of a study with other {other}: give a new --output_dir")
    write_json(file, settings)
    write_json(output_dir / "model_config.json", MODEL_CONFIG)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    begin = time.perf_counter()
    output_dir = args.output_dir.absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    keep_settings(output_dir, args)
    options = Options(output_dir, max(1, os.cpu_count() // args.jobs), args.max_train_steps)
    tasks = [make_generator_task(output_dir, args.num_clips)]
    if args.real_data is not None and not args.generator_only:
        tasks.append(make_real_task(output_dir, args.real_data, args.real_split_csv))
    results = {}
    for task in tasks:
        results[task.name] = run_task(task, args.methods, args.seeds, args.jobs, options)
        text = report(output_dir, results, args.seeds)
    print(f"\n{text}\nresults: {output_dir}; {(time.perf_counter() - begin) / 60:.0f} min")


if __name__ == "__main__":
    main()
