"""Flux-UMT: the teacher's features are the official ones, the loss is that of a case computed by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config
from torch.nn.functional import normalize
from transformers import (
    AutoModelForPreTraining,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
)

from conversion.convert_to_hf import convert
from conversion.infer_config import ConfigChoices
from flux_hf import (
    FluxConfig,
    FluxForVideoClassification,
    FluxViTForPreTraining,
    FluxViTForVideoClassification,
    FluxViTModel,
)
from training.distillation import FluxUMT, common_tokens, distance, draw_subsets, student_counts
from training.teachers import ImageTeacher, VideoTeacher, motion_weights, overlap, spread_layers, to_grid


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
EVERYTHING = 10**6


def clips(frames=4, seed=0):
    return torch.randn(2, frames, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def student(**changes):
    torch.manual_seed(0)
    told = {"alignment_layers": [0, 1], "teacher_hidden_size": 32, "teacher_projection_dim": 16}
    return FluxViTForPreTraining(tiny_config(**{"token_budgets": [16], "token_budget": 16, **told, **changes}))


def teacher(token_budget=12, layers=(0, 1)):
    torch.manual_seed(1)
    return VideoTeacher(FluxViTForVideoClassification(tiny_config()), layers, token_budget)


def loss_of(objective, frozen, video, seeds=None):
    """Of clips that both see alike."""
    return objective(video, frozen(video, (video.shape[1], 2, 2)), seeds).loss


# The teacher ----------------------------------------------------------------------------------------------------------


def test_the_teacher_is_the_official_one(tmp_path):
    choices = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
    convert(GOLDEN / "internvideo2_tiny_checkpoint.pth", tmp_path / "teacher", choices)
    golden = load_file(GOLDEN / "internvideo2_tiny_golden.safetensors")
    layers = sorted(json.loads((GOLDEN / "internvideo2_tiny_golden.json").read_text())["teacher_layer_index"])
    video = (golden["video_uint8"].float() / 255 * 6 - 3).transpose(1, 2)
    model = FluxViTForVideoClassification.from_pretrained(tmp_path / "teacher")
    told = VideoTeacher(model, layers, EVERYTHING)(video, (8, 4, 4))
    torch.testing.assert_close(torch.stack(told.layers), golden["teacher_layers"], **TOLERANCE)
    torch.testing.assert_close(told.pooled, golden["teacher_pooled"], **TOLERANCE)
    torch.testing.assert_close(told.weights, golden["teacher_attention"], **TOLERANCE)
    assert told.class_tokens == 1


def test_a_teacher_stays_as_it_was_loaded():
    frozen, objective = teacher(), FluxUMT(student(), [8, 4], 12)
    frozen.train()
    assert not any(module.training for module in frozen.modules())
    loss_of(objective, frozen, clips()).backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert all(p.grad is not None for p in objective.model.parameters())


def test_a_teacher_without_pooling_attention_counts_by_motion():
    backbone = VideoMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=28, patch_size=14,
        num_frames=4, tubelet_size=1,
    )  # fmt: skip
    config = FluxConfig(backbone_config=backbone, token_budgets=[16], token_budget=16)
    frozen = VideoTeacher(FluxForVideoClassification(config), [0, 1], 12)
    told = frozen(clips(), (4, 2, 2))
    assert told.class_tokens == 0 and told.weights.shape == (2, 12) and (told.weights > 0).all()
    objective = FluxUMT(student(teacher_projection_dim=config.projection_dim), [8], 12)
    assert loss_of(objective, frozen, clips()).isfinite()


def test_motion_counts():
    patches = torch.zeros(1, 4, 3, 2)
    patches[0, 2, 1] = 3.0
    weights = motion_weights(patches, torch.tensor([[0, 4, 7, 10]]))
    assert weights[0, 2] == weights[0, 3] == pytest.approx(18**0.5) and 0 < weights[0, 0] == weights[0, 1] < 1e-6
    assert (motion_weights(patches[:, :1], torch.tensor([[0, 2]])) == 1).all()


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 2], [-1]])
def test_layers_a_teacher_does_not_have(layers):
    with pytest.raises(ValueError, match=r"from 0 to 1, rising, got"):
        teacher(layers=layers)


def test_layers_are_spread_as_published():
    assert spread_layers(40, 6, 3.34) == [23, 26, 29, 33, 36, 39]
    assert spread_layers(12, 6, 1) == [6, 7, 8, 9, 10, 11]
    assert spread_layers(24, 6, 1) == [18, 19, 20, 21, 22, 23]
    for number, interval in ((6, 3.34), (3, 0.3)):
        with pytest.raises(ValueError, match=f"{number} of 12 layers cannot be {interval} apart"):
            spread_layers(12, number, interval)


# Teachers that cut a clip in another way ------------------------------------------------------------------------------


def test_shares_of_overlapping_parts():
    assert overlap(2, 4).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert overlap(3, 2).tolist() == [pytest.approx([2 / 3, 1 / 3, 0]), pytest.approx([0, 1 / 3, 2 / 3])]
    for source, target in ((1, 5), (7, 3), (4, 4)):
        assert overlap(source, target).sum(1).tolist() == pytest.approx([1] * target)
        assert overlap(source, target).sum(0).tolist() == pytest.approx([target / source] * source)


def test_features_on_another_grid():
    volume = torch.arange(2 * 1 * 3.0).reshape(1, 2, 1, 3, 1)
    assert to_grid(volume, (2, 1, 3)).flatten().tolist() == list(range(6))
    assert to_grid(volume, (4, 1, 1)).flatten().tolist() == pytest.approx([1, 1, 4, 4])
    assert to_grid(volume, (1, 2, 3)).flatten().tolist() == pytest.approx([1.5, 2.5, 3.5] * 2)
    seen = torch.randn(2, 3, 4, 5, 2)
    assert to_grid(seen, (1, 1, 1))[:, 0] == pytest.approx(seen.mean((1, 2, 3)))


def test_a_teacher_of_other_patches_is_brought_to_the_students_grid():
    """Its features are those of the whole clip at as many patches a side, each for as many frames as its tubelet."""
    torch.manual_seed(1)
    config = tiny_config(patch_size=8, tubelet_size=2, image_size=16, position_embedding_grid=[2, 2, 2])
    frozen = VideoTeacher(FluxViTForVideoClassification(config), [0, 1], 6)
    kept = torch.tensor([[0, 3, 4, 9, 12, 15], [1, 2, 5, 6, 7, 8]])
    everything = frozen(clips(), (4, 2, 2))
    assert everything.keep_indices is None and everything.layers[0].shape == (2, 16, 32)
    told = everything.at(kept)
    assert told.class_tokens == 0 and torch.equal(told.keep_indices, kept)
    small = torch.nn.functional.interpolate(clips().flatten(0, 1), size=(16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        outputs = frozen.model(
            small.unflatten(0, (2, 4)), token_budget=EVERYTHING, head=0, output_hidden_states=True,
            output_pooler_attentions=True,
        )  # fmt: skip
    for layer, found in enumerate(told.layers):
        states = outputs.hidden_states[layer + 1][:, 1:].unflatten(1, (2, 4)).repeat_interleave(2, dim=1).flatten(1, 2)
        wanted = torch.stack([normalize(states[clip, kept[clip]], dim=-1) for clip in range(2)])
        torch.testing.assert_close(found, wanted, **TOLERANCE)
    attention = outputs.pooler_attentions[0].mean(1)[:, 0, 1:].unflatten(1, (2, 4)).repeat_interleave(2, dim=1)
    wanted = torch.stack([attention.flatten(1, 2)[clip, kept[clip]] for clip in range(2)])
    torch.testing.assert_close(told.weights, wanted, **TOLERANCE)
    assert loss_of(FluxUMT(student(), [6, 3], 6), frozen, clips()).isfinite()
    with pytest.raises(ValueError, match="multiples of 2 frames, got 3"):
        frozen(clips(3), (3, 2, 2))


def test_a_picture_stands_still_for_a_teachers_tubelet():
    config = tiny_config(tubelet_size=2, position_embedding_grid=[2, 2, 2])
    frozen = VideoTeacher(FluxViTForVideoClassification(config), [0, 1], 4)
    picture = clips(1)
    found, wanted = frozen(picture, (1, 2, 2)), frozen(picture.repeat(1, 2, 1, 1, 1), (1, 2, 2))
    assert found.keep_indices is None and wanted.class_tokens == 1  # all four patches of both
    torch.testing.assert_close(found.layers[0], wanted.layers[0][:, 1:], **TOLERANCE)
    torch.testing.assert_close(wanted.pooled, found.pooled, **TOLERANCE)


def test_patches_a_little_smaller_are_others():
    """Of 28 pixels two patches of 13 would be whole ones; the student has two of 14."""
    config = tiny_config(patch_size=13, image_size=26)
    frozen = VideoTeacher(FluxViTForVideoClassification(config), [0], 4)
    told = frozen(clips(), (4, 2, 2))
    assert told.layers[0].shape == (2, 16, 32) and told.class_tokens == 0


IMAGE_ENCODERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
    "dinov2": (Dinov2Model, Dinov2Config),
}


def image_encoder(name):
    kind, config = IMAGE_ENCODERS[name]
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    return kind(config(**sizes, intermediate_size=64) if name != "dinov2" else config(**sizes)).eval()


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_image_encoder_reads_frame_by_frame(name):
    model = image_encoder(name)
    kept = torch.tensor([[0, 5, 10, 15], [3, 4, 8, 13]])
    frozen = ImageTeacher(model, [0, 1], 4)
    told = frozen(clips(), (4, 2, 2)).at(kept)
    assert told.weights is None and told.class_tokens == 0 and frozen.projection_dim == 32
    pooled = []
    for clip in range(2):
        pictures = torch.nn.functional.interpolate(clips()[clip], size=(16, 16), mode="bicubic", antialias=True)
        with torch.no_grad():
            of_frames = [model(picture[None], output_hidden_states=True) for picture in pictures]
        pooled.append(torch.cat([outputs.pooler_output for outputs in of_frames]).mean(0))
        for layer, found in enumerate(told.layers):
            tokens = torch.cat([outputs.hidden_states[layer + 1][0, -4:] for outputs in of_frames])
            torch.testing.assert_close(found[clip], normalize(tokens[kept[clip]], dim=-1), **TOLERANCE)
    torch.testing.assert_close(told.pooled, normalize(torch.stack(pooled), dim=-1), **TOLERANCE)
    objective = FluxUMT(student(teacher_projection_dim=32), [4, 2], 4)
    loss_of(objective, frozen, clips(frames=3)).backward()  # odd numbers of frames too
    assert all(parameter.grad is not None for parameter in objective.model.parameters())


# Subsets --------------------------------------------------------------------------------------------------------------


def test_subsets_lie_within_each_other_and_the_teachers():
    weights = torch.rand(3, 20)
    all_of_them, half, few = draw_subsets(weights, [30, 10, 4], torch.arange(3))
    assert (all_of_them == torch.arange(20)).all()
    for row in range(3):
        assert set(few[row].tolist()) < set(half[row].tolist()) < set(range(20))
        assert half[row].tolist() == sorted(set(half[row].tolist())) and len(few[row]) == 4
    alone = draw_subsets(weights[1:2], [4], torch.tensor([1]))[0]
    assert (alone[0] == few[1]).all()  # whatever the batch
    assert not (draw_subsets(weights, [4], torch.arange(3) + 3)[0] == few).all()


def test_tokens_are_drawn_by_weight():
    weights = torch.tensor([[1.0, 2.0, 7.0]]).expand(20_000, -1)
    [first] = draw_subsets(weights, [1], torch.arange(20_000))
    assert first.flatten().bincount().div(20_000).tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.01)
    [two] = draw_subsets(weights, [2], torch.arange(20_000))  # 0 and 1: 0.1 * 2 / 9 + 0.2 * 1 / 8
    assert (two == torch.tensor([0, 1])).all(1).float().mean().item() == pytest.approx(0.0472, abs=0.005)


def test_students_keep_the_same_shares_of_a_clip_with_fewer_tokens():
    assert student_counts([2048, 1536, 1024], 2048, 2048) == [2048, 1536, 1024]
    assert student_counts([2048, 1536, 1024], 324, 2048) == [324, 243, 162]  # a picture of 252 x 252
    assert student_counts([3000, 4], 100, 2048) == [100, 1]


@torch.no_grad()
def test_the_students_selector_chooses_where_a_teacher_encodes_all():
    """A single frame, all of whose patches are kept, and clips of which a part is."""
    frozen = ImageTeacher(image_encoder("dinov2"), [0, 1], 6)
    model = student(teacher_projection_dim=32).eval()
    for frames, tokens, counts in ((1, 4, [4, 2]), (4, 6, [6, 3])):
        video, seeds = clips(frames), torch.tensor([3, 4])
        patches, _ = model.embed(video)
        [keep_indices] = model.select(patches, [6])
        told = frozen(video, (frames, 2, 2)).at(keep_indices)
        assert keep_indices.shape == (2, tokens)
        losses = []
        for places in draw_subsets(motion_weights(patches, keep_indices), counts, seeds):
            outputs = model(video, keep_indices=keep_indices.gather(1, places))
            pairs = zip(outputs.layer_features, told.layers, strict=True)
            losses += [torch.stack([distance(*common_tokens(*pair, places, 0)) for pair in pairs]).mean()]
            losses[-1] += distance(outputs.pooled_feature, told.pooled)
        found = loss_of(FluxUMT(model, [6, 3], 6), frozen, video, seeds)
        torch.testing.assert_close(found, torch.stack(losses).mean(), **TOLERANCE)


# The loss -------------------------------------------------------------------------------------------------------------


def test_a_distance_by_hand():
    ours, theirs = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert distance(ours, theirs).item() == pytest.approx(1)  # 2 and 0
    places = torch.tensor([[0, 2]])
    told = torch.arange(8.0).reshape(1, 4, 2)
    with_class = common_tokens(torch.zeros(1, 3, 2), told, places, 1)
    assert with_class[0].shape == (1, 3, 2) and with_class[1][0, :, 0].tolist() == [0, 2, 6]
    without = common_tokens(torch.zeros(1, 3, 2), told, places, 0)
    assert without[0].shape == (1, 2, 2) and without[1][0, :, 0].tolist() == [0, 4]


@torch.no_grad()
def test_the_loss_is_that_of_its_parts_computed_one_by_one():
    model, frozen = student().eval(), teacher()
    objective = FluxUMT(model, [12, 6], 12, layer_weight=0.5, pooled_weight=2.0, budget_weights=[1.0, 3.0])
    video, seen = clips(), clips(seed=1)
    told = frozen(seen, (4, 2, 2))
    found = objective(video, told, torch.tensor([3, 4]))
    total = 0.0
    for weight, places in zip([1, 3], draw_subsets(told.weights, [12, 6], torch.tensor([3, 4])), strict=True):
        outputs = model(video, keep_indices=told.keep_indices.gather(1, places))
        distances = []
        for ours, theirs in zip(outputs.layer_features, told.layers, strict=True):
            for clip in range(2):
                wanted = torch.cat([theirs[clip, :1], theirs[clip, 1:][places[clip]]])
                distances += (ours[clip] - wanted).square().sum(-1).tolist()
        pooled = (outputs.pooled_feature - told.pooled).square().sum(-1).mean().item()
        total += weight * (0.5 * sum(distances) / len(distances) + 2 * pooled)
    assert found.loss.item() == pytest.approx(total, rel=1e-5)
    assert found.layer_losses.shape == found.pooled_losses.shape == (2,)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    """Decoders of the identity, LayerNorm left out: the loss of equal features is zero."""
    frozen = teacher()
    model = student(token_budgets=[16, 8, 4], token_budget=8).eval()
    model.fluxvit.load_state_dict(frozen.model.fluxvit.state_dict())
    model.layer_decoders = torch.nn.ModuleList([Same(), Same()])
    model.pooled_decoder = Same()
    torch.nn.init.zeros_(model.decoder_position_embeddings.table)
    # the subset is what the teacher kept: only then are features of one forward those of the other
    assert loss_of(FluxUMT(model, [12], 12), frozen, clips()).item() == pytest.approx(0, abs=1e-5)
    assert loss_of(FluxUMT(model, [4], 12), frozen, clips()).item() > 1e-3


class Same(torch.nn.Module):
    def forward(self, features):
        return normalize(features, dim=-1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budgets": [0]}, "budgets must be a whole number of at least 1, got 0"),
        ({"teacher_tokens": 0}, "teacher_tokens must be a whole number of at least 1, got 0"),
        ({"budget_weights": [1.0]}, r"one for each of \[2048, 1536, 1024\], got \[1.0\]"),
        ({"layer_weight": -1.0}, "layer_weight=-1.0"),
    ],
)
def test_what_cannot_be_distilled_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        FluxUMT(student(), **given)


# The student ----------------------------------------------------------------------------------------------------------


def test_the_student_saves_and_loads_and_others_load_from_it(tmp_path):
    model = student().eval()
    model.save_pretrained(tmp_path / "student")
    again = AutoModelForPreTraining.from_pretrained(tmp_path / "student").eval()
    assert isinstance(again, FluxViTForPreTraining) and again.config.alignment_layers == [0, 1]
    with torch.no_grad():
        ours, theirs = model(clips(), token_budget=6), again(clips(), token_budget=6)
        assert torch.equal(ours.pooled_feature, theirs.pooled_feature) and torch.equal(
            torch.stack(ours.layer_features), torch.stack(theirs.layer_features)
        )
        encoder = FluxViTModel.from_pretrained(tmp_path / "student").eval()
        classifier = FluxViTForVideoClassification.from_pretrained(tmp_path / "student", num_labels=5).eval()
        wanted = model.fluxvit(clips(), token_budget=6)
        for loaded in (encoder, classifier.with_token_budgets([16, 8, 4]).eval()):
            found = loaded(clips(), token_budget=6)
            assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
            assert torch.equal(found.pooler_output, wanted.pooler_output)


@pytest.mark.parametrize("frames", [1, 3, 6])
@torch.no_grad()
def test_any_clip(frames):
    outputs = student()(clips(frames), token_budget=5)
    kept = min(5, frames * 4)
    assert [tuple(layer.shape) for layer in outputs.layer_features] == [(2, 1 + kept, 32)] * 2
    assert torch.allclose(outputs.pooled_feature.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("kept", [3, 16])
@torch.no_grad()
def test_patches_in_any_order(kept):
    model, order = student().eval(), torch.randperm(kept, generator=torch.Generator().manual_seed(0))
    rising = torch.arange(16)[-kept:].expand(2, -1)
    straight, mixed = (model(clips(), keep_indices=indices) for indices in (rising, rising[:, order]))
    for one, other in zip(straight.layer_features, mixed.layer_features, strict=True):
        torch.testing.assert_close(one[:, 1:][:, order], other[:, 1:], **TOLERANCE)
    torch.testing.assert_close(straight.pooled_feature, mixed.pooled_feature, **TOLERANCE)
    with pytest.raises(ValueError, match=r"keep_indices must lie in \[0, 16\)"):
        model(clips(), keep_indices=rising + 1)


def test_a_student_must_know_its_teacher():
    with pytest.raises(ValueError, match=r"\['teacher_hidden_size'\] of the config must be given"):
        student(teacher_hidden_size=None)
    for layers in ([], [1, 0], [2]):
        with pytest.raises(ValueError, match="alignment_layers must be one or more layers from 0 to 1"):
            student(alignment_layers=layers)


def test_decoder_positions_are_not_decayed():
    model = student()
    free = {name for name, p in model.named_parameters() if p.ndim > 1 and not model.takes_weight_decay(name, p)}
    assert free == {
        "decoder_position_embeddings.table",
        "fluxvit.embeddings.cls_token",
        "fluxvit.embeddings.position_embeddings.table",
    }
