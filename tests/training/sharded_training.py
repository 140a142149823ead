"""Run by torchrun on two gloo processes: trains, saves, resumes and exports a model sharded by `fully_shard`.

Usage: sharded_training.py FOLDER. Exits with an error if anything differs from the unsharded run beside it.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import tiny_config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor
from training.arguments import ModelArguments
from training.engine.checkpoint import TrainingState, collect, load_checkpoint, save_checkpoint
from training.engine.ema import ExponentialMovingAverage
from training.engine.optim import cosine_schedule, parameter_groups, step_unless_infinite
from training.model import export_model
from training.objectives import FluxMulti


CONFIG = tiny_config()
STEPS = 6


def build(seed: int, mesh=None) -> TrainingState:
    torch.manual_seed(seed)
    objective = FluxMulti(FluxViTForVideoClassification(CONFIG))
    if mesh is not None:
        for module in list(objective.modules()):
            if type(module).__name__ in objective.model._no_split_modules:
                fully_shard(module, mesh=mesh)
        fully_shard(objective, mesh=mesh)
    optimizer = torch.optim.AdamW(parameter_groups(objective.model, 1e-3, 0.05, 0.75), fused=True)  # as on a GPU
    schedule = cosine_schedule(optimizer, 1e-3, 2, STEPS)
    return TrainingState(objective, optimizer, schedule, ExponentialMovingAverage(objective, 0.9), fixed={"seed": 0})


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    videos = torch.randn(4, 4, 3, 28, 28, generator=generator)
    return videos, torch.nn.functional.one_hot(torch.arange(4) % 3, 3).float()


def train(state: TrainingState, until: int, share: slice = slice(None)) -> None:
    """Also tries, before every step, one with an infinite gradient on the last process, which must change nothing."""
    while state.progress.step < until:
        videos, targets = batch(state.progress.step)
        state.objective.train()
        state.objective(videos[share], targets[share]).loss.backward()
        parameters = list(state.objective.parameters())
        kept = [parameter.grad.clone() for parameter in parameters]
        if dist.get_rank() == dist.get_world_size() - 1 or share == slice(None):
            local(parameters[-1].grad).fill_(torch.inf)
        norm = torch.nn.utils.clip_grad_norm_(parameters, torch.inf)
        if step_unless_infinite(state.optimizer, norm, 0).was_finite():
            raise SystemExit("a step with an infinite gradient was taken")
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad.copy_(gradient)
        norm = torch.nn.utils.clip_grad_norm_(parameters, torch.inf)
        if not step_unless_infinite(state.optimizer, norm, 0).was_finite():
            raise SystemExit("a step with a finite gradient was left out")
        state.scheduler.step()
        state.optimizer.zero_grad()
        state.ema.update()
        state.progress.step += 1


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def logits_of(state: TrainingState) -> torch.Tensor:
    state.objective.eval()
    with torch.no_grad():
        return state.objective(batch(99)[0], token_budgets=[8]).logits[0]


def check_equal(one: dict, other: dict, tolerance: float) -> None:
    for part in ("objective", "ema"):
        for name, value in one[part].items():
            if tolerance and name.endswith("k_proj.bias"):
                continue  # a softmax does not see it: its gradient is rounding noise, which AdamW blows up
            torch.testing.assert_close(value, other[part][name], rtol=0, atol=tolerance, msg=f"{part} {name}")


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    share = slice(2 * rank, 2 * rank + 2)

    whole = build(0, mesh)
    sharded = [parameter for parameter in whole.objective.parameters() if isinstance(parameter, DTensor)]
    if len(sharded) != len(list(whole.objective.parameters())):
        raise SystemExit("not every parameter is sharded")
    train(whole, STEPS, share)

    ordinary = logits_of(whole)
    with whole.ema.in_place():
        averaged = logits_of(whole)
    if torch.equal(ordinary, averaged) or not torch.equal(ordinary, logits_of(whole)):
        raise SystemExit("after averaged weights were looked at, the model goes on with them")

    cut = build(0, mesh)
    train(cut, 3, share)

    def export(directory: Path, weights: dict) -> None:
        export_model(directory, weights, ModelArguments(), CONFIG, FluxViTVideoProcessor(num_frames=4, size=28))

    checkpoint = save_checkpoint(folder, cut, export)
    resumed = build(1, mesh)  # other weights, which the checkpoint's replace
    load_checkpoint(checkpoint, resumed)
    train(resumed, STEPS, share)
    logits = logits_of(resumed)
    one, other = collect(whole), collect(resumed)
    save_checkpoint(folder, resumed, export)
    if rank == 0:
        check_equal(one, other, 0.0)
        unsharded = build(0)
        train(unsharded, STEPS)
        # collective calls are over: this process compares alone
        averages = {name: average for name, average in unsharded.ema.averages.items()}
        check_equal({"objective": unsharded.objective.state_dict(), "ema": averages}, other, 1e-5)
        torch.save(logits, folder / "logits.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
