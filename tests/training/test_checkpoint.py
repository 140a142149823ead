"""What a checkpoint holds, beside what whole runs show of it."""

import torch
from tiny import tiny_config

from flux_hf import FluxViTForVideoClassification
from training.engine.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from training.engine.ema import ExponentialMovingAverage
from training.engine.optim import cosine_schedule, parameter_groups
from training.objectives import FluxMulti


def state_of(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    objective = FluxMulti(FluxViTForVideoClassification(tiny_config()))
    optimizer = torch.optim.AdamW(parameter_groups(objective.model, 1e-3, 0.05))
    schedule = cosine_schedule(optimizer, 1e-3, 1, 4)
    return TrainingState(objective, optimizer, schedule, ExponentialMovingAverage(objective, 0.9))


def test_the_scale_of_float16_is_resumed(tmp_path):
    state, other = state_of(0), state_of(1)
    state.scaler, other.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 65536.0))
    for scaler in (state.scaler, other.scaler):
        scaler.scale(torch.zeros(()))  # as of a loss: sets it up
    load_checkpoint(save_checkpoint(tmp_path, state, lambda directory, weights: None), other)
    assert other.scaler.get_scale() == 8.0 and other.scaler.scale(torch.ones(())).item() == 8.0
