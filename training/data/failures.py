# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips that could not be read: what is remembered of them, and when they are too many."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from flux_hf.token_selection import as_count


logger = logging.getLogger(__name__)

Failure = tuple[str, str]  # name of the clip, reason


class TooManyFailedClips(RuntimeError):
    """So many clips cannot be read that the data, or how they are reached, must be wrong."""


class FailureLog:
    """Remembers the clips that could not be read, and stops the run where they are too many.

    For the main process; `add` the failures of all processes. A clip counts once, however often it is reported.

    Args:
        max_failed_share: Of `num_clips`, the largest share that may fail; 0 for none at all.
        num_clips: Clips of the set.
    """

    def __init__(self, max_failed_share: float, num_clips: int):
        if not 0 <= max_failed_share <= 1:
            raise ValueError(f"max_failed_share must lie in [0, 1], got {max_failed_share}")
        self.max_failed_share = max_failed_share
        self.num_clips = as_count("num_clips", num_clips)
        self.failures: dict[str, str] = {}  # name: reason, in the order they were reported

    def add(self, failures: Iterable[Failure]) -> None:
        """Logs those that are new. Raises `TooManyFailedClips`, with the list of all, if they are too many."""
        for name, reason in failures:
            if name not in self.failures:
                self.failures[name] = reason
                logger.warning("clip %s is replaced by another: %s", name, reason)
        allowed = self.max_failed_share * self.num_clips
        if len(self.failures) > allowed + 1e-6:
            bad = "\n".join(f"  {name}: {reason}" for name, reason in self.failures.items())
            raise TooManyFailedClips(
                f"{len(self.failures)} of {self.num_clips} clips cannot be read, more than the share "
                f"{self.max_failed_share:g} that may fail:\n{bad}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"failures": dict(self.failures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.failures = dict(state["failures"])


def all_failed(failures: list[Failure]) -> TooManyFailedClips:
    """The error for one place of a batch that no clip could be read for."""
    bad = "\n".join(f"  {name}: {reason}" for name, reason in failures)
    return TooManyFailedClips(f"{len(failures)} clips in a row cannot be read:\n{bad}")
