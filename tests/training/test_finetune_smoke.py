import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor
from training.finetune import MultiBudgetLoss, augment, main, normalize, parse_arguments, read_csv
from training.motion_clips import MOTIONS, MotionClipConfig, write_motion_clips


REPOSITORY = Path(__file__).parents[2]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_pooling_heads": 2,
    "projection_dim": 16,
    "position_embedding_grid": [4, 2, 2],
    "layer_scale_init_value": 0.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    clips = MotionClipConfig(size=48, num_frames=6, motions=MOTIONS)
    write_motion_clips(folder, 12, 0, "train", clips)
    write_motion_clips(folder, 6, 0, "val", clips)
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def flags(data, output_dir, **changes):
    values = {
        "train_file": data / "train.csv",
        "validation_file": data / "val.csv",
        "config_name": data / "config.json",
        "output_dir": output_dir,
        "num_frames": 4,
        "size": 28,
        "per_device_train_batch_size": 4,
        "max_train_steps": 4,
        **changes,
    }
    given = [str(word) for name, value in values.items() if value is not None for word in (f"--{name}", value)]
    return [*given, "--token_budgets", "16", "8", "4"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A checkpoint from a real launch."""
    output_dir = tmp_path_factory.mktemp("run") / "model"
    launch = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no"
    command = [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", "-m", "training.finetune"]
    run = subprocess.run(
        [*command, *flags(data, output_dir)],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "step 4/4" in run.stderr
    return output_dir


def test_the_checkpoint_loads_and_classifies(data, trained):
    model = FluxViTForVideoClassification.from_pretrained(trained).eval()
    processor = FluxViTVideoProcessor.from_pretrained(trained)
    assert model.config.token_budgets == [16, 8, 4]
    assert model.config.id2label == dict(enumerate(sorted(MOTIONS)))
    inputs = processor(read_csv(data / "val.csv")[0][0], return_tensors="pt")
    assert inputs.pixel_values_videos.shape == (1, 4, 3, 28, 28)
    for budget in (16, 8, 4):
        with torch.no_grad():
            outputs = model(**inputs, token_budget=budget)
        assert outputs.logits.shape == (1, 6) and outputs.logits.isfinite().all()
        assert outputs.keep_indices.shape == (1, budget)
    metrics = json.loads((trained / "eval_results.json").read_text())
    assert set(metrics) == {"train_steps", "eval_top1_16", "eval_top1_8", "eval_top1_4"}
    assert [path.name for path in trained.parent.iterdir()] == ["model"]  # nothing temporary left


def test_every_trained_weight_gets_a_gradient(trained):
    model = FluxViTForVideoClassification.from_pretrained(trained)
    objective = MultiBudgetLoss(model, [16, 4], num_patches=16)
    objective(torch.randn(2, 4, 3, 28, 28), torch.tensor([0, 1])).backward()
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    assert not model.classifiers[1].weight.requires_grad
    assert model.classifiers[2].weight.grad.abs().sum() > 0


def test_normalize_gives_what_the_processor_gives(data, trained):
    processor = FluxViTVideoProcessor.from_pretrained(trained)
    path = read_csv(data / "val.csv")[0][0]
    pixels = processor(path, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values_videos
    expected = processor(path, return_tensors="pt").pixel_values_videos
    torch.testing.assert_close(normalize(pixels.round().to(torch.uint8), processor), expected, atol=1e-5, rtol=1e-5)


def test_augmentation_moves_all_frames_alike():
    torch.manual_seed(0)
    still = torch.randint(0, 256, (3, 1, 3, 16, 16), dtype=torch.uint8).expand(-1, 4, -1, -1, -1)
    augmented = augment(still)
    assert augmented.shape == still.shape and augmented.dtype == torch.float32
    assert augmented.min() >= 0 and augmented.max() <= 255
    assert torch.equal(augmented, augmented[:, :1].expand_as(augmented))
    assert not torch.equal(augmented, still.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "--num_frames.*0"),
        ({"max_train_steps": 0}, "--max_train_steps.*0"),
        ({"config_name": None}, "--model_name_or_path and --config_name"),
        ({"model_name_or_path": "somewhere"}, "somewhere"),
    ],
)
def test_bad_flags_are_named(changes, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags(data, tmp_path / "out", **changes))


def test_a_folder_with_files_is_not_replaced_unasked(data, trained):
    with pytest.raises(ValueError, match="overwrite_output_dir"):
        parse_arguments(flags(data, trained))
    assert parse_arguments([*flags(data, trained), "--overwrite_output_dir"]).overwrite_output_dir


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video,label\na.mp4,left\n", "columns path and label"),
        ("path,label\n", "no rows"),
        ("path,label\na.mp4,\n", "a.mp4"),
    ],
)
def test_bad_csv_is_named(content, message, tmp_path):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "bad.csv")


def test_unknown_validation_label_and_undecodable_video_are_named(data, tmp_path):
    path = read_csv(data / "val.csv")[0][0]
    (tmp_path / "label.csv").write_text(f"path,label\n{path},sideways\n")
    with pytest.raises(ValueError, match="sideways"):
        main(flags(data, tmp_path / "out", validation_file=tmp_path / "label.csv"))
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "broken.csv").write_text("path,label\nbroken.mp4,left\n")
    with pytest.raises(ValueError, match="broken.mp4"):
        main(flags(data, tmp_path / "out", train_file=tmp_path / "broken.csv"))
