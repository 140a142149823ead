import math

import pytest
import torch
from tiny import tiny_config

from flux_hf import FluxViTConfig, FluxViTForVideoClassification
from training.engine.ema import ExponentialMovingAverage
from training.engine.optim import (
    cosine_schedule,
    freeze_layers,
    layer_scales,
    parameter_groups,
    scaled_learning_rate,
)


PUBLISHED_SCALES = [0.0238, 0.0317, 0.0422, 0.0563, 0.0751, 0.1001, 0.1335, 0.1780, 0.2373, 0.3164, 0.4219, 0.5625]


@pytest.fixture
def model():
    return FluxViTForVideoClassification(tiny_config())


def test_layer_scales_are_the_published_ones():
    assert layer_scales(12, 0.75) == pytest.approx([*PUBLISHED_SCALES, 0.75, 1.0], abs=5e-5)


def test_learning_rate_of_the_released_script():
    assert scaled_learning_rate(2e-4, 512, 2) == pytest.approx(8e-4)


def test_groups_follow_depth_and_only_matrices_decay():
    with torch.device("meta"):
        model = FluxViTForVideoClassification(FluxViTConfig.small())
    groups = parameter_groups(model, 1.0, 0.05, 0.75)
    settings = {parameter: group for group in groups for parameter in group["params"]}
    assert len(settings) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    named = dict(model.named_parameters())
    expected = {
        "fluxvit.embeddings.cls_token": (0.75**13, 0),
        "fluxvit.embeddings.position_embeddings.table": (0.75**13, 0),
        "fluxvit.embeddings.patch_embeddings.projection.weight": (0.75**13, 0.05),
        "fluxvit.embeddings.patch_embeddings.norm.weight": (0.75**13, 0),
        "fluxvit.embeddings.position_embeddings.global_position_encoding.weight": (1, 0),
        "fluxvit.encoder.layer.0.mlp.fc1.weight": (0.75**12, 0.05),
        "fluxvit.encoder.layer.0.mlp.fc1.bias": (0.75**12, 0),
        "fluxvit.encoder.layer.11.attention.qkv.weight": (0.75, 0.05),
        "fluxvit.encoder.layer.11.attention.local_position_encoding.weight": (0.75, 0),
        "fluxvit.projectors.1.q_proj.weight": (1, 0.05),
        "fc_norm.weight": (1, 0),
        "classifiers.2.weight": (1, 0.05),
        "alignment_decoders.0.dense.weight": (1, 0.05),
    }
    for name, (rate, decay) in expected.items():
        group = settings[named[name]]
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name


def test_schedule_warms_up_linearly_then_follows_the_cosine():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.4}], lr=0.4)  # a group at half the peak
    schedule = cosine_schedule(optimizer, 0.8, 5, 15, warmup_from=0.1, minimum=0.05)
    rates = []
    for _ in range(15):
        rates.append(2 * optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.1, 0.275, 0.45, 0.625, 0.8])
    cosine = [0.05 + 0.5 * 0.75 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert rates[5:] == pytest.approx(cosine)
    assert 2 * optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_moving_average_swaps_in_and_out(model):
    average = ExponentialMovingAverage(model, 0.75)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update()
    with average.in_place():
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, before[name] + 0.25)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 1.0)


def test_freezing_takes_the_lowest_depths(model):
    freeze_layers(model, 2)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("fluxvit.encoder.layer.0.") for name in trained)
    assert any(name.startswith("fluxvit.encoder.layer.1.") for name in trained)
    frozen = set(dict(model.named_parameters())) - trained
    assert "fluxvit.embeddings.position_embeddings.table" in frozen
    groups = parameter_groups(model, 1.0, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(trained)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: layer_scales(2, 0.0), "layer_decay.*0.0"),
        (lambda model: layer_scales(2, 1.5), "layer_decay.*1.5"),
        (lambda model: ExponentialMovingAverage(model, 1.0), "1.0"),
        (lambda model: freeze_layers(model, 4), r"\[0, 3\], got 4"),
        (lambda model: cosine_schedule(torch.optim.SGD(model.parameters(), lr=1), 1.0, 5, 4), "5 and 4"),
    ],
)
def test_bad_values_are_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)
