# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What became of every key of a checkpoint, as printed and as saved beside the result."""

from dataclasses import asdict, dataclass, field


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
