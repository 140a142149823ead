"""Flux around VideoMAE, ViViT and V-JEPA 2: against the library's own models, and at the edges."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from flux_models import (
    CLASSIFIERS,
    CONFIGS,
    NAMES,
    NUM_TOKENS,
    clip,
    flux_model,
    library_model,
    shared_model,
    with_random_weights,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    PreTrainedModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VivitConfig,
)

from flux_hf import FluxConfig, FluxForVideoClassification, FluxModel
from flux_hf.protocol import features_at_budgets, logits_at_budgets


ANY_NAME = pytest.mark.parametrize("name", NAMES)


def drawn_subset(count: int = 21, tokens: int = NUM_TOKENS, batch: int = 2) -> torch.Tensor:
    """Another rising subset for each clip, (batch, count)."""
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(batch)])


def library_states(model: PreTrainedModel, video: torch.Tensor, keep_indices: torch.Tensor) -> list[torch.Tensor]:
    """What the library's own layers make of some tokens at their positions: in front, of each layer, after the norm."""

    def kept(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.gather(1, keep_indices[..., None].expand(-1, -1, tokens.shape[-1]))

    base = model.base_model
    if model.config.model_type == "vjepa2":
        states = [kept(base.encoder.embeddings(video))]
        for layer in base.encoder.layer:
            states.append(layer(states[-1], position_mask=keep_indices)[0])
        return [*states, base.encoder.layernorm(states[-1])]
    if model.config.model_type == "vivit":
        tokens = base.embeddings(video)
        states = [torch.cat([tokens[:, :1], kept(tokens[:, 1:])], dim=1)]
        for layer in base.layers:
            states.append(layer(states[-1]))
        return [*states, base.layernorm(states[-1])]
    states = [kept(base.embeddings(video, None))]
    for layer in base.encoder.layer:
        states.append(layer(states[-1]))
    return [*states, states[-1]]


# The library's own models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@ANY_NAME
@torch.no_grad()
def test_all_tokens_give_the_librarys_logits(name, attention):
    library, video = library_model(name, attention), clip()
    flux = FluxForVideoClassification.from_backbone(library)
    assert flux.config._attn_implementation == flux.flux.backbone.config._attn_implementation == attention
    expected = library(video, output_hidden_states=True)
    assert expected.logits.std() > 0.1  # the weights say something
    outputs = flux(video, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert outputs.keep_indices.tolist() == [list(range(NUM_TOKENS))] * 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@ANY_NAME
@torch.no_grad()
def test_a_subset_gives_what_the_librarys_layers_give_by_hand(name, attention):
    library, video, keep_indices = library_model(name, attention), clip(), drawn_subset()
    expected = library_states(library, video, keep_indices)
    outputs = FluxForVideoClassification.from_backbone(library)(
        video, keep_indices=keep_indices, output_hidden_states=True
    )
    for ours, theirs in zip(outputs.hidden_states, expected[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.last_hidden_state, expected[-1], atol=1e-5, rtol=1e-5)
    whole = library_states(library, video, torch.arange(NUM_TOKENS).expand(2, -1))[-1]
    first = 1 if name == "vivit" else 0
    seen = whole[:, first:].gather(1, keep_indices[..., None].expand(-1, -1, whole.shape[-1]))
    assert not torch.allclose(outputs.last_hidden_state[:, first:], seen, atol=1e-2)  # what is dropped is not seen


@torch.no_grad()
def test_videomaes_own_masking_gives_the_same(name="videomae"):
    library, video, keep_indices = library_model(name), clip(), drawn_subset()[:1].expand(2, -1)
    hidden = torch.ones(2, NUM_TOKENS, dtype=torch.bool).scatter(1, keep_indices, False)
    expected = library.videomae(video, bool_masked_pos=hidden).last_hidden_state
    outputs = FluxForVideoClassification.from_backbone(library)(video, keep_indices=keep_indices)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [None, 50])
@torch.no_grad()
def test_vjepa2_at_other_clips_is_a_model_built_for_them(keep):
    trained = library_model("vjepa2")
    native = CLASSIFIERS["vjepa2"](CONFIGS["vjepa2"](frames_per_clip=12, crop_size=48)).eval()
    native.load_state_dict(trained.state_dict())
    video, tokens = clip(2, 12, 3, 48, 48), 6 * 6 * 6
    flux = FluxForVideoClassification.from_backbone(trained)
    if keep is None:
        torch.testing.assert_close(flux(video).logits, native(video).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(trained(video).logits, native(video).logits, atol=1e-2)  # its grid is the trained one
    else:
        keep_indices = drawn_subset(keep, tokens)
        expected = library_states(native, video, keep_indices)[-1]
        outputs = flux(video, keep_indices=keep_indices)
        torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vjepa2_takes_an_image_as_the_library_does():
    library, image = library_model("vjepa2"), clip(2, 1, 3, 32, 32)
    flux = FluxForVideoClassification.from_backbone(library)
    torch.testing.assert_close(flux(image).logits, library(image).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flux(image).logits, flux(image.repeat(1, 2, 1, 1, 1)).logits, atol=1e-6, rtol=1e-6)
    assert flux(image, token_budget=5).keep_indices.tolist() == [[1, 4, 8, 11, 14]] * 2  # spread evenly
    image_model = FluxForVideoClassification.from_backbone(library_model("vjepa2", frames_per_clip=1))
    assert image_model.config.num_frames == 2 and image_model.config.token_budgets == [16, 8, 4]
    assert image_model(image).last_hidden_state.shape == (2, 16, 64)


@ANY_NAME
@torch.no_grad()
def test_positions_at_other_grids(name):
    """Interpolated tables; a clip of another size sees other positions, and each patch's own."""
    flux = flux_model(name)
    patches, grid = flux.embed(clip(1, 12, 3, 48, 40))
    assert grid[:3] == (6, 6, 5)
    if name == "vjepa2":
        assert grid.positions is None
        return
    _, native = flux.embed(clip())
    assert grid.positions.shape == (1, 180, 64)
    doubled = flux.embed(clip(1, 8, 3, 64, 64))[1].positions.reshape(4, 8, 8, 64)
    series = native.positions.reshape(4, 4, 4, 64)
    assert not torch.allclose(doubled[:, ::2, ::2], series, atol=1e-2)
    table = series.permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, size=(8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(doubled, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


# Budgets and clips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(2, 32, 32), (6, 24, 32), (10, 32, 16), (2, 8, 8), (4, 8, 40), (8, 32, 32), (14, 48, 40)],
)
@pytest.mark.parametrize("batch", [1, 2])
@ANY_NAME
@torch.no_grad()
def test_any_clip(name, frames, height, width, batch):
    """Odd numbers of tubelets, one tubelet, one patch, other shapes than trained."""
    model = shared_model(name)
    patches = frames // 2 * (height // 8) * (width // 8)
    kept, classes = min(11, patches), 1 if name == "vivit" else 0
    outputs = model(clip(batch, frames, 3, height, width), token_budget=11)
    assert outputs.last_hidden_state.shape == (batch, classes + kept, 64)
    assert outputs.pooler_output.shape == (batch, 64) and outputs.logits.shape == (batch, 5)
    assert outputs.keep_indices.shape == (batch, kept)
    assert bool((outputs.keep_indices.diff(dim=1) > 0).all()) and int(outputs.keep_indices.min()) >= 0
    assert int(outputs.keep_indices.max()) < patches
    assert bool(torch.isfinite(outputs.logits).all())


@pytest.mark.parametrize("budget", [1, 2, 7, 15, 16, 17, 33, 63, 64])
@ANY_NAME
@torch.no_grad()
def test_budgets_are_exact(name, budget):
    assert shared_model(name)(clip(), token_budget=budget).keep_indices.shape == (2, budget)


@ANY_NAME
@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(name):
    model, video = flux_model(name), clip(3, 6, 3, 24, 32)
    together = model(video, token_budget=20)
    for index in range(3):
        alone = model(video[index : index + 1], token_budget=20)
        assert torch.equal(alone.keep_indices, together.keep_indices[index : index + 1])
        torch.testing.assert_close(alone.logits, together.logits[index : index + 1], atol=1e-5, rtol=1e-5)


@ANY_NAME
@torch.no_grad()
def test_budget_above_the_tokens_keeps_all(name):
    model, video = flux_model(name), clip(1, 4, 3, 16, 16)
    outputs = model(video, token_budget=10_000)
    assert outputs.keep_indices.tolist() == [list(range(8))]
    torch.testing.assert_close(model(video, token_budget=8).logits, outputs.logits)


@ANY_NAME
@torch.no_grad()
def test_default_budget_comes_from_the_config(name):
    assert flux_model(name)(clip()).keep_indices.shape == (2, 64)
    assert flux_model(name, token_budget=10)(clip()).keep_indices.shape == (2, 10)


@ANY_NAME
@torch.no_grad()
def test_keep_indices_in_any_order(name):
    model, video, classes = flux_model(name), clip(), 1 if name == "vivit" else 0
    selected = model(video, token_budget=40)
    again = model(video, keep_indices=selected.keep_indices.flip(1))
    torch.testing.assert_close(again.logits, selected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        again.last_hidden_state[:, classes:].flip(1), selected.last_hidden_state[:, classes:], atol=1e-5, rtol=1e-5
    )
    everything = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    shuffled, whole = model(video, keep_indices=everything), model(video)
    torch.testing.assert_close(shuffled.logits, whole.logits, atol=1e-5, rtol=1e-5)
    expected = whole.last_hidden_state[:, classes:].gather(1, everything[..., None].expand(-1, -1, 64))
    torch.testing.assert_close(shuffled.last_hidden_state[:, classes:], expected, atol=1e-5, rtol=1e-5)
    narrow = model(video, keep_indices=selected.keep_indices.int())
    torch.testing.assert_close(narrow.logits, selected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [FluxModel, FluxForVideoClassification])
@ANY_NAME
@torch.no_grad()
def test_forward_is_the_four_steps(name, cls):
    whole, video, classes = flux_model(name, separate_heads=True), clip(), 1 if name == "vivit" else 0
    model = whole if cls is FluxForVideoClassification else whole.flux
    patches, grid = model.embed(video)
    assert patches.shape == (2, 4, 16, 64) and grid[:3] == (4, 4, 4) and grid.class_token.shape == (2, classes, 64)
    for keep_indices, budget in zip(model.select(patches, [None, 20, 999]), (64, 20, 64), strict=True):
        expected = model(video, token_budget=budget, output_hidden_states=True)
        assert torch.equal(keep_indices, expected.keep_indices)
        hidden_states, states = model.encode(patches, grid, keep_indices, layers=(1, 0))
        assert torch.equal(hidden_states, expected.last_hidden_state)
        assert torch.equal(states[0], expected.hidden_states[2]) and torch.equal(states[1], expected.hidden_states[1])
        feature, weights = model.pool(hidden_states, model.resolve_head(budget))
        assert torch.equal(feature, expected.pooler_output) and weights is None


@ANY_NAME
@torch.no_grad()
def test_the_protocols_functions(name):
    model, video = flux_model(name, token_budget=20), clip()
    for logits, budget in zip(logits_at_budgets(model, video, [None, 7, 999]), (20, 7, 64), strict=True):
        torch.testing.assert_close(logits, model(video, token_budget=budget).logits)
    for found, budget in zip(features_at_budgets(model, video, [64, 30, 3]), (64, 30, 3), strict=True):
        torch.testing.assert_close(found.feature, model(video, token_budget=budget).pooler_output)
        assert found.head == {64: 0, 30: 1, 3: 2}[budget]


@ANY_NAME
def test_steps_refuse_what_is_not_there(name):
    model = flux_model(name)
    patches, grid = model.embed(clip(1, 8, 3, 32, 32))
    with pytest.raises(ValueError, match=r"layers must lie in \[0, 3\), got \[3\]"):
        model.encode(patches, grid, torch.tensor([[0, 1]]), layers=[0, 3])
    with pytest.raises(ValueError, match=r"keep_indices.*\[0, 64\)"):
        model.encode(patches, grid, torch.tensor([[0, 64]]))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((1, 8, 3, 32, 32), {"token_budget": 0}, "token_budget.*0"),
        ((1, 8, 3, 32, 32), {"token_budget": -3}, "token_budget.*-3"),
        ((1, 8, 3, 32, 32), {"token_budget": True}, "token_budget.*True"),
        ((1, 8, 3, 32, 32), {"token_budget": 20.0}, r"token_budget.*20\.0"),
        ((1, 8, 3, 32, 32), {"token_budget": "20"}, "token_budget.*'20'"),
        ((1, 8, 3, 33, 32), {}, "multiples of 8.*33x32"),
        ((1, 8, 3, 32, 36), {}, "multiples of 8.*32x36"),
        ((1, 8, 3, 0, 32), {}, "multiples of 8"),
        ((8, 3, 32, 32), {}, r"\(8, 3, 32, 32\)"),
        ((1, 1, 8, 3, 32, 32), {}, r"\(1, 1, 8, 3, 32, 32\)"),
        ((1, 3, 8, 32, 32), {}, "3 channels"),
        ((1, 8, 1, 32, 32), {}, "3 channels"),
        ((1, 7, 3, 32, 32), {}, "frames must be a multiple of 2, got 7"),
        ((1, 0, 3, 32, 32), {}, "frames.*0"),
        ((1, 8, 3, 32, 32), {"head": 3}, "head.*3"),
        ((1, 8, 3, 32, 32), {"head": -1}, "head.*-1"),
        ((1, 8, 3, 32, 32), {"head": True}, "head.*True"),
        ((1, 8, 3, 32, 32), {"keep_indices": torch.zeros(2, 4, dtype=torch.long)}, "keep_indices"),
        ((1, 8, 3, 32, 32), {"keep_indices": torch.zeros(1, 0, dtype=torch.long)}, "keep_indices"),
        ((1, 8, 3, 32, 32), {"keep_indices": torch.zeros(1, 4)}, "keep_indices.*float32"),
        ((1, 8, 3, 32, 32), {"keep_indices": [[0, 1]]}, "keep_indices.*list"),
        ((1, 8, 3, 32, 32), {"keep_indices": torch.tensor([[0, 64]])}, r"keep_indices.*\[0, 64\), got 0 to 64"),
        ((1, 8, 3, 32, 32), {"keep_indices": torch.tensor([[-1, 3]])}, "keep_indices.*got -1 to 3"),
    ],
)
@ANY_NAME
def test_errors_name_what_is_wrong(name, shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        shared_model(name)(torch.zeros(shape), **arguments)


@pytest.mark.parametrize("name", ["videomae", "vivit"])
def test_one_image_is_no_tubelet(name):
    with pytest.raises(ValueError, match="multiple of 2, got 1"):
        flux_model(name)(clip(1, 1, 3, 32, 32))


@ANY_NAME
@torch.no_grad()
def test_numpy_integers_are_whole_numbers(name):
    model, video = flux_model(name, separate_heads=True), clip()
    expected = model(video, token_budget=20, head=1)
    torch.testing.assert_close(model(video, token_budget=np.int64(20), head=np.int32(1)).logits, expected.logits)


# Configurations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("timesformer", "'timesformer': its divided attention needs every frame's patch"),
        ("videoprism", "'videoprism': its divided attention encodes whole frames"),
        ("vit", "'vit': no encoder of all a clip's patches together"),
    ],
)
def test_other_encoders_are_refused_by_name(model_type, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FluxConfig(backbone_config={"model_type": model_type})
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if model_type == "videoprism":
        AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    else:
        AutoConfig.for_model(model_type, **sizes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        FluxConfig(backbone_config=AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match=message):
        FluxForVideoClassification.from_backbone(tmp_path)


def test_a_model_of_another_encoder_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = TimesformerForVideoClassification(TimesformerConfig(**sizes, num_frames=2, image_size=32))
    with pytest.raises(ValueError, match="'timesformer': its divided attention"):
        FluxForVideoClassification.from_backbone(model)


def test_patches_must_be_square():
    with pytest.raises(ValueError, match=r"patches must be square, videomae has \[8, 16\]"):
        FluxConfig(backbone_config=VideoMAEConfig(patch_size=[8, 16]))
    with pytest.raises(ValueError, match=r"patches must be square, vivit has \[16, 8\]"):
        FluxConfig(backbone_config=VivitConfig(tubelet_size=[2, 16, 8]))
    assert FluxConfig(backbone_config=VideoMAEConfig(patch_size=[16, 16])).patch_size == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_budgets": []}, "token_budgets must be.*got \\[\\]"),
        ({"token_budgets": [16, 32]}, r"token_budgets.*got \[16, 32\]"),
        ({"token_budgets": [32, 32]}, r"token_budgets.*got \[32, 32\]"),
        ({"token_budgets": [32, 0]}, r"token_budgets.*got \[32, 0\]"),
        ({"token_budget": 0}, "token_budget must be.*got 0"),
        ({"token_selection": "best"}, "token_selection.*got 'best'"),
        ({"num_token_groups": 0}, "num_token_groups.*got 0"),
        ({"num_frames": 7}, "num_frames must be a multiple of tubelet_size=2, got 7"),
        ({"num_frames": 0}, "num_frames.*got 0"),
        ({"image_size": 36}, "image_size.*got 36"),
        ({"image_size": [32, 32, 32]}, "image_size.*got"),
        ({"classifier_dropout": 1.0}, "classifier_dropout.*got 1.0"),
        ({"token_plan": {20: [7, 32]}}, "token_plan.*got"),
        ({"token_plan": {20: [8, 36]}}, "token_plan.*got"),
        ({"problem_type": "ranking"}, "problem_type.*'ranking'"),
    ],
)
@ANY_NAME
def test_configurations_that_cannot_work(name, fields, message):
    with pytest.raises(ValueError, match=message):
        FluxConfig(backbone_config=CONFIGS[name](), **fields)


@ANY_NAME
def test_a_config_says_what_its_encoder_is(name, tmp_path):
    config = FluxConfig(backbone_config=CONFIGS[name](), token_plan={20: [4, 48]}, num_labels=5)
    assert config.token_budgets == [64, 32, 16] and config.token_budget is None and config.num_heads == 1
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert (config.patch_size, config.tubelet_size, config.num_channels) == (8, 2, 3)
    assert (config.num_frames, config.image_size, config.image_height_width) == (8, 32, (32, 32))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is FluxConfig and type(again.backbone_config) is type(config.backbone_config)
    assert again.to_diff_dict() == config.to_diff_dict() and again.token_plan == {20: [4, 48]}
    as_dict = FluxConfig(**config.to_dict())
    assert as_dict.backbone_config.to_dict() == config.backbone_config.to_dict()


def test_sides_of_a_config_that_differ():
    config = FluxConfig(backbone_config=CONFIGS["videomae"](image_size=[24, 40]))
    assert config.image_size == [24, 40] and config.token_budgets == [60, 30, 15]
    flux = with_random_weights(FluxForVideoClassification(config))
    library = CLASSIFIERS["videomae"](CONFIGS["videomae"](image_size=[24, 40])).eval()
    flux = FluxForVideoClassification.from_backbone(with_random_weights(library))
    with torch.no_grad():
        video = clip(2, 8, 3, 24, 40)
        torch.testing.assert_close(flux(video).logits, library(video).logits, atol=1e-5, rtol=1e-5)


# Heads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "head"), [(64, 0), (48, 0), (47, 1), (24, 1), (23, 2), (1, 2)])
@ANY_NAME
@torch.no_grad()
def test_nearest_head_and_ties_to_the_larger_budget(name, kept, head):
    model, video = flux_model(name, separate_heads=True), clip()
    default = model(video, token_budget=kept)
    assert torch.equal(default.logits, model(video, token_budget=kept, head=head).logits)
    for other in {0, 1, 2} - {head}:
        assert not torch.equal(default.logits, model(video, token_budget=kept, head=other).logits)


@ANY_NAME
@torch.no_grad()
def test_one_classifier_serves_every_head(name):
    model, video = flux_model(name), clip()
    assert len(model.classifiers) == len(model.flux.poolers) == 1 and len(model.alignment_decoders) == 0
    for head in (1, 2):
        assert torch.equal(model(video, head=0).logits, model(video, head=head).logits)
    with pytest.raises(ValueError, match="head must be from 1 to 0 to be aligned, got 1"):
        model.align(torch.zeros(2, 64), 1)


@ANY_NAME
def test_separate_heads_are_copies_and_align(name):
    library = library_model(name)
    model = FluxForVideoClassification.from_backbone(library, [64, 32, 16], separate_heads=True)
    assert len(model.classifiers) == len(model.flux.poolers) == 3 and len(model.alignment_decoders) == 2
    for classifier in model.classifiers:
        assert torch.equal(classifier.weight, library.classifier.weight)
        assert torch.equal(classifier.bias, library.classifier.bias)
    for module in (model.flux.poolers, model.classifiers):
        first = module[0].state_dict()
        for other in module[1:]:
            assert all(torch.equal(first[key], value) for key, value in other.state_dict().items())
    places = [parameter.data_ptr() for module in model.heads() for parameter in module.parameters()]
    assert len(set(places)) == len(places)
    aligned = model.align(torch.randn(2, 64), 1)
    torch.testing.assert_close(aligned.norm(dim=-1), torch.ones(2))
    for head in (0, 3):
        with pytest.raises(ValueError, match=f"head.*{head}"):
            model.align(torch.randn(2, 64), head)
    model.freeze_alignment()
    assert not any(parameter.requires_grad for parameter in model.alignment_decoders.parameters())


@pytest.mark.parametrize("separate", [False, True])
@ANY_NAME
@torch.no_grad()
def test_with_token_budgets_shares_the_encoder(name, separate):
    model, video = flux_model(name, separate_heads=separate), clip()
    new = model.with_token_budgets([48, 20])
    assert new.config.token_budgets == [48, 20] and new.config.token_budget == 20 and new.config.separate_heads
    assert new.flux.backbone is model.flux.backbone
    for ours, theirs in zip(new.flux.backbone.parameters(), model.flux.backbone.parameters(), strict=True):
        assert ours is theirs
    for budget, head, source in ((48, 0, 0), (20, 1, 2)):
        assert new.classifiers[head].weight.data_ptr() != model.classifiers[source if separate else 0].weight.data_ptr()
        found, expected = new(video, token_budget=budget), model(video, token_budget=budget)
        torch.testing.assert_close(found.logits, model(video, token_budget=budget, head=source).logits)
        assert torch.equal(found.keep_indices, expected.keep_indices)
    if separate:
        assert torch.equal(new.alignment_decoders[0].dense.weight, model.alignment_decoders[1].dense.weight)
        assert model.with_token_budgets([64, 32, 16]) is model
    assert len(new.alignment_decoders) == 1
    one = model.with_token_budgets([30])
    assert len(one.classifiers) == 1 and not one.config.separate_heads and one.config.token_budget == 30
    torch.testing.assert_close(one(video).logits, model(video, token_budget=30).logits)
    with pytest.raises(ValueError, match="token_budgets"):
        model.with_token_budgets([16, 32])


# Copies, dtypes, devices, compilation ---------------------------------------------------------------------------------


@ANY_NAME
@torch.no_grad()
def test_deep_copies_and_pickles(name):
    model, video = flux_model(name), clip(2, 6, 3, 24, 40)
    expected = model(video, token_budget=20)
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(whole, weights_only=False)]
    for other in copies:
        assert torch.equal(other(video, token_budget=20).logits, expected.logits)
        for parameter in other.parameters():
            parameter.mul_(1.5)
        assert other.flux.taken_apart is not model.flux.taken_apart
    assert torch.equal(model(video, token_budget=20).logits, expected.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ANY_NAME
@torch.no_grad()
def test_half_precision_keeps_the_same_tokens(name, dtype):
    model, rounded, video = flux_model(name), flux_model(name), clip().to(dtype)
    # The same weights on both sides of the comparison: only arithmetic may differ.
    rounded.load_state_dict({key: tensor.to(dtype).float() for key, tensor in model.state_dict().items()})
    expected = rounded(video.float(), token_budget=30)
    outputs = model.to(dtype)(video, token_budget=30)
    assert outputs.logits.dtype == outputs.last_hidden_state.dtype == dtype
    assert torch.equal(outputs.keep_indices, expected.keep_indices)
    scale = expected.logits.abs().max()
    torch.testing.assert_close(outputs.logits.float() / scale, expected.logits / scale, atol=0.1, rtol=0)


@ANY_NAME
@torch.no_grad()
def test_autocast_keeps_the_same_tokens(name):
    model, video = flux_model(name), clip()
    expected = model(video, token_budget=30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(video, token_budget=30)
    assert torch.equal(outputs.keep_indices, expected.keep_indices)
    scale = expected.logits.abs().max()
    torch.testing.assert_close(outputs.logits.float() / scale, expected.logits / scale, atol=0.1, rtol=0)


@ANY_NAME
def test_gradient_checkpointing_changes_no_gradient(name):
    video, gradients = clip(), []
    for checkpointing in (False, True):
        model = flux_model(name).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
            layers = model.flux.taken_apart.layers(model.flux.backbone)
            assert all(layer.gradient_checkpointing for layer in layers)
        model(video, token_budget=20, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


@ANY_NAME
def test_every_used_parameter_learns(name):
    model = flux_model(name, separate_heads=True).train()
    model(clip(2, 6, 3, 24, 40), token_budget=20, head=0, labels=torch.tensor([0, 1])).loss.backward()
    unused = ("poolers.1", "poolers.2", "classifiers.1", "classifiers.2", "alignment_decoders")
    for key, parameter in model.named_parameters():
        if any(part in key for part in unused):
            assert parameter.grad is None, key
        elif not key.endswith(("key.bias", "k_proj.bias")):  # the softmax cancels what these add
            assert parameter.grad.abs().max() > 0, key


@ANY_NAME
def test_the_librarys_gradients(name):
    """All tokens: the loss and every gradient as in the library's model."""
    library, video, labels = library_model(name).train(), clip(), torch.tensor([0, 4])
    flux = FluxForVideoClassification.from_backbone(library).train()
    expected, found = library(video, labels=labels).loss, flux(video, labels=labels).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (expected + found).backward()
    wanted = {key: parameter.grad for key, parameter in library.named_parameters() if parameter.grad is not None}
    wanted = flux.flux.taken_apart.from_library(wanted, range(1))
    gradients = {key: parameter.grad for key, parameter in flux.named_parameters()}
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[key], atol=2e-5, rtol=1e-4, msg=lambda text, key=key: f"{key} {text}"
        )


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("single_label_classification", 5, torch.tensor([1, 4])),
        ("multi_label_classification", 5, torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])),
        ("regression", 1, torch.tensor([0.5, -1.0])),
    ],
)
def test_losses(problem_type, num_labels, labels):
    config = FluxConfig(backbone_config=CONFIGS["videomae"](), problem_type=problem_type, num_labels=num_labels)
    model = with_random_weights(FluxForVideoClassification(config))
    outputs = model(clip(), labels=labels)
    expected = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": lambda logits, target: torch.nn.functional.mse_loss(logits.squeeze(), target),
    }[problem_type](outputs.logits, labels)
    torch.testing.assert_close(outputs.loss, expected)
    as_tuple = model(clip(), labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.loss) and torch.equal(as_tuple[1], outputs.logits)


@ANY_NAME
@torch.no_grad()
def test_hidden_states_and_attentions(name):
    model, classes = flux_model(name, attention="eager"), 1 if name == "vivit" else 0
    asked = {"output_hidden_states": True, "output_attentions": True, "output_pooler_attentions": True}
    outputs = model(clip(), token_budget=20, **asked)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, classes + 20, 64)] * 4
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, classes + 20, classes + 20)] * 3
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    pooling = outputs.pooler_attentions or ()
    assert [tuple(weights.shape) for weights in pooling] == ([(2, 4, 1, 20)] if name == "vjepa2" else [])


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_agrees():
    model = flux_model("vivit", attention="eager", num_hidden_layers=1)
    expected = model(clip(), token_budget=30).logits
    model.set_attn_implementation("flex_attention")
    assert model.flux.backbone.config._attn_implementation == "flex_attention"
    torch.testing.assert_close(model(clip(), token_budget=30).logits, expected, atol=1e-5, rtol=1e-5)


@ANY_NAME
@torch.no_grad()
def test_attention_may_be_changed(name):
    expected = flux_model(name, attention="eager")(clip(), token_budget=30, output_attentions=True)
    assert len(expected.attentions) == 3
    model = flux_model(name, attention="eager")
    model.set_attn_implementation("sdpa")
    assert model.flux.backbone.config._attn_implementation == "sdpa"
    for module in model.modules():
        assert getattr(getattr(module, "config", None), "_attn_implementation", "sdpa") == "sdpa"
    torch.testing.assert_close(model(clip(), token_budget=30).logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vivit" else pytest.mark.slow) for name in NAMES]
)
@torch.no_grad()
def test_compile_fullgraph_equals_eager_and_does_not_recompile_per_batch(name):
    torch._dynamo.reset()
    model, backend = flux_model(name, num_hidden_layers=1), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for seed, batch in enumerate((2, 3, 5)):
        video = clip(batch, 8, 3, 32, 32, seed=seed)
        outputs, expected = compiled(video, token_budget=20), model(video, token_budget=20)
        assert torch.equal(outputs.keep_indices, expected.keep_indices)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert backend.frame_count <= 2


@ANY_NAME
@torch.no_grad()
def test_compiled_layers_share_their_graphs(name):
    torch._dynamo.reset()
    model, backend = flux_model(name), CompileCounterWithBackend("aot_eager")
    expected = [model(clip(), token_budget=budget).logits for budget in (20, 33, 64, 40)]
    model.compile_layers(backend=backend, fullgraph=True)
    found = [model(clip(), token_budget=budget).logits for budget in (20, 33, 64, 40)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert backend.frame_count <= 3  # of one length, of any, and of positions that all clips share


@ANY_NAME
@torch.no_grad()
def test_a_traced_model_takes_other_clips(name):
    model = flux_model(name, token_budget=20)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, video):
            return self.model(video).logits

    clips = [clip(1, 6, 3, 24, 40, seed=seed) for seed in (0, 1)]
    expected = [Logits()(video) for video in clips]
    traced = torch.jit.trace(Logits(), clips[0], strict=False)
    torch.testing.assert_close([traced(video) for video in clips], expected)


@ANY_NAME
@torch.no_grad()
def test_forward_in_several_threads(name):
    model = flux_model(name)
    # More grids than tables are kept, so that threads also meet a cache being emptied.
    jobs = [(clip(1, 2 * (n % 5 + 1), 3, 8 * (n % 4 + 1), 8 * (n % 7 + 1), seed=n), n % 9 + 1) for n in range(140)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: model(job[0], token_budget=job[1]).logits, jobs))
    fresh = flux_model(name)
    for (video, budget), logits in zip(jobs, found, strict=True):
        torch.testing.assert_close(logits, fresh(video, token_budget=budget).logits, atol=1e-5, rtol=1e-5)


@ANY_NAME
def test_inference_mode_and_training_after_it(name):
    model, video = flux_model(name), clip(2, 6, 3, 24, 40)
    with torch.inference_mode():
        first = model(video, token_budget=20).logits.clone()
    with torch.no_grad():
        second = model(video, token_budget=20).logits
    model(video, token_budget=20, labels=torch.tensor([0, 1])).loss.backward()  # must not meet its tensors
    torch.testing.assert_close(first, second)


@ANY_NAME
def test_shapes_without_computing(name):
    with torch.device("meta"):
        model = FluxForVideoClassification(FluxConfig(backbone_config=CONFIGS[name](), num_labels=7))
        outputs = model(torch.empty(2, 6, 3, 24, 40), token_budget=20)
    assert outputs.logits.shape == (2, 7) and outputs.last_hidden_state.shape[1] in (20, 21)


@ANY_NAME
@torch.no_grad()
def test_fake_tensors_leave_nothing_behind(name):
    model = flux_model(name)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        outputs = model(mode.from_tensor(clip(2, 6, 3, 24, 40)), token_budget=20)
        assert outputs.logits.shape == (2, 5)
    expected = flux_model(name)(clip(2, 6, 3, 24, 40), token_budget=20).logits
    torch.testing.assert_close(model(clip(2, 6, 3, 24, 40), token_budget=20).logits, expected)


@torch.no_grad()
def test_videomaes_tables_are_kept_for_few_grids():
    model = flux_model("videomae")
    for rows in range(1, 40):
        model(clip(1, 2, 3, 8 * rows, 8))
    assert 0 < len(model.flux.taken_apart._tables) <= 32
    assert torch.equal(model(clip()).logits, flux_model("videomae")(clip()).logits)


# What the model says of itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "side", "budget"), [(8, 32, 64), (8, 32, 20), (12, 48, 51), (2, 16, 1), (8, 32, 999)]
)
@ANY_NAME
def test_flops_are_half_of_what_torch_counts_in_a_forward_pass(name, frames, side, budget):
    model = flux_model(name, attention="eager").requires_grad_(False)  # of SDPA on the CPU torch counts nothing
    with FlopCounterMode(display=False) as counter:
        model(clip(1, frames, 3, side, side), token_budget=budget)
    assert 2 * model.flops(frames, side, budget, dense_embedding=True) == counter.get_total_flops()


@ANY_NAME
def test_flops_at_the_sizes_that_people_have(name):
    default = {"videomae": VideoMAEConfig, "vivit": VivitConfig}.get(name)
    backbone = CONFIGS[name](crop_size=256, patch_size=16, frames_per_clip=16) if default is None else default()
    with torch.device("meta"):
        config = FluxConfig(backbone_config=backbone, num_labels=400)
        model = FluxForVideoClassification._from_config(config, attn_implementation="eager").eval()
        side = config.image_size
        video = torch.empty(1, config.num_frames, 3, side, side)
    model.requires_grad_(False)
    for budget in (None, config.token_budgets[1]):
        with FlopCounterMode(display=False) as counter:
            model(video, token_budget=budget)
        assert 2 * model.flops(token_budget=budget, dense_embedding=True) == counter.get_total_flops()


@ANY_NAME
def test_dense_embedding_adds_the_patches_that_are_dropped(name):
    model = flux_model(name)
    assert model.flops(8, 32, 20, dense_embedding=True) - model.flops(8, 32, 20) == 44 * 2 * 8 * 8 * 3 * 64
    assert model.flops(8, 32, 64, dense_embedding=True) == model.flops(8, 32, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 32, 8), "num_frames must be a multiple of 2, got 3"),
        ((0, 32, 8), "num_frames must be a whole number of at least 1, got 0"),
        ((4, 33, 8), "size must be a multiple of 8, got 33"),
        ((4, 32.0, 8), "size must be a whole number of at least 1, got 32.0"),
        ((4, 32, 0), "token_budget must be a whole number of at least 1, got 0"),
    ],
)
@ANY_NAME
def test_flops_of_impossible_clips(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        shared_model(name).flops(*arguments)


DEPTHS = {
    "videomae": (
        ("flux.backbone.embeddings.", 0),
        *((f"flux.backbone.encoder.layer.{n}.", n + 1) for n in range(3)),
        *(
            (prefix, 4)
            for prefix in ("flux.poolers.", "classifiers.", "alignment_decoders.", "flux.backbone.layernorm.")
        ),
    ),
    "vivit": (
        ("flux.backbone.embeddings.", 0),
        *((f"flux.backbone.layers.{n}.", n + 1) for n in range(3)),
        *(
            (prefix, 4)
            for prefix in ("flux.backbone.layernorm.", "flux.poolers.", "classifiers.", "alignment_decoders.")
        ),
    ),
    "vjepa2": (
        ("flux.backbone.encoder.embeddings.", 0),
        *((f"flux.backbone.encoder.layer.{n}.", n + 1) for n in range(3)),
        ("flux.backbone.encoder.layernorm.", 4),
        *((prefix, 4) for prefix in ("flux.poolers.", "classifiers.", "alignment_decoders.")),
    ),
}


@ANY_NAME
def test_depth_and_weight_decay_of_every_parameter(name):
    model = flux_model(name, separate_heads=True)
    seen = set()
    for key, parameter in model.named_parameters():
        [depth] = [depth for prefix, depth in DEPTHS[name] if key.startswith(prefix)]
        assert model.parameter_depth(key) == depth, key
        if key.startswith("flux."):
            assert model.flux.parameter_depth(key.removeprefix("flux.")) == depth, key
        seen.add(depth)
        free = key.endswith(("bias", "cls_token", "position_embeddings", "query_tokens"))
        free |= "norm" in key.rsplit(".", 2)[-2]
        assert model.takes_weight_decay(key, parameter) == (not free), key
    assert seen == {0, 1, 2, 3, 4}


LORA_NAMES = {
    "videomae": ("query", "key", "value", "output.dense", "intermediate.dense"),
    "vivit": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
    "vjepa2": ("query", "key", "value", "proj", "fc1", "fc2"),
}


@ANY_NAME
def test_lora_updates_the_layers_maps_and_merges(name):
    from peft import LoraConfig, get_peft_model

    model, video = flux_model(name), clip()
    layers = model.flux.taken_apart.layers(model.flux.backbone)
    linear = {
        f"{layer}.{key}"
        for layer in range(3)
        for key, module in layers[layer].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    targets = model.lora_targets()
    assert all(target.endswith(LORA_NAMES[name]) for target in targets) and len(set(targets)) == 18
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    updated = {key.split(".lora_A")[0] for key, parameter in adapted.named_parameters() if ".lora_A" in key}
    start = updated.pop().split(".0.")[0].split(".1.")[0].split(".2.")[0]
    assert {key.removeprefix(f"{start}.") for key in updated} < linear and len(updated) == len(linear) - 1 == 17
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if ".lora_B" in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        before = flux_model(name)(video, token_budget=20)
        expected = adapted(video, token_budget=20)
        assert not torch.allclose(expected.logits, before.logits, atol=1e-2)
        assert torch.equal(expected.keep_indices, before.keep_indices)
        merged = adapted.merge_and_unload()
        assert type(merged) is FluxForVideoClassification
        outputs = merged(video, token_budget=20)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == flux_model(name).state_dict().keys()


def test_lora_of_the_bare_model_has_the_same_targets():
    model = flux_model("vjepa2")
    assert model.flux.lora_targets() == model.lora_targets()
    assert all(isinstance(model.flux.get_submodule(name), torch.nn.Linear) for name in model.lora_targets())


@ANY_NAME
def test_the_bare_model_has_the_librarys_encoder(name):
    model = flux_model(name)
    assert model.flux.get_input_embeddings() is model.flux.taken_apart.projection(model.flux.backbone)
    assert isinstance(model.flux.get_input_embeddings(), torch.nn.Conv3d)
    assert not [key for key in model.state_dict() if "predictor" in key or ".pooler." in key]


def test_initial_weights_are_the_librarys():
    torch.manual_seed(0)
    model = FluxForVideoClassification(FluxConfig(backbone_config=CONFIGS["vjepa2"](initializer_range=0.1)))
    assert abs(model.flux.poolers[0].query_tokens.std() - 0.1) < 0.03
    assert abs(model.classifiers[0].weight.std() - 0.1) < 0.02
    assert model.classifiers[0].bias.abs().max() == 0
    assert abs(model.flux.backbone.encoder.layer[0].mlp.fc1.weight.std() - 0.1) < 0.01
    embeddings = model.flux.get_input_embeddings()
    assert abs(embeddings.weight.std() - 0.1) < 0.01 and embeddings.bias.abs().max() == 0
