"""Clips that keep what moved more than a threshold get what each would get alone."""

import pytest
import torch
from flux_models import clip, shared_model
from test_auto_budgets import AUTO, tiny_fluxvit
from video_files import encode

from flux_hf import FluxConfig, FluxViTConfig, FluxViTVideoClassificationPipeline, FluxViTVideoProcessor
from flux_hf.protocol import logits_at_budgets, logits_clip_by_clip
from flux_hf.token_selection import frame_difference_scores


def model_and_clips(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Five clips, some of which move much and some little, and a model for which most keep other numbers of tokens."""
    side = 28 if name == "fluxvit" else 32
    model = tiny_fluxvit() if name == "fluxvit" else shared_model(name)
    videos = clip(5, 8, 3, side, side) * torch.tensor([0.2, 0.9, 0.5, 1.1, 0.4])[:, None, None, None, None]
    with torch.no_grad():
        scores = frame_difference_scores(model.embed(videos)[0])
    model.config.token_selection, model.config.token_threshold = "threshold", scores.median().item()
    return model, videos


@pytest.mark.parametrize("name", ["fluxvit", "videomae", "vivit", "vjepa2"])
@torch.no_grad()
def test_each_clip_has_the_logits_that_it_has_alone(name):
    model, videos = model_and_clips(name)
    try:
        every = model.count_kept(8, *videos.shape[-2:], 1000)
        [(free, kept)] = logits_clip_by_clip(model, videos, [1000])
        least, *_, most = sorted(kept.tolist())
        assert len(set(kept.tolist())) >= 3 and least < most - 1 < every
        [_, (_, bounded)] = logits_clip_by_clip(model, videos, [1000, most - 1])
        assert bounded.tolist() == [min(number, most - 1) for number in kept.tolist()]
        for video, number, own in zip(videos, kept.tolist(), free, strict=True):
            alone = model(video[None], token_budget=1000)
            assert alone.keep_indices.shape[1] == number
            torch.testing.assert_close(own, alone.logits[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(logits_at_budgets(model, videos, [1000])[0], free)
        with pytest.raises(ValueError, match="give them one by one"):
            model(videos, token_budget=1000)
    finally:
        model.config.token_selection, model.config.token_threshold = "group_dynamic", None


def test_the_pipeline_takes_such_clips_in_batches(tmp_path):
    videos = []
    for index, (frames, size) in enumerate(((20, (64, 48)), (9, (64, 48)), (31, (48, 64)), (14, (64, 48)))):
        (tmp_path / f"{index}.mp4").write_bytes(encode("libx264", frames, size=size, first=index * 50))
        videos.append(str(tmp_path / f"{index}.mp4"))
    processor = FluxViTVideoProcessor(num_frames=8, size=28)
    pixels = processor(videos, num_frames=8, num_clips=2, return_tensors="pt")["pixel_values_videos"]
    model = tiny_fluxvit()
    scores = frame_difference_scores(model.embed(pixels)[0]).flatten()
    model = tiny_fluxvit(token_selection="threshold", token_threshold=scores.quantile(0.6).item())
    classify = FluxViTVideoClassificationPipeline(model=model, video_processor=processor, device="cpu")
    with torch.no_grad():
        views = [model(view[None], token_budget=24) for view in pixels]
    assert len({view.keep_indices.shape[1] for view in views}) > 2
    wanted = torch.cat([view.logits for view in views]).softmax(-1).unflatten(0, (4, 2)).mean(1)
    for batch_size in (1, 3):
        found = classify(videos, num_clips=2, token_budget=24, batch_size=batch_size, top_k=1)
        assert [one["score"] for [one] in found] == pytest.approx(wanted.amax(1).tolist(), abs=1e-5)
        assert [one["label"] for [one] in found] == [f"LABEL_{label}" for label in wanted.argmax(1).tolist()]
    windows = classify(videos[2], window=0.4, token_budget=24, batch_size=3, top_k=1)
    alone = classify(videos[2], window=0.4, token_budget=24, top_k=1)
    assert len(windows) > 2 and [one["labels"][0]["label"] for one in windows] == [
        one["labels"][0]["label"] for one in alone
    ]


@pytest.mark.parametrize("kind", [FluxViTConfig, FluxConfig])
def test_a_threshold_stays_through_json(kind, tmp_path):
    kind(token_selection="threshold", token_threshold=2).save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).token_threshold == 2 and kind().token_threshold is None
    with pytest.raises(ValueError, match="token_threshold must be given for token_selection='threshold', got None"):
        kind(token_selection="threshold")


def test_one_way_to_choose_how_many():
    processor = FluxViTVideoProcessor(num_frames=8, size=28)
    model = tiny_fluxvit(auto_budgets=AUTO, token_selection="threshold", token_threshold=1.0)
    classify = FluxViTVideoClassificationPipeline(model=model, video_processor=processor, device="cpu")
    with pytest.raises(ValueError, match="'auto' chooses how many tokens are kept, and so does.*'threshold'"):
        classify("none.mp4", token_budget="auto")
