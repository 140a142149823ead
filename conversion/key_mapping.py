# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Parameter names of the official FluxViT and InternVideo2 checkpoints, and ours."""

import re
from collections.abc import Callable

from torch import Tensor


def _flatten_patch_kernel(weight: Tensor) -> Tensor:
    """Convolution kernel (D, C, t, p, p) -> linear weight (D, t * p * p * C), the order of a patch's pixels."""
    return weight.permute(0, 2, 3, 4, 1).flatten(1)


def _flatten(weight: Tensor) -> Tensor:
    """Depth-wise 1x1x1 kernel (D, 1, 1, 1, 1) -> scale (D,)."""
    return weight.flatten()


# (pattern of the official name, our name, change of the tensor). InternVideo2 has one projector and one head, without
# an index; FluxViT one for each budget.
KEY_TABLE: list[tuple[str, str, Callable[[Tensor], Tensor] | None]] = [
    (r"cls_token", r"fluxvit.embeddings.cls_token", None),
    (r"pos_embed", r"fluxvit.embeddings.position_embeddings.table", None),
    (
        r"gpe_proj\.depthwise_conv\.weight",
        r"fluxvit.embeddings.position_embeddings.global_position_encoding.weight",
        _flatten,
    ),
    (
        r"gpe_proj\.depthwise_conv\.bias",
        r"fluxvit.embeddings.position_embeddings.global_position_encoding.bias",
        None,
    ),
    (r"patch_embed\.proj\.weight", r"fluxvit.embeddings.patch_embeddings.projection.weight", _flatten_patch_kernel),
    (r"patch_embed\.proj\.bias", r"fluxvit.embeddings.patch_embeddings.projection.bias", None),
    (r"patch_embed\.(norm|norm_before)\.weight", r"fluxvit.embeddings.patch_embeddings.\1.weight", None),
    (r"blocks\.(\d+)\.(norm[12])\.weight", r"fluxvit.encoder.layer.\1.\2.weight", None),
    (
        r"blocks\.(\d+)\.attn\.(qkv|q_norm|k_norm)\.(weight|bias)",
        r"fluxvit.encoder.layer.\1.attention.\2.\3",
        None,
    ),
    (
        r"blocks\.(\d+)\.attn\.lpe\.depthwise_conv\.weight",
        r"fluxvit.encoder.layer.\1.attention.local_position_encoding.weight",
        _flatten,
    ),
    (
        r"blocks\.(\d+)\.attn\.lpe\.depthwise_conv\.bias",
        r"fluxvit.encoder.layer.\1.attention.local_position_encoding.bias",
        None,
    ),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"fluxvit.encoder.layer.\1.attention.out_proj.\2", None),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"fluxvit.encoder.layer.\1.layer_scale\2.weight", None),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"fluxvit.encoder.layer.\1.mlp.\2.\3", None),
    (r"clip_projector\.(\d+)\.norm1_([qkv])\.(weight|bias)", r"fluxvit.projectors.\1.norm_\2.\3", None),
    (r"clip_projector\.norm1_([qkv])\.(weight|bias)", r"fluxvit.projectors.0.norm_\1.\2", None),
    (r"clip_projector\.(\d+)\.cross_attn\.([qkv])(?:\.|_)(weight|bias)", r"fluxvit.projectors.\1.\2_proj.\3", None),
    (r"clip_projector\.cross_attn\.([qkv])(?:\.|_)(weight|bias)", r"fluxvit.projectors.0.\1_proj.\2", None),
    (r"clip_projector\.(\d+)\.cross_attn\.proj\.(weight|bias)", r"fluxvit.projectors.\1.out_proj.\2", None),
    (r"clip_projector\.cross_attn\.proj\.(weight|bias)", r"fluxvit.projectors.0.out_proj.\1", None),
    (r"fc_norm\.(weight|bias)", r"fc_norm.\1", None),
    (r"head\.(\d+)\.(weight|bias)", r"classifiers.\1.\2", None),
    (r"head\.(weight|bias)", r"classifiers.0.\1", None),
    (
        r"final_clip_decoder_for_projs\.(\d+)\.head\.(weight|bias)",
        r"alignment_decoders.\1.dense.\2",
        None,
    ),
    (r"final_clip_decoder_for_projs\.(\d+)\.norm\.(weight|bias)", r"alignment_decoders.\1.norm.\2", None),
]

# Parts of InternVideo2 that only its pretraining uses, with the reason told in the report.
DROPPED_KEYS: list[tuple[str, str]] = [
    (r"(final_)?clip_decoder\..*", "decoder of the CLIP alignment in pretraining"),
    (r"clip_(img_)?pos_embed", "positions of the CLIP alignment in pretraining"),
    (r"img_pos_embed", "positions of single images in stage-2 pretraining"),
    (r"mae_.*", "decoder of the VideoMAE alignment in pretraining"),
]
VISION_PREFIX = "vision_encoder."
PREFIXES = ("module.", "backbone.", VISION_PREFIX, "encoder.")


def translate_key(name: str) -> tuple[str, Callable[[Tensor], Tensor] | None] | None:
    """Our name for an official parameter and the change its tensor needs; None where there is none."""
    for pattern, replacement, change in KEY_TABLE:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement), change
    return None


def reason_to_drop(name: str) -> str | None:
    """Why an official parameter is not part of the model, or None where no reason is known."""
    return next((reason for pattern, reason in DROPPED_KEYS if re.fullmatch(pattern, name)), None)


def strip_prefixes(name: str) -> str:
    """Removes wrappers' prefixes (`PREFIXES`), however many."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name
