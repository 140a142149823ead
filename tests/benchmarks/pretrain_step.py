# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of a pretraining step with three student budgets over that of three steps with one budget each, which ask the
teacher each time: `python tests/benchmarks/pretrain_step.py`.

Random weights, interleaved; medians over rounds. The teacher is wider and deeper than the student, as in the paper.
"""

import argparse
import platform
import statistics
import time

import torch
import transformers

from flux_hf import FluxViTConfig, FluxViTForPreTraining, FluxViTModel
from training.distillation import FluxUMT
from training.teachers import VideoTeacher, spread_layers


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher_dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--teacher_size", default="L", help="of InternVideo2")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 1536, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(0)
    config = FluxViTConfig.internvideo2(options.teacher_size)
    teacher_model = FluxViTModel(config).to(options.device, getattr(torch, options.teacher_dtype))
    teacher = VideoTeacher(teacher_model, spread_layers(config.num_hidden_layers, 6), max(options.budgets))
    student = FluxViTForPreTraining(
        FluxViTConfig.small(
            token_budgets=[2048],
            alignment_layers=spread_layers(12, 6, 1),
            teacher_hidden_size=config.hidden_size,
            teacher_projection_dim=config.projection_dim,
        )
    ).to(options.device)
    clip = torch.randn(options.batch_size, options.num_frames, 3, options.size, options.size, device=options.device)
    seeds = torch.arange(options.batch_size)
    grid = (options.num_frames, options.size // 14, options.size // 14)

    def step(objective: FluxUMT) -> None:
        objective(clip, teacher(clip, grid), seeds).loss.backward()
        student.zero_grad(set_to_none=True)
        if options.device == "cuda":
            torch.cuda.synchronize()

    together = FluxUMT(student, options.budgets, teacher.token_budget)
    apart = [FluxUMT(student, [budget], teacher.token_budget) for budget in options.budgets]
    ways = {"one step, all budgets": [together], "a step a budget": apart}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, objectives in ways.items():
            start = time.perf_counter()
            for objective in objectives:
                step(objective)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    one, three = (statistics.median(values) for values in seconds.values())
    print(
        f"{platform.processor() or platform.machine()}, {options.device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(f"one step with {options.budgets}: {one:.2f} s; a step each: {three:.2f} s; ratio {one / three:.2f}")


if __name__ == "__main__":
    main()
