# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The training loop: steps, what is skipped and why, and what happens between steps.

It knows no labels and no token budgets; a `Task` does. A batch is whatever the task's loader gives.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..arguments import RunArguments
from .checkpoint import TrainingState, find_checkpoint, load_checkpoint, mark_best, save_checkpoint
from .log import Meter, rewind_log, write_log
from .optim import PendingStep, leaves_out_steps, step_unless_infinite


logger = get_logger(__name__)

# A run whose gradients stay infinite for so many steps will not recover.
MAX_SKIPPED_IN_A_ROW = 20


class BatchOrder(Protocol):
    """What decides which batches a loader gives."""

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Chooses the epoch of the next iteration, which leaves out its first `skip_batches`."""


@dataclass
class Batches:
    """A process's training batches.

    Args:
        loader: Gives them, from where `order` was set.
        order: Of the loader.
        num_batches: Of a whole epoch.
        num_clips: Of an epoch, all processes together.
    """

    loader: DataLoader
    order: BatchOrder
    num_batches: int
    num_clips: int


class Task(Protocol):
    """What is trained. All of it is called on every process, but `export`, which only the first one calls.

    Its `metric` names the one of `evaluate`'s metrics by which a checkpoint is better than another, the higher.
    """

    batches: Batches
    metric: str

    def loss(self, wrapped: nn.Module, batch: Any, epoch: int, index: int) -> Tensor:
        """The scalar loss of the batch at `index` of `epoch`, through the objective as prepared."""

    def evaluate(self, wrapped: nn.Module) -> dict[str, float]:
        """Metrics of the held-out data; empty if there are none."""

    def export(self, directory: Path, weights: dict[str, Tensor]) -> None:
        """Writes what people load, from the objective's weights in full."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values of its own to resume with."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Run:
    """What the chapters of a training run share; only `state` and what is known of skipped steps change on the way."""

    task: Task
    accelerator: Accelerator
    settings: RunArguments
    wrapped: nn.Module  # the objective as prepared: what a training step calls
    optimizer: Any  # as prepared
    state: TrainingState
    steps_per_epoch: int
    total_steps: int
    accumulation: int = 1  # batches of an optimiser step
    max_grad_norm: float = math.inf
    skipped_in_a_row: int = 0
    pending: PendingStep | None = None  # given to the device, not yet counted

    @property
    def output_dir(self) -> Path:
        return Path(self.settings.output_dir)


def resume(run: Run) -> None:
    """Goes back to a checkpoint where asked for, and drops from the log what came after it."""
    path = find_checkpoint(run.output_dir, run.settings.resume_from_checkpoint)
    if path is not None:
        load_checkpoint(path, run.state)
        run.task.load_state_dict(run.state.extra)
        logger.info(f"resumed from {path}: {run.state.progress}")
    if run.accelerator.is_main_process:
        rewind_log(run.output_dir, run.state.progress.step)


def train(run: Run) -> None:
    """All steps that are left."""
    progress, batches = run.state.progress, run.task.batches
    bar = tqdm(
        total=run.total_steps,
        initial=progress.step,
        disable=not run.accelerator.is_local_main_process,
        unit="step",
        file=sys.stderr,
        mininterval=1.0,
    )
    meter = Meter(run.accelerator, run.output_dir)
    while progress.step < run.total_steps:
        batches.order.set_epoch(progress.epoch, skip_batches=progress.batch)
        for batch in meter.timed(batches.loader):
            progress.batch += 1
            meter.add(training_step(run, batch), _batch_size(batch))
            if not run.accelerator.sync_gradients:
                continue
            bar.update()
            end_of_epoch = progress.batch >= run.steps_per_epoch * run.accumulation
            if end_of_epoch:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            if progress.step % run.settings.logging_steps == 0 or progress.step == run.total_steps:
                bar.set_postfix(meter.report(progress.step, run.optimizer.param_groups[-1]["lr"]))
            between_steps(run, end_of_epoch)
            if end_of_epoch or progress.step == run.total_steps:
                break
    bar.close()


def _batch_size(batch: dict[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def training_step(run: Run, batch: Any) -> Tensor:
    """One batch forward and backward, and the optimiser's step when it ends an accumulation. Returns the loss."""
    progress, accelerator = run.state.progress, run.accelerator
    run.wrapped.train()
    with accelerator.accumulate(run.wrapped):
        loss = run.task.loss(run.wrapped, batch, progress.epoch, progress.batch)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            optimizer_step(run)
    return loss.detach()


def optimizer_step(run: Run) -> None:
    """Clips and steps; leaves out a step whose gradient is not finite (the same on every process), and counts it.

    To look whether it is finite, the host waits until the device has done all that it was given, which then waits for
    the host. An optimiser that looks itself (`leaves_out_steps`) is not waited for: what became of its step is settled
    when the next one is due, or before anything else asks.

    Raises:
        FloatingPointError: too many such steps in a row, or one that DeepSpeed has already applied.
    """
    settle(run)
    progress, accelerator = run.state.progress, run.accelerator
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), run.max_grad_norm)
    if run.state.engine is None and accelerator.scaler is None and leaves_out_steps(run.state.optimizer):
        run.pending = step_unless_infinite(run.state.optimizer, norm, progress.step)
    else:
        # DeepSpeed's norm is -1 where it is not finite; float16's scaler looks for itself
        finite = norm is None or accelerator.scaler is not None or 0 <= float(norm) < math.inf
        taken = run.state.engine is not None  # by DeepSpeed in the backward pass, unless it left the step out itself
        if finite or taken:
            run.optimizer.step()
            if taken and not finite and not run.optimizer.step_was_skipped:
                raise FloatingPointError(
                    f"step {progress.step}: DeepSpeed took it, its gradient is not finite: go back"
                )
            finite = not run.optimizer.step_was_skipped
        count_step(run, progress.step, finite)
    run.state.scheduler.step()
    run.optimizer.zero_grad()
    progress.step += 1


def settle(run: Run) -> None:
    """Counts the step that the device may still be at; waits for it. Raises FloatingPointError as `count_step`."""
    pending, run.pending = run.pending, None
    if pending is not None:
        count_step(run, pending.step, pending.was_finite())


def count_step(run: Run, step: int, finite: bool) -> None:
    """Counts a step that was left out, or takes one that was not into the average.

    Raises:
        FloatingPointError: too many were left out in a row.
    """
    if finite:
        run.skipped_in_a_row = 0
        if run.state.ema is not None:
            run.state.ema.update()
        return
    run.state.progress.skipped_steps += 1
    run.skipped_in_a_row += 1
    logger.warning(f"step {step}: the gradient is not finite, the step is left out")
    if run.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise FloatingPointError(f"no finite gradient in {MAX_SKIPPED_IN_A_ROW} successive steps")


def is_due(when: str, step: int, end_of_epoch: bool) -> bool:
    """Whether something is to happen after `step`: `when` is "epoch", "no" or a number of steps."""
    return end_of_epoch if when == "epoch" else when != "no" and step % int(when) == 0


def between_steps(run: Run, end_of_epoch: bool) -> None:
    """Evaluation and checkpoint, where they are due; evaluation first, so that a resumed run need not repeat it."""
    progress, settings = run.state.progress, run.settings
    last = progress.step == run.total_steps
    metrics: dict[str, float] = {}
    save = last or is_due(settings.checkpointing_steps, progress.step, end_of_epoch)
    look = last or is_due(settings.eval_steps, progress.step, end_of_epoch)
    if save or look:
        settle(run)
    if look:
        metrics = evaluate(run)
    best = metrics.get(run.task.metric)
    better = best is not None and (progress.best_metric is None or best > progress.best_metric)
    if not (save or better):
        return
    if better:
        progress.best_metric = best
    run.state.extra = run.task.state_dict()
    checkpoint = save_checkpoint(run.output_dir, run.state, run.task.export, settings.checkpoints_total_limit)
    if better and run.accelerator.is_main_process:
        mark_best(run.output_dir, checkpoint, metrics)


def evaluate(run: Run) -> dict[str, float]:
    """The task's metrics, of the averaged weights where an average is kept; logged."""
    run.wrapped.eval()
    if run.state.ema is None:
        metrics = run.task.evaluate(run.wrapped)
    else:
        with run.state.ema.in_place():
            metrics = run.task.evaluate(run.wrapped)
    if metrics:
        write_log(run.accelerator, run.output_dir, {"step": run.state.progress.step, **metrics})
        logger.info(f"step {run.state.progress.step}: {metrics}")
    return metrics
