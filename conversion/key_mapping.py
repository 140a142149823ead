# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Parameter names and layouts of the official FluxViT and InternVideo2 checkpoints, and ours: one table, both ways."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flux_hf import FluxViTConfig


@dataclass(frozen=True)
class Layout:
    """How a tensor is laid out in the official code and here."""

    to_ours: Callable[[Tensor], Tensor]
    to_official: Callable[[Tensor, FluxViTConfig], Tensor]


def _unflatten_patch_kernel(weight: Tensor, config: FluxViTConfig) -> Tensor:
    patch = (config.tubelet_size, config.patch_size, config.patch_size, config.num_channels)
    return weight.unflatten(1, patch).permute(0, 4, 1, 2, 3)


SAME = Layout(lambda tensor: tensor, lambda tensor, config: tensor)
# Convolution kernel (D, C, t, p, p) <-> linear weight (D, t * p * p * C), the order of a patch's pixels.
PATCH_KERNEL = Layout(lambda weight: weight.permute(0, 2, 3, 4, 1).flatten(1), _unflatten_patch_kernel)
# Depth-wise 1x1x1 kernel (D, 1, 1, 1, 1) <-> scale (D,).
SCALE = Layout(lambda weight: weight.flatten(), lambda weight, config: weight.view(-1, 1, 1, 1, 1))

# What the fields in the names below stand for.
FIELDS = {
    "layer": r"\d+",
    "head": r"\d+",
    "kind": "weight|bias",
    "side": "[12]",
    "qkv": "[qkv]",
    "patch_norm": "norm|norm_before",
    "attention_part": "qkv|q_norm|k_norm",
}
POSITIONS = "fluxvit.embeddings.position_embeddings"
PATCHES = "fluxvit.embeddings.patch_embeddings"
LAYER = "fluxvit.encoder.layer.{layer}"
PROJECTOR = "fluxvit.projectors.{head}"
# (official name, our name, layout).
KEY_TABLE: list[tuple[str, str, Layout]] = [
    ("cls_token", "fluxvit.embeddings.cls_token", SAME),
    ("pos_embed", f"{POSITIONS}.table", SAME),
    ("gpe_proj.depthwise_conv.weight", f"{POSITIONS}.global_position_encoding.weight", SCALE),
    ("gpe_proj.depthwise_conv.bias", f"{POSITIONS}.global_position_encoding.bias", SAME),
    ("patch_embed.proj.weight", f"{PATCHES}.projection.weight", PATCH_KERNEL),
    ("patch_embed.proj.bias", f"{PATCHES}.projection.bias", SAME),
    ("patch_embed.{patch_norm}.weight", f"{PATCHES}.{{patch_norm}}.weight", SAME),
    ("blocks.{layer}.norm{side}.weight", f"{LAYER}.norm{{side}}.weight", SAME),
    ("blocks.{layer}.attn.{attention_part}.{kind}", f"{LAYER}.attention.{{attention_part}}.{{kind}}", SAME),
    (
        "blocks.{layer}.attn.lpe.depthwise_conv.weight",
        f"{LAYER}.attention.local_position_encoding.weight",
        SCALE,
    ),
    ("blocks.{layer}.attn.lpe.depthwise_conv.bias", f"{LAYER}.attention.local_position_encoding.bias", SAME),
    ("blocks.{layer}.attn.proj.{kind}", f"{LAYER}.attention.out_proj.{{kind}}", SAME),
    ("blocks.{layer}.ls{side}.gamma", f"{LAYER}.layer_scale{{side}}.weight", SAME),
    ("blocks.{layer}.mlp.fc{side}.{kind}", f"{LAYER}.mlp.fc{{side}}.{{kind}}", SAME),
    ("clip_projector.{head}.norm1_{qkv}.{kind}", f"{PROJECTOR}.norm_{{qkv}}.{{kind}}", SAME),
    ("clip_projector.{head}.cross_attn.{qkv}.weight", f"{PROJECTOR}.{{qkv}}_proj.weight", SAME),
    ("clip_projector.{head}.cross_attn.{qkv}_bias", f"{PROJECTOR}.{{qkv}}_proj.bias", SAME),
    ("clip_projector.{head}.cross_attn.proj.{kind}", f"{PROJECTOR}.out_proj.{{kind}}", SAME),
    ("fc_norm.{kind}", "fc_norm.{kind}", SAME),
    ("head.{head}.{kind}", "classifiers.{head}.{kind}", SAME),
    ("final_clip_decoder_for_projs.{head}.head.{kind}", "alignment_decoders.{head}.dense.{kind}", SAME),
    ("final_clip_decoder_for_projs.{head}.norm.{kind}", "alignment_decoders.{head}.norm.{kind}", SAME),
]
# FluxViT has a projector and a head for each budget; InternVideo2 has one of each, without an index.
INDEXED_HEAD = re.compile(r"^(clip_projector|head)\.(\d+)\.")
SINGLE_HEAD = re.compile(r"^(clip_projector|head)\.(?!\d)")

# Parts of InternVideo2 that only its pretraining uses, with the reason told in the report.
DROPPED_KEYS: list[tuple[str, str]] = [
    (r"(final_)?clip_decoder\..*", "decoder of the CLIP alignment in pretraining"),
    (r"clip_(img_)?pos_embed", "positions of the CLIP alignment in pretraining"),
    (r"img_pos_embed", "positions of single images in stage-2 pretraining"),
    (r"mae_.*", "decoder of the VideoMAE alignment in pretraining"),
]
VISION_PREFIX = "vision_encoder."
PREFIXES = re.compile(r"^((module|backbone|vision_encoder|encoder|_orig_mod)\.)+")


def _pattern(name: str) -> re.Pattern:
    """Matches the names a row of the table stands for, its fields as named groups."""
    parts = re.split(r"\{(\w+)\}", name)
    fixed, fields = map(re.escape, parts[::2]), [f"(?P<{field}>{FIELDS[field]})" for field in parts[1::2]]
    return re.compile("".join(part for pair in zip(fixed, [*fields, ""], strict=True) for part in pair))


_PATTERNS = [(_pattern(official), _pattern(ours)) for official, ours, _ in KEY_TABLE]


def translate_key(name: str) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """Our name for an official parameter and the change its tensor needs; None where there is none."""
    name = SINGLE_HEAD.sub(r"\1.0.", name)
    for (pattern, _), (_, ours, layout) in zip(_PATTERNS, KEY_TABLE, strict=True):
        if match := pattern.fullmatch(name):
            return ours.format(**match.groupdict()), layout.to_ours
    return None


def official_key(name: str) -> tuple[str, Callable[[Tensor, FluxViTConfig], Tensor]] | None:
    """The official FluxViT name for one of our parameters and the change its tensor needs; None where there is none."""
    for (_, pattern), (official, _, layout) in zip(_PATTERNS, KEY_TABLE, strict=True):
        if match := pattern.fullmatch(name):
            return official.format(**match.groupdict()), layout.to_official
    return None


def reason_to_drop(name: str) -> str | None:
    """Why an official parameter is not part of the model, or None where no reason is known."""
    return next((reason for pattern, reason in DROPPED_KEYS if re.fullmatch(pattern, name)), None)


def strip_prefixes(name: str) -> str:
    """Removes the prefixes of wrappers, however many."""
    return PREFIXES.sub("", name)
