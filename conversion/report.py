# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What became of every key of a checkpoint, and what the commands share: reading text, printing reports."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


MAX_NAMES_SHOWN = 20


class ConversionError(ValueError):
    """The checkpoint cannot be converted; the message lists why."""


@dataclass
class KeyReport:
    """What became of every key of the checkpoint.

    converted: official name -> our name. dropped: official name -> reason. notes: what was assumed or sliced.
    """

    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as printed."""
        lines = [f"converted {len(self.converted)} keys, dropped {len(self.dropped)}"]
        return [*lines, *self._dropped_lines(), *self._note_lines()]

    def record(self) -> dict:
        """The report as saved."""
        return asdict(self)

    def _dropped_lines(self) -> list[str]:
        return [f"  dropped, {reason}: {shorten(names)}" for reason, names in by_value(self.dropped).items()]

    def _note_lines(self) -> list[str]:
        return [f"  note: {note}" for note in self.notes]


def by_value(values: dict[str, str]) -> dict[str, list[str]]:
    """Value -> the names that have it."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return names


def shorten(names: list[str]) -> str:
    """The first `MAX_NAMES_SHOWN` names in order, and how many more there are."""
    shown = ", ".join(sorted(names)[:MAX_NAMES_SHOWN])
    return shown if len(names) <= MAX_NAMES_SHOWN else f"{shown} and {len(names) - MAX_NAMES_SHOWN} more"


def read_text(path: str | os.PathLike) -> str:
    """A file of UTF-8. Raises ValueError, naming it, for anything else."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. Raises ValueError, naming it, where it is no such file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object. Raises ValueError, naming the file, where it holds something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


class Report(Protocol):
    """What a command has to tell."""

    def lines(self) -> list[str]: ...


def run_command(convert: Callable[[], Report], output: str, failed: str) -> int:
    """Prints what was done and where the result is, or why there is none. Returns the exit status."""
    try:
        report = convert()
    except (ValueError, OSError, ImportError) as error:
        print(f"{failed}: {error}", file=sys.stderr)
        return 1
    print("\n".join([*report.lines(), f"saved to {os.path.abspath(output)}"]))
    return 0
