"""Clips held in arrays are those that a list of objects would hold, and cost less."""

import csv
import pickle
import tracemalloc

import numpy as np
import pytest

from training.data.clip_table import ClipTable, TableBuilder, distinct_labels
from training.data.reader import FrameFolder, VideoFile
from training.data.sources import label_names, read_clips, spread
from training.data.targets import ClassTargets, encode_labels


PATHS = [
    "a.mp4",
    "sub/é 視.mp4",
    "a.mp4",
    "https://host/b.mp4",
    "",
    "/abs/c.mp4",
    "sub/../a.mp4",
    "a.mp4",
    "caf\udce9.gif",
]
LABELS = ["x", "y", None, "x", ("x", "z"), "é", "y", "x", "w"]
NAMES = ["a.mp4", PATHS[1], "a.mp4#2", *PATHS[3:7], "a.mp4#3", PATHS[8]]
FILES = ["/set/a.mp4", "/set/sub/é 視.mp4", "/set/a.mp4", PATHS[3], "/set/", "/abs/c.mp4", "/set/a.mp4", "/set/a.mp4"]
OBJECTS = [
    VideoFile(name, label, file.rstrip("/"))
    for name, label, file in zip(NAMES, LABELS, [*FILES, "/set/caf\udce9.gif"], strict=True)
]


def build(one_hash: bool = False) -> ClipTable:
    builder = TableBuilder("/set")
    for path, label in zip(PATHS, LABELS, strict=True):
        builder.add(path, label)
    if one_hash:  # as if all of them collided
        builder.hashes[:] = type(builder.hashes)("q", [7] * len(PATHS))
    return builder.build()


@pytest.mark.parametrize("table", [build(), build(one_hash=True), pickle.loads(pickle.dumps(build()))])
def test_a_table_is_the_list_of_its_clips(table):
    assert len(table) == len(OBJECTS) and list(table) == OBJECTS and table == OBJECTS
    assert [table[index] for index in (0, 2, -1, np.int64(3))] == [OBJECTS[index] for index in (0, 2, -1, 3)]
    assert table[1:8:3] == OBJECTS[1:8:3] and table[::-1][2:] == OBJECTS[::-1][2:] and not table[3:3]
    assert table.select(np.array([7, 7, 0])) == [OBJECTS[7], OBJECTS[7], OBJECTS[0]]
    with pytest.raises(IndexError):
        table[len(OBJECTS)]
    for limit in (None, 2, 5, 100):
        assert spread(table, limit) == spread(OBJECTS, limit)


def test_labels_of_a_table_are_those_of_its_list():
    table = build()
    for part in (slice(None), slice(3, None), slice(None, None, -2)):
        labels, codes, firsts = distinct_labels(table[part])
        expected = distinct_labels(OBJECTS[part])
        assert labels == expected[0] and all(map(np.array_equal, (codes, firsts), expected[1:]))
        assert [labels[code] for code in codes] == [clip.label for clip in OBJECTS[part]]
        assert [OBJECTS[part][first].label for first in firsts] == labels
        assert label_names(table[part]) == label_names(OBJECTS[part])


def test_folders_of_frames():
    builder = TableBuilder("/set", "{}.png")
    builder.add("one", "x", 12)
    builder.add("two", None, 0)
    assert builder.build() == [
        FrameFolder("one", "x", "/set/one", 12, "{}.png"),
        FrameFolder("two", None, "/set/two", 0, "{}.png"),
    ]


def test_the_first_clip_of_an_unknown_label_is_named():
    targets = ClassTargets({"x": 0, "y": 1})
    with pytest.raises(ValueError, match=r"\['w'\] of clip caf"):
        encode_labels(build().select(np.array([0, 1, 8])), targets)
    with pytest.raises(ValueError, match="clip a.mp4#2 has no label"):
        encode_labels(build(), targets)
    assert encode_labels(build().select(np.array([1, 0, 3, 1])), targets).tolist() == [1, 0, 0, 1]


def test_a_long_list_takes_few_bytes_a_row(tmp_path):
    rows = [(f"k710/class number {row % 710}/{row:011}_000010_000020.mp4", f"label {row % 710}") for row in range(9000)]
    (tmp_path / rows[0][0]).parent.mkdir(parents=True)
    (tmp_path / rows[0][0]).touch()
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    text = sum(len(path) for path, _ in rows)
    tracemalloc.start()
    clips = read_clips(tmp_path / "list.csv")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(clip.name, clip.label) for clip in clips] == rows
    assert held < text + 30 * len(rows) and peak < 2 * text + 120 * len(rows)
