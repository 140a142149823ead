import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tiny import tiny_config
from training_runs import ENVIRONMENT, REPOSITORY, command, different, flags, launch, losses, weights, write_data

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor
from training.engine.checkpoint import list_checkpoints
from training.finetune import main
from training.study.motion_clips import MOTIONS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips"))


@pytest.fixture(autouse=True)
def _fresh_accelerator(monkeypatch):
    """Each run in this process finds the state a new process would."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def launched(data, tmp_path_factory):
    """A run from `accelerate launch`."""
    output_dir = tmp_path_factory.mktemp("run") / "model"
    launch(flags(data, output_dir, num_sample=2, mixup=0.8, cutmix=1.0, eval_steps=3, ema_decay=0.5))
    return output_dir


def test_the_checkpoint_loads_and_classifies(data, launched):
    for folder in (launched, launched / "checkpoint-3"):
        model = FluxViTForVideoClassification.from_pretrained(folder).eval()
        processor = FluxViTVideoProcessor.from_pretrained(folder)
        assert model.config.token_budgets == [16, 8, 4]
        assert model.config.id2label == dict(enumerate(sorted(MOTIONS)))
        inputs = processor(data / "val/00000.mp4", return_tensors="pt")
        for budget in (16, 8, 4):
            with torch.no_grad():
                outputs = model(**inputs, token_budget=budget)
            assert outputs.logits.shape == (1, 6) and outputs.logits.isfinite().all()
            assert outputs.keep_indices.shape == (1, budget)


def test_what_a_run_leaves_behind(launched):
    results = json.loads((launched / "all_results.json").read_text())
    assert results["train_steps"] == 6 and results["skipped_steps"] == 0 and results["failed_clips"] == {}
    assert {"eval_top1_16", "eval_top1_8", "eval_top1_4", "eval_top5_4", "eval_mean"} < set(results)
    assert len(losses(launched)) == 6
    assert json.loads((launched / "training_arguments.json").read_text())["num_sample"] == 2
    assert [path.name for path in list_checkpoints(launched)] == ["checkpoint-3", "checkpoint-6"]
    assert not list(launched.glob(".*")) and not (launched / "training_state.pt").exists()
    assert json.loads((launched / "best_checkpoint.json").read_text())["checkpoint"] in ("checkpoint-3", "checkpoint-6")


def test_two_processes_follow_the_curve_of_one(data, tmp_path):
    """At equal global batch, 20 steps, flexible shapes, augmentation; no mixing, dropout or stochastic depth."""
    launch(flags(data, tmp_path / "one", max_train_steps=20, per_device_train_batch_size=4))
    # layers run three times a step: recomputing them under DDP must work as well
    two = {"per_device_train_batch_size": 2, "gradient_checkpointing": True}
    launch(flags(data, tmp_path / "two", max_train_steps=20, **two), processes=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 20
    assert max(one) - min(one) > 0.01
    assert two == pytest.approx(one, abs=1e-4)


def test_accumulated_batches_follow_the_curve_of_large_ones(data, tmp_path):
    fixed = {"sampling": "fixed", "frames": None, "sizes": None, "token_window": None, "augmentation": "none"}
    main(flags(data, tmp_path / "large", per_device_train_batch_size=8, **fixed))
    GradientState._reset_state()
    accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    main(flags(data, tmp_path / "small", **accumulated, **fixed))
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), abs=1e-5)


def kill_when(arguments: list[str], condition) -> bool:
    """Starts a run and kills it without warning once `condition()` holds; False if the run ended before."""
    process = subprocess.Popen(
        command(arguments),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            if condition():
                return True
            time.sleep(0.002)
        return False
    finally:
        try:
            # the launcher and the training process it started
            subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False, stderr=subprocess.DEVNULL)
        finally:
            process.wait()


HARD = {
    "num_sample": 2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path_rate": 0.3,
    "classifier_dropout": 0.2,
    "ema_decay": 0.9,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 3,
    "checkpoints_total_limit": 2,
    "dataloader_num_workers": 1,
}


def test_a_run_killed_while_saving_resumes_bit_by_bit(data, tmp_path):
    settings = {**HARD, "max_train_steps": 7, "checkpointing_steps": 2, "eval_steps": 3}
    launch(flags(data, tmp_path / "whole", **settings))  # like the killed one: sums depend on the number of threads
    cut = tmp_path / "cut"
    arguments = [*flags(data, cut, **settings), "--resume_from_checkpoint", "latest"]
    assert kill_when(arguments, lambda: (cut / ".checkpoint-4.tmp").exists())
    assert (cut / "checkpoint-2").is_dir() and not (cut / "checkpoint-4").exists()
    launch(arguments)
    assert different(weights(tmp_path / "whole"), weights(cut)) == []
    assert losses(cut) == losses(tmp_path / "whole")
    assert not list(cut.glob(".checkpoint*"))


def last_step(output_dir) -> int:
    """Of the last checkpoint, which must be whole; 0 if there is none."""
    checkpoints = list_checkpoints(output_dir)
    if not checkpoints:
        return 0
    weights(checkpoints[-1])
    state = torch.load(checkpoints[-1] / "training_state.pt", weights_only=True)
    return state["progress"]["step"]


def starting(rng):
    """While the run imports, reads and resumes."""
    end = time.monotonic() + rng.uniform(1, 4)
    return lambda: time.monotonic() > end


def after_a_step(log: Path, delay: float):
    """So many seconds after the first step of this start was logged: however fast the machine is, few steps pass."""
    sizes, grown = [], []

    def moment():
        sizes.append(log.stat().st_size if log.exists() else 0)
        if not grown and len(sizes) > 1 and sizes[-1] > sizes[-2]:  # resuming cuts it first
            grown.append(time.monotonic())
        return bool(grown) and time.monotonic() > grown[0] + delay

    return moment


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_at_random_moments_change_nothing(data, tmp_path):
    """Half of them at any moment, half while a checkpoint is being written."""
    settings = {**HARD, "max_train_steps": 60, "checkpointing_steps": 2, "eval_steps": 5}
    launch(flags(data, tmp_path / "whole", **settings))
    cut = tmp_path / "cut"
    arguments = [*flags(data, cut, **settings), "--resume_from_checkpoint", "latest"]
    rng = random.Random(0)
    kills = inside = 0
    while kills < 20:
        if kills % 2:
            seen = rng.randint(1, 4)  # in which of its saves
            staged: set[str] = set()

            def moment(seen=seen, staged=staged):
                staged.update(path.name for path in cut.glob(".checkpoint-*.tmp"))
                return len(staged) >= seen and any(cut.glob(".checkpoint-*.tmp"))
        else:
            moment = after_a_step(cut / "training_log.jsonl", rng.uniform(0, 0.3)) if kills % 4 else starting(rng)

        before = last_step(cut)
        if not kill_when(arguments, moment):
            raise AssertionError(f"the run ended after {kills} kills")
        inside += any(cut.glob(".checkpoint-*.tmp"))
        kills += 1
        assert last_step(cut) >= before  # a whole one is never lost
    launch(arguments)
    assert inside >= 8
    assert different(weights(tmp_path / "whole"), weights(cut)) == []
    assert losses(cut) == losses(tmp_path / "whole")


def test_a_tenth_of_corrupt_clips_is_listed_and_costs_no_good_one(data, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(data, folder)
    bad = ["train/00003.mp4", "train/00011.mp4", "train/00017.mp4"]
    (folder / bad[0]).write_bytes(b"not a video")
    (folder / bad[1]).write_bytes((folder / bad[1]).read_bytes()[:900])
    (folder / bad[2]).unlink()
    log = launch(flags(folder, tmp_path / "out", max_train_steps=None, num_train_epochs=2, dataloader_num_workers=2))
    results = json.loads((tmp_path / "out/all_results.json").read_text())
    assert sorted(name[-len(bad[0]) :] for name in results["failed_clips"]) == bad
    assert results["train_steps"] == 12
    assert all(name in log for name in bad)


def test_too_many_corrupt_clips_stop_the_run_with_their_list(data, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(data, folder)
    for index in (1, 2, 3):
        (folder / f"train/{index:05d}.mp4").write_bytes(b"not a video")
    with pytest.raises(RuntimeError, match="(?s)00001.*00002|00002.*00003|00003.*00001|00001.*00003|00003.*00002"):
        main(flags(folder, tmp_path / "out", max_failed_share=0.05, max_train_steps=6))


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 2},
        {"freeze_layers": 2, "objective": "single", "token_budgets": [8]},
        {"gradient_checkpointing": True, "augment_on_device": True},
    ],
)
def test_variants_train_and_load(data, tmp_path, changes):
    start = tmp_path / "start"
    torch.manual_seed(0)
    labels = dict(enumerate(sorted(MOTIONS)))
    FluxViTForVideoClassification(tiny_config(id2label=labels)).save_pretrained(start)
    FluxViTVideoProcessor(num_frames=4, size=28).save_pretrained(start)
    out = tmp_path / "out"
    main(flags(data, out, config_name=None, model_name_or_path=start, max_train_steps=3, **changes))
    before, after = weights(start), weights(out)
    FluxViTForVideoClassification.from_pretrained(out)
    qkv, table = "fluxvit.encoder.layer.{}.attention.qkv.weight", "fluxvit.embeddings.position_embeddings.table"
    if "lora_rank" in changes:
        assert (out / "adapter/adapter_model.safetensors").is_file()
        change = after[qkv.format(0)] - before[qkv.format(0)]
        assert 0 < torch.linalg.matrix_rank(change, atol=1e-7) <= 2
        assert torch.equal(after[table], before[table])
    elif "freeze_layers" in changes:
        assert torch.equal(after[table], before[table]) and torch.equal(after[qkv.format(0)], before[qkv.format(0)])
        assert not torch.equal(after[qkv.format(1)], before[qkv.format(1)])
        assert "classifiers.1.weight" not in after
    else:
        assert not torch.equal(after[table], before[table])


def test_gradient_checkpointing_changes_no_loss(data, tmp_path):
    main(flags(data, tmp_path / "plain", max_train_steps=3))
    AcceleratorState._reset_state(reset_partial_state=True)
    main(flags(data, tmp_path / "checkpointed", max_train_steps=3, gradient_checkpointing=True))
    assert losses(tmp_path / "checkpointed") == pytest.approx(losses(tmp_path / "plain"), abs=1e-6)


def test_multi_label_training(data, tmp_path):
    rows = [f"{data}/train/{index:05d}.mp4,{'a|b' if index % 2 else 'c'}" for index in range(12)]
    (tmp_path / "train.csv").write_text("path,label\n" + "\n".join(rows))
    results = main(
        flags(
            data,
            tmp_path / "out",
            data=tmp_path / "train.csv",
            validation_data=tmp_path / "train.csv",
            multi_label=True,
            max_train_steps=3,
        )
    )
    model = FluxViTForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "multi_label_classification" and model.config.num_labels == 3
    assert 0 < results["eval_mean_average_precision_16"] <= 1


def test_a_tracker_receives_settings_and_curves(data, tmp_path):
    main(flags(data, tmp_path / "out", max_train_steps=3, report_to="tensorboard", run_name="one", hub_token="secret"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # not on a bare GPU machine

    events = EventAccumulator(str(tmp_path / "out" / "logs" / "one")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path / "out"), rel=1e-5)
    assert [event.step for event in events.Scalars("learning_rate")] == [1, 2, 3]
    assert "eval_top1_16" in events.Tags()["scalars"]
    assert not any(b"secret" in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_a_tracker_that_is_not_installed_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="--report_to must be .*tensorboard.*got 'dvclive'"):
        main(flags(data, tmp_path / "out", report_to="dvclive"))


def test_bfloat16_follows_float32(data, tmp_path, monkeypatch):
    main(flags(data, tmp_path / "float32", max_train_steps=4))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    main(flags(data, tmp_path / "bfloat16", max_train_steps=4))
    half = losses(tmp_path / "bfloat16")
    assert half == pytest.approx(losses(tmp_path / "float32"), rel=0.02) and half != losses(tmp_path / "float32")
    assert {weight.dtype for weight in weights(tmp_path / "bfloat16").values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_layers_follow_eager_ones(data, tmp_path):
    main(flags(data, tmp_path / "eager", max_train_steps=4))
    AcceleratorState._reset_state(reset_partial_state=True)
    main(flags(data, tmp_path / "compiled", max_train_steps=4, torch_compile=True))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=1e-4)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "eager").keys()


def test_a_streamed_set_trains_and_resumes(data, tmp_path):
    """A folder a class, as `datasets` reads it, validated on a listed set."""
    for index, motion in enumerate(MOTIONS * 2):
        (tmp_path / "set/train" / motion).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / f"train/{index:05d}.mp4", tmp_path / "set/train" / motion / f"{index}.mp4")
    stream = {"data": None, "dataset_name": tmp_path / "set", "streaming": True, "max_train_samples": 12}
    main(flags(data, tmp_path / "whole", **stream))
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = flags(data, tmp_path / "resumed", **stream)
    main([*arguments, "--resume_from_checkpoint", str(tmp_path / "whole/checkpoint-3")])
    assert different(weights(tmp_path / "whole"), weights(tmp_path / "resumed")) == []


def test_frame_folders_train(data, tmp_path):
    rows = []
    for index in range(8):
        folder = tmp_path / f"frames/clip{index}"
        folder.mkdir(parents=True)
        for frame in range(1, 7):
            pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"img_{frame:05d}.jpg")
        rows.append(f"clip{index},6,{'ab'[index % 2]}")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    source = {"data": tmp_path / "train.csv", "data_root": tmp_path / "frames", "validation_data": None}
    assert main(flags(data, tmp_path / "out", max_train_steps=2, **source))["train_steps"] == 2
    assert FluxViTForVideoClassification.from_pretrained(tmp_path / "out").config.label2id == {"a": 0, "b": 1}


def test_another_run_is_not_resumed_and_nothing_is_overwritten_unasked(data, tmp_path):
    out = tmp_path / "out"
    main(flags(data, out, max_train_steps=3))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="overwrite_output_dir"):
        main(flags(data, out))
    with pytest.raises(ValueError, match="seed"):
        main([*flags(data, out, max_train_steps=3, seed=1), "--resume_from_checkpoint", "latest"])
    with pytest.raises(ValueError, match="nowhere"):
        main([*flags(data, out, max_train_steps=3), "--resume_from_checkpoint", "nowhere"])
    before = weights(out)
    main([*flags(data, out, max_train_steps=3), "--resume_from_checkpoint", "latest"])  # nothing is left to do
    assert different(before, weights(out)) == []


def test_unknown_validation_labels_are_named_before_training(data, tmp_path):
    (tmp_path / "val.csv").write_text(f"path,label\n{data}/val/00000.mp4,sideways\n")
    with pytest.raises(ValueError, match="sideways"):
        main(flags(data, tmp_path / "out", validation_data=tmp_path / "val.csv"))


def break_one_step(monkeypatch, step):
    """Makes the loss of the run's step, counted from 1, no number: at the last of its three budgets."""
    from training.objectives import FluxObjective

    plain, calls = FluxObjective.classification_loss, []

    def broken(self, logits, targets):
        calls.append(None)
        loss = plain(self, logits, targets)
        return loss * float("nan") if len(calls) == 3 * step else loss

    monkeypatch.setattr(FluxObjective, "classification_loss", broken)


def test_steps_without_a_finite_gradient_are_left_out_and_counted(data, tmp_path, monkeypatch):
    break_one_step(monkeypatch, 2)
    results = main(flags(data, tmp_path / "out", max_train_steps=3))
    assert results["skipped_steps"] == 1
    assert all(value.isfinite().all() for value in weights(tmp_path / "out").values())


def test_an_optimizer_that_leaves_out_steps_itself_does_what_the_host_does(data, tmp_path, monkeypatch):
    """As on a GPU, where the host learns of a step a step later: weights, average, counters and checkpoints agree."""
    from training.engine import loop, prepare

    build = prepare.build_optimizer
    monkeypatch.setattr(prepare, "build_optimizer", lambda *args: build(*args[:3], fused=True))
    words = flags(data, tmp_path / "late", checkpointing_steps=2, ema_decay=0.5)
    with monkeypatch.context() as broken:
        break_one_step(broken, 2)
        late = main(words)
    with monkeypatch.context() as broken:
        break_one_step(broken, 2)
        broken.setattr(loop, "leaves_out_steps", lambda optimizer: False)
        atonce = main(flags(data, tmp_path / "at_once", checkpointing_steps=2, ema_decay=0.5))
    assert late["skipped_steps"] == atonce["skipped_steps"] == 1
    for step in (2, 4, 6):  # 2: saved right after the step that was left out
        one, other = (
            torch.load(tmp_path / name / f"checkpoint-{step}" / "training_state.pt", weights_only=True)
            for name in ("late", "at_once")
        )
        assert one["progress"] == other["progress"] and one["progress"]["skipped_steps"] == 1
        for part in ("objective", "ema"):
            assert different(one[part], other[part]) == []
        moments = (saved["optimizer"]["state"] for saved in (one, other))
        assert all(different(mine, theirs) == [] for mine, theirs in zip(*(m.values() for m in moments), strict=True))
    resumed = flags(data, tmp_path / "resumed", ema_decay=0.5)
    main([*resumed, "--resume_from_checkpoint", str(tmp_path / "late" / "checkpoint-2")])
    assert different(weights(tmp_path / "resumed"), weights(tmp_path / "late")) == []


def test_steps_that_are_left_out_on_and_on_end_the_run(data, tmp_path, monkeypatch):
    from training.engine import prepare
    from training.objectives import FluxObjective

    build, plain = prepare.build_optimizer, FluxObjective.classification_loss
    monkeypatch.setattr(prepare, "build_optimizer", lambda *args: build(*args[:3], fused=True))
    monkeypatch.setattr(FluxObjective, "classification_loss", lambda *args: plain(*args) * float("inf"))
    monkeypatch.setattr("training.engine.loop.MAX_SKIPPED_IN_A_ROW", 3)
    with pytest.raises(FloatingPointError, match="no finite gradient in 3 successive steps"):
        main(flags(data, tmp_path / "out"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("more", [{}, {"augment_on_device": True}, {"ema_decay": 0.9, "max_grad_norm": 1.0}], ids=str)
def test_no_step_waits_for_the_gpu(data, tmp_path, monkeypatch, more):
    from training.engine import loop

    monkeypatch.delenv("ACCELERATE_USE_CPU")
    plain = loop.training_step

    def step(run, batch):
        # the first ones make what they keep
        torch.cuda.set_sync_debug_mode("error" if run.state.progress.step >= 2 else "default")
        try:
            return plain(run, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "training_step", step)
    main(flags(data, tmp_path / "out", augmentation="paper", mixup=0.8, cutmix=1.0, logging_steps=6, **more))
