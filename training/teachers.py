# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen teachers: video encoders with the model protocol, and image encoders that read a clip frame by frame.

A teacher whose patches are the student's encodes the tokens that its own selector keeps. One that cuts a clip in
another way encodes all of it, at a size that gives it as many patches a side as the student; its features are brought
to the student's grid by area (`to_grid`), and which tokens count is left to the student's selector.

Shapes: B clips, T frames, (T', h, w) the student's grid of N patches, K tokens that are kept, n class tokens, D' and P'
the teacher's width and projection width.
"""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel, CLIPVisionModel, PreTrainedModel, SiglipVisionModel

from flux_hf.protocol import VideoTokenClassifier
from flux_hf.token_selection import as_count, frame_difference_scores


TEACHER_TOKENS = 2048
PUBLISHED_INTERVAL, PUBLISHED_DEPTH = 3.34, 40
# Image encoders whose checkpoints may hold a text tower beside them.
IMAGE_TOWERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class TeacherFeatures:
    """What a teacher says of clips; L2-normalised, float32.

    Args:
        layers: (B, n + K, D') each, the class tokens first.
        pooled: (B, P').
        weights: (B, K): how much each token counts, above 0; None where the teacher does not say.
        class_tokens: n.
        keep_indices: (B, K) rising, into the student's grid: the patches that the others speak of; None: all, K = N.
    """

    layers: tuple[Tensor, ...]
    pooled: Tensor
    weights: Tensor | None
    class_tokens: int = 0
    keep_indices: Tensor | None = None

    def to(self, device: torch.device) -> "TeacherFeatures":
        """The same on another device."""
        layers = tuple(features.to(device, non_blocking=True) for features in self.layers)
        weights = None if self.weights is None else self.weights.to(device)
        keep_indices = None if self.keep_indices is None else self.keep_indices.to(device)
        return TeacherFeatures(layers, self.pooled.to(device), weights, self.class_tokens, keep_indices)

    def at(self, keep_indices: Tensor) -> "TeacherFeatures":
        """Of all patches, without class tokens, those that are kept."""
        layers = tuple(kept(features, keep_indices) for features in self.layers)
        weights = None if self.weights is None else self.weights.gather(1, keep_indices)
        return replace(self, layers=layers, weights=weights, keep_indices=keep_indices)


class Teacher(nn.Module):
    """A frozen encoder, in evaluation mode whatever it is asked, without gradients.

    Args:
        model: The encoder.
        layers: Whose outputs are features, counted from 0, rising; before any last norm. `spread_layers` gives them.
        token_budget: Tokens K to keep.

    Raises:
        ValueError: layers that the model does not have, or a budget below 1.
    """

    def __init__(self, model: Any, layers: Sequence[int], token_budget: int = TEACHER_TOKENS):
        super().__init__()
        last = model.config.num_hidden_layers - 1
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > last:
            raise ValueError(f"layers must be one or more from 0 to {last}, rising, got {list(layers)}")
        self.model = model.eval().requires_grad_(False)
        self.layers, self.token_budget = tuple(layers), as_count("token_budget", token_budget)

    @property
    def hidden_size(self) -> int:
        """D'."""
        return self.model.config.hidden_size

    @property
    def projection_dim(self) -> int:
        """P'."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode."""
        return super().train(False)

    def shard(self, mesh: DeviceMesh) -> "Teacher":
        """Keeps a part of each layer's weights on each device (FSDP2), and puts them together while it runs.

        Each call is a collective one then.
        """
        depth = self.model.config.num_hidden_layers
        stacks = (module for module in self.model.modules() if isinstance(module, nn.ModuleList))
        for layer in [layer for stack in stacks if len(stack) == depth for layer in stack]:
            fully_shard(layer, mesh=mesh)
        return fully_shard(self, mesh=mesh)

    def forward(self, pixels: Tensor, grid: Grid) -> TeacherFeatures:
        """Features of clips: of the tokens that it keeps, or of all where its patches are others than the student's.

        Args:
            pixels: (B, T, 3, H, W), normalised as the teacher was trained.
            grid: The student's.

        Raises:
            ValueError: frames that the teacher cannot take.
        """
        raise NotImplementedError


class VideoTeacher(Teacher):
    """A video encoder with the model protocol: FluxViT, InternVideo2, or Flux around another encoder."""

    model: VideoTokenClassifier

    @property
    def projection_dim(self) -> int:
        return self.model.config.projection_dim

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: Grid) -> TeacherFeatures:
        config = self.model.config
        patch = (config.tubelet_size, config.patch_size, config.patch_size)
        covered = [size * count for size, count in zip(patch, grid, strict=True)]
        if covered == [pixels.shape[1], *pixels.shape[-2:]]:
            return self._on_its_own_tokens(pixels)
        if pixels.shape[1] == 1:  # a picture stands still for as long as the teacher wants
            pixels = pixels.expand(-1, config.tubelet_size, -1, -1, -1)
        if pixels.shape[1] % config.tubelet_size:
            raise ValueError(f"the teacher takes multiples of {config.tubelet_size} frames, got {pixels.shape[1]}")
        rows, columns = grid[1:]
        patches, own_grid = self.model.embed(resized(pixels, rows * config.patch_size, columns * config.patch_size))
        [everything] = self.model.select(patches, [None])
        hidden_states, states = self.model.encode(patches, own_grid, everything, self.layers)
        pooled, attention = self.model.pool(hidden_states, 0, attention=True)
        class_tokens = hidden_states.shape[1] - everything.shape[1]
        shape = (patches.shape[1], rows, columns)
        weights = None
        if attention is not None:
            weights = to_grid(attention.float().mean(1)[:, 0, class_tokens:, None].unflatten(1, shape), grid)[..., 0]
        layers = (to_grid(state[:, class_tokens:].float().unflatten(1, shape), grid) for state in states)
        return TeacherFeatures(tuple(map(_unit, layers)), _unit(pooled), weights)

    def _on_its_own_tokens(self, pixels: Tensor) -> TeacherFeatures:
        patches, grid = self.model.embed(pixels)
        [keep_indices] = self.model.select(patches, [self.token_budget])
        hidden_states, states = self.model.encode(patches, grid, keep_indices, self.layers)
        pooled, attention = self.model.pool(hidden_states, 0, attention=True)
        class_tokens = hidden_states.shape[1] - keep_indices.shape[1]
        if attention is None:
            weights = motion_weights(patches, keep_indices)
        else:
            weights = attention.float().mean(1)[:, 0, class_tokens:]
        return TeacherFeatures(tuple(map(_unit, states)), _unit(pooled), weights, class_tokens, keep_indices)


class ImageTeacher(Teacher):
    """An image encoder of transformers with patch tokens, such as CLIP's, SigLIP's or DINOv2's, read frame by frame.

    Its class tokens, one a frame, have no counterpart in a video model and are left out; the pooled feature is the mean
    over frames. Nothing in it says how much a token counts.
    """

    model: PreTrainedModel

    @property
    def projection_dim(self) -> int:
        return self.model.config.hidden_size

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: Grid) -> TeacherFeatures:
        (batch, frames), (_, rows, columns) = pixels.shape[:2], grid
        side = self.model.config.patch_size
        pictures = resized(pixels, rows * side, columns * side).flatten(0, 1)
        outputs = encode_pictures(self.model, pictures, output_hidden_states=True)
        layers = []
        for layer in self.layers:
            states = outputs.hidden_states[layer + 1].float()
            states = states[:, states.shape[1] - rows * columns :]
            volume = states.unflatten(1, (rows, columns)).unflatten(0, (batch, frames))
            layers.append(_unit(to_grid(volume, grid)))
        pooled = outputs.pooler_output.float().unflatten(0, (batch, frames)).mean(1)
        return TeacherFeatures(tuple(layers), _unit(pooled), None)


def load_image_encoder(source: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """An image encoder of transformers, without the text tower that its checkpoint may have; options of
    `from_pretrained`.

    Raises:
        ValueError: a model without square patches, or a checkpoint that lacks weights, such as a classifier's pooler.
    """
    hub = {name: options[name] for name in ("revision", "cache_dir") if name in options}
    model_type = AutoConfig.from_pretrained(source, **hub).model_type
    kind = IMAGE_TOWERS.get(model_type, AutoModel)
    model, found = kind.from_pretrained(source, output_loading_info=True, **options)
    if not isinstance(getattr(model.config, "patch_size", None), int):
        raise ValueError(f"{source} must be an encoder of square patches, got the model type {model_type}")
    if found["missing_keys"]:
        raise ValueError(f"{source} must hold all of an encoder, {sorted(found['missing_keys'])} would be random")
    return model


def encode_pictures(model: PreTrainedModel, pictures: Tensor, **options: Any) -> Any:
    """What an image encoder gives for pictures (N, 3, H, W) of any whole number of patches; options of its forward."""
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    return model(pictures.to(model.dtype), **options)


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Clips (B, T, 3, H, W) at another size, bicubic; the same tensor where it is theirs already."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    pictures = pixels.flatten(0, 1)
    pictures = nn.functional.interpolate(pictures, size=(height, width), mode="bicubic", antialias=True)
    return pictures.unflatten(0, pixels.shape[:2])


def overlap(source: int, target: int) -> Tensor:
    """(target, source): of each of `target` equal parts of a line, its share in each of `source` equal parts."""
    edges = torch.arange(source + 1, dtype=torch.float64) / source
    ends = torch.arange(target + 1, dtype=torch.float64) / target
    low = torch.maximum(ends[:-1, None], edges[None, :-1])
    high = torch.minimum(ends[1:, None], edges[None, 1:])
    return (high - low).clamp(min=0) * target


def to_grid(volume: Tensor, grid: Grid) -> Tensor:
    """Features of one grid of patches on another: of each patch the mean of those it overlaps, by volume.

    Args:
        volume: (B, t, h, w, D).
        grid: (T', h', w').

    Returns:
        (B, T' * h' * w', D), raster order.
    """
    for dim, target in enumerate(grid, start=1):
        if volume.shape[dim] != target:
            shares = overlap(volume.shape[dim], target).to(volume)
            volume = torch.tensordot(shares, volume, dims=([1], [dim])).movedim(0, dim)
    return volume.flatten(1, 3)


def kept(features: Tensor, keep_indices: Tensor) -> Tensor:
    """(B, N, D) to those of the kept patches, (B, K, D)."""
    return features.gather(1, keep_indices[:, :, None].expand(-1, -1, features.shape[-1]))


def motion_weights(patches: Tensor, keep_indices: Tensor) -> Tensor:
    """How much kept tokens count where no pooling attention says it: how far their embeddings moved.

    Args:
        patches: (B, T', L, D).
        keep_indices: (B, K).

    Returns:
        (B, K), above 0; all alike in a single frame, which shows no motion.
    """
    if patches.shape[1] == 1:
        return torch.ones_like(keep_indices, dtype=torch.float32)
    scores = frame_difference_scores(patches).flatten(1).gather(1, keep_indices)
    return scores + torch.finfo(scores.dtype).eps


def spread_layers(num_layers: int, number: int, interval: float | None = None) -> list[int]:
    """Layers to align, counted from 0, rising: backwards from the last one, `interval` apart.

    Source: InternVideo2: 6 layers, a student's 1 apart, a teacher's of 40 layers 3.34: 23, 26, 29, 33, 36, 39. Of a
    teacher of another depth the same share of it, and 1 at least, if no interval is given.

    Raises:
        ValueError: so many layers so far apart reach below the first one, or are not distinct.
    """
    if interval is None:
        interval = max(1.0, PUBLISHED_INTERVAL * num_layers / PUBLISHED_DEPTH)
    layers = sorted(num_layers - int(index * interval) - 1 for index in range(as_count("number", number)))
    if layers[0] < 0 or len(set(layers)) < number:
        raise ValueError(f"{number} of {num_layers} layers cannot be {interval} apart: that gives {layers}")
    return layers
