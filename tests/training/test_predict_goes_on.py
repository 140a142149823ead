"""Labels that `training.predict` has written are not lost: a run that was cut short is gone on with."""

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from evaluation_parts import run_on_processes, tiny_model, tiny_processor, write_clips

from training.data.reader import VideoFile
from training.inference.prediction import Predictor
from training.inference.unfinished import HEADER, Done, UnfinishedCsv
from training.predict import main


NAMES = ("fifth.mp4", "a/clip.1.mp4", "broken.mp4", "short.mp4", "b/clip.1.mp4", "gone.mp4", "last.mp4")


@pytest.fixture
def data(tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    write_clips(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    return tmp_path


def words(data: Path, *more: str) -> list[str]:
    fixed = ["--model_name_or_path", str(data / "model"), "--output", str(data / "out.csv"), "--top_k", "2"]
    fixed += ["--dataloader_num_workers", "0", "--per_device_eval_batch_size", "1"]
    return [*(str(data / name) for name in NAMES), *fixed, *more]


def main_that_dies(arguments: list[str]) -> None:
    """`main`, killed when it has scored two batches and is about to score the third."""
    score, calls = Predictor._score, []

    def dying(*given):
        calls.append(1)
        if len(calls) == 3 and os.environ.get("RANK", "1") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return score(*given)

    Predictor._score = dying
    main(arguments)


def kill(arguments: list[str]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            main_that_dies(arguments)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):  # for the clips that cannot be read
        main(arguments)


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def labels(path: Path) -> list[list[str]]:
    """Rows with their scores but for what threads and batches change in them."""
    return [[*row[:3], f"{float(row[3]):.4f}" if row[3][:1].isdigit() else "", row[4]] for row in rows(path)]


def partial(data: Path) -> Path:
    [path] = data.glob("out.csv.*.partial")
    return path


def test_the_same_command_goes_on_behind_the_labels_of_a_killed_run(data, capsys):
    run(words(data))
    whole = rows(data / "out.csv")
    assert [name for name in dict.fromkeys(row[0] for row in whole[1:])] == [str(data / name) for name in NAMES]
    (data / "out.csv").write_text("old")
    kill(words(data))
    assert (data / "out.csv").read_text() == "old" and rows(partial(data)) == whole[:5]
    for name in NAMES[:2]:
        (data / name).unlink()  # what is labelled is not read again
    run(words(data, "--per_device_eval_batch_size", "3"))  # how much is done at once does not matter
    assert rows(data / "out.csv")[:5] == whole[:5]
    assert [row[:3] + row[4:] for row in rows(data / "out.csv")] == [row[:3] + row[4:] for row in whole]
    assert "going on after 2 of 7 clips" in capsys.readouterr().out
    assert not list(data.glob("*.partial"))


def test_a_run_killed_before_its_last_step_has_nothing_left_to_do(data):
    arguments = [str(data / "short.mp4"), *words(data)[len(NAMES) :]]
    pid = os.fork()
    if pid == 0:
        UnfinishedCsv.finish = lambda self: os._exit(77)
        torch.set_num_threads(1)
        main(arguments)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 77
    (data / "short.mp4").unlink()
    main(arguments)
    assert len(rows(data / "out.csv")) == 3


@pytest.mark.parametrize("change", ["flag", "weights", "clips"])
def test_other_work_begins_anew(data, change):
    kill(words(data))
    left = partial(data)
    arguments = words(data)
    if change == "flag":
        arguments = words(data, "--top_k", "1")
    elif change == "weights":
        model = tiny_model()
        with torch.no_grad():
            model.classifiers[0].bias += 0.25
        model.save_pretrained(data / "model")
    else:
        arguments = arguments[1:]
    kill(arguments)
    assert len(list(data.glob("*.partial"))) == 2 and left.exists()  # until there is a whole one
    run(arguments)
    assert not list(data.glob("*.partial")) and len(rows(data / "out.csv")) > 5


def test_scores_that_are_no_numbers_leave_the_labels_before_them(data, monkeypatch):
    score, calls = Predictor._score, []

    def spoilt(*given):
        calls.append(1)
        return score(*given) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(Predictor, "_score", spoilt)
    with pytest.raises(FloatingPointError, match="clip.1.mp4"):
        main(words(data))
    assert [row[0] for row in rows(partial(data))] == ["name"] + [str(data / NAMES[0])] * 2


def test_two_processes_write_in_order_and_end_when_one_of_them_is_killed(data):
    run(words(data))
    whole = labels(data / "out.csv")
    (data / "out.csv").unlink()
    with pytest.raises(RuntimeError, match=r"\[1, 1\]"):  # the clips that cannot be read
        run_on_processes(2, main, words(data))
    assert labels(data / "out.csv") == whole and not list(data.glob("*.partial"))
    (data / "out.csv").write_text("old")
    with pytest.raises(RuntimeError, match="ended with"):
        run_on_processes(2, main_that_dies, words(data))
    assert (data / "out.csv").read_text() == "old" and labels(partial(data)) == whole[: 1 + 2 + 2 + 1 + 2]
    run(words(data))
    assert labels(data / "out.csv") == whole and not list(data.glob("*.partial"))


# --- the file --------------------------------------------------------------------------------------------------------

CLIPS = [VideoFile(name, None, name) for name in ("a", 'b "x",\n', "bad", "cé", "worse")]
ROWS = [
    [("a", 1, "run", 0.75, ""), ("a", 2, "sit, down", 0.25, "")],
    [(CLIPS[1].name, 1, "run", 0.5, ""), (CLIPS[1].name, 2, "sit, down", 0.5, "")],
    [("bad", "", "", "", 'no "video",\nat all')],
    [("cé", 1, "1", 1e-07, ""), ("cé", 2, "2", 1e-08, "")],
    [("worse", "", "", "", "no video")],
]


def test_a_file_cut_anywhere_is_gone_on_with(tmp_path):
    file = UnfinishedCsv(tmp_path / "out.csv", "0123")
    assert file.resume(CLIPS, 2) == Done() and rows(file.path) == [list(HEADER)]
    for some in ROWS:
        file.append(some)
    content, seen = file.path.read_bytes(), set()
    for length in range(len(content) + 1):
        file.path.write_bytes(content[:length])
        done = file.resume(CLIPS, 2)
        assert content.startswith(file.path.read_bytes())
        seen.add(done)
        for some in ROWS[done.clips :]:
            file.append(some)
        assert file.path.read_bytes() == content, length
    # bad ones at the end are tried again, those before a good one are not
    assert seen == {Done(), Done(2, 1, 0), Done(4, 2, 0), Done(7, 4, 1)}
    file.finish()
    assert os.listdir(tmp_path) == ["out.csv"] and (tmp_path / "out.csv").read_bytes() == content


def test_rows_that_are_not_of_these_clips_are_left_out(tmp_path):
    file = UnfinishedCsv(tmp_path / "out.csv", "0123")
    file.resume(CLIPS, 2)
    for some in (ROWS[0], ROWS[3], ROWS[1]):
        file.append(some)
    assert file.resume(CLIPS, 2) == Done(2, 1, 0)
