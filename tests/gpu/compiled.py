# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT-S in bfloat16 with its layers compiled, compiled whole with CUDA graphs, and captured in one: same logits?

    PYTHONPATH=. python tests/gpu/compiled.py [--device cpu --tiny]

Each is asked for two batches, so that a graph which kept the first one's tokens is found out, and timed beside plain
PyTorch; the layers also at another budget. --tiny traces and does not generate code; graphs are the GPU's alone.
"""

import argparse
import sys
import traceback
from collections.abc import Callable

import torch
from parts import SAME_TOKENS, TOLERANCES, budgets, build, clips, difference, parse, same_tokens, seconds, tell
from torch import Tensor, nn


Way = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # clips and a budget to logits and kept tokens
PLAIN, LAYERS, WHOLE, GRAPH = "plain", "layers compiled", "whole, reduce-overhead", "CUDA graph"


def called(model: nn.Module) -> Way:
    def way(videos: Tensor, budget: int) -> tuple[Tensor, Tensor]:
        outputs = model(videos, token_budget=budget)
        return outputs.logits.clone(), outputs.keep_indices.clone()  # the next call writes over a graph's outputs

    return way


def with_layers_compiled(model: nn.Module, tiny: bool) -> Way:
    model.compile_layers(**({"backend": "aot_eager"} if tiny else {}))
    return called(model)


def compiled_whole(model: nn.Module, tiny: bool) -> Way:
    options = {"backend": "aot_eager"} if tiny else {"mode": "reduce-overhead"}
    return called(torch.compile(model, fullgraph=True, **options))


def captured(model: nn.Module, example: Tensor, budget: int) -> Way:
    """A graph of one budget; every call copies its clips to where the graph reads them."""
    given, stream, graph = example.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # workspaces and handles are made before
            model(given, token_budget=budget)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        outputs = model(given, token_budget=budget)

    def way(videos: Tensor, _: int) -> tuple[Tensor, Tensor]:
        given.copy_(videos)
        graph.replay()
        return outputs.logits.clone(), outputs.keep_indices.clone()

    return way


def try_way(
    name: str, make: Callable[[], Way], plain: Way, batches: list[Tensor], options: argparse.Namespace
) -> dict[str, object]:
    """How far a way is from plain PyTorch, and its time."""
    wanted = budgets(options.tiny)
    asked = wanted[1:] if name == LAYERS else wanted[1:2]
    way, apart, same = make(), 0.0, 1.0
    for budget in asked:
        for videos in (*batches, *batches):  # a graph is recorded at the second call, and replayed from then on
            (logits, kept), (expected, expected_kept) = way(videos, budget), plain(videos, budget)
            apart = max(apart, difference(logits, expected))
            same = min(same, same_tokens(kept, expected_kept))
    # one and the same kernels, in a graph
    allowed = 0.0 if name in (PLAIN, GRAPH) else TOLERANCES[batches[0].dtype]
    return {
        "way": name,
        "apart": apart,
        "same tokens": same,
        "ms": 1e3 * seconds(lambda: way(batches[0], asked[0]), options.device, 3 if options.tiny else 10),
        "failed": not (apart <= allowed and same >= SAME_TOKENS),
    }


@torch.no_grad()
def main() -> int:
    options = parse(__doc__)
    device, tiny = options.device, options.tiny

    def model() -> nn.Module:
        return build(tiny).to(device, torch.bfloat16)

    batches = list(clips(tiny, 4).to(device, torch.bfloat16).split(2))
    plain = called(model())
    ways: dict[str, Callable[[], Way]] = {
        PLAIN: lambda: plain,
        LAYERS: lambda: with_layers_compiled(model(), tiny),
        GRAPH: lambda: captured(model(), batches[0], budgets(tiny)[1]),
        WHOLE: lambda: compiled_whole(model(), tiny),
    }
    if device == "cpu":
        del ways[GRAPH]
        print(f"{GRAPH}: not run, a CPU has none")
    rows = []
    for name, make in ways.items():
        try:
            row = try_way(name, make, plain, batches, options)
        except Exception as error:  # told of, and the others are tried
            traceback.print_exc()
            row = {"way": name, "failed": True, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        rows.append(row)
        print(row, flush=True)
    failed = [row["way"] for row in rows if row["failed"]]
    line = ", ".join(f"{row['way']} {row['ms']:.1f} ms" for row in rows if "ms" in row)
    tell({"rows": rows}, f"FAILED: {', '.join(failed)}; {line}" if failed else line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
