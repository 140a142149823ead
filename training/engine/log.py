# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a run says of itself as it goes on: a line of json at a time, in a file and to the trackers."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flux_hf.checkpoint_files import write_text


LOG_FILE = "training_log.jsonl"


def write_log(accelerator: Accelerator, output_dir: Path, line: dict[str, Any]) -> None:
    """Adds a line, with its `step`, to the run's log and trackers."""
    if accelerator.is_main_process:
        with open(output_dir / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])


def read_log(output_dir: Path, up_to_step: float = math.inf) -> list[dict[str, Any]]:
    """The log's lines up to a step; a last line that a kill cut off is left out."""
    file = output_dir / LOG_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [entry for entry in entries if entry["step"] <= up_to_step]


def rewind_log(output_dir: Path, step: int) -> None:
    """Drops the lines after a step."""
    write_text(output_dir / LOG_FILE, "".join(json.dumps(line) + "\n" for line in read_log(output_dir, step)))


class Meter:
    """Loss, speed, and the share of time that the loader was waited for, since the last report."""

    def __init__(self, accelerator: Accelerator, output_dir: Path):
        self.accelerator, self.output_dir = accelerator, output_dir
        self._reset()

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.samples, self.waited, self.start = 0, 0.0, time.perf_counter()

    def timed(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; counts how long each is waited for."""
        start = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def add(self, loss: Tensor, samples: int) -> None:
        self.losses.append(loss)
        self.samples += samples

    def report(self, step: int, learning_rate: float) -> dict[str, str]:
        """Logs the mean loss and the speed over all processes, and returns them for a progress bar (collective)."""
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        taken = time.perf_counter() - self.start
        speed = self.samples * self.accelerator.num_processes / taken
        line = {"loss": loss, "learning_rate": learning_rate, "clips_per_second": round(speed, 2)}
        line["waiting_for_data"] = round(self.waited / taken, 3)
        write_log(self.accelerator, self.output_dir, {"step": step, **line})
        self._reset()
        return {"loss": f"{loss:.4f}", "lr": f"{learning_rate:.2e}", "clips_per_second": f"{speed:.1f}"}
