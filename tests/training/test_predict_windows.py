"""Labels over time: as the pipeline gives them, in a csv and as a picture."""

import csv

import PIL.Image
import pytest
import torch
from evaluation_parts import tiny_model, tiny_processor
from transformers import pipeline
from video_files import encode

from flux_hf import FluxViTVideoClassificationPipeline
from training.inference.timeline import draw_timeline, read_spans
from training.predict import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    (folder / "long.mp4").write_bytes(encode("libx264", 100))
    (folder / "short.mp4").write_bytes(encode("libx264", 5))
    whole = encode("libx264", 75, container="matroska", options={"g": "5"})
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    return folder


def predict(data, output, *arguments):
    with pytest.raises(SystemExit):  # for the file that is cut
        main([str(data), "--model_name_or_path", str(data / "model"), "--output", str(output), *arguments])
    with open(output, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_windows_are_labelled_as_by_the_pipeline(data, tmp_path):
    more = ["--window", "1", "--stride", "0.5", "--token_budget", "8", "--top_k", "2", "--dataloader_num_workers", "0"]
    rows = predict(data, tmp_path / "out.csv", *more, "--plot", str(tmp_path / "out.png"))
    classify = pipeline(
        "video-classification", model=str(data / "model"), pipeline_class=FluxViTVideoClassificationPipeline
    )
    for name, count in (("long.mp4", 7), ("short.mp4", 1)):
        wanted = classify(str(data / name), window=1.0, stride=0.5, token_budget=8, top_k=2)
        own = [row for row in rows if row["name"].endswith(name)]
        assert len(wanted) == count and len(own) == 2 * count
        found = [(float(row["start"]), float(row["end"]), row["label"]) for row in own]
        assert found == [(part["start"], part["end"], top["label"]) for part in wanted for top in part["labels"]]
        scores = [top["score"] for part in wanted for top in part["labels"]]
        torch.testing.assert_close(torch.tensor([float(row["score"]) for row in own]), torch.tensor(scores))
    cut = [row for row in rows if row["name"].endswith("cut.mkv")]
    assert [row["rank"] for row in cut[-3:]] == ["1", "2", ""] and "cut" in cut[-1]["error"]
    with PIL.Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


HEADER = "name,start,end,rank,label,score,error\n"


def test_a_windows_label_holds_half_the_way_to_its_neighbours(tmp_path):
    rows = ["a,0.0,2.0,1,run,1,", "a,0.0,2.0,2,sit,1,", "a,1.0,3.0,1,sit,1,", "a,2.0,2.5,1,run,1,", "b,,,,,,gone"]
    (tmp_path / "out.csv").write_text(HEADER + "\n".join(rows))
    spans = read_spans(tmp_path / "out.csv")
    assert spans == {"a": [(0.0, 1.5, "run"), (1.5, 2.125, "sit"), (2.125, 2.5, "run")], "b": []}


def test_more_labels_than_colours_and_more_videos_than_strips(tmp_path):
    rows = [
        f"video {video},{time}.0,{time + 1}.0,1,label {video + time},1," for video in range(45) for time in range(2)
    ]
    (tmp_path / "out.csv").write_text(HEADER + "\n".join(rows))
    draw_timeline(tmp_path / "out.csv", tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as picture:
        heights = picture.height
    (tmp_path / "one.csv").write_bytes(HEADER.encode() + b"c\xff.mp4,,,,,,gone\n")
    draw_timeline(tmp_path / "one.csv", tmp_path / "one.png")
    with PIL.Image.open(tmp_path / "one.png") as picture:
        assert picture.height < heights / 5


def test_flags_that_do_not_go_together(data, tmp_path):
    fixed = [str(data), "--model_name_or_path", str(data / "model"), "--output", str(tmp_path / "out.csv")]
    for more, message in (
        (["--plot", "x.png"], "--plot x.png is of labels over time"),
        (["--plot", str(tmp_path), "--window", "1"], "--plot must be a file"),
        (["--window", "1", "--num_clips", "2"], "--num_clips 2 is for whole clips"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*fixed, *more])
