"""Kept patches back at their places."""

import pytest
import torch

from flux_hf import FluxViTConfig, FluxViTModel, scatter_to_grid


def test_features_come_back_to_their_places():
    keep_indices = torch.tensor([[0, 3, 7], [1, 2, 11]])
    features = torch.arange(12.0).reshape(2, 3, 2).requires_grad_()
    volume, kept = scatter_to_grid(features, keep_indices, (2, 2, 3), fill=-1.0)
    assert volume.shape == (2, 2, 2, 3, 2) and kept.sum() == 6
    for clip in range(2):
        flat = volume[clip].reshape(12, 2)
        for place in range(12):
            where = keep_indices[clip].tolist()
            wanted = features[clip, where.index(place)] if place in where else torch.full((2,), -1.0)
            assert torch.equal(flat[place], wanted) and kept[clip].flatten()[place] == (place in where)
    volume.sum().backward()
    assert (features.grad == 1).all()


@torch.no_grad()
def test_all_patches_of_a_clip_lie_as_they_are():
    """In time, rows and columns of a clip that is not square, at its own budget and at all of them."""
    torch.manual_seed(0)
    config = FluxViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, num_frames=3,
        position_embedding_grid=[3, 2, 2], num_pooling_heads=2, token_budgets=[18], token_budget=18,
    )  # fmt: skip
    model, clip = FluxViTModel(config).eval(), torch.randn(1, 3, 3, 28, 42)
    outputs = model(clip, token_budget=10**6)
    volume, kept = scatter_to_grid(outputs.last_hidden_state[:, 1:], outputs.keep_indices, (3, 2, 3))
    assert kept.all() and torch.equal(volume.flatten(1, 3), outputs.last_hidden_state[:, 1:])
    few = model(clip, token_budget=5)
    volume, kept = scatter_to_grid(few.last_hidden_state[:, 1:].half(), few.keep_indices.int(), (3, 2, 3))
    assert torch.equal(kept.flatten().nonzero()[:, 0], few.keep_indices[0]) and volume.dtype == torch.float16


@pytest.mark.parametrize(
    ("features", "indices", "message"),
    [
        ((1, 3, 2), [[0, 1]], "got .1, 3, 2. and .1, 2."),
        ((3, 2), [[0, 1, 2]], "must be .batch, kept patches, width."),
        ((1, 2, 4), [[0, 12]], r"must lie in \[0, 12\)"),
    ],
)
def test_what_does_not_fit_is_refused(features, indices, message):
    with pytest.raises(ValueError, match=message):
        scatter_to_grid(torch.zeros(features), torch.tensor(indices), (2, 2, 3))
