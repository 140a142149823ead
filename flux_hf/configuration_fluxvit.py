# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT configuration: the sizes as data, every field checked at construction."""

import math
import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .checkpoint_files import AUTO_MAP, save_source_files, without_source_files
from .token_selection import TOKEN_SELECTORS


# FluxViT as released (official code); InternVideo2 in the sizes of its paper, as fine-tuned or pretrained at 8 frames.
FLUXVIT_SIZES = {
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "position_embedding_grid": [24, 18, 18],
    },
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "position_embedding_grid": [32, 20, 20],
    },
}
INTERNVIDEO2_SIZES = {
    "S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "1B": {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 16, "intermediate_size": 6144},
    "6B": {"hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800},
}
INTERNVIDEO2_COMMON = {
    "use_dual_patch_norm": False,
    "use_glpe": False,
    "position_embedding_grid": [8, 16, 16],
    "image_size": 224,
    "num_frames": 8,
    "token_budgets": [2048],
    "token_budget": 2048,
}
PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification", "regression")


@strict
class FluxViTConfig(PreTrainedConfig):
    r"""Configuration of a FluxViT or InternVideo2 video encoder. `FluxViTConfig()` is FluxViT-S.

    Args:
        hidden_size: Width D of the encoder.
        num_hidden_layers: Number of transformer layers.
        num_attention_heads: Attention heads of each layer.
        intermediate_size: Width of the MLP's hidden layer.
        hidden_act: Activation of the MLP. The released weights were trained with the tanh approximation of GELU.
        num_channels: Channels of the video.
        patch_size: Side of a square patch, in pixels.
        tubelet_size: Frames in a patch.
        image_size: Side (or height and width) of the default clip, in pixels.
        num_frames: Frames of the default clip.
        position_embedding_grid: (T0, h0, w0) of the trained position table, in patches.
        qkv_bias: Whether queries, keys and values have a bias.
        use_qk_norm: RMSNorm over the whole width of queries and keys, before they are split into heads.
        use_dual_patch_norm: RMSNorm of the raw patch and of its embedding.
        use_glpe: Global (on the position table) and local (on the values) position encodings.
        layer_scale_init_value: Initial LayerScale.
        drop_path_rate: Stochastic depth of the last layer; it grows linearly from 0.
        attention_dropout: Dropout of the attention weights of the layers.
        classifier_dropout: Dropout before the classifier.
        rms_norm_eps: Epsilon of the RMSNorms.
        layer_norm_eps: Epsilon of the LayerNorms (attention pooling and classifier).
        initializer_range: Standard deviation of the linear layers' initial weights.
        num_pooling_heads: Heads of the attention pooling.
        projection_dim: Width P of the pooled feature.
        token_budgets: Trained budgets, one projector and classifier head each, largest first.
        token_budget: Tokens kept by default; None keeps all of them.
        token_selection: Name of the selector, see `token_selection.TOKEN_SELECTORS`.
        num_token_groups: Frame groups of the group-dynamic selector.
        token_plan: Budget -> [num_frames, size] found best for it on a validation split.
    """

    model_type = "fluxvit"
    # What `transformers.Trainer` need not gather when it evaluates: large, and not predictions.
    keys_to_ignore_at_inference = ["last_hidden_state", "pooler_output", "keep_indices", "hidden_states", "attentions"]

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_act: str = "gelu_pytorch_tanh"
    num_channels: int = 3
    patch_size: int = 14
    tubelet_size: int = 1
    image_size: int | list[int] | tuple[int, int] = 224
    num_frames: int = 12
    position_embedding_grid: list[int] | tuple[int, int, int] = (24, 18, 18)
    qkv_bias: bool = False
    use_qk_norm: bool = True
    use_dual_patch_norm: bool = True
    use_glpe: bool = True
    layer_scale_init_value: float | int = 1e-5
    drop_path_rate: float | int = 0.0
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    rms_norm_eps: float | int = 1e-6
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    num_pooling_heads: int = 16
    projection_dim: int = 768
    token_budgets: list[int] | tuple[int, ...] = (3072, 2048, 1024)
    token_budget: int | None = 2048
    token_selection: str = "group_dynamic"
    num_token_groups: int = 4
    token_plan: dict | None = None

    def __post_init__(self, **kwargs):
        # Tuples come back from JSON as lists; one form makes equal configs equal.
        self.position_embedding_grid = list(self.position_embedding_grid)
        self.token_budgets = list(self.token_budgets)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        if self.token_plan is not None:
            self.token_plan = as_token_plan(self.token_plan)
        # Called here although the library calls every `validate_*` later: it would wrap the ValueError in another type.
        self.validate_fluxvit()
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        self.validate_problem_type()
        _require(self.num_labels >= 1, "num_labels", self.num_labels, "at least 1")

    @classmethod
    def small(cls, **overrides) -> "FluxViTConfig":
        """FluxViT-S: 28,845,948 parameters with 400 labels."""
        return cls(**{**FLUXVIT_SIZES["small"], **overrides})

    @classmethod
    def base(cls, **overrides) -> "FluxViTConfig":
        """FluxViT-B: 104,560,380 parameters with 400 labels."""
        return cls(**{**FLUXVIT_SIZES["base"], **overrides})

    @classmethod
    def internvideo2(cls, size: str, **overrides) -> "FluxViTConfig":
        """InternVideo2 of size S, B, L, 1B or 6B: one head, no dual patch norm, no GLPE, 8 frames of 224x224.

        Raises:
            ValueError: `size` is none of these.
        """
        if size not in INTERNVIDEO2_SIZES:
            raise ValueError(f"size must be one of {list(INTERNVIDEO2_SIZES)}, got {size!r}")
        return cls(**{**INTERNVIDEO2_COMMON, **INTERNVIDEO2_SIZES[size], **overrides})

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Height and width of the default clip, in pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size[0], self.image_size[1]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Saves config.json and, beside it, the source files that load the checkpoint without flux_hf installed."""
        if not os.path.isfile(save_directory):  # the library reports that case
            save_source_files(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        return without_source_files(super()._get_files_timestamps(working_dir))

    def to_dict(self) -> dict:
        """The fields as a dict; `auto_map` always points at the files saved beside the config."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}

    def validate_fluxvit(self) -> None:
        """Raises ValueError, naming field and value, where a value cannot work."""
        self._validate_sizes()
        self._validate_rates()
        self._validate_budgets()

    def validate_problem_type(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {PROBLEM_TYPES}, got {self.problem_type!r}")

    def _validate_sizes(self) -> None:
        positive = (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size num_channels patch_size tubelet_size "
            "num_frames num_pooling_heads projection_dim num_token_groups"
        )
        for name in positive.split():
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for heads in ("num_attention_heads", "num_pooling_heads"):
            value = getattr(self, heads)
            _require(self.hidden_size % value == 0, heads, value, f"a divisor of hidden_size={self.hidden_size}")
        grid = self.position_embedding_grid
        _require(
            len(grid) == 3 and all(_is_count(n) for n in grid), "position_embedding_grid", grid, "three sizes >= 1"
        )
        sides = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        _require(
            len(sides) == (1 if isinstance(self.image_size, int) else 2)
            and all(_is_count(n) and n % self.patch_size == 0 for n in sides),
            "image_size",
            self.image_size,
            f"one side, or height and width, each a multiple of patch_size={self.patch_size}",
        )
        _require(
            self.num_frames % self.tubelet_size == 0,
            "num_frames",
            self.num_frames,
            f"a multiple of tubelet_size={self.tubelet_size}",
        )
        _require(self.hidden_act in ACT2FN, "hidden_act", self.hidden_act, f"one of {sorted(ACT2FN)}")

    def _validate_rates(self) -> None:
        for name in ("drop_path_rate", "attention_dropout", "classifier_dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        scale = self.layer_scale_init_value
        _require(math.isfinite(scale), "layer_scale_init_value", scale, "a finite number")
        for name in ("rms_norm_eps", "layer_norm_eps", "initializer_range"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")

    def _validate_budgets(self) -> None:
        budgets = self.token_budgets
        falling = all(larger > smaller for larger, smaller in zip(budgets, budgets[1:], strict=False))
        _require(
            len(budgets) > 0 and all(_is_count(n) for n in budgets) and falling,
            "token_budgets",
            budgets,
            "one or more budgets >= 1, falling (head 0 is the largest)",
        )
        _require(
            self.token_budget is None or self.token_budget >= 1,
            "token_budget",
            self.token_budget,
            "at least 1, or None",
        )
        _require(
            self.token_selection in TOKEN_SELECTORS,
            "token_selection",
            self.token_selection,
            f"one of {list(TOKEN_SELECTORS)}",
        )
        for budget, (frames, size) in (self.token_plan or {}).items():
            whole = frames % self.tubelet_size == 0 and size % self.patch_size == 0
            _require(whole, "token_plan", {budget: [frames, size]}, "frames in whole tubelets, sizes in whole patches")


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def as_token_plan(plan: Any) -> dict[int, list[int]]:
    """A plan with whole numbers for budgets (JSON makes strings of them) and lists of two for clips.

    Raises:
        ValueError: anything else than budgets >= 1 mapped to [num_frames, size], both >= 1.
    """
    if not isinstance(plan, dict):
        raise ValueError(f"token_plan must map budgets to [num_frames, size], got {plan!r}")
    checked = {}
    for budget, clip in plan.items():
        number = int(budget) if isinstance(budget, str) and budget.isdecimal() else budget
        legal = _is_count(number) and isinstance(clip, (list, tuple)) and len(clip) == 2 and all(map(_is_count, clip))
        _require(legal, "token_plan", {budget: clip}, "budgets >= 1 mapped to [num_frames, size]")
        checked[number] = list(clip)
    return checked


def _require(holds: bool, field: str, value, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{field} must be {allowed}, got {value!r}")


__all__ = ["FluxViTConfig"]
