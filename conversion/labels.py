# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Class names and classifier rows: read from files, and applied to a checkpoint."""

import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from conversion.report import ConversionError, KeyReport, read_json, read_text
from flux_hf import FluxViTConfig


def slice_labels(weights: dict[str, Tensor], rows: list[int], report: KeyReport) -> None:
    """Keeps these rows of every classifier, in this order (K710 -> K400 keeps the first 400).

    Raises:
        ConversionError: the checkpoint has no classifier, or not these rows.
    """
    names = [name for name in weights if name.startswith("head.")]
    if not names:
        raise ConversionError("the checkpoint has no classifier whose labels could be chosen")
    for name in names:
        available = len(weights[name])
        wrong = [row for row in rows if not 0 <= row < available]
        if wrong:
            raise ConversionError(f"labels {wrong[:5]} are not among the {available} of {name}")
        if rows == list(range(available)):
            continue
        report.notes.append(f"{name}: kept {len(rows)} of {available} rows")
        weights[name] = weights[name][torch.tensor(rows)]


def with_labels(config: FluxViTConfig, labels: list[str]) -> FluxViTConfig:
    """The config with these class names.

    Raises:
        ConversionError: they are not as many as the classifier's rows, or not all different.
    """
    if len(labels) != config.num_labels:
        raise ConversionError(f"{len(labels)} labels were given, but the classifier has {config.num_labels}")
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise ConversionError(f"labels must differ, these are given more than once: {repeated}")
    fields = config.to_dict()
    fields.update(id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)})
    return FluxViTConfig.from_dict(fields)


def read_labels(path: str | os.PathLike) -> list[str]:
    """Class names from a .json list or id -> name object, or from a text file with one name a line.

    Raises:
        ValueError: the file is neither, or its ids are not 0 ... n - 1.
    """
    if Path(path).suffix != ".json":
        labels = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    else:
        labels = read_json(path)
        if isinstance(labels, dict):
            ids = [str(index) for index in range(len(labels))]
            if set(labels) != set(ids):
                raise ValueError(f"{path}: the ids must be 0 to {len(labels) - 1}")
            labels = [labels[index] for index in ids]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: expected class names, as a JSON list or object or one a line")
    return labels


def read_label_map(path: str | os.PathLike) -> list[int]:
    """Classifier rows to keep, from a JSON list of row numbers or a text file with one a line.

    Raises:
        ValueError: the file holds anything else.
    """
    text = read_text(path)
    try:
        rows = read_json(path) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: expected row numbers, as a JSON list or one a line ({error})") from error
    if not rows or not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
        raise ValueError(f"{path}: expected row numbers, as a JSON list or one a line")
    return rows
