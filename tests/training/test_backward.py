import weakref

import pytest
import torch
from tiny import tiny_config
from torch import nn

from flux_hf import FluxViTForVideoClassification
from flux_hf.protocol import features_at_budgets
from training.backward import can_take_turns, sum_of_losses
from training.objectives import FluxMulti


TARGETS = torch.tensor([[0.0, 1.0, 0.0], [0.9, 0.1, 0.0]])


@pytest.fixture
def objective() -> FluxMulti:
    torch.manual_seed(0)
    return FluxMulti(FluxViTForVideoClassification(tiny_config(token_budgets=[24, 16, 8])))


def joint_loss(objective: FluxMulti, videos: torch.Tensor) -> torch.Tensor:
    budgets = objective.model.config.token_budgets
    pooled = features_at_budgets(objective.model, videos, budgets, range(len(budgets)))
    losses = [objective.classification_loss(objective.model.classify(*found), TARGETS) for found in pooled]
    return sum(losses) + sum(objective.alignment(*found, pooled[0].feature) for found in pooled[1:])


def gradients_of(objective: FluxMulti, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}


class Kept:
    """Counts the bytes that a graph holds for its backward pass."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        held = _Held([tensor])
        size = tensor.nbytes
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(held, self.drop, size)
        return held

    def drop(self, size: int) -> None:
        self.now -= size


class _Held(list):
    """A list that can be watched."""


def test_gradients_are_those_of_one_backward_pass_bit_for_bit(objective):
    videos = torch.randn(2, 4, 3, 42, 42)
    expected = gradients_of(objective, joint_loss(objective, videos))
    loss = objective(videos, TARGETS).loss
    found = gradients_of(objective, loss)
    torch.testing.assert_close(loss, joint_loss(objective, videos), rtol=0, atol=1e-6)
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(found[name], gradient), name


def test_scaled_and_accumulated_as_any_loss(objective):
    videos = torch.randn(2, 4, 3, 42, 42)
    once = gradients_of(objective, objective(videos, TARGETS).loss)
    objective.zero_grad()
    for _ in range(2):
        (objective(videos, TARGETS).loss / 4).backward()
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(parameter.grad, once[name] / 2, msg=name)
    loss = objective(videos, TARGETS).loss
    loss.backward()
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_a_budgets_graph_is_gone_before_the_next(objective):
    videos = torch.randn(2, 4, 3, 42, 42)
    peaks = {}
    for way, compute in {"joint": joint_loss, "in turn": lambda of, clips: of(clips, TARGETS).loss}.items():
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held[0]):
            compute(objective, videos).backward()
        peaks[way] = kept.peak
    # 24 of 48 tokens are the largest budget's
    assert peaks["in turn"] < 0.65 * peaks["joint"]


def test_frozen_parameters_and_starts_without_gradients(objective):
    videos = torch.randn(2, 4, 3, 42, 42)
    objective.model.fluxvit.embeddings.requires_grad_(False)
    objective(videos, TARGETS).loss.backward()
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in objective.named_parameters() if parameter.grad is not None}


def test_one_backward_pass_where_gradients_cannot_be_taken_early():
    weight = nn.Parameter(torch.ones(2))
    assert can_take_turns([weight])
    assert not can_take_turns([nn.Parameter(torch.ones(2).half())])
    with torch.autocast("cpu", torch.float16):
        assert not can_take_turns([weight])
    with torch.autocast("cpu", torch.bfloat16):
        assert can_take_turns([weight])
    with torch.no_grad():
        assert not can_take_turns([weight])
        assert sum_of_losses([lambda start: start * weight.sum()] * 2, torch.tensor(3.0), [weight]) == 12
