# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The chapters of a command that trains, beside the training itself: how a run starts, and what it leaves."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from ..arguments import RunArguments
from .checkpoint import best_checkpoint, finish, list_checkpoints
from .log import read_log
from .loop import Run, resume
from .prepare import check_output_dir, prepare_output_dir


def start(
    settings: RunArguments,
    flags: dict[str, Any],
    inputs: Sequence[str | None],
    accelerator: Accelerator,
    prepare: Callable[[], Run],
) -> Run:
    """A run ready to train, from its checkpoint where one is asked for.

    Args:
        settings: Of the run.
        flags: All of the command's.
        inputs: The paths that the run reads.
        accelerator: Of the run.
        prepare: Builds the run; what is wrong with the flags it says before anything is written.
    """
    check_output_dir(settings, inputs)
    set_seed(settings.seed)  # the same new weights everywhere
    run = prepare()
    prepare_output_dir(settings, flags, accelerator)  # only now: nothing is lost to a mistake in the flags
    resume(run)
    if run.state.progress.step == 0:
        set_seed(settings.seed, device_specific=True)  # every process drops its own paths
    return run


def start_trackers(settings: RunArguments, flags: dict[str, Any], accelerator: Accelerator) -> None:
    """Tells the trackers, where there are some, what is run."""
    if accelerator.log_with:
        plain = {name: value for name, value in flags.items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers(settings.run_name, plain)


def publish_results(run: Run, failed_clips: dict[str, str]) -> dict[str, Any]:
    """Puts the last (or best) checkpoint's model into the output folder itself, with the results. Returns these."""
    progress = run.state.progress
    source = best_checkpoint(run.output_dir) if run.settings.load_best_model_at_end else None
    source = source or list_checkpoints(run.output_dir)[-1]
    evaluations = [line for line in read_log(run.output_dir) if run.task.metric in line]
    results = {
        "train_steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "failed_clips": failed_clips,
        "checkpoint": source.name,
        **next((line for line in reversed(evaluations) if f"checkpoint-{line['step']}" == source.name), {}),
    }
    if run.accelerator.is_main_process:
        finish(run.output_dir, source, results)
    run.accelerator.wait_for_everyone()
    return results
