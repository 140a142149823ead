"""Files are written whole or not at all, and leave nothing behind."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux_hf import checkpoint_files as files


def test_source_files_are_those_that_import_each_other():
    package = Path(files.__file__).parent
    assert all((package / name).is_file() for name in files.SOURCE_FILES)
    modules = {name.removesuffix(".py") for name in files.SOURCE_FILES}
    for name in files.SOURCE_FILES:
        lines = (package / name).read_text(encoding="utf-8").splitlines()
        imported = {line.split()[1][1:] for line in lines if line.startswith("from .")}
        assert imported <= modules, f"{name} needs {imported - modules}, which a checkpoint does not hold"
    for target in files.AUTO_MAP.values():
        assert target.split(".")[0] in modules


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with files.replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists() and temporary.parent == target.parent and temporary.name.startswith(".")
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError, match="mine"), files.replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("mine")
    assert target.read_text() == "new" and os.listdir(target.parent) == ["a.txt"]


def test_a_folder_takes_the_place_of_none(tmp_path):
    with files.replacing(tmp_path / "folder", durable=True) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("a")
    assert (tmp_path / "folder" / "a").read_text() == "a"
    with pytest.raises(OSError), files.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["a"]


def test_what_a_killed_writer_leaves_is_cleared_away(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    script = (
        "import os, signal, sys\nfrom flux_hf.checkpoint_files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.txt")], cwd=Path(__file__).parents[2])
    assert killed.returncode == -9
    assert (tmp_path / "a.txt").read_text() == "old" and len(os.listdir(tmp_path)) == 2
    (tmp_path / ".run.tmp").mkdir()
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_belongs_to_a_longer_name_is_left(tmp_path):
    """`model-v1` is not `model-v1.1`, nor `out` `out.csv`."""
    for name in (".model-v1.0123456789ab.tmp", ".model-v1.0123456789ab.whole"):
        (tmp_path / name).mkdir()
    others = [tmp_path / f".model-v1.1.0123456789ab.{end}" for end in ("tmp", "whole")]
    for other in others:
        other.mkdir()
        (other / "config.json").write_text("{}")
    files.remove_leftovers_of(tmp_path / "model-v1")
    files.finish_replacing(tmp_path / "model-v1")
    assert sorted(tmp_path.iterdir()) == sorted(others) and all(any(other.iterdir()) for other in others)


def test_names_that_are_no_text():
    assert files.plain_text("cé.mp4") == "cé.mp4" and files.plain_text("c\udcff.mp4") == "c\\xff.mp4"


def test_json_csv_and_text(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": [1]})
    files.write_csv(tmp_path / "a.csv", ("name", "reason"), [("x,y", 'a "b"'), ("ü", 1)])
    files.write_text(tmp_path / "a.txt", "ü\n")
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1]}
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["name", "reason"], ["x,y", 'a "b"'], ["ü", "1"]]
    assert (tmp_path / "a.txt").read_bytes() == "ü\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "a.json", "a.txt"]


@pytest.mark.parametrize("before", [None, [], ["config.json", "kept.txt"]])
def test_a_finished_folder_is_published(tmp_path, before, monkeypatch):
    target, staging, order = tmp_path / "out", tmp_path / ".staging", []
    if before is not None:
        target.mkdir()
        for name in before:
            (target / name).write_text("old")
    staging.mkdir()
    for name in ("a.bin", "config.json", "z.py"):
        (staging / name).write_text("new")
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda source, to: (order.append(Path(to).name), real(source, to)))
    files.publish(staging, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        **{name: "old" for name in before or []},
        "a.bin": "new",
        "config.json": "new",
        "z.py": "new",
    }
    assert not staging.exists()
    assert order == (["config.json", "a.bin", "z.py", "config.json"] if before else ["out"])


def test_files_are_flushed_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    """As on Windows, where only what is open for writing can be flushed."""
    opened, flushed, real_open, real_fsync = {}, [], os.open, os.fsync

    def windows_open(path, access, *more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = real_open(path, access, *more)
        opened[descriptor] = access & os.O_ACCMODE
        return descriptor

    def windows_fsync(descriptor):
        if opened.get(descriptor) == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(descriptor)
        real_fsync(descriptor)

    monkeypatch.setattr(files.os, "open", windows_open)
    monkeypatch.setattr(files.os, "fsync", windows_fsync)
    files.write_json(tmp_path / "a.json", {"a": 1})
    with files.replacing_folder(tmp_path / "folder") as folder:
        (folder / "b.txt").write_text("b")
    assert (tmp_path / "folder" / "b.txt").read_text() == "b" and len(flushed) == 2


def test_a_folder_is_exchanged_in_one_go(tmp_path):
    target = tmp_path / "out"
    with files.replacing_folder(target) as folder:
        files.write_text(folder / "a.txt", "old")
        files.write_text(folder / "kept.txt", "kept")
    with pytest.raises(RuntimeError), files.replacing_folder(target) as folder:
        files.write_text(folder / "a.txt", "half")
        raise RuntimeError
    assert (target / "a.txt").read_text() == "old"
    (tmp_path / ".out.0123456789ab.tmp").mkdir()  # of a killed process
    (tmp_path / "link").symlink_to(target)
    with files.replacing_folder(tmp_path / "link") as folder:
        files.write_text(folder / "a.txt", "new")
        assert (target / "a.txt").read_text() == "old"
    assert (target / "a.txt").read_text() == "new" and (target / "kept.txt").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"] and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("lives", ["a folder inside", "somebody works in it"])
def test_a_folder_that_lives_stays_and_gets_its_files(tmp_path, monkeypatch, lives):
    target = tmp_path / "out"
    (target / "checkpoint-1").mkdir(parents=True) if lives == "a folder inside" else target.mkdir()
    (target / "a.txt").write_text("old")
    if lives != "a folder inside":
        monkeypatch.chdir(target)
    number = target.stat().st_ino
    with files.replacing_folder(target) as folder:
        files.write_text(folder / "a.txt", "new")
        files.write_text(folder / "metrics.json", "{}")
    assert target.stat().st_ino == number and (target / "a.txt").read_text() == "new"
    assert (target / "metrics.json").exists() and os.listdir(tmp_path) == ["out"]
    assert (target / "checkpoint-1").is_dir() == (lives == "a folder inside")


def test_where_names_cannot_be_exchanged_what_describes_a_folder_comes_last(tmp_path, monkeypatch):
    target, order, real = tmp_path / "out", [], os.replace
    target.mkdir()
    for name in ("config.json", "kept.txt"):
        (target / name).write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    with files.replacing_folder(target) as folder:
        for name in ("config.json", "model.safetensors", "z.txt"):
            files.write_text(folder / name, "new")
        monkeypatch.setattr(os, "replace", lambda source, to: (order.append(Path(to).name), real(source, to)))
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        **dict.fromkeys(("config.json", "model.safetensors", "z.txt"), "new"),
        "kept.txt": "old",
    }
    assert order[1:] == ["config.json", "model.safetensors", "z.txt", "config.json"] and os.listdir(tmp_path) == ["out"]


def test_a_replaced_folder_keeps_its_rights(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o2770)
    with files.replacing_folder(tmp_path / "out") as folder:
        files.write_text(folder / "a.txt", "new")
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o2770


def test_what_comes_while_a_folder_is_replaced_is_kept(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with files.replacing_folder(target) as folder:
        files.write_text(folder / "a.txt", "new")
        (target / "log.txt").write_text("from another process")
    assert sorted(os.listdir(target)) == ["a.txt", "log.txt"]
