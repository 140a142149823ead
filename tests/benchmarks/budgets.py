# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of a forward pass at each token budget, interleaved, medians: `python tests/benchmarks/budgets.py`.

One process, random weights, one clip of 12 frames of 224x224 unless said otherwise. Ratios are to the largest budget.
"""

import argparse
import platform
import statistics
import time

import torch

from flux_hf import FluxViTConfig, FluxViTForVideoClassification


BUDGETS = (3072, 2048, 1024, 512)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("small", "base"), default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--tf32", action="store_true", help="float32 matrix products in TF32, the patch embedding's too"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    config = getattr(FluxViTConfig, options.model)(num_labels=400, num_hidden_layers=options.layers)
    model = FluxViTForVideoClassification._from_config(config, attn_implementation=options.attention)
    model = model.eval().to(options.device, getattr(torch, options.dtype))
    forward = torch.compile(model, fullgraph=True) if options.compile else model
    video = torch.randn(options.batch_size, 12, 3, 224, 224).to(options.device, model.dtype)

    def seconds(budget: int) -> float:
        if video.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            forward(video, token_budget=budget)
        if video.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for budget in BUDGETS:
        seconds(budget)  # warm-up, and compilation
    times: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for _ in range(options.rounds):
        for budget in BUDGETS:
            times[budget].append(seconds(budget))
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if video.is_cuda else cpu
    print(f"{options}\ntorch {torch.__version__}, {where}")
    largest = statistics.median(times[BUDGETS[0]])
    for budget in BUDGETS:
        median = statistics.median(times[budget])
        gflops = model.flops(12, 224, budget) / 1e9
        spread = f"{min(times[budget]) * 1e3:.1f}-{max(times[budget]) * 1e3:.1f}"
        print(f"{budget:5d} tokens {gflops:7.1f} GFLOPs {median * 1e3:8.1f} ms [{spread}] ratio {median / largest:.3f}")


if __name__ == "__main__":
    main()
