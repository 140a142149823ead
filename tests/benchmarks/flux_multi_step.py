# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a Flux-Multi step costs against three separate passes, in time and peak memory.

    python tests/benchmarks/flux_multi_step.py [--rounds 3] [--batch_size 1] [--ways "in turn"] [--device cpu|cuda]
        [--bf16] [--compile]

"in turn": `FluxMulti`, embedding, positions and scores once for the three budgets, the library's attention (SDPA),
each budget's backward pass before the next is computed. "joint": the same with one backward pass for all. "separate":
for each budget a forward pass with its own embedding, positions and scores, attention written out, cross entropy, and
its own backward pass, as official code without flash-attn would do. "separate, SDPA"
tells what of the gain is the attention's. Rounds are interleaved. Peak memory is each way's own process's (CPU) or the
allocator's (CUDA). MFU: three times the forward multiply-adds, two operations each, against --peak_tflops.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from flux_hf import FluxViTConfig, FluxViTForVideoClassification
from flux_hf.protocol import features_at_budgets
from training.objectives import FluxMulti


WAYS = ("in turn", "joint", "separate", "separate, SDPA")
BUDGETS = (3072, 2048, 1024)


def build(way: str, args: argparse.Namespace) -> FluxMulti:
    torch.manual_seed(0)
    sizes = {"num_labels": 400, "num_hidden_layers": args.layers, "token_budgets": list(BUDGETS)}
    config = getattr(FluxViTConfig, args.model)(**sizes)
    attention = "eager" if way == "separate" else "sdpa"
    model = FluxViTForVideoClassification._from_config(config, attn_implementation=attention)
    if args.compile:
        for layer in model.fluxvit.encoder.layer:
            layer.compile()
    return FluxMulti(model.to(args.device)).train()


def step(objective: FluxMulti, way: str, videos: torch.Tensor, targets: torch.Tensor, bf16: bool) -> None:
    objective.zero_grad()
    with torch.autocast(videos.device.type, torch.bfloat16, enabled=bf16):
        if way == "in turn":
            loss = objective(videos, targets).loss
        elif way == "joint":
            loss = joint_loss(objective, videos, targets)
    if way in ("in turn", "joint"):
        loss.backward()
        return
    for head, budget in enumerate(BUDGETS):
        with torch.autocast(videos.device.type, torch.bfloat16, enabled=bf16):
            logits = objective.model(videos, token_budget=budget, head=head).logits
            loss = objective.classification_loss(logits, targets)
        loss.backward()


def joint_loss(objective: FluxMulti, videos: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    model = objective.model
    pooled = features_at_budgets(model, videos, BUDGETS, range(len(BUDGETS)))
    losses = [objective.classification_loss(model.classify(feature, head), targets) for feature, head in pooled]
    return sum(losses) + sum(objective.alignment(feature, head, pooled[0].feature) for feature, head in pooled[1:])


def timed(objective: FluxMulti, way: str, videos: torch.Tensor, targets: torch.Tensor, bf16: bool) -> float:
    on_gpu = videos.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(objective, way, videos, targets, bf16)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def inputs(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    videos = torch.randn(args.batch_size, args.num_frames, 3, args.size, args.size, generator=generator)
    targets = torch.full((args.batch_size, 400), 1 / 400)
    return videos.to(args.device), targets.to(args.device)


def peak_memory(way: str, args: argparse.Namespace) -> float:
    """GiB."""
    if args.device != "cpu":
        objective, data = build(way, args), inputs(args)
        step(objective, way, *data, args.bf16)
        torch.cuda.reset_peak_memory_stats()
        step(objective, way, *data, args.bf16)
        return torch.cuda.max_memory_allocated() / 2**30
    command = [sys.executable, __file__, *args.words, "--only", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=["small", "base"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_frames", type=int, default=12)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak_tflops", type=float, help="of the device, for MFU")
    parser.add_argument("--only", choices=WAYS, help="one step this way; prints the process's peak memory in GiB")
    words = sys.argv[1:] if words is None else words
    return argparse.Namespace(**vars(parser.parse_args(words)), words=words)


def run(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Prints the table; returns each way's figures."""
    memory = {way: peak_memory(way, args) for way in args.ways}
    data = inputs(args)
    objectives = {way: build(way, args) for way in args.ways}
    for way in args.ways:  # warm up
        step(objectives[way], way, *data, args.bf16)
    seconds: dict[str, list[float]] = {way: [] for way in args.ways}
    for _ in range(args.rounds):
        for way in args.ways:
            seconds[way].append(timed(objectives[way], way, *data, args.bf16))
    median = {way: statistics.median(seconds[way]) for way in args.ways}
    model = objectives[args.ways[0]].model
    flops = 3 * 2 * args.batch_size * sum(model.flops(args.num_frames, args.size, budget) for budget in BUDGETS)
    print(f"{args.model}, batch {args.batch_size} of {args.num_frames}x{args.size}, budgets {BUDGETS}, {args.device}")
    print(f"{'way':>15} {'seconds':>9} {'of separate':>12} {'peak GiB':>9} {'TFLOP/s':>8} {'MFU':>6}")
    found = {}
    for way in args.ways:
        rate = flops / median[way] / 1e12
        found[way] = {"seconds": median[way], "peak_gib": memory[way], "tflops": rate}
        if args.peak_tflops:
            found[way]["mfu"] = rate / args.peak_tflops
        mfu = f"{found[way]['mfu']:.1%}" if args.peak_tflops else "-"
        share = f"{median[way] / median['separate']:.2f}" if "separate" in median else "-"
        print(f"{way:>15} {median[way]:>9.3f} {share:>12} {memory[way]:>9.2f} {rate:>8.2f} {mfu:>6}", flush=True)
    return found


def main() -> None:
    args = parse_arguments()
    if args.only:
        step(build(args.only, args), args.only, *inputs(args), args.bf16)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    run(args)


if __name__ == "__main__":
    main()
