"""Data, flags and processes for tests of whole training runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import FIELDS

from training.study.motion_clips import MOTIONS, MotionClipConfig, write_motion_clips


REPOSITORY = Path(__file__).parents[2]
# No test may use more than one core a process: runs of 1, 2 and 3 processes are compared.
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
}


def write_data(folder: Path, num_train: int = 24, num_val: int = 6) -> Path:
    """Motion clips of 48 pixels and 8 frames, and the fields of a tiny model."""
    clips = MotionClipConfig(size=48, num_frames=8, motions=MOTIONS)
    write_motion_clips(folder, num_train, 0, "train", clips)
    write_motion_clips(folder, num_val, 0, "val", clips)
    (folder / "config.json").write_text(json.dumps({**FIELDS, "token_budgets": [16, 8, 4]}))
    return folder


def flags(folder: Path, output_dir: Path, **changes) -> list[str]:
    """Command line of a short run; a value of None leaves a flag out, True gives it alone."""
    values = {
        "data": folder / "train.csv",
        "validation_data": folder / "val.csv",
        "config_name": folder / "config.json",
        "output_dir": output_dir,
        "dataloader_num_workers": 0,
        "sampling": "custom",
        "frames": [4, 6],
        "sizes": [28, 42],
        "token_window": [16, 40],
        "augmentation": "light",
        "per_device_train_batch_size": 4,
        "max_train_steps": 6,
        "learning_rate": 1e-3,
        "no_scale_lr": True,
        "num_warmup_steps": 2,
        "logging_steps": 1,
        "checkpointing_steps": 3,
        "eval_steps": "no",
        **changes,
    }
    words: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return words


def command(arguments: list[str], processes: int = 1, module: str = "training.finetune") -> list[str]:
    """How a run is launched: `accelerate launch`, which for several CPU processes silently runs one, or torchrun."""
    if processes == 1:
        launch = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no"
        return [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", "-m", module, *arguments]
    launch = f"torch.distributed.run --standalone --nproc_per_node {processes} -m {module}"
    return [sys.executable, "-m", *launch.split(), *arguments]


def launch(
    arguments: list[str],
    processes: int = 1,
    module: str = "training.finetune",
    environment: dict[str, str] | None = None,
) -> str:
    """Runs to the end and returns what it logged; `environment` replaces variables."""
    run = subprocess.run(
        command(arguments, processes, module),
        cwd=REPOSITORY,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=500,
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-6000:])
    return run.stderr


def losses(output_dir: Path) -> list[float]:
    """The loss of each step of a run with --logging_steps 1."""
    lines = [json.loads(line) for line in (output_dir / "training_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of weights that are not equal bit by bit."""
    if one.keys() != other.keys():
        raise ValueError("the checkpoints have different weights")
    return [name for name in one if not torch.equal(one[name], other[name])]
