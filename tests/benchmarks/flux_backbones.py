# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of a forward pass of Flux around VideoMAE, ViViT and V-JEPA 2 at all, half and a quarter of the tokens, over the
library's own model: `python tests/benchmarks/flux_backbones.py`.

Base size (12 layers of 768), random weights, one clip, one process, interleaved; medians over rounds.
"""

import argparse
import platform
import statistics
import time

import torch
import transformers
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from flux_hf import FluxForVideoClassification


ENCODERS = {
    "videomae": (VideoMAEForVideoClassification, VideoMAEConfig()),
    "vivit": (VivitForVideoClassification, VivitConfig()),
    "vjepa2": (
        VJEPA2ForVideoClassification,
        VJEPA2Config(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, frames_per_clip=16, crop_size=256),
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--processor_time", action="store_true", help="of all threads, where the machine is shared")
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> tuple[int, dict[str, list[float]]]:
    """Tokens of the native clip, and seconds of each way, round by round."""
    cls, config = ENCODERS[name]
    config.num_labels, config.num_hidden_layers = 400, options.layers
    stock = cls._from_config(config, attn_implementation=options.attention).eval()
    stock = stock.to(options.device, getattr(torch, options.dtype))
    flux = FluxForVideoClassification.from_backbone(stock)
    side = flux.config.image_size
    video = torch.randn(options.batch_size, flux.config.num_frames, 3, side, side).to(options.device, stock.dtype)
    tokens = flux.config.token_budgets[0]
    ways = {"stock": lambda: stock(video)}
    for label, share in (("all", 1), ("1/2", 2), ("1/4", 4)):
        ways[label] = lambda budget=tokens // share: flux(video, token_budget=budget)

    clock = time.process_time if options.processor_time else time.perf_counter

    def seconds(way: str) -> float:
        if video.is_cuda:
            torch.cuda.synchronize()
        start = clock()
        with torch.inference_mode():
            ways[way]()
        if video.is_cuda:
            torch.cuda.synchronize()
        return clock() - start

    for way in ways:
        seconds(way)  # warm-up
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            times[way].append(seconds(way))
    return tokens, times


def main() -> None:
    options = parse_arguments()
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if options.device == "cuda" else cpu
    print(f"{vars(options)}\ntorch {torch.__version__}, transformers {transformers.__version__}, {where}\n")
    print("| encoder | tokens | stock, seconds | all | 1/2 | 1/4 |\n|---|---:|---:|---:|---:|---:|")
    for name in options.encoders:
        tokens, times = measure(name, options)
        # of each round the ratio, then the median: what else the machine does slows a round's ways alike
        ratios = [
            statistics.median(ours / stock for ours, stock in zip(times[way], times["stock"], strict=True))
            for way in ("all", "1/2", "1/4")
        ]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {tokens:,} | {statistics.median(times['stock']):.3f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
