# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Layer-wise learning rates, cosine schedule with warm-up, freezing, and steps that an optimiser leaves out itself.

A model answers which layer is which.

Source of rules and figures: the official fine-tuning code and the paper's Table 15.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from flux_hf.protocol import VideoTokenClassifier


BASE_BATCH_SIZE = 256


def scaled_learning_rate(base: float, global_batch_size: int, num_sample: int) -> float:
    """`base` times clips a step (all processes, accumulation, and copies of a clip) over 256."""
    return base * global_batch_size * num_sample / BASE_BATCH_SIZE


def layer_scales(num_hidden_layers: int, layer_decay: float) -> list[float]:
    """Learning rate factor of each depth, 0 (embeddings) to num_hidden_layers + 1 (heads): decay^(last - depth).

    Raises:
        ValueError: a decay outside (0, 1].
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    last = num_hidden_layers + 1
    return [layer_decay ** (last - depth) for depth in range(last + 1)]


def parameter_groups(
    model: VideoTokenClassifier, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Optimiser groups of the trainable parameters, one for each (depth, decayed or not); the model answers both."""
    scales = layer_scales(model.config.num_hidden_layers, layer_decay)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (model.parameter_depth(name), model.takes_weight_decay(name, parameter))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[depth, decays],
            "lr": learning_rate * scales[depth],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for depth, decays in sorted(groups)
    ]


def cosine_schedule(
    optimizer: torch.optim.Optimizer,
    peak: float,
    num_warmup_steps: int,
    num_training_steps: int,
    warmup_from: float = 0.0,
    minimum: float = 0.0,
) -> LambdaLR:
    """Linear from `warmup_from` to `peak`, reached at the last warm-up step, then a cosine down to `minimum`.

    Each group follows in proportion to its own rate. Not to be prepared by Accelerate: it counts optimiser steps.

    Args:
        peak: What the groups' rates are fractions of.
        warmup_from: Rate of the first step.
        minimum: Rate the cosine ends at, a step after the last.

    Raises:
        ValueError: no steps, or more warm-up than steps.
    """
    if num_training_steps < 1 or not 0 <= num_warmup_steps <= num_training_steps:
        given = f"{num_warmup_steps} and {num_training_steps}"
        raise ValueError(f"num_warmup_steps must lie in [0, num_training_steps], got {given}")

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            share = step / max(num_warmup_steps - 1, 1)
            return (warmup_from + share * (peak - warmup_from)) / peak if num_warmup_steps > 1 else 1.0
        share = (step - num_warmup_steps) / max(num_training_steps - num_warmup_steps, 1)
        return (minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * min(share, 1.0)))) / peak

    return LambdaLR(optimizer, factor)


def freeze_layers(model: VideoTokenClassifier, num_layers: int) -> None:
    """Freezes the embeddings and the first `num_layers - 1` layers, or nothing for 0: depths below `num_layers`.

    Raises:
        ValueError: more than there are.
    """
    deepest = model.config.num_hidden_layers + 1
    if not 0 <= num_layers <= deepest:
        raise ValueError(f"freeze_layers must lie in [0, {deepest}], got {num_layers}")
    for name, parameter in model.named_parameters():
        if model.parameter_depth(name) < num_layers:
            parameter.requires_grad_(False)


def count_parameters(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@dataclass
class PendingStep:
    """A step that the device was given, and what it will have found by the time it is done.

    Args:
        step: Its number.
        infinite: On the CPU, once `found`: 1 if a gradient was not finite, and the step was left out.
        found: None where nothing has to be waited for.
    """

    step: int
    infinite: Tensor
    found: torch.cuda.Event | None

    def was_finite(self) -> bool:
        """Waits for the device, if it is not that far."""
        if self.found is not None:
            self.found.synchronize()
        return not self.infinite.item()


def leaves_out_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser's kernels look at `found_inf` themselves: those of torch's fused ones do."""
    return all(group.get("fused") for group in optimizer.param_groups)


def step_unless_infinite(optimizer: torch.optim.Optimizer, norm: Tensor, step: int) -> PendingStep:
    """Gives the device a step of an optimiser that `leaves_out_steps`, which it takes if `norm` is finite.

    A step left out changes nothing: neither weights nor moments nor the count that corrects their bias. Nothing is
    waited for.

    Args:
        optimizer: As made, no wrapper around it.
        norm: Scalar, of all gradients, on the device.
        step: Its number.
    """
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    infinite = (~norm.isfinite()).float()
    optimizer.found_inf = infinite  # as `torch.amp.GradScaler` tells it
    optimizer.step()
    del optimizer.found_inf
    found = None
    host = infinite.to("cpu", non_blocking=True)
    if infinite.is_cuda:
        found = torch.cuda.Event()
        found.record()
    return PendingStep(step, host, found)
