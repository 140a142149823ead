# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The share of the GPU's peak that FluxViT reaches, beside the goals: `forward` S and B, `step` Flux-Multi of B.

    PYTHONPATH=. python tests/gpu/figures.py forward [--device cpu --tiny] [--peak_tflops 989]

`forward`: `tests/benchmarks/peers.py`, 2048 tokens, batches of 32, bfloat16, layers compiled, beside VideoMAE.
`step`: `tests/benchmarks/flux_multi_step.py`, bfloat16, layers compiled. A goal that is missed is said, no error.
"""

import sys
from pathlib import Path

from parts import parse, tell


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import flux_multi_step  # noqa: E402
import peers  # noqa: E402


GOALS = {"forward": 0.55, "step": 0.45}  # of B, on H100 and H200


def forward(device: str, tiny: bool, peak: float) -> tuple[list[dict], float]:
    """The rows, and B's share of the peak."""
    words = f"--ways VideoMAE --device {device} --dtype bfloat16 --peak_tflops {peak} --cases"
    size = "4x112:256 --batch_sizes 1 --layers 1 --rounds 1" if tiny else "8x224:2048 --batch_sizes 32 --compile layers"
    rows = peers.run(peers.parse_arguments(f"{words} {size}".split()))
    return rows, next(row["mfu"] for row in rows if row["model"] == "base")


def step(device: str, tiny: bool, peak: float) -> tuple[list[dict], float]:
    words = ["--model", "base", "--device", device, "--bf16", "--peak_tflops", str(peak), "--ways", "in turn"]
    size = "--layers 1 --num_frames 4 --size 56 --rounds 1" if tiny else "--batch_size 16 --compile --rounds 7"
    found = flux_multi_step.run(flux_multi_step.parse_arguments([*words, *size.split()]))
    return [found["in turn"]], found["in turn"]["mfu"]


def main() -> int:
    def add(parser) -> None:
        parser.add_argument("what", choices=list(GOALS))
        parser.add_argument("--peak_tflops", type=float, default=989.0, help="of the device in bfloat16, dense")

    options = parse(__doc__, add)
    measure = {"forward": forward, "step": step}[options.what]
    rows, reached = measure(options.device, options.tiny, options.peak_tflops)
    goal = GOALS[options.what]
    said = "reached" if reached >= goal else "not reached"
    line = f"{options.what} of B: {reached:.1%} of {options.peak_tflops:g} TFLOP/s, goal {goal:.0%} {said}"
    if options.what == "forward":
        told = (f"{row['model']} {row['mfu']:.1%}, VideoMAE {row['VideoMAE']:.2f} of its time" for row in rows)
        line += f"; {'; '.join(told)}"
    tell({"rows": rows, "goal": goal, "reached": reached >= goal}, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
