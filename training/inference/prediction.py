# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of many clips at many points (frames, size, token budget), the same on any number of processes; metrics.

A clip is decoded once for all points and views, in a DataLoader worker, which also resizes and crops. Pixels travel as
bytes; the process that runs the model picks the frames of each view from them and normalises. Both halves are the
video processor's own work, so that a point's views are those of the pipeline and of the official evaluation.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.token_selection import as_count
from flux_hf.video_decoding import sample_frame_indices
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..data.reader import READ_ERRORS, Clip, describe_failure
from ..data.sampling import ClipShape


Forward = Callable[[Tensor, int | None], Tensor]

PADDING = -1  # stands for a clip where a process has run out of them
MULTI_LABEL = "multi_label_classification"


# Points --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalPoint:
    """A way to look at a video: `num_frames` frames of `size` x `size` pixels, `token_budget` of their tokens encoded.

    A `token_budget` of None is the model's default. Written `8x224@2048`, or `8x224`.

    Raises:
        ValueError: a value below 1 or not whole.
    """

    num_frames: int
    size: int
    token_budget: int | None = None

    def __post_init__(self):
        for name in ("num_frames", "size", "token_budget"):
            if name != "token_budget" or self.token_budget is not None:
                as_count(name, getattr(self, name))

    @classmethod
    def parse(cls, text: str) -> "EvalPoint":
        """The point that `str` would write as `text`. Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+))?", text)
        if match is None:
            raise ValueError(f"a point is written FRAMESxSIZE@BUDGET, such as 8x224@2048, got {text!r}")
        return cls(*(None if number is None else int(number) for number in match.groups()))

    def __str__(self) -> str:
        budget = "" if self.token_budget is None else f"@{self.token_budget}"
        return f"{self.num_frames}x{self.size}{budget}"

    def dense_tokens(self, config: FluxViTConfig) -> int:
        """Tokens before selection.

        Raises:
            ValueError: frames that are not whole tubelets of the model, or a size that is not whole patches.
        """
        if self.num_frames % config.tubelet_size:
            raise ValueError(f"{self}: frames must be multiples of tubelet_size={config.tubelet_size}")
        if self.size % config.patch_size:
            raise ValueError(f"{self}: the size must be a multiple of patch_size={config.patch_size}")
        return ClipShape(self.num_frames, self.size).num_tokens(config.patch_size, config.tubelet_size)

    def kept_tokens(self, config: FluxViTConfig) -> int:
        """Tokens that the model encodes; raises as `dense_tokens`."""
        budget = config.token_budget if self.token_budget is None else self.token_budget
        dense = self.dense_tokens(config)
        return dense if budget is None else min(budget, dense)


def default_shape(config: FluxViTConfig, processor: FluxViTVideoProcessor) -> ClipShape:
    """The clip that the pipeline samples where nothing is said. Raises ValueError if its crop is not square."""
    crop = dict(processor.crop_size)
    if crop["height"] != crop["width"]:
        raise ValueError(f"clips are square here, and the checkpoint's crop is {crop}: give a size")
    return ClipShape(processor.num_frames or config.num_frames, crop["height"])


def resolve_point(
    config: FluxViTConfig,
    processor: FluxViTVideoProcessor,
    num_frames: int | None = None,
    size: int | None = None,
    token_budget: int | None = None,
) -> EvalPoint:
    """The point that the pipeline would use: what is given, else the plan's for the budget, else the default clip's.

    Raises:
        ValueError: a value out of range, or one that the model's tubelets or patches do not divide.
    """
    planned = (config.token_plan or {}).get(token_budget)
    if num_frames is None and size is None and planned is not None:
        num_frames, size = planned
    if num_frames is None:
        num_frames = processor.num_frames or config.num_frames
    if size is None:
        size = default_shape(config, processor).size
    point = EvalPoint(num_frames, size, token_budget)
    point.dense_tokens(config)
    return point


# Views ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ClipViews:
    """What a worker makes of one clip; empty for one that could not be decoded, and for padding."""

    pixels: dict[int, Tensor] = field(default_factory=dict)  # size -> (num_crops, U, 3, size, size) uint8
    positions: dict[ClipShape, np.ndarray] = field(default_factory=dict)  # (num_clips, T), which of the U frames
    failure: tuple[str, str] | None = None  # name, reason


class _ViewDataset(Dataset):
    """Decodes each clip once and makes its crops at every size; a frame that several views show is there once."""

    def __init__(
        self,
        clips: Sequence[Clip],
        processor: FluxViTVideoProcessor,
        shapes: Sequence[ClipShape],
        num_clips: int,
        num_crops: int,
    ):
        self.clips, self.processor, self.num_clips, self.num_crops = clips, processor, num_clips, num_crops
        self.frame_counts: dict[int, list[int]] = defaultdict(list)  # size -> numbers of frames asked for at it
        for shape in shapes:
            self.frame_counts[shape.size].append(shape.num_frames)

    def __getitem__(self, index: int) -> _ClipViews:
        if index == PADDING:
            return _ClipViews()
        clip, chosen, wanted = self.clips[index], {}, np.empty(0, dtype=np.int64)

        def sampler(total_frames: int) -> np.ndarray:  # called again if the file promised too many frames
            nonlocal wanted
            for count in {count for counts in self.frame_counts.values() for count in counts}:
                chosen[count] = sample_frame_indices(total_frames, count, self.num_clips)
            wanted = _union(chosen.values())
            return wanted

        try:
            frames = clip.read(sampler)
        except READ_ERRORS as error:
            return _ClipViews(failure=(clip.name, describe_failure(error)))
        pixels, positions = {}, {}
        for size, counts in self.frame_counts.items():
            shown = _union(chosen[count] for count in counts)
            pixels[size] = self._crops(frames[torch.from_numpy(np.searchsorted(wanted, shown))], size)
            for count in counts:
                positions[ClipShape(count, size)] = np.searchsorted(shown, chosen[count])
        return _ClipViews(pixels, positions)

    def _crops(self, frames: Tensor, size: int) -> Tensor:
        """(U, 3, H, W) -> (num_crops, U, 3, size, size), both uint8: a resize of whole levels gives whole levels."""
        crops = self.processor(
            frames,
            size=size,
            num_clips=1,
            num_crops=self.num_crops,
            do_sample_frames=False,
            do_resize=True,
            do_center_crop=True,
            keep_aspect_ratio=False,
            do_rescale=False,
            do_normalize=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        return crops["pixel_values_videos"].to(torch.uint8)


def _union(indices) -> np.ndarray:
    return np.unique(np.concatenate([part.reshape(-1) for part in indices]))


def _normalize(videos: Tensor, processor: FluxViTVideoProcessor) -> Tensor:
    """(B, T, 3, S, S) uint8 -> what the processor gives the model for them, float32, on the same device."""
    values = processor(
        videos,
        num_clips=1,
        num_crops=1,
        do_sample_frames=False,
        do_resize=False,
        do_center_crop=False,
        keep_aspect_ratio=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    return values["pixel_values_videos"]


# Scores --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """Scores of clips at points, the same on every process."""

    scores: Tensor  # (points, clips, num_labels) float32 on the CPU; NaN where a clip could not be decoded
    failures: list[tuple[str, str]]  # (name, reason) of those clips, in their order

    @property
    def decoded(self) -> Tensor:
        """(clips,) bool: which clips have scores."""
        return ~self.scores[0, :, 0].isnan()


@torch.no_grad()
def predict_clips(
    forward: Forward,
    processor: FluxViTVideoProcessor,
    clips: Sequence[Clip],
    points: Sequence[EvalPoint],
    accelerator: Accelerator,
    num_clips: int = 1,
    num_crops: int = 1,
    batch_size: int = 8,
    num_workers: int = 0,
    multi_label: bool = False,
    show_progress: bool = False,
) -> Predictions:
    """Scores every clip once at every point: the mean over its views of each view's softmax.

    Process r takes the clips r, r + world, ...; where some have one clip fewer they run a blank one, whose scores are
    dropped, so that all processes call `forward` equally often with equal shapes (sharded models hang otherwise).
    Nothing here draws from the global random generators.

    Args:
        forward: (B, T, 3, S, S) float32 on the accelerator's device, token budget or None -> logits (B, num_labels).
            In evaluation mode: that is the caller's to set.
        processor: Makes the views; always square crops, whatever its own settings.
        clips: Read by `Clip.read`.
        points: Clips are decoded once for all of them; points that differ in the budget alone share their views.
        accelerator: Whose processes share the work. Every one of them must call this.
        num_clips: Temporal views of each clip.
        num_crops: Spatial views of each temporal view.
        batch_size: Views in a forward pass.
        num_workers: DataLoader workers of each process.
        multi_label: Sigmoid in place of the softmax.
        show_progress: A bar on the main process.

    Raises:
        ValueError: no clips, no points, or a count below 1.
        FloatingPointError: the model gives scores that are not numbers.
    """
    if not clips or not points:
        raise ValueError(f"at least one clip and one point are needed, got {len(clips)} and {len(points)}")
    num_views = as_count("num_clips", num_clips) * as_count("num_crops", num_crops)
    as_count("batch_size", batch_size)
    shapes = list(dict.fromkeys(ClipShape(point.num_frames, point.size) for point in points))
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = list(range(rank, len(clips), world))
    mine += [PADDING] * (math.ceil(len(clips) / world) - len(mine))
    loader = DataLoader(
        _ViewDataset(clips, processor, shapes, num_clips, num_crops),
        batch_size=max(1, batch_size // num_views),
        sampler=mine,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # else it takes a number from the global one, and a resumed run would differ
    )
    activation = torch.sigmoid if multi_label else _softmax
    scores, failures = [], []
    for batch in tqdm(loader, disable=not (show_progress and accelerator.is_main_process), unit="batch"):
        failures += [clip.failure for clip in batch]
        scores.append(
            _score_batch(forward, processor, batch, points, num_views, batch_size, activation, accelerator.device)
        )
    own = (mine, torch.cat(scores, dim=1).numpy(), failures)
    return _merge(gather_object([own]), clips)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _score_batch(
    forward: Forward,
    processor: FluxViTVideoProcessor,
    batch: list[_ClipViews],
    points: Sequence[EvalPoint],
    num_views: int,
    batch_size: int,
    activation: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """(points, clips of the batch, num_labels) float32 on the CPU; padding and failed clips run as blank ones."""
    pixels = [{size: crops.to(device) for size, crops in clip.pixels.items()} for clip in batch]
    of_shape: dict[ClipShape, list[int]] = defaultdict(list)
    for index, point in enumerate(points):
        of_shape[ClipShape(point.num_frames, point.size)].append(index)
    scores: list[list[Tensor]] = [[] for _ in points]
    for shape, members in of_shape.items():
        blank = torch.zeros((num_views, shape.num_frames, 3, shape.size, shape.size), dtype=torch.uint8, device=device)
        views = [
            _pick_views(crops[shape.size], clip.positions[shape]) if crops else blank
            for clip, crops in zip(batch, pixels, strict=True)
        ]
        for part in torch.cat(views).split(batch_size):
            values = _normalize(part, processor)
            for index in members:
                scores[index].append(activation(forward(values, points[index].token_budget).float()))
    return torch.stack([torch.cat(parts).unflatten(0, (-1, num_views)).mean(1) for parts in scores]).cpu()


def _pick_views(crops: Tensor, positions: np.ndarray) -> Tensor:
    """(num_crops, U, 3, S, S), (num_clips, T) -> (num_clips * num_crops, T, 3, S, S), clips outer, crops inner."""
    return crops[:, torch.from_numpy(positions).to(crops.device)].transpose(0, 1).flatten(0, 1)


def _merge(parts: list[tuple[list[int], np.ndarray, list]], clips: Sequence[Clip]) -> Predictions:
    """Puts together what each process has: (clip numbers, scores of these, failure or None of each)."""
    num_points, _, num_labels = parts[0][1].shape
    scores = torch.full((num_points, len(clips), num_labels), math.nan)
    failures = {}
    for indices, own, own_failures in parts:
        for position, (index, failure) in enumerate(zip(indices, own_failures, strict=True)):
            if failure is not None:
                failures[index] = failure
            elif index != PADDING:
                scores[:, index] = torch.from_numpy(own[:, position])
    broken = scores.isnan().any(-1).any(0)
    broken[list(failures)] = False
    if broken.any():  # on all processes alike; NaN must not pass for a clip that could not be decoded
        first = clips[int(broken.nonzero()[0])].name
        raise FloatingPointError(f"the model's scores of {int(broken.sum())} clips are not numbers, first of {first}")
    return Predictions(scores, [failures[index] for index in sorted(failures)])


# Labels and metrics --------------------------------------------------------------------------------------------------


def label_targets(clips: Sequence[Clip], config: FluxViTConfig) -> Tensor:
    """What the model should say: (clips,) int64, or (clips, num_labels) float32 of 0 and 1 for a multi-label model.

    A label is one of the model's names, or an index into them where no name reads like that.

    Raises:
        ValueError: labels the model does not have, a clip without one, or several for a model that gives one.
    """
    multi_label = config.problem_type == MULTI_LABEL
    unlabelled = [clip.name for clip in clips if clip.label is None]
    if unlabelled:
        raise ValueError(f"every clip needs a label, {len(unlabelled)} have none, the first of them {unlabelled[0]!r}")
    names = [clip.label if isinstance(clip.label, tuple) else (clip.label,) for clip in clips]
    if not multi_label:
        for clip, own in zip(clips, names, strict=True):
            if len(own) != 1:
                raise ValueError(f"the model gives one label a clip, {clip.name!r} has {list(own)}")
    known = {name: index for index, name in config.id2label.items()}  # `label2id` may be missing or differ
    ids = {name: _label_id(name, known) for own in names for name in own}
    unknown = sorted(name for name, index in ids.items() if index is None)
    if unknown:
        shown = f"{list(known)[:10]}" + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise ValueError(f"labels must be some of {shown}, or indices into them, got {unknown}")
    if not multi_label:
        return torch.tensor([ids[own[0]] for own in names])
    targets = torch.zeros(len(clips), config.num_labels)
    for row, own in zip(targets, names, strict=True):
        row[[ids[name] for name in own]] = 1
    return targets


def _label_id(name: str, known: dict[str, int]) -> int | None:
    if name in known:
        return known[name]
    return int(name) if name.isdecimal() and int(name) in known.values() else None


def accuracy(scores: Tensor, labels: Tensor, top_k: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of clips whose label is among the k best scores: {"top1": ..., "top5": ...}.

    Args:
        scores: (clips, num_labels); rows of NaN, clips that could not be decoded, do not count.
        labels: (clips,) int64.
        top_k: The ks.

    Raises:
        ValueError: no clip counts.
    """
    scores, labels = _counted(scores, labels)
    # stable, so that equal scores rank alike on every machine
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, : max(top_k)]
    hits = best == labels[:, None]
    return {f"top{k}": hits[:, :k].any(1).float().mean().item() for k in top_k}


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each label, (num_labels,) float64; NaN for a label that no clip has.

    The area under the steps of precision over recall: the sum over distinct scores, falling, of the recall gained at
    it times the precision there. Clips of equal score count together.

    Args:
        scores: (clips, num_labels); rows of NaN do not count.
        targets: (clips, num_labels) of 0 and 1.

    Raises:
        ValueError: no clip counts.
    """
    scores, targets = _counted(scores, targets)
    precisions = []
    for column, target in zip(scores.unbind(1), targets.double().unbind(1), strict=True):
        column, order = column.sort(descending=True)
        last_of_equals = torch.cat([column[1:] != column[:-1], torch.ones(1, dtype=torch.bool)])
        found = target[order].cumsum(0)[last_of_equals]
        seen = torch.arange(1, len(column) + 1)[last_of_equals]
        gained = torch.diff(found, prepend=torch.zeros(1, dtype=found.dtype))
        precisions.append((gained * found / seen).sum() / target.sum())  # 0 / 0 is NaN
    return torch.stack(precisions)


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean of `average_precisions` over the labels that some clip has. Raises ValueError if none has any."""
    precisions = average_precisions(scores, targets)
    if precisions.isnan().all():
        raise ValueError(f"none of {len(targets)} clips has a label")
    return precisions.nanmean().item()


def evaluate_scores(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Metrics of one point: top1 and top5, or mean_average_precision for multi-label targets (clips, num_labels)."""
    if targets.ndim == 2:
        return {"mean_average_precision": mean_average_precision(scores, targets)}
    return accuracy(scores, targets)


def _counted(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if len(scores) != len(targets):
        raise ValueError(f"there must be one target a clip, got {len(targets)} for {len(scores)} clips")
    counted = ~scores.isnan().any(1)
    if not counted.any():
        raise ValueError(f"none of {len(scores)} clips has scores")
    return scores[counted], targets[counted]
