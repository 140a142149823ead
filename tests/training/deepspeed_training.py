"""Run by torchrun on two gloo processes: DeepSpeed in bfloat16, with steps too small to change a bfloat16 weight.

Usage: deepspeed_training.py STAGE FOLDER. Exits with an error if the average is not of the float32 weights that it
steps, or does not come back from a checkpoint, or if a look at the average leaves something changed.
"""

import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from tiny import tiny_config

from flux_hf import FluxViTForVideoClassification
from training.engine.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from training.engine.ema import ExponentialMovingAverage
from training.engine.optim import cosine_schedule, parameter_groups
from training.objectives import FluxMulti


STEPS, DECAY = 4, 0.5


def build(stage: int, seed: int) -> TrainingState:
    torch.manual_seed(seed)
    objective = FluxMulti(FluxViTForVideoClassification(tiny_config()))
    optimizer = torch.optim.AdamW(parameter_groups(objective.model, 1e-5, 0.05))
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config)
    objective = engine.module
    schedule = cosine_schedule(optimizer, 1e-5, 0, STEPS)
    return TrainingState(objective, optimizer, schedule, ExponentialMovingAverage(objective, DECAY), engine=engine)


def masters(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: safe_get_full_fp32_param(p).clone() for name, p in state.objective.named_parameters()}


def halves(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.objective.named_parameters()}


def require(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(what)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(state: TrainingState) -> dict[str, torch.Tensor]:
    """The average that must come of it, written out."""
    expected = masters(state)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(2 * step + dist.get_rank())
        videos = torch.randn(2, 4, 3, 28, 28, generator=generator)
        targets = torch.eye(3)[:2]
        state.objective.train()
        state.engine.backward(state.engine(videos, targets).loss)
        state.engine.step()
        state.ema.update()
        state.progress.step += 1
        for name, master in masters(state).items():
            expected[name].lerp_(master, 1 - DECAY)
    return expected


def main(stage: int, folder: Path) -> None:
    state = build(stage, 0)
    start, small = masters(state), halves(state)
    expected = train(state)
    averages, now, rounded = state.ema.averages, masters(state), halves(state)
    require(equal(averages, expected), "the average is another one than that of the float32 weights")
    still = [torch.equal(small[name], rounded[name]) and not torch.equal(start[name], now[name]) for name in now]
    require(any(still), "no step was too small for bfloat16: the test shows nothing")
    moved = [not torch.equal(averages[name], start[name]) for name in averages]
    require(all(moved), "a part of the average stood still")
    with state.ema.in_place():
        inside = halves(state)
        require(equal(inside, {name: a.bfloat16() for name, a in averages.items()}), "not the average inside")
    require(equal(halves(state), rounded) and equal(masters(state), now), "a look at the average changed the weights")

    exported = {}
    checkpoint = save_checkpoint(folder, state, lambda directory, weights: exported.update(weights))
    saved = torch.load(checkpoint / "training_state.pt", weights_only=True)
    require(equal({name: saved["objective"][name] for name in now}, now), "the checkpoint rounds the weights")
    if dist.get_rank() == 0:
        require(equal({name: exported[name] for name in averages}, averages), "the average is not what is exported")
    resumed = build(stage, 1)
    load_checkpoint(checkpoint, resumed)
    require(equal(resumed.ema.averages, averages) and equal(masters(resumed), now), "resumed with other weights")
    dist.barrier()
    dist.destroy_process_group()
    print("finished", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
