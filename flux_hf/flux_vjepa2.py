# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flux around V-JEPA 2: rotary positions in every layer, no class token, an attentive pooler."""

import torch
from torch import Tensor, nn
from transformers import VJEPA2ForVideoClassification, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

from .flux_backbones import FluxBackbone, FluxTubeletProjection


def given_positions(hidden_states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Time, row and column (B or 1, 1, K) of tokens, given as such: `masks` (B or 1, K, 3).

    Stands in for the attention's own reckoning, which knows only the trained grid's rows and columns.
    """
    return masks[:, None, :, 0], masks[:, None, :, 1], masks[:, None, :, 2]


class FluxVJEPA2(FluxBackbone):
    """V-JEPA 2's encoder. Its predictor, which pretraining needs, is left out. Positions are those of the patches
    themselves at any grid, as in a model built for that clip."""

    model_class = VJEPA2Model
    classifier_class = VJEPA2ForVideoClassification
    pooler_prefixes = {"pooler.": ""}
    lora_targets = (*(f"attention.{name}" for name in ("query", "key", "value", "proj")), "mlp.fc1", "mlp.fc2")

    def build(self) -> VJEPA2Model:
        model = VJEPA2Model(self.config)
        del model.predictor
        embedding = model.encoder.embeddings.patch_embeddings
        embedding.proj = FluxTubeletProjection.like(embedding.proj)
        for layer in model.encoder.layer:
            layer.attention.get_position_ids = given_positions
        return model

    def make_pooler(self) -> nn.Module:
        return VJEPA2AttentivePooler(self.config)

    def projection(self, model: VJEPA2Model) -> nn.Module:
        return model.encoder.embeddings.patch_embeddings.proj

    def layers(self, model: VJEPA2Model) -> nn.ModuleList:
        return model.encoder.layer

    def positions(self, model: VJEPA2Model, grid: tuple[int, int, int], like: Tensor) -> None:
        return None

    def whole_tubelets(self, pixel_values_videos: Tensor) -> Tensor:
        """An image is repeated to fill a tubelet, as in the library."""
        alone = pixel_values_videos.ndim == 5 and pixel_values_videos.shape[1] == 1
        return pixel_values_videos.repeat(1, self.config.tubelet_size, 1, 1, 1) if alone else pixel_values_videos

    def place(self, model, patches, grid, keep_indices, in_order):
        hidden_states, _ = super().place(model, patches, grid, keep_indices, in_order)
        if in_order and keep_indices.shape[1] == grid.frames * grid.rows * grid.columns:
            keep_indices = keep_indices[:1]  # the same for all clips
        time = torch.div(keep_indices, grid.rows * grid.columns, rounding_mode="floor")
        place = keep_indices % (grid.rows * grid.columns)
        row, column = torch.div(place, grid.columns, rounding_mode="floor"), place % grid.columns
        return hidden_states, {"position_mask": torch.stack([time, row, column], dim=-1)}

    def run(self, layer, hidden_states, told):
        return layer(hidden_states, **told)[0]

    def finish(self, model: VJEPA2Model, hidden_states: Tensor) -> Tensor:
        return model.encoder.layernorm(hidden_states)

    def mlp_width(self) -> int:
        return int(self.config.hidden_size * self.config.mlp_ratio)

    def pooler_multiply_adds(self, tokens: int) -> int:
        """Its layers attend and widen fourfold, whatever the encoder's do; the query's own layer sees all tokens."""
        width = self.config.hidden_size
        layer = tokens * width * 12 * width + 2 * tokens**2 * width
        return self.config.num_pooler_layers * layer + 2 * tokens * width**2 + 2 * tokens * width + 9 * width**2

    def from_library(self, weights, heads):
        return super().from_library({n: w for n, w in weights.items() if "predictor." not in n}, heads)


__all__ = ["FluxVJEPA2"]
