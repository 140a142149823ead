"""Labels that `training.predict` has written are not lost: a run that was cut short is gone on with."""

import csv
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from evaluation_parts import run_on_processes, tiny_model, tiny_processor, write_clips

from training.inference import command
from training.inference.labels import LabelShards, Scores
from training.inference.parts import Part
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
    fixed += ["--dataloader_num_workers", "0", "--clips_per_shard", "1"]
    return [*(str(data / name) for name in NAMES), *fixed, *more]


def main_that_dies(arguments: list[str]) -> None:
    """`main`, killed as it is about to score its third clip; of two processes the second one, at its second."""
    score, calls = Scores.__call__, []
    last = {None: 3, "1": 2}.get(os.environ.get("RANK"))

    def dying(*given):
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(*given)

    Scores.__call__ = dying
    main(arguments)


def in_a_child(function, *given) -> int:
    """Its exit status there."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            function(*given)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(arguments: list[str]) -> None:
    assert in_a_child(main_that_dies, arguments) == -signal.SIGKILL


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):  # for the clips that cannot be read
        main(arguments)


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def labels(path: Path) -> list[list[str]]:
    """Rows with their scores but for what threads change in them."""
    return [[*row[:3], f"{float(row[3]):.4f}" if row[3][:1].isdigit() else "", row[4]] for row in rows(path)]


def partial(data: Path) -> Path:
    [path] = data.glob("out.csv.*.partial")
    return path


def test_the_same_command_makes_what_a_killed_run_did_not(data):
    run(words(data))
    whole = (data / "out.csv").read_bytes()
    assert list(dict.fromkeys(row[0] for row in rows(data / "out.csv")[1:])) == [str(data / name) for name in NAMES]
    (data / "out.csv").write_text("old")
    kill(words(data))
    assert (data / "out.csv").read_text() == "old"
    there = sorted(partial(data).iterdir())
    assert [path.name for path in there] == [f"labels-{unit:06}.csv" for unit in range(3)]
    assert whole.startswith(there[0].read_bytes())
    for name in NAMES[:2]:
        (data / name).unlink()  # what is labelled is not read again
    run(words(data))
    assert (data / "out.csv").read_bytes() == whole
    assert not list(data.glob("*.partial"))


def test_a_run_killed_before_its_last_step_has_nothing_left_to_do(data, monkeypatch):
    arguments = [str(data / "short.mp4"), *words(data)[len(NAMES) :]]
    with monkeypatch.context() as patch:
        patch.setattr(LabelShards, "finish", lambda *_: os._exit(77))
        assert in_a_child(main, arguments) == 77
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
    score, calls = Scores.__call__, []

    def spoilt(*given):
        calls.append(1)
        return score(*given) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(Scores, "__call__", spoilt)
    with pytest.raises(FloatingPointError, match=r"1 clips is not numbers, first for .*a/clip.1.mp4"):
        main(words(data))
    assert [path.name for path in partial(data).iterdir()] == ["labels-000000.csv"]


@pytest.mark.parametrize(
    ("values", "with_budgets"), [([float("nan"), float("nan"), 8.0], True), ([0.5, float("nan")], False)]
)
def test_a_score_that_is_no_number_is_no_label(values, with_budgets, tmp_path):
    """Of an automatic budget too, which is a number itself, and of one label of several."""
    shards = LabelShards(tmp_path / "out.csv", "0123456789ab", {0: "a", 1: "b"}, 1, False, with_budgets)
    shards.prepare()
    with pytest.raises(FloatingPointError, match=r"1 clips is not numbers, first for y.mp4"):
        shards.write(0, [Part("x.mp4"), Part("y.mp4")], torch.tensor([[0.5] * len(values), values]))
    assert not shards.is_done(0)


def wait_less_than_another(arguments: list[str]) -> None:
    command.PATIENCE = timedelta(seconds=1)
    accelerator = command.start_accelerator()
    if accelerator.is_main_process:
        with pytest.raises(RuntimeError, match="[Tt]imed out"):
            accelerator.wait_for_everyone()
    else:
        time.sleep(5)
    os._exit(0)  # neither can leave the other in peace


def test_processes_wait_for_each_other_as_long_as_is_said():
    """torch's own ten minutes would end a run in which one process has a long video and the others none."""
    run_on_processes(2, wait_less_than_another, [])
    assert command.PATIENCE.days >= 7


def test_two_processes_share_the_work_and_one_goes_on_with_it(data):
    run(words(data))
    whole = labels(data / "out.csv")
    with pytest.raises(RuntimeError, match=r"\[1, 1\]"):  # the clips that cannot be read
        run_on_processes(2, main, words(data))
    assert labels(data / "out.csv") == whole and not list(data.glob("*.partial"))
    (data / "out.csv").write_text("old")
    with pytest.raises(RuntimeError, match="ended with"):
        run_on_processes(2, main_that_dies, words(data))
    assert (data / "out.csv").read_text() == "old" and list(partial(data).glob("labels-*.csv"))
    run(words(data))
    assert labels(data / "out.csv") == whole and not list(data.glob("*.partial"))


def test_shards_of_names_with_everything_in_them_are_joined(tmp_path):
    """What runs that were cut short left for the same output goes."""
    shards = LabelShards(
        tmp_path / "out.csv", "fedcba987654", {0: "run", 1: "sit, down", 2: 'no "1"'}, 2, of_windows=True
    )
    (tmp_path / "out.csv.0123456789ab.partial").mkdir()
    (tmp_path / "out.csv.top5.0123456789ab.partial").mkdir()  # of another output
    shards.prepare()
    parts = [Part('b "x",\n', 0.0, 0.5), Part("cé\udcff", 1.0, 1.5, error='no "video",\nat all')]
    shards.write(0, parts, torch.tensor([[0.25, 0.5, 0.25]]))
    shards.write(1, [Part("d", 0.0, 2.0)], torch.tensor([[0.25, 0.25, 0.5]]))
    assert shards.is_done(0) and shards.is_done(1) and not shards.is_done(2)
    assert shards.finish(2) == 1
    with open(tmp_path / "out.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [
            ["name", "start", "end", "rank", "label", "score", "error"],
            ['b "x",\n', "0.0", "0.5", "1", "sit, down", "0.5", ""],
            ['b "x",\n', "0.0", "0.5", "2", "run", "0.25", ""],
            ["cé\udcff", "1.0", "1.5", "", "", "", 'no "video",\nat all'],
            ["d", "0.0", "2.0", "1", 'no "1"', "0.5", ""],
            ["d", "0.0", "2.0", "2", "run", "0.25", ""],
        ]
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.csv.top5.0123456789ab.partial"]
