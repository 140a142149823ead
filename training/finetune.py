# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes FluxViT so that one checkpoint classifies videos at every token budget.

    accelerate launch -m training.finetune --recipe training/recipes/k400.yaml --model_name_or_path CHECKPOINT \
        --data train.csv --validation_data val.csv --output_dir out

Processes, device, precision and sharding are `accelerate launch`'s to choose (`training/accelerate_configs/`). A run
that was killed goes on with `--resume_from_checkpoint latest`, as if nothing had happened.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger

from conversion.hub import Target, explained, open_hub
from conversion.model_card import CardFacts
from conversion.push_to_hub import push

from .arguments import FinetuneArguments, parse_arguments
from .batches import clip_shapes
from .classification import build_task, class_weights, read_data
from .data.targets import ClassTargets
from .engine.command import publish_results, start, start_trackers
from .engine.loop import Run, train
from .engine.prepare import build_accelerator, build_run
from .model import build_model, build_objective


logger = get_logger(__name__)


def prepare(args: FinetuneArguments, accelerator: Accelerator) -> Run:
    """Data, model, task and optimiser, ready to train."""
    data = read_data(args.data, args.views.max_eval_samples)
    model, processor, label2id = build_model(args.model, args.objective, data.labels, args.data.multi_label)
    config, targets = model.config, ClassTargets(label2id, args.data.multi_label)
    task = build_task(args, data, targets, config, processor, accelerator)
    shapes = [[shape.num_frames, shape.size] for shape in clip_shapes(args.sampling, config)]
    return build_run(
        task,
        build_objective(model, args.model, args.objective, class_weights(args.objective, data.training, targets)),
        accelerator,
        args.optimization,
        args.run,
        num_sample=args.augmentation.num_sample,
        fixed={"token_budgets": list(config.token_budgets), "shapes": shapes},
    )


def inputs_of(args: FinetuneArguments) -> list[str | None]:
    """The paths that the run reads."""
    data, model = args.data, args.model
    of_data = [data.data, data.validation_data, data.data_root, data.dataset_name, data.frame_cache]
    return [*of_data, model.model_name_or_path, model.config_name, args.recipe]


def hub_target(args: FinetuneArguments) -> Target:
    """Where `--push_to_hub` sends the model."""
    name = args.hub.hub_model_id or Path(args.run.output_dir).absolute().name
    return Target(name, private=args.hub.hub_private_repo, commit_message="Model fine-tuned with flux-hf")


def push_model(args: FinetuneArguments, target: Target) -> None:
    """Verifies the final model and puts it on the Hub in one commit, with code and card."""
    start = args.model.model_name_or_path
    base_model = start if start and "/" in start and not Path(start).exists() else None
    facts = CardFacts(target.repo_id, args.hub.hub_license, base_model=base_model)
    with explained(target.repo_id):
        push(Path(args.run.output_dir), target, facts, token=args.hub.hub_token)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_arguments(arguments)
    accelerator = build_accelerator(args.optimization, args.run)
    run = start(args.run, args.flat(), inputs_of(args), accelerator, lambda: prepare(args, accelerator))
    target = hub_target(args) if args.hub.push_to_hub and accelerator.is_main_process else None
    if target is not None:
        with explained(target.repo_id):  # a token that may not write is an error now, not after the last step
            open_hub(target, args.hub.hub_token)
    start_trackers(args.run, {**args.flat(), "hub_token": None}, accelerator)
    budgets = args.objective.token_budgets or run.task.config.token_budgets
    logger.info(f"{run.total_steps} steps, {run.steps_per_epoch} an epoch; budgets {budgets}")
    train(run)
    results = publish_results(run, dict(run.task.failures.failures))
    if target is not None:
        push_model(args, target)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
