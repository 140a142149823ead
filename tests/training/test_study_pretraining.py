"""The experiment on pretraining: what its runs are, and all of it, too small to mean anything."""

import json
import os
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
from training.study import pretraining
from training.study.design import BUDGETS, TOKENS
from training.study.records import Records, pack
from training.study.runs import Options
from training.study.tasks import make_generator_task, read_rows


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


@pytest.mark.slow
def test_a_real_teacher(tmp_path):
    """Clips of the right form as if they were real, and a tiny image encoder of random weights."""
    clips = make_generator_task(tmp_path / "clips", (8, 8, 24)).folds[0].test
    labels = ("even", "odd")
    rows = [(str(clips.parent / row["path"]), labels[n % 2], str(n % 4)) for n, row in enumerate(read_rows(clips))]
    write_csv(tmp_path / "set" / "split.csv", ("path", "label", "group"), rows)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "teacher")
    BitImageProcessor().save_pretrained(tmp_path / "teacher")
    command = [sys.executable, "-m", "training.study.real_teacher", "--output_dir", str(tmp_path / "out"), "--quick"]
    command += ["--teacher", str(tmp_path / "teacher"), "--real_data", str(tmp_path / "set"), "--seeds", "0"]
    command += ["--unlabelled", str(tmp_path / "set"), "--jobs", "2"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    record = tmp_path / "out" / "results" / "set_distilled" / "multi_seed0.json"
    kept = json.loads(record.read_text())
    student = FluxViTForPreTraining.from_pretrained(tmp_path / "out" / "distilled" / "seed0")
    assert student.config.teacher_hidden_size == 32
    [log] = (tmp_path / "out" / "set_distilled" / "multi_seed0").glob("fold0.yaml")
    assert f"model_name_or_path: {tmp_path}/out/distilled/seed0" in log.read_text()
    record.unlink()
    subprocess.run(command, check=True, cwd=REPOSITORY)
    assert json.loads(record.read_text()) == kept
