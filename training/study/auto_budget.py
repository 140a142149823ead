# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Do budgets that choose themselves pay? Flux-Multi's models of a finished study, on the generator's test clips.

    python -m training.study.auto_budget --study_dir study_output --output_dir auto_output

Of each seed's model a copy is calibrated by `training.optimize_tokens --auto`, on validation clips alone: on the clip
that it was trained on ("direct"), and on the one that token optimization chose for all tokens ("TO"). There are more
validation clips than the study has, which they begin with: half a point is less than 480 clips can tell.

Each copy is then measured on the test clips by `training.evaluate --token_budgets auto`. Beside it stands what it would
get if as many clips stopped at each budget, but drawn at random: what is gained over that, the confidence gains. And
what it gets if each clip keeps the patches that moved more than a threshold, one at which that costs as much on the
validation clips: whether how much moves says how many tokens a clip needs. Seeds that --results_dir holds are not done
again.
"""

import argparse
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flux_hf.auto_budgets import BudgetLadder
from flux_hf.checkpoint_files import write_text
from flux_hf.loading import load_classifier, load_processor
from flux_hf.token_selection import TOKEN_SELECTORS

from ..inference.points import AutoPoint, EvalPoint
from .design import BUDGETS, CLIPS, METHODS, NUM_FRAMES, SIZE, TOKENS, WAYS, new_model, point_flops
from .intervals import paired_difference
from .records import Records, machine, pack, read_hits, unpack
from .report import spread, table
from .runs import EVALUATION, call
from .tasks import count, have_clips, read_rows


NAME = "generator"  # the clips'
TOLERANCE = 0.5  # points below all tokens
RANDOM = "as many at each, at random"
FIXED = "one budget for all, chosen likewise"  # the least that is accurate enough by itself
THRESHOLD = "what moved more than a threshold, at auto's cost"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study_dir", type=Path, required=True, help="--output_dir of training.study; is only read")
    parser.add_argument("--output_dir", type=Path, required=True, help="calibrated copies, and what they say")
    parser.add_argument("--results_dir", type=Path, help="what they got right, and tables; OUTPUT_DIR/results")
    parser.add_argument("--method", choices=METHODS, default="multi")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--calibration_clips", type=count, default=1920, help="of the generator's validation clips")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--report_only", action="store_true", help="only tables of what was done")
    args = parser.parse_args(arguments)
    args.results_dir = (args.results_dir or args.output_dir / "results").absolute()
    return args


def shapes_of(model: Path) -> dict[str, tuple[int, int]]:
    """Way -> frames and size, the same for all budgets: the trained clip, and the plan's for all tokens."""
    plan = json.loads((model / "config.json").read_text(encoding="utf-8"))["token_plan"]
    return {"direct": (NUM_FRAMES, SIZE), "to": tuple(plan[str(TOKENS)])}


@dataclass(frozen=True)
class Tables:
    """Lists of clips: those that choose, and those that are measured."""

    validation: Path
    test: Path

    def test_names(self) -> list[str]:
        return [row["path"] for row in read_rows(self.test)]


@torch.no_grad()
def movements(checkpoint: Path, table: Path, shape: tuple[int, int]) -> torch.Tensor:
    """How far every patch of listed clips moved, as the threshold selector has it: (clips, patches)."""
    model = load_classifier(str(checkpoint)).eval()
    processor, selector = load_processor(str(checkpoint), model.config), TOKEN_SELECTORS["threshold"]
    frames, size = shape
    moved = []
    for row in read_rows(table):
        views = processor(str(table.parent / row["path"]), num_frames=frames, size=size, return_tensors="pt")
        patches, _ = model.embed(views["pixel_values_videos"])
        moved.append(selector.scores(patches, 1).flatten())
    return torch.stack(moved)


def threshold_at_cost(moved: torch.Tensor, shape: tuple[int, int], gflops: float) -> float:
    """The least threshold at which clips cost no more on average, every patch's embedding included.

    Args:
        moved: (clips, patches) of `movements`.
        shape: Frames and size.
        gflops: Of a view.
    """
    model = new_model()
    costs = [model.flops(*shape, number, dense_embedding=True) / 1e9 for number in range(1, TOKENS + 1)]

    def saved(threshold: float) -> float:  # rises with the threshold, as bisection needs it
        kept = (moved > threshold).sum(1).clamp(1, TOKENS)
        return -sum(costs[number - 1] for number in kept.tolist()) / len(kept)

    steps = [0.0, *moved.flatten().unique().tolist()]
    return steps[min(bisect_left(steps, -gflops, key=saved), len(steps) - 1)]


def measure_threshold(
    copy: Path, tables: Tables, folder: Path, shape: tuple[int, int], gflops: float, threads: int
) -> dict[str, Any]:
    """What a calibrated copy gets by the threshold selector at a cost.

    Args:
        copy, tables, shape, threads: As in `measure`.
        folder: For what the evaluation says.
        gflops: Of a view on average, on the validation clips.

    Returns:
        top1, hits, both GFLOPs, as of a budget; the threshold, and how many tokens were kept on average.
    """
    point = EvalPoint(*shape, TOKENS)
    if not (folder / "metrics.json").exists():
        threshold = threshold_at_cost(movements(copy, tables.validation, shape), shape, gflops)
        command = ["training.evaluate", "--points", str(point), *EVALUATION, "--model_name_or_path", str(copy)]
        command += ["--token_selection", "threshold", "--token_threshold", repr(threshold)]
        command += ["--data", str(tables.test), "--output_dir", str(folder)]
        call(command, folder.with_name(f"{folder.name}.log"), threads)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    [found], model = metrics["points"], new_model()
    patches, kept = point.dense_tokens(model.config), found["kept_tokens"]
    a_patch = (model.flops(*shape, 1, dense_embedding=True) - model.flops(*shape, 1)) / (patches - 1) / 1e9
    return {
        **_of_hits(read_hits(folder / "predictions.csv")[str(point)], tables.test_names()),
        "gflops": found["gflops_per_view"],
        "dense_gflops": found["gflops_per_view"] + (patches - kept) * a_patch,
        "threshold": metrics["token_threshold"],
        "kept_tokens": kept,
    }


def measure(model: Path, tables: Tables, folder: Path, shape: tuple[int, int], threads: int) -> dict[str, Any]:
    """Calibrates a copy of a model on a clip shape, and measures it.

    Args:
        model: The checkpoint; is only read.
        tables: The clips.
        folder: Where the copy goes, and beside it what it says.
        shape: Frames and size.
        threads: Of a process.

    Returns:
        What was calibrated; and of each budget, of "auto" and of `THRESHOLD` top1, hits, GFLOPs of a view, and these
        with all patches embedded; of "auto" also the share of clips that stop at each budget.
    """
    frames, size = map(str, shape)
    budgets = sorted(BUDGETS, reverse=True)
    said, log = folder.with_name(f"{folder.name}_test"), folder.with_name(f"{folder.name}.log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        command = ["training.optimize_tokens", "--auto", "--auto_tolerance", str(TOLERANCE), *EVALUATION]
        command += ["--model_name_or_path", str(model), "--data", str(tables.validation), "--output_dir", str(folder)]
        call([*command, "--token_budgets", *map(str, budgets), "--frames", frames, "--sizes", size], log, threads)
    if not (said / "metrics.json").exists():
        command = ["training.evaluate", "--token_budgets", "auto", *map(str, budgets), *EVALUATION]
        command += ["--model_name_or_path", str(folder), "--data", str(tables.test), "--output_dir", str(said)]
        call([*command, "--num_frames", frames, "--size", size], log, threads)
    names = tables.test_names()
    hits, metrics = read_hits(said / "predictions.csv"), json.loads((said / "metrics.json").read_text(encoding="utf-8"))
    calibrated = json.loads((folder / "auto_budgets_calibration.json").read_text(encoding="utf-8"))
    of_auto, record = metrics["auto"], {"auto_budgets": metrics["auto"]["auto_budgets"]}
    if calibrated["auto_budgets"] != record["auto_budgets"]:
        raise ValueError(f"{said} is of another calibration than {folder} holds: delete it")
    record["validation"] = {name: calibrated[name] for name in ("accuracy", "gflops_per_view", "shares", "budgets")}
    flops = new_model()
    for budget in budgets:
        point = EvalPoint(*shape, budget)
        [gflops] = [one["gflops_per_view"] for one in metrics["points"] if one["point"] == str(point)]
        dense = sum(point_flops(flops, point).values()) / 1e9
        record[str(budget)] = {**_of_hits(hits[str(point)], names), "gflops": gflops, "dense_gflops": dense}
    record["auto"] = {
        **_of_hits(hits[str(AutoPoint(*shape))], names),
        "gflops": of_auto["gflops_per_view"],
        "dense_gflops": of_auto["gflops_per_view_with_dense_embedding"],
        "shares": of_auto["shares"],
    }
    ladder = BudgetLadder(**calibrated["auto_budgets"])
    dense = ladder.mean_flops(flops, list(calibrated["shares"].values()), dense_embedding=True) / 1e9
    moved = folder.with_name(f"{folder.name}_threshold")
    record[THRESHOLD] = measure_threshold(folder, tables, moved, shape, dense, threads)
    return record


def _of_hits(hits: dict[str, bool], names: Sequence[str]) -> dict[str, Any]:
    ordered = [hits[name] for name in names]
    return {"top1": sum(ordered) / len(ordered), "hits": pack(ordered)}


class Results:
    """What all seeds got right in one way.

    Args:
        records: Of the seeds.
        way: "direct" or "to".
        clips: How many.
    """

    def __init__(self, records: Sequence[dict[str, Any]], way: str, clips: int):
        self.runs, self.clips = [record[way] for record in records], clips

    def hits(self, name: str) -> np.ndarray:
        """(seeds, clips) of a budget, of "auto", of `THRESHOLD`, of `FIXED`, or, as shares, of `RANDOM`."""
        if name == RANDOM:
            return np.stack([self._expected(run) for run in self.runs])
        return np.stack([unpack(run[self._of(name, run)]["hits"], self.clips).astype(float) for run in self.runs])

    def _of(self, name: str, run: dict[str, Any]) -> str:
        if name != FIXED:
            return name
        return str(min(one["token_budget"] for one in run["validation"]["budgets"] if one["suffices_alone"]))

    def _expected(self, run: dict[str, Any]) -> np.ndarray:
        """(clips,): how often each is right if the budget that it stops at is drawn by auto's shares."""
        shares = run["auto"]["shares"].items()
        return sum(share * unpack(run[budget]["hits"], self.clips).astype(float) for budget, share in shares)

    def cost(self, name: str, kind: str) -> list[float]:
        """GFLOPs of each seed, in percent of those of all tokens."""
        name = "auto" if name == RANDOM else name
        return [100 * run[self._of(name, run)][kind] / run[str(TOKENS)][kind] for run in self.runs]

    def against(self, name: str) -> list[str]:
        """Lines that say by how much auto is better."""
        groups = list(map(str, range(self.clips)))
        return [f"auto - {name}: {paired_difference(self.hits('auto'), self.hits(name), groups)}", ""]

    def rows(self) -> Iterator[list[str]]:
        groups = list(map(str, range(self.clips)))
        most = self.hits(str(TOKENS))
        for name in [*map(str, sorted(BUDGETS, reverse=True)), "auto", RANDOM, THRESHOLD, FIXED]:
            hits = self.hits(name)
            against = "" if name == str(TOKENS) else str(paired_difference(hits, most, groups))
            title = f"{name} tokens" if name.isdigit() else name
            costs = [spread(self.cost(name, kind)) for kind in ("dense_gflops", "gflops")]
            yield [title, spread((100 * hits.mean(1)).tolist()), against, *costs]

    def ladder_rows(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        for seed, run in zip(seeds, self.runs, strict=True):
            auto, shares = run["auto_budgets"], run["auto"]["shares"]
            steps = [f"{budget} ({100 * shares[str(budget)]:.1f} %)" for budget in auto["token_budgets"]]
            thresholds = ", ".join(f"{value:.3f}" for value in auto["thresholds"])
            temperatures = ", ".join(f"{value:.2f}" for value in auto["temperatures"])
            gained = [100 * (top1 - most) for top1, most in (self._top1s(run, "validation"), self._top1s(run, "test"))]
            cost = f"{100 * run['auto']['dense_gflops'] / run[str(TOKENS)]['dense_gflops']:.1f}"
            yield [
                str(seed),
                ", ".join(steps),
                thresholds,
                temperatures,
                *(f"{points:+.1f}" for points in gained),
                cost,
            ]

    def _top1s(self, run: dict[str, Any], part: str) -> tuple[float, float]:
        """Of auto, and of all tokens."""
        if part == "test":
            return run["auto"]["top1"], run[str(TOKENS)]["top1"]
        [most] = [one["accuracy"] for one in run["validation"]["budgets"] if one["token_budget"] == TOKENS]
        return run["validation"]["accuracy"], most


def report(records: Records, method: str) -> str:
    """Writes results.md beside the records. Returns the text."""
    seeds, clips = records.seeds(NAME, method), len(records.groups(NAME))
    kept = [records.get(NAME, method, seed) for seed in seeds]
    lines = [f"# Budgets that choose themselves: {METHODS[method]}, {clips} test clips, seeds {seeds}", ""]
    for way in ("direct", "to"):
        results = Results(kept, way, clips)
        shapes = {(run["auto_budgets"]["num_frames"], run["auto_budgets"]["size"]) for run in results.runs}
        clip = ", ".join(f"{frames} frames of {size}x{size}" for frames, size in sorted(shapes))
        lines += [f"## {WAYS[way]}: {clip}", ""]
        header = ["", "top-1", f"- {TOKENS} tokens", "GFLOPs, %", "without dropped patches' embedding, %"]
        lines += [*table(header, results.rows()), "", *results.against(RANDOM), *results.against(THRESHOLD)]
        header = ["seed", "stops at (test clips)", "thresholds", "temperatures", "validation", "test", "GFLOPs, %"]
        lines += [*table(header, results.ladder_rows(seeds)), ""]
    text = "\n".join(lines)
    write_text(records.directory / "results.md", text)
    return text


def settings_of(method: str, calibration_clips: int) -> dict[str, Any]:
    """What all records share."""
    about = {"method": method, "clips": asdict(CLIPS), "token_budgets": BUDGETS, "tolerance": TOLERANCE}
    return {**about, "controls": [RANDOM, THRESHOLD, FIXED], "calibration_clips": calibration_clips}


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    records = Records(args.results_dir, settings_of(args.method, args.calibration_clips))
    if not args.report_only:
        validation = have_clips(args.output_dir / "clips", "val", args.calibration_clips)
        tables = Tables(validation, args.study_dir / NAME / "clips" / "test.csv")
        names = tables.test_names()
        records.put_clips(NAME, dict(zip(names, names, strict=True)))
        for seed in args.seeds:
            if records.get(NAME, args.method, seed) is not None:
                continue
            model = args.study_dir / NAME / f"{args.method}_seed{seed}" / "all"
            record = {"machine": machine(args.threads)}
            for way, shape in shapes_of(model).items():
                folder = args.output_dir / f"{args.method}_seed{seed}" / way
                record[way] = measure(model, tables, folder, shape, args.threads)
            records.put(NAME, args.method, seed, record)
    print(report(records, args.method))


if __name__ == "__main__":
    main()
