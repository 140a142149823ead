# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""An exponential moving average of weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


def full_precision(parameter: nn.Parameter) -> Tensor:
    """A parameter's float32 values: its own, or those that DeepSpeed steps and rounds to it (collective then).

    Only DeepSpeed keeps parameters in half precision here, where small steps leave most of them as they are.

    Raises:
        ValueError: DeepSpeed keeps none of a trained parameter.
    """
    if parameter.dtype == torch.float32 or not parameter.requires_grad:
        return parameter.detach()
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)
    if master is None:
        raise ValueError(f"DeepSpeed keeps no float32 values of a {parameter.dtype} parameter: train with ZeRO-1 or 2")
    return master.detach()


class ExponentialMovingAverage:
    """Averages of a module's parameters, `average = decay * average + (1 - decay) * parameter` at each update.

    Averages are float32, of the parameters' `full_precision`. Sharded parameters (DTensors) are averaged shard by
    shard; DeepSpeed's in full on every process. Parameters that are not trained are left out.

    Args:
        module: Its parameters are averaged; must be on its final device and sharded already.
        decay: In (0, 1).

    Raises:
        ValueError: a decay outside (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the moving average must lie in (0, 1), got {decay}")
        self.decay, self.module = decay, module
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.averages = {name: full_precision(p).clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        current = [full_precision(parameter) for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the module's parameters inside the block, rounded where these are in half precision."""
        kept = [parameter.detach().clone() for parameter in self.parameters.values()]
        self._set(self.averages.values())
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            parameter.copy_(value)
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root keeps its whole weights after a forward pass, and would go on with these
