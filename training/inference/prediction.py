# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of many clips at many points (frames, size, token budget), the same on any number of processes.

A clip is decoded once for all points and views, in a DataLoader worker, which also resizes and crops. Pixels travel as
bytes; the process that runs the model picks the frames of each view from them and normalises. Both halves are the
video processor's own work, so that a point's views are those of the pipeline and of the official evaluation. Points of
one clip shape share embedding, scores and positions.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from flux_hf.token_selection import as_count
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..arguments import ViewArguments
from ..data.reader import READ_ERRORS, Clip, describe_failure
from ..data.sampling import ClipShape, sample_views
from .points import EvalPoint


Forward = Callable[[Tensor, Sequence[int | None]], Sequence[Tensor]]
Reduce = Callable[[Tensor, list[int]], Tensor]

SHOWN_FAILURES = 10
NUM_COSTS = 2  # of `Predictions.costs`
PADDING = -1  # stands for a clip where a process has run out of them


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
                chosen[count] = sample_views(total_frames, count, self.num_clips, clip.sampling_rule)
            wanted = _union(chosen.values())
            return wanted

        try:
            frames = clip.read(sampler)
        except READ_ERRORS as error:
            return _ClipViews(failure=(clip.name, describe_failure(error)))
        pixels, positions = {}, {}
        for size, counts in self.frame_counts.items():
            shown = _union(chosen[count] for count in counts)
            seen = frames[torch.from_numpy(np.searchsorted(wanted, shown))]
            pixels[size] = square_crops(self.processor, seen, size, self.num_crops)
            for count in counts:
                positions[ClipShape(count, size)] = np.searchsorted(shown, chosen[count])
        return _ClipViews(pixels, positions)


def square_crops(processor: FluxViTVideoProcessor, frames: Tensor, size: int, num_crops: int) -> Tensor:
    """(U, 3, H, W) -> (num_crops, U, 3, size, size), both uint8: a resize of whole levels gives whole levels."""
    crops = processor(
        frames,
        size=size,
        num_clips=1,
        num_crops=num_crops,
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


def normalize(videos: Tensor, processor: FluxViTVideoProcessor) -> Tensor:
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

    scores: Tensor  # (points, clips, num_labels, or what was kept) float32 on the CPU; NaN for a clip not decoded
    failures: list[tuple[str, str]]  # (name, reason) of those clips, in their order
    budgets: Tensor | None = None  # (clips,) int64: the last point's, where each clip has another
    costs: Tensor | None = None  # (points, clips, 2): tokens kept and multiply-adds of a view, where clips differ

    @property
    def decoded(self) -> Tensor:
        """(clips,) bool: which clips have scores."""
        return ~self.scores[0, :, 0].isnan()


@dataclass(frozen=True)
class Predictor:
    """Scores clips at points, every clip once, the same on any number of processes.

    Process r takes the clips r, r + world, ...; where some have one clip fewer they run a blank one, whose scores are
    dropped, so that all processes call `forward` equally often with equal shapes (sharded models hang otherwise).
    Nothing here draws from the global random generators.

    Args:
        forward: (B, T, 3, S, S) float32 on the accelerator's device, budgets (None: the model's default) -> logits
            (B, num_labels) at each of them. In evaluation mode: that is the caller's to set.
        processor: Makes the views; always square crops, whatever its own settings.
        accelerator: Whose processes share the work.
        views: Temporal views of each clip, spatial views of each of them, views in a forward pass.
        num_workers: DataLoader workers of each process.
        multi_label: Sigmoid in place of the softmax.
        with_costs: Behind the logits `forward` gives what `Predictions.costs` holds, (B, num_labels + 2).
        verbose: On the main process, a progress bar, and on stderr what could not be read.
    """

    forward: Forward
    processor: FluxViTVideoProcessor
    accelerator: Accelerator
    views: ViewArguments
    num_workers: int = 0
    multi_label: bool = False
    verbose: bool = False
    with_costs: bool = False

    @torch.no_grad()
    def __call__(self, clips: Sequence[Clip], points: Sequence[EvalPoint], reduce: Reduce | None = None) -> Predictions:
        """Scores clips, each the mean over its views of each view's softmax (collective).

        Args:
            clips: Read by `Clip.read`, once for all points.
            points: Those that differ in the budget alone share their views.
            reduce: What to keep of scores (points, n, num_labels) of the clips of these n indices, (points, n, any),
                where all are too many: every process gets what is kept of all clips. NaN must stay NaN.

        Raises:
            ValueError: no clips, no points, or a count below 1.
            FloatingPointError: the model gives scores that are not numbers.
        """
        mine, scores, failures = [], [], []
        for indices, scored, failed in self._share(clips, points):
            mine += indices
            scores.append(scored if reduce is None else reduce(scored, indices))
            failures += failed
        own = (mine, torch.cat(scores, dim=1).numpy(), failures)
        predictions = _merge(gather_object([own]), clips)
        self._tell(predictions.failures, len(clips))
        if self.with_costs:
            scores, costs = predictions.scores.tensor_split([-NUM_COSTS], dim=-1)
            predictions = replace(predictions, scores=scores, costs=costs)
        return predictions

    def _share(
        self, clips: Sequence[Clip], points: Sequence[EvalPoint]
    ) -> Iterator[tuple[list[int], Tensor, list[tuple[str, str] | None]]]:
        """Its clips, batch by batch, as many on all processes: indices, scores (points, n, num_labels), failures."""
        if not clips or not points:
            raise ValueError(f"at least one clip and one point are needed, got {len(clips)} and {len(points)}")
        views = self.views
        num_views = as_count("num_clips", views.num_clips) * as_count("num_crops", views.num_crops)
        batch_size = as_count("per_device_eval_batch_size", views.per_device_eval_batch_size)
        shapes = list(dict.fromkeys(point.shape for point in points))
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = list(range(rank, len(clips), world))
        mine += [PADDING] * (math.ceil(len(clips) / world) - len(mine))
        loader = DataLoader(
            _ViewDataset(clips, self.processor, shapes, views.num_clips, views.num_crops),
            batch_size=max(1, batch_size // num_views),
            sampler=mine,
            num_workers=self.num_workers,
            collate_fn=list,
            generator=torch.Generator(),  # else it takes a number from the global one, and a resumed run would differ
        )
        count = 0
        for batch in tqdm(loader, disable=not self._shown, unit="batch"):
            indices = mine[count : count + len(batch)]
            count += len(batch)
            yield indices, self._score(batch, points, num_views), [clip.failure for clip in batch]

    @property
    def _shown(self) -> bool:
        return self.verbose and self.accelerator.is_main_process

    def _tell(self, failures: Sequence[tuple[str, str]], number: int) -> None:
        if self._shown and failures:
            print(f"{len(failures)} of {number} clips could not be decoded:", file=sys.stderr)
            lines = [f"  {name}: {reason}" for name, reason in failures[:SHOWN_FAILURES]]
            more = [f"  and {len(failures) - SHOWN_FAILURES} more"] if len(failures) > SHOWN_FAILURES else []
            print("\n".join(lines + more), file=sys.stderr)

    def _score(self, batch: list[_ClipViews], points: Sequence[EvalPoint], num_views: int) -> Tensor:
        """(points, clips of the batch, num_labels) float32 on the CPU; padding and failed clips run as blank ones."""
        device = self.accelerator.device
        pixels = [{size: crops.to(device) for size, crops in clip.pixels.items()} for clip in batch]
        of_shape: dict[ClipShape, list[int]] = defaultdict(list)
        for index, point in enumerate(points):
            of_shape[point.shape].append(index)
        scores: list[list[Tensor]] = [[] for _ in points]
        for shape, members in of_shape.items():
            blank = (num_views, shape.num_frames, 3, shape.size, shape.size)
            views = [
                pick_views(crops[shape.size], clip.positions[shape])
                if crops
                else torch.zeros(blank, dtype=torch.uint8, device=device)
                for clip, crops in zip(batch, pixels, strict=True)
            ]
            for part in torch.cat(views).split(self.views.per_device_eval_batch_size):
                budgets = [points[index].token_budget for index in members]
                for index, logits in zip(members, self.forward(normalize(part, self.processor), budgets), strict=True):
                    scores[index].append(self._as_scores(logits.float()))
        return torch.stack([torch.cat(parts).unflatten(0, (-1, num_views)).mean(1) for parts in scores]).cpu()

    def _as_scores(self, logits: Tensor) -> Tensor:
        logits, costs = logits.tensor_split([logits.shape[1] - NUM_COSTS * self.with_costs], dim=1)
        return torch.cat([logits.sigmoid() if self.multi_label else logits.softmax(-1), costs], dim=1)


def pick_views(crops: Tensor, positions: np.ndarray) -> Tensor:
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
