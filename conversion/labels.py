# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Class names and classifier rows: read from files, and applied to a checkpoint."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.report import ConversionError, KeyReport
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
    text = _read_text(path)
    if Path(path).suffix != ".json":
        labels = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        labels = _parse_json(path, text)
        if isinstance(labels, dict):
            if sorted(labels, key=_as_id) != [str(index) for index in range(len(labels))]:
                raise ValueError(f"{path}: the ids must be 0 to {len(labels) - 1}")
            labels = [labels[str(index)] for index in range(len(labels))]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: expected class names, as a JSON list or object or one a line")
    return labels


def _read_text(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def _parse_json(path: str | os.PathLike, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _as_id(key: str) -> int:
    return int(key) if key.isdecimal() else -1


def read_label_map(path: str | os.PathLike) -> list[int]:
    """Classifier rows to keep, from a JSON list of row numbers or a text file with one a line.

    Raises:
        ValueError: the file holds anything else.
    """
    text = _read_text(path)
    try:
        is_json = text.lstrip().startswith("[")
        rows = _parse_json(path, text) if is_json else [int(line) for line in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: expected row numbers, as a JSON list or one a line ({error})") from error
    if not rows or not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
        raise ValueError(f"{path}: expected row numbers, as a JSON list or one a line")
    return rows
