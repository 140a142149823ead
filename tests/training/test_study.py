import csv
import json
import subprocess
import sys

import pytest
import yaml
from evaluation_parts import lines_drawn

from training.arguments import parse_arguments as parse_finetune
from training.inference.points import EvalPoint
from training.study.__main__ import keep_settings, parse_arguments
from training.study.design import (
    BUDGETS,
    METHODS,
    NUM_FRAMES,
    SIZE,
    TOKENS,
    merged_recipe,
    new_model,
    point_flops,
    points_of,
    training_cost,
)
from training.study.report import report
from training.study.runs import call
from training.study.tasks import hold_out, make_generator_task, make_real_task


def rows_of(groups, labels=("hug", "kick"), copies=1):
    return [
        {"path": f"{label}_{group}_{copy}.avi", "label": label, "group": group, "split": "train"}
        for group in groups
        for label in labels
        for copy in range(copies)
    ]


def test_whole_groups_are_held_out():
    rows = rows_of([f"seq{number}" for number in range(10)])
    kept, held_out = hold_out(rows, 0.2)
    assert sorted(row["path"] for row in kept + held_out) == sorted(row["path"] for row in rows)
    assert len(held_out) == 4
    assert not {row["group"] for row in kept} & {row["group"] for row in held_out}


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(rows_of(["only"], copies=10), id="one group"),
        pytest.param([{**row, "group": row["path"]} for row in rows_of(["a"], copies=10)], id="a group a clip"),
        pytest.param([{"path": str(i), "label": "ab"[i > 9]} for i in range(20)], id="no groups"),
    ],
)
def test_every_label_stays_on_both_sides(rows):
    kept, held_out = hold_out(rows, 0.2)
    assert len(kept) + len(held_out) == len(rows) and 2 <= len(held_out) <= 6
    for part in (kept, held_out):
        assert {row["label"] for row in part} == {row["label"] for row in rows}


def test_a_label_of_one_clip_cannot_be_held_out():
    rows = [*rows_of(["only"], copies=3), {"path": "x", "label": "rare", "group": "only"}]
    with pytest.raises(ValueError, match="'rare'"):
        hold_out(rows, 0.2)


def write_split(folder, rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "split.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def listed(path):
    with open(path, newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_without_a_validation_split_shapes_are_chosen_on_training_clips_alone(tmp_path):
    train = rows_of([f"seq{number}" for number in range(10)])
    test = [{**row, "split": "test"} for row in rows_of(["seq11"])]
    write_split(tmp_path / "set", train + test)
    task = make_real_task(tmp_path / "out", tmp_path / "set", "split.csv")
    assert task.name == "real_set" and task.horizontal_flip == 0.5
    tested, chosen_by = set(listed(task.test)), set(listed(task.search))
    assert len(listed(task.train)) == 20
    assert tested == {str(tmp_path / "set" / row["path"]) for row in test}
    assert chosen_by and chosen_by | set(listed(task.search_train)) == set(listed(task.train))
    assert not chosen_by & set(listed(task.search_train)) and not chosen_by & tested


def test_a_validation_split_is_used_and_sides_are_not_mirrored(tmp_path):
    rows = [{**row, "split": split} for split in ("train", "validation", "test") for row in rows_of([split])]
    rows += [{"path": "x.mp4", "label": "step_2_left", "group": "train", "split": "train"}]
    write_split(tmp_path / "set", rows)
    task = make_real_task(tmp_path / "out", tmp_path / "set", "split.csv")
    assert task.search_train is None and task.horizontal_flip == 0.0
    assert [path.rsplit("/")[-1] for path in listed(task.search)] == [row["path"] for row in rows_of(["validation"])]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.avi", "label": "hug"}], "split"),
        ([{"path": "a.avi", "label": "hug", "split": "train"}], "'test': 0"),
    ],
)
def test_a_table_that_cannot_work_is_refused(tmp_path, rows, message):
    write_split(tmp_path / "set", rows)
    with pytest.raises(ValueError, match=message):
        make_real_task(tmp_path / "out", tmp_path / "set", "split.csv")


@pytest.mark.parametrize("recipe", ["generator", "real"])
def test_methods_differ_in_objective_and_sampling_alone(recipe, tmp_path):
    flags = {method: merged_recipe(recipe, method) for method in METHODS}
    own = {"objective", "token_budgets", "sampling", "frames", "sizes", "token_window", "alignment_weight"}
    shared = {method: {k: v for k, v in values.items() if k not in own} for method, values in flags.items()}
    assert shared["fixed"] == shared["single"] == shared["multi"]
    assert shared["fixed_long"] == {**shared["fixed"], "max_train_steps": 2 * shared["fixed"]["max_train_steps"]}
    for values in flags.values():
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        needed = ["--output_dir", "out", "--config_name", "x", "--data", "x"]
        parse_finetune(["--recipe", str(tmp_path / "recipe.yaml"), *needed])
        assert max(values["token_budgets"]) == TOKENS
        assert (values["num_frames"], values["size"]) == (NUM_FRAMES, SIZE)


def test_points_spend_the_same_tokens_every_way():
    config = new_model().config
    plan = {budget: (16, 84) for budget in BUDGETS}
    ways = points_of(plan)
    assert ways["direct"][72] == EvalPoint(8, 84, 72) and ways["to"][36] == EvalPoint(16, 84, 36)
    assert {budget: point.num_frames for budget, point in ways["fewer"].items()} == {144: 8, 72: 4, 36: 2}
    for points in ways.values():
        assert all(point.kept_tokens(config) == budget for budget, point in points.items())


def test_training_costs():
    cost = {method: training_cost("generator", method, 100)["tera_multiply_adds"] for method in METHODS}
    assert cost["fixed"] < cost["single"] < cost["multi"]
    steps = {method: training_cost("generator", method, None)["steps"] for method in METHODS}
    assert steps["fixed"] == steps["single"] == steps["multi"] == steps["fixed_long"] / 2
    model, point = new_model(), EvalPoint(8, 84, 144)
    assert sum(point_flops(model, point).values()) == model.flops(8, 84, 144)
    denser = point_flops(model, EvalPoint(16, 84, 144))
    assert denser["encoder"] == point_flops(model, point)["encoder"]
    assert denser["embedding"] == 2 * point_flops(model, point)["embedding"]


def fake_results(shares):
    """Results of two seeds, the second two points better, from (method, way) -> top1 of each budget."""
    ways = points_of({budget: (16, 84) for budget in BUDGETS})
    return {
        method: {
            "training": {"steps": 1, "clips": 16, "tera_multiply_adds": 0.1},
            "seeds": {
                seed: {
                    way: {
                        budget: {"point": str(point), "top1": shares.get((method, way), 0.5) + 0.02 * seed}
                        for budget, point in points.items()
                    }
                    for way, points in ways.items()
                }
                for seed in (0, 1)
            },
        }
        for method in ("fixed", "multi")
    }


@pytest.mark.parametrize(("ours", "holds"), [(0.75, True), (0.65, False)])
def test_the_report_says_whether_the_claim_holds(tmp_path, ours, holds):
    results = fake_results({("fixed", "direct"): 0.7, ("multi", "to"): ours})
    text = report(tmp_path, {"generator": results}, [0, 1])
    written = json.loads((tmp_path / "results.json").read_text())["generator"]
    quarter = written["claims"][0]
    assert quarter["claim"] == "Flux-Multi + TO at 36 tokens against fixed grid, direct, at 144"
    assert quarter["gain"] == pytest.approx(100 * (ours - 0.7))
    assert quarter["holds_on_average"] is holds and quarter["holds_for_every_seed"] is holds
    [row] = [row for row in written["rows"] if (row["method"], row["way"], row["tokens"]) == ("multi", "to", 18)]
    assert row["mean"] == pytest.approx(100 * ours + 1) and row["std"] == pytest.approx(2**0.5)
    assert f"| Flux-Multi | TO | {100 * ours + 1:.1f} ± 1.4 (16x84) |" in text
    assert (tmp_path / "results.md").read_text() == text
    assert lines_drawn(tmp_path / "generator.png") == [True, True, False]


def test_settings_of_another_study_are_refused(tmp_path):
    def settings(*more):
        return parse_arguments(["--output_dir", str(tmp_path), *more])

    keep_settings(tmp_path, settings())
    keep_settings(tmp_path, settings("--seeds", "5", "--methods", "multi"))
    with pytest.raises(ValueError, match="max_train_steps"):
        keep_settings(tmp_path, settings("--max_train_steps", "3"))
    with pytest.raises(ValueError, match="seeds"):
        settings("--seeds", "1", "1")


def test_a_failing_run_says_where_its_log_is(tmp_path):
    log = tmp_path / "run.log"
    with pytest.raises(RuntimeError, match=r"status 2, see .*run\.log(?s:.*)required: output_dir"):
        call(["training.study.motion_clips", "--nonsense"], log, threads=1)


@pytest.mark.slow
def test_the_whole_study_and_going_on_with_it(tmp_path):
    real = tmp_path / "set"
    task = make_generator_task(tmp_path / "other", (24, 24, 24))  # clips of the right form, as if they were real
    rows = []
    for split, listing in (("train", task.train), ("test", task.test)):
        with open(listing, newline="") as file:
            rows += [
                {"path": str(listing.parent / row["path"]), "label": row["label"].split("_")[1], "split": split}
                for row in csv.DictReader(file)
            ]
    write_split(real, rows)
    command = [sys.executable, "-m", "training.study", "--output_dir", str(tmp_path / "out"), "--real_data", str(real)]
    command += ["--methods", "multi", "--seeds", "0", "--num_clips", "24", "24", "24", "--max_train_steps", "2"]
    subprocess.run([*command, "--jobs", "1"], check=True)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"generator", "real_set"}
    for result in results.values():
        assert len(result["rows"]) == 11 and all(0 <= row["mean"] <= 100 for row in result["rows"])
    # what is there is not done again, what is gone is
    model = tmp_path / "out" / "generator" / "multi_seed0" / "model.safetensors"
    metrics = tmp_path / "out" / "real_set" / "multi_seed0" / "test" / "metrics.json"
    trained, measured = model.stat().st_mtime_ns, json.loads(metrics.read_text())["points"]
    metrics.unlink()
    subprocess.run(command, check=True)
    assert model.stat().st_mtime_ns == trained
    assert json.loads(metrics.read_text())["points"] == measured
