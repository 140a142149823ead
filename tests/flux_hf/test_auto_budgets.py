"""Budgets that choose themselves: each clip gets what its own budget says, and no more than that is computed."""

import pytest
import torch
from flux_models import clip, shared_model
from torch import nn
from video_files import encode

from flux_hf import (
    FluxConfig,
    FluxViTConfig,
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
)
from flux_hf.auto_budgets import BudgetLadder, as_budgets, confidence, logits_at_auto_budgets
from flux_hf.flux_backbones import FluxTubeletProjection
from flux_hf.token_selection import TOKEN_SELECTORS, TokenSelector


AUTO = {
    "num_frames": 8,
    "size": 28,
    "token_budgets": [4, 8, 32],
    "temperatures": [1.5, 1.0, 0.5],
    "thresholds": [0.9, 0.5],
}


def tiny_fluxvit(**changes) -> FluxViTForVideoClassification:
    """8 frames of 2x2 patches: 32 tokens."""
    torch.manual_seed(0)
    config = FluxViTConfig(
        **{
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
            **{"num_pooling_heads": 2, "projection_dim": 16, "position_embedding_grid": [8, 2, 2]},
            **{"layer_scale_init_value": 1.0, "initializer_range": 0.4, "image_size": 28, "num_frames": 8},
            **{"token_budgets": [32, 8, 4], "token_budget": 8, "num_labels": 5, **changes},
        }
    )
    return FluxViTForVideoClassification(config).eval()


def model_and_clips(name: str) -> tuple[nn.Module, torch.Tensor, tuple[int, int, int]]:
    """A model, eight clips for it, and three of its budgets."""
    if name == "fluxvit":
        return tiny_fluxvit(), clip(8, 8, 3, 28, 28), (4, 8, 32)
    return shared_model(name), clip(8, 8, 3, 32, 32), (16, 32, 64)


@torch.no_grad()
def direct(model, videos, budgets, num_views=1) -> list[torch.Tensor]:
    """Scores (videos, C) at each budget, by a whole forward pass each."""
    logits = [model(videos, token_budget=budget).logits for budget in budgets]
    return [of_budget.softmax(-1).unflatten(0, (-1, num_views)).mean(1) for of_budget in logits]


def mixed_ladder(model, videos, budgets, num_views=1) -> BudgetLadder:
    """Thresholds in the middle of what comes: half of the videos stop at each step."""
    temperatures, thresholds, left = (2.0, 0.7, 1.0), [], torch.arange(len(videos) // num_views)
    for temperature, scores in zip(temperatures[:-1], direct(model, videos, budgets[:-1], num_views), strict=True):
        sure = confidence(scores[left], temperature)
        thresholds.append(float(sure.sort().values[len(sure) // 2 - 1 : len(sure) // 2 + 1].mean()))
        left = left[sure < thresholds[-1]]
    return BudgetLadder(videos.shape[1], videos.shape[-1], budgets, temperatures, tuple(thresholds))


def count_calls(modules: list[nn.Module]) -> tuple[list[int], list]:
    """The number of clips at each call of modules, which fills up as they are called; and the hooks."""
    calls: list[int] = []
    hooks = [module.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0]))) for module in modules]
    return calls, hooks


@pytest.mark.parametrize("name", ["fluxvit", "videomae", "vivit", "vjepa2"])
@torch.no_grad()
def test_each_clip_has_the_logits_of_the_budget_at_which_it_stops(name):
    model, videos, budgets = model_and_clips(name)
    ladder = mixed_ladder(model, videos, budgets)
    layers = model.base_model.encoder.layer if name == "fluxvit" else None
    if layers is None:
        layers = model.flux.taken_apart.layers(model.flux.backbone)
    embeddings = [m for m in model.modules() if isinstance(m, FluxTubeletProjection)]
    embedded, hooks = count_calls(embeddings or [model.base_model.embeddings])
    encoded, more = count_calls([layers[0]])
    logits, chosen = logits_at_auto_budgets(model, videos, ladder)
    for hook in (*hooks, *more):
        hook.remove()

    assert embedded == [8] and encoded == [8, 4, 2]  # the embedding once, and then only clips that are not sure
    assert sorted(chosen.tolist()) == [budgets[0]] * 4 + [budgets[1]] * 2 + [budgets[2]] * 2
    for video, budget, own in zip(videos, chosen.tolist(), logits, strict=True):
        torch.testing.assert_close(own, model(video[None], token_budget=budget).logits[0], atol=1e-5, rtol=1e-5)
    scores = direct(model, videos, budgets)
    assert [budgets[step] for step in ladder.stop(scores).tolist()] == chosen.tolist()
    for step in range(2):  # and by hand: the first budget of which the calibrated confidence suffices
        sure = (scores[step].log() / ladder.temperatures[step]).softmax(-1).max(-1).values
        stopped = (chosen == budgets[step])[chosen >= budgets[step]]
        assert torch.equal(sure[chosen >= budgets[step]] >= ladder.thresholds[step], stopped)


def test_tokens_are_scored_once(monkeypatch):
    calls = []

    def counted(features, num_groups):
        calls.append(len(features))
        return TOKEN_SELECTORS["group_dynamic"].scores(features, num_groups)

    monkeypatch.setitem(TOKEN_SELECTORS, "counted", TokenSelector(counted))
    model = tiny_fluxvit(token_selection="counted")
    ladder = BudgetLadder(8, 28, (4, 8, 16), (1.0, 1.0, 1.0), (2.0, 2.0))
    logits, _ = logits_at_auto_budgets(model, clip(3, 8, 3, 28, 28), ladder)
    assert calls == [3] and logits.shape == (3, 5)


@torch.no_grad()
def test_thresholds_at_their_ends():
    model, videos, budgets = model_and_clips("fluxvit")
    encoded, _ = count_calls([model.base_model.encoder.layer[0]])
    for threshold, budget, passes in ((0.0, 4, [8]), (1.01, 32, [8, 8, 8])):
        ladder = BudgetLadder(8, 28, budgets, (1.0, 1.0, 1.0), (threshold, threshold))
        encoded.clear()
        logits, chosen = logits_at_auto_budgets(model, videos, ladder)
        assert chosen.tolist() == [budget] * 8 and encoded == passes
        torch.testing.assert_close(logits, model(videos, token_budget=budget).logits, atol=1e-5, rtol=1e-5)
    middle = mixed_ladder(model, videos, budgets).thresholds[0]
    stopping = []
    for threshold in (0.0, middle, middle + 0.05, 1.01):  # the higher, the fewer stop
        ladder = BudgetLadder(8, 28, (4, 32), (2.0, 1.0), (threshold,))
        stopping.append(int((logits_at_auto_budgets(model, videos, ladder)[1] == 4).sum()))
    assert stopping == sorted(stopping, reverse=True) and (stopping[0], stopping[1], stopping[-1]) == (8, 4, 0)
    only = BudgetLadder(8, 28, (8,), (1.0,), ())
    assert logits_at_auto_budgets(model, videos, only)[1].tolist() == [8] * 8


@torch.no_grad()
def test_a_batch_of_one_and_mixed_batches_are_the_same():
    model, videos, budgets = model_and_clips("fluxvit")
    ladder = mixed_ladder(model, videos, budgets)
    logits, chosen = logits_at_auto_budgets(model, videos, ladder)
    parts = [[5], [0, 3], [2, 4, 6, 7, 1]]
    for part in parts:
        own, budget = logits_at_auto_budgets(model, videos[part], ladder)
        assert budget.tolist() == chosen[part].tolist()
        torch.testing.assert_close(own, logits[part], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_views_decide_together():
    model, videos, budgets = model_and_clips("fluxvit")
    ladder = mixed_ladder(model, videos, budgets, num_views=2)
    logits, chosen = logits_at_auto_budgets(model, videos, ladder, num_views=2)
    assert sorted(chosen.tolist()) == [4, 4, 8, 32] and logits.shape == (8, 5)
    for video, budget in enumerate(chosen.tolist()):
        views = slice(2 * video, 2 * video + 2)
        own = model(videos[views], token_budget=budget).logits
        torch.testing.assert_close(logits[views], own, atol=1e-5, rtol=1e-5)
    alone = confidence(direct(model, videos, budgets)[0], ladder.temperatures[0]) >= ladder.thresholds[0]
    assert (alone[::2] != alone[1::2]).any()  # some views would have gone other ways by themselves
    with pytest.raises(ValueError, match="num_views=3"):
        logits_at_auto_budgets(model, videos, ladder, num_views=3)


def test_confidence_is_that_of_tempered_logits():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
    own = confidence(logits.softmax(-1), 4.0)
    torch.testing.assert_close(own[:2], (logits[:2] / 4).softmax(-1).amax(-1))
    assert own[1] == pytest.approx(1 / 3) and 0.99 < own[2] <= 1  # a share of 0 is no NaN


def test_passes_one_after_another_cost_one_embedding():
    model = tiny_fluxvit()
    patch, [few, some, all_] = 32 * 3 * 14 * 14, [model.flops(8, 28, budget) for budget in (4, 8, 32)]
    assert model.flops(8, 28, [4, 8, 32]) == few + some + all_ - (4 + 8) * patch
    dense = model.flops(8, 28, [4, 8], dense_embedding=True)
    assert dense == few + some - (4 + 8) * patch + 32 * patch
    assert model.flops(8, 28, [8]) == some


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FluxViTConfig, FluxConfig])
def test_automatic_budgets_stay_through_json(kind, tmp_path):
    clip_of = {"num_frames": 16, "size": 224}  # a multiple of 14 and 16
    given = {**AUTO, **clip_of, "token_budgets": (4, 8, 32), "temperatures": (1, 1.5, 0.5)}
    config = kind(auto_budgets=given)
    config.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    wanted = {**AUTO, **clip_of, "temperatures": [1.0, 1.5, 0.5]}
    assert config.auto_budgets == again.auto_budgets == BudgetLadder.of(again).to_config() == wanted
    assert kind().auto_budgets is None


@pytest.mark.parametrize(
    "changes",
    [
        {"token_budgets": [8, 4, 32]},
        {"token_budgets": [4, 8]},
        {"token_budgets": [0, 8, 32]},
        {"token_budgets": [4, 8.0, 32]},
        {"token_budgets": 4},
        {"temperatures": [1.0, 0.0, 1.0]},
        {"temperatures": [1.0, "warm", 1.0]},
        {"thresholds": [0.5]},
        {"thresholds": [0.5, -0.1]},
        {"thresholds": [0.5, float("nan")]},
        {"num_frames": 0},
        {"size": 30},
        {"speed": 1},
    ],
)
def test_automatic_budgets_that_cannot_be(changes):
    with pytest.raises(ValueError, match="auto_budgets"):
        FluxViTConfig(auto_budgets={**AUTO, **changes})
    with pytest.raises(ValueError, match="auto_budgets"):
        FluxViTConfig(auto_budgets={"num_frames": 8})


def test_other_heads_are_not_calibrated():
    assert tiny_fluxvit(auto_budgets=AUTO).with_token_budgets([16, 8]).config.auto_budgets is None
    assert as_budgets("--token_budgets", ["auto", "12"]) == ["auto", 12]
    with pytest.raises(ValueError, match="--token_budgets.*'many'"):
        as_budgets("--token_budgets", ["many"])


# --- the pipeline -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    for index, frames in enumerate((20, 31, 9, 25, 14, 40)):
        (folder / f"{index}.mp4").write_bytes(encode("libx264", frames, size=(64, 48), first=index * 50))
    return [str(folder / f"{index}.mp4") for index in range(6)]


def classifier(videos: list[str], **views) -> tuple[FluxViTVideoClassificationPipeline, list[dict]]:
    """A pipeline whose automatic budgets are mixed for these videos, and what it should say of each."""
    # the default clip is another one than the ladder's
    processor = FluxViTVideoProcessor(num_frames=4, size=42)
    pixels = processor(videos, num_frames=8, size=28, return_tensors="pt", **views)["pixel_values_videos"]
    plain, num_views = tiny_fluxvit(), len(pixels) // len(videos)
    ladder = mixed_ladder(plain, pixels, (4, 8, 32), num_views)
    model = tiny_fluxvit(auto_budgets=ladder.to_config())
    scores = torch.stack(direct(plain, pixels, (4, 8, 32), num_views))
    steps = ladder.stop(list(scores))
    assert len(set(steps.tolist())) == 3
    wanted = [
        {"score": pytest.approx(of_video.max().item(), abs=1e-5), "label": f"LABEL_{of_video.argmax()}"}
        | {"token_budget": (4, 8, 32)[step]}
        for of_video, step in zip(scores[steps, torch.arange(len(videos))], steps.tolist(), strict=True)
    ]
    return FluxViTVideoClassificationPipeline(model=model, video_processor=processor, device="cpu"), wanted


@pytest.mark.parametrize("views", [{}, {"num_clips": 2, "num_crops": 3}])
def test_the_pipeline_says_which_budget_each_video_used(videos, views):
    classify, wanted = classifier(videos, **views)
    for batch_size in (1, 4, 6):
        assert [
            best for [best] in classify(videos, token_budget="auto", top_k=1, batch_size=batch_size, **views)
        ] == wanted
    assert classify(videos[3], token_budget="auto", top_k=1, **views) == wanted[3:4]
    assert len(classify(videos[0], token_budget="auto", **views)) == 5
    assert "token_budget" not in classify(videos[0], token_budget=8, top_k=1)[0]


def test_windows_choose_for_themselves(videos):
    classify, _ = classifier(videos)
    windows = classify(videos[5], window=0.4, stride=0.2, token_budget="auto", top_k=1, batch_size=3)
    alone = classify(videos[5], window=0.4, stride=0.2, token_budget="auto", top_k=1)
    assert len(windows) > 3 and {window["labels"][0]["token_budget"] for window in windows} <= {4, 8, 32}
    for one, other in zip(windows, alone, strict=True):
        assert one["labels"][0]["token_budget"] == other["labels"][0]["token_budget"]
        assert one["labels"][0]["score"] == pytest.approx(other["labels"][0]["score"], abs=1e-5)


def test_what_the_pipeline_cannot_do(videos):
    processor = FluxViTVideoProcessor(num_frames=8, size=28)
    plain = FluxViTVideoClassificationPipeline(model=tiny_fluxvit(), video_processor=processor, device="cpu")
    with pytest.raises(ValueError, match="training.optimize_tokens --auto"):
        plain(videos[0], token_budget="auto")
    with pytest.raises(ValueError, match="'most'"):
        plain(videos[0], token_budget="most")
    classify, _ = classifier(videos)
    for clip_of in ({"num_frames": 4}, {"size": 42}):
        with pytest.raises(ValueError, match="8 frames of 28x28, got"):
            classify(videos[0], token_budget="auto", **clip_of)
    assert classify(videos[0], token_budget="auto", num_frames=8, size=28) == classify(videos[0], token_budget="auto")
