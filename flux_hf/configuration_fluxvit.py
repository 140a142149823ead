# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT configuration: the sizes as data, every field checked at construction."""

import math
import os
from typing import Any, ClassVar

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
AUTO_LISTS = ("token_budgets", "temperatures", "thresholds")  # of `auto_budgets`
PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification", "regression")


class TokenBudgetConfig:
    """Of a model's configuration: the default clip, the budgets, and the files that load a checkpoint.

    Its fields `image_size`, `num_frames`, `token_budgets`, `token_budget`, `token_selection`, `num_token_groups`,
    `token_threshold`, `token_plan` and `auto_budgets` are those of `FluxViTConfig`. `AUTO_MAP` says where its classes
    are.
    """

    AUTO_MAP: ClassVar[dict[str, str]]

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

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict; `auto_map` always points at the files saved beside the config."""
        return {**super().to_dict(), "auto_map": dict(self.AUTO_MAP)}

    def validate_problem_type(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {PROBLEM_TYPES}, got {self.problem_type!r}")

    def _require(self, field: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{field} must be {allowed}, got {getattr(self, field)!r}")

    def _as_lists(self) -> None:
        """Tuples come back from JSON as lists; one form makes equal configs equal."""
        self.token_budgets = list(self.token_budgets)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        if self.token_plan is not None:
            self.token_plan = as_token_plan(self.token_plan)
        if self.auto_budgets is not None:
            self.auto_budgets = as_auto_budgets(self.auto_budgets)

    def _validate_clip(self) -> None:
        patch, tubelet = self.patch_size, self.tubelet_size
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        whole = len(sides) == 2 and all(is_count(side) and side % patch == 0 for side in sides)
        self._require("image_size", whole, f"one side, or height and width, each a multiple of patch_size={patch}")
        self._require("num_frames", self.num_frames >= 1, "at least 1")
        self._require("num_frames", self.num_frames % tubelet == 0, f"a multiple of tubelet_size={tubelet}")
        for frames, size in (self.token_plan or {}).values():
            whole = frames % tubelet == 0 and size % patch == 0
            self._require("token_plan", whole, "of frames in whole tubelets and sizes in whole patches")
        auto = self.auto_budgets
        whole = auto is None or (auto["num_frames"] % tubelet == 0 and auto["size"] % patch == 0)
        self._require("auto_budgets", whole, "of frames in whole tubelets and a size in whole patches")

    def _validate_budgets(self) -> None:
        budgets = self.token_budgets
        legal = len(budgets) > 0 and all(map(is_count, budgets)) and budgets == sorted(set(budgets), reverse=True)
        self._require("token_budgets", legal, "one or more budgets >= 1, falling (head 0 is the largest)")
        self._require("token_budget", self.token_budget is None or self.token_budget >= 1, "at least 1, or None")
        self.validate_selection()

    def validate_selection(self) -> None:
        """Raises ValueError, naming field and value, for a selector that cannot be, or whose threshold cannot."""
        self._require("token_selection", self.token_selection in TOKEN_SELECTORS, f"one of {list(TOKEN_SELECTORS)}")
        self._require("num_token_groups", self.num_token_groups >= 1, "at least 1")
        threshold = self.token_threshold
        legal = threshold is None or (is_number(threshold) and threshold >= 0)
        self._require("token_threshold", legal, "a distance of at least 0, or None")
        given = threshold is not None or not self.selects_by_threshold
        self._require("token_threshold", given, f"given for token_selection={self.token_selection!r}")

    @property
    def selects_by_threshold(self) -> bool:
        """Whether each clip keeps another number of tokens, the budget being the most."""
        return TOKEN_SELECTORS[self.token_selection].by_threshold


@strict
class FluxViTConfig(TokenBudgetConfig, PreTrainedConfig):
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
        token_threshold: For `token_selection="threshold"` how far a patch's embedding must have moved to be kept.
        token_plan: Budget -> [num_frames, size] found best for it on a validation split.
        auto_budgets: What `token_budget="auto"` goes by, found on a validation split: `num_frames` and `size` of the
            clip, rising `token_budgets`, a temperature for each (`temperatures`), and for each but the last the
            confidence from which it suffices (`thresholds`).
        alignment_layers: In pretraining, the layers (from 0, rising) that are aligned to layers of a teacher.
        teacher_hidden_size: The teacher's width, in pretraining.
        teacher_projection_dim: The width of the teacher's pooled feature, in pretraining.
    """

    AUTO_MAP = AUTO_MAP
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
    token_threshold: float | int | None = None
    token_plan: dict | None = None
    auto_budgets: dict | None = None
    alignment_layers: list[int] | tuple[int, ...] | None = None
    teacher_hidden_size: int | None = None
    teacher_projection_dim: int | None = None

    def __post_init__(self, **kwargs):
        if self.alignment_layers is not None:
            self.alignment_layers = list(self.alignment_layers)
        self.position_embedding_grid = list(self.position_embedding_grid)
        self._as_lists()
        # Called here although the library calls every `validate_*` later: it would wrap the ValueError in another type.
        self.validate_fluxvit()
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        self.validate_problem_type()
        self._require("num_labels", self.num_labels >= 1, "at least 1")

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

    def validate_fluxvit(self) -> None:
        """Raises ValueError, naming field and value, where a value cannot work."""
        self._validate_sizes()
        self._validate_clip()
        self._validate_rates()
        self._validate_budgets()
        self._validate_teacher()

    def _validate_sizes(self) -> None:
        positive = (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size num_channels patch_size tubelet_size "
            "num_pooling_heads projection_dim"
        )
        for name in positive.split():
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_attention_heads", "num_pooling_heads"):
            whole = self.hidden_size % getattr(self, name) == 0
            self._require(name, whole, f"a divisor of hidden_size={self.hidden_size}")
        grid = self.position_embedding_grid
        self._require("position_embedding_grid", len(grid) == 3 and all(map(is_count, grid)), "three sizes >= 1")
        self._require("hidden_act", self.hidden_act in ACT2FN, f"one of {sorted(ACT2FN)}")

    def _validate_teacher(self) -> None:
        layers, last = self.alignment_layers, self.num_hidden_layers - 1
        legal = layers is None or (layers == sorted(set(layers)) and layers and 0 <= layers[0] <= layers[-1] <= last)
        self._require("alignment_layers", legal, f"one or more layers from 0 to {last}, rising, or None")
        for name in ("teacher_hidden_size", "teacher_projection_dim"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1, or None")

    def _validate_rates(self) -> None:
        for name in ("drop_path_rate", "attention_dropout", "classifier_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("layer_scale_init_value", math.isfinite(self.layer_scale_init_value), "a finite number")
        for name in ("rms_norm_eps", "layer_norm_eps", "initializer_range"):
            self._require(name, getattr(self, name) > 0, "above 0")


def is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
        legal = is_count(number) and isinstance(clip, (list, tuple)) and len(clip) == 2 and all(map(is_count, clip))
        if not legal:
            raise ValueError(f"token_plan must map budgets >= 1 to [num_frames, size], got {budget}: {clip}")
        checked[number] = list(clip)
    return checked


def as_auto_budgets(auto: Any) -> dict[str, Any]:
    """What `token_budget="auto"` goes by, in whole numbers, lists and floats, as JSON gives it back.

    Raises:
        ValueError: anything else than the fields that `FluxViTConfig` names, of values and lengths that can be.
    """
    if not isinstance(auto, dict) or set(auto) != {"num_frames", "size", *AUTO_LISTS}:
        fields = ["num_frames", "size", *AUTO_LISTS]
        raise ValueError(f"auto_budgets must have the fields {fields}, got {auto!r}")
    budgets, temperatures, thresholds = (auto[name] for name in AUTO_LISTS)
    lists = all(isinstance(auto[name], (list, tuple)) for name in AUTO_LISTS)
    if not lists or not len(budgets) == len(temperatures) == len(thresholds) + 1:
        raise ValueError(f"auto_budgets must have a temperature a budget, and one threshold fewer, got {auto!r}")
    numbers = all(is_number(value) for value in (*temperatures, *thresholds))
    if not numbers or min(temperatures) <= 0 or min(thresholds, default=0) < 0:
        raise ValueError(f"temperatures must be above 0 and thresholds at least 0, got auto_budgets {auto!r}")
    if not all(map(is_count, (auto["num_frames"], auto["size"], *budgets))) or list(budgets) != sorted(set(budgets)):
        raise ValueError(f"auto_budgets must be of whole numbers >= 1, the budgets rising, got {auto!r}")
    return {
        "num_frames": auto["num_frames"],
        "size": auto["size"],
        "token_budgets": list(budgets),
        "temperatures": [float(value) for value in temperatures],
        "thresholds": [float(value) for value in thresholds],
    }


__all__ = ["FluxViTConfig"]
