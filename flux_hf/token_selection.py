# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Token selection: which patches of a densely sampled clip are worth encoding.

Pure functions from patch embeddings (B, T, L, D) to `keep_indices` (B, K): int64 positions in the flattened (T, L)
grid, rising, so that kept tokens stay in raster (time, row, column) order. Shape letters: B batch, T frames, L patches
a frame, D width, K kept tokens. Everything is static-shaped (sort, slice, gather), so it compiles and exports; scores
are float32 whatever the dtype of the features, because in bfloat16 most of them would tie.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def as_count(name: str, value: int) -> int:
    """`value` as an int of at least 1.

    Raises:
        ValueError: it is smaller, or no whole number.
    """
    if isinstance(value, np.integer):
        value = int(value)
    # SymInt: a size that varies between calls of an exported program
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def resolve_token_groups(num_frames: int, num_groups: int = 4) -> int:
    """Number of contiguous frame groups the group-dynamic selector uses.

    `num_groups` if it divides the frames into groups of two or more, else 2 if the frames are even and more than 4,
    else 1. With the default this is 4 for T % 4 == 0 and T > 4, 2 for other even T > 4, and 1 for odd T and T <= 4
    (the released code fails on T = 4 and on odd T; one group there follows the authors' later version).
    """
    for groups in (num_groups, 2):
        if groups <= num_groups and num_frames % groups == 0 and num_frames > max(groups, 4):
            return groups
    return 1


def frame_difference_scores(features: Tensor, num_groups: int = 1, norm: float = 2.0) -> Tensor:
    """Scores each patch by how far its embedding moved since the frame before, within its frame group.

    Args:
        features: (B, T, L, D) patch embeddings, T >= 2 in every group.
        num_groups: Contiguous groups of T / num_groups frames; distances never cross a group's border.
        norm: Order of the vector norm (2 in the paper's best setting, 1 in its ablation).

    Returns:
        (B, num_groups, T / num_groups * L) float32 scores; a group's first frame copies its second frame's.
    """
    batch, frames, patches, width = features.shape
    grouped = features.detach().float().reshape(batch, num_groups, frames // num_groups, patches, width)
    moved = torch.linalg.vector_norm(grouped[:, :, 1:] - grouped[:, :, :-1], ord=norm, dim=-1)
    return torch.cat([moved[:, :, :1], moved], dim=2).flatten(2)


def _best_of_each_group(scores: Tensor, shares: list[int]) -> Tensor:
    """Indices of the `shares[g]` highest scores of each group g, ties to the earlier token, rising.

    scores: (B, G, n) -> (B, sum(shares)) indices into the flattened (G, n).
    """
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    group_size = scores.shape[-1]
    best = [order[:, group, :share] + group * group_size for group, share in enumerate(shares)]
    return torch.cat(best, dim=1).sort(dim=1).values


def _dynamic(features: Tensor, num_tokens: int, num_groups: int, norm: float, official_rounding: bool) -> Tensor:
    batch, frames, patches, _ = features.shape
    if frames == 1:
        return _evenly_spaced(features, num_tokens)
    group_tokens = frames * patches // num_groups
    if official_rounding:
        # Float arithmetic on purpose: this is where the official code loses up to 4 tokens.
        ratio = 1 - num_tokens / (frames * patches)
        shares = [max(1, int((1 - ratio) * group_tokens))] * num_groups
    else:
        shares = [num_tokens // num_groups + (group < num_tokens % num_groups) for group in range(num_groups)]
    return _best_of_each_group(frame_difference_scores(features, num_groups, norm), shares)


def _evenly_spaced(features: Tensor, num_tokens: int) -> Tensor:
    """One frame shows no motion: index i of K is floor((2i + 1) * L / (2K))."""
    batch, _, patches, _ = features.shape
    steps = 2 * torch.arange(num_tokens, device=features.device) + 1
    indices = torch.div(steps * patches, 2 * num_tokens, rounding_mode="floor")
    return indices.expand(batch, num_tokens)


def group_dynamic(features: Tensor, num_tokens: int, num_groups: int = 4) -> Tensor:
    """The paper's selector: within each frame group keep the patches whose embedding moved most (L2), exactly K."""
    groups = resolve_token_groups(features.shape[1], num_groups)
    return _dynamic(features, num_tokens, groups, norm=2.0, official_rounding=False)


def group_dynamic_official(features: Tensor, num_tokens: int, num_groups: int = 4) -> Tensor:
    """`group_dynamic` with the official code's rounding: each group keeps int(share), so a few tokens fewer than K.

    Each group keeps at least one token, where the official code would keep none.
    """
    groups = resolve_token_groups(features.shape[1], num_groups)
    return _dynamic(features, num_tokens, groups, norm=2.0, official_rounding=True)


def dynamic_l2(features: Tensor, num_tokens: int, num_groups: int = 1) -> Tensor:
    """Ablation: patches that moved most over the whole clip, L2, no groups."""
    return _dynamic(features, num_tokens, 1, norm=2.0, official_rounding=False)


def dynamic_l1(features: Tensor, num_tokens: int, num_groups: int = 1) -> Tensor:
    """Ablation: patches that moved most over the whole clip, L1, no groups."""
    return _dynamic(features, num_tokens, 1, norm=1.0, official_rounding=False)


def random_tokens(features: Tensor, num_tokens: int, num_groups: int = 1) -> Tensor:
    """Ablation: K patches drawn uniformly without replacement, anew at each call."""
    scores = torch.rand(features.shape[0], 1, features.shape[1] * features.shape[2], device=features.device)
    return _best_of_each_group(scores, [num_tokens])


def tube(features: Tensor, num_tokens: int, num_groups: int = 1) -> Tensor:
    """Ablation: the same random patches in every frame; the first K % T frames keep one more."""
    batch, frames, patches, _ = features.shape
    scores = torch.rand(batch, 1, patches, device=features.device).expand(batch, frames, patches)
    shares = [num_tokens // frames + (frame < num_tokens % frames) for frame in range(frames)]
    return _best_of_each_group(scores, shares)


TOKEN_SELECTORS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "group_dynamic": group_dynamic,
    "group_dynamic_official": group_dynamic_official,
    "dynamic_l2": dynamic_l2,
    "dynamic_l1": dynamic_l1,
    "random": random_tokens,
    "tube": tube,
}


@torch.no_grad()
def select_tokens(
    features: Tensor,
    token_budget: int | None,
    method: str = "group_dynamic",
    num_groups: int = 4,
) -> Tensor:
    """Chooses the tokens of each clip that are encoded.

    Source: paper section 3 and Table 2; the official code for groups and distances.

    Args:
        features: (B, T, L, D) patch embeddings, before any position embedding.
        token_budget: Tokens to keep; None, or T * L and more, keeps all of them.
        method: A name in `TOKEN_SELECTORS`. All keep exactly the budget but "group_dynamic_official".
        num_groups: Frame groups wanted, for the group-dynamic methods.

    Returns:
        (B, K) int64 indices into the flattened (T, L) grid, rising.

    Raises:
        ValueError: a budget below 1, features that are not (B, T, L, D), or an unknown method.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be (batch, frames, patches, width), got shape {tuple(features.shape)}")
    if method not in TOKEN_SELECTORS:
        raise ValueError(f"method must be one of {list(TOKEN_SELECTORS)}, got {method!r}")
    if token_budget is not None:
        token_budget = as_count("token_budget", token_budget)
    num_groups = as_count("num_groups", num_groups)
    batch, frames, patches, _ = features.shape
    if token_budget is None or token_budget >= frames * patches:
        return torch.arange(frames * patches, device=features.device).expand(batch, frames * patches)
    return TOKEN_SELECTORS[method](features, token_budget, num_groups)
