# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The study's data sets: the generator's clips, and a folder of real ones."""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flux_hf.checkpoint_files import write_csv

from .design import CLIPS
from .motion_clips import write_motion_clips


HELD_OUT_SHARE = 0.4  # few clips choose badly; what is tested is trained on all of them
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val"}


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
        if not listed.exists() or len(listed.read_text(encoding="utf-8").splitlines()) != number + 1:
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
