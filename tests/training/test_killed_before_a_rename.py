"""A command killed before any of its renames leaves the folder as it was, or as it should become; never a mixture."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_parts import save_checkpoint, tiny_model, write_clips
from transformers import AutoConfig, AutoModelForVideoClassification

from conversion.convert_to_hf import convert
from conversion.convert_to_official import export
from conversion.infer_config import ConfigChoices
from flux_hf import FluxViTForVideoClassification, FluxViTModel, checkpoint_files
from training import evaluate, optimize_tokens, predict


KILLED = 77
# How the new files get to their place: the folder is exchanged, or (it holds another, or the system cannot) one by one.
WAYS = ("in one go", "a folder inside", "no exchange")


def renames_until(stop: int | None, function, *arguments) -> int | None:
    """Runs a call in a process of its own that dies before rename number `stop`. Returns how many renames there were,
    None if it died.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0

        def dying(rename):
            def counted(*names):
                nonlocal count
                count += 1
                if count == stop:
                    os._exit(KILLED)
                return rename(*names)

            return counted

        try:
            torch.set_num_threads(1)
            os.fsync = lambda descriptor: None  # a kill takes nothing away that was written
            os.replace, os.rename = dying(os.replace), dying(os.rename)  # whose names nobody else holds
            checkpoint_files._exchange = dying(checkpoint_files._exchange)
            function(*arguments)
            os.write(write, str(count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(read, "rb") as pipe:
        told = pipe.read()
    assert status in (0, KILLED), status
    return int(told) if status == 0 else None


def contents(folder: Path, volatile: tuple[str, ...] = ()) -> dict[str, str]:
    """Digest of each file; of `volatile` ones, which tell the time, only that they are there."""
    return {
        str(path.relative_to(folder)): "" if path.name in volatile else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.endswith((".tmp", ".partial")) for part in path.relative_to(folder).parts)
    }


def check_kills(
    monkeypatch, way: str, folder: Path, function, *arguments, volatile: tuple[str, ...] = (), describing: str = ""
) -> None:
    """The call makes something new of `folder`. Killed before any of its renames it leaves the old or the new; where
    files are moved one by one, else a folder whose `describing` file cannot be read. And the next call makes the new.
    """
    if way == "a folder inside":
        (folder / "checkpoint-1").mkdir(parents=True)
        (folder / "checkpoint-1" / "state.bin").write_text("of a run")
    elif way == "no exchange":
        monkeypatch.setattr(checkpoint_files, "_exchange", lambda one, other: False)
    kept, old = folder.with_name("kept"), contents(folder, volatile) if folder.exists() else {}
    if folder.exists():
        os.rename(folder, kept)

    def fresh() -> None:
        checkpoint_files.remove(folder)
        if kept.exists():
            shutil.copytree(kept, folder)

    fresh()
    total = renames_until(None, function, *arguments)
    new, half = contents(folder, volatile), 0
    assert total and new != old
    first = 1 if way == "in one go" else max(1, total - len(new) - 2)  # before, all ways are the same
    for stop in range(first, total + 1):
        fresh()
        assert renames_until(stop, function, *arguments) is None
        found = contents(folder, volatile) if folder.exists() else {}
        if found not in (old, new):
            assert way != "in one go" and describing, f"killed before {stop} of {total}"
            assert (folder / describing).read_text() == checkpoint_files.HALF_WAY
            half += 1
        if found != old or stop in (first, total):
            assert renames_until(None, function, *arguments)
            assert contents(folder, volatile) == new
            assert not [path for path in folder.parent.rglob("*") if path.suffix in (".tmp", ".whole", ".partial")]
    assert bool(half) == (way in ("a folder inside", "no exchange"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rows = [f"{path.relative_to(folder)},class {index % 3}" for index, path in enumerate(write_clips(folder))]
    (folder / "val.csv").write_text("\n".join(["path,label", *rows, ""]))
    return folder / "val.csv"


@pytest.mark.parametrize(
    "way", ["in one go", pytest.param("a folder inside", marks=pytest.mark.slow), "no exchange", "a new folder"]
)
def test_convert_into_a_folder_that_holds_another_model(tmp_path, monkeypatch, way):
    paths = []
    for name, deviation in (("one", 0.02), ("two", 0.03)):
        model = tiny_model()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=deviation)
        model.save_pretrained(tmp_path / name)
        export(tmp_path / name, tmp_path / f"{name}.pth")
        paths.append(tmp_path / f"{name}.pth")
    config = tiny_model().config
    heads = ConfigChoices(
        num_attention_heads=config.num_attention_heads,
        num_pooling_heads=config.num_pooling_heads,
        token_budgets=config.token_budgets,
        position_frames=config.position_embedding_grid[0],
    )
    out = tmp_path / "work" / "out"
    if way != "a new folder":
        convert(paths[0], out, heads)
        (out / "notes.txt").write_text("mine")
    check_kills(monkeypatch, way, out, convert, paths[1], out, heads, describing="config.json")
    assert way == "a new folder" or (out / "notes.txt").read_text() == "mine"


def words(checkpoint: Path, clips: Path, *more: str) -> list[str]:
    return ["--model_name_or_path", str(checkpoint), "--data", str(clips), "--dataloader_num_workers", "0", *more]


@pytest.mark.parametrize("way", WAYS)
def test_optimize_tokens_writes_its_plan_everywhere_or_nowhere(clips, tmp_path, monkeypatch, way):
    checkpoint = save_checkpoint(tmp_path / "work" / "model", token_plan={16: [8, 28]})
    more = ("--frames", "2", "4", "--sizes", "28", "--token_budgets", "8", "4")
    arguments = words(checkpoint, clips, *more)
    check_kills(monkeypatch, way, checkpoint, optimize_tokens.main, arguments, describing="config.json")


@pytest.mark.parametrize("way", WAYS)
def test_evaluate_leaves_no_new_predictions_beside_old_metrics(clips, tmp_path, monkeypatch, way):
    out, volatile = tmp_path / "work" / "results", ("metrics.json",)
    old_model = save_checkpoint(tmp_path / "old")
    new_model = save_checkpoint(tmp_path / "new", id2label=dict(enumerate("abcdef")))
    evaluate.main([*words(old_model, clips, "--points", "2x28@4", "--per_class"), "--output_dir", str(out)])
    (clips.parent / "abc.csv").write_text(clips.read_text().replace("class 0", "a").replace("class 1", "b"))
    labelled = (clips.parent / "abc.csv").read_text().replace("class 2", "c")
    (clips.parent / "abc.csv").write_text(labelled)
    again = [*words(new_model, clips.parent / "abc.csv", "--points", "4x28@8"), "--output_dir", str(out)]
    check_kills(monkeypatch, way, out, evaluate.main, again, volatile=volatile, describing="metrics.json")


def test_predict_replaces_its_list_in_one_go(clips, tmp_path, monkeypatch):
    out = tmp_path / "work"
    out.mkdir()
    model = save_checkpoint(tmp_path / "model")
    fixed = ["--model_name_or_path", str(model), str(clips.parent), "--output", str(out / "labels.csv")]
    fixed += ["--dataloader_num_workers", "0"]
    predict.main([*fixed, "--token_budget", "4"])
    check_kills(monkeypatch, "in one go", out, predict.main, [*fixed, "--token_budget", "16", "--top_k", "2"])


def test_a_half_replaced_folder_is_not_loaded(tmp_path, monkeypatch):
    """And what others have put there meanwhile is not lost to what the killed process left."""
    model = save_checkpoint(tmp_path / "model")
    (model / "checkpoint-1").mkdir()
    shutil.copytree(model, tmp_path / "copy")

    def change() -> None:
        with checkpoint_files.replacing_folder(model) as folder:
            for name in ("config.json", "model.safetensors"):
                checkpoint_files.write_text(folder / name, (folder / name).read_text(errors="replace") + " ")

    total = renames_until(None, change)
    shutil.rmtree(model)
    shutil.copytree(tmp_path / "copy", model)
    assert renames_until(total, change) is None and list(tmp_path.glob(".model.*.whole"))
    for load in (FluxViTForVideoClassification, FluxViTModel, AutoModelForVideoClassification, AutoConfig):
        with pytest.raises((OSError, ValueError), match="config.json"):
            load.from_pretrained(model)
    (model / "config.json").write_text("mended by hand")
    checkpoint_files.finish_replacing(model)
    assert (model / "config.json").read_text() == "mended by hand" and not list(tmp_path.glob(".model.*.whole"))
