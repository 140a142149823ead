# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of a frozen encoder for probes: made once for each clip and budget, kept in shards, read back.

Shapes: B clips, T frames, P the pooled feature's width, K kept tokens, D their width. A clip's vector in the shards is
its pooled feature, followed by its tokens where these are kept too: (P,) or (P + K * D,).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from flux_hf.checkpoint_files import plain_text
from flux_hf.loading import ENCODERS, is_plain, load_encoder, load_processor
from flux_hf.protocol import check_exact_budgets
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..arguments import CheckpointArguments
from ..data.reader import Clip
from ..inference.features import FeatureShards
from ..inference.parts import Part, UnitMaker, WholeClips, make_units
from ..inference.points import EvalPoint, default_shape, resolve_point
from ..inference.prediction import normalize
from ..inference.units import Shards, go_through
from ..teachers import encode_pictures, load_image_encoder


IMAGE_ENCODER_FRAMES = 8


class ClipFeatures(NamedTuple):
    """Of clips at one budget: (B, P) and (B, K, D)."""

    pooled: Tensor
    tokens: Tensor


class Widths(NamedTuple):
    """P, K and D."""

    pooled: int
    tokens: int
    hidden: int


@dataclass(frozen=True)
class VideoEncoder:
    """An encoder with the steps of `flux_hf/protocol.py`. Class tokens are no tokens of it.

    Args:
        model: In evaluation mode, on its device.
        processor: Makes its clips.
        points: Of one clip shape.
    """

    model: Any
    processor: FluxViTVideoProcessor
    points: Sequence[EvalPoint]

    def widths(self, point: EvalPoint) -> Widths:
        """Of the features at a point."""
        config = self.model.config
        return Widths(config.projection_dim, point.kept_tokens(self.model), config.hidden_size)

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> list[ClipFeatures]:
        """(B, T, 3, S, S), normalised, at each point; embedding and scores are shared."""
        patches, grid = self.model.embed(videos)
        features = []
        for keep_indices in self.model.select(patches, [point.token_budget for point in self.points]):
            kept = keep_indices.shape[1]
            hidden_states, _ = self.model.encode(patches, grid, keep_indices)
            pooled, _ = self.model.pool(hidden_states, self.model.resolve_head(kept))
            features.append(ClipFeatures(pooled, hidden_states[:, hidden_states.shape[1] - kept :]))
        return features


@dataclass(frozen=True)
class ImageEncoder:
    """An image encoder read frame by frame: all patches of all frames, behind its last norm, and the frames' mean.

    It encodes whole frames, so it has one point, without a budget.
    """

    model: PreTrainedModel
    processor: FluxViTVideoProcessor
    points: Sequence[EvalPoint]

    def widths(self, point: EvalPoint) -> Widths:
        """Of the features at the point."""
        config = self.model.config
        return Widths(config.hidden_size, point.shape.num_tokens(config.patch_size, 1), config.hidden_size)

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> list[ClipFeatures]:
        """(B, T, 3, S, S), normalised."""
        [point], (batch, frames) = self.points, videos.shape[:2]
        outputs = encode_pictures(self.model, videos.flatten(0, 1))
        patches = self.widths(point).tokens // frames
        tokens = outputs.last_hidden_state[:, -patches:]
        pooled = outputs.pooler_output.unflatten(0, (batch, frames)).mean(1)
        return [ClipFeatures(pooled, tokens.unflatten(0, (batch, frames)).flatten(1, 2))]


Encoder = VideoEncoder | ImageEncoder


def load_probed(
    args: CheckpointArguments,
    accelerator: Accelerator,
    num_frames: int | None,
    size: int | None,
    token_budgets: Sequence[int] | None,
) -> Encoder:
    """A frozen encoder at its points, on the accelerator's device.

    Args:
        args: Name it: whatever `load_encoder` loads; every other kind is taken for an image encoder.
        accelerator: Says where.
        num_frames, size: Of a clip; the model's default if not given, of an image encoder 8 frames.
        token_budgets: Of a video encoder; its trained ones if not given.

    Raises:
        ValueError: a clip that patches or tubelets do not divide, more tokens than it has, budgets of an image
            encoder, or one that selects by a threshold.
    """
    source, hub = args.model_name_or_path, args.hub_options()
    config = AutoConfig.from_pretrained(source, **hub)
    if config.model_type in ENCODERS or is_plain(config):
        model = load_encoder(source, **hub, **args.model_options())
        check_exact_budgets(model, "a probe")
        processor = load_processor(source, model.config, **hub)
        clip = resolve_point(model.config, processor, num_frames, size)
        dense = clip.dense_tokens(model.config)
        budgets = token_budgets or [min(budget, dense) for budget in model.config.token_budgets]
        if max(budgets) > dense:
            raise ValueError(f"--token_budgets must be at most the {dense} tokens of {clip}, got {max(budgets)}")
        points = [EvalPoint(clip.num_frames, clip.size, budget) for budget in dict.fromkeys(budgets)]
        kind = VideoEncoder
    elif token_budgets:
        raise ValueError(
            f"--token_budgets is for encoders that select tokens, got {list(token_budgets)} of {config.model_type}, "
            "which encodes whole frames"
        )
    else:
        model = load_image_encoder(source, **hub, **args.model_options())
        processor = image_clip_processor(source, **hub)
        point = EvalPoint(num_frames or processor.num_frames, size or default_shape(model.config, processor).size)
        if point.size % model.config.patch_size:
            raise ValueError(f"{point}: the size must be a multiple of patch_size={model.config.patch_size}")
        kind, points = ImageEncoder, [point]
    return kind(model.eval().requires_grad_(False).to(accelerator.device), processor, points)


def image_clip_processor(source: str, **hub: Any) -> FluxViTVideoProcessor:
    """One that gives clips of pictures as an image encoder's own processor makes them."""
    own = AutoImageProcessor.from_pretrained(source, **hub)
    crop = getattr(own, "crop_size", None) or own.size
    settings = {"image_mean": own.image_mean, "image_std": own.image_std, "resample": own.resample, "antialias": True}
    return FluxViTVideoProcessor(size=dict(own.size), crop_size=dict(crop), num_frames=IMAGE_ENCODER_FRAMES, **settings)


def open_shards(
    directory: Path, encoder: Encoder, point: EvalPoint, with_tokens: bool, origin: dict[str, Any], dtype: str
) -> FeatureShards:
    """The shards of a list of clips at a point, under `directory`.

    Raises:
        ValueError: they were made otherwise.
    """
    kind = "tokens" if with_tokens else "pooled"
    widths = encoder.widths(point)
    length = widths.pooled + with_tokens * widths.tokens * widths.hidden
    return FeatureShards(
        directory / f"{point}-{kind}", {**origin, "point": str(point), "dtype": dtype}, (length,), dtype
    )


class OfPoints(Shards):
    """The shards of several points as one: rows of what is kept at each, one behind the other."""

    def __init__(self, shards: Sequence[FeatureShards]):
        self.shards = shards
        self.lengths = [of_point.features["vector"].length for of_point in shards]

    def is_done(self, unit: int) -> bool:
        return all(of_point.is_done(unit) for of_point in self.shards)

    def prepare(self) -> None:
        for of_point in self.shards:
            of_point.prepare()

    def write(self, unit: int, parts: Sequence[Part], values: Tensor | None) -> None:
        rows = [None] * len(self.shards) if values is None else values.split(self.lengths, dim=1)
        for of_point, some in zip(self.shards, rows, strict=True):
            of_point.write(unit, parts, some)


def make_features(
    clips: Sequence[Clip],
    encoder: Encoder,
    shards: Sequence[FeatureShards],
    clips_per_shard: int,
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
) -> None:
    """Makes what the shards of each point lack; processes share the clips, each decoded once for all points.

    Collective.
    """
    of_points = OfPoints(shards)

    def flat(pixels: Tensor) -> Tensor:
        """(B, T, 3, S, S) uint8 -> (B, all points' lengths)."""
        with accelerator.autocast():
            made = encoder(normalize(pixels.to(accelerator.device), encoder.processor))
        rows = [torch.cat([some.pooled, some.tokens.flatten(1)], dim=1).float() for some in made]
        return torch.cat([row[:, :length] for row, length in zip(rows, of_points.lengths, strict=True)], dim=1)

    make = UnitMaker(WholeClips(encoder.processor, encoder.points[0]), views=1, batch_size=batch_size)
    go_through(clips, clips_per_shard, make, flat, of_points, accelerator, num_workers)


def read_features(
    shards: FeatureShards, clips: Sequence[Clip], clips_per_shard: int, widths: Widths
) -> tuple[np.ndarray, np.ndarray, Tensor | None]:
    """Reads all of a point's features.

    Returns:
        Positions of the clips (n,) that could be read, their pooled features (n, P) float32, and their tokens
        (n, K, D) in the shards' type, or None.

    Raises:
        ValueError: no clip could be read, or a value is not finite.
    """
    tables = [
        pyarrow.parquet.read_table(shards.path(unit), columns=["video", "vector"])
        for unit in range(len(make_units(clips, clips_per_shard)))
    ]
    names = {name for table in tables for name in table["video"].to_pylist()}
    read = np.array([index for index, clip in enumerate(clips) if plain_text(clip.name) in names], dtype=np.int64)
    if not len(read):
        raise ValueError(f"none of {len(clips)} clips could be read")
    length = shards.features["vector"].length
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for table in tables for chunk in table["vector"].chunks]
    vectors = np.concatenate(parts).reshape(-1, length)
    if not np.isfinite(vectors).all():
        raise ValueError(f"features at {shards.directory.name} are not finite in {shards.dtype}: try --dtype float32")
    tokens = None
    if length > widths.pooled:
        tokens = torch.from_numpy(vectors[:, widths.pooled :]).unflatten(1, (widths.tokens, widths.hidden))
    return read, vectors[:, : widths.pooled].astype(np.float32), tokens
