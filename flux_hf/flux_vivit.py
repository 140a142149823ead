# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flux around ViViT (its joint space-time model): a class token, which is the pooled feature, and a trained table."""

from torch import Tensor, nn
from transformers import VivitForVideoClassification, VivitModel

from .configuration_flux import native_clip
from .flux_backbones import FluxBackbone, FluxFirstTokenPooler, FluxTubeletProjection
from .patch_grids import resize_position_table


class FluxVivit(FluxBackbone):
    """ViViT. Its position table is interpolated for other grids than its own."""

    model_class = VivitModel
    classifier_class = VivitForVideoClassification
    num_class_tokens = 1
    lora_targets = (*(f"attention.{name}_proj" for name in "qkvo"), "mlp.fc1", "mlp.fc2")

    def build(self) -> VivitModel:
        model = VivitModel(self.config, add_pooling_layer=False)
        embedding = model.embeddings.patch_embeddings
        embedding.projection = FluxTubeletProjection.like(embedding.projection)
        return model

    def make_pooler(self) -> nn.Module:
        return FluxFirstTokenPooler()

    def projection(self, model: VivitModel) -> nn.Module:
        return model.embeddings.patch_embeddings.projection

    def layers(self, model: VivitModel) -> nn.ModuleList:
        return model.layers

    def positions(self, model: VivitModel, grid: tuple[int, int, int], like: Tensor) -> Tensor:
        native, table = native_clip(self.config).grid, model.embeddings.position_embeddings[:, 1:]
        return table if grid == native else resize_position_table(table[0], native, grid).to(like)[None]

    def class_token(self, model: VivitModel, batch: int, like: Tensor) -> Tensor:
        placed = model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]
        return placed.expand(batch, -1, -1)

    def place(self, model, patches, grid, keep_indices, in_order):
        hidden_states, told = super().place(model, patches, grid, keep_indices, in_order)
        return model.embeddings.dropout(hidden_states), told

    def from_library(self, weights, heads):
        # the bare encoder's pooler is no part of the classifier
        return super().from_library({n: w for n, w in weights.items() if not n.startswith("pooler.")}, heads)


__all__ = ["FluxVivit"]
