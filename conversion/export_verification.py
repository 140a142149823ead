# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether an exported folder does what its model does: the same kept tokens, the same logits, also where scores tie."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flux_hf.exported import ExportedClassifier
from flux_hf.token_selection import TOKEN_SELECTORS


TOLERANCE = 1e-4  # of logits in float32; of the largest logit, where that exceeds 1
# Scores of two runtimes differ in their last bits. A random clip's may lie nearer to each other than that without being
# equal, where either of two tokens may be kept; so clips are drawn until no such two decide what is kept.
CLEAR = 1e-5
MAX_DRAWS = 100


@torch.no_grad()
def verify(model: PreTrainedModel, exported: ExportedClassifier, token_budget: int, exact: bool) -> dict[str, float]:
    """Compares an exported program with its model, on random clips and on clips full of ties, alone and in batches.

    Args:
        model: The model, in float32.
        exported: The folder, loaded.
        token_budget: Which of its programs.
        exact: Whether logits must be the model's to `TOLERANCE`, too.

    Returns:
        Clips compared, the largest difference of their logits and the largest logit.

    Raises:
        ValueError: other tokens are kept, or logits differ by more, or are not finite.
    """
    about = exported.models[token_budget]
    clip = (about["num_frames"], model.config.num_channels, about["height"], about["width"])
    count, difference, largest = 0, 0.0, 0.0
    for kind, clips in verification_clips(model, token_budget, clip):
        wanted = model(clips, token_budget=token_budget)
        got = exported(clips, token_budget=token_budget)
        where = f"{about['file']} on {kind} clips, batch {len(clips)}"
        if not torch.equal(got.keep_indices, wanted.keep_indices):
            rows = zip(got.keep_indices.tolist(), wanted.keep_indices.tolist(), strict=True)
            others = sum(len(set(mine) - set(models)) for mine, models in rows)
            raise ValueError(f"{where}: {others} of {wanted.keep_indices.numel()} kept tokens are not the model's")
        if not torch.isfinite(got.logits).all():
            raise ValueError(f"{where}: logits are not finite")
        count += len(clips)
        difference = max(difference, (got.logits - wanted.logits).abs().max().item())
        largest = max(largest, wanted.logits.abs().max().item())
    if exact and difference > TOLERANCE * max(1.0, largest):
        raise ValueError(f"{about['file']}: logits differ from the model's by {difference:.1e}, allowed is {TOLERANCE}")
    return {"clips": count, "logits_difference": difference, "largest_logit": largest}


def verification_clips(
    model: PreTrainedModel, token_budget: int, clip: tuple[int, int, int, int]
) -> Iterator[tuple[str, Tensor]]:
    """Kinds of clips and (B, T, C, H, W) of each.

    Ties must be ties in any arithmetic: of patches that are the same to the bit, not of ones that come out the same.
    """
    random = clear_clips(model, token_budget, clip)
    yield "random", random
    yield "random", random[:1]
    generator = torch.Generator().manual_seed(0)
    frames, channels, height, width = clip
    yield "static", torch.randn(1, 1, *clip[1:], generator=generator).expand(1, *clip).contiguous()
    tubelet, patch = model.config.tubelet_size, model.config.patch_size
    grid = (frames // tubelet, height // patch, width // patch)
    pair = torch.randn(2, tubelet, channels, patch, patch, generator=generator)
    for kind, share in (("two-valued", 0.5), ("hardly moving", 0.05)):
        chosen = pair[(torch.rand(2, *grid, generator=generator) < share).long()]  # (B, T', h, w, t, C, p, p)
        yield kind, chosen.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(2, *clip)


def clear_clips(model: PreTrainedModel, token_budget: int, clip: tuple[int, int, int, int]) -> Tensor:
    """Two random clips whose kept tokens do not hang on rounding.

    Raises:
        ValueError: there are none among `MAX_DRAWS`.
    """
    for seed in range(MAX_DRAWS):
        clips = torch.randn(2, *clip, generator=torch.Generator().manual_seed(seed))
        patches, _ = model.embed(clips)
        if border_gap(model, patches, token_budget) > CLEAR:
            return clips
    raise ValueError(f"scores of random clips lie within {CLEAR} of each other at token_budget={token_budget}: {clip}")


def border_gap(model: PreTrainedModel, patches: Tensor, token_budget: int) -> float:
    """How near to each other scores come that decide what is kept, as a share of them: in each clip and group the last
    kept one's to the first dropped one's, or to the nearest other one where these two are equal, as two frames of a
    group always are; the smallest. Infinite where nothing is selected by score."""
    selector = TOKEN_SELECTORS[model.config.token_selection]
    _, frames, per_frame, _ = patches.shape
    if token_budget >= frames * per_frame or (selector.needs_motion and frames == 1):
        return float("inf")
    ranked = selector.scores(patches, model.config.num_token_groups).sort(dim=-1, descending=True).values
    gaps = [float("inf")]
    for group, share in enumerate(selector.shares(token_budget, *ranked.shape[1:])):
        for scores in ranked[:, group] if 0 < share < ranked.shape[-1] else ():
            last, first = scores[share - 1], scores[share]
            near = scores[scores != last] if last == first else first[None]
            if len(near):
                gaps.append(((near - last).abs().min() / last).item())
    return min(gaps)
