# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of a forward pass on a CPU, eager and exported: `PYTHONPATH=. python tests/benchmarks/export.py`.

FluxViT-S with random weights, one clip of 12 frames of 224x224, float32 but for `int8`; one process, the ways
interleaved, medians over rounds of their ratios. All have the same number of threads; their kept tokens are compared.
"""

import argparse
import gc
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from conversion.export import export
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTVideoProcessor, load_exported


WAYS = ("eager", "eager, compiled", "torch, compiled", "onnx", "openvino", "onnx int8", "openvino int8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--model", choices=("small", "base"), default="small")
    parser.add_argument("--token_budgets", type=int, nargs="+", default=[2048, 1024])
    parser.add_argument("--num_frames", type=int, default=12)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--processor_time", action="store_true", help="of all threads, where the machine is shared")
    return parser.parse_args()


def runner_options(export_format: str, threads: int) -> dict:
    """What makes a runtime use so many threads."""
    if export_format == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        return {"session_options": session}
    return {"config": {"INFERENCE_NUM_THREADS": threads}} if export_format == "openvino" else {}


def make_ways(
    model: FluxViTForVideoClassification, checkpoint: Path, folder: Path, budget: int, options: argparse.Namespace
) -> dict[str, Callable]:
    """Each way by name: a clip -> an output with logits and keep_indices. Those that are exported are verified."""
    ways: dict[str, Callable] = {}
    for name in options.ways:
        export_format, _, how = name.partition(", " if "," in name else " ")
        if export_format == "eager":
            forward = torch.compile(model, fullgraph=True) if how else model
            ways[name] = lambda clips, forward=forward: forward(clips, token_budget=budget)
            continue
        output = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{budget}"
        export(str(checkpoint), str(output), export_format, [budget], int8=how == "int8")
        exported = load_exported(output, trust_remote_code=True, **runner_options(export_format, options.threads))
        if export_format == "torch":
            [runner] = exported.exported.runners.values()
            runner.module = torch.compile(runner.module)
        ways[name] = lambda clips, exported=exported: exported(clips, token_budget=budget)
    return ways


def measure(ways: dict[str, Callable], clips: torch.Tensor, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    clock = time.process_time if options.processor_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for round_index in range(-1, options.rounds):  # the first warms up, and compiles
            for name, forward in ways.items():
                start = clock()
                forward(clips)
                if round_index >= 0:
                    times[name].append(clock() - start)
    return times


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = getattr(FluxViTConfig, options.model)(
        num_labels=400, num_hidden_layers=options.layers, num_frames=options.num_frames, image_size=options.size
    )
    model = FluxViTForVideoClassification(config).eval()
    clips = torch.randn(options.batch_size, options.num_frames, 3, options.size, options.size)
    print(f"{vars(options)}\ntorch {torch.__version__}, {platform.machine()}, {options.threads} threads\n")
    print("| tokens | way | ms | of eager | times faster | kept tokens that are eager's | logits within |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for budget in options.token_budgets:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            checkpoint = Path(folder, "checkpoint")
            model.save_pretrained(checkpoint)
            FluxViTVideoProcessor(num_frames=options.num_frames, size=options.size).save_pretrained(checkpoint)
            ways = make_ways(model, checkpoint, Path(folder), budget, options)
            times = measure(ways, clips, options)
            wanted = model(clips, token_budget=budget)
            for name, seconds in times.items():
                got = ways[name](clips)
                same = (got.keep_indices == wanted.keep_indices).float().mean().item()
                apart = (got.logits - wanted.logits).abs().max().item()
                # of each round the ratio, then the median: what else the machine does slows a round's ways alike
                ratio = statistics.median(a / b for a, b in zip(seconds, times["eager"], strict=True))
                print(
                    f"| {budget} | {name} | {statistics.median(seconds) * 1e3:.0f} | {ratio:.2f} | {1 / ratio:.2f} | "
                    f"{same:.0%} | {apart:.1e} |",
                    flush=True,
                )
            del ways
            gc.collect()


if __name__ == "__main__":
    main()
