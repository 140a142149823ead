"""The model at the edges: sizes, shapes, budgets, heads, dtypes, devices, attention implementations, compilation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from conversion.convert_to_hf import convert
from conversion.infer_config import ConfigChoices
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel
from flux_hf.modeling_fluxvit import sincos_position_table


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


def tiny_config(**overrides) -> FluxViTConfig:
    values = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "num_pooling_heads": 4,
        "projection_dim": 32,
        "position_embedding_grid": [8, 4, 4],
        "image_size": 56,
        "num_frames": 8,
        "token_budgets": [96, 64, 32],
        "token_budget": 64,
        "layer_scale_init_value": 0.3,
        "num_labels": 5,
    }
    return FluxViTConfig(**{**values, **overrides})


def tiny_model(**overrides) -> FluxViTForVideoClassification:
    torch.manual_seed(0)
    return FluxViTForVideoClassification(tiny_config(**overrides)).eval()


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "parameters"), [("small", 28_845_948), ("base", 104_560_380)])
def test_parameter_counts_with_400_labels(size, parameters):
    with torch.device("meta"):
        model = FluxViTForVideoClassification(getattr(FluxViTConfig, size)(num_labels=400))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("size", "expected"), [("small", [13.6, 32.0, 83.3, 153.9]), ("base", [49.3, 108.1, 254.8, 440.1])]
)
def test_flops_are_the_papers(size, expected):
    with torch.device("meta"):
        model = FluxViTForVideoClassification(getattr(FluxViTConfig, size)(num_labels=400))
    found = [model.flops(12, 224, budget) / 1e9 for budget in (512, 1024, 2048, 3072)]
    assert [round(value, 1) for value in found] == expected


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize(("frames", "side", "budget"), [(12, 224, 512), (8, 168, 1024), (4, 112, 10**6)])
def test_flops_are_half_of_what_torch_counts_in_a_forward_pass(size, frames, side, budget):
    config = getattr(FluxViTConfig, size)(num_labels=400)
    with torch.device("meta"):
        # Eager: of SDPA on the CPU torch counts nothing.
        model = FluxViTForVideoClassification._from_config(config, attn_implementation="eager").eval()
        video = torch.empty(1, frames, 3, side, side)
    model.requires_grad_(False)  # the counter cannot follow parameters under no_grad
    with FlopCounterMode(display=False) as counter:
        model(video, token_budget=budget)
    assert 2 * model.flops(frames, side, budget, dense_embedding=True) == counter.get_total_flops()


def test_flops_of_an_odd_configuration_are_half_of_what_torch_counts():
    model = tiny_model(tubelet_size=2, num_channels=1, qkv_bias=True, token_budgets=[20, 10], token_budget=10)
    model.requires_grad_(False).set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(clip(1, 8, 1, 56, 56))
    assert 2 * model.flops(dense_embedding=True) == counter.get_total_flops()


def test_dense_embedding_adds_the_patches_that_are_dropped():
    model = tiny_model()
    assert model.flops(8, 56, 64, dense_embedding=True) - model.flops(8, 56, 64) == 64 * 588 * 48
    assert model.flops(8, 56, 128, dense_embedding=True) == model.flops(8, 56, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 56, 8), "num_frames must be a multiple of 2, got 3"),
        ((0, 56, 8), "num_frames must be a whole number of at least 1, got 0"),
        ((4, 57, 8), "size must be a multiple of 14, got 57"),
        ((4, 56.0, 8), "size must be a whole number of at least 1, got 56.0"),
        ((4, 56, 0), "token_budget must be a whole number of at least 1, got 0"),
    ],
)
def test_flops_of_impossible_clips(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(tubelet_size=2).flops(*arguments)


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(1, 56, 56), (2, 28, 56), (3, 56, 70), (5, 42, 56), (7, 14, 14), (8, 56, 56), (9, 84, 28), (66, 28, 28)],
)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_any_clip(frames, height, width, batch):
    model = tiny_model()
    patches = frames * (height // 14) * (width // 14)
    kept = min(10, patches)
    outputs = model(clip(batch, frames, 3, height, width), token_budget=10)
    assert outputs.last_hidden_state.shape == (batch, 1 + kept, 48)
    assert outputs.pooler_output.shape == (batch, 32)
    assert outputs.keep_indices.shape == (batch, kept)
    assert outputs.logits.shape == (batch, 5)
    assert bool(torch.isfinite(outputs.logits).all())


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch():
    model, video = tiny_model(), clip(3, 6, 3, 42, 56)
    together = model(video, token_budget=20)
    for index in range(3):
        alone = model(video[index : index + 1], token_budget=20)
        assert torch.equal(alone.keep_indices, together.keep_indices[index : index + 1])
        torch.testing.assert_close(alone.logits, together.logits[index : index + 1])


@torch.no_grad()
def test_budget_above_the_tokens_keeps_all():
    model, video = tiny_model(), clip(1, 4, 3, 28, 28)
    outputs = model(video, token_budget=10_000)
    assert outputs.keep_indices.tolist() == [list(range(16))]
    torch.testing.assert_close(model(video, token_budget=16).logits, outputs.logits)


@torch.no_grad()
def test_tuple_output_has_loss_and_logits_first():
    model, video, labels = tiny_model(), clip(2, 4, 3, 28, 28), torch.tensor([0, 1])
    outputs = model(video, labels=labels)
    as_tuple = model(video, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.loss)
    assert torch.equal(as_tuple[1], outputs.logits)


@torch.no_grad()
def test_default_budget_comes_from_the_config():
    video = clip(1, 8, 3, 56, 56)
    assert tiny_model()(video).keep_indices.shape == (1, 64)
    assert tiny_model(token_budget=None)(video).keep_indices.shape == (1, 128)


@pytest.mark.parametrize(
    ("kept", "head"), [(200, 0), (96, 0), (81, 0), (80, 0), (79, 1), (64, 1), (48, 1), (47, 2), (32, 2), (1, 2)]
)
@torch.no_grad()
def test_nearest_head_and_ties_to_the_larger_budget(kept, head):
    model, video = tiny_model(), clip(1, 14, 3, 56, 56)
    default = model(video, token_budget=kept)
    assert torch.equal(default.logits, model(video, token_budget=kept, head=head).logits)
    for other in {0, 1, 2} - {head}:
        assert not torch.equal(default.logits, model(video, token_budget=kept, head=other).logits)


@torch.no_grad()
def test_head_chooses_projector_and_classifier():
    model, video = tiny_model(), clip(1, 8, 3, 56, 56)
    outputs = model(video, head=2)
    expected = model.classifiers[2](model.fc_norm(outputs.pooler_output))
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(model.fluxvit(video, head=2).pooler_output, outputs.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("cls", [FluxViTModel, FluxViTForVideoClassification])
@torch.no_grad()
def test_forward_is_the_four_steps(cls):
    model, video = cls(tiny_model().config).eval(), clip(2, 8, 3, 56, 56)
    patches, grid = model.embed(video)
    assert patches.shape == (2, 8, 16, model.config.hidden_size) and grid[:3] == (8, 4, 4)
    for keep_indices, budget in zip(model.select(patches, [None, 20, 999]), (128, 20, 128), strict=True):
        expected = model(video, token_budget=budget, output_hidden_states=True)
        assert torch.equal(keep_indices, expected.keep_indices)
        hidden_states, states = model.encode(patches, grid, keep_indices, layers=(1, 0))
        assert torch.equal(hidden_states, expected.last_hidden_state)
        assert torch.equal(states[0], expected.hidden_states[2]) and torch.equal(states[1], expected.hidden_states[1])
        head = model.resolve_head(budget)
        feature, attention = model.pool(hidden_states, head)
        assert torch.equal(feature, expected.pooler_output) and attention is None
        assert model.pool(hidden_states, head, attention=True)[1].shape[2:] == (1, 1 + budget)


def test_steps_refuse_what_is_not_there():
    model = tiny_model()
    patches, grid = model.embed(clip(1, 8, 3, 56, 56))
    with pytest.raises(ValueError, match=r"layers must lie in \[0, 3\), got \[3\]"):
        model.encode(patches, grid, torch.tensor([[0, 1]]), layers=[0, 3])
    with pytest.raises(ValueError, match=r"keep_indices.*\[0, 128\)"):
        model.encode(patches, grid, torch.tensor([[0, 128]]))


def test_keep_indices_may_be_given():
    model, video = tiny_model(), clip(2, 8, 3, 56, 56)
    selected = model(video, token_budget=40)
    again = model(video, keep_indices=selected.keep_indices)
    torch.testing.assert_close(again.logits, selected.logits)
    other = torch.arange(40).expand(2, 40)
    assert torch.equal(model(video, keep_indices=other).keep_indices, other)
    permuted = selected.keep_indices.flip(1)  # as many as there are tokens, in another order, is not "all in order"
    everything = torch.arange(128).flip(0).expand(2, 128)
    backwards = model(video, keep_indices=everything).last_hidden_state[:, 1:].flip(1)
    torch.testing.assert_close(backwards, model(video, token_budget=128).last_hidden_state[:, 1:])
    torch.testing.assert_close(model(video, keep_indices=permuted).logits, selected.logits)
    torch.testing.assert_close(
        model(video, keep_indices=everything).logits, model(video, token_budget=128, head=0).logits
    )


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((1, 8, 3, 56, 56), {"token_budget": 0}, "token_budget.*0"),
        ((1, 8, 3, 56, 56), {"token_budget": -3}, "token_budget.*-3"),
        ((1, 8, 3, 56, 56), {"token_budget": True}, "token_budget.*True"),
        ((1, 8, 3, 56, 56), {"token_budget": 20.0}, r"token_budget.*20\.0"),
        ((1, 8, 3, 56, 56), {"token_budget": "20"}, "token_budget.*'20'"),
        ((1, 8, 3, 57, 56), {}, "multiples of 14.*57x56"),
        ((1, 8, 3, 56, 60), {}, "multiples of 14.*56x60"),
        ((1, 8, 3, 0, 56), {}, "multiples of 14"),
        ((8, 3, 56, 56), {}, r"\(8, 3, 56, 56\)"),
        ((1, 1, 8, 3, 56, 56), {}, r"\(1, 1, 8, 3, 56, 56\)"),
        ((1, 3, 8, 56, 56), {}, "3 channels"),
        ((1, 0, 3, 56, 56), {}, "frames.*0"),
        ((1, 8, 3, 56, 56), {"head": 3}, "head.*3"),
        ((1, 8, 3, 56, 56), {"head": -1}, "head.*-1"),
        ((1, 8, 3, 56, 56), {"keep_indices": torch.zeros(2, 4, dtype=torch.long)}, "keep_indices"),
        ((1, 8, 3, 56, 56), {"keep_indices": torch.zeros(1, 0, dtype=torch.long)}, "keep_indices"),
        ((1, 8, 3, 56, 56), {"keep_indices": torch.zeros(1, 4)}, "keep_indices.*float32"),
        ((1, 8, 3, 56, 56), {"keep_indices": [[0, 1]]}, "keep_indices.*list"),
        ((1, 8, 3, 56, 56), {"keep_indices": torch.tensor([[0, 128]])}, r"keep_indices.*\[0, 128\), got 0 to 128"),
        ((1, 8, 3, 56, 56), {"keep_indices": torch.tensor([[-1, 3]])}, "keep_indices.*got -1 to 3"),
    ],
)
def test_errors_name_what_is_wrong(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(torch.zeros(shape), **arguments)


@torch.no_grad()
def test_numpy_integers_are_whole_numbers():
    model, video = tiny_model(), clip(1, 8, 3, 56, 56)
    expected = model(video, token_budget=20, head=1)
    outputs = model(video, token_budget=np.int64(20), head=np.int32(1))
    torch.testing.assert_close(outputs.logits, expected.logits)


def test_shapes_without_computing():
    with torch.device("meta"):
        model = FluxViTForVideoClassification(FluxViTConfig.base(num_labels=400))
        outputs = model(torch.empty(2, 12, 3, 224, 224), token_budget=1024)
    assert outputs.logits.shape == (2, 400)
    assert outputs.last_hidden_state.shape == (2, 1025, 768)


def test_frames_must_be_whole_tubelets():
    model = tiny_model(tubelet_size=2)
    assert model(clip(1, 8, 3, 28, 28), token_budget=100).keep_indices.shape == (1, 16)
    with pytest.raises(ValueError, match="multiple of 2, got 7"):
        model(clip(1, 7, 3, 28, 28))


def test_align_takes_heads_below_the_largest():
    model = tiny_model()
    aligned = model.align(torch.randn(2, 32), 1)
    torch.testing.assert_close(aligned.norm(dim=-1), torch.ones(2))
    for head in (0, 3):
        with pytest.raises(ValueError, match=f"head.*{head}"):
            model.align(torch.randn(2, 32), head)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_attention_implementations_agree(implementation):
    # flex_attention on the CPU wants a head width that is a power of two
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_pooling_heads": 4}
    video = clip(2, 8, 3, 56, 56)
    expected = tiny_model(attn_implementation="eager", **sizes)(video)
    outputs = tiny_model(attn_implementation=implementation, **sizes)(video)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = tiny_model(attn_implementation="eager")
    outputs = model(
        clip(2, 8, 3, 56, 56), output_hidden_states=True, output_attentions=True, output_pooler_attentions=True
    )
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 65, 48)] * 4
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 3, 65, 65)] * 3
    assert [tuple(weights.shape) for weights in outputs.pooler_attentions] == [(2, 4, 1, 65)]
    for weights in (*outputs.attentions, *outputs.pooler_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


@torch.no_grad()
def test_pooler_attentions_with_any_attention_implementation():
    outputs = tiny_model(attn_implementation="sdpa")(clip(1, 8, 3, 56, 56), output_pooler_attentions=True)
    assert outputs.pooler_attentions[0].shape == (1, 4, 1, 65)


def test_gradient_checkpointing_changes_no_gradient():
    video, gradients = clip(2, 8, 3, 56, 56), []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model(video, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_every_used_parameter_learns():
    model = tiny_model().train()
    model(clip(2, 9, 3, 42, 56), head=0, labels=torch.tensor([0, 1])).loss.backward()
    unused = ("projectors.1", "projectors.2", "classifiers.1", "classifiers.2", "alignment_decoders")
    for name, parameter in model.named_parameters():
        if any(part in name for part in unused):
            assert parameter.grad is None, name
        elif not name.endswith(("norm_k.bias", "k_proj.bias")):  # the softmax cancels what these add
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_the_same_tokens(dtype):
    model, video = tiny_model(), clip(2, 8, 3, 56, 56)
    # The same weights on both sides of the comparison: only arithmetic may differ.
    rounded = tiny_model()
    rounded.load_state_dict({name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()})
    video = video.to(dtype)
    expected = rounded(video.float())
    outputs = model.to(dtype)(video)
    assert outputs.logits.dtype == outputs.last_hidden_state.dtype == dtype
    assert torch.equal(outputs.keep_indices, expected.keep_indices)
    torch.testing.assert_close(outputs.logits.float(), expected.logits, atol=5e-2, rtol=5e-2)


@torch.no_grad()
def test_autocast_keeps_the_same_tokens():
    model, video = tiny_model(), clip(2, 8, 3, 56, 56)
    expected = model(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(video)
    assert torch.equal(outputs.keep_indices, expected.keep_indices)
    torch.testing.assert_close(outputs.logits.float(), expected.logits, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("single_label_classification", 5, torch.tensor([1, 4])),
        ("multi_label_classification", 5, torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])),
        ("regression", 1, torch.tensor([0.5, -1.0])),
    ],
)
def test_losses(problem_type, num_labels, labels):
    model = tiny_model(problem_type=problem_type, num_labels=num_labels)
    outputs = model(clip(2, 8, 3, 56, 56), labels=labels)
    expected = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": lambda logits, target: torch.nn.functional.mse_loss(logits.squeeze(), target),
    }[problem_type](outputs.logits, labels)
    torch.testing.assert_close(outputs.loss, expected)


def test_drop_path_and_dropout_act_in_training_only():
    model = tiny_model(drop_path_rate=0.9, classifier_dropout=0.5)
    video = clip(4, 8, 3, 56, 56)
    assert torch.equal(model(video).logits, model(video).logits)
    model.train()
    assert not torch.equal(model(video).logits, model(video).logits)
    assert [layer.drop_path.rate for layer in model.fluxvit.encoder.layer] == [0.0, 0.45, 0.9]


def test_position_table_is_reused_until_a_weight_changes():
    positions = tiny_model().fluxvit.embeddings.position_embeddings
    with torch.no_grad():
        first = positions(6, 5, 3)
        assert positions(6, 5, 3) is first
        assert positions(6, 3, 5).shape == first.shape
        assert not torch.equal(positions(6, 3, 5), first)  # an equal product is not an equal grid
        positions.table.mul_(2)
        assert torch.allclose(positions(6, 5, 3)[:, 1:], 2 * first[:, 1:], atol=1e-6)
        positions.global_position_encoding.bias.add_(1)
        assert torch.allclose(positions(6, 5, 3)[:, 1:], 2 * first[:, 1:] + 1, atol=1e-5)
        positions.table.data.add_(1)  # as weight averaging is often written; no version counter sees it
        assert torch.allclose(positions(6, 5, 3)[:, 1:], 2 * first[:, 1:] + 2, atol=1e-5)
        state = {name: tensor * 0 for name, tensor in positions.state_dict().items()}
        positions.load_state_dict(state)
        assert positions(6, 5, 3).abs().max() == 0
    assert positions(6, 5, 3).requires_grad


def test_position_table_works_in_inference_mode_and_after_it():
    model, video = tiny_model(), clip(1, 6, 3, 42, 56)
    with torch.inference_mode():
        first = model(video).logits.clone()
    with torch.no_grad():
        second = model(video).logits
    model(video, labels=torch.tensor([0])).loss.backward()  # must not meet a tensor made in inference mode
    torch.testing.assert_close(first, second)


def test_global_encoding_leaves_the_class_token_alone():
    positions = tiny_model().fluxvit.embeddings.position_embeddings
    with torch.no_grad():
        positions.global_position_encoding.bias.fill_(3.0)
        before = positions.table[:, 0].clone()
        for grid in ((8, 4, 4), (6, 5, 3)):
            assert torch.equal(positions(*grid)[:, 0], before)


def test_initial_position_table():
    table = sincos_position_table([3, 2, 4], 48)
    assert table.shape == (1, 25, 48)
    assert table[0, 0].abs().max() == 0
    grid = table[0, 1:].reshape(3, 2, 4, 48)
    omega = 10000 ** -(torch.arange(6) / 6)  # a quarter of the channels for time, half of it sines
    for time in range(3):
        torch.testing.assert_close(grid[time, 1, 2, :6], (time * omega).sin(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(grid[time, 1, 2, 6:12], (time * omega).cos(), atol=1e-6, rtol=1e-5)
    omega = 10000 ** -(torch.arange(9) / 9)  # then columns, then rows
    torch.testing.assert_close(grid[0, 1, 3, 12:21], (3 * omega).sin(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grid[0, 1, 3, 30:39], (1 * omega).sin(), atol=1e-6, rtol=1e-5)


def test_initial_weights_have_the_official_distribution():
    torch.manual_seed(0)
    config = FluxViTConfig.small(num_hidden_layers=4, position_embedding_grid=[2, 2, 2], num_labels=400)
    weights = {name: parameter.detach() for name, parameter in FluxViTForVideoClassification(config).named_parameters()}

    def std(name: str) -> float:
        return weights[name].std().item()

    for layer in range(4):
        prefix = f"fluxvit.encoder.layer.{layer}."
        assert math.isclose(std(prefix + "attention.qkv.weight"), 0.02, rel_tol=0.02)
        assert math.isclose(std(prefix + "mlp.fc1.weight"), 0.02, rel_tol=0.02)
        scaled = 0.02 / math.sqrt(2 * (layer + 1))
        assert math.isclose(std(prefix + "attention.out_proj.weight"), scaled, rel_tol=0.02)
        assert math.isclose(std(prefix + "mlp.fc2.weight"), scaled, rel_tol=0.02)
        assert torch.equal(weights[prefix + "layer_scale1.weight"], torch.full((384,), 1e-5))
        assert torch.equal(weights[prefix + "attention.local_position_encoding.weight"], torch.ones(384))
    patches = weights["fluxvit.embeddings.patch_embeddings.projection.weight"]
    bound = 588**-0.5
    assert patches.abs().max() <= bound
    assert math.isclose(patches.std().item(), bound / math.sqrt(3), rel_tol=0.02)
    assert 0 < weights["fluxvit.embeddings.patch_embeddings.projection.bias"].abs().max() <= bound
    assert math.isclose(std("classifiers.0.weight"), 0.02, rel_tol=0.02)
    assert math.isclose(std("alignment_decoders.1.dense.weight"), 0.02, rel_tol=0.02)
    assert math.isclose(std("fluxvit.embeddings.cls_token"), 0.02, rel_tol=0.2)
    for name, weight in weights.items():
        if name.endswith("bias") and "patch_embeddings" not in name:
            assert weight.abs().max() == 0, name


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "fluxvit"
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
    convert(GOLDEN / "fluxvit_tiny_checkpoint.pth", folder, choices)
    return folder


def test_base_and_task_checkpoints_load_into_each_other(official, tmp_path):
    task = FluxViTForVideoClassification.from_pretrained(official).eval()
    base, loading = FluxViTModel.from_pretrained(official, output_loading_info=True)
    assert not loading["missing_keys"]
    video = clip(1, 8, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(base.eval()(video).pooler_output, task(video).pooler_output)
    base.save_pretrained(tmp_path)
    again, loading = FluxViTForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith(("classifiers", "fc_norm", "alignment")) for name in loading["missing_keys"])
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(video).pooler_output, task(video).pooler_output)


def test_another_number_of_labels(official):
    with pytest.raises(RuntimeError):
        FluxViTForVideoClassification.from_pretrained(official, num_labels=3)
    model = FluxViTForVideoClassification.from_pretrained(official, num_labels=3, ignore_mismatched_sizes=True)
    assert model(clip(1, 8, 3, 56, 56)).logits.shape == (1, 3)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, "disk"])
def test_device_maps(official, tmp_path, device_map):
    video, arguments = clip(1, 6, 3, 42, 56), {}
    if device_map == "disk":
        arguments = {"offload_folder": tmp_path}
        device_map = {
            "fluxvit.embeddings": "disk",
            "fluxvit.encoder": "disk",
            "fluxvit.projectors": "cpu",
            "fc_norm": "cpu",
            "classifiers": "cpu",
            "alignment_decoders": "cpu",
        }
    with torch.no_grad():
        expected = FluxViTForVideoClassification.from_pretrained(official).eval()(video).logits
        model = FluxViTForVideoClassification.from_pretrained(official, device_map=device_map, **arguments).eval()
        torch.testing.assert_close(model(video).logits, expected)


@torch.no_grad()
def test_compile_fullgraph_equals_eager_and_does_not_recompile_per_batch():
    torch._dynamo.reset()
    model, backend = tiny_model(num_hidden_layers=1), CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=backend)

    def check(batch: int, seed: int) -> None:
        video = clip(batch, 8, 3, 56, 56, seed=seed)
        outputs, expected = compiled(video), model(video)
        assert torch.equal(outputs.keep_indices, expected.keep_indices)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)

    for seed in range(4):
        check(batch=2, seed=seed)
    assert backend.frame_count == 1
    for batch in (3, 5, 4, 7):  # one dynamic graph serves every other batch size
        check(batch, seed=batch)
    assert backend.frame_count == 2


@torch.no_grad()
def test_compile_fullgraph_at_many_budgets():
    torch._dynamo.reset()
    model, backend = tiny_model(), CompileCounterWithBackend("aot_eager")
    compiled, video = torch.compile(model, fullgraph=True, backend=backend), clip(2, 8, 3, 56, 56)
    for budget in (16, 40, 50, 100, 120, 128, 500):
        outputs, expected = compiled(video, token_budget=budget), model(video, token_budget=budget)
        assert torch.equal(outputs.keep_indices, expected.keep_indices)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_compiled_training_step_equals_eager():
    video, labels, gradients = clip(2, 8, 3, 56, 56), torch.tensor([0, 1]), []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = tiny_model().train()
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        step(video, labels=labels).loss.backward()
        gradients.append(model.fluxvit.encoder.layer[0].attention.qkv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_export_with_dynamic_batch_equals_eager():
    model, video = tiny_model(), clip(2, 8, 3, 56, 56)
    dynamic = {"pixel_values_videos": {0: torch.export.Dim("batch", min=2, max=64)}}
    with torch.no_grad():
        program = torch.export.export(model, (), {"pixel_values_videos": video}, dynamic_shapes=dynamic)
        for batch in (2, 5):
            video = clip(batch, 8, 3, 56, 56, seed=batch)
            exported = program.module()(pixel_values_videos=video)
            torch.testing.assert_close(exported.logits, model(video).logits, atol=1e-5, rtol=1e-5)


def test_saved_weights_are_bit_equal(official, tmp_path):
    model = FluxViTForVideoClassification.from_pretrained(official)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_cuda_keeps_the_tokens_the_cpu_keeps(dtype):
    model = tiny_model().to(dtype)
    video = clip(2, 12, 3, 84, 84).to(dtype)
    expected = model(video)
    outputs = model.cuda()(video.cuda())
    assert torch.equal(outputs.keep_indices.cpu(), expected.keep_indices)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(outputs.logits.cpu(), expected.logits, atol=tolerance, rtol=tolerance)


def test_positions_of_several_grids_are_kept_and_never_stale():
    model = tiny_model().eval()
    positions = model.base_model.embeddings.position_embeddings
    grids = [(2, 2, 2), (4, 2, 2), (3, 3, 1)]
    with torch.no_grad():
        first = [positions(*grid) for grid in grids]
        assert all(positions(*grid) is table for grid, table in zip(grids, first, strict=True))
        positions.table.data.add_(1.0)  # written past autograd's version count
        second = [positions(*grid) for grid in grids]
        for before, after in zip(first, second, strict=True):
            assert not torch.equal(before, after)
        for index in range(40):
            positions(index + 1, 1, 1)
        assert len(positions._cached[1]) <= 32


def test_a_traced_model_keeps_no_clips_positions():
    model = tiny_model().eval()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, video):
            return self.model(video).logits

    clips = [torch.randn(1, 4, 3, 28, 28, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    with torch.no_grad():
        expected = [Logits()(clip) for clip in clips]
        traced = torch.jit.trace(Logits(), clips[0], strict=False)
        torch.testing.assert_close([traced(clip) for clip in clips], expected)
