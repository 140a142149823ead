# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""From flags and an objective to what the loop runs: optimiser, schedule, wrappers, state; and the output folder."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from flux_hf.checkpoint_files import SOURCE_FILES, remove, remove_leftovers, write_json
from flux_hf.protocol import VideoTokenClassifier

from ..arguments import OptimizationArguments, RunArguments
from .checkpoint import TrainingState
from .ema import ExponentialMovingAverage
from .loop import Run, Task
from .optim import cosine_schedule, count_parameters, parameter_groups, scaled_learning_rate


logger = get_logger(__name__)

# Flags of the optimisation that a resumed run may change; `total_steps` must not.
FREE_TO_CHANGE = ("allow_tf32", "num_train_epochs", "max_train_steps", "per_device_train_batch_size")
# A moving average that still holds more of the start than this is said to be too slow for the run.
MAX_EMA_OF_START = 0.1


def build_accelerator(optimization: OptimizationArguments, settings: RunArguments) -> Accelerator:
    """Raises ValueError for a tracker that is not installed, which Accelerate would leave out without a word."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    if settings.report_to not in (None, "none", "all", *installed):
        raise ValueError(
            f"--report_to must be 'all', 'none' or installed, of which are {installed}, got {settings.report_to!r}"
        )
    output_dir = settings.output_dir
    accelerator = Accelerator(
        gradient_accumulation_steps=optimization.gradient_accumulation_steps,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=f"{output_dir}/logs"),
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = optimization.allow_tf32
    return accelerator


# All that a run writes into its folder.
WRITTEN = (
    "checkpoint-* .*.tmp logs adapter training_log.jsonl training_arguments.json all_results.json best_checkpoint.json "
    "config.json model*.safetensors model.safetensors.index.json video_preprocessor_config.json"
)


def check_output_dir(settings: RunArguments, inputs: Sequence[str | None]) -> None:
    """Looks at the output folder before anything is done.

    Raises:
        ValueError: it holds something that would be lost: results of a run, or one of the command's own `inputs`.
    """
    output_dir = Path(settings.output_dir)
    if settings.resume_from_checkpoint or not output_dir.exists() or not any(output_dir.iterdir()):
        return
    if not settings.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {settings.output_dir!r} holds files: --resume_from_checkpoint latest goes on with them, "
            "--overwrite_output_dir deletes them"
        )
    read = [Path(path) for path in inputs if path and Path(path).exists()]
    inside = [path for path in read if output_dir.resolve() in (path.resolve() / "_").parents]
    if inside:
        raise ValueError(f"--overwrite_output_dir would delete what the run itself reads, {inside[0]}: move it first")


def prepare_output_dir(settings: RunArguments, flags: dict[str, Any], accelerator: Accelerator) -> None:
    """Makes the output folder, without what an earlier run wrote if that is to be overwritten, and writes the flags.

    Whatever else lies in it stays.
    """
    output_dir = Path(settings.output_dir)
    accelerator.wait_for_everyone()  # all have looked before one writes
    if accelerator.is_main_process:
        if settings.overwrite_output_dir and not settings.resume_from_checkpoint:
            for path in {path for name in (*WRITTEN.split(), *SOURCE_FILES) for path in output_dir.glob(name)}:
                remove(path)
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir)
        write_json(output_dir / "training_arguments.json", {**flags, "hub_token": None})
    accelerator.wait_for_everyone()


def learning_rates(optimization: OptimizationArguments, clips_a_step: int, num_sample: int) -> list[float]:
    """Peak, warm-up and minimal rate of a step of so many clips, each augmented `num_sample` times."""
    rates = [optimization.learning_rate, optimization.warmup_learning_rate, optimization.min_learning_rate]
    if not optimization.no_scale_lr:
        rates = [scaled_learning_rate(rate, clips_a_step, num_sample) for rate in rates]
    logger.info(f"peak learning rate {rates[0]:.3g} ({clips_a_step} clips x {num_sample} copies a step)")
    return rates


def build_run(
    task: Task,
    objective: nn.Module,
    accelerator: Accelerator,
    optimization: OptimizationArguments,
    settings: RunArguments,
    num_sample: int,
    fixed: dict[str, Any],
) -> Run:
    """Optimiser, schedule and state of a task, prepared for the processes there are.

    Args:
        task: What is trained.
        objective: A module around `model`, whose loss it computes.
        accelerator: Wraps objective and optimiser.
        optimization: How to train.
        settings: What happens between steps.
        num_sample: Copies of each clip in a batch, which count for the learning rate.
        fixed: As in `TrainingState`, beside what is known here.

    Raises:
        ValueError: an epoch with fewer batches than an optimiser step takes.
    """
    accumulation, num_batches = optimization.gradient_accumulation_steps, task.batches.num_batches
    steps_per_epoch = num_batches // accumulation
    if steps_per_epoch == 0:
        allowed = f"at most the {num_batches} batches a process of an epoch"
        raise ValueError(f"--gradient_accumulation_steps must be {allowed}, got {accumulation}")
    total_steps = optimization.max_train_steps or optimization.num_train_epochs * steps_per_epoch
    clips_a_step = optimization.per_device_train_batch_size * accelerator.num_processes * accumulation
    rates = learning_rates(optimization, clips_a_step, num_sample)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _tell_deepspeed(accelerator, optimization, num_sample)
    plain_optimizer = build_optimizer(objective.model, optimization, rates[0], wants_fused(accelerator))
    wrapped, optimizer = accelerator.prepare(objective, plain_optimizer)
    known = {
        "clips_a_step": clips_a_step,
        "num_sample": num_sample,
        "num_clips": task.batches.num_clips,
        "seed": settings.seed,
        "total_steps": total_steps,
    }
    objective = accelerator.unwrap_model(wrapped, keep_torch_compile=False)
    state = TrainingState(
        objective=objective,
        optimizer=plain_optimizer,
        scheduler=build_schedule(plain_optimizer, optimization, rates, steps_per_epoch, total_steps),
        ema=build_average(objective, optimization.ema_decay, total_steps),
        scaler=accelerator.scaler,
        engine=wrapped if accelerator.distributed_type == DistributedType.DEEPSPEED else None,
        fixed={**known, **unchangeable(optimization), **fixed},
    )
    trained = count_parameters(p for p in objective.parameters() if p.requires_grad)
    logger.info(f"{trained:,} of {count_parameters(objective.parameters()):,} parameters are trained")
    limit = optimization.max_grad_norm or math.inf
    return Run(
        task, accelerator, settings, wrapped, optimizer, state, steps_per_epoch, total_steps, accumulation, limit
    )


def unchangeable(optimization: OptimizationArguments) -> dict[str, Any]:
    """The flags that a resumed run must have as they were."""
    return {name: value for name, value in asdict(optimization).items() if name not in FREE_TO_CHANGE}


def build_average(objective: nn.Module, decay: float | None, total_steps: int) -> ExponentialMovingAverage | None:
    """The moving average, where one is kept; warns where it is too slow for the run."""
    if decay is None:
        return None
    if decay**total_steps > MAX_EMA_OF_START:
        share = f"{100 * decay**total_steps:.0f} %"
        logger.warning(f"--ema_decay {decay} keeps {share} of the start after {total_steps} steps: that is exported")
    return ExponentialMovingAverage(objective, decay)


def wants_fused(accelerator: Accelerator) -> bool:
    """Whether the optimiser is to be torch's fused one, which leaves out steps itself: on a GPU.

    Not where others leave them out: DeepSpeed, and float16's scaler, which does not say that a fused one did.
    """
    others = accelerator.distributed_type == DistributedType.DEEPSPEED or accelerator.scaler is not None
    return accelerator.device.type == "cuda" and not others


def build_optimizer(
    model: VideoTokenClassifier, optimization: OptimizationArguments, learning_rate: float, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW with layer-wise rates below `learning_rate`, in one kernel a group if `fused`."""
    return torch.optim.AdamW(
        parameter_groups(model, learning_rate, optimization.weight_decay, optimization.layer_decay),
        lr=learning_rate,
        betas=(optimization.adam_beta1, optimization.adam_beta2),
        eps=optimization.adam_epsilon,
        fused=fused or None,  # False would forbid torch's other fast way too
    )


def build_schedule(
    optimizer: torch.optim.Optimizer,
    optimization: OptimizationArguments,
    rates: Sequence[float],
    steps_per_epoch: int,
    total_steps: int,
) -> LambdaLR:
    """The cosine of `rates` (peak, warm-up, minimum) over all steps."""
    warmup = optimization.num_warmup_steps
    if warmup is None:
        epochs = optimization.num_warmup_epochs
        warmup = int(epochs * steps_per_epoch)
        if optimization.max_train_steps is not None:  # a shorter run warms up for the same part of it
            warmup = min(warmup, int(epochs / optimization.num_train_epochs * total_steps))
    return cosine_schedule(optimizer, rates[0], min(warmup, total_steps), total_steps, *rates[1:])


def _tell_deepspeed(accelerator: Accelerator, optimization: OptimizationArguments, num_sample: int) -> None:
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage == 3:
        raise ValueError("ZeRO stage 3 shards the weights, which checkpoints take whole: use ZeRO 1 or 2, or FSDP2")
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=optimization.per_device_train_batch_size * num_sample,
        gradient_accumulation_steps=optimization.gradient_accumulation_steps,
        gradient_clipping=optimization.max_grad_norm or 0.0,
    )
