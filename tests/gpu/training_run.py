# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""50 steps of FluxViT-S in bfloat16 by the real command, then the same run killed on its way, and resumed.

    PYTHONPATH=. python tests/gpu/training_run.py [--device cpu --tiny]

Motion clips, the paper's shapes, loader workers, augmentation and mixing on the device. Prints clips/s, how much of the
time the loop waited for the loader, and how long a start takes. On a CPU the resumed run's losses and weights are the
unbroken one's, bit by bit. A GPU adds in an order of its own: there the losses after the kill may differ from the
unbroken run's by `MAX_NOISE` of what successive steps' differ by, which other batches would exceed at once.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from parts import TINY, budgets, parse, tell
from safetensors.torch import load_file

from training.study.motion_clips import MotionClipConfig, write_motion_clips


REPOSITORY = Path(__file__).parents[2]
MAX_NOISE = 0.3
WARM = 10  # steps that are not counted: kernels are chosen, workers start


def write_data(folder: Path, tiny: bool, rows: int) -> None:
    """A few clips, each many times in the list: an epoch is as long as the run; and the model's fields."""
    shape = {"size": 64, "num_frames": 8} if tiny else {"size": 160, "num_frames": 24}
    clips = write_motion_clips(folder, 8 if tiny else 48, 0, "train", MotionClipConfig(**shape))
    with open(folder / "train.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *(clips[row % len(clips)] for row in range(rows))])
    fields = {**(TINY if tiny else {}), "layer_scale_init_value": 0.1, "token_budgets": budgets(tiny)}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def command(folder: Path, output_dir: Path, device: str, tiny: bool, steps: int) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if device == "cuda":
        launch += ["--config_file", "training/accelerate_configs/single_gpu.yaml"]
    else:
        launch += ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "bf16"]
        launch += ["--dynamo_backend", "no"]
    shapes = "--sampling custom --frames 4 6 --sizes 56 70 --token_window 32 150" if tiny else "--sampling paper"
    flags = f"--data {folder / 'train.csv'} --config_name {folder / 'config.json'} --output_dir {output_dir} {shapes}"
    flags += f" --max_train_steps {steps} --checkpointing_steps {steps // 2} --eval_steps no --logging_steps 1"
    flags += f" --per_device_train_batch_size {4 if tiny else 16} --dataloader_num_workers {1 if tiny else 12}"
    flags += " --augmentation released --augment_on_device --mixup 0.8 --cutmix 1.0 --drop_path_rate 0.1"
    flags += " --no_scale_lr --learning_rate 1e-4 --num_warmup_steps 5 --resume_from_checkpoint latest"
    return [*launch, "-m", "training.finetune", *flags.split()]


def log_of(output_dir: Path) -> list[dict]:
    """The lines of the steps so far; one that is being written is left out."""
    file = output_dir / "training_log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line for line in map(json.loads, (line for line in lines if line.endswith("}"))) if "loss" in line]


def run(words: list[str], said: Path, kill_after: tuple[Path, int] | None = None) -> float:
    """Seconds of a run; with a folder and a step it is killed, with all that it started, once it has logged that step.

    Raises:
        RuntimeError: it failed, or was done before it could be killed.
    """
    begin = time.perf_counter()
    with open(said, "w", encoding="utf-8") as file:
        process = subprocess.Popen(words, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            if kill_after is not None and any(line["step"] >= kill_after[1] for line in log_of(kill_after[0])):
                return time.perf_counter() - begin
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            launcher = psutil.Process(process.pid)
            for one in (*launcher.children(recursive=True), launcher):
                with suppress(psutil.NoSuchProcess):  # loader workers follow the process that they work for
                    one.kill()
        process.wait()
    if process.returncode or kill_after is not None:
        tail = said.read_text(encoding="utf-8", errors="replace")[-6000:]
        raise RuntimeError(f"exit status {process.returncode}, killed in vain: {kill_after is not None}\n{tail}")
    return time.perf_counter() - begin


def speed(log: list[dict], batch: int, checkpoint: int, seconds: float) -> dict[str, float]:
    """Clips/s, and the share of the time spent waiting for the loader, of the steps that count: not the first ones, nor
    the one after a checkpoint; and the seconds that no step took."""
    took = {line["step"]: batch / line["clips_per_second"] for line in log}
    counted = [line for line in log if line["step"] > min(WARM, len(log) // 4) and line["step"] != checkpoint + 1]
    inside = sum(took[line["step"]] for line in counted)
    return {
        "clips_per_second": batch * len(counted) / inside,
        "waiting_for_data": sum(line["waiting_for_data"] * took[line["step"]] for line in counted) / inside,
        "start_and_end_seconds": seconds - sum(took.values()),
    }


def compare(whole: list[float], resumed: list[float], cut: int) -> dict[str, float]:
    """Mean differences of losses: of the two runs before the kill and after it, and of successive steps."""
    apart = [abs(one - other) for one, other in zip(whole, resumed, strict=True)]
    return {
        "before": statistics.mean(apart[:cut]),
        "after": statistics.mean(apart[cut:]),
        "first after": apart[cut],
        "successive": statistics.mean(abs(one - other) for one, other in zip(whole, whole[1:], strict=False)),
    }


def main() -> int:
    options = parse(__doc__)
    tiny, steps = options.tiny, 12 if options.tiny else 50
    batch = 4 if tiny else 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, tiny, rows=batch * (steps + 4))

        def words(output: str) -> list[str]:
            return command(folder, folder / output, options.device, tiny, steps)

        took = run(words("whole"), folder / "whole.txt")
        run(words("cut"), folder / "killed.txt", kill_after=(folder / "cut", steps // 2 + 1))
        killed_at = log_of(folder / "cut")[-1]["step"]
        run(words("cut"), folder / "resumed.txt")
        logs = {output: log_of(folder / output) for output in ("whole", "cut")}
        one, other = (load_file(folder / output / "model.safetensors") for output in ("whole", "cut"))
    whole, resumed = ([line["loss"] for line in logs[output]] for output in ("whole", "cut"))
    found = {
        **speed(logs["whole"], batch, steps // 2, took),
        **compare(whole, resumed, steps // 2),
        "killed at": killed_at,
    }
    found["equal weights"] = sum(torch.equal(one[key], other[key]) for key in one) / len(one)
    found["losses"] = {"whole": whole, "cut": resumed}
    exact = whole == resumed and found["equal weights"] == 1.0
    good = exact if options.device == "cpu" else found["after"] <= MAX_NOISE * found["successive"]
    line = (
        f"{found['clips_per_second']:.1f} clips/s, {found['waiting_for_data']:.0%} waiting for the loader; killed at "
        f"step {killed_at} and resumed: losses differ by {found['after']:.1e} after, {found['before']:.1e} before, "
        f"successive steps' by {found['successive']:.1e}; {found['equal weights']:.0%} of the weights equal"
    )
    tell(found, line if good else f"FAILED: {line}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
