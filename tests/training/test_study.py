import csv
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from evaluation_parts import lines_drawn

from training.arguments import parse_arguments as parse_finetune
from training.inference.points import EvalPoint
from training.study.__main__ import parse_arguments, settings_of
from training.study.design import (
    BUDGETS,
    ENCODERS,
    METHODS,
    NUM_FRAMES,
    OWN_SELECTOR,
    SELECTORS,
    SIZE,
    TOKENS,
    merged_recipe,
    new_model,
    point_flops,
    points_of,
    training_cost,
    with_steps,
)
from training.study.intervals import paired_difference
from training.study.records import Records, pack, read_curve, read_hits, unpack
from training.study.report import last_rise, report
from training.study.runs import Options, call, choose_by_others, train_by
from training.study.tasks import make_generator_task, make_real_tasks, part_groups


STUDY = Path(__file__).parents[2] / "training" / "study"


def rows_of(groups, labels=("hug", "kick"), copies=1):
    return [
        {"path": f"{label}_{group}_{copy}.avi", "label": label, "group": group}
        for group in groups
        for label in labels
        for copy in range(copies)
    ]


def write_table(folder, rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "split.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def listed(path):
    with open(path, newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


# Data sets ------------------------------------------------------------------------------------------------------------


def test_groups_are_parted_whole_and_evenly():
    groups = [name for name, size in (("a", 9), ("b", 5), ("c", 4), ("d", 1), ("e", 8)) for _ in range(size)]
    parts = part_groups(groups, 3)
    assert sorted(sum(parts[name] == part for name in groups) for part in range(3)) == [9, 9, 9]
    assert parts == part_groups(groups[::-1], 3)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_parts_must_be_fewer_than_groups(number):
    with pytest.raises(ValueError, match=f"between 2 and the 2 groups, got {number}"):
        part_groups(["a", "b"], number)


def test_every_real_clip_is_tested_once_by_a_model_that_saw_none_of_its_group(tmp_path):
    rows = rows_of([f"seq{number}" for number in range(10)])
    write_table(tmp_path / "set", rows)
    made_up = make_generator_task(tmp_path / "out", (8, 8, 8))
    scratch, further = make_real_tasks(tmp_path / "out", tmp_path / "set", "split.csv", 5, made_up)
    assert (scratch.name, further.name) == ("set_scratch", "set_made_up")
    assert scratch.made_up is None and further.made_up is made_up and further.folds == scratch.folds
    assert scratch.horizontal_flip == 0.5 and scratch.root == tmp_path / "set"
    assert sorted(name for fold in scratch.folds for name in listed(fold.test)) == sorted(scratch.groups)
    for fold in scratch.folds:
        tested, trained = ({scratch.groups[name] for name in listed(path)} for path in (fold.test, fold.train))
        assert len(tested) == 2 and not tested & trained
        assert len(listed(fold.test)) + len(listed(fold.train)) == len(rows)


def test_sides_are_not_mirrored_and_a_try_takes_some_clips(tmp_path):
    write_table(tmp_path / "set", rows_of("abcdef", labels=("step_2_left", "kick")))
    made_up = make_generator_task(tmp_path / "out", (8, 8, 8))
    for task in make_real_tasks(tmp_path / "out", tmp_path / "set", "split.csv", 2, made_up, max_clips=9):
        assert task.horizontal_flip == 0.0 and len(task.groups) == 9


def test_a_try_leaves_out_labels_of_one_part(tmp_path):
    """All of them must be trained on; the whole set with such a label is refused."""
    rows = [*rows_of("abcd"), {"path": "x", "label": "rare", "group": "a"}]
    write_table(tmp_path / "set", rows)
    made_up = make_generator_task(tmp_path / "out", (8, 8, 8))
    task, _ = make_real_tasks(tmp_path / "out", tmp_path / "set", "split.csv", 2, made_up, max_clips=len(rows))
    assert set(task.groups) == {row["path"] for row in rows[:-1]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.avi", "label": "hug"}], "group"),
        ([*rows_of("abcd"), {"path": "x", "label": "rare", "group": "a"}], "'rare'"),
    ],
)
def test_a_table_that_cannot_work_is_refused(tmp_path, rows, message):
    write_table(tmp_path / "set", rows)
    with pytest.raises(ValueError, match=message):
        make_real_tasks(tmp_path / "out", tmp_path / "set", "split.csv", 2, None)


# Methods and costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["generator", "real_scratch", "real_made_up"])
def test_methods_differ_in_objective_and_sampling_alone(recipe, tmp_path):
    flags = {method: merged_recipe(recipe, method) for method in METHODS}
    own = {"objective", "token_budgets", "sampling", "frames", "sizes", "token_window", "alignment_weight"}
    shared = {method: {k: v for k, v in values.items() if k not in own} for method, values in flags.items()}
    assert shared["fixed"] == shared["single"] == shared["multi"] == shared["multi_unaligned"]
    assert flags["multi_unaligned"] == {**flags["multi"], "alignment_weight": 0.0}
    assert {k for k in shared["fixed"] if shared["fixed"][k] != shared["fixed_equal"][k]} == {
        "max_train_steps",
        "num_warmup_steps",
    }
    for values in flags.values():
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(with_steps(values, 1.0)))
        needed = ["--output_dir", "out", "--config_name", "x", "--data", "x"]
        parse_finetune(["--recipe", str(tmp_path / "recipe.yaml"), *needed])
        assert max(values["token_budgets"]) == TOKENS
        assert (values["num_frames"], values["size"]) == (NUM_FRAMES, SIZE)


def test_points_spend_the_same_tokens_every_way():
    model = new_model()
    plan = {budget: (16, SIZE) for budget in BUDGETS}
    ways = points_of(plan)
    assert ways["direct"][72] == EvalPoint(8, SIZE, 72) and ways["to"][36] == EvalPoint(16, SIZE, 36)
    assert {budget: point.num_frames for budget, point in ways["fewer"].items()} == {144: 8, 72: 4, 36: 2}
    for points in ways.values():
        assert all(point.kept_tokens(model) == budget for budget, point in points.items())


def test_training_costs():
    cost = {method: training_cost(merged_recipe("generator", method)) for method in METHODS}
    tera = {method: values["tera_multiply_adds"] for method, values in cost.items()}
    assert tera["fixed"] < tera["single"] < tera["multi"] == tera["multi_unaligned"]
    assert tera["fixed_equal"] == pytest.approx(tera["multi"], rel=1e-3)
    assert len({cost[method]["steps"] for method in METHODS if method != "fixed_equal"}) == 1
    for encoder in ENCODERS:
        of_encoder = [training_cost(merged_recipe("generator", method, encoder), encoder) for method in METHODS]
        tera = dict(zip(METHODS, (values["tera_multiply_adds"] for values in of_encoder), strict=True))
        assert tera["fixed_equal"] == pytest.approx(tera["multi"], rel=1e-3)
    model, point = new_model(), EvalPoint(8, SIZE, 144)
    assert sum(point_flops(model, point).values()) == model.flops(8, SIZE, 144)
    denser = point_flops(model, EvalPoint(16, SIZE, 144))
    assert denser["encoder"] == point_flops(model, point)["encoder"]
    assert denser["embedding"] == 2 * point_flops(model, point)["embedding"]


def test_a_share_of_the_steps():
    flags = with_steps(merged_recipe("generator", "fixed"), 0.001)
    assert (flags["max_train_steps"], flags["num_warmup_steps"], flags["eval_steps"]) == (3, 1, "1")


# Intervals ------------------------------------------------------------------------------------------------------------


def test_a_difference_of_equals_is_none():
    hits = np.random.default_rng(0).random((3, 50)) < 0.7
    found = paired_difference(hits, hits, list(range(50)))
    assert (found.mean, found.low, found.high, found.is_sure) == (0, 0, 0, False)
    assert str(found) == "+0.0 [+0.0, +0.0]"


def test_an_interval_is_that_of_the_normal_law_where_clips_are_many():
    rng = np.random.default_rng(0)
    ours, other = rng.random((1, 4000)) < 0.8, rng.random((1, 4000)) < 0.7
    found = paired_difference(ours, other, list(range(4000)))
    gained = ours[0].astype(float) - other[0]
    reach = 196 * gained.std() / 4000**0.5
    assert found.mean == pytest.approx(100 * gained.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach), abs=0.15)
    assert found.is_sure and str(found).startswith("**+")


def test_seeds_that_disagree_and_clips_that_are_alike_make_it_wider():
    ours, other = np.zeros((2, 400), bool), np.zeros((2, 400), bool)
    ours[0, :200] = other[1, :200] = True
    disagreeing = paired_difference(ours, other, list(range(400)))
    assert disagreeing.mean == 0 and disagreeing.low < -45 and disagreeing.high > 45
    ours[:, :] = [[clip % 40 < 20 for clip in range(400)]] * 2
    other[:] = False
    alone = paired_difference(ours, other, list(range(400)))
    alike = paired_difference(ours, other, [clip % 40 for clip in range(400)])
    assert alone.mean == alike.mean == 50
    assert alike.high - alike.low > 2.5 * (alone.high - alone.low)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"\(seeds, 3 clips\), got \(1, 3\) and \(2, 3\)"):
        paired_difference(np.zeros((1, 3)), np.zeros((2, 3)), "abc")


# Records and the report -----------------------------------------------------------------------------------------------


def test_hits_are_kept_whole():
    hits = np.random.default_rng(0).random(37) < 0.5
    assert (unpack(pack(hits), 37) == hits).all() and len(pack(hits)) == 10


def test_a_clip_that_was_not_read_is_no_miss(tmp_path):
    file = tmp_path / "predictions.csv"
    file.write_text("point,name,label,predicted,error\n8x42,a.mp4,hug,hug,\n8x42,b.mp4,hug,kick,\n")
    assert read_hits(file) == {"8x42": {"a.mp4": True, "b.mp4": False}}
    file.write_text("point,name,label,predicted,error\n8x42,a.mp4,hug,,truncated\n")
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read: truncated"):
        read_hits(file)


def test_curves(tmp_path):
    file = tmp_path / "log"
    lines = [{"step": 1, "loss": 2.0}, *({"step": step, "eval_top1_144": step / 10} for step in (2, 4, 6))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(file, TOKENS)
    assert curve == [(2, 0.2), (4, 0.4), (6, 0.6)]
    assert last_rise(curve) == pytest.approx(20) and last_rise(curve[:2]) is None


def test_token_optimization_does_not_ask_the_part_it_is_tested_on():
    grid = [(8, SIZE), (16, SIZE)]

    def part(best):
        return {
            str(EvalPoint(*shape, budget)): {"a": shape == best, "b": shape == best}
            for shape in grid
            for budget in BUDGETS
        }

    parts = [part(grid[1]), part(grid[0]), part(grid[0])]
    assert choose_by_others(parts, 0, grid) == dict.fromkeys(BUDGETS, grid[0])
    assert choose_by_others(parts[:2], 1, grid) == dict.fromkeys(BUDGETS, grid[1])
    assert choose_by_others(parts[:2], 0, grid) == dict.fromkeys(BUDGETS, grid[0])


NUM_TESTED = 200


def fake_record(method, seed, shares):
    """A run of NUM_TESTED clips that gets a share of them right, 1 % more for each seed."""

    def measured(way):
        share = shares.get((method, way), 0.5) + 0.01 * seed
        hits = np.arange(NUM_TESTED) < round(share * NUM_TESTED)
        return {budget: {"top1": hits.mean(), "hits": pack(hits)} for budget in BUDGETS}

    ways = [
        "direct",
        "to",
        *(f"{way}, {name}" for way in ("direct", "to") for name in SELECTORS if name != OWN_SELECTOR),
    ]
    return {
        "training": {"steps": 3, "clips": 48, "tera_multiply_adds": 0.1},
        "curve": [[1, 0.1], [2, 0.5], [3, 0.5 + 0.01 * seed]],
        **{way: measured(way) for way in ways},
    }


def fake_study(tmp_path, shares, methods=("fixed_equal", "multi")):
    records = Records(tmp_path, {})
    records.put_clips("generator", {f"{number}.mp4": str(number) for number in range(NUM_TESTED)})
    for method in methods:
        for seed in (0, 1):
            records.put("generator", method, seed, fake_record(method, seed, shares))
    return records


@pytest.mark.parametrize(("ours", "sure"), [(0.75, True), (0.705, False)])
def test_the_report_is_bold_only_where_a_difference_is_sure(tmp_path, ours, sure):
    shares = {("fixed_equal", "direct"): 0.7, ("multi", "to"): ours, ("multi", "to, random"): 0.4}
    text = report(fake_study(tmp_path, shares), "fluxvit")
    [claim] = [line for line in text.splitlines() if "TO, at 36 tokens - fixed grid, equal compute, direct" in line]
    assert f": {'**' if sure else ''}{100 * (ours - 0.7):+.1f} [" in claim
    mean, deviation = 100 * ours + 0.5, statistics.stdev([0, 1])
    assert f"| Flux-Multi, TO | {mean:.1f} ± {deviation:.1f} |" in text
    assert f"| Flux-Multi, TO, random | **{100 * (0.4 - ours):+.1f} [" in text
    assert "| Flux-Multi | 3 | 48 | 0.1 | 0.5 ± 0.7 |" in text
    assert (tmp_path / "results.md").read_text() == text
    assert lines_drawn(tmp_path / "generator" / "accuracy.png")[:2] == [True, True]
    assert (tmp_path / "generator" / "validation.png").stat().st_size > 1000


def test_a_study_that_is_not_finished_is_reported(tmp_path):
    records = fake_study(tmp_path, {}, methods=("multi",))
    assert "fixed grid, TO |" not in report(records)
    records.put("generator", "fixed_equal", 1, fake_record("fixed_equal", 1, {}))
    text = report(records)  # one seed in common
    assert "Seeds: fixed grid, equal compute 1, Flux-Multi 2." in text
    assert "| Flux-Multi - fixed grid at equal compute, direct | +0.0 [+0.0, +0.0] |" in text


def test_where_models_begin_is_compared_clip_by_clip(tmp_path):
    """Over the seeds that both starts were run from, and of methods that both were."""
    records = Records(tmp_path, {})
    groups = {str(clip): str(clip) for clip in range(400)}
    starts = {
        "scratch": (0.25, (0, 1)),
        "distilled": (0.75, (1, 2)),
        "made_up": (0.25, (0,)),
        "scratch_long": (0.5, (2,)),
    }
    for start, (share, seeds) in starts.items():
        records.put_clips(f"set_{start}", groups)
        for seed in seeds:
            hits = [clip < share * 400 for clip in range(400)]
            of_budgets = {budget: {"top1": share, "hits": pack(hits)} for budget in BUDGETS}
            record = {"training": {"steps": 1, "clips": 1, "tera_multiply_adds": 1}}
            records.put(f"set_{start}", "multi", seed, record | {way: of_budgets for way in ("direct", "to")})
    table = report(records).split("## set: where models begin")[1].splitlines()
    rows = [line for line in table if line.startswith("| Flux-Multi")]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| Flux-Multi, {way}, {both}"
        for both in (
            "from the made-up clips' models - from scratch",
            "from students of a real teacher - from scratch",
            "from students of a real teacher - from scratch, as many steps in all",
        )
        for way in ("direct", "TO")
    ]
    assert rows[0].count("+0.0 [+0.0, +0.0]") == 4 and rows[2].count("**+50.0 [") == 4
    assert rows[4].count("**+25.0 [") == 4


def test_a_model_of_other_flags_is_not_taken_for_this_run(tmp_path):
    options = Options(tmp_path, 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "all_results.json").write_text("{}")
    (tmp_path / "run.yaml").write_text("seed: 0\nlearning_rate: 0.001\nframes: [8, 16]\n")
    train_by({"seed": 0, "learning_rate": 1e-3, "frames": [8, 16]}, tmp_path / "run", options)
    with pytest.raises(ValueError, match=r"run was trained with other \['frames', 'seed', 'teacher'\]"):
        train_by({"seed": 1, "learning_rate": 1e-3, "frames": [8], "teacher": "a"}, tmp_path / "run", options)


def test_records_of_another_study_are_refused(tmp_path):
    def settings(*more):
        return settings_of(parse_arguments(["--output_dir", str(tmp_path), *more]))

    with pytest.raises(ValueError, match="--share must be above 0, got 0.0"):
        settings("--share", "0")
    Records(tmp_path, settings())
    with pytest.raises(ValueError, match=r"\['share_of_steps'\]"):
        Records(tmp_path, settings("--share", "2"))
    records = Records(tmp_path, settings("--seeds", "5", "--methods", "multi"))
    with pytest.raises(ValueError, match=r"\['num_clips'\]"):
        Records(tmp_path, settings("--num_clips", "8", "8", "8"))
    with pytest.raises(ValueError, match="seeds"):
        settings("--seeds", "1", "1")
    records.put_clips("set", {"a.mp4": "1"})
    records.put_clips("set", {"a.mp4": "1"})
    with pytest.raises(ValueError, match=r"clips\.json lists other clips"):
        records.put_clips("set", {"b.mp4": "1"})
    assert records.get("set", "multi", 0) is None and records.seeds("set", "multi") == []


def test_a_failing_run_says_where_its_log_is(tmp_path):
    log = tmp_path / "run.log"
    with pytest.raises(RuntimeError, match=r"status 2, see .*run\.log(?s:.*)required: output_dir"):
        call(["training.study.motion_clips", "--nonsense"], log, threads=1)


@pytest.mark.parametrize(("name", "words"), [("results", []), ("results_twice", ["--share", "2"])])
def test_the_published_tables_are_those_of_the_published_runs(tmp_path, name, words):
    published = STUDY / name
    kept = (published / "results.md").read_text(encoding="utf-8")
    copy = tmp_path / "results"
    shutil.copytree(published, copy)
    records = Records(copy, settings_of(parse_arguments(["--output_dir", str(tmp_path), *words])))
    assert report(records) == kept


def test_the_readme_quotes_the_published_tables():
    own = (STUDY / "README.md").read_text(encoding="utf-8").split("## Around other encoders")[0].splitlines()
    files = (STUDY / name / "results.md" for name in ("results", "results_twice"))
    published = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    quoted = [line for line in own if line.startswith(("| ", "- Flux"))]
    assert len(quoted) > 30 and not [line for line in quoted if line not in published]


@pytest.mark.slow
def test_the_whole_study_and_going_on_with_it(tmp_path):
    real = tmp_path / "set"
    task = make_generator_task(tmp_path / "other", (24, 24, 24))  # clips of the right form, as if they were real
    rows = [
        {"path": str(task.folds[0].test.parent / name), "label": name[-5], "group": str(number % 4)}
        for number, name in enumerate(listed(task.folds[0].test))
    ]
    for row in rows:
        row["label"] = "even" if int(row["label"]) % 2 == 0 else "odd"
    write_table(real, rows)
    command = [sys.executable, "-m", "training.study", "--output_dir", str(tmp_path / "out"), "--quick"]
    command += ["--methods", "fixed_equal", "multi", "--seeds", "0"]
    subprocess.run([*command, "--jobs", "2", "--real_data", str(real)], check=True)
    results = tmp_path / "out" / "results"
    text = (results / "results.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## generator",
        "## set_made_up",
        "## set_scratch",
        "## set: where models begin",
    ]
    # What is there is not done again; what is gone is, and is the same.
    record, model = results / "generator" / "multi_seed0.json", tmp_path / "out" / "generator" / "multi_seed0" / "all"
    kept, other = record.read_text(), (results / "generator" / "fixed_equal_seed0.json").stat().st_mtime_ns
    record.unlink()
    shutil.rmtree(model)
    subprocess.run([*command, "--jobs", "1"], check=True)
    assert record.read_text() == kept
    assert (results / "generator" / "fixed_equal_seed0.json").stat().st_mtime_ns == other
    assert (results / "results.md").read_text() == text
