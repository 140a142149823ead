# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips for training and evaluation: where they come from, how they are read, what happens to damaged ones.

Five chapters: the clips, the sources that list them, which frames of a clip are taken, the data sets that training
reads (by index, or streamed), and the cache of decoded frames. Whatever is random is a function of the seed, the epoch
and the clip, so it depends neither on the number of workers and processes nor on the order they work in.
"""

import csv
import hashlib
import itertools
import json
import logging
import os
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import fsspec
import numpy as np
import PIL.Image
import torch
import torchvision.transforms.v2.functional as tvF
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from flux_hf.token_selection import as_count
from flux_hf.video_processing_fluxvit import VideoDecodeError, decode_video, sample_frame_indices

from .sampling import ClipRequest, ClipShape


logger = logging.getLogger(__name__)

Label = str | tuple[str, ...] | None
FrameSampler = Callable[[int], np.ndarray]
Augment = Callable[[Tensor, int, torch.Generator], Tensor]
Failure = tuple[str, str]  # name of the clip, reason

FRAME_TEMPLATE = "img_{:05}.jpg"
READ_ERRORS = (VideoDecodeError, OSError)  # what `Clip.read` raises for a clip that cannot be read
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
SAMPLING_RULES = ("kinetics", "ssv2", "center")
MAX_TRIES = 20  # clips tried for one place of a batch; nearly all of a set must be bad for so many to fail
CHUNK_FRAMES = 256  # read at once where a whole clip is wanted: a minute of 1080p would take 11 GB

# The fifth and last word of a seed, so that draws for different ends differ, from those of the sampler too. None is 0:
# numpy pads seeds with zeros, and a shorter seed would equal a longer one.
_FOR_FRAMES, _FOR_AUGMENT, _FOR_REPLACEMENT, _FOR_STREAM = 2, 3, 4, 5


# ---------------------------------------------------------------------------------------------------------------------
# Clips
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled clip that can be read.

    Args:
        name: What logs and prediction files call it; unique in its set.
        label: The class; several of a multi-label set as a tuple; None where it is unknown.
    """

    name: str
    label: Label

    @property
    def sampling_rule(self) -> str:
        """Of `pick_frames`: how training takes frames from such clips."""
        return "kinetics"

    def read(self, sampler: FrameSampler) -> Tensor:
        """Reads the frames that `sampler(total_frames)` asks for, in any order, repeated at will.

        A video whose index promises more frames than there are calls it again with their true number.

        Returns:
            (N, 3, H, W) uint8 in the order asked for; the channels may be the innermost in memory.

        Raises:
            VideoDecodeError: damaged, or no video.
            OSError: not there, or not to be opened.
        """
        raise NotImplementedError

    def identity(self) -> list:
        """What tells this clip's content from another's, for names of cached files. Raises OSError if it is gone."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class VideoFile(Clip):
    """A video file or URL. `verify` and `num_threads`: as in `flux_hf.video_processing_fluxvit.decode_video`."""

    path: str
    verify: bool = True
    num_threads: int = 0

    def read(self, sampler: FrameSampler) -> Tensor:
        return _decode(self.path, sampler, self.verify, self.num_threads)

    def identity(self) -> list:
        return _file_identity(self.path)


@dataclass(frozen=True, slots=True)
class FrameFolder(Clip):
    """A folder of pictures `template.format(1)` to `template.format(num_frames)`, all of one size."""

    path: str
    num_frames: int
    template: str = FRAME_TEMPLATE

    @property
    def sampling_rule(self) -> str:
        return "ssv2"

    def read(self, sampler: FrameSampler) -> Tensor:
        if self.num_frames < 1:
            raise VideoDecodeError(self.path, f"its number of frames is {self.num_frames}")
        wanted, positions = np.unique(_chosen(self.path, sampler, self.num_frames), return_inverse=True)
        frames = [_read_picture(self._file(index)) for index in wanted]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise VideoDecodeError(self.path, f"its pictures have several sizes: {sorted(sizes)}")
        return torch.from_numpy(np.stack(frames)[positions]).permute(0, 3, 1, 2)

    def identity(self) -> list:
        # A folder's own time changes with every picture added, removed or replaced by renaming.
        ends = (self._file(index) for index in {0, max(self.num_frames, 1) - 1})
        return [self.template, self.num_frames, *map(_file_identity, (self.path, *ends))]

    def _file(self, index: int) -> str:
        return os.path.join(self.path, self.template.format(index + 1))


@dataclass(frozen=True, slots=True)
class DatasetRow(Clip):
    """A row of a `datasets.Dataset` whose `column` is a `Video(decode=False)`; `path` is the one it holds, if any."""

    dataset: datasets.Dataset = field(repr=False, compare=False)
    row: int
    column: str
    path: str | None = None
    verify: bool = True
    num_threads: int = 0

    def read(self, sampler: FrameSampler) -> Tensor:
        return _decode_value(self.dataset[self.row][self.column], sampler, self.verify, self.num_threads)

    def identity(self) -> list:
        file = _file_identity(self.path) if self.path is not None and os.path.isfile(self.path) else None
        return [self.dataset._fingerprint, self.row, self.column, file]


def _decode(source: str | bytes, sampler: FrameSampler, verify: bool, num_threads: int) -> Tensor:
    frames, _ = decode_video(source, lambda metadata: sampler(metadata.total_num_frames), num_threads, verify)
    return frames.permute(0, 3, 1, 2)


def _decode_value(
    video: Mapping[str, Any] | bytes | str | None, sampler: FrameSampler, verify: bool, num_threads: int = 0
) -> Tensor:
    """Decodes a value of a `Video(decode=False)` column: content, a path, or a URL of any kind that fsspec knows."""
    if not isinstance(video, Mapping):
        video = {"bytes": video} if isinstance(video, bytes) else {"path": video}
    content, path = video.get("bytes"), video.get("path")
    if content is None and path is None:
        raise VideoDecodeError("<row>", "it holds no video")
    if content is None and "://" in path and not path.startswith(("http://", "https://")):
        content = _fetch(path)
    if content is None:
        return _decode(path, sampler, verify, num_threads)
    try:
        return _decode(content, sampler, verify, num_threads)
    except VideoDecodeError as error:
        raise VideoDecodeError(path or error.source, error.reason) from error


def _fetch(url: str) -> bytes:
    """The content of hf://..., zip://...::hf://... and the like."""
    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except OSError:
        raise
    except Exception as error:  # each of fsspec's file systems has exceptions of its own
        raise VideoDecodeError(url, f"it cannot be fetched ({error})") from error


def _chosen(name: str, sampler: FrameSampler, total_frames: int) -> np.ndarray:
    chosen = np.asarray(sampler(total_frames))
    if chosen.ndim != 1 or chosen.size == 0 or chosen.min() < 0 or chosen.max() >= total_frames:
        raise ValueError(f"frame indices of {name} must be a flat list within [0, {total_frames}), got {chosen}")
    return chosen


def _read_picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    with open(path, "rb") as file:
        try:
            return np.asarray(PIL.Image.open(file).convert("RGB"))
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise VideoDecodeError(path, str(error)) from error


def _file_identity(path: str) -> list:
    if "://" in path and not os.path.exists(path):
        return [path]
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def describe_failure(error: Exception) -> str:
    """A reason that names the file, for one of `READ_ERRORS`."""
    return str(error) if isinstance(error, VideoDecodeError) else f"{type(error).__name__}: {error}"


def iter_frames(clip: Clip, max_frames: int | None = None, chunk_frames: int = CHUNK_FRAMES) -> Iterator[Tensor]:
    """All frames of a clip, or at most `max_frames` spread evenly from its first to its last.

    Yields:
        (n, 3, H, W) uint8, n up to `chunk_frames`, in order.

    Raises:
        As `Clip.read`.
    """
    total = None
    for start in itertools.count(0, chunk_frames):

        def sampler(available: int, start: int = start) -> np.ndarray:
            nonlocal total
            total = available if max_frames is None else min(available, max_frames)
            spread = np.arange(available) if total == available else np.linspace(0, available - 1, total)
            # The last one stands in where a second look at the file finds fewer frames than the parts before took.
            return np.round(spread).astype(np.int64)[min(start, total - 1) : start + chunk_frames]

        frames = clip.read(sampler)
        if start < total:
            yield frames
        if start + chunk_frames >= total:
            return


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


def read_clips(
    source: str | os.PathLike | datasets.Dataset,
    root: str | os.PathLike | None = None,
    split: str | None = None,
    *,
    dataset_config: str | None = None,
    hub: bool = False,
    frame_template: str = FRAME_TEMPLATE,
    video_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
    multi_label: bool = True,
    verify: bool = True,
) -> list[Clip]:
    """Lists the clips of a set. Nothing is decoded, and no file but the list is opened.

    Args:
        source: One of
            - a .csv, .txt or .tsv file, comma, tab or space separated, rows `path label` of videos or `name
              total_frames label` of folders of frames. With a header, columns may stand in any order beside others.
              In a space separated file the path comes first, and may itself hold spaces, labels may not. Several
              labels of a clip are joined by `|`;
            - a folder with one sub-folder of videos a class; also one level below, in a folder named as `split`;
            - a `datasets.Dataset`, a folder one was saved to, or what `datasets.load_dataset` takes: a folder of
              parquet files or of videos with metadata, or the name of a set on the Hub.
        root: What relative paths of a file are relative to; the file's folder if not given.
        split: Which rows (column `split` of a file with a header), sub-folder or split to take; all if not given.
        dataset_config: Configuration of a set that `load_dataset` loads.
        hub: Whether `source` is such a set whatever files and folders there are.
        frame_template: Names of a folder's frames, which are numbered from 1.
        video_column: Column of a `datasets` set; its only `Video` column if not given.
        label_column: Column of the labels; `label`, in a `datasets` set else `labels`, if not given.
        labelled: Whether a clip without a label is an error.
        multi_label: Whether `|` in a file separates labels; it belongs to the label if not.
        verify: Whether damage is looked for where it would not show by itself; costs half a second decode.

    Raises:
        FileNotFoundError: no such source, or none of its files where `root` says.
        ValueError: a malformed source; the message tells where.
    """
    if isinstance(source, datasets.Dataset):
        return _dataset_clips(source, "the data set", video_column, label_column, labelled, verify)
    path = Path(source)
    if path.is_file() and not hub:
        clips = _table_clips(path, root, split, frame_template, label_column or "label", labelled, verify)
        if multi_label:
            clips = [replace(clip, label=_split_label(path, clip)) for clip in clips]
        _check_root(path, clips)
        return clips
    kind = _kind_of_folder(path, split) if path.is_dir() and not hub else "datasets"
    if kind == "classes":
        if split is not None and not (path / split).is_dir():
            raise ValueError(f"{path} has no sub-folder {split!r} for that split")
        return _folder_clips(path / split if split else path, verify)
    dataset = _load(source, kind, dataset_config, split, streaming=False)
    return _dataset_clips(dataset, str(source), video_column, label_column, labelled, verify)


def label_names(clips: Iterable[Clip]) -> list[str]:
    """Every label that occurs, sorted; by value where all of them are integers.

    Raises:
        ValueError: no clip has a label.
    """
    names = {name for clip in clips for name in _labels_of(clip.label)}
    if not names:
        raise ValueError("none of the clips has a label")
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _labels_of(label: Label) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else () if label is None else (label,)


def _unique(names: Iterable[str]) -> list[str]:
    """Appends #2, #3, ... to a name that has occurred before."""
    seen, out = Counter(), []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out


# --- Files with one row a clip ---------------------------------------------------------------------------------------

_NAME_COLUMNS = {"path", "name"}
_HEADERLESS = {1: ["path"], 2: ["path", "label"], 3: ["name", "total_frames", "label"]}


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names, and (line number, cells) of each row."""
    if path.suffix.lower() not in (".csv", ".txt", ".tsv"):
        raise ValueError(f"a file of clips must end in .csv, .txt or .tsv, got {str(path)!r}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), None)
        if first is None:
            raise ValueError(f"{path} is empty")
        delimiter = next((mark for mark in ",\t" if mark in first), None)
        columns = _num_columns(first.split())
        file.seek(0)
        if delimiter is None:  # from the right, for only the path may hold spaces
            lines = enumerate(file, start=1)
            rows = [(number, line.strip().rsplit(None, columns - 1)) for number, line in lines if line.strip()]
        else:
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    head = [cell.lower() for cell in rows[0][1]]
    if _NAME_COLUMNS & set(head):
        header, rows = rows[0][1], rows[1:]
    elif "label" in head:
        raise ValueError(f"{path} must have a column path (or name), got {rows[0][1]}")
    elif len(head) in _HEADERLESS:
        header = _HEADERLESS[len(head)]
    else:
        raise ValueError(f"{path} has {len(head)} columns and no header that says what they are")
    for number, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"{path} line {number} must have {len(header)} columns {header}, got {cells}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return header, rows


def _num_columns(words: list[str]) -> int:
    """Of a space separated file, told by its first line; only the path may hold spaces."""
    if _NAME_COLUMNS & {word.lower() for word in words}:
        return len(words)
    return 3 if len(words) > 2 and words[-2].isdecimal() else min(len(words), 2)


def _table_clips(
    path: Path,
    root: str | os.PathLike | None,
    split: str | None,
    frame_template: str,
    label_column: str,
    labelled: bool,
    verify: bool,
) -> list[Clip]:
    header, rows = _read_rows(path)
    name_column = next(name for name in header if name.lower() in _NAME_COLUMNS)
    needed = [label_column] * labelled + ["split"] * (split is not None)
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(f"{path} must have the columns {[name_column, *needed]}, got {header}")
    places = [(f"{path} line {number}", dict(zip(header, cells, strict=True))) for number, cells in rows]
    if split is not None:
        splits = sorted({row["split"] for _, row in places})
        places = [(place, row) for place, row in places if row["split"] == split]
        if not places:
            raise ValueError(f"{path} has no row of the split {split!r}, only of {splits}")
    folder, clips = Path(root if root is not None else path.parent), []
    names = _unique(row[name_column] for _, row in places)
    for (place, row), name in zip(places, names, strict=True):
        if not row[name_column]:
            raise ValueError(f"{place} has an empty {name_column}")
        label = row.get(label_column) or None
        if label is None and labelled:
            raise ValueError(f"{place} has an empty {label_column}")
        file = row[name_column] if "://" in row[name_column] else os.path.abspath(folder / row[name_column])
        if "total_frames" not in header:
            clips.append(VideoFile(name, label, file, verify))
        elif row["total_frames"].isdecimal():
            clips.append(FrameFolder(name, label, file, int(row["total_frames"]), frame_template))
        else:
            raise ValueError(f"total_frames must be a number of frames, got {row['total_frames']!r} in {place}")
    return clips


def _split_label(path: Path, clip: Clip) -> Label:
    if clip.label is None or "|" not in clip.label:
        return clip.label
    labels = tuple(label.strip() for label in clip.label.split("|"))
    if not all(labels):
        raise ValueError(f"{path} has an empty label for {clip.name}: {clip.label!r}")
    return labels


def _check_root(path: Path, clips: Sequence[VideoFile | FrameFolder]) -> None:
    """A wrong root would fail at every clip, one by one. A few of them tell."""
    some = clips[:: max(1, len(clips) // 16)]
    if not any("://" in clip.path or os.path.exists(clip.path) for clip in some):
        raise FileNotFoundError(
            f"none of {len(some)} clips of {path} is where root says, for one {some[0].path}; is the root right?"
        )


# --- Folders ---------------------------------------------------------------------------------------------------------


def _kind_of_folder(path: Path, split: str | None) -> str:
    """`saved` by `datasets`, `datasets` for what `load_dataset` makes a set of, or `classes`."""
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "saved"
    if split and (path / split).is_dir():
        path = path / split
    names = [entry.name for entry in path.iterdir()]
    tables = {"metadata.csv", "metadata.jsonl", "metadata.parquet"} & set(names)
    if tables or any(name.endswith((".parquet", ".arrow", ".tar")) for name in names):
        return "datasets"
    if (path / "data").is_dir() and any((path / "data").glob("*.parquet")):
        return "datasets"
    folders = {name for name in names if (path / name).is_dir() and not name.startswith(".")}
    if split is None and folders and folders <= {"train", "val", "valid", "validation", "test"}:
        raise ValueError(f"{path} has the splits {sorted(folders)}: choose one")
    return "classes"


def _folder_clips(folder: Path, verify: bool) -> list[Clip]:
    files = sorted(
        file
        for file in folder.glob("*/**/*")
        if file.suffix.lower() in VIDEO_SUFFIXES and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    if not files:
        endings = " ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(f"{folder} must hold one sub-folder of videos ({endings}) a class; there is no such file")
    names = [file.relative_to(folder) for file in files]
    return [
        VideoFile(name.as_posix(), name.parts[0], os.path.abspath(file), verify)
        for name, file in zip(names, files, strict=True)
    ]


# --- datasets --------------------------------------------------------------------------------------------------------


def _load(source: str | os.PathLike, kind: str, config: str | None, split: str | None, streaming: bool):
    """A `datasets.Dataset`, or an `IterableDataset` where `streaming`, of one split."""
    if kind == "saved":
        loaded = datasets.load_from_disk(os.fspath(source))
    else:
        name = os.fspath(source)
        try:
            loaded = datasets.load_dataset(name, config, split=split, streaming=streaming)
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"{name!r} is neither a file nor a folder, nor a data set that can be loaded: {error}"
            ) from error
    if isinstance(loaded, dict):
        if split is None and len(loaded) > 1:
            raise ValueError(f"{source} has the splits {sorted(loaded)}: choose one")
        if split is not None and split not in loaded:
            raise ValueError(f"{source} has the splits {sorted(loaded)}, got {split!r}")
        loaded = next(iter(loaded.values())) if split is None else loaded[split]
    elif kind == "saved" and split is not None and str(loaded.split) != split:
        raise ValueError(f"{source} is the split {str(loaded.split)!r}, got {split!r}")
    return loaded


def _columns(features, place: str, video_column: str | None, label_column: str | None, labelled: bool):
    """(video column, label column or None) of a `datasets` set."""
    if features is None:
        raise ValueError(f"the columns of {place} are not known; declare them with `dataset.cast(features)`")
    if video_column is None:
        videos = [name for name, feature in features.items() if isinstance(feature, datasets.Video)]
        if len(videos) != 1:
            raise ValueError(f"{place} must have one Video column, or one must be chosen; it has {dict(features)}")
        video_column = videos[0]
    if label_column is None:
        label_column = next((name for name in ("label", "labels") if name in features), None)
        if label_column is None and labelled:
            raise ValueError(f"{place} must have a column label, or one must be chosen; it has {list(features)}")
    for name in (video_column, label_column):
        if name is not None and name not in features:
            raise ValueError(f"{place} has no column {name!r}, only {list(features)}")
    return video_column, label_column


def _label_names_of(feature) -> list[str] | None:
    """The classes that a column declares."""
    feature = getattr(feature, "feature", feature)  # of the list's elements
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _as_label(value: Any, names: Sequence[str] | None, place: str) -> Label:
    """A class name, an index of `names`, an integer that is itself the name, or a list of these. -1 means unknown."""
    if value is None or (names is not None and value == -1):
        return None
    if isinstance(value, (list, tuple)):
        labels = tuple(_as_label(one, names, place) for one in value)
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(f"a list of labels of {place} must hold names or indices of classes, got {value!r}")
        return labels
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if names is None else names[value]
    if not isinstance(value, str):
        raise ValueError(f"a label of {place} must be a name or an integer, or a list of these, got {value!r}")
    return value


def _dataset_clips(
    dataset: datasets.Dataset,
    place: str,
    video_column: str | None,
    label_column: str | None,
    labelled: bool,
    verify: bool,
) -> list[Clip]:
    video, label = _columns(dataset.features, place, video_column, label_column, labelled)
    dataset = dataset.with_format(None)
    videos = dataset.select_columns([video]).cast_column(video, datasets.Video(decode=False))
    if len(dataset) == 0:
        raise ValueError(f"{place} has no rows")
    # Only the paths, for the contents may be larger than the memory.
    paths = videos.flatten().select_columns([f"{video}.path"])[f"{video}.path"]
    paths = list(paths)
    names = _unique(path or f"row {row}" for row, path in enumerate(paths))
    labels: list[Label] = [None] * len(dataset)
    if label is not None:
        classes = _label_names_of(dataset.features[label])
        labels = [_as_label(value, classes, place) for value in dataset.select_columns([label])[label]]
    if labelled and None in labels:
        raise ValueError(f"row {labels.index(None)} of {place} has no label")
    return [
        DatasetRow(name, label, videos, row, video, paths[row], verify)
        for row, (name, label) in enumerate(zip(names, labels, strict=True))
    ]


def open_stream(
    source: str | os.PathLike | datasets.Dataset | datasets.IterableDataset,
    split: str | None = None,
    *,
    dataset_config: str | None = None,
    hub: bool = False,
    video_column: str | None = None,
    label_column: str | None = None,
) -> datasets.IterableDataset:
    """Opens a `datasets` set for `StreamingClips`: the columns `video` (not decoded) and `label`.

    Args:
        source, split, dataset_config, hub, video_column, label_column: As in `read_clips`, for the `datasets` kinds of
            source. Of a folder with one sub-folder a class `datasets` itself makes a set.

    Raises:
        As `read_clips`.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        saved = path.is_dir() and not hub and _kind_of_folder(path, split) == "saved"
        source = _load(source, "saved" if saved else "datasets", dataset_config, split, streaming=True)
    if isinstance(source, datasets.Dataset):
        # In parts, which numbers of processes can share out evenly.
        source = source.with_format(None).to_iterable_dataset(num_shards=min(len(source), 64))
    video, label = _columns(source.features, "the data set", video_column, label_column, labelled=True)
    source = source.select_columns([video, label]).cast_column(video, datasets.Video(decode=False))
    names = {old: new for old, new in ((video, "video"), (label, "label")) if old != new}
    return source.rename_columns(names) if names else source


def stream_label_names(stream: datasets.IterableDataset) -> list[str] | None:
    """The classes that a set of `open_stream` declares (`ClassLabel`), None where it declares none."""
    return _label_names_of(stream.features["label"])


# ---------------------------------------------------------------------------------------------------------------------
# Which frames
# ---------------------------------------------------------------------------------------------------------------------


def pick_frames(total_frames: int, num_frames: int, rule: str, rng: np.random.Generator) -> np.ndarray:
    """Indices of the frames of a training clip.

    - `kinetics`: with seg = (N-1)/T, frame i is uniform among round(seg*i) .. round(seg*(i+1)), both included, at
      most N-1 (round half to even).
    - `ssv2`: with d = N//T, frame i is uniform among the d frames from i*d on; the last N - T*d are never seen. Of a
      clip with fewer than T frames each is repeated about equally often, in order (the official code repeats the
      first frame alone, which leaves little of the motion).
    - `center`: not random, the rule of the validation.

    Args:
        total_frames: N.
        num_frames: T.
        rule: One of these.
        rng: Is drawn from.

    Returns:
        (num_frames,) int64, not decreasing.
    """
    if rule == "center":
        return sample_frame_indices(total_frames, num_frames)[0]
    as_count("total_frames", total_frames)
    steps = np.arange(as_count("num_frames", num_frames))
    if rule == "kinetics":
        bounds = np.round((total_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
        return np.minimum(rng.integers(bounds[:-1], bounds[1:], endpoint=True), total_frames - 1)
    if rule == "ssv2":
        length = total_frames // num_frames
        if length == 0:
            return steps * total_frames // num_frames
        return steps * length + rng.integers(length, size=num_frames)
    raise ValueError(f"rule must be one of {list(SAMPLING_RULES)}, got {rule!r}")


def _check_rule(rule: str | None) -> None:
    if rule is not None and rule not in SAMPLING_RULES:
        raise ValueError(f"sampling_rule must be one of {list(SAMPLING_RULES)}, got {rule!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------------------------------


def _encode_label(label: Label, label2id: Mapping[str, int], multi_label: bool, name: str) -> tuple[int, ...]:
    """The ids of a clip's labels; exactly one unless `multi_label`."""
    if label is None:
        raise ValueError(f"clip {name} has no label")
    labels = _labels_of(label)
    if len(labels) != 1 and not multi_label:
        raise ValueError(f"clip {name} has the labels {list(labels)}: one is needed, or a multi-label training")
    unknown = [one for one in labels if one not in label2id]
    if unknown:
        raise ValueError(f"labels must be some of {sorted(label2id)}, got {unknown} of clip {name}")
    return tuple(label2id[one] for one in labels)


@dataclass(frozen=True)
class _SampleMaker:
    """What by-index and streamed data sets make of the frames they have read."""

    augment: Augment
    num_labels: int
    seed: int
    num_sample: int
    multi_label: bool

    def make(
        self, frames: Tensor, label_ids: tuple[int, ...], size: int, epoch: int, index: int, failures: list[Failure]
    ) -> dict[str, Any]:
        seeds = [
            int(np.random.default_rng([self.seed, epoch, index, copy, _FOR_AUGMENT]).integers(2**63))
            for copy in range(self.num_sample)
        ]
        videos = [self.augment(frames, size, torch.Generator().manual_seed(seed)) for seed in seeds]
        if self.multi_label:
            label = torch.zeros(self.num_labels)
            label[list(label_ids)] = 1
        else:
            label = torch.tensor(label_ids[0])
        return {
            "pixel_values_videos": torch.stack(videos),
            "labels": torch.stack([label] * self.num_sample),
            "seeds": torch.tensor(seeds),
            "failures": failures,
        }


def _sample_maker(
    augment: Augment, label2id: Mapping[str, int], seed: int, num_sample: int, multi_label: bool
) -> _SampleMaker:
    num_labels = max(label2id.values(), default=-1) + 1
    if num_labels == 0:
        raise ValueError("label2id must hold at least one label, got none")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return _SampleMaker(augment, num_labels, seed, as_count("num_sample", num_sample), multi_label)


class ClipDataset(torch.utils.data.Dataset):
    """Clips by index, read and augmented.

    A clip that cannot be read is replaced by another, drawn from the seed and its index, and named in `failures`; all
    the others keep their places, so none of them is lost.

    Args:
        clips: The set.
        label2id: Ids of the labels.
        augment: `(frames (T, 3, H, W) uint8, size, generator) -> (T, 3, size, size) float32`.
        seed: With epoch, index and copy, decides everything random.
        num_sample: Augmented copies of each clip, which is decoded once (repeated augmentation).
        multi_label: Labels as 0 and 1 for each class.
        sampling_rule: Of `pick_frames`; if not given, `ssv2` for folders of frames and `kinetics` for others.

    Raises:
        ValueError: no clips, a label that is missing or not in `label2id`, several labels of one clip without
            `multi_label`, an unknown rule, `num_sample` below 1, a negative seed.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        label2id: Mapping[str, int],
        augment: Augment,
        seed: int = 0,
        num_sample: int = 1,
        multi_label: bool = False,
        sampling_rule: str | None = None,
    ):
        if not clips:
            raise ValueError("clips must hold at least one clip, got none")
        _check_rule(sampling_rule)
        self.clips = list(clips)
        self.sampling_rule = sampling_rule
        self._label_ids = [_encode_label(clip.label, label2id, multi_label, clip.name) for clip in self.clips]
        self._maker = _sample_maker(augment, label2id, seed, num_sample, multi_label)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, request: ClipRequest) -> dict[str, Any]:
        """Reads the clip that `request` names.

        Returns:
            `pixel_values_videos` (num_sample, T, 3, size, size) as `augment` gives them, `labels` (num_sample,) int64
            or (num_sample, num_labels) float32, `seeds` (num_sample,) int64 of the copies' generators, and
            `failures`, the (name, reason) of clips that could not be read.

        Raises:
            TooManyFailedClips: neither it nor any of those tried in its place can be read.
        """
        failures = []
        for attempt, index in enumerate(self._candidates(request.index)):
            clip = self.clips[index]
            words = [self._maker.seed, request.epoch, request.index, attempt, _FOR_FRAMES]
            try:
                frames = clip.read(self._frame_sampler(clip, request.num_frames, words))
            except READ_ERRORS as error:
                failures.append((clip.name, describe_failure(error)))
                continue
            label_ids = self._label_ids[index]
            return self._maker.make(frames, label_ids, request.size, request.epoch, request.index, failures)
        raise _all_failed(failures)

    def _candidates(self, index: int) -> Iterator[int]:
        """The clip itself, then others in a random order, up to MAX_TRIES in all."""
        yield index
        rng = np.random.default_rng([self._maker.seed, 0, index, 0, _FOR_REPLACEMENT])
        tried = {index}
        while len(tried) < min(len(self.clips), MAX_TRIES):
            candidate = int(rng.integers(len(self.clips)))
            if candidate not in tried:
                tried.add(candidate)
                yield candidate

    def _frame_sampler(self, clip: Clip, num_frames: int, words: list[int]) -> FrameSampler:
        rule = self.sampling_rule or clip.sampling_rule
        return lambda total_frames: pick_frames(total_frames, num_frames, rule, np.random.default_rng(words))


def _all_failed(failures: list[Failure]) -> TooManyFailedClips:
    bad = "\n".join(f"  {name}: {reason}" for name, reason in failures)
    return TooManyFailedClips(f"{len(failures)} clips in a row cannot be read:\n{bad}")


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins samples of one shape: tensors with B * num_sample in front, copies of a clip adjacent, failures joined."""
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0] if name != "failures"}
    return {**batch, "failures": [failure for sample in samples for failure in sample["failures"]]}


class StreamingClips(torch.utils.data.IterableDataset):
    """Batches of a streamed `datasets` set, each as `collate` gives it: for a `DataLoader` with `batch_size=None`.

    The set may be larger than the disk, and its length unknown, so an epoch is `num_batches` batches for each process;
    one whose share ends earlier goes on with a share of the set shuffled anew. Each process has its share already: the
    loader must not be split among processes again (`accelerator.prepare` would).

    Worker w of W builds every W-th batch from the w-th on, and passes over the other workers' clips undecoded: the
    batches do not depend on the number of workers. Where reading what is passed over is dear (contents inside the
    files of a remote set), `split_workers` gives each worker a share of its own instead; then they do.

    Where a clip cannot be read, the next ones of the stream stand in for it, and are read again in their own places.

    Args:
        stream: From `open_stream`.
        shape_of: `(epoch, step) -> ClipShape` of the batch at that step.
        batch_size: Clips of a batch, before `num_sample`.
        num_batches: Batches of an epoch.
        label2id, augment, seed, num_sample, multi_label: As in `ClipDataset`.
        sampling_rule: As in `ClipDataset`.
        rank, world_size: This process, and their number.
        buffer_size: Clips to draw the next one from; their contents are held in memory, in every worker. Files of the
            set are shuffled too. 0 keeps the set's order.
        split_workers: See above.
        verify: As in `read_clips`.

    Raises:
        ValueError: a count below 1, a rank outside the world, an unknown rule. While reading: a label that is missing
            or not in `label2id`, a process without a single clip.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        shape_of: Callable[[int, int], ClipShape],
        batch_size: int,
        num_batches: int,
        label2id: Mapping[str, int],
        augment: Augment,
        seed: int = 0,
        num_sample: int = 1,
        multi_label: bool = False,
        sampling_rule: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 256,
        split_workers: bool = False,
        verify: bool = True,
    ):
        if not 0 <= rank < as_count("world_size", world_size):
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
        _check_rule(sampling_rule)
        if buffer_size < 0:
            raise ValueError(f"buffer_size must not be negative, got {buffer_size}")
        self.stream, self.shape_of, self.label2id = stream, shape_of, dict(label2id)
        self.batch_size, self.num_batches = as_count("batch_size", batch_size), as_count("num_batches", num_batches)
        self.rule = sampling_rule or "kinetics"
        self.rank, self.world_size, self.buffer_size = rank, world_size, buffer_size
        self.split_workers, self.verify = split_workers, verify
        self._maker = _sample_maker(augment, label2id, seed, num_sample, multi_label)
        # Epoch and batches to skip; shared, so that workers that outlive an epoch see them.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Chooses the epoch of the next iteration, which leaves out its first `skip_batches` (when resuming)."""
        if not 0 <= skip_batches <= self.num_batches:
            raise ValueError(f"skip_batches must lie in [0, {self.num_batches}], got {skip_batches}")
        self._position[0], self._position[1] = epoch, skip_batches

    def __len__(self) -> int:
        """Batches of the next iteration."""
        return self.num_batches - int(self._position[1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, first = self._position.tolist()
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        first += worker
        if self.split_workers:
            # By step, not by worker: after a resumption step and worker go together in another way.
            share = first % num_workers
            examples = _Lookahead(self._examples(epoch, self.rank * num_workers + share, self.world_size * num_workers))
            examples.skip(first // num_workers * self.batch_size)
            skipped = 0
        else:
            examples = _Lookahead(self._examples(epoch, self.rank, self.world_size))
            examples.skip(first * self.batch_size)
            skipped = (num_workers - 1) * self.batch_size
        for step in range(first, self.num_batches, num_workers):
            if step > first:
                examples.skip(skipped)
            yield self._batch(epoch, step, examples)

    def _examples(self, epoch: int, share: int, num_shares: int) -> Iterator[dict[str, Any]]:
        """The rows of a share, without end."""
        for lap in itertools.count():
            stream = self.stream
            if self.buffer_size:
                order = np.random.default_rng([self._maker.seed, epoch, lap, 0, _FOR_STREAM])
                stream = stream.shuffle(generator=order, buffer_size=self.buffer_size)
            stream = split_dataset_by_node(stream, share, num_shares)
            empty = True
            # Iterating the set itself would split it among the loader's workers once more.
            for rows in stream.iter(batch_size=1):
                empty = False
                yield {name: values[0] for name, values in rows.items()}
            if empty:
                raise ValueError(f"share {share} of {num_shares} of the streamed set holds no clip")

    def _batch(self, epoch: int, step: int, examples: "_Lookahead") -> dict[str, Any]:
        shape = self.shape_of(epoch, step)
        own = [examples.take() for _ in range(self.batch_size)]
        stand_in = 0
        samples = []
        for place, example in enumerate(own):
            # Of all places of all processes' batches of the epoch.
            index = (step * self.world_size + self.rank) * self.batch_size + place
            failures: list[Failure] = []
            while True:
                words = [self._maker.seed, epoch, index, len(failures), _FOR_FRAMES]
                try:
                    frames = _decode_value(example["video"], self._frame_sampler(shape, words), self.verify)
                    break
                except READ_ERRORS as error:
                    failures.append((_example_name(example["video"]), describe_failure(error)))
                if len(failures) == MAX_TRIES:
                    raise _all_failed(failures)
                example = examples.peek(stand_in)
                stand_in += 1
            label = _as_label(example["label"], stream_label_names(self.stream), "the streamed set")
            name = _example_name(example["video"]) if label is None else ""
            label_ids = _encode_label(label, self.label2id, self._maker.multi_label, name)
            samples.append(self._maker.make(frames, label_ids, shape.size, epoch, index, failures))
        return collate(samples)

    def _frame_sampler(self, shape: ClipShape, words: list[int]) -> FrameSampler:
        return lambda total: pick_frames(total, shape.num_frames, self.rule, np.random.default_rng(words))


class _Lookahead:
    """An iterator whose next elements can be seen without taking them."""

    def __init__(self, elements: Iterator):
        self._elements, self._seen = elements, deque()

    def take(self) -> Any:
        return self._seen.popleft() if self._seen else next(self._elements)

    def skip(self, count: int) -> None:
        for _ in range(count):
            self.take()

    def peek(self, position: int) -> Any:
        while len(self._seen) <= position:
            self._seen.append(next(self._elements))
        return self._seen[position]


def _example_name(video: Mapping[str, Any] | bytes | str | None) -> str:
    """The path; of contents also a hash, for inside different files the same path may occur again."""
    if not isinstance(video, Mapping):
        video = {"bytes": video} if isinstance(video, bytes) else {"path": video}
    content, path = video.get("bytes"), video.get("path")
    if content is None:
        return str(path)
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{path} ({digest})" if path else f"<{digest}>"


# ---------------------------------------------------------------------------------------------------------------------
# Cache of decoded frames
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CachedClip(Clip):
    """A clip whose frames lie decoded in `path`, an .npy file (N, 3, H, W) uint8 of `cache_clips`."""

    path: str
    rule: str = "kinetics"

    @property
    def sampling_rule(self) -> str:
        return self.rule

    def read(self, sampler: FrameSampler) -> Tensor:
        try:
            frames = np.lib.format.open_memmap(self.path, mode="r")
        except ValueError as error:
            raise VideoDecodeError(self.path, f"a damaged file of the cache ({error})") from error
        return torch.from_numpy(np.asarray(frames[_chosen(self.path, sampler, len(frames))]))

    def identity(self) -> list:
        return _file_identity(self.path)


@dataclass(frozen=True, slots=True)
class FailedClip(Clip):
    """A clip that could not be read when it was to be cached: `read` says so."""

    reason: str

    def read(self, sampler: FrameSampler) -> Tensor:
        raise VideoDecodeError(self.name, self.reason)

    def identity(self) -> list:
        raise VideoDecodeError(self.name, self.reason)


def cache_clips(
    clips: Sequence[Clip],
    directory: str | os.PathLike,
    short_side: int | None = None,
    max_frames: int | None = None,
    num_workers: int = 2,
) -> list[Clip]:
    """Decodes each clip once, for all epochs, processes and runs that share `directory`.

    A file is named by its clip's content (path, size and time of change) and the settings, so that one written by
    another process or run is used, and a clip that has changed is decoded anew. Several processes may work at once.
    A clip takes N x 3 x H x W bytes: 3 GB for a thousand clips of 64 frames of 128 x 128 pixels.

    Args:
        clips: What to cache.
        directory: Where to; made if it is not there.
        short_side: Pixels that the shorter side is brought down to (bilinear, antialiased) if it is longer.
        max_frames: Frames kept of a clip, spread evenly; all if not given. Training then picks among these.
        num_workers: Threads that decode.

    Returns:
        Clips of the same names and labels in the same order. `read` copies the wanted frames from the file; of a
        clip that cannot be decoded it raises VideoDecodeError, and another run tries it again.

    Raises:
        OSError: the cache cannot be written.
    """
    for name, value in (("short_side", short_side), ("max_frames", max_frames)):
        if value is not None:
            as_count(name, value)
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)

    def cache(clip: Clip) -> Clip:
        return _cache_clip(clip, directory, short_side, max_frames)

    with ThreadPoolExecutor(as_count("num_workers", num_workers)) as pool:
        cached = list(pool.map(cache, clips))
    failed = sum(isinstance(clip, FailedClip) for clip in cached)
    logger.info("%d clips in the cache %s, %d cannot be decoded", len(cached) - failed, directory, failed)
    return cached


def _cache_clip(clip: Clip, directory: Path, short_side: int | None, max_frames: int | None) -> Clip:
    try:
        settings = [clip.identity(), short_side, max_frames]
    except READ_ERRORS as error:
        return FailedClip(clip.name, clip.label, describe_failure(error))
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    # In sub-folders: file systems are slow with a hundred thousand names in one.
    target = directory / name[:2] / f"{name}.npy"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{name}.{uuid.uuid4().hex}.npy")
        try:
            with open(temporary, "wb") as file:
                reason = _write_frames(file, single_threaded(clip), short_side, max_frames)
            if reason is not None:
                return FailedClip(clip.name, clip.label, reason)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return CachedClip(clip.name, clip.label, str(target), clip.sampling_rule)


def _write_frames(file: BinaryIO, clip: Clip, short_side: int | None, max_frames: int | None) -> str | None:
    """Writes an .npy file part by part; why the clip cannot be read, if it cannot. An error of writing is raised."""
    parts, count, shape = iter_frames(clip, max_frames), 0, None
    while True:
        try:
            frames = next(parts, None)
        except READ_ERRORS as error:
            return describe_failure(error)
        if frames is None:
            break
        height, width = frames.shape[-2:]
        if short_side is not None and min(height, width) > short_side:
            scale = short_side / min(height, width)
            frames = tvF.resize(frames, [round(height * scale), round(width * scale)], antialias=True)
        if shape is None:
            shape = tuple(frames.shape[1:])
            _write_npy_header(file, count, shape)
        count += len(frames)
        file.write(frames.contiguous().numpy().data)
    # numpy leaves room for any number in the first place, so that the header keeps its length.
    file.seek(0)
    _write_npy_header(file, count, shape)
    return None


def _write_npy_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def single_threaded(clip: Clip) -> Clip:
    """The clip, decoded by one thread: for where several are read at once."""
    return replace(clip, num_threads=1) if isinstance(clip, (VideoFile, DatasetRow)) else clip
