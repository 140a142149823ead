"""Every clip gets its label or its error, whichever way the clips are named."""

import csv
import os
from pathlib import Path

import pytest
from evaluation_parts import direct_scores, tiny_model, tiny_processor, write_clips

from flux_hf import FluxViTVideoClassificationPipeline
from training.inference.command import find_clips
from training.inference.points import EvalPoint
from training.predict import main


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_model(token_plan={4: [2, 42]}).save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    write_clips(folder / "clips")
    (folder / "clips" / "notes.md").write_text("no video")
    (folder / "clips" / ".hidden.mp4").write_bytes(b"left behind by a writer")
    return folder


def predict(data: Path, output: Path, *arguments: str) -> list[dict[str, str]]:
    fixed = ["--model_name_or_path", str(data / "model"), "--output", str(output), "--dataloader_num_workers", "0"]
    main([*fixed, *arguments])
    with open(output, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected(path: str | Path, point: EvalPoint, top_k: int = 1, **views) -> list[tuple[str, float]]:
    scores = direct_scores(tiny_model(), tiny_processor(), Path(path), point, **views)
    best = scores.argsort(descending=True)[:top_k].tolist()
    return [(f"class {index}", pytest.approx(scores[index].item(), abs=1e-5)) for index in best]


def test_a_folder_is_searched_with_its_sub_folders(data, tmp_path):
    rows = predict(data, tmp_path / "new" / "out.csv", str(data / "clips"), "--per_device_eval_batch_size", "4")
    names = ["a/clip.1.mp4", "a/second.mp4", "b/clip.1.mp4", "fifth.mp4", "last.mp4", "short.mp4"]
    assert [row["name"] for row in rows] == [str(data / "clips" / name) for name in names]
    for row in rows:
        assert [(row["label"], float(row["score"]))] == expected(row["name"], EvalPoint(4, 28, 8))
        assert (row["rank"], row["error"]) == ("1", "")
    assert os.listdir(tmp_path / "new") == ["out.csv"]


@pytest.mark.parametrize(
    ("more", "point", "views"),
    [
        (["--token_budget", "4"], EvalPoint(2, 42, 4), {}),  # the plan's
        (["--token_budget", "5"], EvalPoint(4, 28, 5), {}),
        (["--token_budget", "4", "--num_frames", "6"], EvalPoint(6, 28, 4), {}),
        (["--size", "42", "--num_clips", "2", "--num_crops", "3"], EvalPoint(4, 42), {"num_clips": 2, "num_crops": 3}),
    ],
)
def test_points_and_views(data, tmp_path, more, point, views):
    clip = str(data / "clips" / "a" / "second.mp4")
    rows = predict(data, tmp_path / "out.csv", clip, "--top_k", "3", *more)
    assert [(row["label"], float(row["score"])) for row in rows] == expected(clip, point, 3, **views)
    assert [(row["name"], row["rank"]) for row in rows] == [(clip, "1"), (clip, "2"), (clip, "3")]


def test_a_regression_gives_its_values_as_the_pipeline_does(data, tmp_path):
    model = tiny_model(problem_type="regression", id2label={0: "speed"})
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    clip = str(data / "clips" / "a" / "second.mp4")
    [row] = predict(data, tmp_path / "out.csv", clip, "--model_name_or_path", str(tmp_path / "model"))
    [wanted] = FluxViTVideoClassificationPipeline(model=model, video_processor=tiny_processor())(clip)
    assert row["label"] == wanted["label"] == "speed"
    assert float(row["score"]) == pytest.approx(wanted["score"], abs=1e-5) and not 0 <= wanted["score"] <= 1


def test_an_unreadable_clip_gets_a_row_and_status_1(data, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    sources = [str(tmp_path / "broken.mp4"), str(data / "clips" / "short.mp4"), str(tmp_path / "gone.mp4")]
    with pytest.raises(SystemExit) as stopped:
        predict(data, tmp_path / "out.csv", *sources, "--top_k", "2")
    assert stopped.value.code == 1
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [sources[0], sources[1], sources[1], sources[2]]
    assert "broken.mp4" in rows[0]["error"] and "gone.mp4" in rows[3]["error"]
    assert [(row["label"], row["score"]) for row in (rows[0], rows[3])] == [("", "")] * 2
    assert [(row["label"], float(row["score"])) for row in rows[1:3]] == expected(sources[1], EvalPoint(4, 28, 8), 2)


def test_tables_need_no_labels(data, tmp_path):
    for content in ("path\nshort.mp4\na/clip.1.mp4\n", "path,label\nshort.mp4,whatever\na/clip.1.mp4,\n"):
        (data / "clips" / "list.csv").write_text(content)
        rows = predict(data, tmp_path / "out.csv", str(data / "clips" / "list.csv"))
        assert [row["name"] for row in rows] == ["short.mp4", "a/clip.1.mp4"]
        for row in rows:
            wanted = expected(data / "clips" / row["name"], EvalPoint(4, 28, 8))
            assert [(row["label"], float(row["score"]))] == wanted


def test_sources_that_cannot_be(data, tmp_path):
    clip = str(data / "clips" / "short.mp4")
    with pytest.raises(ValueError, match="short.mp4"):
        find_clips([clip, clip])
    with pytest.raises(ValueError, match="must hold videos"):
        find_clips([str(tmp_path)])
    with pytest.raises(ValueError, match="is a folder"):
        predict(data, tmp_path, clip)
