"""A command killed before any of its renames leaves the folder as it was, or as it should become; never a mixture."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from evaluation_parts import save_checkpoint, tiny_model, write_clips

from conversion.convert_to_hf import convert
from conversion.convert_to_official import export
from conversion.infer_config import ConfigChoices
from flux_hf import checkpoint_files
from training import evaluate, optimize_tokens, predict


KILLED = 77


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
            os.replace = dying(os.replace)
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
        path.name: "" if path.name in volatile else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.endswith(".tmp")
    }


def check_kills(folder: Path, function, *arguments, old: dict[str, str], volatile: tuple[str, ...] = ()) -> None:
    """The call makes of `folder` something new; at each kill on the way it must be `old` or that."""
    kept = folder.with_name("kept")
    os.rename(folder, kept)

    def fresh() -> None:
        checkpoint_files.remove(folder)
        with checkpoint_files.replacing_folder(folder) as copy:
            for path in kept.iterdir():
                (copy / path.name).write_bytes(path.read_bytes())

    fresh()
    total = renames_until(None, function, *arguments)
    new = contents(folder, volatile)
    assert total and new != old
    for stop in sorted({*range(1, total + 1, max(1, total // 8)), max(total - 1, 1), total}):
        fresh()
        assert renames_until(stop, function, *arguments) is None
        found = contents(folder, volatile)
        assert found in (old, new), f"killed before rename {stop} of {total}: a mixture"
    function(*arguments)  # the next run succeeds, and leaves nothing of the killed ones
    assert contents(folder, volatile) == new
    assert not [path for path in folder.parent.rglob(".*.tmp")]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rows = [f"{path.relative_to(folder)},class {index % 3}" for index, path in enumerate(write_clips(folder))]
    (folder / "val.csv").write_text("\n".join(["path,label", *rows, ""]))
    return folder / "val.csv"


def test_convert_into_a_folder_that_holds_another_model(tmp_path):
    paths = []
    for name in ("one", "two"):
        model = tiny_model()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
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
    convert(paths[0], out, heads)
    (out / "notes.txt").write_text("mine")
    check_kills(out, convert, paths[1], out, heads, old=contents(out))
    assert (out / "notes.txt").read_text() == "mine"


def words(checkpoint: Path, clips: Path, *more: str) -> list[str]:
    return ["--model_name_or_path", str(checkpoint), "--data", str(clips), "--dataloader_num_workers", "0", *more]


def test_optimize_tokens_writes_its_plan_everywhere_or_nowhere(clips, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "work" / "model", token_plan={16: [8, 28]})
    more = ("--frames", "2", "4", "--sizes", "28", "--token_budgets", "8", "4")
    check_kills(checkpoint, optimize_tokens.main, words(checkpoint, clips, *more), old=contents(checkpoint))


def test_evaluate_leaves_no_new_predictions_beside_old_metrics(clips, tmp_path):
    out, volatile = tmp_path / "work" / "results", ("metrics.json",)
    old_model = save_checkpoint(tmp_path / "old")
    new_model = save_checkpoint(tmp_path / "new", id2label=dict(enumerate("abcdef")))
    evaluate.main([*words(old_model, clips, "--points", "2x28@4", "--per_class"), "--output_dir", str(out)])
    (clips.parent / "abc.csv").write_text(clips.read_text().replace("class 0", "a").replace("class 1", "b"))
    labelled = (clips.parent / "abc.csv").read_text().replace("class 2", "c")
    (clips.parent / "abc.csv").write_text(labelled)
    again = [*words(new_model, clips.parent / "abc.csv", "--points", "4x28@8"), "--output_dir", str(out)]
    check_kills(out, evaluate.main, again, old=contents(out, volatile), volatile=volatile)


def test_predict_replaces_its_list_in_one_go(clips, tmp_path):
    out = tmp_path / "work"
    out.mkdir()
    model = save_checkpoint(tmp_path / "model")
    fixed = ["--model_name_or_path", str(model), str(clips.parent), "--output", str(out / "labels.csv")]
    fixed += ["--dataloader_num_workers", "0"]
    predict.main([*fixed, "--token_budget", "4"])
    check_kills(out, predict.main, [*fixed, "--token_budget", "16", "--top_k", "2"], old=contents(out))
