# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Does the host wait for the GPU in a forward pass, at several budgets, in augmentation, or in a training step?

    PYTHONPATH=. python tests/gpu/waits.py [--device cpu --tiny]

On a GPU each runs twice as it likes, then while torch raises at what waits. Without one each runs on tensors that have
no values (`FakeTensorMode`), so that a read of one fails, and so does a shape that depends on one; `Unwaited` fails at
the rest that torch would raise at. Those tensors say they are on a GPU, but in backward passes, which want a real one.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from parts import budgets, build, parse, tell
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flux_hf.protocol import logits_at_budgets
from training.arguments import OptimizationArguments
from training.data.augment import RAND_AUGMENT_OPS
from training.data.augment_config import AUGMENT_PRESETS
from training.data.augment_ops import Op, Region, apply_ops
from training.engine.ema import ExponentialMovingAverage
from training.engine.optim import step_unless_infinite
from training.engine.prepare import build_optimizer
from training.objectives import FluxMulti


aten = torch.ops.aten
BY_MASK = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Unwaited(TorchDispatchMode):
    """Fails at copies between devices that block, at numbers made into a tensor on a device, and at choices by a mask,
    which count it first. For tensors without values.

    Raises:
        RuntimeError: naming the operation.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in BY_MASK and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise RuntimeError(f"{func}: a choice by a mask")
        if func is aten.lift_fresh.default and result.device.type != "cpu":
            raise RuntimeError(f"{func}: numbers made into a tensor on {result.device}")
        pairs = {aten._to_copy.default: (result, args[0]), aten.copy_.default: args[:2]}.get(func)
        blocks = not (kwargs.get("non_blocking") or (func is aten.copy_.default and any(args[2:])))
        if pairs and blocks and pairs[0].device != pairs[1].device:
            raise RuntimeError(f"{func}: a copy from {pairs[1].device} to {pairs[0].device} that blocks")
        return result


@contextmanager
def watched(device: str) -> Iterator[None]:
    """Raises at what would make the host wait."""
    if device != "cuda":
        with Unwaited():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def augment(frames: Tensor) -> None:
    """Every operation of RandAugment on frames (T, H, W, 3), and runs of those that share a table."""
    box, config = Region(0, 0, *frames.shape[1:3]), AUGMENT_PRESETS["released"]
    for name, parameter in RAND_AUGMENT_OPS.items():
        apply_ops(frames, [Op(name, parameter(7.0, 1.0))], box, config)
    apply_ops(frames, [Op("Contrast", 0.7), Op("Equalize"), Op("Brightness", 1.2)], box, config)


def training_step(
    objective: FluxMulti,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage,
    videos: Tensor,
    targets: Tensor,
) -> None:
    """As the loop takes it, in bfloat16."""
    with torch.autocast(videos.device.type, torch.bfloat16):
        loss = objective(videos, targets).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    step_unless_infinite(optimizer, norm, 0)
    optimizer.zero_grad()
    ema.update()


def inference(model: nn.Module, tiny: bool, device: str) -> dict[str, Callable]:
    """What runs without gradients, by name; of FluxViT or of Flux around another encoder."""
    config, by = model.config, 1 if tiny else 2
    size, frames = config.image_height_width[0], config.num_frames
    videos = torch.randn(2, frames, 3, size, size, device=device)
    several = [videos[0], videos[1, : frames // 2], videos[1]]
    pictures = torch.randint(0, 256, (4, 64 * by, 64 * by, 3), dtype=torch.uint8, device=device)
    wanted, fewest = config.token_budgets, config.token_budgets[-1]
    return {
        "forward": torch.no_grad()(lambda: model(videos, token_budget=wanted[1])),
        "forward in inference mode": torch.inference_mode()(lambda: model(videos, token_budget=wanted[1])),
        "a list of clips": torch.no_grad()(lambda: model(several, token_budget=fewest)),
        "given tokens": torch.no_grad()(
            lambda: model(videos, keep_indices=torch.arange(fewest, device=device).expand(2, fewest))
        ),
        "logits at budgets": torch.no_grad()(lambda: logits_at_budgets(model, videos, wanted)),
        "augmentation": lambda: augment(pictures),
    }


def training(model: nn.Module, device: str) -> Callable[[], None]:
    """A step of Flux-Multi, with stochastic depth and dropout where the model has some."""
    config = model.config
    size = config.image_height_width[0]
    videos = torch.randn(2, config.num_frames, 3, size, size, device=device)
    targets = torch.full((2, config.num_labels), 1 / config.num_labels, device=device)
    aligned = 1.0 if len(model.alignment_decoders) else 0.0
    objective = FluxMulti(model.train(), aligned)
    optimizer = build_optimizer(model, OptimizationArguments(), 1e-5, fused=True)
    return partial(training_step, objective, optimizer, ExponentialMovingAverage(objective, 0.99), videos, targets)


def checks(make: Callable[[], nn.Module], tiny: bool, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each check's name and what it runs: a call that raises where the host would wait."""

    def check(action_of: Callable[[nn.Module, str], Callable], on: str) -> None:
        model = make()
        with nullcontext() if device == "cuda" else FakeTensorMode(allow_non_fake_inputs=True):
            action = action_of(model.to(on) if device == "cuda" else model.to_empty(device=on), on)
            for _ in range(2 if device == "cuda" else 0):  # what is made once and kept
                action()
            with watched(device):
                action()

    for name in inference(make(), tiny, "meta"):
        yield name, partial(check, lambda model, on, name=name: inference(model, tiny, on)[name], "cuda")
    yield "training step", partial(check, training, device)


def main() -> int:
    options = parse(__doc__)
    sizes = {"image_size": 56, "num_frames": 4} if options.tiny else {"image_size": 224, "num_frames": 16}
    make = partial(build, options.tiny, **sizes, drop_path_rate=0.1, classifier_dropout=0.1)
    waits = {}
    for name, check in checks(make, options.tiny, options.device):
        try:
            check()
            print(f"{name}: does not wait", flush=True)
        except Exception as error:  # told of, and the others are tried
            traceback.print_exc(limit=-6)
            waits[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name}: {waits[name]}", flush=True)
    how = "torch raised at nothing" if options.device == "cuda" else "tensors without values were enough"
    tell({"waits": waits, "budgets": budgets(options.tiny)}, f"WAITS: {', '.join(waits)}" if waits else how)
    return 1 if waits else 0


if __name__ == "__main__":
    sys.exit(main())
