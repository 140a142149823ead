"""The command writes what the model says of each file alone, and the same on one, two and three processes."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from evaluation_parts import (
    direct_scores,
    lines_drawn,
    run_on_processes,
    save_checkpoint,
    tiny_model,
    tiny_processor,
    write_clips,
)
from PIL import Image

from flux_hf.token_selection import frame_difference_scores
from training import predict
from training.evaluate import choose_points, main, parse_arguments
from training.inference.points import EvalPoint


POINTS = [EvalPoint(4, 28, 16), EvalPoint(4, 28, 8), EvalPoint(2, 42, 4)]
VIEWS = ["--num_clips", "2", "--num_crops", "3", "--per_device_eval_batch_size", "5", "--per_class"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A checkpoint, clips (one of them broken) and a csv that names the labels in two ways."""
    folder = tmp_path_factory.mktemp("data")
    save_checkpoint(folder / "model")
    paths = write_clips(folder)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    labels = ["class 2", "class 5", "2", "class 0", "class 5", "class 2"]
    rows = [(str(path.relative_to(folder)), label) for path, label in zip(paths, labels, strict=True)]
    rows.insert(2, ("broken.mp4", "class 2"))
    (folder / "val.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    return folder


def flags(data: Path, output_dir: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", data / "model", "--data", data / "val.csv", "--output_dir", output_dir, *more]
    return [str(word) for word in (*given, "--dataloader_num_workers", 0)]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "new"
    main(flags(data, folder, "--points", *map(str, POINTS), *VIEWS))
    return folder


def test_metrics_are_those_of_each_file_alone(data, results):
    model, processor = tiny_model(), tiny_processor()
    metrics = json.loads((results / "metrics.json").read_text())
    rows = read_csv(data / "val.csv")
    good = [row for row in rows if row["path"] != "broken.mp4"]
    targets = torch.tensor([2, 5, 2, 0, 5, 2])
    predictions = read_csv(results / "predictions.csv")
    assert len(predictions) == len(POINTS) * len(rows)
    for point, result in zip(POINTS, metrics["points"], strict=True):
        scores = torch.stack(
            [direct_scores(model, processor, data / row["path"], point, num_clips=2, num_crops=3) for row in good]
        )
        best = scores.argsort(dim=-1, descending=True)
        assert result["point"] == str(point)
        assert result["top1"] == pytest.approx((best[:, 0] == targets).float().mean().item())
        assert result["top5"] == pytest.approx((best[:, :5] == targets[:, None]).any(1).float().mean().item())
        assert (result["clips_counted"], result["failures"]) == (6, 1)
        assert result["kept_tokens"] == point.token_budget
        assert result["gflops_per_view"] == model.flops(point.num_frames, point.size, point.token_budget) / 1e9
        own = {row["name"]: row for row in predictions if row["point"] == str(point)}
        assert list(own) == [row["path"] for row in rows]  # in order; dots and equal stems keep names apart
        assert "broken.mp4" in own["broken.mp4"]["error"] and own["broken.mp4"]["predicted"] == ""
        for row, clip_scores, order, target in zip(good, scores, best.tolist(), targets.tolist(), strict=True):
            written = own[row["path"]]
            assert (written["label"], written["predicted"]) == (f"class {target}", f"class {order[0]}")
            assert float(written["score"]) == pytest.approx(clip_scores.max().item(), abs=1e-5)
            top5 = json.loads(written["top5"])
            assert [name for name, _ in top5] == [f"class {index}" for index in order[:5]]
            assert [score for _, score in top5] == pytest.approx(clip_scores[order[:5]].tolist(), abs=1e-5)
    assert metrics["clips"] == 7 and [failure["name"] for failure in metrics["failures"]] == ["broken.mp4"]
    assert metrics["views"] == {"num_clips": 2, "num_crops": 3}
    assert {"flux_hf", "torch", "transformers"} <= set(metrics["versions"])


def test_reports_of_classes(results):
    predictions = [row for row in read_csv(results / "predictions.csv") if not row["error"]]
    per_class = {(row["point"], row["label"]): row for row in read_csv(results / "per_class.csv")}
    assert len(per_class) == len(POINTS) * 6
    for point in map(str, POINTS):
        with open(results / f"confusion_{point}.csv", newline="") as file:
            header, *lines = csv.reader(file)
        own = [row for row in predictions if row["point"] == point]
        for line in lines:
            for name, number in zip(header[1:], line[1:], strict=True):
                pairs = [row for row in own if (row["label"], row["predicted"]) == (line[0], name)]
                assert int(number) == len(pairs)
            total = sum(map(int, line[1:]))
            row = per_class[point, line[0]]
            hits = int(line[header.index(line[0])])
            assert (int(row["clips"]), row["accuracy"]) == (total, str(hits / total) if total else "")


def test_the_picture_and_nothing_temporary(results):
    with Image.open(results / "accuracy_gflops.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    assert lines_drawn(results / "accuracy_gflops.png") == [True, True, False]  # 4 frames of 28, 2 of 42
    confusions = {f"confusion_{point}.csv" for point in POINTS}
    expected = {"metrics.json", "predictions.csv", "per_class.csv", "accuracy_gflops.png", *confusions}
    assert {path.name for path in results.iterdir()} == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_every_clip_counts_once_on_any_number_of_processes(data, results, tmp_path, processes):
    """Of 7 clips 2 processes take 4 and 3, 3 processes 3, 2 and 2: some run dry. The last point is cut into parts."""
    run_on_processes(processes, main, flags(data, tmp_path, "--points", *map(str, POINTS), *VIEWS))
    metrics, alone = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, results))
    assert (metrics.pop("num_processes"), alone.pop("num_processes")) == (processes, 1)
    assert metrics.pop("seconds") > 0 and alone.pop("seconds") > 0
    assert metrics == alone
    for row, other in zip(*(read_csv(folder / "predictions.csv") for folder in (tmp_path, results)), strict=True):
        scores = [dict(json.loads(entry.pop("top5") or "[]")) for entry in (row, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert row.pop("score")[:5] == other.pop("score")[:5]
        assert row == other
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in results.iterdir()}


# --- which points ----------------------------------------------------------------------------------------------------


def points_of(checkpoint: Path, *more: str) -> list[str]:
    model, processor = tiny_model(), tiny_processor()
    config = model.config.from_pretrained(checkpoint)
    args = parse_arguments(["--model_name_or_path", str(checkpoint), "--data", "x", "--output_dir", "y", *more])
    return list(map(str, choose_points(args, config, processor)))


def test_the_points_that_flags_ask_for(data, tmp_path):
    plain, planned = data / "model", save_checkpoint(tmp_path, token_plan={16: [6, 42], 4: [2, 28]})
    assert points_of(plain) == ["4x28@16", "4x28@8", "4x28@4"]
    assert points_of(plain, "--token_budgets", "3", "12", "3") == ["4x28@3", "4x28@12"]
    assert points_of(plain, "--num_frames", "8", "--size", "42", "--token_budgets", "5") == ["8x42@5"]
    assert points_of(plain, "--points", "8x28", "2x42@7") == ["8x28", "2x42@7"]
    assert points_of(planned, "--use_token_plan") == ["6x42@16", "2x28@4"]
    assert points_of(planned, "--use_token_plan", "--token_budgets", "4") == ["2x28@4"]
    assert points_of(planned) == ["4x28@16", "4x28@8", "4x28@4"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--points", "8x30"], "8x30.*patch_size=14"),
        (["--points", "8x28", "--token_budgets", "4"], "--points"),
        (["--points", "8x28", "--use_token_plan"], "--points"),
        (["--use_token_plan"], "has no token plan"),
        (["--use_token_plan", "--size", "28"], "--size 28"),
    ],
)
def test_points_that_cannot_be(data, more, message):
    with pytest.raises(ValueError, match=message):
        points_of(data / "model", *more)


def test_a_budget_the_plan_does_not_hold(tmp_path):
    with pytest.raises(ValueError, match=r"\[16\], got \[8\]"):
        points_of(save_checkpoint(tmp_path, token_plan={16: [6, 42]}), "--use_token_plan", "--token_budgets", "16", "8")


@pytest.mark.parametrize("bad", [["--points", "8*28"], ["--num_clips", "0"], ["--token_budgets", "-4"]])
def test_flags_out_of_range_are_named(data, bad):
    with pytest.raises(ValueError, match=f"(?s){bad[0]}.*{re.escape(bad[1])}"):
        points_of(data / "model", *bad)


# --- other data and models -------------------------------------------------------------------------------------------


def test_labels_the_model_does_not_have(data, tmp_path):
    (tmp_path / "val.csv").write_text("path,label\nshort.mp4,class 1\nlast.mp4,sideways\n")
    more = flags(data, tmp_path / "out", "--data_root", str(data))
    more[more.index(str(data / "val.csv"))] = str(tmp_path / "val.csv")
    with pytest.raises(ValueError, match="sideways"):
        main(more)
    assert not (tmp_path / "out").exists()


def test_a_subset_is_spread_evenly(data, tmp_path):
    main(flags(data, tmp_path, "--points", "2x28@4", "--max_eval_samples", "3"))
    names = [row["name"] for row in read_csv(tmp_path / "predictions.csv")]
    order = [row["path"] for row in read_csv(data / "val.csv")]
    assert names == [order[0], order[2], order[4]]


def test_the_selector_is_replaced(data, tmp_path):
    def scores(name, *more):
        main(flags(data, tmp_path / name, "--points", "4x28@4", *more))
        run = json.loads((tmp_path / name / "metrics.json").read_text())
        return run["token_selection"], [row["score"] for row in read_csv(tmp_path / name / "predictions.csv")]

    own = scores("own")
    assert own[0] == "group_dynamic" and scores("named", "--token_selection", "group_dynamic") == own
    drawn = scores("drawn", "--token_selection", "random")
    assert drawn[0] == "random" and drawn[1] != own[1]
    assert scores("again", "--token_selection", "random") == drawn
    assert scores("other", "--token_selection", "random", "--seed", "1")[1] != drawn[1]
    assert json.loads((data / "model" / "config.json").read_text())["token_selection"] == "group_dynamic"


def test_several_labels_a_clip(data, tmp_path):
    save_checkpoint(tmp_path / "model", problem_type="multi_label_classification")
    (tmp_path / "val.csv").write_text(
        "path,label\nshort.mp4,class 1|class 3\nlast.mp4,class 3\na/second.mp4,class 0|5\n"
    )
    folder = tmp_path / "out"
    arguments = [
        "--model_name_or_path",
        tmp_path / "model",
        "--data",
        tmp_path / "val.csv",
        "--data_root",
        data,
        "--multi_label",
    ]
    main([*map(str, arguments), "--output_dir", str(folder), "--per_class", "--dataloader_num_workers", "0"])
    (first, *_) = json.loads((folder / "metrics.json").read_text())["points"]
    per_class = {row["label"]: row for row in read_csv(folder / "per_class.csv") if row["point"] == first["point"]}
    counts = {"class 0": 1, "class 1": 1, "class 2": 0, "class 3": 2, "class 4": 0, "class 5": 1}
    assert {name: int(row["clips"]) for name, row in per_class.items()} == counts
    own = [float(row["average_precision"]) for row in per_class.values() if row["average_precision"]]
    assert len(own) == 4 and first["mean_average_precision"] == pytest.approx(sum(own) / 4)
    assert read_csv(folder / "predictions.csv")[0]["label"] == "class 1|class 3"
    assert not list(folder.glob("confusion*"))


def test_no_clip_can_be_read(data, tmp_path):
    (tmp_path / "val.csv").write_text("path,label\nbroken.mp4,class 1\n")
    more = flags(data, tmp_path / "out", "--data_root", str(data))
    more[more.index(str(data / "val.csv"))] = str(tmp_path / "val.csv")
    with pytest.raises(ValueError, match="none of 1 clips"):
        main(more)


def test_a_threshold_keeps_other_numbers_and_says_what_it_costs(data, tmp_path):
    model, processor = tiny_model(), tiny_processor()
    good = [row["path"] for row in read_csv(data / "val.csv") if row["path"] != "broken.mp4"]
    pixels = [processor(str(data / path), num_frames=4, size=28, return_tensors="pt") for path in good]
    with torch.no_grad():
        moved = [frame_difference_scores(model.embed(one["pixel_values_videos"])[0]).flatten() for one in pixels]
    threshold = torch.cat(moved).quantile(0.7).item()
    kept = [max(1, min(int((of_clip > threshold).sum()), 12)) for of_clip in moved]
    assert len(set(kept)) > 2
    main(
        [
            *flags(data, tmp_path, "--points", "4x28@12", "--per_device_eval_batch_size", "4"),
            *("--token_selection", "threshold", "--token_threshold", str(threshold)),
        ]
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["token_selection"], metrics["token_threshold"]) == ("threshold", threshold)
    [point] = metrics["points"]
    assert point["kept_tokens"] == pytest.approx(sum(kept) / len(kept))
    gflops = [model.flops(4, 28, number) / 1e9 for number in kept]
    assert point["gflops_per_view"] == pytest.approx(sum(gflops) / len(gflops))
    assert point["clips_counted"] == len(good)
    model.config.token_selection, model.config.token_threshold = "threshold", threshold
    rows = [row for row in read_csv(tmp_path / "predictions.csv") if not row["error"]]
    for row, one in zip(rows, pixels, strict=True):
        with torch.no_grad():
            scores = model(**one, token_budget=12).logits.softmax(-1)
        assert float(row["score"]) == pytest.approx(scores.max().item(), abs=1e-5)

    checkpoint = save_checkpoint(tmp_path / "model", token_selection="threshold", token_threshold=threshold)
    told = ["--output", tmp_path / "labels.csv", "--num_frames", "4", "--size", "28", "--token_budget", "12"]
    told += ["--model_name_or_path", checkpoint, "--top_k", "1", "--dataloader_num_workers", "0"]
    predict.main([str(word) for word in (*told, *(data / path for path in good))])
    for row, other in zip(read_csv(tmp_path / "labels.csv"), rows, strict=True):
        assert row["label"] == other["predicted"]
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["threshold"], "token_threshold must be given for token_selection='threshold', got None"),
        (
            ["threshold", "--token_threshold", "-1"],
            "token_threshold must be a distance of at least 0.* got -1.0",
        ),
        (["tube", "--token_threshold", "1"], "--token_threshold 1.0 is for the threshold selector, not 'tube'"),
    ],
)
def test_thresholds_that_cannot_be(data, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        main(flags(data, tmp_path / "out", "--points", "4x28@12", "--token_selection", *more))
    assert not (tmp_path / "out").exists()
