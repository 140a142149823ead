# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of a forward pass of FluxViT beside its peers of equal width and tokens, and beside its matrix products'.

    PYTHONPATH=. python tests/benchmarks/peers.py [--models small base] [--cases 8x224:2048 16x252:512]
        [--batch_sizes 1 8] [--ways VideoMAE] [--compile [layers]] [--profile]
        [--device cuda --dtype bfloat16 --peak_tflops N]

"official way": what the official code computes, step by step (`plain_fluxvit.py`), with attention written out or SDPA;
its logits are compared with ours first. VideoMAE and V-JEPA 2 are transformers' own classifiers with SDPA, of
FluxViT's width, heads and layers, on a clip of as many tokens as are kept (256 pixels, patches of 16, tubelets of 2);
those embed no more than they encode. "of the ceiling": multiply-adds that ran, at the rate of the widest linear layer
alone, over the time. --profile prints where ours and VideoMAE's time goes. Random weights, one process, rounds
interleaved: of each round the ratio to ours, then medians.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from plain_fluxvit import PlainFluxViT, written_out_attention
from torch import nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from flux_hf import FluxViTConfig, FluxViTForVideoClassification


OURS = "ours"
SIZE, PATCH, TUBELET = 256, 16, 2  # of the peers' clips
PER_TUBELET = (SIZE // PATCH) ** 2


@dataclass(frozen=True)
class Case:
    """A clip of ours and how many of its tokens are kept."""

    num_frames: int
    size: int
    budget: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        """ "FRAMESxSIZE:BUDGET"."""
        shape, budget = text.split(":")
        frames, size = shape.split("x")
        case = cls(int(frames), int(size), int(budget))
        if case.budget % PER_TUBELET:
            raise argparse.ArgumentTypeError(f"{text}: peers have a multiple of {PER_TUBELET} tokens")
        return case


CASES = ["12x224:3072", "8x224:2048", "16x224:1024", "16x252:512"]


WAYS = ["official way", "official way, SDPA", "VideoMAE", "V-JEPA 2"]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("small", "base"), default=["small", "base"])
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=[Case.parse(text) for text in CASES])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="beside ours")
    parser.add_argument("--compile", nargs="?", choices=["whole", "layers"], const="whole", help="the models")
    parser.add_argument("--profile", action="store_true", help="the ten longest operations of ours and VideoMAE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--peak_tflops", type=float, help="of the device: MFU beside")
    parser.add_argument("--processor_time", action="store_true", help="of all threads, where the machine is shared")
    return parser.parse_args(words)


def peer_sizes(config: FluxViTConfig) -> dict[str, int]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "image_size": SIZE,
        "patch_size": PATCH,
        "tubelet_size": TUBELET,
        "num_labels": config.num_labels,
    }


def build(model: str, options: argparse.Namespace) -> FluxViTForVideoClassification:
    torch.manual_seed(0)
    config = getattr(FluxViTConfig, model)(num_labels=400, num_hidden_layers=options.layers)
    built = FluxViTForVideoClassification._from_config(config, attn_implementation="sdpa").eval()
    return built.to(options.device, getattr(torch, options.dtype))


def build_peers(config: FluxViTConfig, num_frames: int, options: argparse.Namespace) -> dict[str, nn.Module]:
    sizes = peer_sizes(config)
    videomae = VideoMAEConfig(**sizes, num_frames=num_frames, intermediate_size=config.intermediate_size)
    del sizes["image_size"]
    vjepa2 = VJEPA2Config(**sizes, crop_size=SIZE, frames_per_clip=num_frames, num_pooler_layers=1)
    peers = {
        "VideoMAE": VideoMAEForVideoClassification._from_config(videomae, attn_implementation="sdpa"),
        "V-JEPA 2": VJEPA2ForVideoClassification._from_config(vjepa2, attn_implementation="sdpa"),
    }
    return {name: peer.eval().to(options.device, getattr(torch, options.dtype)) for name, peer in peers.items()}


def ways_of(
    ours: FluxViTForVideoClassification, case: Case, batch: int, options: argparse.Namespace
) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to be timed, by name."""
    frames = case.budget // PER_TUBELET * TUBELET
    videos = torch.randn(batch, case.num_frames, 3, case.size, case.size).to(options.device, ours.dtype)
    theirs = torch.randn(batch, frames, 3, SIZE, SIZE).to(options.device, ours.dtype)
    sdpa = nn.functional.scaled_dot_product_attention
    plain = {
        "official way": PlainFluxViT(ours, written_out_attention),
        "official way, SDPA": PlainFluxViT(ours, sdpa),
    }
    models = {OURS: ours, **plain, **build_peers(ours.config, frames, options)}
    models = {name: model for name, model in models.items() if name in (OURS, *options.ways)}
    if options.dtype == "float32":
        with torch.inference_mode():
            expected = ours(videos, token_budget=case.budget).logits
            for name in plain.keys() & models.keys():
                torch.testing.assert_close(models[name](videos, case.budget), expected, rtol=1e-4, atol=1e-4)
    if options.compile == "whole":
        models = {name: torch.compile(model) for name, model in models.items()}
    elif options.compile == "layers":
        for name in models.keys() - plain.keys():
            compile_layers(models[name], options.layers)
    ways = {name: lambda model=model, given=theirs: model(given) for name, model in models.items() if name not in plain}
    ways[OURS] = lambda: models[OURS](videos, token_budget=case.budget)
    return ways | {name: lambda model=models[name]: model(videos, case.budget) for name in plain if name in models}


def compile_layers(model: nn.Module, layers: int) -> None:
    """The encoder's, each in place: the first list of so many. The official way has none of its own to compile."""
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == layers)
    for layer in next(lists):
        layer.compile()


def linear_way(
    config: FluxViTConfig, case: Case, batch: int, options: argparse.Namespace
) -> Callable[[], torch.Tensor]:
    """The widest linear layer on the kept tokens, alone."""
    dtype = getattr(torch, options.dtype)
    tokens = torch.randn(batch, case.budget + 1, config.hidden_size).to(options.device, dtype)
    linear = nn.Linear(config.hidden_size, config.intermediate_size).to(options.device, dtype)
    return lambda: linear(tokens)


def measure(ways: dict[str, Callable], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    clock = time.process_time if options.processor_time else time.perf_counter
    on_gpu = options.device == "cuda"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            if on_gpu:
                torch.cuda.synchronize()
            start = clock()
            with torch.inference_mode():
                way()
            if on_gpu:
                torch.cuda.synchronize()
            if number:  # the first warms up
                times[name].append(clock() - start)
    return times


def print_profile(ways: dict[str, Callable], on_gpu: bool) -> None:
    by = f"self_{'device' if on_gpu else 'cpu'}_time_total"
    for name in (OURS, "VideoMAE"):
        if name not in ways:
            continue
        with torch.inference_mode(), torch.profiler.profile() as profile:
            ways[name]()
        print(f"\n{name}\n{profile.key_averages().table(sort_by=by, row_limit=10, max_name_column_width=40)}")


def run(options: argparse.Namespace) -> list[dict[str, float | str]]:
    """Prints the table; returns its rows' figures."""
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if options.device == "cuda" else cpu
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}, {options.dtype}")
    head = ["model", "clip", "tokens", "batch", "ours, ms", *(f"{name} / ours" for name in options.ways)]
    head += ["of the ceiling", *(["MFU"] if options.peak_tflops else [])]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * 2}{'---:|' * (len(head) - 2)}")
    rows = []
    for model in options.models:
        ours = build(model, options)
        for case in options.cases:
            for batch in options.batch_sizes:
                rows.append(print_row(ours, model, case, batch, options))
    return rows


def print_row(
    ours: FluxViTForVideoClassification, model: str, case: Case, batch: int, options: argparse.Namespace
) -> dict[str, float | str]:
    config = ours.config
    ways = ways_of(ours, case, batch, options)
    times = measure({**ways, "linear": linear_way(config, case, batch, options)}, options)
    ratios = {
        name: statistics.median(t / o for t, o in zip(times[name], times[OURS], strict=True)) for name in options.ways
    }
    flops = batch * ours.flops(case.num_frames, case.size, case.budget, dense_embedding=True)
    of_linear = batch * (case.budget + 1) * config.hidden_size * config.intermediate_size
    rounds = zip(times["linear"], times[OURS], strict=True)
    ceiling = statistics.median(flops / of_linear * linear / taken for linear, taken in rounds)
    seconds = statistics.median(times[OURS])
    row = {"model": model, "tokens": case.budget, "batch": batch, "ms": seconds * 1e3, **ratios, "ceiling": ceiling}
    cells = [model, f"{case.num_frames}x{case.size}", f"{case.budget}", f"{batch}", f"{seconds * 1e3:.1f}"]
    cells += [*(f"{ratio:.2f}" for ratio in ratios.values()), f"{ceiling:.0%}"]
    if options.peak_tflops:
        row["mfu"] = 2 * flops / seconds / 1e12 / options.peak_tflops
        cells += [f"{row['mfu']:.1%}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    if options.profile:
        print_profile(ways, options.device == "cuda")
    return row


if __name__ == "__main__":
    run(parse_arguments())
