# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Where clips come from: tables and lists, folders, and sets of the `datasets` library."""

import csv
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np

from .clip_table import ClipTable, TableBuilder, distinct_labels
from .reader import FRAME_TEMPLATE, VIDEO_SUFFIXES, Clip, DatasetRow, Label


def read_clips(
    source: str | os.PathLike | datasets.Dataset,
    root: str | os.PathLike | None = None,
    split: str | None = None,
    *,
    dataset_config_name: str | None = None,
    hub: bool = False,
    frame_template: str = FRAME_TEMPLATE,
    video_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
    multi_label: bool = False,
) -> Sequence[Clip]:
    """Lists the clips of a set. Nothing is decoded, and no file but the list is opened.

    Args:
        source: One of
            - a .csv, .txt or .tsv file, comma, tab or space separated, rows `path label` of videos or `name
              total_frames label` of folders of frames. With a header, columns may stand in any order beside others.
              In a space separated file the path comes first, and may itself hold spaces, labels may not. Several
              labels of a clip are joined by `|`. Columns `start` and `end` are seconds of the part of a video that is
              the clip, from its beginning or to its end where empty;
            - a folder with one sub-folder of videos a class; also one level below, in a folder named as `split`;
            - a `datasets.Dataset`, a folder one was saved to, or what `datasets.load_dataset` takes: a folder of
              parquet files or of videos with metadata, or the name of a set on the Hub.
        root: What relative paths of a file are relative to; the file's folder if not given.
        split: Which rows (column `split` of a file with a header), sub-folder or split to take; all if not given.
        dataset_config_name: Configuration of a set that `load_dataset` loads.
        hub: Whether `source` is such a set whatever files and folders there are.
        frame_template: Names of a folder's frames, which are numbered from 1.
        video_column: Column of a `datasets` set; its only `Video` column if not given.
        label_column: Column of the labels; `label` if not given, in a `datasets` set else `labels`, `cls`, or its only
            column of classes.
        labelled: Whether a clip without a label is an error.
        multi_label: Whether `|` in a file separates labels; it belongs to the label if not.

    Raises:
        FileNotFoundError: no such source, or none of its files where `root` says.
        ValueError: a malformed source; the message tells where.
    """
    if isinstance(source, datasets.Dataset):
        return _dataset_clips(source, "the data set", video_column, label_column, labelled)
    path = Path(source)
    if path.is_file() and not hub:
        clips = _table_clips(path, root, split, frame_template, label_column or "label", labelled, multi_label)
        _check_root(path, clips)
        return clips
    kind = _kind_of_folder(path, split) if path.is_dir() and not hub else "datasets"
    if kind == "classes":
        if split is not None and not (path / split).is_dir():
            raise ValueError(f"{path} has no sub-folder {split!r} for that split")
        return _folder_clips(path / split if split else path)
    dataset = _load(source, kind, dataset_config_name, split, streaming=False)
    return _dataset_clips(dataset, str(source), video_column, label_column, labelled)


def spread(clips: Sequence[Clip], limit: int | None) -> Sequence[Clip]:
    """At most `limit` clips, evenly spread over the list, which may be sorted by class."""
    if limit is None or limit >= len(clips):
        return clips
    positions = np.arange(limit) * len(clips) // limit
    return clips.select(positions) if isinstance(clips, ClipTable) else [clips[position] for position in positions]


def label_names(clips: Sequence[Clip]) -> list[str]:
    """Every label that occurs, sorted; by value where all of them are integers.

    Raises:
        ValueError: no clip has a label.
    """
    names = {name for label in distinct_labels(clips)[0] for name in labels_of(label)}
    if not names:
        raise ValueError("none of the clips has a label")
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def labels_of(label: Label) -> tuple[str, ...]:
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
_COLUMNS = {*_NAME_COLUMNS, "label", "total_frames", "split", "start", "end"}  # in any case
_HEADERLESS = {1: ["path"], 2: ["path", "label"], 3: ["name", "total_frames", "label"]}


def _encoding_error(path: Path) -> ValueError:
    """Names the line of a file that is not UTF-8."""
    content = path.read_bytes()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return ValueError(f"{path} line {line} is not in the encoding UTF-8: save the list in that")
    return ValueError(f"{path} changes while it is read")


def _delimiter(first: str) -> str | None:
    """What separates the cells, by a file's first line: None for spaces."""
    *_, name, label = "", "", *first.split()
    is_name = name.isdecimal() or Path(name).suffix.lower() in VIDEO_SUFFIXES
    if "\t" not in first and label.isdecimal() and is_name:
        return None  # `name with, comma.mp4 3`, `folder, too 120 3`; not `a.mp4,class 3`
    return next((mark for mark in "\t,;" if mark in first), None)


def _cells(file: TextIO, first: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row that holds something; `first` is the first line that does."""
    delimiter, columns = _delimiter(first), _num_columns(first.split())
    if delimiter is None and columns == 1:
        delimiter = "\x1f"  # is in no name, and quotes around one are read
    if delimiter is None:  # from the right, for only the path may hold spaces
        yield from ((i, line.strip().rsplit(None, columns - 1)) for i, line in enumerate(file, 1) if line.strip())
    else:
        reader = csv.reader(file, delimiter=delimiter)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells


def _read_rows(path: Path, file: TextIO) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Column names, and (line number, column -> cell) of each row, read as they are asked for."""
    first = next((line for line in file if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty")
    file.seek(0)
    lines = _cells(file, first)
    number, cells = next(lines, (1, [""]))
    head = [cell.lower() for cell in cells]
    if _NAME_COLUMNS & set(head):
        header = [low if low in _COLUMNS else cell for cell, low in zip(cells, head, strict=True)]
    elif "label" in head:
        raise ValueError(f"{path} must have a column path (or name), got {cells}")
    elif len(head) in _HEADERLESS:
        header, lines = _HEADERLESS[len(head)], itertools.chain([(number, cells)], lines)
    else:
        raise ValueError(f"{path} has {len(head)} columns and no header that says what they are")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for number, cells in lines:
            if len(cells) != len(header):
                raise ValueError(f"{path} line {number} must have {len(header)} columns {header}, got {cells}")
            yield number, dict(zip(header, cells, strict=True))

    return header, rows()


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
    multi_label: bool,
) -> ClipTable:
    if path.suffix.lower() not in (".csv", ".txt", ".tsv"):
        raise ValueError(f"a file of clips must end in .csv, .txt or .tsv, got {str(path)!r}")
    needed = [label_column] * labelled + ["split"] * (split is not None)
    builder, splits = TableBuilder(path.parent if root is None else root, frame_template), set()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, rows = _read_rows(path, file)
            name_column = next(name for name in header if name.lower() in _NAME_COLUMNS)
            missing = [name for name in needed if name not in header]
            if missing:
                raise ValueError(f"{path} must have the columns {[name_column, *needed]}, got {header}")
            for number, row in rows:
                splits.add(row.get("split"))
                if split is not None and row["split"] != split:
                    continue
                name, label, frames = row[name_column], row.get(label_column) or None, row.get("total_frames")
                if not name or (labelled and label is None):
                    raise ValueError(f"{path} line {number} has an empty {label_column if name else name_column}")
                if frames is not None and not frames.isdecimal():
                    raise ValueError(f"{path} line {number}: total_frames must be a number of frames, got {frames!r}")
                if multi_label and label is not None and "|" in label:
                    label = _split_label(path, name, label)
                builder.add(name, label, None if frames is None else int(frames), _span(path, number, row))
    except UnicodeDecodeError as error:
        raise _encoding_error(path) from error
    if not splits:
        raise ValueError(f"{path} has no rows")
    if split is not None and split not in splits:
        raise ValueError(f"{path} has no row of the split {split!r}, only of {sorted(splits)}")
    return builder.build()


def _span(path: Path, number: int, row: dict[str, str]) -> tuple[float | None, float | None] | None:
    """The seconds of the columns start and end, None where empty; None if there is neither column.

    Raises:
        ValueError: folders of frames, a cell that is no time, or an end that is not after the start.
    """
    if "start" not in row and "end" not in row:
        return None
    if "total_frames" in row:
        raise ValueError(f"{path}: folders of frames (total_frames) have no columns start and end")
    seconds = []
    for name in ("start", "end"):
        cell = row.get(name) or None
        try:
            second = None if cell is None else float(cell)
        except ValueError:
            second = math.nan
        if second is not None and not 0 <= second < math.inf:
            raise ValueError(f"{path} line {number}: {name} must be seconds of at least 0, got {cell!r}")
        seconds.append(second)
    start, end = seconds
    if end is not None and end <= (start or 0):
        raise ValueError(f"{path} line {number}: end must be after start, got {row.get('start')!r} and {end}")
    return start, end


def _split_label(path: Path, name: str, text: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in text.split("|"))
    if not all(labels):
        raise ValueError(f"{path} has an empty label for {name}: {text!r}")
    return labels


def _check_root(path: Path, clips: ClipTable) -> None:
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


def video_files(folder: Path, wanted: str = "videos") -> list[Path]:
    """The videos in a folder and all below it, links followed, sorted, without hidden ones.

    Raises:
        ValueError: there are none; says what is `wanted`.
    """
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = [folder, *(folder / part for part in Path(place).relative_to(folder).parents)]
        if Path(place) != folder and os.path.realpath(place) in map(os.path.realpath, above):  # a link back up
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    files = sorted(file for file in files if file.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} must hold {wanted} ({' '.join(sorted(VIDEO_SUFFIXES))}), there is no such file")
    return files


def _folder_clips(folder: Path) -> ClipTable:
    """A sub-folder of videos a class."""
    files = video_files(folder, "one sub-folder of videos a class")
    names = [file.relative_to(folder) for file in files]
    outside = [name.as_posix() for name in names if len(name.parts) == 1]
    if outside:
        raise ValueError(f"{folder} must hold its videos in one sub-folder a class, {outside[0]!r} lies beside them")
    builder = TableBuilder(folder)
    for name in names:
        builder.add(name.as_posix(), name.parts[0])
    return builder.build()


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
        classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        likely = ["label", "labels", "cls", *(classes if len(classes) == 1 else [])]  # cls: of webdataset tars
        label_column = next((name for name in likely if name in features), None)
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


def as_label(value: Any, names: Sequence[str] | None, place: str) -> Label:
    """A class name, an index of `names`, an integer that is itself the name, or a list of these. -1 means unknown."""
    if value is None or (names is not None and value == -1):
        return None
    if isinstance(value, (list, tuple)):
        labels = tuple(as_label(one, names, place) for one in value)
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
        labels = [as_label(value, classes, place) for value in dataset.select_columns([label])[label]]
    if labelled and None in labels:
        raise ValueError(f"row {labels.index(None)} of {place} has no label")
    return [
        DatasetRow(name, label, videos, row, video, paths[row])
        for row, (name, label) in enumerate(zip(names, labels, strict=True))
    ]


def open_stream(
    source: str | os.PathLike | datasets.Dataset | datasets.IterableDataset,
    split: str | None = None,
    *,
    dataset_config_name: str | None = None,
    hub: bool = False,
    video_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> datasets.IterableDataset:
    """Opens a `datasets` set for `StreamingClips`: the columns `video` (not decoded) and, if `labelled`, `label`.

    Args:
        source, split, dataset_config_name, hub, video_column, label_column: As in `read_clips`, for the `datasets`
            kinds of source. Of a folder with one sub-folder a class `datasets` itself makes a set.

    Raises:
        As `read_clips`.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        saved = path.is_dir() and not hub and _kind_of_folder(path, split) == "saved"
        source = _load(source, "saved" if saved else "datasets", dataset_config_name, split, streaming=True)
    if isinstance(source, datasets.Dataset):
        # In parts, which numbers of processes can share out evenly.
        source = source.with_format(None).to_iterable_dataset(num_shards=min(len(source), 64))
    video, label = _columns(source.features, "the data set", video_column, label_column, labelled)
    columns = {video: "video", **({label: "label"} if labelled else {})}
    source = source.select_columns(list(columns)).cast_column(video, datasets.Video(decode=False))
    names = {old: new for old, new in columns.items() if old != new}
    return source.rename_columns(names) if names else source


def stream_label_names(stream: datasets.IterableDataset) -> list[str] | None:
    """The classes that a set of `open_stream` declares (`ClassLabel`), None where it declares none."""
    return _label_names_of(stream.features.get("label"))
