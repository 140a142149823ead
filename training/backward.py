# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Losses that share a start, each through its own backward pass before the next is computed.

A sum of losses over token budgets keeps what every budget's backward pass needs until the last one is computed. Here
each is differentiated at once, down to what they share, and its graph is gone before the next begins: the memory of the
largest, not of all. The sum that is given back carries the gradients along, and hands them on when it is differentiated
itself, scaled by what comes from above: accumulation, DDP and whoever calls `backward` see one loss as ever.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


def can_take_turns(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether gradients may be taken within a forward pass.

    Not where parameters are sharded (FSDP2, ZeRO-3), which are whole only where their modules say so; nor in float16,
    whose scale for small gradients is not known before the backward pass.
    """
    sharded = any(hasattr(parameter, name) for parameter in parameters for name in ("placements", "ds_id"))
    device = parameters[0].device.type
    dtypes = {parameter.dtype for parameter in parameters}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return not sharded and torch.float16 not in dtypes and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _WithGradients(torch.autograd.Function):
    """A value, and the gradients of it that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of losses taken in turn can be asked for once")
        scaled = []
        while gradients:  # not in place: some are expanded
            scaled.append(gradients.pop() * scale)
        return None, None, *reversed(scaled)


def sum_of_losses(losses: Sequence[Callable[[Any], Tensor]], shared: Any, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of some losses, differentiated one after the other where that can be.

    Args:
        losses: Each takes `shared`, and gives a scalar that depends on it and on `parameters`.
        shared: What they start from: tensors in tuples, lists or dictionaries.
        parameters: Of the model, those that `shared` was computed by too.

    Returns:
        The sum, to be differentiated once.
    """
    if len(losses) == 1 or not can_take_turns(parameters):
        return sum(loss(shared) for loss in losses)
    parts, structure = tree_flatten(shared)
    cut = [index for index, part in enumerate(parts) if isinstance(part, Tensor) and part.requires_grad]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    sources = [parts[index] for index in cut] + trained
    for index in cut:
        parts[index] = parts[index].detach().requires_grad_()
    starts, total = tree_unflatten(parts, structure), 0.0
    wanted = [parts[index] for index in cut] + trained
    of_losses = []
    for loss in losses:
        value = loss(starts)
        with torch.autocast(value.device.type, enabled=False):
            of_losses.append(torch.autograd.grad(value, wanted, allow_unused=True))
        total = total + value.detach()
        del value
    gradients = _sum_from_the_last(of_losses)
    return _WithGradients.apply(total, list(gradients.values()), *(sources[index] for index in gradients))


def _sum_from_the_last(of_losses: list[tuple[Tensor | None, ...]]) -> dict[int, Tensor]:
    """Sums by index where there are any, in the order of one backward pass for all, so that every bit is the same."""
    sums: dict[int, Tensor] = {}
    while of_losses:
        for index, gradient in enumerate(of_losses.pop()):
            if gradient is not None:
                sums[index] = sums[index] + gradient if index in sums else gradient
    return sums
