# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The flags of `training.pretrain`: those of `arguments.py` that it shares, and its own."""

from dataclasses import dataclass

from .arguments import (
    AugmentationArguments,
    DataArguments,
    OptimizationArguments,
    RunArguments,
    SamplingArguments,
    TrainedModelArguments,
    TrainingCommandArguments,
    ViewArguments,
    check_run,
    check_start,
    flag,
    parse_training,
)


@dataclass
class TeacherArguments:
    teacher: str | None = flag(None, "checkpoint of the frozen teacher: a folder or a Hub id (required)")
    teacher_tokens: int = flag(2048, "tokens that the teacher's selector keeps")
    teacher_layers: list[int] | None = flag(
        None, "layers, from 0, to learn from; --aligned_layers of them, by --teacher_layer_interval, if not given"
    )
    teacher_layer_interval: float | None = flag(
        None, "between two of them, from the last one backwards; 3.34 of 40 layers as published, if not given"
    )
    teacher_dtype: str = flag("float32", "of its weights and products", ["float32", "bfloat16", "float16"])
    teacher_compile: bool = flag(False, "compile the teacher's layers")
    teacher_sharded: bool = flag(False, "share out the teacher's weights among the processes (FSDP2)")
    feature_cache: str | None = flag(None, "folder where the teacher's features are kept once computed")
    cached_epochs: int = flag(
        4, "with --feature_cache, these first epochs, their views and shapes, come again and again"
    )


@dataclass
class DistillationArguments:
    student_budgets: list[int] = flag([2048, 1536, 1024], "tokens of the student's forwards, out of the teacher's")
    aligned_layers: int = flag(6, "so many of the student's last layers learn from as many of the teacher's")
    budget_weights: list[float] | None = flag(None, "of the budgets' losses; equal ones that sum to 1 if not given")
    layer_weight: float = flag(1.0, "of the loss of the layers' features")
    pooled_weight: float = flag(1.0, "of the loss of the pooled feature")


@dataclass(frozen=True)
class PretrainArguments(TrainingCommandArguments):
    """Of `training.pretrain`."""

    model: TrainedModelArguments
    teacher: TeacherArguments
    distillation: DistillationArguments
    data: DataArguments
    sampling: SamplingArguments
    augmentation: AugmentationArguments
    optimization: OptimizationArguments
    views: ViewArguments
    run: RunArguments
    recipe: str | None = None


def parse_pretraining(arguments: list[str] | None = None) -> PretrainArguments:
    """The flags of `training.pretrain`, as `parse_training`."""
    args = parse_training(PretrainArguments, "Pretrains FluxViT on the features of a frozen teacher.", arguments)
    if args.teacher.teacher is None:
        raise ValueError("--teacher must be given")
    check_start(args.model)
    check_run(args)
    if args.sampling.class_balanced:
        raise ValueError("--class_balanced needs labels, and pretraining reads none")
    if args.teacher.feature_cache is not None and args.data.streaming:
        raise ValueError("--feature_cache needs a list of clips, and a stream has none: leave out --streaming")
    return args
