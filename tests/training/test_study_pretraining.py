"""The experiment on pretraining: what its runs are, and all of it, too small to mean anything."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from training_runs import REPOSITORY
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from flux_hf import FluxViTForPreTraining
from flux_hf.checkpoint_files import write_csv
from training.pretrain_arguments import parse_pretraining
from training.study import pretraining, real_teacher, report
from training.study.design import BUDGETS, TOKENS, merged_recipe
from training.study.records import Records, pack
from training.study.runs import Options, Run, run_flags
from training.study.tasks import make_generator_task, make_real_tasks, read_rows


STUDY = REPOSITORY / "training" / "study"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return pretraining.Setting(Options(folder, 1), make_generator_task(folder, (80, 8, 16)), folder / "teacher")


def test_the_two_pretrainings_differ_in_clips_and_budgets_alone(setting):
    flux, fixed = (pretraining.pretraining_flags(start, 3, setting) for start in ("flux", "fixed"))
    differ = {name for name in flux if flux[name] != fixed[name]}
    assert differ == {"sampling", "frames", "sizes", "token_window", "student_budgets"}
    assert flux["student_budgets"] == [TOKENS, 108, 72] and fixed["student_budgets"] == [TOKENS]
    assert flux["seed"] == fixed["seed"] == 3
    for flags in (flux, fixed):
        words = [f"--{name}={value}" for name, value in flags.items() if isinstance(value, str)]
        for name in ("frames", "sizes", "token_window"):
            words += [f"--{name}", *map(str, flags[name])] if flags[name] else []
        parse_pretraining([*words, "--output_dir", "o"])


def test_scratch_takes_as_many_steps_in_all(setting):
    labelled = pretraining.labelled_part(setting.clips, 0.2, 0, setting.options.output_dir)
    scratch, tuned = (pretraining.tuning_flags(start, 0, labelled, setting) for start in ("scratch", "flux"))
    steps = pretraining.pretraining_flags("flux", 0, setting)["max_train_steps"]
    assert scratch["max_train_steps"] == tuned["max_train_steps"] + steps
    differ = {name for name in {*scratch, *tuned} if scratch.get(name) != tuned.get(name)}
    assert differ == {"max_train_steps", "num_warmup_steps", "eval_steps", "config_name", "model_name_or_path"}
    assert tuned["model_name_or_path"].endswith("pretraining/flux_seed0")


def test_labels_are_kept_of_as_many_clips_of_each_class(setting):
    folder = setting.options.output_dir
    everything = {(row["path"], row["label"]) for row in read_rows(setting.clips.folds[0].train)}
    parts = []
    for seed in (0, 0, 1):
        rows = read_rows(pretraining.labelled_part(setting.clips, 0.2, seed, folder / "labels"))
        root = setting.clips.folds[0].train.parent
        taken = {(os.path.relpath(row["path"], root), row["label"]) for row in rows}
        assert taken < everything and set(Counter(label for _, label in taken).values()) == {2}
        parts.append(taken)
    assert parts[0] == parts[1] != parts[2]
    few = read_rows(pretraining.labelled_part(setting.clips, 0.001, 0, folder / "labels"))
    assert len(few) == len({row["label"] for row in few}) == len({label for _, label in everything})


def test_tables_compare_flux_with_the_others_clip_by_clip(tmp_path):
    records = Records(tmp_path, {})
    clips = {str(clip): str(clip) for clip in range(8)}
    name = pretraining.name_of(0.05)
    records.put_clips(name, clips)
    for seed in range(2):
        for start, right in (("scratch", 2), ("flux", 6)):
            hits = [clip < right for clip in range(8)]
            of_budgets = {budget: {"top1": right / 8, "hits": pack(hits)} for budget in BUDGETS}
            records.put(name, start, seed, {"direct": of_budgets, "to": of_budgets})
    lines = pretraining.report(records).splitlines()
    assert "## 5 % of the labels" in lines and "## 20 % of the labels" not in lines
    assert any(line.startswith("| from scratch, TO | 25.0 ± 0.0 |") for line in lines)
    [found] = [line for line in lines if line.startswith("| Flux pretraining - from scratch, direct")]
    assert "**+50.0 [+12.5, +87.5]**" in found


@pytest.mark.parametrize(("name", "make"), [("pretraining", pretraining.report), ("real_teacher", report.report)])
def test_the_published_tables_are_those_of_the_published_runs(tmp_path, name, make):
    published, copy = STUDY / "results" / name, tmp_path / name
    shutil.copytree(published, copy)
    settings = json.loads((copy / "settings.json").read_text(encoding="utf-8"))
    if name == "pretraining":
        settings = pretraining.settings_of(pretraining.parse_arguments(["--output_dir", str(tmp_path)]))
    else:  # its teacher and its clips are not here
        settings |= {"pretraining": real_teacher.pretraining_flags(), "tuning": merged_recipe("real_scratch", "multi")}
    kept = (published / "results.md").read_text(encoding="utf-8")
    assert make(Records(copy, settings)) == kept


def test_the_readme_quotes_the_published_tables():
    section = (STUDY / "README.md").read_text(encoding="utf-8").split("## Pretraining without labels")[1]
    files = (STUDY / "results" / name / "results.md" for name in ("pretraining", "real_teacher"))
    published = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    quoted = [line for line in section.split("\n# ")[0].splitlines() if line.startswith("| ")]
    assert len(quoted) > 20 and not [line for line in quoted if line not in published]


@pytest.mark.slow
def test_all_of_it_runs_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "training.study.pretraining", "--output_dir", str(tmp_path), "--seeds", "0"]
    command += ["--num_clips", "160", "16", "24", "--share", "0.003", "--jobs", "2"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    results = tmp_path / "results" / "pretraining"
    text = (results / "results.md").read_text()
    assert text.count("| Flux pretraining, TO |") == 2 and text.count("| fixed-grid pretraining, direct |") == 2
    student = FluxViTForPreTraining.from_pretrained(tmp_path / "pretraining" / "flux_seed0")
    assert student.config.teacher_hidden_size == student.config.hidden_size
    record = results / "labels_05" / "fixed_seed0.json"
    kept = json.loads(record.read_text())
    record.unlink()
    subprocess.run(command, check=True, cwd=REPOSITORY)
    assert json.loads(record.read_text()) == kept


@pytest.fixture
def real(tmp_path):
    """Clips of the right form as if they were real, and a tiny image encoder of random weights; the command's words."""
    clips = make_generator_task(tmp_path / "clips", (8, 8, 24)).folds[0].test
    labels = ("even", "odd")
    rows = [(str(clips.parent / row["path"]), labels[n % 2], str(n % 4)) for n, row in enumerate(read_rows(clips))]
    write_csv(tmp_path / "set" / "split.csv", ("path", "label", "group"), rows)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "teacher")
    BitImageProcessor().save_pretrained(tmp_path / "teacher")
    words = ["--output_dir", tmp_path / "out", "--teacher", tmp_path / "teacher", "--real_data", tmp_path / "set"]
    return [str(word) for word in (*words, "--unlabelled", tmp_path / "set", "--seeds", "0")]


def test_starts_on_real_clips_differ_in_nothing_else(real):
    args = real_teacher.parse_arguments(real)
    [scratch] = make_real_tasks(args.output_dir, args.real_data, "split.csv", 2, None)
    tasks = real_teacher.make_tasks(scratch, args.output_dir / "distilled", Options(args.output_dir, 1))
    of = {name: run_flags(Run(task, task.folds[0], "multi", 0), options) for name, (task, options) in tasks.items()}

    def differ(one, other):
        return {name for name in {*of[one], *of[other]} if of[one].get(name) != of[other].get(name)}

    assert differ("scratch", "distilled") == {"config_name", "model_name_or_path"}
    assert differ("scratch", "scratch_long") == {"max_train_steps", "num_warmup_steps"}
    steps = real_teacher.pretraining_flags()["max_train_steps"]
    assert of["scratch_long"]["max_train_steps"] == of["scratch"]["max_train_steps"] + steps


def test_records_of_another_teacher_or_other_clips_are_refused(real):
    def records():
        args = real_teacher.parse_arguments(real)
        Records(args.results_dir, real_teacher.settings_of(args))
        return args

    args = records()
    records()
    (args.teacher / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other \['teacher'\]"):
        records()
    with open(args.real_data / "split.csv", "a") as file:
        file.write("more.mp4,odd,1\n")
    with pytest.raises(ValueError, match=r"other \['teacher', 'unlabelled'\]"):
        records()


@pytest.mark.slow
def test_a_real_teacher(real, tmp_path):
    command = [sys.executable, "-m", "training.study.real_teacher", *real, "--quick", "--jobs", "2"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    results = tmp_path / "out" / "results" / "real_teacher"
    record = results / "set_distilled" / "multi_seed0.json"
    kept = json.loads(record.read_text())
    student = FluxViTForPreTraining.from_pretrained(tmp_path / "out" / "distilled" / "seed0")
    assert student.config.teacher_hidden_size == 32
    [log] = (tmp_path / "out" / "set_distilled" / "multi_seed0").glob("fold0.yaml")
    assert f"model_name_or_path: {tmp_path}/out/distilled/seed0" in log.read_text()
    text = (results / "results.md").read_text()
    for other in ("from scratch", "from scratch, as many steps in all"):
        assert text.count(f", from students of a real teacher - {other} |") == 2
    record.unlink()
    subprocess.run(command, check=True, cwd=REPOSITORY)
    assert json.loads(record.read_text()) == kept
