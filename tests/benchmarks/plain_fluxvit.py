# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT computed step by step as the official code does, for `peers.py`: the same weights, the same logits.

What it does each time and ours does not: convolutions for patches and for the per-channel scales of positions and
values, the position table resized anew, positions added to all patches before most are dropped by a mask, RMSNorm with
its squares written down, LayerScale and the residual sum apart.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flux_hf import FluxViTForVideoClassification
from flux_hf.modeling_fluxvit import FluxViTAffine, FluxViTLayer, FluxViTRMSNorm
from flux_hf.token_selection import frame_difference_scores, resolve_token_groups


def written_out_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """q, k, v (B, heads, length, head_dim) -> the same."""
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return weights.softmax(dim=-1) @ value


def _rms_norm(norm: FluxViTRMSNorm, states: Tensor) -> Tensor:
    wide = states.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(states.dtype)


def _depth_wise(affine: FluxViTAffine, volume: Tensor) -> Tensor:
    """(B, D, T, h, w) through a depth-wise 1x1x1 convolution."""
    weight = affine.weight.view(-1, 1, 1, 1, 1)
    return F.conv3d(volume, weight, affine.bias, groups=volume.shape[1])


class PlainFluxViT(nn.Module):
    """The official way through a classifier of ours, its weights shared.

    Args:
        model: Whose weights to use; at a number of frames that its frame groups divide, as official code needs.
        attention: `written_out_attention` or `torch.nn.functional.scaled_dot_product_attention`.
    """

    def __init__(self, model: FluxViTForVideoClassification, attention: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.model, self.attention = model, attention

    def forward(self, videos: Tensor, token_budget: int) -> Tensor:
        """(B, T, 3, H, W) -> logits (B, num_labels)."""
        patches = self._embed(videos)
        _, frames, per_frame, width = patches.shape
        keep = self._mask(patches, token_budget)
        side = videos.shape[-1] // self.model.config.patch_size
        cls_row, positions = self._positions(frames, per_frame // side, side)
        tokens = patches.flatten(1, 2) + positions
        tokens = tokens[keep].reshape(len(videos), -1, width)
        cls_token = self.model.fluxvit.embeddings.cls_token + cls_row
        states = torch.cat([cls_token.expand(len(videos), -1, -1), tokens], dim=1)
        for layer in self.model.fluxvit.encoder.layer:
            states = self._layer(layer, states)
        head = self.model.resolve_head(states.shape[1] - 1)
        return self.model.classify(self.model.pool(states, head)[0], head)

    def _embed(self, videos: Tensor) -> Tensor:
        embeddings = self.model.fluxvit.embeddings.patch_embeddings
        batch, frames, channels, height, width = videos.shape
        size = embeddings.patch_size
        normed = _rms_norm(embeddings.norm_before, embeddings.patchify(videos))
        normed = normed.reshape(batch, frames, height // size, width // size, size, size, channels)
        volume = normed.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, channels, frames, height, width)
        projection = embeddings.projection
        kernel = projection.weight.view(-1, 1, size, size, channels).permute(0, 4, 1, 2, 3)
        embedded = F.conv3d(volume, kernel, projection.bias, stride=(1, size, size))
        return _rms_norm(embeddings.norm, embedded.flatten(3).permute(0, 2, 3, 1))

    def _mask(self, patches: Tensor, token_budget: int) -> Tensor:
        """(B, N) bool: which are kept."""
        batch, frames, per_frame, _ = patches.shape
        budget = min(token_budget, frames * per_frame)
        groups = resolve_token_groups(frames, self.model.config.num_token_groups)
        scores = frame_difference_scores(patches, groups)
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., : budget // groups]
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        return mask.flatten(1)

    def _positions(self, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        embeddings = self.model.fluxvit.embeddings.position_embeddings
        grid, width = embeddings.grid, embeddings.table.shape[-1]
        volume = embeddings.table[:, 1:].transpose(1, 2).reshape(1, width, *grid)
        volume = _depth_wise(embeddings.global_position_encoding, volume)
        if list(grid) != [frames, rows, columns]:
            series = volume.permute(0, 3, 4, 1, 2).reshape(1, -1, grid[0])
            series = F.interpolate(series, size=frames, mode="linear", align_corners=False)
            images = series.reshape(grid[1], grid[2], width, frames).permute(3, 2, 0, 1)
            images = F.interpolate(images, size=(rows, columns), mode="bicubic", align_corners=False)
            volume = images.permute(1, 0, 2, 3)[None]
        return embeddings.table[:, :1], volume.flatten(2).transpose(1, 2)

    def _layer(self, layer: FluxViTLayer, states: Tensor) -> Tensor:
        attended = self._attend(layer, _rms_norm(layer.norm1, states))
        states = states + attended * layer.layer_scale1.weight
        widened = F.gelu(layer.mlp.fc1(_rms_norm(layer.norm2, states)), approximate="tanh")
        return states + layer.mlp.fc2(widened) * layer.layer_scale2.weight

    def _attend(self, layer: FluxViTLayer, states: Tensor) -> Tensor:
        module, (batch, length, width) = layer.attention, states.shape
        heads = (batch, length, module.num_heads, -1)
        query, key, value = module.qkv(states).reshape(batch, length, 3, width).unbind(2)
        query, key = _rms_norm(module.q_norm, query), _rms_norm(module.k_norm, key)
        attended = self.attention(*(part.reshape(heads).transpose(1, 2) for part in (query, key, value)))
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        encoded = _depth_wise(module.local_position_encoding, value.transpose(1, 2)[..., None, None])
        return module.out_proj(attended + encoded.flatten(2).transpose(1, 2))
