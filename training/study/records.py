# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What is kept of each run: a small file that says which test clips it got right, and all that the tables need.

A study is the folder of these. A run whose file is there is not done again, wherever it was done.
"""

import csv
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flux_hf.checkpoint_files import write_json, write_text


def pack(hits: Sequence[bool]) -> str:
    """Right or wrong of each clip, as hexadecimal digits of four clips each."""
    return np.packbits(np.asarray(hits, dtype=bool)).tobytes().hex()


def unpack(text: str, number: int) -> np.ndarray:
    """(number,) bool, of what `pack` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=number).astype(bool)


def read_hits(predictions: Path) -> dict[str, dict[str, bool]]:
    """Point -> clip's name -> whether its label was predicted, from an evaluation's predictions.csv.

    Raises:
        ValueError: a clip could not be read.
    """
    hits: dict[str, dict[str, bool]] = {}
    with open(predictions, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["error"]:
                raise ValueError(f"{row['name']} cannot be read: {row['error']}")
            hits.setdefault(row["point"], {})[row["name"]] = row["predicted"] == row["label"]
    return hits


def read_curve(log: Path, tokens: int) -> list[tuple[int, float]]:
    """(step, top-1 of the validation clips at `tokens`) of a training's log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[name]) for line in lines if (name := f"eval_top1_{tokens}") in line]


def machine(threads: int) -> dict[str, Any]:
    """What a figure may depend on besides the settings."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": threads,
    }


class Records:
    """The files of a study, `directory/set/method_seedN.json`, all of the same settings.

    Args:
        directory: Where they are, or will be.
        settings: What all of them share.

    Raises:
        ValueError: the folder holds runs of other settings.
    """

    def __init__(self, directory: str | os.PathLike, settings: dict[str, Any]):
        self.directory = Path(directory)
        file = self.directory / "settings.json"
        settings = json.loads(json.dumps(settings))
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            other = [name for name in settings if kept.get(name) != settings[name]]
            if other:
                raise ValueError(f"{self.directory} holds runs of a study with other {other}: give another folder")
        write_json(file, settings)

    def _file(self, name: str, method: str, seed: int) -> Path:
        return self.directory / name / f"{method}_seed{seed}.json"

    def get(self, name: str, method: str, seed: int) -> dict[str, Any] | None:
        """A run's record, None if it was not done."""
        file = self._file(name, method, seed)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def put(self, name: str, method: str, seed: int, record: dict[str, Any]) -> None:
        """Keeps a run's record: a line for each of its entries."""
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
        write_text(self._file(name, method, seed), "{\n" + ",\n".join(lines) + "\n}\n")

    def put_clips(self, name: str, groups: dict[str, str]) -> None:
        """Keeps a set's test clips (name -> group) in the order of the runs' hits.

        Raises:
            ValueError: other ones are kept.
        """
        file = self.directory / name / "clips.json"
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != groups:
            raise ValueError(f"{file} lists other clips than {len(groups)} of this study: give another folder")
        write_json(file, groups)

    def sets(self) -> list[str]:
        """The sets that are kept."""
        return sorted(path.parent.name for path in self.directory.glob("*/clips.json"))

    def has(self, name: str) -> bool:
        """Whether a set is kept."""
        return (self.directory / name / "clips.json").exists()

    def groups(self, name: str) -> list[str]:
        """The group of each test clip of a set."""
        return list(json.loads((self.directory / name / "clips.json").read_text(encoding="utf-8")).values())

    def seeds(self, name: str, method: str) -> list[int]:
        """The seeds that a method was run from."""
        files = (self.directory / name).glob(f"{method}_seed*.json")
        return sorted(int(file.stem.rsplit("_seed", 1)[1]) for file in files)
