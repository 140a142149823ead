# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A long list of clips in a few arrays, and what labels a list has."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flux_hf.checkpoint_files import BYTES

from .reader import FRAME_TEMPLATE, PICTURE_SUFFIXES, Clip, FrameFolder, Label, Picture, VideoFile


@dataclass(frozen=True, eq=False)
class ClipTable(Sequence[Clip]):
    """Videos and pictures, or folders of frames, that a list names. A `Clip` is made when it is asked for.

    A list of objects takes several times the memory, and again as much in each loader worker: to look at an object is
    to write its count of references, and so to copy the page of memory that it lies in.

    Made by `TableBuilder`. A slice is a table that shares the arrays.
    """

    folder: str  # absolute; what relative paths are relative to
    template: str  # of pictures in folders of frames
    text: bytes  # the paths as listed, one after the other
    ends: np.ndarray  # (rows + 1,): path r is text[ends[r] : ends[r + 1]]
    labels: tuple[Label, ...]  # each once
    codes: np.ndarray  # (rows,): positions in `labels`
    num_frames: np.ndarray  # (rows,) of folders of frames; of videos (0,)
    repeats: np.ndarray  # (rows,): how often the path was listed before; (0,) where none was
    spans: np.ndarray  # (rows, 2): seconds of start and end, NaN where not given; (0, 2) where none is
    rows: np.ndarray  # (clips,): those taken

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> "Clip | ClipTable":
        if isinstance(index, slice):
            return self.select(index)
        row = self.rows[index]
        path, label = self._path(row), self.labels[self.codes[row]]
        name = f"{path}#{self.repeats[row] + 1}" if len(self.repeats) and self.repeats[row] else path
        file = path if "://" in path else os.path.normpath(os.path.join(self.folder, path))
        if len(self.num_frames) == 0:
            if is_picture_file(path):
                return Picture(name, label, file)
            return VideoFile(name, label, file, **self._span(row))
        return FrameFolder(name, label, file, int(self.num_frames[row]), self.template)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def select(self, positions: np.ndarray | slice) -> "ClipTable":
        """The clips at these positions, in this order."""
        return replace(self, rows=self.rows[positions])

    def _span(self, row: int) -> dict[str, float]:
        if not len(self.spans):
            return {}
        values = zip(("start", "end"), self.spans[row].tolist(), strict=True)
        return {name: value for name, value in values if value == value}

    def _path(self, row: int) -> str:
        return self.text[self.ends[row] : self.ends[row + 1]].decode("utf-8", BYTES)


def is_picture_file(path: str) -> bool:
    """By the end of its name; what a URL ends in says nothing."""
    return "://" not in path and os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES


def are_pictures(clips: Sequence[Clip]) -> np.ndarray:
    """(clips,) bool."""
    if not isinstance(clips, ClipTable):
        return np.array([clip.is_picture for clip in clips], dtype=bool)
    if len(clips.num_frames):
        return np.zeros(len(clips), dtype=bool)
    return np.array([is_picture_file(clips._path(row)) for row in clips.rows], dtype=bool)


class TableBuilder:
    """Collects the rows of a `ClipTable`.

    Args:
        folder: What relative paths are relative to.
        template: Names of the pictures in folders of frames.
    """

    def __init__(self, folder: str | os.PathLike, template: str = FRAME_TEMPLATE):
        self.folder, self.template = os.path.abspath(folder), template
        self.text, self.ends, self.hashes = bytearray(), array("q", [0]), array("q")
        self.labels: dict[Label, int] = {}
        self.codes, self.num_frames, self.spans = array("i"), array("q"), array("d")

    def add(
        self,
        path: str,
        label: Label,
        num_frames: int | None = None,
        span: tuple[float | None, float | None] | None = None,
    ) -> None:
        """Adds a video, or with `num_frames` a folder of frames, or with `span` a part of a video, in seconds: all of
        one kind.
        """
        self.text += path.encode("utf-8", BYTES)
        self.ends.append(len(self.text))
        self.hashes.append(hash(path))
        self.codes.append(self.labels.setdefault(label, len(self.labels)))
        if num_frames is not None:
            self.num_frames.append(num_frames)
        if span is not None:
            self.spans.extend(math.nan if second is None else second for second in span)

    def build(self) -> ClipTable:
        """The table; further rows go into another one."""
        rows = len(self.codes)
        table = ClipTable(
            self.folder,
            self.template,
            bytes(self.text),
            np.array(self.ends),
            tuple(self.labels),
            np.array(self.codes),
            np.array(self.num_frames),
            np.empty(0, dtype=np.int32),
            np.array(self.spans).reshape(-1, 2),
            np.arange(rows, dtype=np.int32),
        )
        # Paths of one hash are few, or they are equal: only these need be compared.
        hashes = np.array(self.hashes)
        order = np.argsort(hashes)
        same = np.diff(hashes[order]) == 0
        likely = np.sort(order[np.append(same, False) | np.append(False, same)])
        return replace(table, repeats=_count_repeats(table, likely)) if len(likely) else table


def _count_repeats(table: ClipTable, rows: Iterable[int]) -> np.ndarray:
    """How often the path of each row was listed before, where only `rows` can have been."""
    repeats, seen = np.zeros(len(table), dtype=np.int32), Counter()
    for row in rows:
        path = table._path(row)
        repeats[row] = seen[path]
        seen[path] += 1
    return repeats


def distinct_labels(clips: Sequence[Clip]) -> tuple[list[Label], np.ndarray, np.ndarray]:
    """The labels that occur, in the order of their first clips; which of them each clip has (clips,); these first
    clips (labels,).
    """
    if isinstance(clips, ClipTable):
        labels, codes = clips.labels, clips.codes[clips.rows]
    else:
        known: dict[Label, int] = {}
        codes = np.array([known.setdefault(clip.label, len(known)) for clip in clips], dtype=np.int64)
        labels = tuple(known)
    present, firsts, codes = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    return [labels[code] for code in present[order]], np.argsort(order)[codes], firsts[order]
