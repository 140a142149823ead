# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The configuration of Flux around an encoder of the library: its own config, and what Flux adds to it."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .checkpoint_files import FLUX_AUTO_MAP
from .configuration_fluxvit import TokenBudgetConfig


@dataclass(frozen=True)
class NativeClip:
    """The clip that an encoder was trained on: frames, sides in pixels, and how it is cut."""

    num_frames: int
    height: int
    width: int
    num_channels: int
    tubelet_size: int
    patch_size: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """(frames, rows, columns) in patches; at least one tubelet, of which an image is made."""
        frames = max(1, self.num_frames // self.tubelet_size)
        return frames, self.height // self.patch_size, self.width // self.patch_size

    @property
    def num_tokens(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns


# How each encoder's config names its frames, sides and channels; the names are the library's.
NATIVE_FIELDS = {
    "videomae": ("num_frames", "image_size", "num_channels"),
    "vivit": ("num_frames", "image_size", "num_channels"),
    "vjepa2": ("frames_per_clip", "crop_size", "in_chans"),
}
# Why others cannot drop tokens.
UNFIT = {
    "timesformer": "its divided attention needs every frame's patch at each place, and every patch of each frame",
    "videoprism": "its divided attention encodes whole frames, then each place over time",
}


def check_backbone_type(model_type: str) -> None:
    """Raises ValueError, with the reason, for an encoder that Flux cannot be put around."""
    if model_type not in NATIVE_FIELDS:
        reason = UNFIT.get(model_type, "no encoder of all a clip's patches together that Flux knows")
        raise ValueError(f"Flux goes around one of {list(NATIVE_FIELDS)}, got {model_type!r}: {reason}")


def native_clip(backbone_config: PreTrainedConfig) -> NativeClip:
    """What an encoder's config says of its clip.

    Raises:
        ValueError: patches that are not square, or an encoder that Flux cannot be put around.
    """
    check_backbone_type(backbone_config.model_type)
    frames, side, channels = (getattr(backbone_config, name) for name in NATIVE_FIELDS[backbone_config.model_type])
    height, width = (side, side) if isinstance(side, int) else side
    if backbone_config.model_type == "vivit":
        tubelet, *patch = backbone_config.tubelet_size
    else:
        tubelet, patch = backbone_config.tubelet_size, backbone_config.patch_size
    sides = {patch} if isinstance(patch, int) else set(patch)
    if len(sides) > 1:
        raise ValueError(f"patches must be square, {backbone_config.model_type} has {patch}")
    return NativeClip(frames, height, width, channels, tubelet, sides.pop())


@strict
class FluxConfig(TokenBudgetConfig, PreTrainedConfig):
    r"""Configuration of Flux around VideoMAE, V-JEPA 2 or ViViT.

    Args:
        backbone_config: The encoder's own configuration, of type `videomae` (the default), `vjepa2` or `vivit`; its
            frames and size are those of its trained positions, and stay.
        token_budgets: Trained budgets, largest first; by default all, half and a quarter of the native clip's tokens.
        token_budget: Tokens kept by default; None keeps all of them.
        separate_heads: Whether each budget has a pooler and classifier of its own; else one serves all.
        token_selection: Name of the selector, see `token_selection.TOKEN_SELECTORS`.
        num_token_groups: Frame groups of the group-dynamic selector.
        token_threshold: Of the threshold selector, as in `FluxViTConfig`.
        token_plan: Budget -> [num_frames, size] found best for it on a validation split.
        auto_budgets: What `token_budget="auto"` goes by, as in `FluxViTConfig`.
        num_frames: Frames of the default clip; the encoder's own if not given.
        image_size: Side (or height and width) of the default clip, in pixels; the encoder's own if not given.
        classifier_dropout: Dropout before the classifier.
    """

    AUTO_MAP = FLUX_AUTO_MAP
    model_type = "flux_video"
    sub_configs = {"backbone_config": AutoConfig}
    # What `transformers.Trainer` need not gather when it evaluates: large, and not predictions.
    keys_to_ignore_at_inference = ["last_hidden_state", "pooler_output", "keep_indices", "hidden_states", "attentions"]

    backbone_config: dict | PreTrainedConfig | None = None
    token_budgets: list[int] | tuple[int, ...] | None = None
    token_budget: int | None = None
    separate_heads: bool = False
    token_selection: str = "group_dynamic"
    num_token_groups: int = 4
    token_threshold: float | int | None = None
    token_plan: dict | None = None
    auto_budgets: dict | None = None
    num_frames: int | None = None
    image_size: int | list[int] | tuple[int, int] | None = None
    classifier_dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        given = self.backbone_config or {"model_type": "videomae"}
        if isinstance(given, dict):
            check_backbone_type(given.get("model_type", "videomae"))
            given = AutoConfig.for_model(**{"model_type": "videomae", **given})
        self.backbone_config = given
        native = native_clip(given)
        if self.token_budgets is None:
            shares = [native.num_tokens, native.num_tokens // 2, native.num_tokens // 4]
            self.token_budgets = sorted({max(1, share) for share in shares}, reverse=True)
        if self.num_frames is None:
            self.num_frames = max(native.num_frames, native.tubelet_size)
        if self.image_size is None:
            same = native.height == native.width
            self.image_size = native.height if same else [native.height, native.width]
        self._as_lists()
        # Called here although the library calls every `validate_*` later: it would wrap the ValueError in another type.
        self.validate_flux()
        kwargs.setdefault("auto_map", dict(FLUX_AUTO_MAP))
        super().__post_init__(**kwargs)
        self.validate_problem_type()
        self._require("num_labels", self.num_labels >= 1, "at least 1")

    # What the encoder's config says, under the names that FluxViTConfig has for it.

    @property
    def hidden_size(self) -> int:
        return self.backbone_config.hidden_size

    @property
    def projection_dim(self) -> int:
        """Width P of the pooled feature."""
        return self.backbone_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.backbone_config.num_attention_heads

    @property
    def num_channels(self) -> int:
        return native_clip(self.backbone_config).num_channels

    @property
    def patch_size(self) -> int:
        return native_clip(self.backbone_config).patch_size

    @property
    def tubelet_size(self) -> int:
        return native_clip(self.backbone_config).tubelet_size

    @property
    def layer_norm_eps(self) -> float:
        return self.backbone_config.layer_norm_eps

    @layer_norm_eps.setter
    def layer_norm_eps(self, value: float) -> None:
        self.backbone_config.layer_norm_eps = value

    @property
    def initializer_range(self) -> float:
        return self.backbone_config.initializer_range

    @property
    def drop_path_rate(self) -> float:
        """Stochastic depth of the last layer. Setting it raises ValueError for an encoder that has none."""
        return getattr(self.backbone_config, "drop_path_rate", 0.0)

    @drop_path_rate.setter
    def drop_path_rate(self, rate: float) -> None:
        if rate != self.drop_path_rate and not hasattr(self.backbone_config, "drop_path_rate"):
            raise ValueError(f"{self.backbone_config.model_type} has no stochastic depth, got drop_path_rate={rate}")
        if hasattr(self.backbone_config, "drop_path_rate"):
            self.backbone_config.drop_path_rate = rate

    @property
    def num_heads(self) -> int:
        """Poolers and classifiers."""
        return len(self.token_budgets) if self.separate_heads else 1

    def validate_flux(self) -> None:
        """Raises ValueError, naming field and value, where a value cannot work."""
        self._validate_clip()
        self._validate_budgets()
        self._require("classifier_dropout", 0 <= self.classifier_dropout < 1, "in [0, 1)")


__all__ = ["FluxConfig"]
