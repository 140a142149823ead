"""A model small enough to train in a test."""

from flux_hf import FluxViTConfig


FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_pooling_heads": 2,
    "projection_dim": 16,
    "position_embedding_grid": [4, 2, 2],
    "layer_scale_init_value": 0.5,
    "image_size": 28,
    "num_frames": 4,
}


def tiny_config(**changes) -> FluxViTConfig:
    """4 frames of 2 x 2 patches: 16 tokens."""
    fields = {**FIELDS, "token_budgets": [16, 8, 4], "token_budget": 8}
    if "id2label" not in changes:
        fields["num_labels"] = 3
    return FluxViTConfig(**{**fields, **changes})
