# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flux around VideoMAE: fixed sine-cosine positions, no class token, the mean of the tokens and a norm."""

import torch
from torch import Tensor, nn
from transformers import VideoMAEForVideoClassification, VideoMAEModel

from .configuration_flux import native_clip
from .flux_backbones import FluxBackbone, FluxFirstTokenPooler, FluxMeanPooler, FluxTubeletProjection
from .patch_grids import resize_position_table


MAX_CACHED_TABLES = 32


class FluxVideoMAE(FluxBackbone):
    """VideoMAE. Its table counts the patches of its native grid; for other grids it is interpolated, as fine-tuning at
    other sizes does: counted anew, it would tell other rows than those trained."""

    model_class = VideoMAEModel
    classifier_class = VideoMAEForVideoClassification
    pooler_prefixes = {"fc_norm.": "norm."}
    old_names = {
        rf"attention\.attention\.{name[0]}_bias": f"attention.attention.{name}.bias" for name in ("query", "value")
    }
    lora_targets = (
        *(f"attention.attention.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )

    def __init__(self, config):
        super().__init__(config)
        self._tables: dict[tuple, Tensor] = {}  # the table is no weight: it never changes

    def build(self) -> VideoMAEModel:
        model = VideoMAEModel(self.config)
        embedding = model.embeddings.patch_embeddings
        embedding.projection = FluxTubeletProjection.like(embedding.projection)
        return model

    def make_pooler(self) -> nn.Module:
        return FluxMeanPooler(self.config.hidden_size) if self.config.use_mean_pooling else FluxFirstTokenPooler()

    def projection(self, model: VideoMAEModel) -> nn.Module:
        return model.embeddings.patch_embeddings.projection

    def layers(self, model: VideoMAEModel) -> nn.ModuleList:
        return model.encoder.layer

    def positions(self, model: VideoMAEModel, grid: tuple[int, int, int], like: Tensor) -> Tensor:
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or like.is_meta or type(like) is not Tensor:  # fake tensors have no values to be used again
            return self._table(model, grid, like)
        key = (*grid, like.device, like.dtype)
        table = self._tables.get(key)
        if table is None:
            table = self._table(model, grid, like)
            if len(self._tables) >= MAX_CACHED_TABLES:
                self._tables.clear()
            self._tables[key] = table
        return table

    def _table(self, model: VideoMAEModel, grid: tuple[int, int, int], like: Tensor) -> Tensor:
        native, table = native_clip(self.config).grid, model.embeddings.position_embeddings[0].detach()
        table = table if grid == native else resize_position_table(table, native, grid)
        return table.to(like, non_blocking=True)[None]  # the library keeps it on the CPU

    def from_library(self, weights, heads):
        renamed = super().from_library(weights, heads)
        if self.config.use_mean_pooling:
            # A pretrained encoder ends in a norm, a classifier's in a mean: the norm goes behind that then.
            for part in ("weight", "bias"):
                last = renamed.pop(f"flux.backbone.layernorm.{part}", None)
                if last is not None:
                    renamed |= {f"flux.poolers.{head}.norm.{part}": last for head in heads}
        return renamed


__all__ = ["FluxVideoMAE"]
