# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of a training step at the recipes' numbers, computed without the memory, or measured on a GPU.

    python tests/benchmarks/training_memory.py [--recipes k400] [--models small] [--clips 16 8] [--device cuda]

A whole step of the objective that `training.finetune` builds (forward, backward, AdamW, moving average) runs on fake
tensors, which have shapes and storages but no contents; every storage that lives is counted, by its real size, at its
real time. The batch has the largest pair of frames and size in the recipe's window. What a GPU needs beside: about
0.5 GiB of CUDA context, workspaces of kernels, what its allocator cannot use between tensors, and with several
processes one more copy of the gradients, in DDP's buckets. `--device cuda` takes the same step for real, and prints the
allocator's peaks beside the computed ones.
"""

import argparse
import weakref
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flux_hf import FluxViTConfig, FluxViTForVideoClassification
from training.arguments import FinetuneArguments, ModelArguments, parse_arguments
from training.batches import clip_shapes
from training.data.sampling import ClipShape
from training.engine.ema import ExponentialMovingAverage
from training.engine.prepare import build_optimizer
from training.model import build_objective
from training.objectives import FluxObjective


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
GIB = 2**30


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations under it made and that still live: `now`, and their `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: weakref.ref) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def blank(config: FluxViTConfig) -> FluxViTForVideoClassification:
    """A model that holds nothing yet."""
    with torch.device("meta"):
        return FluxViTForVideoClassification._from_config(config, attn_implementation="sdpa")


def step(objective: FluxObjective, optimizer, ema, videos: Tensor, targets: Tensor, bf16: bool) -> None:
    with torch.autocast(videos.device.type, torch.bfloat16, enabled=bf16):
        loss = objective(videos, targets).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    ema.update()


def take_step(
    model: FluxViTForVideoClassification,
    args: FinetuneArguments,
    shape: ClipShape,
    rows: int,
    bf16: bool,
    checkpointing: bool,
    device: str,
) -> None:
    """Makes all that a step needs and takes two; `rows` of the batch are clips times their copies."""
    settings = ModelArguments(gradient_checkpointing=checkpointing)
    objective = build_objective(model.to_empty(device=device), settings, args.objective).train()
    if device == "cuda":
        for parameter in objective.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    optimizer = build_optimizer(objective.model, args.optimization, 1e-6, fused=device == "cuda")
    ema = ExponentialMovingAverage(objective, 0.9999)
    videos = torch.zeros(rows, shape.num_frames, 3, shape.size, shape.size, device=device)
    targets = torch.full((rows, model.num_labels), 1 / model.num_labels, device=device)
    for _ in range(2):  # AdamW's moments are there from the first one's end on
        step(objective, optimizer, ema, videos, targets, bf16)


def computed(config: FluxViTConfig, *what) -> int:
    """Peak bytes of a step on fake tensors: of a CPU, for autograd wants to see a GPU."""
    model = blank(config)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveStorages() as live:
        take_step(model, *what, "cpu")
    return live.peak


def measured(config: FluxViTConfig, *what) -> str:
    """The allocator's peaks of a step on the GPU: of tensors, and of what it took from the GPU for them."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        take_step(blank(config), *what, "cuda")
    except torch.cuda.OutOfMemoryError:
        return f"{'does not fit':>21}"
    return f"{torch.cuda.max_memory_allocated() / GIB:>10.1f} {torch.cuda.max_memory_reserved() / GIB:>10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["k400"], help="names in training/recipes")
    parser.add_argument("--models", nargs="+", default=["small", "base"], choices=["small", "base"])
    parser.add_argument("--clips", nargs="+", type=int, default=[16, 8], help="of a process's batch, before copies")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--num_labels", type=int, default=400)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", choices=["cuda"], help="measure there too")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.device else 'computed only'}; GiB")
    heads = (
        f"{'recipe':>6} {'model':>6} {'clips':>9} {'shape':>8} {'precision':>9} {'checkpointing':>13} {'computed':>9}"
    )
    print(heads + (f" {'allocated':>10} {'reserved':>10}" if options.device else ""))
    for recipe in options.recipes:
        words = f"--recipe {RECIPES / recipe}.yaml --data d --model_name_or_path m --output_dir o".split()
        args = parse_arguments(words)
        copies, budgets = args.augmentation.num_sample, args.objective.token_budgets
        for model in options.models:
            more = {"num_labels": options.num_labels, "token_budgets": budgets, "num_hidden_layers": options.layers}
            config = getattr(FluxViTConfig, model)(drop_path_rate=args.model.drop_path_rate, **more)
            shape = max(clip_shapes(args.sampling, config), key=lambda shape: shape.num_frames * shape.size**2)
            for precision in options.precisions:
                for checkpointing in (False, True):
                    for clips in options.clips:
                        what = (config, args, shape, clips * copies, precision == "bf16", checkpointing)
                        line = f"{recipe:>6} {model:>6} {clips:>5} x {copies} {shape.num_frames:>4}x{shape.size} "
                        line += f"{precision:>9} {'yes' if checkpointing else 'no':>13} {computed(*what) / GIB:>9.1f}"
                        print(line + (f" {measured(*what)}" if options.device else ""), flush=True)


if __name__ == "__main__":
    main()
