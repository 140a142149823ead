# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Hears what FFmpeg logs while it works in the calling thread: some damage it tells in no other way."""

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


_MARK = "flux_hf"


class _Ear:
    """PyAV's logging, switched on while anyone listens, and then back to what it was.

    FFmpeg has one log for the whole process. What other threads say meanwhile is kept from a program that had it off.
    It goes off when no decoder's threads are at work, for one of them may be about to log.
    """

    def __init__(self):
        self._forget()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._after_fork)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # collecting garbage may end a decoder anywhere
        self._listeners, self._workers, self._log, self._others = 0, 0, None, None

    def _after_fork(self) -> None:
        self._listeners = self._workers = 0  # of threads that there are not in the child
        self._rest()
        self._forget()

    def _rest(self) -> None:
        if self._log is not None and not self._listeners and not self._workers:
            self._log.set_level(self._level)
            self._log.set_skip_repeated(self._skips)
            if self._others is not None:
                self._others.__exit__(None, None, None)
            self._log = None

    def listen(self) -> int:
        """Returns the level of the caller's own log, -1 where it is off."""
        with self._lock:
            if self._log is None:
                log = self._log = importlib.import_module("av.logging")
                self._level, self._skips, self._others = log.get_level(), log.get_skip_repeated(), None
                log.set_skip_repeated(False)  # else the same words about the next file are not heard
                if self._level is None:
                    self._others = log.Capture(local=False)
                    self._others.__enter__()
                log.set_level(log.ERROR if self._level is None else max(self._level, log.ERROR))
            if self._others is not None:
                self._others.logs.clear()
            self._listeners += 1
            return -1 if self._level is None else self._level

    def unlisten(self) -> None:
        with self._lock:
            self._listeners -= 1
            self._rest()

    def work(self, workers: int) -> None:
        with self._lock:
            self._workers = max(0, self._workers + workers)  # a forked process may end what it did not begin
            self._rest()


_EAR = _Ear()


@contextmanager
def threads_at_work() -> Iterator[None]:
    """To be held around the life of a decoder with threads of its own."""
    _EAR.work(1)
    try:
        yield
    finally:
        _EAR.work(-1)


class Said:
    """What FFmpeg has logged in a thread so far: (level, name of the part, words)."""

    def __init__(self, heard: list[tuple[int, str, str]], error_level: int):
        self._heard, self._error_level, self._next, self._first = heard, error_level, 0, None

    def error(self, *parts: str) -> str | None:
        """The first error so far, of any part of FFmpeg or of these. Always ask for the same."""
        while self._first is None and self._next < len(self._heard):
            level, name, words = self._heard[self._next]
            self._next += 1
            if level <= self._error_level and (not parts or name in parts):
                self._first = words.strip()
        return self._first


@contextmanager
def errors_said() -> Iterator[Said]:
    """Hears the errors that FFmpeg logs in this thread while the block runs.

    What is heard goes on to the caller's own log at the end. Not for decoding in several threads: those log too, and
    wait for Python to do so. A log given back to FFmpeg by `av.logging.restore_default_callback` is PyAV's afterwards.
    """
    log, heard, earlier = importlib.import_module("av.logging"), [], []
    callers_level = _EAR.listen()
    try:
        with log.Capture() as heard:
            log.log(log.PANIC, _MARK, "")  # brings out what is left to say of before, a count of repetitions
            earlier = [entry for entry in heard if entry[1] != _MARK]
            heard.clear()
            yield Said(heard, log.ERROR)
    finally:
        _EAR.unlisten()
        for level, part, words in earlier + heard:
            if level <= callers_level:
                log.log(level, part, words)


__all__ = ["Said", "errors_said", "threads_at_work"]
