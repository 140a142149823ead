# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint folder holds beside its weights, and how files are written: whole, or not at all.

Everything that writes a file goes through `replacing`: a temporary name beside the target, then a rename.
"""

import csv
import ctypes
import glob
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Where transformers finds each class when a checkpoint is loaded with `trust_remote_code=True`.
AUTO_MAP = {
    "AutoConfig": "configuration_fluxvit.FluxViTConfig",
    "AutoModel": "modeling_fluxvit.FluxViTModel",
    "AutoModelForPreTraining": "modeling_fluxvit_pretraining.FluxViTForPreTraining",
    "AutoModelForVideoClassification": "modeling_fluxvit.FluxViTForVideoClassification",
    "AutoVideoProcessor": "video_processing_fluxvit.FluxViTVideoProcessor",
}
FLUX_AUTO_MAP = {
    "AutoConfig": "configuration_flux.FluxConfig",
    "AutoModel": "modeling_flux.FluxModel",
    "AutoModelForVideoClassification": "modeling_flux.FluxForVideoClassification",
    "AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"],
}
# The source files that load a checkpoint without flux_hf installed. Written as imports, because transformers' loader of
# remote code looks for such lines in a file's text and brings along what they name: whichever class is loaded first,
# all files come, and the checkpoint can be saved again. As a text, so that nothing is imported here.
_COMPANIONS = """
from .budget_models import *
from .checkpoint_files import *
from .configuration_flux import *
from .configuration_fluxvit import *
from .ffmpeg_log import *
from .flux_backbones import *
from .flux_videomae import *
from .flux_vivit import *
from .flux_vjepa2 import *
from .modeling_flux import *
from .modeling_fluxvit import *
from .modeling_fluxvit_pretraining import *
from .patch_grids import *
from .token_selection import *
from .video_decoding import *
from .video_frames import *
from .video_inputs import *
from .video_processing_fluxvit import *
from .video_streams import *
from .video_transforms import *
"""
SOURCE_FILES = [f"{name}.py" for name in re.findall(r"from \.(\w+) import", _COMPANIONS)]


DESCRIBING = ("config.json", "metrics.json")  # without which a folder is not taken for what it is
WHOLE = ".whole"  # ending of a hidden folder whose files are being moved to where they belong
# What a describing file says meanwhile; no json, so that whoever reads it fails. Without the file a model would be
# built with default settings.
HALF_WAY = "Some files of this folder are old and some new: a process was killed here. Run the same command again.\n"
BYTES = "surrogateescape"  # how Python itself reads names of files that are not UTF-8


# Writing -------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, to write a file or make a folder at; renamed to `path` when the block ends.

    A block that raises leaves `path` as it was and nothing behind; one that is killed leaves a hidden name ending in
    `.tmp`, which `remove_leftovers` deletes. A folder takes the place of a missing or empty one only: `publish`.

    Args:
        path: The target. Its folder is made where missing.
        durable: Whether the disk must hold the content before the name changes.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        if durable:
            flush_tree(temporary)
        os.replace(temporary, target)
        if durable:
            _flush(target.parent)
    except BaseException:
        remove(temporary)
        raise


def write_text(path: str | os.PathLike, text: str, durable: bool = False) -> None:
    """Replaces a text file, in UTF-8."""
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replaces a json file."""
    write_text(path, json.dumps(value, indent=2) + "\n", durable=True)


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Replaces a csv file, in UTF-8; names of files that are not text stay the bytes they are."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors=BYTES) as file:
        csv.writer(file).writerows([header, *rows])


def plain_text(name: str) -> str:
    """A file's name for formats of text alone: bytes that are no UTF-8 as `\\xNN`."""
    return name.encode("utf-8", BYTES).decode("utf-8", "backslashreplace")


def publish(staging: Path, target: Path) -> None:
    """Moves a finished folder to `target`, and removes it.

    A target that is missing or empty is replaced in one go. Into one that holds something the files go one by one, as
    in `replacing_folder`; a folder among them takes the place of the one of its name.
    """
    flush_tree(staging)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        if target.exists():
            target.rmdir()
        os.replace(staging, target)
    else:
        _move_into(staging, target)
        remove(staging)
    _flush(target.parent)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A copy of a folder's files, empty where there is none, some of which the block replaces (`replacing`); it takes
    the folder's place in one go when the block ends, so that nobody sees old and new files beside each other.

    Files are linked, not copied: to write into one would write into the old folder too. What a killed process left
    behind is removed first. A folder that holds others, or in which this process works, stays, and gets its files one
    by one; so does any where two names cannot be exchanged (other systems, network disks). What describes it comes last
    and cannot be read until then (`HALF_WAY`); `finish_replacing` ends what a killed process had begun.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    finish_replacing(target)
    remove_leftovers_of(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    held = list(target.iterdir()) if target.exists() else []
    lives = any(map(Path.is_dir, held)) or target in (Path.cwd(), *Path.cwd().parents)
    try:
        temporary.mkdir()
        if target.exists():
            shutil.copymode(target, temporary)
        for file in held:
            if file.is_file():
                _link(file, temporary / file.name)
        yield temporary
        flush_tree(temporary)
        if not target.exists():
            os.replace(temporary, target)
        elif not lives and _exchange(temporary, target):
            for file in temporary.iterdir():
                if not (target / file.name).exists():  # it came while the block ran
                    os.replace(file, target / file.name)
        else:
            whole = temporary.with_suffix(WHOLE)
            os.replace(temporary, whole)
            _move_into(whole, target)
            remove(whole)
        _flush(target.parent)
    finally:
        remove(temporary)


def finish_replacing(path: str | os.PathLike) -> None:
    """Ends what a process killed while it moved a folder's files one by one had begun. For one process, before it reads
    or writes there.
    """
    target = Path(os.path.realpath(path))
    for whole in marked(target, ".", WHOLE):
        if any(_is_half_way(target / name) for name in DESCRIBING):
            _move_into(whole, target)
        remove(whole)


def _move_into(source: Path, target: Path) -> None:
    """Moves what `source` holds, but for files that `target` shares with it, what describes them last; until then that
    cannot be read, so that new files are never taken for a part of what the old ones are.
    """
    paths = [path for path in source.iterdir() if not _is_same(path, target / path.name)]
    paths.sort(key=lambda path: (path.name in DESCRIBING, path.name))
    for path in paths:
        if path.name in DESCRIBING and not _is_half_way(target / path.name):
            write_text(target / path.name, HALF_WAY)
    for path in paths:
        old = target / path.name
        if old.is_dir():  # its name is gone before it is: no half of it ever bears it
            os.replace(old, doomed := target / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
            remove(doomed)
        os.replace(path, old)


def _is_half_way(path: Path) -> bool:
    return path.is_file() and path.read_bytes() == HALF_WAY.encode()


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _exchange(one: Path, other: Path) -> bool:
    """Gives each the other's name in one go. Returns whether the system, and the file system, can."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return exchange is not None and exchange(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed process left half-written. For one process, before it writes."""
    for path in folder.glob(".*.tmp"):
        remove(path)


def remove_leftovers_of(path: Path) -> None:
    """Deletes what killed processes left of this file or folder. For one process, before it writes."""
    for leftover in marked(path, ".", ".tmp"):
        remove(leftover)


def marked(path: Path, before: str, after: str) -> list[Path]:
    """What is named `path` beside it, with 12 hexadecimal digits more: not what is of `NAME.more`."""
    name = re.compile(re.escape(f"{before}{path.name}.") + "[0-9a-f]{12}" + re.escape(after))
    return [
        other for other in path.parent.glob(f"{before}{glob.escape(path.name)}.*{after}") if name.fullmatch(other.name)
    ]


def flush_tree(path: Path) -> None:
    """Asks the disk to hold a file, or a folder with all in it, before anything that follows."""
    for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _flush(entry)


def _flush(path: Path) -> None:
    """Windows flushes only what is open for writing, and opens no folders."""
    for access in (os.O_RDONLY,) if path.is_dir() else (os.O_RDWR, os.O_RDONLY):
        try:
            descriptor = os.open(path, access)
        except PermissionError:
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return


# Source files --------------------------------------------------------------------------------------------------------


def save_source_files(save_directory: str | os.PathLike) -> None:
    """Copies the `SOURCE_FILES` into a checkpoint folder, made where missing."""
    for name in SOURCE_FILES:
        source, target = Path(__file__).with_name(name), Path(save_directory) / name
        if target.exists() and source.samefile(target):
            continue
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def without_source_files(timestamps: dict[str, float]) -> dict[str, float]:
    """The times of a folder's files without its source files, so that a push counts these as new and uploads them."""
    return {name: time for name, time in timestamps.items() if not name.endswith(".py")}
