# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What may be asked of the page, what it costs, and which files it takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..pipelines import FluxViTVideoClassificationPipeline
from ..token_selection import as_count
from ..video_decoding import open_source
from ..video_streams import probe


MAX_CLIPS, CROPS = 4, (1, 3)
ALL_TOKENS = 1 << 40  # a budget above every clip


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for, so that the others are served too.

    Args:
        file_megabytes: Of an upload or link, in 10^6 bytes.
        seconds: Length of a video.
        megapixels: Of a frame, in 10^6; 4096x2304 by default.
        num_frames: Of a view.
        size: Side of a view, in pixels.
        kept_tokens: Encoded at once: attention grows with their square.
        decoded_gigabytes: Memory of a video's sampled frames, in 10^9 bytes.
        windows: Of a time line.
    """

    file_megabytes: float = 200
    seconds: float = 600
    megapixels: float = 9.44
    num_frames: int = 64
    size: int = 448
    kept_tokens: int = 8192
    decoded_gigabytes: float = 2
    windows: int = 1000


@dataclass(frozen=True)
class Choice:
    """How a video is classified: arguments of the pipeline, `size` the side of a square crop."""

    num_frames: int
    size: int
    token_budget: int
    num_clips: int = 1
    num_crops: int = 1

    @property
    def num_views(self) -> int:
        return self.num_clips * self.num_crops


@dataclass(frozen=True)
class Cost:
    """What a choice costs.

    Args:
        kept_tokens, tokens: Encoded, and there to choose from, of a view.
        gflops: Multiply-adds of all views in 10^9, as the paper counts.
        dense_gflops: With the embedding of the dropped patches, which runs too.
    """

    kept_tokens: int
    tokens: int
    gflops: float
    dense_gflops: float


@dataclass(frozen=True)
class VideoFacts:
    """What is told of a file: seconds, sides in pixels, frames a second (None where unknown), megabytes."""

    seconds: float
    width: int
    height: int
    fps: float | None
    megabytes: float

    def __str__(self) -> str:
        rate = f", {self.fps:.4g} frames a second" if self.fps else ""
        size = f"{self.megabytes:.1f} MB" if self.megabytes >= 1 else f"{1000 * self.megabytes:.0f} kB"
        return f"{self.seconds:.1f} s, {self.width}x{self.height}{rate}, {size}"


def default_choice(classify: FluxViTVideoClassificationPipeline) -> Choice:
    """The clip and budget that the checkpoint takes where nothing is said."""
    config = classify.model.config
    num_frames = getattr(classify.video_processor, "num_frames", None) or config.num_frames
    budget = config.token_budget or max(config.token_budgets)
    return planned_choice(config, Choice(num_frames, min(config.image_height_width), budget))


def planned_choice(config, choice: Choice) -> Choice:
    """The choice with the frames and size that the checkpoint's token plan holds for its budget; itself without."""
    clip = (config.token_plan or {}).get(choice.token_budget)
    return choice if clip is None else replace(choice, num_frames=clip[0], size=clip[1])


def check_choice(model: PreTrainedModel, choice: Choice, limits: Limits) -> None:
    """Raises ValueError for what the model cannot do, or the limits forbid."""
    config = model.config
    for name, step, most in (
        ("num_frames", config.tubelet_size, limits.num_frames),
        ("size", config.patch_size, limits.size),
    ):
        value = as_count(name, getattr(choice, name))
        if value % step or value > most:
            raise ValueError(f"{name} must be a multiple of {step} up to {most}, got {value}")
    if not 1 <= choice.num_clips <= MAX_CLIPS or choice.num_crops not in CROPS:
        views = f"{choice.num_clips}x{choice.num_crops}"
        raise ValueError(f"views must be 1 to {MAX_CLIPS} clips of {' or '.join(map(str, CROPS))} crops, got {views}")
    kept = cost_of(model, choice).kept_tokens
    if kept > limits.kept_tokens:
        raise ValueError(f"at most {limits.kept_tokens} tokens can be kept here, got {kept}: choose a smaller budget")


def cost_of(model: PreTrainedModel, choice: Choice) -> Cost:
    """What a choice costs on a model."""
    budget = as_count("token_budget", choice.token_budget)
    clip = (choice.num_frames, choice.size)
    grid = (choice.num_frames, choice.size, choice.size)
    per_view = [model.flops(*clip, budget, dense_embedding=dense) / 1e9 for dense in (False, True)]
    kept, tokens = model.count_kept(*grid, budget), model.count_kept(*grid, ALL_TOKENS)
    return Cost(kept, tokens, *(choice.num_views * gflops for gflops in per_view))


def describe_cost(model: PreTrainedModel, choice: Choice) -> str:
    """A line of Markdown."""
    cost = cost_of(model, choice)
    views = f" in {choice.num_views} views" if choice.num_views > 1 else ""
    kept = f"**{cost.kept_tokens:,}** of {cost.tokens:,} tokens ({cost.kept_tokens / cost.tokens:.0%})"
    return f"{kept}, **{cost.gflops:.3g} GFLOPs**{views}; {cost.dense_gflops:.3g} with the embedding of dropped patches"


def parse_budgets(text: str, most: int = 6) -> list[int]:
    """Token budgets of a text such as "2048, 1024 512", the largest first, each once.

    Raises:
        ValueError: something in it is no whole number above 0, or there are none or more than `most`.
    """
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and 0 < int(word) < ALL_TOKENS)]
    if wrong:
        raise ValueError(f"budgets must be whole numbers above 0, got {wrong[0][:20]!r}")
    budgets = sorted({int(word) for word in words}, reverse=True)
    if not 1 <= len(budgets) <= most:
        raise ValueError(f"give 1 to {most} budgets, got {len(budgets)}")
    return budgets


def suggested_budgets(token_budgets: Sequence[int]) -> list[int]:
    """The trained budgets, and half the smallest."""
    smallest = min(token_budgets)
    return sorted({*token_budgets, max(smallest // 2, 1)}, reverse=True)


def check_file(path: str | os.PathLike, limits: Limits) -> VideoFacts:
    """Looks over a video file; decodes its first frame only.

    Raises:
        VideoDecodeError: it is no video, or its container is damaged. ValueError: it exceeds the limits.
    """
    megabytes = os.path.getsize(path) / 1e6
    if megabytes > limits.file_megabytes:
        raise ValueError(f"the file has {megabytes:.0f} MB, at most {limits.file_megabytes:g} are taken")
    stream = probe(open_source(path))
    frames = stream.frame_count or stream.likely_frame_count
    seconds = stream.shown_seconds or stream.duration or (frames / stream.fps if stream.fps else 0.0)
    if seconds > limits.seconds:
        raise ValueError(f"the video lasts {seconds:.0f} s, at most {limits.seconds:g} are taken")
    if stream.width * stream.height > limits.megapixels * 1e6:
        sides = f"{stream.width}x{stream.height}"
        raise ValueError(f"the video's frames are {sides}, at most {limits.megapixels:g} megapixels are taken")
    return VideoFacts(seconds, stream.width, stream.height, stream.fps, megabytes)


def check_memory(facts: VideoFacts, num_frames: int, limits: Limits) -> None:
    """Raises ValueError where `num_frames` decoded frames would take more memory than is allowed."""
    gigabytes = num_frames * facts.width * facts.height * 3 / 1e9
    if gigabytes > limits.decoded_gigabytes:
        raise ValueError(
            f"{num_frames} frames of {facts.width}x{facts.height} take {gigabytes:.1f} GB, at most "
            f"{limits.decoded_gigabytes:g} are allowed: choose fewer frames or views, or a smaller video"
        )
