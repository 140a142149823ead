# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that a kill at any instant cannot spoil, and that a run resumes from bit by bit.

`output_dir/checkpoint-STEP/` holds `training_state.pt` (everything resuming needs) and, beside it, the model and the
processor as `save_pretrained` writes them. A checkpoint is written under a temporary name, flushed to disk and
renamed, so one that bears its name is whole. One process writes; on several machines `output_dir` must be shared.
The same code serves plain, DDP and FSDP2 (DTensor) modules: states are gathered in full, and dealt out when loading.
"""

import json
import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler

from flux_hf.checkpoint_files import publish, remove, write_json

from .ema import ExponentialMovingAverage, full_precision


logger = get_logger(__name__)

STATE_FILE = "training_state.pt"
BEST_FILE = "best_checkpoint.json"
ENGINE_FOLDER = "deepspeed"
ENGINE_FILES = (ENGINE_FOLDER, "latest", "zero_to_*.py")  # what DeepSpeed leaves in a checkpoint
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Progress:
    """Where a run stands, between two optimiser steps."""

    epoch: int = 0
    batch: int = 0  # batches taken of this epoch
    step: int = 0  # optimiser steps taken
    skipped_steps: int = 0  # of these, left out because a gradient was not finite
    best_metric: float | None = None


@dataclass
class TrainingState:
    """All that changes while a run goes on.

    Args:
        objective: Unwrapped: no DDP around it.
        optimizer: Unwrapped: no AcceleratedOptimizer.
        scaler: Of float16's losses, where there is one.
        engine: DeepSpeed's, where it trains: it saves and loads optimiser and weights in files of its own.
        fixed: What must not differ when resuming, for the run to be the same: batch sizes, seed, data. Plain values.
        extra: Further plain values to carry along, such as the clips that failed.
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    ema: ExponentialMovingAverage | None = None
    progress: Progress = field(default_factory=Progress)
    scaler: torch.amp.GradScaler | None = None
    engine: Any = None
    fixed: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _gathered(value: Any) -> list[Any]:
    """Each process's value, in order of rank, on all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def full_tensor(tensor: Tensor) -> Tensor:
    """A CPU copy of a tensor, put together from its shards where it has some (collective)."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone()


def random_state() -> dict[str, Any]:
    """State of this process's global generators, as tensors, numbers and tuples only."""
    name, keys, *rest = np.random.get_state()
    numpy_state = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def collect(state: TrainingState) -> dict[str, Any]:
    """The whole state, on the CPU; parameters and optimiser in full on rank 0, empty elsewhere (collective)."""
    if state.engine is None:
        weights = get_model_state_dict(state.objective, options=_FULL)
        optimizer = get_optimizer_state_dict(state.objective, state.optimizer, options=_FULL)
    else:
        weights, optimizer = state.objective.state_dict(keep_vars=True), None
        weights = {n: full_precision(w) if isinstance(w, nn.Parameter) else w for n, w in weights.items()}
        weights = {n: full_tensor(w).float() for n, w in weights.items()}
    return {
        "objective": weights,
        "optimizer": optimizer,
        "scheduler": {key: value for key, value in state.scheduler.state_dict().items() if key != "lr_lambdas"},
        "ema": None if state.ema is None else {n: full_tensor(a) for n, a in state.ema.averages.items()},
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "random": _gathered(random_state()),
        "progress": asdict(state.progress),
        "fixed": state.fixed,
        "extra": state.extra,
    }


def restore(state: TrainingState, saved: dict[str, Any]) -> None:
    """Puts what `collect` gave back into place, sharded as `state` is (collective).

    Raises:
        ValueError: the run differs from the saved one in something that must not change.
    """
    differing = [key for key in {*state.fixed, *saved["fixed"]} if state.fixed.get(key) != saved["fixed"].get(key)]
    if differing:
        was, now = ({key: source.get(key) for key in sorted(differing)} for source in (saved["fixed"], state.fixed))
        raise ValueError(f"the checkpoint was written by another run: it had {was}, this one has {now}")
    if (state.ema is None) != (saved["ema"] is None):
        raise ValueError("a moving average must be kept in both the checkpoint and this run, or in neither")
    if state.engine is None:
        set_model_state_dict(state.objective, saved["objective"], options=_FULL)
        set_optimizer_state_dict(state.objective, state.optimizer, saved["optimizer"], options=_FULL)
    state.scheduler.load_state_dict({**state.scheduler.state_dict(), **saved["scheduler"]})
    if state.ema is not None:
        for name, average in state.ema.averages.items():
            value = saved["ema"][name].to(average.device)
            if isinstance(average, DTensor):
                value = distribute_tensor(value, average.device_mesh, average.placements)
            average.copy_(value)
    if state.scaler is not None and saved.get("scaler"):
        state.scaler.load_state_dict(saved["scaler"])
    state.progress = Progress(**saved["progress"])
    state.extra = saved["extra"]
    if len(saved["random"]) > _rank():
        set_random_state(saved["random"][_rank()])
    else:
        logger.warning("the checkpoint has no random state of this process: dropout differs", main_process_only=False)


# Files ---------------------------------------------------------------------------------------------------------------


def _step_of(checkpoint: Path) -> int:
    """-1 for a folder of another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, by rising step."""
    found = (path for path in output_dir.glob("checkpoint-*") if _step_of(path) >= 0 and (path / STATE_FILE).is_file())
    return sorted(found, key=_step_of)


def find_checkpoint(output_dir: Path, wanted: str | None) -> Path | None:
    """What `--resume_from_checkpoint` means: None nothing, "latest" the last whole one if there is one, or a path.

    Raises:
        ValueError: the path is no checkpoint.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    if not (Path(wanted) / STATE_FILE).is_file():
        raise ValueError(f"resume_from_checkpoint must be 'latest' or a folder with {STATE_FILE}, got {wanted!r}")
    return Path(wanted)


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint; its name is gone first, so that no half of one ever bears it."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    os.replace(checkpoint, doomed)
    remove(doomed)


def save_checkpoint(
    output_dir: Path, state: TrainingState, export: Callable[[Path, dict[str, Tensor]], None], keep: int | None = None
) -> Path:
    """Writes `checkpoint-STEP`, then deletes the oldest so that `keep` remain, the best one always (collective).

    Args:
        output_dir: Folder of the run.
        state: What to save.
        export: Writes the model, given a folder and the objective's weights, averaged ones where an average is kept;
            called on rank 0.
        keep: How many to keep, the new one included; None keeps all.

    Returns:
        The new checkpoint's folder.
    """
    target = output_dir / f"checkpoint-{state.progress.step}"
    staging = output_dir / f".{target.name}.tmp"  # one name, for DeepSpeed's processes all write there
    collected = collect(state)
    if _rank() == 0:
        remove(staging)
        staging.mkdir(parents=True)
    if state.engine is not None:
        _barrier()
        state.engine.save_checkpoint(str(staging), tag=ENGINE_FOLDER)
        _barrier()
    if _rank() == 0:
        torch.save(collected, staging / STATE_FILE)
        export(staging, {**collected["objective"], **(collected["ema"] or {})})
        if target.exists():  # of a run that went back further than this
            _remove(target)
        publish(staging, target)
        _remove_oldest(output_dir, target, keep)
    # Exporting makes a model, which draws its first weights; a resumed run will not have drawn them.
    set_random_state(collected["random"][_rank()])
    _barrier()
    return target


def _remove_oldest(output_dir: Path, newest: Path, keep: int | None) -> None:
    """Deletes checkpoints so that `keep` remain, never the newest and the best."""
    if keep is not None:
        best = best_checkpoint(output_dir)
        old = [path for path in list_checkpoints(output_dir) if path not in (best, newest)]
        for path in old[: max(len(old) + 1 - keep, 0)]:
            _remove(path)


def load_checkpoint(path: Path, state: TrainingState) -> None:
    """Restores `state` from a checkpoint's folder (collective).

    Raises:
        ValueError: the checkpoint is damaged; or as `restore`.
    """
    try:
        saved = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        older = [other for other in list_checkpoints(path.parent) if _step_of(other) < _step_of(path)]
        advice = f"; the one before it: --resume_from_checkpoint {older[-1]}" if older else ""
        raise ValueError(f"the checkpoint {path} is damaged ({str(error).splitlines()[0]}){advice}") from error
    restore(state, saved)
    if state.engine is not None:
        state.engine.load_checkpoint(str(path), tag=ENGINE_FOLDER)


def best_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint `mark_best` named last, if it still exists."""
    file = output_dir / BEST_FILE
    if not file.is_file():
        return None
    path = output_dir / json.loads(file.read_text(encoding="utf-8"))["checkpoint"]
    return path if (path / STATE_FILE).is_file() else None


def mark_best(output_dir: Path, checkpoint: Path, metrics: dict[str, Any]) -> None:
    """Names a checkpoint the best so far, in one file that is replaced in one go."""
    write_json(output_dir / BEST_FILE, {"checkpoint": checkpoint.name, "metrics": metrics})


def finish(output_dir: Path, source: Path, results: dict[str, Any]) -> None:
    """Puts a checkpoint's model into the output folder itself, with `all_results.json`. For one process."""
    staging = output_dir / ".final.tmp"
    remove(staging)
    shutil.copytree(source, staging, ignore=shutil.ignore_patterns(STATE_FILE, *ENGINE_FILES))
    write_json(staging / "all_results.json", results)
    publish(staging, output_dir)
