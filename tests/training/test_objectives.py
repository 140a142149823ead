import math

import pytest
import torch
from tiny import tiny_config
from torch import nn

from flux_hf import FluxViTForVideoClassification
from training.objectives import FluxMulti, FluxSingle


TARGETS = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.2, 0.8]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = FluxViTForVideoClassification(tiny_config())
    with torch.no_grad():  # new ones are so near zero that mistakes would not show
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def videos():
    return torch.randn(2, 6, 3, 28, 42, generator=torch.Generator().manual_seed(1))  # 36 tokens


def separately(model, videos):
    """Each budget by a forward of its own."""
    budgets = model.config.token_budgets
    return [model(videos, token_budget=budget, head=head) for head, budget in enumerate(budgets)]


def cross_entropy(logits, targets):
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()


def test_multi_is_the_sum_of_separate_forwards_and_their_alignment(model, videos):
    outputs = separately(model, videos)
    losses = [cross_entropy(output.logits, TARGETS) for output in outputs]
    target = outputs[0].pooler_output.detach()
    target = target / target.norm(dim=-1, keepdim=True)
    aligned = [model.align(outputs[head].pooler_output, head) for head in (1, 2)]
    alignment = sum((0.5 * (feature - target) ** 2).mean() for feature in aligned)  # all differences are below 1
    expected = sum(losses) + alignment
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    output = FluxMulti(model)(videos, TARGETS)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.cross_entropies, torch.stack(losses).detach())
    torch.testing.assert_close(output.alignment, alignment.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_alignment_is_at_most_two_a_channel_and_teaches_only_the_smaller_budgets(model, videos):
    objective = FluxMulti(model)
    pooled = [torch.randn(4, 16, requires_grad=True) for _ in range(3)]
    losses = [objective.alignment(pooled[head], head, pooled[0]) for head in (1, 2)]
    assert all(0 < loss <= 2 / 16 for loss in losses)
    sum(losses).backward()
    assert pooled[0].grad is None and pooled[1].grad.abs().sum() > 0 and pooled[2].grad.abs().sum() > 0
    one = torch.randn(1, 16)
    assert 0 <= objective.alignment(one, 1, one) <= 2 / 16


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_every_trainable_parameter_gets_a_gradient(model, videos, weight):
    if not weight:
        model.freeze_alignment()
    objective = FluxMulti(model, weight)
    objective(videos, TARGETS).loss.backward()
    unused = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert model.alignment_decoders[0].dense.weight.requires_grad == (weight > 0)


def test_single_trains_one_head(model, videos):
    single = model.with_token_budgets([8])
    objective = FluxSingle(single)
    output = objective(videos, TARGETS)
    expected = cross_entropy(model(videos, token_budget=8, head=1).logits, TARGETS)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_clip_with_fewer_tokens_than_a_budget_still_uses_every_head(model):
    videos = torch.randn(2, 2, 3, 28, 28)  # 8 tokens: budgets 16 and 8 encode the same
    FluxMulti(model)(videos, TARGETS).loss.backward()
    assert all(classifier.weight.grad is not None for classifier in model.classifiers)


def test_without_targets_it_gives_logits(model, videos):
    objective = FluxMulti(model).eval()
    output = objective(videos, token_budgets=(None, 4))
    assert output.loss is None
    for budget, logits in zip((None, 4), output.logits, strict=True):
        assert torch.equal(logits, model(videos, token_budget=budget).logits)


def test_multi_label_takes_binary_cross_entropy(model, videos):
    model.config.problem_type = "multi_label_classification"
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    expected = sum(
        nn.functional.binary_cross_entropy_with_logits(output.logits, targets) for output in separately(model, videos)
    )
    torch.testing.assert_close(FluxMulti(model, 0.0)(videos, targets).loss, expected)


def test_half_precision_logits_are_compared_in_float32(model):
    logits = torch.tensor([[8.0, -8.0, 0.1], [0.0, 3.0, 1.0]])
    loss = FluxMulti(model).classification_loss(logits.bfloat16(), TARGETS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.bfloat16().float(), TARGETS))


def test_heads_are_copied_from_the_nearest_trained_budget(model, videos):
    more = model.with_token_budgets([20, 9, 7, 3])
    assert more.config.token_budgets == [20, 9, 7, 3] and model.config.token_budgets == [16, 8, 4]
    for head, source in enumerate((0, 1, 1, 2)):
        ours = more.eval()(videos, token_budget=5, head=head).logits
        assert torch.equal(ours, model.eval()(videos, token_budget=5, head=source).logits)
    assert len(more.alignment_decoders) == 3
    one = more.with_token_budgets([16])
    assert len(one.classifiers) == 1 and len(one.alignment_decoders) == 0
    assert model.with_token_budgets([16, 8, 4]) is model


def test_loss_of_equal_logits_is_the_entropy_of_a_uniform_guess(model):
    assert FluxMulti(model).classification_loss(torch.zeros(2, 3), TARGETS) == pytest.approx(math.log(3))


def test_errors_name_the_budgets(model):
    with pytest.raises(ValueError, match=r"\[16, 8, 4\]"):
        FluxSingle(model)
    with pytest.raises(ValueError, match=r"\[16\]"):
        FluxMulti(model.with_token_budgets([16]))
    with pytest.raises(ValueError, match="-1"):
        FluxMulti(model, -1.0)
    with pytest.raises(ValueError, match="token_budgets"):
        model.with_token_budgets([4, 8])
