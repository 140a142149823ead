# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The config of an official checkpoint, from its tensor shapes, the published sizes, and what the user adds."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from flux_hf.configuration_fluxvit import FLUXVIT_SIZES, INTERNVIDEO2_SIZES, FluxViTConfig


@dataclass(frozen=True)
class ConfigChoices:
    """What tensor shapes cannot tell; None takes the published value, where the size is a published one."""

    num_attention_heads: int | None = None
    num_pooling_heads: int | None = None
    position_frames: int | None = None
    hidden_act: str | None = None
    num_frames: int | None = None
    image_size: int | None = None
    token_budgets: list[int] | None = None
    token_budget: int | None = None


# Position tables of the published sizes, by their number of grid rows: FluxViT-S and -B; InternVideo2 at 4, 8 and
# 16 frames.
KNOWN_GRIDS = {
    math.prod(grid): grid
    for grid in (
        *(size["position_embedding_grid"] for size in FLUXVIT_SIZES.values()),
        *([frames, 16, 16] for frames in (4, 8, 16)),
    )
}
PUBLISHED_FLUXVIT_CLIP = {"num_frames": 12, "image_size": 224}
PUBLISHED_FLUXVIT_BUDGETS = [3072, 2048, 1024]
PUBLISHED_POOLING_HEADS = 16
MAX_NUMBERED = 256  # layers or heads; the largest published model has 48 layers


def infer_config(weights: dict[str, Tensor], choices: ConfigChoices, notes: list[str]) -> FluxViTConfig:
    """Builds the config of a checkpoint given by its bare official names.

    `notes` gains a line for each guess: a value that neither a shape nor a choice nor a published size gave.

    Raises:
        ValueError: tensors the config is read from are missing, or a choice is needed or impossible; the message names
            the flag.
    """
    fields = infer_encoder(weights, choices, notes)
    heads = number_of_heads(weights)
    if choices.token_budgets is not None and len(choices.token_budgets) != heads:
        budgets = choices.token_budgets
        raise ValueError(f"the checkpoint has {heads} heads, but --token_budgets gives {len(budgets)}: {budgets}")
    return complete_config(fields, heads, choices, notes)


def infer_encoder(weights: dict[str, Tensor], choices: ConfigChoices, notes: list[str]) -> dict:
    """The fields of `infer_config` that tell how the network is built."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    fields = _fields_from_shapes(shapes)
    fields["num_attention_heads"] = _attention_heads(fields, choices)
    fields["num_pooling_heads"] = _either(choices.num_pooling_heads, PUBLISHED_POOLING_HEADS)
    if choices.num_pooling_heads is None and not _is_published_width(fields):
        notes.append(f"assumed {PUBLISHED_POOLING_HEADS} pooling heads, as all published sizes have")
    if choices.hidden_act is not None:
        fields["hidden_act"] = choices.hidden_act
    grid = _position_grid(shapes["pos_embed"][1] - 1, choices, published=_published_heads(fields) is not None)
    return {**fields, "position_embedding_grid": grid}


def complete_config(fields: dict, heads: int, choices: ConfigChoices, notes: list[str]) -> FluxViTConfig:
    """Adds the default clip and the token budgets of this many heads to `infer_encoder`'s fields."""
    fields = {**fields, **_default_clip(fields, choices)}
    return FluxViTConfig(**fields, **_budgets(fields, heads, choices, notes))


def _fields_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict:
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in shapes]
    projection = next((shape for name, shape in shapes.items() if _is_pooling_output(name)), None)
    if projection is None:
        missing.append("clip_projector.cross_attn.proj.weight")
    if missing:
        raise ValueError(f"not a FluxViT or InternVideo2 checkpoint: it has no {', '.join(missing)}")
    kernel = shapes["patch_embed.proj.weight"]
    if len(kernel) != 5 or kernel[3] != kernel[4]:
        raise ValueError(f"patch_embed.proj.weight must be (width, channels, t, p, p), got {kernel}")
    _check_shape("cls_token", shapes["cls_token"], (1, 1, kernel[0]))
    _check_shape("pos_embed", shapes["pos_embed"], (1, None, kernel[0]))
    _check_shape("blocks.0.mlp.fc1.weight", shapes["blocks.0.mlp.fc1.weight"], (None, kernel[0]))
    _check_shape("the projector's output", projection, (None, kernel[0]))
    layers = count_numbered(shapes, "blocks.")
    fields = {
        "hidden_size": kernel[0],
        "num_channels": kernel[1],
        "tubelet_size": kernel[2],
        "patch_size": kernel[3],
        "num_hidden_layers": layers,
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "projection_dim": projection[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "use_qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "use_dual_patch_norm": "patch_embed.norm_before.weight" in shapes,
        "use_glpe": "blocks.0.attn.lpe.depthwise_conv.weight" in shapes,
    }
    classifier = shapes.get("head.0.weight", shapes.get("head.weight"))
    if classifier is not None:
        _check_shape("the classifier", classifier, (None, projection[0]))
        fields["num_labels"] = classifier[0]
    return fields


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """`None` stands for any size."""
    pairs = zip(shape, expected, strict=False)
    fits = len(shape) == len(expected) and all(size in (found, None) for found, size in pairs)
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{name} must be of shape ({wanted}), got {shape}")


def _either(choice: int | None, otherwise: int | None) -> int | None:
    """The user's choice, also where it is 0 and will be refused."""
    return otherwise if choice is None else choice


def _is_pooling_output(name: str) -> bool:
    return re.fullmatch(r"clip_projector\.(0\.)?cross_attn\.proj\.weight", name) is not None


def number_of_heads(weights: Collection[str]) -> int:
    """Projectors of a checkpoint: InternVideo2 has one, without a number."""
    return max(count_numbered(weights, "clip_projector."), 1)


def count_numbered(names: Collection[str], prefix: str) -> int:
    """How many layers or heads the numbers after `prefix` stand for.

    Raises:
        ValueError: some between the first and the last are missing, or there are more than any model has: what is
            built must be no larger than what is in the file.
    """
    numbers = {int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    count = max(numbers, default=-1) + 1
    if count != len(numbers):
        raise ValueError(f"{prefix}{count - 1} is there, but of those below it only {len(numbers) - 1} are")
    if count > MAX_NUMBERED:
        raise ValueError(f"{count} of {prefix}0, {prefix}1, ...: at most {MAX_NUMBERED} are believed")
    return count


def _published_heads(fields: dict) -> int | None:
    for size in (*FLUXVIT_SIZES.values(), *INTERNVIDEO2_SIZES.values()):
        if all(size[name] == fields[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")):
            return size["num_attention_heads"]
    return None


def _is_published_width(fields: dict) -> bool:
    return any(size["hidden_size"] == fields["hidden_size"] for size in INTERNVIDEO2_SIZES.values())


def _attention_heads(fields: dict, choices: ConfigChoices) -> int:
    heads = _either(choices.num_attention_heads, _published_heads(fields))
    if heads is None:
        raise ValueError(
            f"a model {fields['hidden_size']} wide with {fields['num_hidden_layers']} layers is no published size, "
            "and shapes do not tell its attention heads: give --num_attention_heads"
        )
    return heads


def _position_grid(patches: int, choices: ConfigChoices, published: bool) -> list[int]:
    if choices.position_frames is None and published and patches in KNOWN_GRIDS:
        return list(KNOWN_GRIDS[patches])
    candidates = {frames: math.isqrt(patches // frames) for frames in range(1, patches + 1) if patches % frames == 0}
    squares = {frames: side for frames, side in candidates.items() if side * side * frames == patches}
    frames = choices.position_frames
    if frames is None and len(squares) == 1:
        frames = next(iter(squares))
    if frames is None:
        grids = ", ".join(f"{count} ({count}x{side}x{side})" for count, side in squares.items())
        raise ValueError(f"the {patches} position rows fit several grids: give --position_frames, one of {grids}")
    if frames not in squares:
        raise ValueError(f"--position_frames {frames} leaves no square grid of {patches} rows; {list(squares)} would")
    return [frames, squares[frames], squares[frames]]


def _default_clip(fields: dict, choices: ConfigChoices) -> dict:
    """Frames and side of the default clip: as chosen, as published, or as the position table was trained."""
    grid = fields["position_embedding_grid"]
    published = grid in [size["position_embedding_grid"] for size in FLUXVIT_SIZES.values()]
    frames, side = grid[0] * fields["tubelet_size"], grid[1] * fields["patch_size"]
    if published:
        frames, side = PUBLISHED_FLUXVIT_CLIP["num_frames"], PUBLISHED_FLUXVIT_CLIP["image_size"]
    return {"num_frames": _either(choices.num_frames, frames), "image_size": _either(choices.image_size, side)}


def _budgets(fields: dict, heads: int, choices: ConfigChoices, notes: list[str]) -> dict:
    """Trained budgets, one a head, and the default one: as chosen, as published, or shares of the default clip."""
    side = fields["image_size"] // fields["patch_size"]
    tokens = fields["num_frames"] // fields["tubelet_size"] * side * side
    budgets = choices.token_budgets
    if budgets is None and heads == len(PUBLISHED_FLUXVIT_BUDGETS) and _published_heads(fields) is not None:
        budgets = PUBLISHED_FLUXVIT_BUDGETS
    if budgets is None and heads == 1 and _published_heads(fields) is not None:
        budgets = [tokens]
    if budgets is None:
        budgets = [round(tokens * (heads - index) / heads) for index in range(heads)]
        notes.append(f"assumed token budgets {budgets}: equal steps of the default clip's {tokens} tokens")
    # The middle one, as the paper's default of 2048 between 3072 and 1024.
    default = _either(choices.token_budget, budgets[(len(budgets) - 1) // 2])
    return {"token_budgets": list(budgets), "token_budget": default}
