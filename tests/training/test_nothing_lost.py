"""What a run must not delete, and what it says of a run that cannot go on."""

import json
import logging
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from evaluation_parts import tiny_model
from torch import nn
from training_runs import ENVIRONMENT, REPOSITORY, flags, launch, losses, write_data

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor
from flux_hf.checkpoint_files import publish, write_csv
from training.arguments import OptimizationArguments, RunArguments
from training.engine.checkpoint import Progress
from training.engine.loop import MAX_SKIPPED_IN_A_ROW, Run, optimizer_step
from training.engine.prepare import build_average, build_schedule, check_output_dir
from training.finetune import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips"), 12, 6)


SHORT = {"max_train_steps": 2, "num_warmup_steps": 1, "checkpointing_steps": "no"}


# --- the output folder -----------------------------------------------------------------------------------------------


def test_overwriting_refuses_a_folder_that_holds_what_the_run_reads(tmp_path):
    project = write_data(tmp_path / "project", 12, 6)
    with pytest.raises(ValueError, match="--overwrite_output_dir would delete what the run itself reads, .*train.csv"):
        main(flags(project, project, overwrite_output_dir=True, **SHORT))
    assert (project / "train.csv").is_file() and (project / "train" / "00000.mp4").is_file()


@pytest.mark.parametrize("inside", [".", "data", "data/train.csv"])
def test_inputs_inside_are_found(tmp_path, inside):
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "train.csv").touch()
    settings = RunArguments(output_dir=str(tmp_path / "out"), overwrite_output_dir=True)
    with pytest.raises(ValueError, match="would delete"):
        check_output_dir(settings, [None, str(tmp_path / "elsewhere"), str(tmp_path / "out" / inside)])
    check_output_dir(settings, [None, str(tmp_path / "out2"), str(tmp_path)])


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(data, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-900").mkdir(parents=True)
    (out / "checkpoint-900" / "training_state.pt").write_bytes(b"days of work")
    (out / "notes.txt").write_text("mine")
    (out / "plot.py").write_text("mine")
    with pytest.raises(FileNotFoundError):  # a mistake in another flag
        main(flags(data, out, overwrite_output_dir=True, config_name=tmp_path / "typo.json", **SHORT))
    assert (out / "checkpoint-900").is_dir()
    main(flags(data, out, overwrite_output_dir=True, **SHORT))
    assert not (out / "checkpoint-900").exists() and (out / "checkpoint-2").is_dir()
    assert (out / "notes.txt").read_text() == (out / "plot.py").read_text() == "mine"


def test_a_finished_lora_run_can_be_finished_again(data, tmp_path):
    words = flags(data, tmp_path / "out", lora_rank=2, **SHORT)
    main(words)
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    main([*words, "--resume_from_checkpoint", "latest"])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()


def test_publishing_takes_the_place_of_folders(tmp_path):
    for folder, text in (("old", "1"), ("new", "2")):
        (tmp_path / folder / "adapter").mkdir(parents=True)
        (tmp_path / folder / "adapter" / f"{folder}.txt").write_text(text)
    (tmp_path / "old" / "kept.txt").touch()
    publish(tmp_path / "new", tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old").rglob("*")) == ["adapter", "kept.txt", "new.txt"]


def test_a_spoilt_checkpoint_is_named_and_the_one_before_offered(data, tmp_path):
    out = tmp_path / "out"
    words = flags(data, out, max_train_steps=4, checkpointing_steps=2)
    main(words)
    state = out / "checkpoint-4" / "training_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint-4 is damaged .*--resume_from_checkpoint .*checkpoint-2"):
        main([*words, "--resume_from_checkpoint", "latest"])


@pytest.mark.parametrize("change", [{"learning_rate": 1e-1}, {"weight_decay": 0.5}, {"layer_decay": 0.5}])
def test_a_changed_rate_is_refused_when_resuming(data, tmp_path, change):
    main(flags(data, tmp_path / "out", **SHORT))
    [name] = change
    with pytest.raises(ValueError, match=f"it had .*'{name}': .*this one has .*'{name}': {change[name]}"):
        main([*flags(data, tmp_path / "out", **{**SHORT, **change}), "--resume_from_checkpoint", "latest"])


def test_names_that_are_no_text_are_written_as_they_are(tmp_path):
    write_csv(tmp_path / "a.csv", ("name",), [("caf\udce9.mp4",)])
    assert (tmp_path / "a.csv").read_bytes().split() == [b"name", b"caf\xe9.mp4"]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_short_run_warms_up_for_its_share():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    settings = OptimizationArguments(max_train_steps=10, num_train_epochs=5, num_warmup_epochs=1.0)
    schedule = build_schedule(optimizer, settings, [1.0, 0.0, 0.0], steps_per_epoch=100, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) == 1 and rates[-1] < 0.2  # a fifth of the run, as of the whole one


def test_an_average_too_slow_for_the_run_is_said(caplog):
    Accelerator(cpu=True)
    with caplog.at_level(logging.WARNING, "training.engine.prepare"):
        build_average(nn.Linear(1, 1), 0.9999, 2350)
    assert "keeps 79 % of the start after 2350 steps" in caplog.text
    caplog.clear()
    build_average(nn.Linear(1, 1), 0.99, 2350)
    assert not caplog.text


class Scaled:
    """What `optimizer_step` asks of an accelerator that trains in float16, with torch's own scaler on the CPU."""

    def __init__(self, parameter):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        self.optimizer, self.parameter, self.step_was_skipped = torch.optim.SGD([parameter], 1.0), parameter, False

    def clip_grad_norm_(self, parameters, limit):
        self.scaler.scale(torch.zeros(()))  # as of a loss: sets it up
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(parameters, limit)

    def step(self):
        before = self.parameter.detach().clone()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_was_skipped = bool(torch.equal(before, self.parameter))

    def zero_grad(self):
        self.optimizer.zero_grad()


def test_float16_steps_that_overflow_are_counted_and_move_no_average():
    Accelerator(cpu=True)
    model = nn.Linear(1, 1, bias=False)
    scaled = Scaled(model.weight)
    ema = build_average(model, 0.5, 1000)
    state = SimpleNamespace(progress=Progress(), ema=ema, engine=None, scheduler=SimpleNamespace(step=lambda: None))
    run = Run(None, scaled, None, model, scaled, state, 1, 100)
    start, average = model.weight.item(), ema.averages["weight"].clone()
    model.weight.grad = torch.full((1, 1), math.inf)
    optimizer_step(run)
    assert (state.progress.skipped_steps, state.progress.step) == (1, 1) and model.weight.item() == start
    assert torch.equal(ema.averages["weight"], average) and scaled.scaler.get_scale() == 2.0
    model.weight.grad = torch.full((1, 1), 2.0)
    optimizer_step(run)
    assert model.weight.item() == pytest.approx(start - 1.0) and run.skipped_in_a_row == 0
    assert not torch.equal(ema.averages["weight"], average)
    with pytest.raises(FloatingPointError, match=f"{MAX_SKIPPED_IN_A_ROW} successive"):
        for _ in range(MAX_SKIPPED_IN_A_ROW):
            model.weight.grad = torch.full((1, 1), math.nan)
            optimizer_step(run)


@pytest.mark.parametrize("skipped", [False, True])
def test_a_step_that_deepspeed_has_taken_ends_the_run_and_one_it_left_out_does_not(skipped):
    Accelerator(cpu=True)
    engine = SimpleNamespace(scaler=None, clip_grad_norm_=lambda parameters, limit: -1.0)
    nothing = SimpleNamespace(step=lambda: None, zero_grad=lambda: None, step_was_skipped=skipped)
    state = SimpleNamespace(progress=Progress(step=7), ema=None, engine=object(), scheduler=nothing)
    run = Run(None, engine, None, nn.Linear(1, 1), nothing, state, 1, 100)
    if skipped:
        optimizer_step(run)
        assert (state.progress.skipped_steps, state.progress.step, run.skipped_in_a_row) == (1, 8, 1)
    else:
        with pytest.raises(FloatingPointError, match="step 7: DeepSpeed took it"):
            optimizer_step(run)


def test_a_bfloat16_checkpoint_is_trained_in_float32(data, tmp_path):
    labels = sorted({line.split(",")[1] for line in (data / "train.csv").read_text().split()[1:]})
    model = tiny_model(id2label=dict(enumerate(labels)), label2id={name: index for index, name in enumerate(labels)})
    model.to(torch.bfloat16).save_pretrained(tmp_path / "start")
    FluxViTVideoProcessor(num_frames=4, size=28).save_pretrained(tmp_path / "start")
    changes = {"config_name": None, "model_name_or_path": tmp_path / "start", "learning_rate": 2e-5, "ema_decay": 0.5}
    main(flags(data, tmp_path / "out", token_budgets=[16, 8, 4], max_train_steps=3, num_warmup_steps=0, **changes))
    trained = FluxViTForVideoClassification.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    start = dict(model.float().named_parameters())
    moved = [(parameter != start[name]).float().mean().item() for name, parameter in trained.named_parameters()]
    assert min(moved) > 0.9


def test_compiled_by_accelerate_with_an_average(data, tmp_path):
    words = flags(data, tmp_path / "out", ema_decay=0.9, sampling="fixed", frames=None, sizes=None, token_window=None)
    words += ["--max_train_steps", "1", "--num_warmup_steps", "0", "--checkpointing_steps", "no"]
    launch(words, environment={"ACCELERATE_DYNAMO_BACKEND": "EAGER"})
    assert len(losses(tmp_path / "out")) == 1
    names = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert len(names) == 6 and FluxViTForVideoClassification.from_pretrained(tmp_path / "out").num_labels == 6


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_that_is_no_text_ends_nothing(data, tmp_path):
    """Training, labels and checks go on, and their lists hold the name as it is."""
    for index, label in enumerate(("down", "left")):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number, split in enumerate(("train", "val")):
            source = data / split / f"{index:05}.mp4"
            (tmp_path / "set" / label / f"{number}.mp4").write_bytes(source.read_bytes())
    odd = os.fsencode(tmp_path / "set" / "left") + b"/caf\xe9.mp4"
    with open(odd, "wb") as file:
        file.write(b"no video")
    changes = {"data": tmp_path / "set", "validation_data": None, "max_failed_share": 0.5, "max_train_steps": 5}
    launch(flags(data, tmp_path / "out", **{**SHORT, **changes}, per_device_train_batch_size=1))
    assert "caf" in (tmp_path / "out" / "all_results.json").read_text()
    for module, more in (
        ("training.predict", [str(tmp_path / "set"), "--model_name_or_path", str(tmp_path / "out")]),
        ("training.check_videos", ["--data", str(tmp_path / "set")]),
    ):
        listed = tmp_path / f"{module}.csv"
        command = [sys.executable, "-m", module, *more, "--output", str(listed), "--dataloader_num_workers", "0"]
        run = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True)
        assert run.returncode == 1, run.stderr[-2000:]  # a clip that is bad
        assert b"caf\xe9.mp4" in listed.read_bytes()
