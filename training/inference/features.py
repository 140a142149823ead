# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of parts of videos, and the shards that hold them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from flux_hf.checkpoint_files import plain_text, replacing, write_csv, write_text
from flux_hf.loading import load_encoder, load_processor
from flux_hf.patch_grids import scatter_to_grid
from flux_hf.protocol import selects_by_threshold
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..arguments import CheckpointArguments
from .measures import refuse_nan
from .parts import Part
from .points import EvalPoint, resolve_point
from .prediction import normalize
from .units import ShardFolder, read_rows


KINDS = ("pooled", "time", "tokens")
SHARD = "features-{:06}.parquet"
FAILURES = "failures-{:06}.csv"
MOST_VALUES = 2**31 - 1  # of one Arrow array


@dataclass(frozen=True)
class FeatureMaker:
    """An encoder's features of clips.

    Args:
        model: With the four steps of `flux_hf/protocol.py`, on its device.
        point: How clips are shown.
        kind: "pooled", one vector (P,); "time", the mean of the kept patches of each time step (T', D), NaN where none
            was kept; "tokens", all kept patches at their places (T', h, w, D), NaN where none was.
        layer: Whose output, counted from 0; the last one's, behind the last norm where there is one, if not given.
            Not of "pooled".
    """

    model: Any
    point: EvalPoint
    kind: str
    layer: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the features of one part."""
        config = self.model.config
        if self.kind == "pooled":
            return (config.projection_dim,)
        return (*(self.grid[:1] if self.kind == "time" else self.grid), config.hidden_size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T', h, w)."""
        side = self.point.size // self.model.config.patch_size
        return self.point.num_frames // self.model.config.tubelet_size, side, side

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """(B, T, 3, S, S), normalised -> (B, *shape) float32."""
        patches, grid = self.model.embed(videos)
        if not selects_by_threshold(self.model):
            return self._of_kept(patches, grid)
        clips = torch.arange(len(patches), device=patches.device).split(1)
        return torch.cat([self._of_kept(*self.model.take_clips(patches, grid, clip)) for clip in clips])

    def _of_kept(self, patches: Tensor, grid: Any) -> Tensor:
        budget = self.model.config.token_budget if self.point.token_budget is None else self.point.token_budget
        [keep_indices] = self.model.select(patches, [budget])
        layers = [] if self.layer is None else [self.layer]
        hidden_states, states = self.model.encode(patches, grid, keep_indices, layers)
        if self.kind == "pooled":
            head = self.model.resolve_head(keep_indices.shape[1])
            return self.model.pool(hidden_states, head)[0].float()
        states = states[0] if states else hidden_states
        tokens = states[:, states.shape[1] - keep_indices.shape[1] :].float()
        volume, _ = scatter_to_grid(tokens, keep_indices, self.grid, fill=torch.nan)
        return volume if self.kind == "tokens" else volume.flatten(2, 3).nanmean(2)


@dataclass(frozen=True)
class Features:
    """Features of views as they are shown: a `Measure`."""

    maker: FeatureMaker
    processor: FluxViTVideoProcessor
    accelerator: Accelerator

    @property
    def model(self) -> Any:
        return self.maker.model

    @property
    def point(self) -> EvalPoint:
        return self.maker.point

    def __call__(self, pixels: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.maker(normalize(pixels.to(self.accelerator.device), self.processor))


@dataclass(frozen=True)
class FeatureSource:
    """Loads what makes features.

    Args:
        checkpoint: Names it.
        num_frames, size, token_budget: As in `resolve_point`.
        kind, layer: As in `FeatureMaker`.
    """

    checkpoint: CheckpointArguments
    num_frames: int | None
    size: int | None
    token_budget: int | None
    kind: str
    layer: int | None

    def __call__(self, accelerator: Accelerator) -> Features:
        """On the accelerator's device.

        Raises:
            ValueError: a point that the model cannot be shown, or a layer it does not have.
        """
        hub_options = self.checkpoint.hub_options()
        model = load_encoder(self.checkpoint.model_name_or_path, **hub_options, **self.checkpoint.model_options())
        processor = load_processor(self.checkpoint.model_name_or_path, model.config, **hub_options)
        point = resolve_point(model.config, processor, self.num_frames, self.size, self.token_budget)
        last = model.config.num_hidden_layers - 1
        if self.layer is not None and self.layer > last:
            raise ValueError(f"--layer must be from 0 to {last}, got {self.layer}")
        model = model.eval().requires_grad_(False).to(accelerator.device)
        return Features(FeatureMaker(model, point, self.kind, self.layer), processor, accelerator)


class FeatureShards(ShardFolder):
    """Features as parquet files.

    `datasets.load_dataset("parquet", data_files="FOLDER/*.parquet")` reads them: columns video, start, end, vector.

    Args:
        directory: Their folder.
        origin: What the features depend on: plain values.
        shape: Of a part's features.
        dtype: "float16" or "float32".

    Raises:
        ValueError: the folder holds features of another origin.
    """

    def __init__(self, directory: Path, origin: dict[str, Any], shape: Sequence[int], dtype: str):
        super().__init__(directory, SHARD)
        self.origin, self.dtype, self.shape = json.dumps(origin, indent=2, sort_keys=True) + "\n", dtype, tuple(shape)
        file = directory / "origin.json"
        if file.exists() and file.read_text(encoding="utf-8") != self.origin:
            kept = json.loads(file.read_text(encoding="utf-8"))
            other = sorted(name for name in {*kept, *origin} if kept.get(name) != origin.get(name))
            raise ValueError(f"{directory} holds features that were made otherwise ({', '.join(other)}): give another")
        value = datasets.Value(dtype)
        arrays = {2: datasets.Array2D, 4: datasets.Array4D}
        of_part = datasets.List(value, shape[0]) if len(shape) == 1 else arrays[len(shape)](tuple(shape), dtype)
        self.features = datasets.Features(
            video=datasets.Value("string"),
            start=datasets.Value("float64"),
            end=datasets.Value("float64"),
            vector=of_part,
        )

    def prepare(self) -> None:
        super().prepare()
        write_text(self.directory / "origin.json", self.origin)

    def write(self, unit: int, parts: Sequence[Part], values: Tensor | None) -> None:
        """Also lists what could not be read. Raises FloatingPointError where features are not numbers."""
        read = [part for part in parts if not part.error]
        failed = [(part.name, part.error) for part in parts if part.error]
        if values is not None:
            refuse_nan(read, values.flatten(1).isnan().all(1))  # what was dropped is NaN
        listed = self.directory / FAILURES.format(unit)
        if failed:  # before the shard, which says that the unit is done
            write_csv(listed, ("video", "error"), failed)
        else:
            listed.unlink(missing_ok=True)  # of a run whose shard is gone
        vectors = [] if values is None else list(values.to(getattr(torch, self.dtype)).numpy())
        at_once = max(1, MOST_VALUES // math.prod(self.shape))
        starts = range(0, max(1, len(read)), at_once)
        rows = [self._rows(read[start : start + at_once], vectors[start : start + at_once]) for start in starts]
        with replacing(self.path(unit)) as temporary:
            datasets.concatenate_datasets(rows).to_parquet(temporary)

    def _rows(self, parts: Sequence[Part], vectors: list[np.ndarray]) -> datasets.Dataset:
        columns = {
            "video": [plain_text(part.name) for part in parts],
            "start": [part.start for part in parts],
            "end": [part.end for part in parts],
            "vector": vectors,
        }
        return datasets.Dataset.from_dict(columns, features=self.features)

    def failures(self) -> list[tuple[str, str]]:
        """(video, error) of what could not be read, in the order of the units."""
        paths = sorted(self.directory.glob("failures-*.csv"))
        return [(video, error) for path in paths for video, error in read_rows(path)]
