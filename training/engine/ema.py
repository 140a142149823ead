# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""An exponential moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class ExponentialMovingAverage:
    """Averages of a module's parameters, `average = decay * average + (1 - decay) * parameter` at each update.

    Sharded parameters (DTensors) are averaged shard by shard. Parameters that are not trained are left out.

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
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self.averages.values()), self._current(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges averages and parameters in place; a second call undoes it."""
        for average, parameter in zip(self.averages.values(), self._current(), strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root keeps its whole weights after a forward pass, and would go on with these

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the module's parameters inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def _current(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters.values()]
