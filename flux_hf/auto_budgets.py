# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Budgets that choose themselves: a clip is encoded at few tokens, and at more where the model is not sure.

The steps, and how sure is sure, stand in `config.auto_budgets`; `training.optimize_tokens --auto` calibrates them on
validation clips. All steps look at one clip shape, so that decoding, embedding and scores serve all of them.
Shape letters: B views, V views of a video, N = B / V videos, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .budget_models import TokenBudgetClassifier
from .token_selection import as_count


AUTO = "auto"  # in place of a number of tokens


def as_budgets(name: str, values: Sequence[int | str]) -> list[int | str]:
    """Words for token budgets, such as those of a command line, as whole numbers and "auto".

    Raises:
        ValueError: another word, which the error says of which `name`.
    """
    try:
        return [value if value == AUTO else int(value) for value in values]
    except ValueError as error:
        raise ValueError(f"{name} must be whole numbers or {AUTO!r}, got {values}") from error


def confidence(scores: Tensor, temperature: float) -> Tensor:
    """How sure scores are, once calibrated.

    Args:
        scores: (N, C), the mean over a video's views of the softmax of its logits.
        temperature: Of the budget that they were made at; 1 leaves them as they are.

    Returns:
        (N,) float32 in (0, 1]: the largest share of softmax(log(scores) / temperature), which for a single view is
        softmax(logits / temperature).
    """
    scores = scores.float().clamp_min(torch.finfo(torch.float32).tiny)
    return (scores.log() / temperature).softmax(-1).amax(-1)


def check_one_label(config: Any) -> None:
    """Raises ValueError for a model whose scores do not say how sure it is of one label."""
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"token_budget='auto' is for models of one label a clip, this one's problem_type is {config.problem_type!r}"
        )


@dataclass(frozen=True)
class BudgetLadder:
    """What `token_budget="auto"` goes by.

    Args:
        num_frames, size: The clip at all budgets.
        token_budgets: Rising.
        temperatures: Of each budget.
        thresholds: Of each budget but the last: the confidence from which it suffices.
    """

    num_frames: int
    size: int
    token_budgets: tuple[int, ...]
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]

    @classmethod
    def of(cls, config: Any) -> "BudgetLadder":
        """A checkpoint's.

        Raises:
            ValueError: it has none, or is no model of one label a clip, or keeps what a threshold says.
        """
        check_one_label(config)
        if config.selects_by_threshold:
            raise ValueError(
                f"token_budget='auto' chooses how many tokens are kept, and so does {config.token_selection=}: take one"
            )
        auto = config.auto_budgets
        if auto is None:
            raise ValueError(
                "token_budget='auto' needs a calibrated model, and this one's config has no auto_budgets: "
                "python -m training.optimize_tokens --auto writes them"
            )
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in auto.items()})

    def to_config(self) -> dict[str, Any]:
        """The value of `config.auto_budgets`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def clip(self, num_frames: int | None = None, size: Any = None) -> tuple[int, int]:
        """Frames and size of the clip.

        Raises:
            ValueError: others are given: they would make other confidences.
        """
        for name, given in (("num_frames", num_frames), ("size", size)):
            if given is not None and given != getattr(self, name):
                allowed = f"{self.num_frames} frames of {self.size}x{self.size}"
                raise ValueError(f"token_budget='auto' is calibrated on clips of {allowed}, got {name}={given}")
        return self.num_frames, self.size

    def suffices(self, step: int, scores: Tensor) -> Tensor:
        """Whether videos stop at a step: (N, C) scores there -> (N,) bool. At the last one all do."""
        if step == len(self.thresholds):
            return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        return confidence(scores, self.temperatures[step]) >= self.thresholds[step]

    def stop(self, scores: Sequence[Tensor]) -> Tensor:
        """At which step each video stops: (N, C) scores of every step -> (N,) int64."""
        enough = torch.stack([self.suffices(step, of_step) for step, of_step in enumerate(scores)])
        return enough.long().argmax(0)  # the first of equals

    def tried(self, step: int) -> tuple[int, ...]:
        """The budgets that a video was encoded at which stops there."""
        return self.token_budgets[: step + 1]

    def mean_flops(self, model: TokenBudgetClassifier, shares: Sequence[float], dense_embedding: bool = False) -> float:
        """Multiply-adds of a view on average, of all passes tried, where a share of the videos stops at each step."""
        clip = (self.num_frames, self.size)
        of_steps = [model.flops(*clip, self.tried(step), dense_embedding) for step in range(len(self.token_budgets))]
        return sum(share * flops for share, flops in zip(shares, of_steps, strict=True))


def logits_at_auto_budgets(
    model: TokenBudgetClassifier, pixel_values_videos: Tensor, ladder: BudgetLadder, num_views: int = 1
) -> tuple[Tensor, Tensor]:
    """Logits of each video at the least budget that makes the model sure of it.

    All are embedded and scored once. All views of a video are encoded at a budget before it is decided whether that
    suffices, by the mean of their scores; those of which it does not, and no others, are encoded at the next.

    Args:
        model: FluxViT or Flux.
        pixel_values_videos: (B, T, 3, H, W), the views of a video behind each other.
        ladder: Of the model's config, for clips of this shape.
        num_views: V, of each video.

    Returns:
        Logits (B, C), each of the budget at which its video stopped, by the head trained nearest it; and these budgets,
        (N,) int64.

    Raises:
        ValueError: views that are not whole videos.
    """
    number = len(pixel_values_videos)
    if number % as_count("num_views", num_views):
        raise ValueError(f"{number} views are not whole videos of num_views={num_views}")
    patches, grid = model.embed(pixel_values_videos)
    kept = model.select(patches, ladder.token_budgets)
    left = torch.arange(number, device=patches.device)
    logits, budgets = None, torch.zeros(number // num_views, dtype=torch.int64, device=patches.device)
    for step, (budget, keep_indices) in enumerate(zip(ladder.token_budgets, kept, strict=True)):
        some = (patches, grid) if len(left) == number else model.take_clips(patches, grid, left)
        hidden_states, _ = model.encode(*some, keep_indices[left])
        head = model.resolve_head(keep_indices.shape[1])
        of_step = model.classify(model.pool(hidden_states, head)[0], head)
        logits = of_step if logits is None else logits.index_copy(0, left, of_step)
        videos = left[::num_views] // num_views
        budgets = budgets.index_fill(0, videos, budget)
        scores = of_step.float().softmax(-1).unflatten(0, (-1, num_views)).mean(1)
        left = left.unflatten(0, (-1, num_views))[~ladder.suffices(step, scores)].flatten()
        if not len(left):
            break
    return logits, budgets


__all__ = ["AUTO", "BudgetLadder", "as_budgets", "check_one_label", "confidence", "logits_at_auto_budgets"]
