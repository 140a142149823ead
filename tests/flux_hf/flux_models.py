"""Tiny encoders of the library with random weights, none of them zero, and Flux around them."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from flux_hf import FluxForVideoClassification, FluxViTConfig


NAMES = ("videomae", "vivit", "vjepa2")
LABELS = {index: f"class {index}" for index in range(5)}
LABEL_NAMES = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
# 4x4x4 patches; a head is 16 wide, for flex_attention on the CPU wants a power of two.
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, **LABEL_NAMES}
NUM_TOKENS = 64


def fluxvit_config(**overrides) -> FluxViTConfig:
    """8 frames of 4x4 patches, three budgets, 7 labels."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    sizes |= {"num_pooling_heads": 4, "projection_dim": 32, "position_embedding_grid": [8, 4, 4]}
    clip = {"image_size": 56, "num_frames": 8, "token_budgets": [96, 64, 32], "token_budget": 64}
    scales = {"layer_scale_init_value": 0.3, "initializer_range": 0.2}
    labels = {"id2label": {index: f"class {index}" for index in range(7)}}
    return FluxViTConfig(**{**sizes, **clip, **scales, **labels, **overrides})


def videomae_config(**overrides) -> VideoMAEConfig:
    sizes = {"num_frames": 8, "tubelet_size": 2, "image_size": 32, "patch_size": 8, "intermediate_size": 96}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return VideoMAEConfig(**{**SIZES, **sizes, **decoder, "decoder_intermediate_size": 48, **overrides})


def vivit_config(**overrides) -> VivitConfig:
    sizes = {"num_frames": 8, "tubelet_size": [2, 8, 8], "image_size": 32, "intermediate_size": 96}
    return VivitConfig(**{**SIZES, **sizes, **overrides})


def vjepa2_config(**overrides) -> VJEPA2Config:
    sizes = {"frames_per_clip": 8, "tubelet_size": 2, "crop_size": 32, "patch_size": 8, "mlp_ratio": 1.5}
    pooler = {
        "num_pooler_layers": 2,
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    }
    return VJEPA2Config(**{**SIZES, **sizes, **pooler, **overrides})


CONFIGS: dict[str, Callable] = {"videomae": videomae_config, "vivit": vivit_config, "vjepa2": vjepa2_config}
CLASSIFIERS = {
    "videomae": VideoMAEForVideoClassification,
    "vivit": VivitForVideoClassification,
    "vjepa2": VJEPA2ForVideoClassification,
}


@torch.no_grad()
def with_random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew: matrices to keep lengths, norms around 1, biases, tokens and tables wide."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        elif parameter.ndim > 1 and not name.endswith(("_token", "_tokens", "position_embeddings")):
            drawn = drawn * parameter[0].numel() ** -0.5
        else:
            drawn = 0.5 * drawn
        parameter.copy_(drawn)
    return model.eval()


def library_model(name: str, attention: str = "sdpa", **overrides) -> PreTrainedModel:
    """A classifier of the library."""
    model = CLASSIFIERS[name]._from_config(CONFIGS[name](**overrides), attn_implementation=attention)
    return with_random_weights(model)


def flux_model(
    name: str, token_budgets=(64, 32, 16), attention: str = "sdpa", num_hidden_layers: int = 3, **options
) -> FluxForVideoClassification:
    """Flux around `library_model(name)`; separate heads are each drawn anew."""
    library = library_model(name, attention, num_hidden_layers=num_hidden_layers)
    model = FluxForVideoClassification.from_backbone(library, token_budgets, **options)
    if model.config.separate_heads:
        for index, module in enumerate(model.heads()):
            with_random_weights(module, seed=index + 1)
    return model.eval()


@functools.cache
def shared_model(name: str) -> FluxForVideoClassification:
    """`flux_model(name)`, for tests that leave it as it is."""
    return flux_model(name)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 8, 3, 32, 32)), generator=torch.Generator().manual_seed(seed))
