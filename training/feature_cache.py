# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A cache of a teacher's features on disk: it is asked once for each view of a clip, for all epochs and runs."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flux_hf.checkpoint_files import replacing, write_json

from .engine.loop import BatchOrder
from .teachers import TeacherFeatures


logger = logging.getLogger(__name__)

STORED = torch.float16  # rounds each component by 1 / 2048 of itself at most


class FeatureCache:
    """Features of views, a file each, in a folder named by all that they depend on.

    A view takes (n + K) x layers x D' x 2 bytes: 35 MB for 2048 tokens of six layers of InternVideo2-1B.

    Args:
        directory: Of the folder.
        origin: What the features depend on beside the view: plain values.
    """

    def __init__(self, directory: str | os.PathLike, origin: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]
        self.directory = Path(directory).absolute() / digest
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / "origin.json", origin)

    def _file(self, view: str) -> Path:
        # In sub-folders: file systems are slow with a hundred thousand names in one.
        return self.directory / view[:2] / f"{view}.safetensors"

    def read(self, views: Sequence[str]) -> TeacherFeatures | None:
        """The features of a batch's views, None if one is missing or damaged."""
        rows = []
        for view in views:
            try:
                with safe_open(self._file(view), "pt") as file:
                    names = file.keys()
                    rows.append(({name: file.get_tensor(name) for name in names}, file.metadata()))
            except (FileNotFoundError, SafetensorError) as error:
                if isinstance(error, SafetensorError):
                    logger.warning("%s is damaged and made anew: %s", self._file(view), error)
                return None
        batch = {name: torch.stack([tensors[name] for tensors, _ in rows]) for name in rows[0][0]}
        keep_indices, weights = batch.get("keep_indices"), batch.get("weights")
        return TeacherFeatures(
            tuple(batch["layers"].float().unbind(1)),
            batch["pooled"],
            weights,
            int(rows[0][1]["class_tokens"]),
            None if keep_indices is None else keep_indices.long(),
        )

    def write(self, views: Sequence[str], features: TeacherFeatures) -> TeacherFeatures:
        """Keeps features (B, ...) of a batch's views. Returns what `read` will give, rounding and all."""
        layers = torch.stack(features.layers, 1).to(STORED)
        batch = {"layers": layers, "pooled": features.pooled, "weights": features.weights}
        if features.keep_indices is not None:
            batch["keep_indices"] = features.keep_indices.int()
        batch = {name: values.cpu().contiguous() for name, values in batch.items() if values is not None}
        for row, view in enumerate(views):
            with replacing(self._file(view)) as temporary:
                of_view = {name: values[row].clone() for name, values in batch.items()}
                save_file(of_view, temporary, {"class_tokens": str(features.class_tokens)})
        return replace(features, layers=tuple(layers.float().unbind(1)))


class RepeatedEpochs:
    """An order of batches whose first epochs come again and again.

    Args:
        order: Of the batches.
        epochs: How many.
    """

    def __init__(self, order: BatchOrder, epochs: int):
        self.order, self.epochs = order, epochs

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """As the order's own."""
        self.order.set_epoch(epoch % self.epochs, skip_batches)


def names_of(seeds: Tensor, num_frames: int, size: int) -> list[str]:
    """Of views: the seed (B,) of all that is drawn for each, and the shape that its batch had."""
    return [f"{seed:016x}_{num_frames}x{size}" for seed in seeds.tolist()]
