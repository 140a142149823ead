# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Loads whatever can classify at token budgets: FluxViT, Flux, and plain VideoMAE, V-JEPA 2 or ViViT, wrapped."""

import os
from typing import Any

from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VideoMAEVideoProcessor,
    VivitVideoProcessor,
    VJEPA2VideoProcessor,
)
from transformers.utils import logging

from .configuration_flux import FluxConfig
from .configuration_fluxvit import FluxViTConfig
from .modeling_flux import BACKBONES, FluxForVideoClassification, FluxModel
from .modeling_fluxvit import FluxViTForVideoClassification, FluxViTModel
from .video_processing_fluxvit import FluxViTVideoProcessor


logger = logging.get_logger(__name__)

# The classifiers and encoders with token budgets, by the model type of their configs.
CLASSIFIERS = {
    FluxViTConfig.model_type: FluxViTForVideoClassification,
    FluxConfig.model_type: FluxForVideoClassification,
}
ENCODERS = {FluxViTConfig.model_type: FluxViTModel, FluxConfig.model_type: FluxModel}
LIBRARY_PROCESSORS = {"videomae": VideoMAEVideoProcessor, "vivit": VivitVideoProcessor, "vjepa2": VJEPA2VideoProcessor}


def is_plain(config: PreTrainedConfig) -> bool:
    """Whether a config is of an encoder of the library that Flux goes around."""
    return config.model_type in BACKBONES


def load_classifier(source: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """A classifier with token budgets.

    Args:
        source: Folder or Hub id of a FluxViT or Flux checkpoint, or of a plain VideoMAE, V-JEPA 2 or ViViT, which is
            wrapped by `FluxForVideoClassification.from_backbone`, and says so.
        options: Of `from_pretrained`, and changes of the config.

    Raises:
        ValueError: another kind of model, with the reason why it cannot have budgets.
    """
    hub = {name: options[name] for name in ("revision", "cache_dir", "token") if name in options}
    config = AutoConfig.from_pretrained(source, **hub)
    if config.model_type in CLASSIFIERS:
        return CLASSIFIERS[config.model_type].from_pretrained(source, **options)
    return wrapped(source, **options)


def load_encoder(source: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """An encoder with the four steps of `protocol.py`, without classifiers: a classifier's, or a pretrained student's.

    Args and errors as `load_classifier`; a plain encoder is wrapped with the classifier it has.
    """
    hub = {name: options[name] for name in ("revision", "cache_dir", "token") if name in options}
    config = AutoConfig.from_pretrained(source, **hub)
    if config.model_type in ENCODERS:
        return ENCODERS[config.model_type].from_pretrained(source, **options)
    return wrapped(source, **options)


def wrapped(source: str | os.PathLike | PreTrainedModel, **options: Any) -> FluxForVideoClassification:
    """`FluxForVideoClassification.from_backbone`, and says so."""
    model = FluxForVideoClassification.from_backbone(source, **options)
    name = source.name_or_path if isinstance(source, PreTrainedModel) else source
    logger.warning(
        f"{name} is a plain {model.config.backbone_config.model_type}: Flux goes around it, with token budgets "
        f"{model.config.token_budgets} and one classifier for all"
    )
    return model


def load_processor(source: str | os.PathLike, config: PreTrainedConfig, **options: Any) -> FluxViTVideoProcessor:
    """The video processor of a checkpoint; for a plain encoder one that follows its own, as `following`.

    Args:
        source: Of `load_classifier`.
        config: Of the model that `load_classifier` gave.
        options: Of `from_pretrained`, and changes of the settings.
    """
    hub = {name: options[name] for name in ("revision", "cache_dir", "token") if name in options}
    if AutoConfig.from_pretrained(source, **hub).model_type in CLASSIFIERS:
        return FluxViTVideoProcessor.from_pretrained(source, **options)
    try:
        settings, _ = FluxViTVideoProcessor.get_video_processor_dict(source, **hub)
    except OSError:  # weights without a processor
        settings = {}
    changes = {name: value for name, value in options.items() if name not in hub}
    return following(settings, config, **changes)


def following(settings: dict[str, Any], config: FluxConfig, **changes: Any) -> FluxViTVideoProcessor:
    """A processor that gives the values which an encoder of the library was trained on.

    Args:
        settings: Of the encoder's own image or video processor; what they leave out is that processor's default.
        config: Of Flux around the encoder.
        changes: Settings of ours to be otherwise.

    Returns:
        Frames and size of `config`; a short side that exceeds it as much as the encoder's own exceeds its crop; its
        rescaling, mean and deviation as those of values in [0, 1].

    Raises:
        ValueError: the encoder's processor does not rescale, or does not normalise.
    """
    model_type = config.backbone_config.model_type
    settings = {**LIBRARY_PROCESSORS[model_type]().to_dict(), **settings}
    if not settings["do_rescale"] or not settings["do_normalize"]:
        raise ValueError(f"the {model_type} checkpoint's processor must rescale and normalise, got {settings}")
    scale = 255 * settings["rescale_factor"]
    shift = 1.0 if settings.get("offset", model_type == "vivit") else 0.0  # ViViT's values are lessened by it
    height, width = config.image_height_width
    size: dict[str, int] | int = {"height": height, "width": width}
    if height == width:
        own = FluxViTVideoProcessor(size=settings["size"], crop_size=settings["crop_size"])
        size = own.with_margin(height)
    ours = {
        "image_mean": [(mean + shift) / scale for mean in settings["image_mean"]],
        "image_std": [std / scale for std in settings["image_std"]],
        "size": size,
        "crop_size": {"height": height, "width": width},
        "resample": settings["resample"],
        "antialias": True,  # as the library's processors
        "num_frames": config.num_frames,
        "patch_size": config.patch_size,
    }
    return FluxViTVideoProcessor(**{**ours, **changes})


__all__ = [
    "CLASSIFIERS",
    "ENCODERS",
    "following",
    "is_plain",
    "load_classifier",
    "load_encoder",
    "load_processor",
    "wrapped",
]
