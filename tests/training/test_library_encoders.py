# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Every command on plain VideoMAE, V-JEPA 2 and ViViT folders, as the library saves them, and on what comes of them."""

import csv
import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from training_runs import flags, launch, losses, write_data
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VivitConfig,
    VivitForVideoClassification,
    VivitImageProcessor,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2VideoProcessor,
    pipeline,
)

from flux_hf import FluxForVideoClassification, FluxViTVideoClassificationPipeline, FluxViTVideoProcessor
from training import evaluate, finetune, finetune_with_trainer, optimize_tokens, predict
from training.study.motion_clips import MOTIONS


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"num_frames": 4, "image_size": 32, "intermediate_size": 48}
LABELS = dict(enumerate(sorted(MOTIONS)))
NAMES = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
TYPES = ("videomae", "vivit", "vjepa2")


def save_plain(folder: Path, model_type: str) -> Path:
    """4 frames of 2 x 2 patches of 16 pixels, two frames each: 8 tokens. As the library saves model and processor."""
    torch.manual_seed(0)
    if model_type == "videomae":
        model = VideoMAEForVideoClassification(VideoMAEConfig(**SIZES, **CLIP, **NAMES))
        processor = VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    elif model_type == "vivit":
        model = VivitForVideoClassification(VivitConfig(**SIZES, **CLIP, **NAMES))
        processor = VivitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    else:
        predictor = {f"pred_{name}": value for name, value in SIZES.items()}
        sizes = {"crop_size": 32, "frames_per_clip": 4, "num_pooler_layers": 1}
        model = VJEPA2ForVideoClassification(VJEPA2Config(**SIZES, **predictor, **sizes, **NAMES))
        processor = VJEPA2VideoProcessor(crop_size={"height": 32, "width": 32})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", params=TYPES)
def plain(request, tmp_path_factory):
    return save_plain(tmp_path_factory.mktemp("plain") / request.param, request.param)


@pytest.fixture(autouse=True)
def _fresh_accelerator(monkeypatch):
    """Each run in this process finds the state a new process would."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_flags(data: Path, plain: Path, output_dir: Path, **changes) -> list[str]:
    values = {"frames": [4, 8], "sizes": [32, 48], "token_window": [8, 40], "token_budgets": [8, 4, 2]}
    values |= {"config_name": None, "model_name_or_path": plain}
    return flags(data, output_dir, **{**values, **changes})


def point(checkpoint: Path, data: Path, *more: str) -> list[str]:
    fixed = ["--model_name_or_path", str(checkpoint), "--data", str(data / "val.csv"), "--dataloader_num_workers", "0"]
    return [*fixed, *more]


def test_finetune_wraps_trains_and_the_result_serves_every_command(data, plain, tmp_path, caplog, capsys):
    out = tmp_path / "out"
    results = finetune.main(run_flags(data, plain, out, eval_steps=6, ema_decay=0.5, mixup=0.8, layer_decay=0.75))
    assert f"{plain} is a plain {plain.name}: Flux goes around it" in caplog.text
    assert {"eval_top1_8", "eval_top1_4", "eval_top1_2"} < set(results)

    model = FluxForVideoClassification.from_pretrained(out)
    assert model.config.id2label == LABELS and model.config.token_budgets == [8, 4, 2] and model.config.separate_heads
    before = FluxForVideoClassification.from_backbone(plain).state_dict()
    changed = [name for name, weight in before.items() if not torch.equal(weight, model.state_dict()[name])]
    # a key's bias shifts all of a query's scores alike: it has no gradient
    unmoved = {name for name in before if name not in changed and not name.endswith(("key.bias", "k_proj.bias"))}
    assert not unmoved, unmoved

    optimize_tokens.main(point(out, data, "--frames", "2", "4", "--sizes", "32", "48", "--token_budgets", "4"))
    plan = json.loads((out / "config.json").read_text())["token_plan"]["4"]
    assert FluxViTVideoProcessor.from_pretrained(out).token_plan == {4: plan}
    evaluate.main(point(out, data, "--use_token_plan", "--token_budgets", "4", "--output_dir", str(tmp_path / "m")))
    [measured] = json.loads((tmp_path / "m" / "metrics.json").read_text())["points"]
    assert [measured["num_frames"], measured["size"]] == plan and measured["kept_tokens"] == 4

    classify = pipeline("video-classification", model=str(out), pipeline_class=FluxViTVideoClassificationPipeline)
    clip = str(data / "val" / "00000.mp4")
    for budget in (8, 4, 2):
        [best] = classify(clip, token_budget=budget, top_k=1)
        assert best["label"] in MOTIONS


def test_commands_take_the_plain_folder_itself(data, plain, tmp_path, caplog, capsys):
    evaluate.main(point(plain, data, "--token_budgets", "8", "3", "--output_dir", str(tmp_path / "metrics")))
    assert "Flux goes around it" in caplog.text
    points = json.loads((tmp_path / "metrics" / "metrics.json").read_text())["points"]
    assert [(p["num_frames"], p["size"], p["kept_tokens"]) for p in points] == [(4, 32, 8), (4, 32, 3)]

    predict.main(
        [str(data / "val"), "--model_name_or_path", str(plain), "--output", str(tmp_path / "p.csv"), "--token_budget=3"]
    )
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classify = pipeline("video-classification", model=str(plain), pipeline_class=FluxViTVideoClassificationPipeline)
    assert len(rows) == 6
    for row in rows:
        [best] = classify(row["name"], token_budget=3, top_k=1)
        assert (best["label"], best["score"]) == (row["label"], pytest.approx(float(row["score"]), abs=1e-5))

    search = point(plain, data, "--frames", "2", "4", "--sizes", "32", "--token_budgets", "4")
    with pytest.raises(ValueError, match="without a place for a plan: give --output_dir"):
        optimize_tokens.main(search)
    optimize_tokens.main([*search, "--output_dir", str(tmp_path / "planned")])
    assert set(FluxForVideoClassification.from_pretrained(tmp_path / "planned").config.token_plan) == {4}


def test_lora_single_objective_and_paper_sampling(data, plain, tmp_path):
    """The preset counts in patches and tubelets: no size or number of frames has to be given for patches of 16."""
    changes = {"lora_rank": 2, "objective": "single", "token_budgets": [16], "max_train_steps": 1}
    changes |= {"frames": None, "sizes": None, "token_window": None, "sampling": "paper"}
    changes |= {"per_device_train_batch_size": 2, "checkpointing_steps": "no", "validation_data": None}
    finetune.main(run_flags(data, plain, tmp_path / "out", **changes, size=64, num_frames=8))
    model = FluxForVideoClassification.from_pretrained(tmp_path / "out")
    assert (model.config.num_frames, model.config.image_size, model.config.num_heads) == (8, 64, 1)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    processor = FluxViTVideoProcessor.from_pretrained(tmp_path / "out")
    assert processor(data / "val/00000.mp4", return_tensors="pt")["pixel_values_videos"].shape == (1, 8, 3, 64, 64)


def test_from_a_pretrained_encoder_without_a_classifier(data, tmp_path, caplog):
    """As fine-tuning VideoMAE usually starts: mean pooling, the encoder's last norm behind it, a new classifier."""
    torch.manual_seed(0)
    sizes = {f"decoder_{name}": value for name, value in SIZES.items()}
    config = VideoMAEConfig(**SIZES, **CLIP, **sizes, use_mean_pooling=False)
    VideoMAEForPreTraining(config).save_pretrained(tmp_path / "videomae")
    finetune.main(run_flags(data, tmp_path / "videomae", tmp_path / "out", max_train_steps=2, freeze_layers=1))
    assert "has no classifier" in caplog.text and "6 of 6 labels" in caplog.text
    assert losses(tmp_path / "out")[0] > 0


def test_from_scratch_by_a_config_of_its_type(data, tmp_path):
    fields = {"model_type": "flux_video", "backbone_config": {"model_type": "videomae", **SIZES, **CLIP}}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "token_budgets": [8, 4]}))
    changes = {"model_name_or_path": None, "config_name": tmp_path / "config.json", "token_budgets": None}
    output = run_flags(data, tmp_path, tmp_path / "out", max_train_steps=1, **changes)
    finetune.main(output)
    assert FluxForVideoClassification.from_pretrained(tmp_path / "out").config.token_budgets == [8, 4]


@pytest.mark.parametrize("model_type", ["videomae", "vjepa2"])
def test_stochastic_depth_only_where_the_encoder_has_it(data, tmp_path, model_type):
    plain = save_plain(tmp_path / model_type, model_type)
    arguments = run_flags(data, plain, tmp_path / "out", max_train_steps=1, drop_path_rate=0.2)
    if model_type == "videomae":
        with pytest.raises(ValueError, match="videomae has no stochastic depth, got drop_path_rate=0.2"):
            finetune.main(arguments)
        return
    finetune.main(arguments)
    assert FluxForVideoClassification.from_pretrained(tmp_path / "out").config.drop_path_rate == 0.2


def test_trainer_gets_the_values_that_the_encoder_was_trained_on(data, tmp_path, monkeypatch):
    """ViViT's lie from -3 to 1, those of ImageNet's mean and deviation reach 2.2 and more."""
    sets = []

    class Watched(finetune_with_trainer.Trainer):
        def __init__(self, *arguments, **options):
            sets.append(options["train_dataset"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(finetune_with_trainer, "Trainer", Watched)
    plain = save_plain(tmp_path / "vivit", "vivit")
    words = ["--model_name_or_path", plain, "--data", data / "train.csv", "--output_dir", tmp_path / "out"]
    finetune_with_trainer.main([*map(str, words), "--max_steps", "1", "--report_to", "none", "--use_cpu"])
    values = torch.stack([sets[0][index]["pixel_values_videos"] for index in range(4)])
    assert -3 <= values.min() < -2.2 and values.max() <= 1
    assert FluxForVideoClassification.from_pretrained(tmp_path / "out").config.id2label == LABELS


@pytest.mark.slow  # of `finetune` it is a default test
def test_two_processes_follow_the_curve_of_one(data, tmp_path):
    """Real processes: every parameter gets a gradient, so DDP waits for none."""
    plain = save_plain(tmp_path / "vjepa2", "vjepa2")
    launch(run_flags(data, plain, tmp_path / "one", max_train_steps=6, per_device_train_batch_size=4))
    launch(run_flags(data, plain, tmp_path / "two", max_train_steps=6, per_device_train_batch_size=2), processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
