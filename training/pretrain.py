# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Pretrains FluxViT without labels: Flux-UMT, a student that learns a frozen teacher's features at several budgets.

    accelerate launch -m training.pretrain --recipe training/recipes/pretrain.yaml --config_name config.json \\
        --teacher TEACHER --data clips.csv --output_dir out

`training.finetune --model_name_or_path out` goes on from the student. A run that was killed goes on with
`--resume_from_checkpoint latest`, as if nothing had happened. The teacher is in no checkpoint.
"""

from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger

from .batches import clip_shapes
from .engine.command import publish_results, start, start_trackers
from .engine.loop import Run, train
from .engine.prepare import build_accelerator, build_run
from .pretrain_arguments import PretrainArguments, parse_pretraining
from .pretraining import build_objective, build_student, build_task, load_teacher


logger = get_logger(__name__)


def prepare(args: PretrainArguments, accelerator: Accelerator) -> Run:
    """Teacher, student, data, task and optimiser, ready to train."""
    teacher, teacher_processor = load_teacher(args.teacher, args.distillation.aligned_layers)
    model, processor = build_student(args.model, teacher, args.distillation)
    objective = build_objective(args, model, teacher)
    task = build_task(args, model.config, processor, (teacher, teacher_processor), accelerator)
    logger.info(f"the student's layers {model.config.alignment_layers} learn from the teacher's {list(teacher.layers)}")
    shapes = [[shape.num_frames, shape.size] for shape in clip_shapes(args.sampling, model.config)]
    return build_run(
        task,
        objective,
        accelerator,
        args.optimization,
        args.run,
        num_sample=args.augmentation.num_sample,
        fixed={
            "teacher_layers": list(teacher.layers),
            "teacher_tokens": teacher.token_budget,
            "student_budgets": objective.budgets,
            "shapes": shapes,
            "cached_epochs": None if args.teacher.feature_cache is None else args.teacher.cached_epochs,
        },
    )


def inputs_of(args: PretrainArguments) -> list[str | None]:
    """The paths that the run reads."""
    data, model = args.data, args.model
    of_data = [data.data, data.validation_data, data.data_root, data.dataset_name, data.frame_cache]
    of_teacher = [args.teacher.teacher, args.teacher.feature_cache]
    return [*of_data, *of_teacher, model.model_name_or_path, model.config_name, args.recipe]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_pretraining(arguments)
    accelerator = build_accelerator(args.optimization, args.run)
    run = start(args.run, args.flat(), inputs_of(args), accelerator, lambda: prepare(args, accelerator))
    start_trackers(args.run, args.flat(), accelerator)
    budgets = args.distillation.student_budgets
    logger.info(f"{run.total_steps} steps, {run.steps_per_epoch} an epoch; student budgets {budgets}")
    train(run)
    results = publish_results(run, dict(run.task.failures.failures))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
