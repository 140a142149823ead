import json

import pytest
import torch
from tiny import tiny_config
from training_runs import write_data

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor
from training.data.augment import ClipAugment
from training.data.augment_config import AUGMENT_PRESETS
from training.data.dataset import ClipDataset
from training.data.sources import read_clips
from training.data.targets import ClassTargets
from training.finetune_with_trainer import TrainerClips, main
from training.study.motion_clips import MOTIONS


def test_trainer_trains_evaluates_and_saves(tmp_path):
    data = write_data(tmp_path / "clips", num_train=8, num_val=5)
    start, out = tmp_path / "start", tmp_path / "out"
    torch.manual_seed(0)
    FluxViTForVideoClassification(tiny_config(token_budgets=[8], num_labels=2)).save_pretrained(start)
    FluxViTVideoProcessor(num_frames=4, size=28).save_pretrained(start)
    words = f"--model_name_or_path {start} --data {data}/train.csv --validation_data {data}/val.csv"
    words += f" --output_dir {out} --token_budget 4 --max_steps 3 --per_device_train_batch_size 2 --use_cpu"
    words += " --gradient_accumulation_steps 2 --report_to none --learning_rate 1e-3 --save_strategy no"
    metrics = main(words.split())
    assert metrics["eval_top1"] in [hits / 5 for hits in range(6)]
    assert json.loads((out / "eval_results.json").read_text())["eval_top1"] == metrics["eval_top1"]
    model = FluxViTForVideoClassification.from_pretrained(out)
    assert model.config.token_budget == 4 and model.config.id2label == dict(enumerate(sorted(MOTIONS)))
    inputs = FluxViTVideoProcessor.from_pretrained(out)(data / "val/00000.mp4", return_tensors="pt")
    assert model(**inputs).keep_indices.shape == (1, 4)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_each_epoch_reads_and_augments_anew(tmp_path, num_workers):
    data = write_data(tmp_path / "clips", num_train=4, num_val=1)
    clips = read_clips(data / "train.csv")
    targets = ClassTargets({name: index for index, name in enumerate(MOTIONS)})
    own = ClipDataset(clips, targets, ClipAugment(AUGMENT_PRESETS["light"]))
    loader = torch.utils.data.DataLoader(TrainerClips(own, 4, 28), batch_size=4, num_workers=num_workers)
    epochs = [next(iter(loader))["pixel_values_videos"] for _ in range(3)]  # as Trainer makes them
    assert not any(torch.equal(epochs[0], other) for other in epochs[1:])
