# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Target encoders: from what is known of a clip to the tensors that a loss is computed with."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .clip_table import distinct_labels
from .reader import Clip, Label
from .sources import labels_of


MULTI_LABEL = "multi_label_classification"


def with_numbers(label2id: Mapping[str, int]) -> dict[str, int]:
    """Names to ids, and the ids' own numbers too, unless some name is a number itself."""
    numbers = {} if any(map(str.isdecimal, label2id)) else {str(index): index for index in label2id.values()}
    return {**numbers, **label2id}


class TargetEncoder(Protocol):
    """What a data set asks for the targets of the clips it reads."""

    def encode(self, label: Label, name: str) -> dict[str, Tensor]:
        """A clip's targets, by name, to be stacked in batches. Raises ValueError, naming the clip, where none fit."""


class NoTargets:
    """For training that learns from the pixels alone."""

    def encode(self, label: Label, name: str) -> dict[str, Tensor]:
        return {}


class ClassTargets:
    """`labels`: the id of a clip's class () int64; with `multi_label` 0 and 1 for each class, (num_labels,) float32.

    Args:
        label2id: Ids of what labels may be called.
        multi_label: Whether a clip may have several.

    Raises:
        ValueError: no labels.
    """

    def __init__(self, label2id: Mapping[str, int], multi_label: bool = False):
        if not label2id:
            raise ValueError("label2id must hold at least one label, got none")
        self.label2id, self.multi_label = dict(label2id), multi_label

    def encode(self, label: Label, name: str) -> dict[str, Tensor]:
        """Raises ValueError for a label that is missing or unknown, or several without `multi_label`."""
        if label is None:
            raise ValueError(f"clip {name} has no label")
        labels = labels_of(label)
        if len(labels) != 1 and not self.multi_label:
            raise ValueError(f"clip {name} has the labels {list(labels)}: one is needed, or a multi-label training")
        unknown = [one for one in labels if one not in self.label2id]
        if unknown:
            known = sorted(self.label2id)
            shown = f"{known[:10]}" + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise ValueError(f"labels must be some of {shown}, got {unknown} of clip {name}")
        ids = [self.label2id[one] for one in labels]
        if not self.multi_label:
            return {"labels": torch.tensor(ids[0])}
        target = torch.zeros(max(self.label2id.values()) + 1)
        target[ids] = 1
        return {"labels": target}


def encode_labels(clips: Sequence[Clip], targets: ClassTargets) -> Tensor:
    """(clips,) int64, or (clips, num_labels) float32 of 0 and 1 for several labels a clip.

    Raises:
        ValueError: as `ClassTargets.encode`.
    """
    labels, codes, firsts = distinct_labels(clips)
    encoded = [targets.encode(label, clips[first].name)["labels"] for label, first in zip(labels, firsts, strict=True)]
    return torch.stack(encoded)[torch.from_numpy(codes)]


def class_shares(clips: Sequence[Clip], targets: ClassTargets) -> tuple[Tensor, Tensor]:
    """How often each class occurs, (num_labels,), and what each clip is worth so that all classes are, (clips,).

    A clip of several labels is worth the mean of what they are.
    """
    encoded = encode_labels(clips, targets)
    if encoded.ndim == 1:
        counts = torch.bincount(encoded, minlength=max(targets.label2id.values()) + 1).double()
        return counts, 1 / counts[encoded]
    counts = encoded.double().sum(0)
    return counts, (encoded / counts.clamp(min=1)).sum(1) / encoded.sum(1)


def label_targets(clips: Sequence[Clip], config: Any) -> Tensor:
    """What a model should say, as `encode_labels`. Labels are its own: names, or their numbers where no name is one."""
    label2id = {name: index for index, name in config.id2label.items()}  # the config's `label2id` may be missing
    return encode_labels(clips, ClassTargets(with_numbers(label2id), config.problem_type == MULTI_LABEL))
