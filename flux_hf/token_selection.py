# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Token selection: which patches of a densely sampled clip are worth encoding.

Pure functions from patch embeddings (B, T, L, D) to `keep_indices` (B, K): int64 positions in the flattened (T, L)
grid, rising, so that kept tokens stay in raster (time, row, column) order. Shape letters: B batch, T frames, L patches
a frame, D width, K kept tokens. Everything is static-shaped (sort, slice, gather), so it compiles and exports; scores
are float32 whatever the dtype of the features, because in bfloat16 most of them would tie.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def _random_anywhere(features: Tensor, num_groups: int) -> Tensor:
    batch, frames, patches, _ = features.shape
    return torch.rand(batch, 1, frames * patches, device=features.device)


def _random_tubes(features: Tensor, num_groups: int) -> Tensor:
    batch, frames, patches, _ = features.shape
    return torch.rand(batch, 1, patches, device=features.device).expand(batch, frames, patches)


def _exact_shares(num_tokens: int, num_groups: int, group_tokens: int) -> list[int]:
    return [num_tokens // num_groups + (group < num_tokens % num_groups) for group in range(num_groups)]


def _official_shares(num_tokens: int, num_groups: int, group_tokens: int) -> list[int]:
    # Float arithmetic on purpose: this is where the official code loses up to 4 tokens.
    ratio = 1 - num_tokens / (num_groups * group_tokens)
    return [max(1, int((1 - ratio) * group_tokens))] * num_groups


@dataclass(frozen=True)
class TokenSelector:
    """A way to choose tokens: scores within groups, and how many each group keeps.

    Args:
        scores: (features (B, T, L, D), groups wanted) -> (B, G, n) float32 scores; the highest are kept.
        shares: (tokens to keep, G, n) -> how many of each group.
        needs_motion: Whether the scores compare frames: a single frame then keeps evenly spaced tokens.
        by_threshold: Whether no more are kept than score above a threshold: of each clip another number.
    """

    scores: Callable[[Tensor, int], Tensor]
    shares: Callable[[int, int, int], list[int]] = _exact_shares
    needs_motion: bool = True
    by_threshold: bool = False


def _grouped(features: Tensor, num_groups: int) -> Tensor:
    return frame_difference_scores(features, resolve_token_groups(features.shape[1], num_groups))


def _ungrouped(norm: float) -> Callable[[Tensor, int], Tensor]:
    def scores(features: Tensor, num_groups: int) -> Tensor:
        return frame_difference_scores(features, 1, norm)

    return scores


# The paper's selector keeps, in each frame group, the patches whose embedding moved most (L2); the others are its
# ablations: the official code's rounding (a few tokens fewer than the budget, but at least one a group), no groups, the
# L1 norm, a uniform draw, and the same draw in every frame. The random ones draw anew at each call. "threshold" keeps
# what moved more than a distance, the budget being the most.
TOKEN_SELECTORS: dict[str, TokenSelector] = {
    "group_dynamic": TokenSelector(_grouped),
    "group_dynamic_official": TokenSelector(_grouped, shares=_official_shares),
    "dynamic_l2": TokenSelector(_ungrouped(2.0)),
    "dynamic_l1": TokenSelector(_ungrouped(1.0)),
    "random": TokenSelector(_random_anywhere, needs_motion=False),
    "tube": TokenSelector(_random_tubes, needs_motion=False),
    "threshold": TokenSelector(_ungrouped(2.0), by_threshold=True),
}


def _evenly_spaced(features: Tensor, num_tokens: int) -> Tensor:
    """One frame shows no motion: index i of K is floor((2i + 1) * L / (2K))."""
    batch, _, patches, _ = features.shape
    steps = 2 * torch.arange(num_tokens, device=features.device) + 1
    indices = torch.div(steps * patches, 2 * num_tokens, rounding_mode="floor")
    return indices.expand(batch, num_tokens)


def _numbers_above(scores: Tensor, threshold: float, token_budgets: Sequence[int | None]) -> list[int]:
    """For each budget how many tokens score above a threshold: at least 1, at most the budget.

    Raises:
        ValueError: it is not the same number for all clips of scores (B, 1, n).
    """
    counts = (scores > threshold).sum(dim=(1, 2)).clamp_min(1).tolist()
    numbers = []
    for budget in token_budgets:
        kept = [count if budget is None else min(count, budget) for count in counts]
        if len(set(kept)) > 1:
            raise ValueError(
                f"method='threshold' keeps {kept} tokens of these clips, and a batch must keep equally many of each: "
                "give them one by one, or to flux_hf.protocol.logits_at_budgets, which does that"
            )
        numbers.append(kept[0])
    return numbers


def _best_of_each_group(order: Tensor, shares: list[int]) -> Tensor:
    """The first `shares[g]` of each group g of `order` (B, G, n), as rising indices into the flattened (G, n)."""
    group_size = order.shape[-1]
    best = [order[:, group, :share] + group * group_size for group, share in enumerate(shares)]
    return torch.cat(best, dim=1).sort(dim=1).values


@torch.no_grad()
def select_tokens_at_budgets(
    features: Tensor,
    token_budgets: Sequence[int | None],
    method: str = "group_dynamic",
    num_groups: int = 4,
    threshold: float | None = None,
) -> list[Tensor]:
    """`select_tokens` at several budgets, scoring and sorting once: each smaller set lies within every larger one.

    Args:
        features: (B, T, L, D) patch embeddings, before any position embedding.
        token_budgets: As in `select_tokens`, in any order.
        method: As in `select_tokens`.
        num_groups: As in `select_tokens`.
        threshold: As in `select_tokens`.

    Returns:
        For each budget (B, K) int64 indices into the flattened (T, L) grid, rising.

    Raises:
        ValueError: as `select_tokens`.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be (batch, frames, patches, width), got shape {tuple(features.shape)}")
    if method not in TOKEN_SELECTORS:
        raise ValueError(f"method must be one of {list(TOKEN_SELECTORS)}, got {method!r}")
    budgets = [None if budget is None else as_count("token_budget", budget) for budget in token_budgets]
    num_groups = as_count("num_groups", num_groups)
    batch, frames, patches, _ = features.shape
    selector, order, kept = TOKEN_SELECTORS[method], None, []
    if selector.by_threshold and threshold is None:
        raise ValueError(f"method={method!r} needs a threshold (of a config: token_threshold), got None")
    if selector.by_threshold and frames > 1:
        budgets = _numbers_above(selector.scores(features, num_groups), threshold, budgets)
    for budget in budgets:
        if budget is None or budget >= frames * patches:
            kept.append(torch.arange(frames * patches, device=features.device).expand(batch, frames * patches))
        elif selector.needs_motion and frames == 1:
            kept.append(_evenly_spaced(features, budget))
        else:
            if order is None:  # stable: ties go to the earlier token
                scores = selector.scores(features, num_groups)
                order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
            kept.append(_best_of_each_group(order, selector.shares(budget, *order.shape[1:])))
    return kept


def select_tokens(
    features: Tensor,
    token_budget: int | None,
    method: str = "group_dynamic",
    num_groups: int = 4,
    threshold: float | None = None,
) -> Tensor:
    """Chooses the tokens of each clip that are encoded.

    Source: paper section 3 and Table 2; the official code for groups and distances.

    Args:
        features: (B, T, L, D) patch embeddings, before any position embedding.
        token_budget: Tokens to keep; None, or T * L and more, keeps all of them.
        method: A name in `TOKEN_SELECTORS`. All keep exactly the budget but "group_dynamic_official" and "threshold".
        num_groups: Frame groups wanted, for the group-dynamic methods.
        threshold: For "threshold" how far a patch's embedding must have moved since the frame before (L2).

    Returns:
        (B, K) int64 indices into the flattened (T, L) grid, rising.

    Raises:
        ValueError: a budget below 1, features that are not (B, T, L, D), an unknown method, or a threshold that is
            missing or keeps other numbers of the clips of a batch.
    """
    return select_tokens_at_budgets(features, [token_budget], method, num_groups, threshold)[0]
