# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flux around ViViT (its joint space-time model): a class token, which is the pooled feature, and a trained table."""

from torch import Tensor, nn
from transformers import VivitForVideoClassification, VivitModel
from transformers.models.vivit.modeling_vivit import VivitEmbeddings

from .configuration_flux import native_clip
from .flux_backbones import FluxBackbone, FluxFirstTokenPooler, FluxGrid, FluxTubeletProjection
from .patch_grids import resize_position_table


class FluxVivitEmbeddings(VivitEmbeddings):
    """ViViT's, which hands out what it would add. Its class token and table are read in its own forward: what offloads
    or shards weights brings a module's when that is called."""

    def __init__(self, config):
        super().__init__(config)
        self.patch_embeddings.projection = FluxTubeletProjection.like(self.patch_embeddings.projection)
        self.native = native_clip(config)

    def forward(self, pixel_values_videos: Tensor) -> tuple[Tensor, FluxGrid]:
        """(B, T, C, H, W) -> patches (B, T', L, D) in float32 before positions, and their grid in the model's dtype."""
        patches = self.patch_embeddings.projection(pixel_values_videos)
        rows, columns = (side // self.native.patch_size for side in pixel_values_videos.shape[-2:])
        grid, table = (patches.shape[1], rows, columns), self.position_embeddings[:, 1:]
        if grid != self.native.grid:
            table = resize_position_table(table[0], self.native.grid, grid).to(table.dtype)[None]
        class_token = self.cls_token + self.position_embeddings[:, :1]
        return patches, FluxGrid(*grid, class_token.expand(patches.shape[0], -1, -1), table)


class FluxVivit(FluxBackbone):
    """ViViT. Its position table is interpolated for other grids than its own."""

    model_class = VivitModel
    classifier_class = VivitForVideoClassification
    num_class_tokens = 1
    lora_targets = (*(f"attention.{name}_proj" for name in "qkvo"), "mlp.fc1", "mlp.fc2")

    def build(self) -> VivitModel:
        model = VivitModel(self.config, add_pooling_layer=False)
        model.embeddings = FluxVivitEmbeddings(self.config)
        return model

    def make_pooler(self) -> nn.Module:
        return FluxFirstTokenPooler()

    def projection(self, model: VivitModel) -> nn.Module:
        return model.embeddings.patch_embeddings.projection

    def layers(self, model: VivitModel) -> nn.ModuleList:
        return model.layers

    def embed(self, model: VivitModel, pixel_values_videos: Tensor) -> tuple[Tensor, FluxGrid]:
        return model.embeddings(pixel_values_videos)

    def place(self, model, patches, grid, keep_indices, in_order):
        hidden_states, told = super().place(model, patches, grid, keep_indices, in_order)
        return model.embeddings.dropout(hidden_states), told

    def from_library(self, weights, heads):
        # the bare encoder's pooler is no part of the classifier
        return super().from_library({n: w for n, w in weights.items() if not n.startswith("pooler.")}, heads)


__all__ = ["FluxVivit", "FluxVivitEmbeddings"]
