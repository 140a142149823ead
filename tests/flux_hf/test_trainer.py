"""transformers.Trainer trains the model: accumulation changes nothing, evaluation gathers predictions only."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from flux_hf import FluxViTConfig, FluxViTForVideoClassification


class Clips(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.videos = torch.randn(8, 4, 3, 28, 28, generator=generator)

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        return {"pixel_values_videos": self.videos[index], "labels": index % 3}


def trainer(tmp_path, batch_size: int, accumulation: int) -> Trainer:
    torch.manual_seed(0)
    config = FluxViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_pooling_heads=2,
        projection_dim=16,
        position_embedding_grid=[4, 2, 2],
        image_size=28,
        num_frames=4,
        token_budgets=[8],
        token_budget=8,
        layer_scale_init_value=0.5,
        num_labels=3,
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=3,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        seed=0,
    )
    model = FluxViTForVideoClassification(config)
    return Trainer(model=model, args=arguments, train_dataset=Clips(), eval_dataset=Clips())


def test_accumulation_gives_the_loss_and_gradient_of_one_large_batch(tmp_path):
    logs = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        run = trainer(tmp_path, batch_size, accumulation)
        run.train()
        logs.append([entry for entry in run.state.log_history if "loss" in entry])
    assert len(logs[0]) == len(logs[1]) == 2
    for whole, parts in zip(*logs, strict=True):
        assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-4)
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


def test_evaluation_gathers_logits_only(tmp_path):
    prediction = trainer(tmp_path, 4, 1).predict(Clips())
    assert prediction.predictions.shape == (8, 3)
    assert prediction.label_ids.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
