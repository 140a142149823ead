# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Target encoders: from what is known of a clip to the tensors that a loss is computed with."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .reader import Clip, Label
from .sources import labels_of


MULTI_LABEL = "multi_label_classification"


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
        label2id: Ids of the labels.
        multi_label: Whether a clip may have several.

    Raises:
        ValueError: no labels.
    """

    def __init__(self, label2id: Mapping[str, int], multi_label: bool = False):
        if not label2id:
            raise ValueError("label2id must hold at least one label, got none")
        self.label2id, self.multi_label = dict(label2id), multi_label

    def encode(self, label: Label, name: str) -> dict[str, Tensor]:
        """Raises ValueError for a label that is missing or not in `label2id`, or several without `multi_label`."""
        if label is None:
            raise ValueError(f"clip {name} has no label")
        labels = labels_of(label)
        if len(labels) != 1 and not self.multi_label:
            raise ValueError(f"clip {name} has the labels {list(labels)}: one is needed, or a multi-label training")
        unknown = [one for one in labels if one not in self.label2id]
        if unknown:
            raise ValueError(f"labels must be some of {sorted(self.label2id)}, got {unknown} of clip {name}")
        ids = [self.label2id[one] for one in labels]
        if not self.multi_label:
            return {"labels": torch.tensor(ids[0])}
        target = torch.zeros(max(self.label2id.values()) + 1)
        target[ids] = 1
        return {"labels": target}


def label_targets(clips: Sequence[Clip], config: Any) -> Tensor:
    """What the model should say: (clips,) int64, or (clips, num_labels) float32 of 0 and 1 for a multi-label model.

    A label is one of the model's names, or an index into them where no name reads like that.

    Raises:
        ValueError: labels the model does not have, a clip without one, or several for a model that gives one.
    """
    multi_label = config.problem_type == MULTI_LABEL
    unlabelled = [clip.name for clip in clips if clip.label is None]
    if unlabelled:
        raise ValueError(f"every clip needs a label, {len(unlabelled)} have none, the first of them {unlabelled[0]!r}")
    names = [clip.label if isinstance(clip.label, tuple) else (clip.label,) for clip in clips]
    if not multi_label:
        for clip, own in zip(clips, names, strict=True):
            if len(own) != 1:
                raise ValueError(f"the model gives one label a clip, {clip.name!r} has {list(own)}")
    known = {name: index for index, name in config.id2label.items()}  # `label2id` may be missing or differ
    ids = {name: _label_id(name, known) for own in names for name in own}
    unknown = sorted(name for name, index in ids.items() if index is None)
    if unknown:
        shown = f"{list(known)[:10]}" + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise ValueError(f"labels must be some of {shown}, or indices into them, got {unknown}")
    if not multi_label:
        return torch.tensor([ids[own[0]] for own in names])
    targets = torch.zeros(len(clips), config.num_labels)
    for row, own in zip(targets, names, strict=True):
        row[[ids[name] for name in own]] = 1
    return targets


def _label_id(name: str, known: dict[str, int]) -> int | None:
    if name in known:
        return known[name]
    return int(name) if name.isdecimal() and int(name) in known.values() else None
