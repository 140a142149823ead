# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A folder for each visitor, of a name that cannot be guessed, gone when the visitor is."""

import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


UPLOAD_FOLDER = re.compile(r"[0-9a-f]{64}")  # Gradio puts an upload into a folder named by the content's SHA-256
SWEEP_SECONDS, EMPTY_SECONDS = 30.0, 60.0


@dataclass
class _Session:
    folder: Path
    used: float
    uploads: dict[Path, int] = field(default_factory=dict)  # with their inodes


class Sessions:
    """Folders below `root`, which is Gradio's upload folder: what lies there is served to whoever knows its path.

    Each session holds its clip and what was drawn of it. Its paths are told to its own visitor alone, and no other
    session's are taken from anyone. A session ends when its page is closed, or after `keep_seconds` without use.

    Args:
        root: The folder; files of others in it are left alone.
        keep_seconds: Without use, until a session is forgotten.
    """

    def __init__(self, root: str | os.PathLike, keep_seconds: float = 3600.0):
        self.root = Path(os.path.realpath(root))
        self.keep_seconds = keep_seconds
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()

    def start_sweeping(self) -> None:
        """Ends sessions that nobody uses, from now on, in a thread."""
        threading.Thread(target=self._sweep, name="flux-sessions", daemon=True).start()

    def _sweep(self) -> None:
        while not self._stopped.wait(min(SWEEP_SECONDS, self.keep_seconds)):
            self.close_idle()

    def new_file(self, key: str | None, name: str) -> Path:
        """The path for a new file of a session; earlier ones of the same name are deleted.

        Args:
            key: Gradio's hash of the session.
            name: Such as "clip.mp4": the part before the dot is what is replaced.
        """
        with self._lock:
            folder = self._session(key).folder
            for old in _named(folder, name):
                old.unlink(missing_ok=True)
            return _new_name(folder, name)

    def take(self, key: str | None, path: str | os.PathLike) -> Path:
        """The session's own file for a path that its visitor named: one given to it before, or a fresh upload.

        Raises:
            ValueError: it is neither, or is gone.
        """
        path = Path(os.path.realpath(path))
        with self._lock:
            session = self._session(key)
            if path.parent == session.folder and path.is_file():
                return path
            is_upload = path.parent.parent == self.root and UPLOAD_FOLDER.fullmatch(path.parent.name)
            if not is_upload or not path.is_file():
                raise ValueError(
                    f"the clip is not here any more (they are kept for {self.keep_words}): choose it again"
                )
            name = f"clip{path.suffix if path.suffix[1:].isalnum() else ''}"
            before, taken = _named(session.folder, name), _new_name(session.folder, name)
            os.link(path, taken)  # not moved: another visitor may be sending the same file
            for old in before:
                old.unlink(missing_ok=True)
            self._drop_uploads(session)
            session.uploads[path] = taken.stat().st_ino
            return taken

    @property
    def keep_words(self) -> str:
        return f"{self.keep_seconds / 60:.0f} minutes"

    def close(self, key: str | None) -> None:
        """Deletes what a session holds, its uploads included."""
        with self._lock:
            session = self._sessions.pop(key, None) if key else None
            if session is None:
                return
            shutil.rmtree(session.folder, ignore_errors=True)
            self._drop_uploads(session)

    def close_idle(self) -> None:
        """Closes the sessions that were not used for `keep_seconds`, and deletes empty folders of uploads."""
        last = time.monotonic() - self.keep_seconds
        with self._lock:
            for key in [key for key, session in self._sessions.items() if session.used < last]:
                self.close(key)
        for folder in self.root.iterdir():
            # one that is new may be about to be filled
            if UPLOAD_FOLDER.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > EMPTY_SECONDS:
                with suppress(OSError):
                    folder.rmdir()

    def stop(self) -> None:
        """Closes every session."""
        self._stopped.set()
        with self._lock:
            for key in list(self._sessions):
                self.close(key)

    def _drop_uploads(self, session: _Session) -> None:
        """Deletes the uploads of clips that the session holds no more."""
        for path, inode in session.uploads.items():
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            # A file with another link is the clip of one who sent the same; with another inode it was sent again.
            if found.st_ino == inode and found.st_nlink == 1:
                path.unlink(missing_ok=True)
        session.uploads.clear()

    def _session(self, key: str | None) -> _Session:
        if not key:
            raise ValueError("this needs a session: send a session_hash")
        session = self._sessions.get(key)
        if session is None:
            folder = self.root / f"session-{secrets.token_hex(16)}"
            folder.mkdir(mode=0o700, parents=True)
            session = self._sessions[key] = _Session(folder, 0.0)
        session.used = time.monotonic()
        return session


def _named(folder: Path, name: str) -> list[Path]:
    """The session's files of a name."""
    return list(folder.glob(f"{name.partition('.')[0]}-*"))


def _new_name(folder: Path, name: str) -> Path:
    stem, dot, suffix = name.partition(".")
    return folder / f"{stem}-{secrets.token_hex(4)}{dot}{suffix}"
