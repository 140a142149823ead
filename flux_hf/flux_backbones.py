# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What Flux has to know of an encoder of the library, and how it pools; `flux_videomae.py` and its like fill it in.

The encoders are the library's own modules with their own weights. Flux calls their patch embedding, their layers and
their last norm one by one, so that it can drop patches between the first two.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_flux import native_clip
from .patch_grids import check_clip, place_patches


class FluxGrid(NamedTuple):
    """Where the patches of embedded clips are: the shape of their grid, and what the encoder adds to them.

    `class_token` (B, n, D), n of 0 or 1, is placed already; `positions` (1, N, D) are those of all patches in raster
    order, None where the encoder's layers see to positions.
    """

    frames: int
    rows: int
    columns: int
    class_token: Tensor
    positions: Tensor | None


class FluxTubeletProjection(nn.Conv3d):
    """The library's patch embedding, weight and bias as they are, as one matmul, always in float32.

    The embedding is what tokens are scored on; in half precision most scores would tie and other tokens be kept.
    """

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T', L, D) in float32, also under autocast. Raises as `check_clip`."""
        tubelet, patch, _ = self.kernel_size
        check_clip(pixel_values_videos, self.in_channels, tubelet, patch)
        batch, frames, channels, height, width = pixel_values_videos.shape
        cut = pixel_values_videos.reshape(
            batch, frames // tubelet, tubelet, channels, height // patch, patch, width // patch, patch
        )
        device = pixel_values_videos.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            patches = cut.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(2, 3).float()
            return nn.functional.linear(patches, self.weight.float().flatten(1), self.bias.float())

    @classmethod
    def like(cls, projection: nn.Conv3d) -> "FluxTubeletProjection":
        """One of the same sizes, to be put in its place before weights are loaded."""
        sizes = (projection.in_channels, projection.out_channels, projection.kernel_size, projection.stride)
        return cls(*sizes, dtype=projection.weight.dtype, device=projection.weight.device)


class FluxMeanPooler(nn.Module):
    """The mean over tokens, then a LayerNorm."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)  # the library's default epsilon, not the layers'

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, K, D) -> (B, D)."""
        return self.norm(hidden_states.mean(1))


class FluxFirstTokenPooler(nn.Module):
    """The first token: the class token where there is one."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, n + K, D) -> (B, D)."""
        return hidden_states[:, 0]


class FluxBackbone:
    """One kind of encoder, as Flux sees it. Holds a config and no weights; `model` is what `build` made.

    Args:
        config: The encoder's own.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    classifier_class: ClassVar[type[PreTrainedModel]]
    # Which of the classifier's weights are the pooler's: prefix there -> prefix in the pooler.
    pooler_prefixes: ClassVar[dict[str, str]] = {}
    # Names of older checkpoints that not every version of the library knows, as `key_mapping` of `from_pretrained`.
    old_names: ClassVar[dict[str, str]] = {}
    num_class_tokens: ClassVar[int] = 0
    # The linear maps of a layer that get low-rank updates.
    lora_targets: ClassVar[tuple[str, ...]]

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    def build(self) -> PreTrainedModel:
        """The library's model, its patch embedding as a `FluxTubeletProjection`, without what Flux has no use for."""
        raise NotImplementedError

    def make_pooler(self) -> nn.Module:
        """As in the library's classifier: (B, n + K, D) -> (B, D)."""
        raise NotImplementedError

    def projection(self, model: nn.Module) -> nn.Module:
        raise NotImplementedError

    def layers(self, model: nn.Module) -> nn.ModuleList:
        raise NotImplementedError

    def positions(self, model: nn.Module, grid: tuple[int, int, int], like: Tensor) -> Tensor | None:
        """What is added to the patches of a grid (frames, rows, columns): (1, N, D) as `like` in dtype and device."""
        raise NotImplementedError

    def whole_tubelets(self, pixel_values_videos: Tensor) -> Tensor:
        """The clip as the encoder takes it."""
        return pixel_values_videos

    def embed(self, model: nn.Module, pixel_values_videos: Tensor) -> tuple[Tensor, FluxGrid]:
        """(B, T, C, H, W) -> patches (B, T', L, D) in float32 before positions, and their grid in the model's dtype."""
        patches = self.projection(model)(self.whole_tubelets(pixel_values_videos))
        like = next(self.layers(model).parameters())  # of any layer: the projection is float32 at work
        rows, columns = (side // native_clip(self.config).patch_size for side in pixel_values_videos.shape[-2:])
        grid = (patches.shape[1], rows, columns)
        like = patches.new_empty(0, dtype=like.dtype)
        class_token = like.new_zeros(patches.shape[0], 0, self.config.hidden_size)
        return patches, FluxGrid(*grid, class_token, self.positions(model, grid, like))

    def place(
        self, model: nn.Module, patches: Tensor, grid: FluxGrid, keep_indices: Tensor, in_order: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """What goes into the first layer, (B, n + K, D), and what every layer is told beside it."""
        tokens = patches.flatten(1, 2).to(grid.class_token.dtype)
        return torch.cat([grid.class_token, place_patches(tokens, grid.positions, keep_indices, in_order)], dim=1), {}

    def run(self, layer: nn.Module, hidden_states: Tensor, told: dict[str, Any]) -> Tensor:
        """(B, n + K, D) -> (B, n + K, D)."""
        return layer(hidden_states, **told)

    def finish(self, model: nn.Module, hidden_states: Tensor) -> Tensor:
        """The last norm, where the encoder has one."""
        return hidden_states if model.layernorm is None else model.layernorm(hidden_states)

    def layer_multiply_adds(self, tokens: int) -> int:
        """Of one layer, attention's two products included."""
        width = self.config.hidden_size
        return tokens * width * (4 * width + 2 * self.mlp_width()) + 2 * tokens**2 * width

    def mlp_width(self) -> int:
        return self.config.intermediate_size

    def pooler_multiply_adds(self, tokens: int) -> int:
        return 0

    def parameter_depth(self, name: str) -> int | None:
        """Of a parameter by its name in the model: 0 for the embeddings, i + 1 for layer i, None for what follows."""
        parts = name.split(".")
        for index, part in enumerate(parts[:-1]):
            if part in ("layer", "layers") and parts[index + 1].isdecimal():
                return int(parts[index + 1]) + 1
        return 0 if "embeddings" in parts else None

    def takes_weight_decay(self, name: str) -> bool:
        """Whether weight decay is for a matrix of this name: not for class tokens, queries and position tables."""
        return not name.endswith(("cls_token", "position_embeddings", "query_tokens"))

    def from_library(self, weights: dict[str, Tensor], heads: Sequence[int]) -> dict[str, Tensor]:
        """The library's weights under Flux's names.

        Args:
            weights: Of the classifier, or of the bare encoder.
            heads: Poolers and classifiers that get copies.
        """
        inside = f"{self.classifier_class.base_model_prefix}."
        whole = any(name.startswith(inside) for name in weights)
        renamed = {}
        for name, weight in weights.items():
            if whole and name.startswith("classifier."):
                renamed |= {f"classifiers.{head}.{name.removeprefix('classifier.')}": weight for head in heads}
            elif prefix := next((p for p in self.pooler_prefixes if name.startswith(p)), None):
                rest = self.pooler_prefixes[prefix] + name.removeprefix(prefix)
                renamed |= {f"flux.poolers.{head}.{rest}": weight for head in heads}
            else:
                renamed[f"flux.backbone.{name.removeprefix(inside)}"] = weight
        return renamed


__all__ = ["FluxBackbone", "FluxFirstTokenPooler", "FluxGrid", "FluxMeanPooler", "FluxTubeletProjection"]
