"""Pretraining as people run it: real clips, real processes, a teacher from disk; and what comes out of it."""

import json
import os
import re
import shutil

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_config
from training_runs import different, flags, launch, losses, weights, write_data
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
    VideoMAEModel,
    VideoMAEVideoProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from flux_hf import FluxViTForPreTraining, FluxViTForVideoClassification, FluxViTModel, FluxViTVideoProcessor
from training.evaluate import main as evaluate
from training.finetune import main as finetune
from training.pretrain import main
from training.pretrain_arguments import parse_pretraining
from training.pretraining import build_student, load_teacher, renormalised
from training.teachers import VideoTeacher


MODULE = "training.pretrain"
STREAM = {"streaming": True, "data": None, "dataset_name": "set", "max_train_samples": 16, "split": "train"}
OWN_FLAGS = """
    model_name_or_path revision cache_dir attn_implementation config_name num_frames size drop_path_rate
    gradient_checkpointing torch_compile teacher teacher_tokens teacher_layers teacher_layer_interval teacher_dtype
    teacher_compile teacher_sharded feature_cache cached_epochs
    student_budgets aligned_layers budget_weights layer_weight pooled_weight
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips without labels, a teacher wider than the student, and the student's fields."""
    folder = write_data(tmp_path_factory.mktemp("clips"), 16, 5)
    for split in ("train", "val"):
        rows = (folder / f"{split}.csv").read_text().split()
        (folder / f"unlabelled_{split}.csv").write_text("\n".join(row.split(",")[0] for row in rows) + "\n")
    torch.manual_seed(0)
    wide = tiny_config(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, projection_dim=20, num_pooling_heads=3
    )
    FluxViTForVideoClassification(wide).save_pretrained(folder / "teacher")
    FluxViTVideoProcessor(size=28, num_frames=4, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        folder / "teacher"
    )
    return folder


def pretraining(folder, output_dir, **changes):
    given = {
        "data": folder / "unlabelled_train.csv",
        "validation_data": folder / "unlabelled_val.csv",
        "teacher": folder / "teacher",
        "teacher_tokens": 16,
        "student_budgets": [16, 12, 8],
        "aligned_layers": 2,
    }
    return flags(folder, output_dir, **{**given, **changes})


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "one"
    launch(pretraining(data, output_dir, eval_steps=3), module=MODULE)
    return output_dir


def test_what_a_run_leaves_behind(data, pretrained):
    results = json.loads((pretrained / "all_results.json").read_text())
    assert results["train_steps"] == 6 and results["failed_clips"] == {}
    assert {"eval_similarity", "eval_similarity_8", "eval_pooled_similarity"} <= set(results)
    assert -1 <= results["eval_similarity"] <= 1
    student = FluxViTForPreTraining.from_pretrained(pretrained)
    assert student.config.alignment_layers == [0, 1]
    assert (student.config.teacher_hidden_size, student.config.teacher_projection_dim) == (48, 20)
    own = 4 * sum(parameter.numel() for parameter in student.parameters())
    assert own <= (pretrained / "model.safetensors").stat().st_size < own + 20_000
    [state] = (pretrained / "checkpoint-6").glob("*.pt")
    kept = torch.load(state, weights_only=True)
    assert not [name for name in kept["objective"] if not name.startswith("model.")]


def test_the_student_goes_on(data, pretrained, tmp_path):
    encoder = FluxViTModel.from_pretrained(pretrained)
    saved = weights(pretrained)
    assert all(torch.equal(saved[f"fluxvit.{name}"], value) for name, value in encoder.state_dict().items())
    further = {"config_name": None, "model_name_or_path": pretrained, "token_budgets": [16, 8, 4], "max_train_steps": 2}
    finetune(flags(data, tmp_path / "tuned", **further))
    shared = {"model_name_or_path": tmp_path / "tuned", "data": data / "val.csv", "output_dir": tmp_path / "results"}
    evaluate([str(word) for name, value in shared.items() for word in (f"--{name}", value)])
    points = json.loads((tmp_path / "results" / "metrics.json").read_text())["points"]
    assert [point["kept_tokens"] for point in points] == [16, 8, 4]
    # and pretraining from it: its decoders fit the same teacher
    main(pretraining(data, tmp_path / "again", config_name=None, model_name_or_path=pretrained, max_train_steps=1))
    assert losses(tmp_path / "again")[0] < losses(pretrained)[0]


@pytest.mark.slow  # of `finetune` it is a default test
def test_two_processes_follow_the_curve_of_one(data, tmp_path):
    same = {"max_train_steps": 8, "sampling": "fixed", "frames": None, "sizes": None, "token_window": None}
    launch(pretraining(data, tmp_path / "one", per_device_train_batch_size=8, eval_steps=8, **same), module=MODULE)
    launch(pretraining(data, tmp_path / "two", eval_steps=8, **same), processes=2, module=MODULE)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 8 and one[-1] < one[0]
    assert two == pytest.approx(one, abs=1e-4)
    of_one, of_two = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two"))
    assert of_two["eval_similarity"] == pytest.approx(of_one["eval_similarity"], abs=1e-4)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_bit_by_bit(data, pretrained, tmp_path):
    output_dir = tmp_path / "run"
    launch(pretraining(data, output_dir, eval_steps=3), module=MODULE)
    for name in ("checkpoint-6", "all_results.json", "model.safetensors", "config.json"):
        os.rename(output_dir / name, tmp_path / name)
    launch(pretraining(data, output_dir, eval_steps=3, resume_from_checkpoint="latest"), module=MODULE)
    assert losses(output_dir) == losses(pretrained) and different(weights(output_dir), weights(pretrained)) == []


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-5),
        ({"teacher_dtype": "bfloat16"}, 0.02),
        ({"ema_decay": 0.5}, 1e-5),
        pytest.param({"torch_compile": True, "teacher_compile": True}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_variants_follow_the_plain_run(data, pretrained, tmp_path, changes, tolerance):
    main(pretraining(data, tmp_path / "out", **changes))
    assert losses(tmp_path / "out") == pytest.approx(losses(pretrained), abs=tolerance)


@pytest.mark.slow
def test_two_processes_share_a_teacher(data, tmp_path):
    """Each holds half of it, and what it says is the same to the bit."""
    same = {"max_train_steps": 3, "eval_steps": 3, "per_device_eval_batch_size": 1}  # 5 clips held out: 3 and 2
    launch(pretraining(data, tmp_path / "whole", **same), processes=2, module=MODULE)
    log = launch(pretraining(data, tmp_path / "shared", teacher_sharded=True, **same), processes=2, module=MODULE)
    assert losses(tmp_path / "shared") == losses(tmp_path / "whole")
    one, other = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("shared", "whole"))
    assert one == other and "eval_similarity_8" in one
    assert different(weights(tmp_path / "shared"), weights(tmp_path / "whole")) == []
    [here, of_all] = re.search(r"([\d,]+) of the teacher's ([\d,]+) parameters are here", log).groups()
    assert int(here.replace(",", "")) < 0.55 * int(of_all.replace(",", ""))


@pytest.fixture
def asked(monkeypatch):
    """How often the teacher was asked."""
    calls, forward = [], VideoTeacher.forward

    def counting(self, *args):
        calls.append(args)
        return forward(self, *args)

    monkeypatch.setattr(VideoTeacher, "forward", counting)
    return calls


def test_a_teachers_features_are_kept(data, pretrained, tmp_path, asked):
    """Two epochs of 4 steps of 4 clips: asked once for each view, whatever the run goes on for and however often."""
    kept = {"feature_cache": tmp_path / "kept", "cached_epochs": 2, "validation_data": None}
    main(pretraining(data, tmp_path / "first", max_train_steps=16, **kept))
    assert len(asked) == 8
    files = sorted((tmp_path / "kept").glob("*/*/*.safetensors"))
    assert len(files) == 32
    assert losses(tmp_path / "first")[:3] == pytest.approx(losses(pretrained)[:3], abs=2e-3)  # in half precision
    main(pretraining(data, tmp_path / "again", max_train_steps=16, **kept))
    assert len(asked) == 8 and losses(tmp_path / "again") == losses(tmp_path / "first")
    os.truncate(files[0], 100)
    files[1].unlink()
    main(pretraining(data, tmp_path / "mended", max_train_steps=16, **kept))
    assert 9 <= len(asked) <= 10 and losses(tmp_path / "mended") == losses(tmp_path / "first")


def test_features_are_those_of_what_they_depend_on(data, tmp_path, asked):
    kept = {"feature_cache": tmp_path / "kept", "cached_epochs": 1, "validation_data": None, "max_train_steps": 1}
    for number, changes in enumerate(
        ({}, {"teacher_tokens": 12}, {"teacher_layers": [0, 1]}, {"horizontal_flip": 0.5}, {"max_train_samples": 12})
    ):
        main(pretraining(data, tmp_path / str(number), **kept, **changes))
        assert len(asked) == number + 1
    main(pretraining(data, tmp_path / "again", **kept, student_budgets=[8], pooled_weight=0.5))
    assert len(asked) == number + 1  # what only the student knows


def test_an_image_encoders_features_are_kept(data, tmp_path):
    """All of them: which count is for the student's selector to say, again at each step."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "teacher")
    BitImageProcessor().save_pretrained(tmp_path / "teacher")
    same = {"teacher": tmp_path / "teacher", "max_train_steps": 3, "validation_data": None}
    main(pretraining(data, tmp_path / "plain", **same))
    for name in ("first", "again"):
        main(pretraining(data, tmp_path / name, feature_cache=tmp_path / "kept", **same))
    assert losses(tmp_path / "again") == losses(tmp_path / "first")
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "plain"), abs=2e-3)


@pytest.mark.slow
def test_two_processes_share_a_teacher_and_its_features(data, tmp_path):
    """They ask together, though only one of them lacks a view."""
    kept = {"feature_cache": tmp_path / "kept", "teacher_sharded": True, "cached_epochs": 1, "validation_data": None}
    launch(pretraining(data, tmp_path / "first", **kept), processes=2, module=MODULE)
    files = sorted((tmp_path / "kept").glob("*/*/*.safetensors"))
    assert len(files) == 16
    files[5].unlink()
    launch(pretraining(data, tmp_path / "again", **kept), processes=2, module=MODULE)
    assert files[5].exists() and losses(tmp_path / "again") == losses(tmp_path / "first")


def test_pictures_among_videos(data, tmp_path, asked):
    """Batches of 4 videos or of 4 pictures, these as single frames, of all whose patches the student keeps shares."""
    folder = tmp_path / "clips"
    shutil.copytree(data, folder)
    names = []
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        names.append(f"{number}.{'png' if number % 2 else 'JPG'}")
        PIL.Image.fromarray(noise).save(folder / names[-1])
    with open(folder / "unlabelled_train.csv", "a") as file:
        file.write("\n".join([*names, ""]))
    main(pretraining(folder, tmp_path / "plain", validation_data=None))
    shapes = [tuple(pixels.shape[:2]) for pixels, _ in asked]
    assert set(shapes) <= {(4, 1), (4, 4), (4, 6)} and shapes.count((4, 1)) == 2  # an epoch is 4 batches and 2
    assert len(losses(tmp_path / "plain")) == 6
    main(pretraining(folder, tmp_path / "cached", validation_data=None, frame_cache=tmp_path / "frames"))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)


def test_a_stream_without_labels(data, tmp_path):
    names = (data / "unlabelled_train.csv").read_text().split()[1:]
    content = {"video": [{"path": None, "bytes": (data / name).read_bytes()} for name in names]}
    (tmp_path / "set").mkdir()
    features = datasets.Features({"video": datasets.Video(decode=False)})
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    source = {"data": None, "dataset_name": tmp_path / "set", "split": "train", "streaming": True}
    held_out = {"validation_data": None, "num_sample": 2, "max_train_samples": 16, "max_train_steps": 2}
    main(pretraining(data, tmp_path / "out", **source, **held_out))
    assert len(losses(tmp_path / "out")) == 2


def test_a_student_from_a_classifier_in_half_precision(data, tmp_path):
    """Its encoder and largest projector in float32, its mean and deviation, one budget, no plan."""
    torch.manual_seed(2)
    start = FluxViTForVideoClassification(tiny_config(token_plan={16: [6, 42]}))
    start.to(torch.bfloat16).save_pretrained(tmp_path / "start")
    settings = {"size": 28, "num_frames": 4, "token_plan": {16: [6, 42]}}
    FluxViTVideoProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, **settings).save_pretrained(tmp_path / "start")
    args = parse_pretraining(
        pretraining(data, tmp_path / "out", config_name=None, model_name_or_path=tmp_path / "start", size=42)
    )
    teacher, _ = load_teacher(args.teacher, 2)
    model, processor = build_student(args.model, teacher, args.distillation)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.config.token_budgets, model.config.token_plan, model.config.image_size) == ([16], None, 42)
    ours, theirs = model.fluxvit.state_dict(), start.fluxvit.state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith(("projectors.1", "projectors.2"))}
    assert all(torch.equal(value, theirs[name].float()) for name, value in ours.items())
    assert list(processor.image_mean) == [0.5] * 3 and processor.token_plan is None
    assert dict(processor.crop_size) == {"height": 42, "width": 42}


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "videomae"])
def test_teachers_of_the_library(data, tmp_path, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    square = {"image_size": 16, "patch_size": 8}
    if kind == "clip":  # a whole one, text tower and all
        model = CLIPModel(CLIPConfig(vision_config={**sizes, **square}, text_config={**sizes, "vocab_size": 99}))
        processor = CLIPImageProcessor()
    elif kind == "siglip":
        model, processor = SiglipVisionModel(SiglipVisionConfig(**sizes, **square)), SiglipImageProcessor()
    elif kind == "dinov2":
        del sizes["intermediate_size"]
        model, processor = Dinov2Model(Dinov2Config(**sizes, **square)), BitImageProcessor()
    else:
        model = VideoMAEModel(VideoMAEConfig(**sizes, image_size=32, patch_size=16, num_frames=4, tubelet_size=2))
        processor = VideoMAEVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path / "teacher")
    processor.save_pretrained(tmp_path / "teacher")
    main(pretraining(data, tmp_path / "out", teacher=tmp_path / "teacher", max_train_steps=2))
    assert len(losses(tmp_path / "out")) == 2
    assert FluxViTForPreTraining.from_pretrained(tmp_path / "out").config.teacher_hidden_size == 32


def test_a_teacher_that_lacks_weights_is_refused(data, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "teacher")
    ViTImageProcessor().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"must hold all of an encoder, \['pooler.dense.bias', .*would be random"):
        main(pretraining(data, tmp_path / "out", teacher=tmp_path / "teacher"))


def test_held_out_clips_are_seen_in_one_view_from_every_seed(data, pretrained, tmp_path):
    found = []
    for seed in (0, 1):
        further = {"config_name": None, "model_name_or_path": pretrained, "student_budgets": [16], "seed": seed}
        further |= {"max_train_steps": 1, "num_warmup_steps": 0, "learning_rate": 1e-30, "weight_decay": 0}
        found.append(main(pretraining(data, tmp_path / str(seed), eval_steps=1, **further))["eval_similarity"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_teacher_sees_the_clips_as_it_was_trained():
    videos = torch.randn(2, 3, 3, 4, 4)
    ours, theirs = FluxViTVideoProcessor(), FluxViTVideoProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.image_mean, ours.image_std))
    wanted = (videos * std + mean - 0.5) / 0.25
    torch.testing.assert_close(renormalised(videos, ours, theirs), wanted, atol=1e-5, rtol=1e-5)
    assert renormalised(videos, ours, ours) is videos


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "--teacher must be given"),
        ({"class_balanced": True}, "--class_balanced needs labels"),
        ({**STREAM, "feature_cache": "kept"}, "--feature_cache needs a list of clips"),
        ({"cached_epochs": 0}, "--cached_epochs must be at least 1, got 0"),
        ({"student_budgets": [16, 0]}, "--student_budgets must be at least 1, got 0"),
        ({"layer_weight": -1}, "--layer_weight must be at least 0, got -1"),
        ({"config_name": None}, "--config_name"),
    ],
)
def test_flags_that_cannot_work_are_named(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        parse_pretraining(pretraining(data, tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aligned_layers": 3}, "3 of 2 layers cannot be 1 apart"),
        ({"teacher_layers": [1, 2, 3]}, r"\[0, 1\] of the student and \[1, 2, 3\] of the teacher must be as many"),
        ({"budget_weights": [1.0]}, "one for each of"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        main(pretraining(data, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_flags_are_frozen():
    """Scripts of users hold these: none may go or change its name unnoticed."""
    own = list(parse_pretraining(["--teacher", "t", "--config_name", "c", "--data", "d", "--output_dir", "o"]).flat())
    assert " ".join(own[: OWN_FLAGS.split().index("pooled_weight") + 1]) == " ".join(OWN_FLAGS.split())
