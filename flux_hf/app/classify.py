# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Classifies a file as the pipeline does, and keeps what the page shows beside: kept patches, times, budgets."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..loading import load_classifier, load_processor
from ..pipelines import FluxViTVideoClassificationPipeline
from ..video_decoding import decode_video
from .choices import (
    Choice,
    Cost,
    Limits,
    VideoFacts,
    check_choice,
    check_file,
    check_memory,
    cost_of,
    planned_choice,
)


TOP_K = 5
PICTURE_SIDE = 168  # pixels that a frame of a picture is enlarged to, at least
WINDOW_BATCH = 4
TIMED_RUNS, TIMED_SECONDS = 5, 0.5  # a forward pass is run so often, or until it took so long, where times are compared

Tell = Callable[[float, str], Any]  # share done, what is being done


def tell_nobody(share: float, what: str) -> None:
    """A `Tell` without a listener."""


@dataclass(frozen=True)
class Result:
    """A video at one budget.

    Args:
        choice, cost: What was asked for, and its cost.
        labels: Label -> score of the `TOP_K` best, the best first.
        frames: (T, 3, n * H, n * W) uint8: the view in the middle as the model saw it, n times as large.
        patch_size, tubelet_size: Of `frames`.
        keep_indices: (K,) patches of that view that were encoded.
        milliseconds: In the model, all views together.
        play_rate: Frames a second at which the view lasts as long as the video, within 2 and 16.
    """

    choice: Choice
    cost: Cost
    labels: dict[str, float]
    frames: torch.Tensor
    patch_size: int
    tubelet_size: int
    keep_indices: torch.Tensor
    milliseconds: float
    play_rate: int


def load(
    source: str | os.PathLike, device: str | None = None, revision: str | None = None
) -> FluxViTVideoClassificationPipeline:
    """The pipeline of a folder or Hub id (at a revision), on a GPU if there is one and no `device` is named."""
    options = {} if revision is None or os.path.isdir(source) else {"revision": revision}
    model = load_classifier(source, **options).eval()
    processor = load_processor(source, model.config, **options)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return FluxViTVideoClassificationPipeline(model, video_processor=processor, device=device)


def classify_file(
    classify: FluxViTVideoClassificationPipeline,
    path: str | os.PathLike,
    choice: Choice,
    limits: Limits,
    tell: Tell = tell_nobody,
) -> Result:
    """Labels, kept patches and time of a file; scores equal the pipeline's.

    Raises:
        ValueError: the choice or the file is not allowed; `VideoDecodeError` for a file that cannot be read.
    """
    [result] = _results(classify, path, [choice], limits, tell)
    return result


def compare_budgets(
    classify: FluxViTVideoClassificationPipeline,
    path: str | os.PathLike,
    choice: Choice,
    token_budgets: Sequence[int],
    limits: Limits,
    planned: bool = False,
    tell: Tell = tell_nobody,
) -> list[Result]:
    """`classify_file` at each budget. Times are medians of a few runs, after one that pays for lazy set-up.

    Args:
        planned: Whether each budget gets the frames and size that the checkpoint's token plan holds for it.
    """
    choices = [replace(choice, token_budget=budget) for budget in token_budgets]
    if planned:
        choices = [planned_choice(classify.model.config, each) for each in choices]
    return _results(classify, path, choices, limits, tell, timed=True)


def _results(
    classify: FluxViTVideoClassificationPipeline,
    path: Any,
    choices: list[Choice],
    limits: Limits,
    tell: Tell,
    timed: bool = False,
) -> list[Result]:
    for choice in choices:
        check_choice(classify.model, choice, limits)
    tell(0.0, "reading the video")
    facts = check_file(path, limits)
    views: dict[Choice, tuple] = {}
    results = []
    for number, choice in enumerate(choices):
        clip = replace(choice, token_budget=1)  # budgets share frames and views
        if clip not in views:
            check_memory(facts, choice.num_frames * choice.num_clips, limits)
            views = {clip: _views(classify, path, choice)}
            if timed:
                _run(classify, choice, facts, views[clip][0][:1], *views[clip][1:])
        share = number / len(choices)
        tell(share, f"a budget of {choice.token_budget}")
        results.append(_run(classify, choice, facts, *views[clip], timed=timed))
    return results


def _views(
    classify: FluxViTVideoClassificationPipeline, path: Any, choice: Choice
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """All views (V, T, 3, H, W), the frames of the middle one to draw on, enlarged, and by how much."""
    processor = classify.video_processor

    def sampler(metadata):
        return processor.sample_frames(metadata, num_frames=choice.num_frames, num_clips=choice.num_clips)

    frames, _ = decode_video(path, sampler)
    clips = frames.unflatten(0, (choice.num_clips, choice.num_frames)).permute(0, 1, 4, 2, 3)
    options = {"num_clips": 1, "do_sample_frames": False, "num_crops": choice.num_crops, "return_tensors": "pt"}

    def cut(clip: torch.Tensor, size: int, **changes: Any) -> torch.Tensor:
        return processor(clip, size=size, **options, **changes)["pixel_values_videos"]

    views = torch.cat([cut(clip, choice.size) for clip in clips])
    scale = max(1, -(-PICTURE_SIDE // choice.size))
    drawn = cut(clips[choice.num_clips // 2], choice.size * scale, do_rescale=False, do_normalize=False)
    drawn = drawn[choice.num_crops // 2].round().clamp(0, 255).to(torch.uint8)
    return views.to(classify.dtype), drawn, scale


def _run(
    classify: FluxViTVideoClassificationPipeline,
    choice: Choice,
    facts: VideoFacts,
    views: torch.Tensor,
    drawn: torch.Tensor,
    scale: int,
    timed: bool = False,
) -> Result:
    """The model on each view by itself, so that many need no more memory than one."""
    model, logits, kept, seconds = classify.model, [], [], 0.0
    for view in views:
        pixels, runs = view[None].to(classify.device), []
        while not runs or (timed and len(runs) < TIMED_RUNS and sum(runs) < TIMED_SECONDS):
            begin = _now(classify.device)
            with torch.no_grad():
                outputs = model(pixels, token_budget=choice.token_budget)
            runs.append(_now(classify.device) - begin)
        seconds += statistics.median(runs)
        logits.append(outputs.logits.cpu())
        kept.append(outputs.keep_indices[0].cpu())
    best = classify.postprocess({"logits": torch.cat(logits)}, top_k=TOP_K)
    middle = min(choice.num_clips // 2 * choice.num_crops + choice.num_crops // 2, len(kept) - 1)
    return Result(
        choice=choice,
        cost=cost_of(model, choice),
        labels={each["label"]: each["score"] for each in best},
        frames=drawn,
        patch_size=model.config.patch_size * scale,
        tubelet_size=model.config.tubelet_size,
        keep_indices=kept[middle],
        milliseconds=1000 * seconds,
        play_rate=round(min(max(choice.num_frames / max(facts.seconds, 0.1), 2), 16)),
    )


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def label_windows(
    classify: FluxViTVideoClassificationPipeline,
    path: str | os.PathLike,
    choice: Choice,
    window: float,
    stride: float,
    limits: Limits,
    tell: Tell = tell_nobody,
) -> Iterator[dict[str, Any]]:
    """The pipeline's windows of a file as they come: `start`, `end` (seconds) and `labels`; one clip each.

    Raises:
        ValueError: as `classify_file`, or more windows than are allowed; damage is told behind the windows before it.
    """
    check_choice(classify.model, choice, limits)
    tell(0.0, "reading the video")
    facts = check_file(path, limits)
    if not (window > 0 and stride > 0):
        raise ValueError(f"window and stride must be above 0 seconds, got {window} and {stride}")
    if facts.seconds / stride > limits.windows:
        raise ValueError(f"a stride of {stride:g} s makes more than {limits.windows} windows: choose a longer one")
    # frames of windows that overlap are held as often as they are shown
    check_memory(facts, choice.num_frames * (WINDOW_BATCH * 3 + 1 + int(window / stride)), limits)
    found = classify.iter_windows(
        str(path),
        window=window,
        stride=stride,
        batch_size=WINDOW_BATCH,
        token_budget=choice.token_budget,
        num_frames=choice.num_frames,
        size=choice.size,
        num_crops=choice.num_crops,
        top_k=TOP_K,
    )
    for each in found:
        tell(min(each["end"] / max(facts.seconds, 0.1), 1.0), f"{each['end']:.1f} of {facts.seconds:.1f} s")
        yield each
