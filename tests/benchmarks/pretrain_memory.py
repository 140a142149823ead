# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of a pretraining step at the recipe's numbers, and the clips a second that its arithmetic allows.

    python tests/benchmarks/pretrain_memory.py [--student small] [--teacher 1B] [--clips 16 8] [--device cuda]

Memory as in `training_memory.py`: computed on fake tensors for the largest shape of the window, of the teacher in
bfloat16, which stays beside the student, its forward, and the student's step under autocast; `--device cuda` takes the
same steps for real. Clips a second are those of a GPU that does --utilization of its peak (--tflops, in bfloat16), for
the mean shape of the window: the teacher's forward, and three times the student's (forward and backward).
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from training_memory import GIB, RECIPES, LiveStorages

from flux_hf import FluxViTConfig, FluxViTForPreTraining, FluxViTForVideoClassification, FluxViTModel
from training.batches import clip_shapes
from training.data.sampling import ClipShape
from training.distillation import FluxUMT
from training.engine.prepare import build_optimizer
from training.pretrain_arguments import PretrainArguments, parse_pretraining
from training.teachers import VideoTeacher, spread_layers


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="small", choices=["small", "base"])
    parser.add_argument("--teacher", default="1B", help="size of InternVideo2")
    parser.add_argument("--clips", nargs="+", type=int, default=[32, 16, 8], help="of a process's batch")
    parser.add_argument("--tflops", nargs="+", type=float, default=[312.0, 989.0], help="peak of the GPUs in bfloat16")
    parser.add_argument("--utilization", type=float, default=0.4)
    parser.add_argument("--device", choices=["cuda"], help="measure there too")
    return parser.parse_args()


def recipe(path: Path = RECIPES / "pretrain.yaml") -> PretrainArguments:
    words = f"--recipe {path} --teacher t --data d --config_name c --output_dir o"
    return parse_pretraining(words.split())


def configs(args: PretrainArguments, student: str, teacher: str) -> tuple[FluxViTConfig, FluxViTConfig]:
    """The student's and the teacher's."""
    theirs = FluxViTConfig.internvideo2(teacher)
    ours = getattr(FluxViTConfig, student)(
        token_budgets=[max(args.distillation.student_budgets)],
        drop_path_rate=args.model.drop_path_rate,
        alignment_layers=spread_layers(12, args.distillation.aligned_layers, 1),
        teacher_hidden_size=theirs.hidden_size,
        teacher_projection_dim=theirs.projection_dim,
    )
    return ours, theirs


def take_steps(
    args: PretrainArguments,
    models: tuple[FluxViTForPreTraining, FluxViTModel],
    shape: ClipShape,
    clips: int,
    checkpointing: bool,
    device: str,
) -> None:
    """Makes all that a step needs and takes two."""
    model, theirs = (model.to_empty(device=device) for model in models)
    if device == "cuda":
        for parameter in (*model.parameters(), *theirs.parameters()):
            torch.nn.init.normal_(parameter, std=0.02)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wanted, config = args.distillation, model.config
    layers = spread_layers(theirs.config.num_hidden_layers, wanted.aligned_layers)
    teacher = VideoTeacher(theirs, layers, args.teacher.teacher_tokens)
    objective = FluxUMT(model, wanted.student_budgets, args.teacher.teacher_tokens).train()
    optimizer = build_optimizer(model, args.optimization, 1e-6, fused=device == "cuda")
    videos = torch.zeros(clips, shape.num_frames, 3, shape.size, shape.size, device=device)
    grid = (shape.num_frames, shape.size // config.patch_size, shape.size // config.patch_size)
    for _ in range(2):  # AdamW's moments are there from the first one's end on
        told = teacher(videos, grid)
        with torch.autocast(device, torch.bfloat16):
            loss = objective(videos, told).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def blank(ours: FluxViTConfig, theirs: FluxViTConfig) -> tuple[FluxViTForPreTraining, FluxViTModel]:
    """Models that hold nothing yet, the teacher in bfloat16."""
    with torch.device("meta"):
        student = FluxViTForPreTraining._from_config(ours, attn_implementation="sdpa")
        return student, FluxViTModel._from_config(theirs, attn_implementation="sdpa").to(torch.bfloat16)


def computed(args: PretrainArguments, ours: FluxViTConfig, theirs: FluxViTConfig, *what) -> int:
    """Peak bytes of a step on fake tensors."""
    models = blank(ours, theirs)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveStorages() as live:
        take_steps(args, models, *what, "cpu")
    return live.peak


def measured(args: PretrainArguments, ours: FluxViTConfig, theirs: FluxViTConfig, *what) -> str:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        take_steps(args, blank(ours, theirs), *what, "cuda")
    except torch.cuda.OutOfMemoryError:
        return f"{'does not fit':>10}"
    return f"{torch.cuda.max_memory_allocated() / GIB:>10.1f}"


def forward_cost(config: FluxViTConfig, shape: ClipShape, budgets: Sequence[int]) -> int:
    """Multiply-adds of encoding a clip, embedded once, at budgets."""
    with torch.device("meta"):
        model = FluxViTForVideoClassification(config)
    patch = config.num_channels * config.tubelet_size * config.patch_size**2 * config.hidden_size
    dense = shape.num_tokens(config.patch_size, config.tubelet_size)
    whole = (model.flops(shape.num_frames, shape.size, budget) - min(budget, dense) * patch for budget in budgets)
    return dense * patch + sum(whole)


def multiply_adds(
    args: PretrainArguments, ours: FluxViTConfig, theirs: FluxViTConfig, shapes: Sequence[ClipShape]
) -> tuple[float, float]:
    """Of a clip, on average over the shapes: the teacher's, and the student's forward and backward."""
    tokens, budgets = args.teacher.teacher_tokens, args.distillation.student_budgets
    of_teacher = statistics.mean(forward_cost(theirs, shape, [tokens]) for shape in shapes)
    return of_teacher, 3 * statistics.mean(forward_cost(ours, shape, budgets) for shape in shapes)


def main() -> None:
    options, args = parse_arguments(), recipe()
    ours, theirs = configs(args, options.student, options.teacher)
    shapes = clip_shapes(args.sampling, ours)
    largest = max(shapes, key=lambda shape: shape.num_tokens())
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.device else 'computed only'}")
    print(f"{options.student} from {options.teacher}, {largest.num_frames}x{largest.size}, bfloat16; GiB")
    print(f"{'clips':>6} {'checkpointing':>13} {'computed':>9}" + (f" {'measured':>10}" if options.device else ""))
    for checkpointing in (False, True):
        for clips in options.clips:
            what = (args, ours, theirs, largest, clips, checkpointing)
            line = f"{clips:>6} {'yes' if checkpointing else 'no':>13} {computed(*what) / GIB:>9.1f}"
            print(line + (f" {measured(*what)}" if options.device else ""), flush=True)
    of_teacher, of_student = multiply_adds(args, ours, theirs, shapes)
    print(f"a clip: teacher {of_teacher / 1e9:.0f}, student {of_student / 1e9:.0f} GMACs, forward and backward")
    for tflops in options.tflops:
        rate = options.utilization * tflops * 1e12 / (2 * (of_teacher + of_student))
        print(f"{tflops:.0f} TFLOPS at {options.utilization:.0%}: {rate:.0f} clips/s a GPU, {8 * rate:.0f} on eight")


if __name__ == "__main__":
    main()
