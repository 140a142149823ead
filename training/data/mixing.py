# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Mixup and cutmix of a batch of clips, and label smoothing.

One draw a batch; clip i is mixed with the clip at its place from the end. Source: official code ("batch" mode).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MixConfig:
    """How batches are mixed; the defaults leave them as they are.

    Args:
        mixup_alpha: Of the Beta draw of mixup's share; 0 turns mixup off. 0.8 as published.
        cutmix_alpha: The same for cutmix. 1.0 as published.
        prob: Probability that a batch is mixed at all.
        switch_prob: Probability of cutmix where both are on.
        label_smoothing: s: a label becomes 1 - s + s / C for its class and s / C for the others.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("prob", "switch_prob", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


class MixupCutmix:
    """Turns clips and labels into mixed clips and soft targets.

    Args:
        num_labels: C.
        config: How to mix.
    """

    def __init__(self, num_labels: int, config: MixConfig):
        self.num_labels, self.config = num_labels, config

    def __call__(self, videos: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            videos: (B, T, 3, H, W), left as they are.
            labels: (B,) int64, or (B, C) float of 0 and 1 for several labels a clip.
            generator: On the CPU; everything drawn comes from it.

        Returns:
            Videos of the same shape and targets (B, C) float32.

        Raises:
            ValueError: labels of another shape than the videos and C allow.
        """
        targets = self._targets(videos, labels)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        config = self.config
        if not (config.mixup_alpha or config.cutmix_alpha) or rng.random() >= config.prob:
            return videos, targets
        cut = config.cutmix_alpha and (not config.mixup_alpha or rng.random() < config.switch_prob)
        share = rng.beta(*[config.cutmix_alpha if cut else config.mixup_alpha] * 2)
        if cut:
            videos, share = _paste(videos, share, rng)
        else:
            videos = torch.lerp(videos.flip(0), videos, share)
        return videos, torch.lerp(targets.flip(0), targets, share)

    def _targets(self, videos: Tensor, labels: Tensor) -> Tensor:
        if labels.shape not in [(len(videos),), (len(videos), self.num_labels)]:
            allowed = f"({len(videos)},) or ({len(videos)}, {self.num_labels})"
            raise ValueError(f"labels must have shape {allowed}, got {tuple(labels.shape)}")
        targets = nn.functional.one_hot(labels, self.num_labels) if labels.ndim == 1 else labels
        smoothing = self.config.label_smoothing
        if labels.ndim == 2:  # each label is a yes or no of its own
            return targets.float() * (1 - smoothing) + smoothing / 2
        return targets.float() * (1 - smoothing) + smoothing / self.num_labels


def _paste(videos: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Puts a box of the partner into every clip, in all frames alike; also returns the share of own pixels left."""
    height, width = videos.shape[-2:]
    side = (1 - share) ** 0.5
    ends = []
    for length in (height, width):
        center, half = rng.integers(length), int(length * side) // 2
        ends.append((max(center - half, 0), min(center + half, length)))
    (top, bottom), (left, right) = ends
    mixed = videos.clone()
    mixed[..., top:bottom, left:right] = videos.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
