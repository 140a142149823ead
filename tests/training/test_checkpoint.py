"""What a checkpoint holds, beside what whole runs show of it."""

import torch
from tiny import tiny_config
from torch import nn

from flux_hf import FluxViTForVideoClassification
from training.engine.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from training.engine.ema import ExponentialMovingAverage
from training.engine.optim import cosine_schedule, parameter_groups
from training.objectives import FluxMulti


class WithTeacher(FluxMulti):
    """An objective that also holds a model which it does not train."""

    def __init__(self, model, teacher):
        super().__init__(model)
        self.teacher = teacher.requires_grad_(False)


def state_of(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    model, teacher = (FluxViTForVideoClassification(tiny_config()) for _ in range(2))
    objective = WithTeacher(model, teacher)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.05))
    schedule = cosine_schedule(optimizer, 1e-3, 1, 4)
    return TrainingState(
        objective, optimizer, schedule, ExponentialMovingAverage(objective, 0.9), not_saved=("teacher",)
    )


def step(state: TrainingState) -> None:
    videos = torch.randn(2, 4, 3, 28, 28, generator=torch.Generator().manual_seed(state.progress.step))
    state.objective(videos, nn.functional.one_hot(torch.tensor([0, 1]), 3).float()).loss.backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update()
    state.progress.step += 1


def test_a_frozen_teacher_is_in_no_checkpoint_and_stays_as_it_was_loaded(tmp_path):
    state, exported = state_of(0), {}
    step(state)
    folder = save_checkpoint(tmp_path, state, lambda directory, weights: exported.update(weights))
    saved = torch.load(folder / "training_state.pt", weights_only=True)
    for part in (saved["objective"], saved["ema"], exported):
        assert part and not [name for name in part if name.startswith("teacher")]

    other = state_of(1)
    teacher = {name: weight.clone() for name, weight in other.objective.teacher.state_dict().items()}
    load_checkpoint(folder, other)
    for name, weight in other.objective.teacher.state_dict().items():
        assert torch.equal(weight, teacher[name])
    step(state)
    step(other)
    for name, weight in state.objective.model.state_dict().items():
        assert torch.equal(weight, other.objective.model.state_dict()[name]), name


def test_the_scale_of_float16_is_resumed(tmp_path):
    state, other = state_of(0), state_of(1)
    state.scaler, other.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 65536.0))
    for scaler in (state.scaler, other.scaler):
        scaler.scale(torch.zeros(()))  # as of a loss: sets it up
    load_checkpoint(save_checkpoint(tmp_path, state, lambda directory, weights: None), other)
    assert other.scaler.get_scale() == 8.0 and other.scaler.scale(torch.ones(())).item() == 8.0
