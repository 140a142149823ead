# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT for Hugging Face transformers. Importing the package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from .configuration_flux import FluxConfig
from .configuration_fluxvit import FluxViTConfig
from .exported import ExportedClassifier, load_exported
from .loading import load_classifier, load_processor
from .modeling_flux import FluxForVideoClassification, FluxModel, FluxPreTrainedModel
from .modeling_fluxvit import FluxViTForVideoClassification, FluxViTModel, FluxViTPreTrainedModel
from .modeling_fluxvit_pretraining import FluxViTForPreTraining
from .patch_grids import scatter_to_grid
from .pipelines import FluxViTVideoClassificationPipeline
from .token_selection import TOKEN_SELECTORS, select_tokens
from .video_decoding import VideoDecodeError, decode_video, sample_frame_indices
from .video_processing_fluxvit import FluxViTVideoProcessor
from .video_windows import VideoWindow, iter_windows
from .visualization import visualize_kept_tokens


__version__ = "0.1.0"

AutoConfig.register(FluxViTConfig.model_type, FluxViTConfig, exist_ok=True)
AutoModel.register(FluxViTConfig, FluxViTModel, exist_ok=True)
AutoModelForPreTraining.register(FluxViTConfig, FluxViTForPreTraining, exist_ok=True)
AutoModelForVideoClassification.register(FluxViTConfig, FluxViTForVideoClassification, exist_ok=True)
AutoVideoProcessor.register(FluxViTConfig, FluxViTVideoProcessor, exist_ok=True)
AutoConfig.register(FluxConfig.model_type, FluxConfig, exist_ok=True)
AutoModel.register(FluxConfig, FluxModel, exist_ok=True)
AutoModelForVideoClassification.register(FluxConfig, FluxForVideoClassification, exist_ok=True)
AutoVideoProcessor.register(FluxConfig, FluxViTVideoProcessor, exist_ok=True)

__all__ = [
    "TOKEN_SELECTORS",
    "ExportedClassifier",
    "FluxConfig",
    "FluxForVideoClassification",
    "FluxModel",
    "FluxPreTrainedModel",
    "FluxViTConfig",
    "FluxViTForPreTraining",
    "FluxViTForVideoClassification",
    "FluxViTModel",
    "FluxViTPreTrainedModel",
    "FluxViTVideoClassificationPipeline",
    "FluxViTVideoProcessor",
    "VideoDecodeError",
    "VideoWindow",
    "decode_video",
    "iter_windows",
    "load_classifier",
    "load_exported",
    "load_processor",
    "sample_frame_indices",
    "scatter_to_grid",
    "select_tokens",
    "visualize_kept_tokens",
]
