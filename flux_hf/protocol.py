# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What objectives, inference, token optimization and the optimiser ask of a video encoder, whichever it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class VideoTokenClassifier(Protocol):
    """A classifier in four steps that callers compose, `embed -> select -> encode -> pool`, and what follows them.

    Shapes: B clips, T frames, T' = T / tubelet_size, L patches a frame, D width, K kept tokens, P pooled, C labels.

        patches, grid = embed(pixels)                  pixels (B, T, 3, H, W) -> patches (B, T', L, D), before positions
        [keep_indices] = select(patches, [budget])     a budget None keeps all -> (B, K) rising, into the (T' * L) grid
        hidden, states = encode(patches, grid, keep_indices, layers=[3])   (B, n + K, D), n class tokens; those layers'
        feature, weights = pool(hidden, head, attention=True)              (B, P); (B, heads, 1, n + K), else None
        logits = classify(feature, head)               (B, C); `align(feature, head)` (B, P), L2-normalised, head > 0

    `head` counts `config.token_budgets`, 0 the largest; `grid` is the encoder's own and says where the patches are.
    """

    config: Any

    def embed(self, pixel_values_videos: Tensor) -> tuple[Tensor, Any]: ...

    def select(self, patches: Tensor, token_budgets: Sequence[int | None]) -> list[Tensor]: ...

    def encode(
        self, patches: Tensor, grid: Any, keep_indices: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...

    def pool(self, hidden_states: Tensor, head: int, attention: bool = False) -> tuple[Tensor, Tensor | None]: ...

    def classify(self, feature: Tensor, head: int) -> Tensor: ...

    def align(self, feature: Tensor, head: int) -> Tensor: ...

    def resolve_head(self, kept_tokens: int, head: int | None = None) -> int:
        """`head`, or the one trained nearest `kept_tokens`."""

    def count_kept(self, num_frames: int, height: int, width: int, token_budget: int | None = None) -> int:
        """Tokens that `select` keeps of a clip; by a threshold at most."""

    def parameter_depth(self, name: str) -> int:
        """From 0 (embeddings) over the layers to `config.num_hidden_layers + 1` (heads)."""

    def takes_weight_decay(self, name: str, parameter: Tensor) -> bool: ...

    def flops(self, num_frames: int, size: int, token_budget: int | None = None) -> int:
        """Multiply-adds of one view. A sequence of budgets, for passes of which the embedding is counted once, and
        `take_clips` (`TokenBudgetModel`) are asked for by `auto_budgets.py` and `logits_clip_by_clip` alone."""


class BudgetFeature(NamedTuple):
    """A clip's pooled feature (B, P) at one budget, and the head that pooled it."""

    feature: Tensor
    head: int


def features_at_budgets(
    model: VideoTokenClassifier,
    pixel_values_videos: Tensor,
    token_budgets: Sequence[int | None],
    heads: Sequence[int | None] | None = None,
) -> list[BudgetFeature]:
    """The pooled features of clips at several budgets; embedding, scores and positions are shared.

    Args:
        model: The encoder.
        pixel_values_videos: (B, T, 3, H, W).
        token_budgets: Tokens to keep, one result each; None and budgets above the clip's patches keep all.
        heads: For each budget the head to pool by; the one trained nearest the tokens kept if None, or not given.
    """
    patches, grid = model.embed(pixel_values_videos)
    results = []
    for index, keep_indices in enumerate(model.select(patches, token_budgets)):
        head = model.resolve_head(keep_indices.shape[1], None if heads is None else heads[index])
        hidden_states, _ = model.encode(patches, grid, keep_indices)
        results.append(BudgetFeature(model.pool(hidden_states, head)[0], head))
    return results


def logits_at_budgets(
    model: VideoTokenClassifier, pixel_values_videos: Tensor, token_budgets: Sequence[int | None]
) -> list[Tensor]:
    """Logits (B, C) at several budgets, None being the model's default, each by the head trained nearest."""
    if selects_by_threshold(model):
        return [logits for logits, _ in logits_clip_by_clip(model, pixel_values_videos, token_budgets)]
    budgets = [model.config.token_budget if budget is None else budget for budget in token_budgets]
    return [model.classify(feature, head) for feature, head in features_at_budgets(model, pixel_values_videos, budgets)]


def selects_by_threshold(model: VideoTokenClassifier) -> bool:
    """Whether each clip keeps another number of tokens; an encoder that selects in a way of its own does not."""
    return getattr(model.config, "selects_by_threshold", False)


def check_exact_budgets(model: VideoTokenClassifier, purpose: str) -> None:
    """Raises ValueError where each clip keeps another number of tokens, naming what needs batches that do not."""
    if selects_by_threshold(model):
        raise ValueError(
            f"{purpose} needs one number of tokens for all clips of a batch, and the checkpoint's token_selection is "
            f"{model.config.token_selection!r}"
        )


def logits_clip_by_clip(
    model: VideoTokenClassifier, pixel_values_videos: Tensor, token_budgets: Sequence[int | None]
) -> list[tuple[Tensor, Tensor]]:
    """`logits_at_budgets` of clips that keep other numbers of tokens: embedded together, encoded one by one.

    Returns:
        For each budget logits (B, C), and how many tokens of each clip were kept, (B,) int64.
    """
    budgets = [model.config.token_budget if budget is None else budget for budget in token_budgets]
    patches, grid = model.embed(pixel_values_videos)
    found: list[list[tuple[Tensor, int]]] = [[] for _ in budgets]
    for clip in torch.arange(len(patches), device=patches.device).split(1):
        own = model.take_clips(patches, grid, clip)
        for of_budget, keep_indices in zip(found, model.select(own[0], budgets), strict=True):
            head = model.resolve_head(keep_indices.shape[1])
            hidden_states, _ = model.encode(*own, keep_indices)
            of_budget.append((model.classify(model.pool(hidden_states, head)[0], head), keep_indices.shape[1]))
    return [(torch.cat(logits), torch.tensor(kept)) for logits, kept in (zip(*one, strict=True) for one in found)]
