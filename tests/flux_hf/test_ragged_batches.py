"""Lists of clips of different shapes: one batch from the first layer on, and the same as each clip alone."""

import pytest
import torch
from flux_models import NAMES, flux_model, with_random_weights

from flux_hf import (
    FluxForVideoClassification,
    FluxModel,
    FluxViTConfig,
    FluxViTForPreTraining,
    FluxViTForVideoClassification,
    FluxViTModel,
)


# Frames, rows and columns of patches: one frame, two, an odd number, a shape that comes again behind others, all kept.
SHAPES = [(8, 4, 4), (1, 5, 4), (2, 4, 5), (5, 3, 4), (8, 4, 4), (7, 5, 2), (4, 1, 5)]
BUDGET = 20  # all of the second and the last
FORMS = ("fluxvit", *NAMES)
ANY_FORM = pytest.mark.parametrize("form", FORMS)


def make_model(
    form: str, attention: str = "sdpa", **options
) -> FluxViTForVideoClassification | FluxForVideoClassification:
    if form != "fluxvit":
        return flux_model(form, attention=attention, **options)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    heads = {"num_pooling_heads": 4, "projection_dim": 32, "num_labels": 5, "token_budgets": [96, 64, 32]}
    config = FluxViTConfig(**sizes, **heads, position_embedding_grid=[8, 4, 4], **{"token_budget": 64, **options})
    return with_random_weights(FluxViTForVideoClassification._from_config(config, attn_implementation=attention))


def clip(form: str, frames: int, rows: int, columns: int, views: int | None = None, seed: int = 0) -> torch.Tensor:
    """A clip of so many patches in time (frames), down and across."""
    tubelet, patch = (1, 14) if form == "fluxvit" else (2, 8)
    shape = (frames * tubelet, 3, rows * patch, columns * patch)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(() if views is None else (views,)), *shape, generator=generator)


def mixed_clips(form: str) -> list[torch.Tensor]:
    return [clip(form, *shape, seed=seed) for seed, shape in enumerate(SHAPES)]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@ANY_FORM
@torch.no_grad()
def test_a_list_is_as_its_clips_one_by_one(form, attention):
    model, clips = make_model(form, attention), mixed_clips(form)
    asked = {"output_hidden_states": True, "output_pooler_attentions": attention == "eager"}
    asked |= {"output_attentions": attention == "eager", "token_budget": BUDGET}
    together = model(clips, **asked)
    assert together.logits.shape == (len(clips), 5) and together.keep_indices.shape == (len(clips), BUDGET)
    assert len(together.hidden_states) == 4 and len(together.attentions or ()) == (3 if attention == "eager" else 0)
    for row, alone in enumerate(model(one[None], **asked) for one in clips):
        assert torch.equal(together.keep_indices[row], alone.keep_indices[0])
        for name in ("logits", "pooler_output", "last_hidden_state"):
            assert_same(together[name][row], alone[name][0])
        for name in ("hidden_states", "attentions", "pooler_attentions"):
            for ours, theirs in zip(getattr(together, name) or (), getattr(alone, name) or (), strict=True):
                assert_same(ours[row], theirs[0])
    assert together.logits.std(dim=0).min() > 1e-3  # other clips, other logits


@ANY_FORM
@torch.no_grad()
def test_layers_run_once_and_each_shape_is_embedded_once(form):
    model, clips, seen = make_model(form), mixed_clips(form), {"layers": [], "embeddings": []}
    base = model.base_model
    layers = base.encoder.layer if form == "fluxvit" else base.taken_apart.layers(base.backbone)
    for part, module in (("layers", layers[0]), ("embeddings", base.get_input_embeddings())):
        module.register_forward_pre_hook(lambda _, args, part=part: seen[part].append(tuple(args[0].shape)))
    model(clips, token_budget=BUDGET)
    classes = 1 if form in ("fluxvit", "vivit") else 0
    assert seen["layers"] == [(len(clips), classes + BUDGET, model.config.hidden_size)]
    assert [shape[0] for shape in seen["embeddings"]] == [2, 1, 1, 1, 1, 1]  # the first shape is there twice
    assert [shape[1:] for shape in seen["embeddings"]] == list(dict.fromkeys(tuple(one.shape) for one in clips))


@ANY_FORM
@torch.no_grad()
def test_views_follow_each_other(form):
    model = make_model(form)
    clips = [
        clip(form, 4, 3, 4, views=2),
        clip(form, 3, 4, 4),
        clip(form, 4, 3, 4, views=3, seed=1),
        clip(form, 2, 4, 4),
    ]
    rows = [*clips[0], clips[1], *clips[2], clips[3]]
    together = model(tuple(clips), token_budget=BUDGET)
    assert together.logits.shape == (7, 5)
    for found, keep_indices, one in zip(together.logits, together.keep_indices, rows, strict=True):
        alone = model(one[None], token_budget=BUDGET)
        assert_same(found, alone.logits[0])
        assert torch.equal(keep_indices, alone.keep_indices[0])


@ANY_FORM
@torch.no_grad()
def test_a_list_of_one_shape_is_a_tensor(form):
    """Also where the budget exceeds its tokens: as many are kept of each."""
    model, video = make_model(form), torch.stack([clip(form, 3, 4, 5, seed=seed) for seed in range(3)])
    for budget in (BUDGET, 10_000):
        expected = model(video, token_budget=budget)
        for clips in (list(video), [video], [video[:2], video[2]]):
            found = model(clips, token_budget=budget)
            assert torch.equal(found.logits, expected.logits)
            assert torch.equal(found.keep_indices, expected.keep_indices)
        assert_same(model([video[0]], token_budget=budget).logits[0], expected.logits[0])


@ANY_FORM
def test_gradients_are_those_of_the_clips_one_by_one(form):
    clips, labels, gradients, losses = mixed_clips(form), torch.arange(len(SHAPES)) % 5, [], []
    for together in (True, False):
        model = make_model(form).train()
        videos = [one.clone().requires_grad_() for one in clips]
        if together:
            loss = model(videos, token_budget=BUDGET, head=1, labels=labels).loss
        else:
            pairs = zip(videos, labels, strict=True)
            alone = [model(one[None], token_budget=BUDGET, head=1, labels=label[None]).loss for one, label in pairs]
            loss = torch.stack(alone).mean()
        loss.backward()
        losses.append(loss.detach())
        of_model = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        gradients.append({**of_model, **{f"clip {index}": one.grad for index, one in enumerate(videos)}})
    assert_same(losses[0], losses[1])
    assert gradients[0].keys() == gradients[1].keys()
    assert all(gradients[0][f"clip {index}"].abs().max() > 0 for index in range(len(clips)))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name} {text}"
        )


@ANY_FORM
@torch.no_grad()
def test_given_indices_are_each_clips_own_in_any_order(form):
    model, clips = make_model(form), mixed_clips(form)
    generator = torch.Generator().manual_seed(0)
    tokens = [frames * rows * columns for frames, rows, columns in SHAPES]
    given = torch.stack([torch.randperm(count, generator=generator)[:BUDGET] for count in tokens])
    together = model(clips, keep_indices=given)
    assert torch.equal(together.keep_indices, given)
    for row, one in enumerate(clips):
        alone = model(one[None], keep_indices=given[row : row + 1])
        assert_same(together.last_hidden_state[row], alone.last_hidden_state[0])
        assert_same(together.logits[row], alone.logits[0])


@pytest.mark.parametrize("cls", [FluxViTModel, FluxModel])
@torch.no_grad()
def test_bare_models_and_the_default_budget(cls):
    form = "fluxvit" if cls is FluxViTModel else "vjepa2"
    classifier = make_model(form)
    classifier.config.token_budget = BUDGET
    outputs = classifier.base_model(mixed_clips(form))
    assert type(classifier.base_model) is cls and outputs.keep_indices.shape == (len(SHAPES), BUDGET)
    assert torch.equal(outputs.pooler_output, classifier(mixed_clips(form)).pooler_output)


@torch.no_grad()
def test_an_image_among_clips_fills_a_tubelet_of_vjepa2():
    model, image, video = make_model("vjepa2"), clip("vjepa2", 1, 4, 5)[:1], clip("vjepa2", 3, 4, 4)
    together = model([image, video], token_budget=BUDGET)
    for row, one in enumerate((image, video)):
        assert_same(together.logits[row], model(one[None], token_budget=BUDGET).logits[0])
    assert model.count_kept(1, 32, 40, 100) == 20


@ANY_FORM
@torch.no_grad()
def test_autocast_keeps_the_same_tokens(form):
    model, clips = make_model(form), mixed_clips(form)
    expected = model(clips, token_budget=BUDGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(clips, token_budget=BUDGET)
    assert torch.equal(found.keep_indices, expected.keep_indices)
    half = model.to(torch.bfloat16)([one.bfloat16() for one in clips], token_budget=BUDGET)
    assert half.logits.dtype == half.last_hidden_state.dtype == torch.bfloat16


@torch.no_grad()
def test_a_compiled_model_takes_lists():
    torch._dynamo.reset()
    model, clips = make_model("fluxvit"), mixed_clips("fluxvit")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(clips, token_budget=BUDGET).logits, model(clips, token_budget=BUDGET).logits)


@pytest.mark.parametrize("method", ["group_dynamic", "group_dynamic_official", "dynamic_l1", "random", "tube"])
@torch.no_grad()
def test_count_kept_is_what_is_kept(method):
    model = make_model("fluxvit", token_selection=method)
    for frames, rows, columns in SHAPES:
        for budget in (None, 7, BUDGET, 64, 1000):
            kept = model(clip("fluxvit", frames, rows, columns)[None], token_budget=budget).keep_indices.shape[1]
            assert model.count_kept(frames, 14 * rows, 14 * columns, budget) == kept
    with pytest.raises(ValueError, match="token_budget must be a whole number of at least 1, got 0"):
        model.count_kept(8, 56, 56, 0)


@pytest.mark.parametrize(
    ("shapes", "budget", "message"),
    [
        (SHAPES, 21, "at token_budget=21 .* clip 1 has only 20: the largest token_budget for this list is 20"),
        (SHAPES, None, "at token_budget=64 .* clip 1 has only 20: the largest token_budget for this list is 20"),
        ([(8, 4, 4), (2, 1, 5), (8, 4, 5)], 10_000, "clip 1 has only 10: the largest token_budget for this list is 10"),
        ([(8, 4, 4)], 0, "token_budget must be a whole number of at least 1, got 0"),
    ],
)
def test_clips_that_keep_other_numbers_are_refused(shapes, budget, message):
    model = make_model("fluxvit")
    with pytest.raises(ValueError, match=message):
        model([clip("fluxvit", *shape) for shape in shapes], token_budget=budget)


def test_a_model_that_keeps_all_wants_a_budget():
    with pytest.raises(ValueError, match="token_budget=None .* clip 1 has only 20"):
        make_model("fluxvit", token_budget=None)(mixed_clips("fluxvit"))


def test_a_selection_that_does_not_keep_the_budget_is_told():
    model = make_model("fluxvit", token_selection="group_dynamic_official")
    clips = [clip("fluxvit", 8, 3, 3), clip("fluxvit", 5, 3, 3)]
    kept = [model(one[None], token_budget=19).keep_indices.shape[1] for one in clips]
    assert kept[0] != kept[1]
    with pytest.raises(ValueError, match=rf"token_selection='group_dynamic_official' keeps \[{kept[0]}, {kept[1]}\]"):
        model(clips, token_budget=19)


@pytest.mark.parametrize(
    ("clips", "arguments", "message"),
    [
        ([], {}, "at least one clip, got an empty list"),
        ([torch.zeros(4, 3, 56, 56), torch.zeros(3, 56, 56)], {}, r"got shape \(3, 56, 56\) for clip 1"),
        ([torch.zeros(4, 3, 56, 56), "clip.mp4"], {}, "got str for clip 1"),
        (
            [torch.zeros(4, 3, 56, 56), torch.zeros(4, 3, 57, 56)],
            {},
            r"clips \[1\] of the list.*multiples of 14.*57x56",
        ),
        ([torch.zeros(4, 3, 56, 56), torch.zeros(4, 1, 56, 56)], {}, r"clips \[1\] of the list.*3 channels"),
        ([torch.zeros(4, 3, 56, 56), torch.zeros(0, 3, 56, 56)], {}, r"clips \[1\] of the list.*frames.*0"),
        (
            [torch.zeros(4, 3, 56, 56), torch.zeros(1, 3, 56, 56)],
            {"keep_indices": torch.tensor([[0, 63], [0, 16]])},
            r"clips \[1\] of the list: keep_indices must lie in \[0, 16\), got 0 to 16",
        ),
        (
            [torch.zeros(4, 3, 56, 56), torch.zeros(2, 1, 3, 56, 56)],
            {"keep_indices": torch.zeros(2, 4, dtype=torch.long)},
            r"keep_indices must be \(batch=3, .*got shape \(2, 4\)",
        ),
        ([torch.zeros(4, 3, 56, 56)], {"keep_indices": [[0, 1]]}, "keep_indices must be a tensor .*got list"),
        ([torch.zeros(4, 3, 56, 56)], {"token_budget": 8, "head": 3}, "head must be an index from 0 to 2"),
    ],
)
def test_errors_name_what_is_wrong(clips, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model("fluxvit")(clips, **arguments)


def test_pretraining_takes_tensors_and_says_so():
    teacher = {"alignment_layers": [2], "teacher_hidden_size": 16, "teacher_projection_dim": 8}
    model = FluxViTForPreTraining(make_model("fluxvit", **teacher).config)
    with pytest.raises(ValueError, match="must be a tensor .* got a list"):
        model(mixed_clips("fluxvit"))
