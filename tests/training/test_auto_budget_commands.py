"""Automatic budgets: calibrated as a hand would, written down, and the same in pipeline, predict and evaluate."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_parts import direct_scores, save_checkpoint, tiny_model, tiny_processor, write_clips
from PIL import Image
from transformers import pipeline

from flux_hf import FluxViTConfig, FluxViTVideoClassificationPipeline, FluxViTVideoProcessor
from flux_hf.auto_budgets import BudgetLadder, confidence
from training import evaluate, extract_features, optimize_tokens, predict
from training.data.sampling import ClipShape
from training.inference.calibration import Wanted, calibrate, fit_temperature
from training.inference.points import EvalPoint
from training.study.auto_budget import FIXED, RANDOM, THRESHOLD, Results, report, settings_of, threshold_at_cost
from training.study.auto_budget import main as run_study
from training.study.auto_budget import parse_arguments as parse_study
from training.study.design import new_model
from training.study.records import Records, pack
from training.study.tasks import make_generator_task


BUDGETS = (2, 4, 16)


# --- calibration, by hand ---------------------------------------------------------------------------------------------


def test_a_temperature_by_hand():
    """Two labels, log-odds of 4, three of four clips right: likeliest where the confidence is 3/4, log-odds log 3."""
    scores = torch.tensor([4.0, 0.0]).softmax(-1).expand(4, 2)
    temperature = fit_temperature(scores, torch.tensor([0, 0, 1, 0]))
    assert temperature == pytest.approx(4 / math.log(3), rel=1e-6)
    assert confidence(scores, temperature).tolist() == pytest.approx([0.75] * 4)
    assert fit_temperature(scores, torch.tensor([0, 0, 0, 0])) == pytest.approx(0.05)  # always right: the sharpest
    assert fit_temperature(scores, torch.tensor([1, 1, 1, 0])) == pytest.approx(20)


def test_how_sure_is_sure_by_hand():
    """One clip of 100 lost: 1 point short, by a standard error of sqrt((0.01 - 0.0001) / 100) = 0.995 points."""
    assert Wanted(tolerance=0.01996).holds(100, 90, gained=0, lost=1)
    assert not Wanted(tolerance=0.01994).holds(100, 90, gained=0, lost=1)
    assert Wanted(tolerance=0.0).holds(100, 50, gained=0, lost=0)
    assert not Wanted(tolerance=0.005).holds(100, 90, gained=10, lost=10)  # 0 points, but sqrt(0.2 / 100) = 4.5
    # 80 of 100: less sqrt(0.8 * 0.2 / 100) = 4 points
    assert Wanted(target=0.76).holds(100, 80, 0, 0) and not Wanted(target=0.761).holds(100, 80, 0, 0)


class Costs:
    """A model that only says what passes cost: their tokens."""

    def flops(self, num_frames, size, token_budgets):
        return 1e9 * sum(token_budgets)


def hand_case() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten clips of two labels at budgets 1, 3 and 10.

    At 1 token seven are right and sure, three wrong and less so; at 3 two of these are right and surer than the last;
    at 10 all are right.
    """
    targets = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 1, 0])

    def scores(right: list[float]) -> torch.Tensor:
        of_target = torch.tensor(right)[:, None]
        both = torch.cat([of_target, 1 - of_target], dim=1)
        return torch.where(targets[:, None] == 0, both, both.flip(1))

    few = [0.95, 0.93, 0.91, 0.9, 0.92, 0.94, 0.96, 0.4, 0.3, 0.35]
    some = [0.9] * 7 + [0.9, 0.8, 0.45]
    return torch.stack([scores(few), scores(some), scores([0.9] * 10)]), targets


def test_a_ladder_by_hand():
    scores, targets = hand_case()
    found = calibrate(Costs(), ClipShape(8, 28), [1, 3, 10], scores, targets, Wanted(tolerance=0.0))
    ladder = found.ladder
    assert ladder.token_budgets == (1, 3, 10) and (ladder.num_frames, ladder.size) == (8, 28)
    assert (found.accuracy, found.shares) == (1.0, pytest.approx((0.7, 0.2, 0.1)))
    assert found.gflops_per_view == pytest.approx(0.7 * 1 + 0.2 * (1 + 3) + 0.1 * (1 + 3 + 10))
    assert found.suffices == (False, False, True)
    assert found.accuracies == pytest.approx((0.7, 0.9, 1.0)) and found.gflops == (1.0, 3.0, 10.0)
    # thresholds lie in the middle between the least sure clip that stops and the surest that does not
    first, second = (confidence(scores[step], ladder.temperatures[step]) for step in range(2))
    assert ladder.thresholds[0] == pytest.approx((first[3] + first[8]).item() / 2)  # 0.9 right, 0.7 wrong
    assert ladder.thresholds[1] == pytest.approx((second[8] + second[9]).item() / 2)
    assert ladder.stop(list(scores)).tolist() == [0] * 7 + [1, 1, 2]
    assert ladder.temperatures == tuple(fit_temperature(of_budget, targets) for of_budget in scores)


def test_a_ladder_leaves_out_what_does_not_pay():
    scores, targets = hand_case()
    # one of ten may be lost: 10 points, and sqrt(0.09 / 10) = 9.5 by which it is not sure
    within = calibrate(Costs(), ClipShape(8, 28), [1, 3, 10], scores, targets, Wanted(tolerance=0.2))
    assert within.ladder.token_budgets == (1, 3) and within.shares == pytest.approx((0.7, 0.3))
    assert within.suffices == (False, True, True) and within.gflops_per_view == pytest.approx(0.7 + 0.3 * 4)
    assert within.accuracy == pytest.approx(0.9)
    # the first budget alone reaches 70 %, less sqrt(0.7 * 0.3 / 10) = 14.5 points
    alone = calibrate(Costs(), ClipShape(8, 28), [1, 3, 10], scores, targets, Wanted(target=0.55))
    assert (alone.ladder.token_budgets, alone.ladder.thresholds, alone.shares) == ((1,), (), (1.0,))
    # where few tokens never help, the largest budget stays by itself
    useless = torch.stack([1 - scores[2], scores[2]])
    last = calibrate(Costs(), ClipShape(8, 28), [1, 10], useless, targets, Wanted(tolerance=0.0))
    assert last.ladder.token_budgets == (10,) and last.gflops_per_view == 10
    with pytest.raises(ValueError, match=r"through \[1, 10\].*99.00 % on 10 clips.*0.00 %"):
        calibrate(Costs(), ClipShape(8, 28), [1, 10], 1 - useless[[1, 1]], targets, Wanted(target=0.99))


# --- the commands -----------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Clips and a checkpoint that stops at each of three budgets, on another clip than its default one; labels are what
    it says at the largest."""
    folder = tmp_path_factory.mktemp("data")
    paths, model, processor = write_clips(folder), tiny_model(), tiny_processor()
    scores = [
        torch.stack([direct_scores(model, processor, path, EvalPoint(6, 28, budget)) for path in paths])
        for budget in BUDGETS
    ]
    order = confidence(scores[0], 1.0).sort(descending=True)
    left = order.indices[2:]
    second = confidence(scores[1][left], 2.0).sort(descending=True).values
    thresholds = (order.values[1:3].mean().item(), second[1:3].mean().item())
    ladder = BudgetLadder(6, 28, BUDGETS, (1.0, 2.0, 1.0), thresholds)
    save_checkpoint(folder / "model", auto_budgets=ladder.to_config())
    save_checkpoint(folder / "plain")
    labels = scores[2].argmax(1).tolist()
    rows = [f"{path.relative_to(folder)},class {label}\n" for path, label in zip(paths, labels, strict=True)]
    (folder / "val.csv").write_text("path,label\n" + "".join(rows))
    return folder


def flags(data: Path, *more, model: str = "model") -> list[str]:
    given = ["--model_name_or_path", data / model, "--data", data / "val.csv", "--dataloader_num_workers", 0, *more]
    return list(map(str, given))


def test_pipeline_predict_and_evaluate_agree(data, tmp_path, capsys):
    evaluate.main(
        flags(data, "--token_budgets", "auto", "8", "--per_class", "--num_frames", 6, "--output_dir", tmp_path / "e")
    )
    said = {row["name"]: row for row in read_csv(tmp_path / "e" / "predictions.csv") if row["point"] == "6x28@auto"}
    paths = [str(data / name) for name in said]
    predict.main(
        [*("--model_name_or_path", str(data / "model"), "--output", str(tmp_path / "p.csv"), "--top_k", "2")]
        + ["--dataloader_num_workers", "0", "--token_budget", "auto", "--per_device_eval_batch_size", "4", *paths]
    )
    printed = capsys.readouterr().out
    rows = [row for row in read_csv(tmp_path / "p.csv") if row["rank"] == "1"]
    kind = {"model": str(data / "model"), "pipeline_class": FluxViTVideoClassificationPipeline, "device": "cpu"}
    best = pipeline("video-classification", **kind)(paths, token_budget="auto", top_k=1, batch_size=3)

    assert sorted(row["token_budget"] for row in said.values()) == ["16", "16", "2", "2", "4", "4"]
    for row, [entry], (name, other) in zip(rows, best, said.items(), strict=True):
        assert (row["name"], row["label"], row["token_budget"]) == (
            str(data / name),
            other["predicted"],
            other["token_budget"],
        )
        assert (entry["label"], str(entry["token_budget"])) == (row["label"], row["token_budget"])
        point = EvalPoint(6, 28, entry["token_budget"])
        own = direct_scores(tiny_model(), tiny_processor(), data / name, point).max().item()
        for score in (row["score"], entry["score"], other["score"]):
            assert float(score) == pytest.approx(own, abs=1e-5)

    # what an evaluation says of it
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    auto, model = metrics["auto"], tiny_model()
    assert [point["point"] for point in metrics["points"]] == ["6x28@8", "6x28@2", "6x28@4", "6x28@16"]
    assert auto["shares"] == pytest.approx({"2": 1 / 3, "4": 1 / 3, "16": 1 / 3})
    tried = [model.flops(6, 28, list(BUDGETS[:steps])) / 1e9 for steps in (1, 2, 3)]
    assert auto["gflops_per_view"] == pytest.approx(sum(tried) / 3)
    assert auto["gflops_per_view_with_dense_embedding"] > auto["gflops_per_view"]
    assert auto["kept_tokens"] == pytest.approx((2 + 4 + 16) / 3) and auto["dense_tokens"] == 24
    hits = [row["predicted"] == row["label"] for row in said.values()]
    assert auto["top1"] == pytest.approx(sum(hits) / 6) and auto["clips_counted"] == 6
    assert "6x28@auto" in printed and "33.3 % at 16 tokens" in printed
    assert f"{sum(tried) / 3:.4g} GFLOPs a view on average" in printed
    assert (tmp_path / "e" / "confusion_6x28@auto.csv").exists()
    fixed = [row["token_budget"] for row in read_csv(tmp_path / "e" / "predictions.csv") if row["point"] == "6x28@8"]
    assert fixed == ["8"] * 6


def test_views_decide_together_in_every_command(data, tmp_path):
    views = ["--num_clips", "2", "--num_crops", "3"]
    evaluate.main(flags(data, "--token_budgets", "auto", *views, "--output_dir", tmp_path / "e"))
    assert len(json.loads((tmp_path / "e" / "metrics.json").read_text())["points"]) == 3  # the steps alone
    said = [row for row in read_csv(tmp_path / "e" / "predictions.csv") if row["point"] == "6x28@auto"]
    paths = [str(data / row["name"]) for row in said]
    fixed = ["--model_name_or_path", str(data / "model"), "--output", str(tmp_path / "p.csv"), *views]
    # of 4 views a batch: a video is never cut
    more = ["--token_budget", "auto", "--per_device_eval_batch_size", "4", "--dataloader_num_workers", "0"]
    predict.main([*fixed, *more, *paths])
    for row, other in zip(read_csv(tmp_path / "p.csv"), said, strict=True):
        assert (row["label"], row["token_budget"]) == (other["predicted"], other["token_budget"])
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-5)


def test_an_unreadable_clip_and_the_picture(data, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(SystemExit):
        predict.main(
            [*("--model_name_or_path", str(data / "model"), "--output", str(tmp_path / "p.csv"))]
            + ["--token_budget", "auto", str(tmp_path / "broken.mp4"), str(data / "short.mp4")]
            + ["--dataloader_num_workers", "0"]
        )
    broken, short = read_csv(tmp_path / "p.csv")
    assert "broken.mp4" in broken["error"] and broken["token_budget"] == ""
    assert short["token_budget"] in ("2", "4", "16") and short["error"] == ""
    (tmp_path / "val.csv").write_text((data / "val.csv").read_text() + f"{tmp_path / 'broken.mp4'},class 0\n")
    more = ["--data_root", data, "--token_budgets", "auto", "--output_dir", tmp_path / "e"]
    evaluate.main([str(tmp_path / "val.csv") if word == str(data / "val.csv") else word for word in flags(data, *more)])
    auto = json.loads((tmp_path / "e" / "metrics.json").read_text())["auto"]
    assert (auto["clips_counted"], auto["failures"], sum(auto["shares"].values())) == (6, 1, pytest.approx(1))
    with Image.open(tmp_path / "e" / "accuracy_gflops.png") as picture:  # the star, the only thing of its black size
        black = sum(count for count, colour in picture.convert("RGB").getcolors(10**6) if colour == (0, 0, 0))
    assert black > 100


def test_calibrating_a_checkpoint(data, tmp_path, capsys):
    checkpoint = save_checkpoint(tmp_path / "model", token_plan={16: [8, 28], 4: [2, 28]})
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    arguments = flags(data, "--auto", "--token_budgets", "2", "16", "4", "--auto_tolerance", "40")
    arguments[1] = str(checkpoint)
    optimize_tokens.main(arguments)
    after = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"config.json", "auto_budgets_calibration.json"}
    old, new = (json.loads(files["config.json"]) for files in (before, after))
    assert {**new, "auto_budgets": None} == {**old, "auto_budgets": None}  # the plan stays
    report = json.loads(after["auto_budgets_calibration.json"])
    ladder = BudgetLadder.of(FluxViTConfig.from_pretrained(checkpoint))
    assert report["auto_budgets"] == new["auto_budgets"] == ladder.to_config()
    assert (ladder.num_frames, ladder.size) == (8, 28)  # the plan's for the largest budget
    assert [one["token_budget"] for one in report["budgets"]] == [2, 4, 16]
    assert len(ladder.token_budgets) > 1  # something is tried before the last
    assert report["wanted"] == {"tolerance": 0.4, "target": None} and sum(report["shares"].values()) == pytest.approx(1)

    # measured on the same clips it keeps what it was chosen for
    arguments = flags(data, "--token_budgets", "auto", "--output_dir", tmp_path / "e")
    arguments[1] = str(checkpoint)
    evaluate.main(arguments)
    auto = json.loads((tmp_path / "e" / "metrics.json").read_text())["auto"]
    assert (auto["top1"], auto["shares"]) == (pytest.approx(report["accuracy"]), pytest.approx(report["shares"]))
    assert auto["gflops_per_view"] == pytest.approx(report["gflops_per_view"])
    assert "auto_budgets written into" in capsys.readouterr().out


def test_a_calibrated_copy(data, tmp_path):
    """Labels are what the largest budget says on clips of 6x28, so there nothing is lost."""
    before = (data / "plain" / "config.json").read_bytes()
    more = ["--token_budgets", *BUDGETS, "--frames", 6, "--sizes", 28, "--output_dir", tmp_path / "copy"]
    optimize_tokens.main(flags(data, "--auto", *more, model="plain"))
    assert (data / "plain" / "config.json").read_bytes() == before
    config = FluxViTConfig.from_pretrained(tmp_path / "copy")
    report = json.loads((tmp_path / "copy" / "auto_budgets_calibration.json").read_text())
    assert config.auto_budgets["num_frames"] == 6 and report["accuracy"] == 1.0
    assert report["budgets"][2]["accuracy"] == 1.0
    classify = pipeline(
        "video-classification",
        model=str(tmp_path / "copy"),
        pipeline_class=FluxViTVideoClassificationPipeline,
        device="cpu",
    )
    for row in read_csv(data / "val.csv"):
        assert classify(str(data / row["path"]), token_budget="auto")[0]["label"] == row["label"]


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (evaluate, ["--token_budgets", "auto", "--output_dir", "o"], "training.optimize_tokens --auto"),
        (optimize_tokens, ["--auto_target", "80"], "--auto_target 80.0 is for --auto"),
        (optimize_tokens, ["--auto", "--auto_target", "80", "--auto_tolerance", "1"], "80.0"),
        (optimize_tokens, ["--auto", "--auto_target", "800"], r"--auto_target.*800"),
        (optimize_tokens, ["--auto", "--frames", "4", "8"], r"one clip.*--frames.*\[4, 8\]"),
        (optimize_tokens, ["--auto", "--auto_target", "100", "--token_budgets", "1", "2"], "no way through"),
    ],
)
def test_calibrations_that_cannot_be(data, tmp_path, monkeypatch, command, more, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in (data / "plain").iterdir())
    with pytest.raises(ValueError, match=message):
        command.main(flags(data, *more, model="plain"))
    assert sorted(path.name for path in (data / "plain").iterdir()) == before and not list(tmp_path.iterdir())


def test_what_automatic_budgets_are_not_for(data, tmp_path):
    clip = str(data / "short.mp4")
    of_model = ["--model_name_or_path", str(data / "model"), "--dataloader_num_workers", "0"]
    plain = ["--model_name_or_path", str(data / "plain"), "--dataloader_num_workers", "0"]
    output = ["--output", str(tmp_path / "p.csv"), "--token_budget", "auto"]
    with pytest.raises(ValueError, match="training.optimize_tokens --auto"):
        predict.main([clip, *plain, *output])
    with pytest.raises(ValueError, match="6 frames of 28x28, got num_frames=4"):
        predict.main([clip, *of_model, *output, "--num_frames", "4"])
    with pytest.raises(ValueError, match="got size=42"):
        evaluate.main(flags(data, "--token_budgets", "auto", "--size", "42", "--output_dir", tmp_path / "e"))
    with pytest.raises(ValueError, match="auto is for labels"):
        extract_features.main([clip, *of_model, "--output_dir", str(tmp_path / "f"), "--token_budget", "auto"])
    save_checkpoint(tmp_path / "several", problem_type="multi_label_classification")
    arguments = flags(data, "--auto", "--multi_label")
    arguments[1] = str(tmp_path / "several")
    with pytest.raises(ValueError, match="one label a clip.*multi_label"):
        optimize_tokens.main(arguments)
    assert not (tmp_path / "p.csv").exists() and not (tmp_path / "e").exists()


# --- the study --------------------------------------------------------------------------------------------------------


def test_what_the_study_says_of_a_seed_by_hand():
    """Auto is right on all four clips, three of them at 18 tokens; drawn, what is right at 18 alone counts 3/4."""
    hits = {"144": [1, 1, 1, 0], "72": [1, 1, 0, 0], "36": [1, 0, 0, 0], "18": [1, 1, 0, 0], "auto": [1, 1, 1, 1]}
    hits[THRESHOLD] = [0, 1, 1, 0]
    gflops = {"144": 10.0, "72": 6.0, "36": 3.0, "18": 1.0, "auto": 4.0, THRESHOLD: 4.5}
    run = {
        name: {"hits": pack(right), "gflops": gflops[name], "dense_gflops": 1 + gflops[name]}
        for name, right in hits.items()
    }
    run["auto"]["shares"] = {"18": 0.75, "144": 0.25}
    enough = {"18": False, "36": True, "72": True, "144": True}
    run["validation"] = {"budgets": [{"token_budget": int(b), "suffices_alone": ok} for b, ok in enough.items()]}
    rows = {row[0]: row[1:] for row in Results([{"direct": run}], "direct", 4).rows()}
    assert [rows[name][0] for name in ("144 tokens", "72 tokens", "18 tokens", "auto")] == [
        "75.0",
        "50.0",
        "50.0",
        "100.0",
    ]
    assert rows[RANDOM][0] == "56.2"  # (1 + 1 + 1/4 + 0) / 4
    assert rows["auto"][1].startswith("+25.0 [") and rows["144 tokens"][1] == ""
    assert rows[FIXED][0] == "25.0" and rows[FIXED][2:] == ["36.4", "30.0"]  # 36 tokens
    assert rows["auto"][2:] == ["45.5", "40.0"] == rows[RANDOM][2:]  # 5 of 11, 4 of 10
    assert rows[THRESHOLD][0] == "50.0" and rows[THRESHOLD][2:] == ["50.0", "45.0"]
    assert Results([{"direct": run}], "direct", 4).against(THRESHOLD)[0].startswith(f"auto - {THRESHOLD}: +50.0 [")


def test_the_threshold_at_a_cost():
    """Patches that moved by 0, 1, 2 ...: of a clip so many are kept as moved more, at least one."""
    shape, model = (8, 42), new_model()
    moved = torch.stack([torch.arange(144.0), torch.arange(144.0) / 2, torch.zeros(144)])

    def kept(threshold: float) -> list[int]:
        return [max(int((of_clip > threshold).sum()), 1) for of_clip in moved]

    for threshold in (0.0, 1.0, 30.5, 71.5, 143.0):
        cost = sum(model.flops(*shape, number, dense_embedding=True) for number in kept(threshold)) / 3e9
        found = threshold_at_cost(moved, shape, cost * (1 + 1e-9))
        assert kept(found) == kept(threshold) and found <= threshold
        assert found == 0 or kept(found - 0.5) != kept(found)  # the least
        dearer = threshold_at_cost(moved, shape, cost * (1 - 1e-9))
        assert dearer > found  # it costs less
    assert threshold_at_cost(moved, shape, 1e9) == 0.0


def test_the_published_table_is_that_of_the_published_records(tmp_path):
    published = Path(__file__).parents[2] / "training" / "study" / "results" / "auto_budget"
    shutil.copytree(published, tmp_path / "copy")
    records = Records(
        tmp_path / "copy",
        settings_of("multi", parse_study(["--study_dir", "s", "--output_dir", "o"]).calibration_clips),
    )
    assert report(records, "multi") == (published / "results.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_study_of_a_model(tmp_path, capsys):
    task = make_generator_task(tmp_path / "study", (1, 16, 12))
    labels = sorted(
        {row["label"] for row in read_csv(task.validation)} | {row["label"] for row in read_csv(task.folds[0].test)}
    )
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    model = tiny_model(patch_size=7, tubelet_size=2, num_frames=8, image_size=42, token_plan={144: [16, 42]}, **names)
    folder = tmp_path / "study" / "generator" / "multi_seed0" / "all"
    model.save_pretrained(folder)
    FluxViTVideoProcessor(num_frames=8, size=42, patch_size=7).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given = ["--study_dir", str(tmp_path / "study"), "--output_dir", str(tmp_path / "out"), "--seeds", "0"]
    given += ["--calibration_clips", "20"]
    run_study(given)
    text = (tmp_path / "out" / "results" / "results.md").read_text()
    assert text in capsys.readouterr().out and "## TO: 16 frames of 42x42" in text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    record = Records(tmp_path / "out" / "results", settings_of("multi", 20)).get("generator", "multi", 0)
    assert sum(record["to"]["validation"]["shares"].values()) == pytest.approx(1)
    moved = record["to"][THRESHOLD]
    assert 1 <= moved["kept_tokens"] <= 144 and moved["gflops"] < moved["dense_gflops"]
    run_study(given)  # what is there is not done again
    assert (tmp_path / "out" / "results" / "results.md").read_text() == text
