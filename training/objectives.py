# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Training objectives as modules around the model, so that the hooks of DDP and FSDP see one forward a step.

Every trainable parameter gets a gradient at every step: a model is first given exactly the heads its objective trains
(`with_token_budgets`), so no distributed wrapper has to look for unused ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from flux_hf.protocol import VideoTokenClassifier, logits_at_budgets

from .backward import sum_of_losses


@dataclass
class ObjectiveOutput(ModelOutput):
    """What an objective returns.

    Args:
        loss: Scalar, where targets were given.
        logits: (B, num_labels) at each budget asked for, where none were.
        cross_entropies: (budgets,) detached, where targets were given.
        alignment: Scalar, detached, where targets were given.
    """

    loss: Tensor | None = None
    logits: tuple[Tensor, ...] | None = None
    cross_entropies: Tensor | None = None
    alignment: Tensor | None = None


class FluxObjective(nn.Module):
    """Base of the objectives: sum over the model's token budgets of the classification loss, each through its head.

    Args:
        model: Its `config.token_budgets` are trained; `config.problem_type` "multi_label_classification" makes the loss
            binary cross entropy, everything else cross entropy with soft targets.
        alignment_weight: Of what an objective aligns.
        class_weights: (num_labels,) factors of the classes' losses; all 1 if not given.
    """

    def __init__(self, model: VideoTokenClassifier, alignment_weight: float = 0.0, class_weights: Tensor | None = None):
        super().__init__()
        if alignment_weight < 0:
            raise ValueError(f"alignment_weight must not be negative, got {alignment_weight}")
        self.model, self.alignment_weight = model, alignment_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch; logits (B, C), targets (B, C) of probabilities. In float32 whatever the logits are."""
        weights = self.class_weights
        if self.model.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), weights)
        return nn.functional.cross_entropy(logits.float(), targets.float(), weights)

    def forward(
        self, pixel_values_videos: Tensor, targets: Tensor | None = None, token_budgets: Sequence[int | None] = ()
    ) -> ObjectiveOutput:
        """The training loss, or logits: both go through here, where distributed wrappers hook in.

        Args:
            pixel_values_videos: (B, T, 3, H, W), normalised.
            targets: (B, C) of probabilities; None asks for logits.
            token_budgets: For the logits; None is the model's default.
        """
        if targets is None:
            return ObjectiveOutput(logits=tuple(logits_at_budgets(self.model, pixel_values_videos, token_budgets)))
        patches, grid = self.model.embed(pixel_values_videos)
        kept = self.model.select(patches, self.model.config.token_budgets)
        entropies, alignments, largest = [], [], []

        def loss_of(head: int, shared: tuple[Tensor, Any]) -> Tensor:
            hidden_states, _ = self.model.encode(*shared, kept[head])
            feature, _ = self.model.pool(hidden_states, head)
            largest.append(feature.detach())  # the first is what the others are aligned to
            entropy = self.classification_loss(self.model.classify(feature, head), targets)
            alignment = self.alignment(feature, head, largest[0]) if head else feature.new_zeros(())
            entropies.append(entropy.detach())
            alignments.append(alignment.detach())
            return entropy + self.alignment_weight * alignment

        losses = [partial(loss_of, head) for head in range(len(kept))]
        loss = sum_of_losses(losses, (patches, grid), list(self.model.parameters()))
        return ObjectiveOutput(loss=loss, cross_entropies=torch.stack(entropies), alignment=sum(alignments))

    def alignment(self, feature: Tensor, head: int, largest: Tensor) -> Tensor:
        """Scalar: of a budget's feature (B, P) below the largest's; 0 where nothing is aligned."""
        return feature.new_zeros(())


class FluxSingle(FluxObjective):
    """Flux-Single: one token budget, one head. Source: official code; with one fixed clip shape, plain fine-tuning.

    Raises:
        ValueError: the model has several heads.
    """

    def __init__(self, model: VideoTokenClassifier, class_weights: Tensor | None = None):
        if len(model.config.token_budgets) != 1:
            raise ValueError(f"FluxSingle trains one budget, the model has {model.config.token_budgets}")
        super().__init__(model, class_weights=class_weights)


class FluxMulti(FluxObjective):
    """Flux-Multi: every budget's cross entropy, and each smaller budget's feature aligned to the largest's.

    L = sum_k CE_k + weight * sum_{k>0} SmoothL1(decode_k(f_k), stopgrad(f_0)), both L2-normalised, mean over batch and
    channels. Source: official code, paper Table 5 and Figure 6.

    Args:
        model: With two or more budgets.
        alignment_weight: 1 as published; 0 leaves alignment out.
        class_weights: As in `FluxObjective`.

    Raises:
        ValueError: the model has a single budget, or a negative weight.
    """

    def __init__(self, model: VideoTokenClassifier, alignment_weight: float = 1.0, class_weights: Tensor | None = None):
        if len(model.config.token_budgets) < 2:
            raise ValueError(f"FluxMulti trains two budgets or more, the model has {model.config.token_budgets}")
        super().__init__(model, alignment_weight, class_weights)

    def alignment(self, feature: Tensor, head: int, largest: Tensor) -> Tensor:
        """The distance to the largest's feature; features in float32."""
        if not self.alignment_weight:
            return super().alignment(feature, head, largest)
        target = nn.functional.normalize(largest.detach().float(), dim=-1)
        return nn.functional.smooth_l1_loss(self.model.align(feature, head).float(), target)
