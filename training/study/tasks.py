# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The study's data sets: the generator's clips, and folders of real ones in parts that take turns at being tested."""

import argparse
import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flux_hf.checkpoint_files import write_csv

from ..data.groups import part_groups
from .design import CLIPS
from .motion_clips import write_motion_clips


# Where the models of a real set's clips begin: the suffix of its task's name. "scratch_long" and "distilled" are those
# of `real_teacher.py`.
STARTS = {
    "scratch": "from scratch",
    "scratch_long": "from scratch, as many steps in all",
    "made_up": "from the made-up clips' models",
    "distilled": "from students of a real teacher",
}


@dataclass(frozen=True)
class Fold:
    """A part of a data set: csv files of the clips to train on, and of those to test."""

    name: str
    train: Path
    test: Path


@dataclass(frozen=True)
class Task:
    """A data set with what is done on it.

    Args:
        name: Of its folder in the output.
        recipe: `recipes/RECIPE.yaml` holds the flags of all its runs.
        folds: Each clip is tested in one of them.
        groups: Test clip -> group, those that are alike: all folds' clips, in the order they are kept in.
        validation: csv of clips, tested in no fold, that token optimization chooses by; without one it chooses by the
            clips of the other folds.
        root: Folder that the csv's paths are relative to; their own if not given.
        made_up: The task of the generator's clips, if models begin as those of the same method and seed there.
        pretrained: Folder of the models that those of a seed begin as, "{seed}" in it standing for that.
        views: Flags of the evaluation.
        horizontal_flip: Probability in training.
    """

    name: str
    recipe: str
    folds: tuple[Fold, ...]
    groups: dict[str, str]
    validation: Path | None = None
    root: Path | None = None
    made_up: "Task | None" = None
    pretrained: str | None = None
    views: tuple[str, ...] = ()
    horizontal_flip: float = 0.0


def count(text: str) -> int:
    """A flag's whole number of at least 1; for argparse, which names flag and value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a csv file."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def have_clips(directory: Path, split: str, number: int) -> Path:
    """Writes the first clips of a split of the generator's, unless they are there. Returns their table."""
    listed = directory / f"{split}.csv"
    if not listed.exists() or len(read_rows(listed)) != number:
        write_motion_clips(directory, number, 0, split, CLIPS)
    return listed


def make_generator_task(output_dir: Path, num_clips: Sequence[int]) -> Task:
    """Writes the generator's clips (training, validation, test) unless they are there."""
    directory = output_dir / "generator" / "clips"
    for split, number in zip(("train", "val", "test"), num_clips, strict=True):
        have_clips(directory, split, number)
    names = [row["path"] for row in read_rows(directory / "test.csv")]
    return Task(
        "generator",
        "generator",
        (Fold("all", directory / "train.csv", directory / "test.csv"),),
        dict(zip(names, names, strict=True)),
        validation=directory / "val.csv",
    )


def make_real_tasks(
    output_dir: Path,
    data_dir: Path,
    split_csv: str,
    num_folds: int,
    made_up: Task | None,
    max_clips: int | None = None,
) -> list[Task]:
    """Parts a real set's clips by groups, and lists them: tasks from scratch and from the made-up clips' models.

    Whole groups (column `group`: a sequence, a person) are tested together. Training mirrors clips unless a label names
    a side: "left" would become "right".

    Args:
        output_dir: Where the lists go.
        data_dir: The set's folder.
        split_csv: Its table: path,label,group.
        num_folds: Parts.
        made_up: The task of the generator's clips; without it only the task from scratch is made.
        max_clips: Take only so many, evenly spread over the table, of labels in several parts: for a short try.

    Raises:
        ValueError: a column is missing, or the groups cannot be parted so that every label is in all training parts.
    """
    table = data_dir / split_csv
    rows = read_rows(table)
    missing = sorted({"path", "label", "group"} - set(rows[0] if rows else ()))
    if missing:
        raise ValueError(f"{table} must have columns path, label and group, {missing} missing")
    if max_clips is not None and max_clips < len(rows):
        rows = [rows[index * len(rows) // max_clips] for index in range(max_clips)]
    part_of = part_groups([row["group"] for row in rows], num_folds)
    if max_clips is not None:  # of so few clips some labels are in one part alone
        rows = of_labels_in_several_parts(rows, part_of)
    name = data_dir.resolve().name
    folds = list_folds(rows, part_of, output_dir / name)
    labels = {row["label"] for row in rows}
    sided = any(re.search(r"(?<![a-z])(left|right)(?![a-z])", label.lower()) for label in labels)
    return [
        Task(
            f"{name}_{start}",
            f"real_{start}",
            folds,
            {row["path"]: row["group"] for row in rows},
            root=Path(os.path.abspath(data_dir)),
            made_up=made_up if start == "made_up" else None,
            views=("--num_crops", "3"),
            horizontal_flip=0.0 if sided else 0.5,
        )
        for start in ("scratch", "made_up")
        if start == "scratch" or made_up is not None
    ]


def list_folds(rows: Sequence[dict[str, str]], part_of: dict[str, int], directory: Path) -> tuple[Fold, ...]:
    """Writes the lists of each part; `part_of`: group -> part.

    Raises:
        ValueError: all groups of a label are in one part.
    """
    directory.mkdir(parents=True, exist_ok=True)
    labels = {row["label"] for row in rows}
    folds = []
    for fold in range(len(set(part_of.values()))):
        parts = {
            "train": [row for row in rows if part_of[row["group"]] != fold],
            "test": [row for row in rows if part_of[row["group"]] == fold],
        }
        unseen = sorted(labels - {row["label"] for row in parts["train"]})
        if unseen:
            raise ValueError(f"{directory.name}: part {fold} of the clips has all groups with the labels {unseen}")
        for part, listed in parts.items():
            lines = [(row["path"], row["label"]) for row in listed]
            write_csv(directory / f"fold{fold}_{part}.csv", ("path", "label"), lines)
        folds.append(Fold(f"fold{fold}", *(directory / f"fold{fold}_{part}.csv" for part in parts)))
    return tuple(folds)


def of_labels_in_several_parts(rows: Sequence[dict[str, str]], part_of: dict[str, int]) -> list[dict[str, str]]:
    """The rows whose label is in more than one part; `part_of`: group -> part."""
    parts: dict[str, set[int]] = {}
    for row in rows:
        parts.setdefault(row["label"], set()).add(part_of[row["group"]])
    return [row for row in rows if len(parts[row["label"]]) > 1]
