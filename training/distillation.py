# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flux-UMT: a student learns a frozen teacher's features of unlabelled clips, at several token budgets at once.

Source: paper, section 3 and Table 14; InternVideo2's distillation, which it starts from. Where the paper is silent:
the teacher's own embedding scores the tokens that it keeps; smaller student subsets lie within larger ones, for they
are drawn at once; the loss is the mean over the budgets, so that its size does not depend on how many there are; of a
clip with fewer patches than the teacher keeps, such as a picture, students keep the same shares as of others.

Shapes: B clips, K tokens that the teacher keeps, C of them that a student keeps, D' and P' the teacher's width and
projection width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from flux_hf.modeling_fluxvit_pretraining import FluxViTForPreTraining
from flux_hf.token_selection import as_count

from .backward import sum_of_losses
from .teachers import TEACHER_TOKENS, TeacherFeatures, motion_weights


STUDENT_BUDGETS = (2048, 1536, 1024)
_FOR_SUBSETS = 0x756D  # keeps these draws apart from others made from the same seed


def draw_subsets(weights: Tensor, budgets: Sequence[int], seeds: Tensor | None = None) -> list[Tensor]:
    """Places of a teacher's tokens that students keep: drawn without replacement by weight, each within every larger.

    Args:
        weights: (B, K), above 0.
        budgets: Tokens of each student; at or above K, all.
        seeds: (B,) int64, of each clip: what is drawn for it depends neither on the batch nor on the device. Drawn anew
            at each call if not given.

    Returns:
        For each budget (B, min(budget, K)) rising places in [0, K).
    """
    kept = weights.shape[1]
    words = [None] * len(weights) if seeds is None else [[_FOR_SUBSETS, seed % 2**64] for seed in seeds.tolist()]
    # The order of exponential waiting times at these rates is that of draws without replacement.
    waiting = torch.from_numpy(np.stack([np.random.default_rng(word).exponential(size=kept) for word in words]))
    order = (waiting.to(weights.device, non_blocking=True) / weights.double()).argsort(dim=1, stable=True)
    return [order[:, : min(budget, kept)].sort(dim=1).values for budget in budgets]


def student_counts(budgets: Sequence[int], kept: int, teacher_tokens: int) -> list[int]:
    """Tokens that students keep of the `kept` of a teacher: their budgets, or shares as large of fewer tokens.

    Args:
        budgets: Of `teacher_tokens`.
        kept: K.
        teacher_tokens: What the teacher keeps of clips with enough patches.
    """
    share = min(1.0, kept / teacher_tokens)
    return [min(kept, max(1, round(share * budget))) for budget in budgets]


@dataclass
class DistillationOutput(ModelOutput):
    """What the objective returns.

    Args:
        loss: Scalar.
        layer_losses: (budgets,) detached, mean over the aligned layers.
        pooled_losses: (budgets,) detached.
    """

    loss: Tensor | None = None
    layer_losses: Tensor | None = None
    pooled_losses: Tensor | None = None


class FluxUMT(nn.Module):
    """A student at several budgets learns what a teacher said once; they share the student's embedding and positions.

    L = sum_c w_c * (layer_weight * mean(2 - 2 <s, t>) + pooled_weight * mean(2 - 2 <s_pooled, t_pooled>)), the first
    mean over batch, aligned layers and the tokens of subset c, with the class token where both have one; w_c sum to 1.

    Args:
        model: The student.
        budgets: Tokens of each student forward, out of those that the teacher kept.
        teacher_tokens: What a teacher keeps, or the student's selector for it where it encodes all.
        layer_weight, pooled_weight: Of the two losses; 1 and 1 in InternVideo2.
        budget_weights: w_c; equal ones that sum to 1 if not given.

    Raises:
        ValueError: budgets or tokens below 1, or weights that are negative or not one for each budget.
    """

    def __init__(
        self,
        model: FluxViTForPreTraining,
        budgets: Sequence[int] = STUDENT_BUDGETS,
        teacher_tokens: int = TEACHER_TOKENS,
        layer_weight: float = 1.0,
        pooled_weight: float = 1.0,
        budget_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.model = model
        self.budgets = [as_count("budgets", budget) for budget in budgets]
        self.teacher_tokens = as_count("teacher_tokens", teacher_tokens)
        weights = [1 / len(self.budgets)] * len(self.budgets) if budget_weights is None else list(budget_weights)
        if len(weights) != len(self.budgets) or min([*weights, layer_weight, pooled_weight]) < 0:
            raise ValueError(
                f"weights must not be negative, one for each of {self.budgets}, got {weights}, "
                f"layer_weight={layer_weight} and pooled_weight={pooled_weight}"
            )
        self.budget_weights, self.layer_weight, self.pooled_weight = weights, layer_weight, pooled_weight

    def forward(
        self, pixel_values_videos: Tensor, told: TeacherFeatures, seeds: Tensor | None = None
    ) -> DistillationOutput:
        """The loss of a batch.

        Args:
            pixel_values_videos: (B, T, 3, H, W), normalised as the student wants.
            told: The teacher's features; its layers are paired with the student's `config.alignment_layers` in order.
            seeds: (B,) int64, of the draw of each clip's subsets.
        """
        patches, grid = self.model.embed(pixel_values_videos)
        if told.keep_indices is None:
            told = told.at(self.model.select(patches, [self.teacher_tokens])[0])
        weights = motion_weights(patches, told.keep_indices) if told.weights is None else told.weights
        counts = student_counts(self.budgets, weights.shape[1], self.teacher_tokens)
        subsets = draw_subsets(weights, counts, seeds)
        layer_losses, pooled_losses = [], []

        def loss_of(index: int, shared: tuple[Tensor, Any]) -> Tensor:
            places = subsets[index]
            found = self.model.features(*shared, told.keep_indices.gather(1, places))
            pairs = zip(found.layer_features, told.layers, strict=True)
            of_layers = [distance(*common_tokens(ours, theirs, places, told.class_tokens)) for ours, theirs in pairs]
            of_layers, of_pooled = torch.stack(of_layers).mean(), distance(found.pooled_feature, told.pooled)
            layer_losses.append(of_layers.detach())
            pooled_losses.append(of_pooled.detach())
            return self.budget_weights[index] * (self.layer_weight * of_layers + self.pooled_weight * of_pooled)

        losses = [partial(loss_of, index) for index in range(len(subsets))]
        loss = sum_of_losses(losses, (patches, grid), list(self.model.parameters()))
        return DistillationOutput(
            loss=loss, layer_losses=torch.stack(layer_losses), pooled_losses=torch.stack(pooled_losses)
        )


def common_tokens(ours: Tensor, theirs: Tensor, places: Tensor, class_tokens: int) -> tuple[Tensor, Tensor]:
    """A student's features (B, 1 + C, D') and a teacher's (B, n + K, D') of the same tokens.

    The class token is compared where the teacher has one too.
    """
    wanted = (places + class_tokens)[:, :, None].expand(-1, -1, theirs.shape[-1])
    of_patches = theirs.gather(1, wanted)
    if class_tokens == 1:
        return ours, torch.cat([theirs[:, :1], of_patches], dim=1)
    return ours[:, 1:], of_patches


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean of 2 - 2 <s, t>, which of unit vectors is the squared distance."""
    return (2 - 2 * (ours * theirs).sum(-1)).mean()
