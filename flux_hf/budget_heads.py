# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What token budgets mean to every model: which head serves one, how many tokens a clip has, what other heads miss."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .token_selection import as_count


def nearest_head(token_budgets: Sequence[int], kept_tokens: int, head: int | None = None) -> int:
    """The head to use: `head`, or the one trained nearest `kept_tokens`, ties to the larger budget.

    Raises:
        ValueError: `head` is not an index into `token_budgets`.
    """
    if head is None:
        nearest = 0  # a loop, for torch.compile cannot trace min() over sizes that vary
        for index, budget in enumerate(token_budgets):
            if abs(budget - kept_tokens) < abs(token_budgets[nearest] - kept_tokens):
                nearest = index
        return nearest
    known = isinstance(head, (int, np.integer)) and not isinstance(head, bool)
    if not known or not 0 <= head < len(token_budgets):
        raise ValueError(f"head must be an index from 0 to {len(token_budgets) - 1} into token_budgets, got {head!r}")
    return int(head)


def count_tokens(config: Any, num_frames: int | None, size: int | None, token_budget: int | None) -> tuple[int, int]:
    """Patches of a view, and how many of them are encoded; what is None is the config's.

    Raises:
        ValueError: the frames are not whole tubelets, the sides not whole patches, or a value is below 1.
    """
    num_frames = config.num_frames if num_frames is None else as_count("num_frames", num_frames)
    height, width = config.image_height_width if size is None else (as_count("size", size), size)
    if num_frames % config.tubelet_size:
        raise ValueError(f"num_frames must be a multiple of {config.tubelet_size}, got {num_frames}")
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(f"size must be a multiple of {config.patch_size}, got {size}")
    patches = num_frames // config.tubelet_size * (height // config.patch_size) * (width // config.patch_size)
    budget = config.token_budget if token_budget is None else as_count("token_budget", token_budget)
    return patches, patches if budget is None else min(budget, patches)


def nothing_of(modules: Iterable[nn.Module]) -> Tensor | float:
    """0, through all trained parameters of modules that a step does not use: DDP waits for every one's gradient."""
    parameters = [p for module in modules for p in module.parameters()]
    # sharded ones (FSDP, ZeRO-3) are gathered by their own modules, which wait for nothing
    sums = [p.sum() for p in parameters if p.requires_grad and p.numel() and not hasattr(p, "placements")]
    return 0.0 * torch.stack(sums).sum() if sums else 0.0


__all__ = ["count_tokens", "nearest_head", "nothing_of"]
