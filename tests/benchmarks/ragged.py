# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of clips of many shapes in one batch, one by one, and in a batch a shape: `python tests/benchmarks/ragged.py`.

Clips as `keep_aspect_ratio` makes them of videos of several proportions, and of several lengths; the encoder keeps
equally many tokens of each. Random weights, one process, interleaved; medians over rounds, and of each round the ratio
to one by one.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor

from flux_hf import FluxViTConfig, FluxViTForVideoClassification


# Frames, height and width: 16:9, 4:3, square and upright; 16 clips are two of each.
SHAPES = (
    *((12, 112, 196), (12, 112, 154), (12, 112, 112), (12, 196, 112)),
    *((8, 112, 196), (16, 112, 154), (16, 112, 112), (8, 196, 112)),
)
WAYS = ("one by one", "a batch a shape", "one batch")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--model", choices=("small", "base"), default="small")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor_time", action="store_true", help="of all threads, where the machine is shared")
    return parser.parse_args()


def ways_of(model: FluxViTForVideoClassification, clips: list[Tensor], budget: int) -> dict[str, Callable]:
    """What is timed."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for clip in clips:
        by_shape.setdefault(clip.shape, []).append(clip)
    return {
        "one by one": lambda: [model(clip[None], token_budget=budget) for clip in clips],
        "a batch a shape": lambda: [model(torch.stack(group), token_budget=budget) for group in by_shape.values()],
        "one batch": lambda: model(clips, token_budget=budget),
    }


def measure(
    model: FluxViTForVideoClassification, clips: list[Tensor], budget: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    ways = ways_of(model, clips, budget)
    clock = time.process_time if options.processor_time else time.perf_counter

    def seconds(way: str) -> float:
        if clips[0].is_cuda:
            torch.cuda.synchronize()
        start = clock()
        with torch.inference_mode():
            ways[way]()
        if clips[0].is_cuda:
            torch.cuda.synchronize()
        return clock() - start

    for way in WAYS:
        seconds(way)  # warm-up
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            times[way].append(seconds(way))
    return times


def main() -> None:
    options = parse_arguments()
    config = getattr(FluxViTConfig, options.model)(num_labels=400, num_hidden_layers=options.layers)
    torch.manual_seed(0)
    model = FluxViTForVideoClassification(config).eval().to(options.device, getattr(torch, options.dtype))
    shapes = [SHAPES[index % len(SHAPES)] for index in range(options.clips)]
    clips = [torch.randn(frames, 3, height, width).to(model.device, model.dtype) for frames, height, width in shapes]
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if options.device == "cuda" else cpu
    print(f"{vars(options)}\ntorch {torch.__version__}, transformers {transformers.__version__}, {where}\n")
    print(f"| tokens kept | {' | '.join(f'{way}, ms' for way in WAYS)} | of one by one | of a batch a shape |")
    print("|---:|" + "---:|" * 5)
    for budget in options.budgets:
        times = measure(model, clips, budget, options)
        cells = [f"{statistics.median(times[way]) * 1e3:.0f}" for way in WAYS]
        # of each round the ratio, then the median: what else the machine does slows a round's ways alike
        for other in WAYS[:2]:
            ratios = [ours / theirs for ours, theirs in zip(times["one batch"], times[other], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {budget} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
