# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets that training reads, by index or streamed: which frames of a clip, what happens to damaged clips.

Whatever is random is a function of the seed, the epoch and the clip, so it depends neither on the number of workers and
processes nor on the order they work in.
"""

import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from flux_hf.token_selection import as_count
from flux_hf.video_decoding import sample_frame_indices

from .clips import (
    READ_ERRORS,
    Clip,
    FrameSampler,
    Label,
    as_label,
    decode_value,
    describe_failure,
    labels_of,
    stream_label_names,
)
from .sampling import ClipRequest, ClipShape


logger = logging.getLogger(__name__)

Augment = Callable[[Tensor, int, torch.Generator], Tensor]
Failure = tuple[str, str]  # name of the clip, reason

SAMPLING_RULES = ("kinetics", "ssv2", "center")
MAX_TRIES = 20  # clips tried for one place of a batch; nearly all of a set must be bad for so many to fail

# The fifth and last word of a seed, so that draws for different ends differ, from those of the sampler too. None is 0:
# numpy pads seeds with zeros, and a shorter seed would equal a longer one.
_FOR_FRAMES, _FOR_AUGMENT, _FOR_REPLACEMENT, _FOR_STREAM = 2, 3, 4, 5


# ---------------------------------------------------------------------------------------------------------------------
# Which frames
# ---------------------------------------------------------------------------------------------------------------------


def pick_frames(total_frames: int, num_frames: int, rule: str, rng: np.random.Generator) -> np.ndarray:
    """Indices of the frames of a training clip.

    - `kinetics`: with seg = (N-1)/T, frame i is uniform among round(seg*i) .. round(seg*(i+1)), both included, at
      most N-1 (round half to even).
    - `ssv2`: with d = N//T, frame i is uniform among the d frames from i*d on; the last N - T*d are never seen. Of a
      clip with fewer than T frames each is repeated about equally often, in order (the official code repeats the
      first frame alone, which leaves little of the motion).
    - `center`: not random, the rule of the validation.

    Args:
        total_frames: N.
        num_frames: T.
        rule: One of these.
        rng: Is drawn from.

    Returns:
        (num_frames,) int64, not decreasing.
    """
    if rule == "center":
        return sample_frame_indices(total_frames, num_frames)[0]
    as_count("total_frames", total_frames)
    steps = np.arange(as_count("num_frames", num_frames))
    if rule == "kinetics":
        bounds = np.round((total_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
        return np.minimum(rng.integers(bounds[:-1], bounds[1:], endpoint=True), total_frames - 1)
    if rule == "ssv2":
        length = total_frames // num_frames
        if length == 0:
            return steps * total_frames // num_frames
        return steps * length + rng.integers(length, size=num_frames)
    raise ValueError(f"rule must be one of {list(SAMPLING_RULES)}, got {rule!r}")


def _check_rule(rule: str | None) -> None:
    if rule is not None and rule not in SAMPLING_RULES:
        raise ValueError(f"sampling_rule must be one of {list(SAMPLING_RULES)}, got {rule!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------------------


class TooManyFailedClips(RuntimeError):
    """So many clips cannot be read that the data, or how they are reached, must be wrong."""


class FailureLog:
    """Remembers the clips that could not be read, and stops the run where they are too many.

    For the main process; `add` the failures of all processes. A clip counts once, however often it is reported.

    Args:
        max_failed_share: Of `num_clips`, the largest share that may fail; 0 for none at all.
        num_clips: Clips of the set.
    """

    def __init__(self, max_failed_share: float, num_clips: int):
        if not 0 <= max_failed_share <= 1:
            raise ValueError(f"max_failed_share must lie in [0, 1], got {max_failed_share}")
        self.max_failed_share = max_failed_share
        self.num_clips = as_count("num_clips", num_clips)
        self.failures: dict[str, str] = {}  # name: reason, in the order they were reported

    def add(self, failures: Iterable[Failure]) -> None:
        """Logs those that are new. Raises `TooManyFailedClips`, with the list of all, if they are too many."""
        for name, reason in failures:
            if name not in self.failures:
                self.failures[name] = reason
                logger.warning("clip %s is replaced by another: %s", name, reason)
        allowed = self.max_failed_share * self.num_clips
        if len(self.failures) > allowed + 1e-6:
            bad = "\n".join(f"  {name}: {reason}" for name, reason in self.failures.items())
            raise TooManyFailedClips(
                f"{len(self.failures)} of {self.num_clips} clips cannot be read, more than the share "
                f"{self.max_failed_share:g} that may fail:\n{bad}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"failures": dict(self.failures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.failures = dict(state["failures"])


# ---------------------------------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------------------------------


def _encode_label(label: Label, label2id: Mapping[str, int], multi_label: bool, name: str) -> tuple[int, ...]:
    """The ids of a clip's labels; exactly one unless `multi_label`."""
    if label is None:
        raise ValueError(f"clip {name} has no label")
    labels = labels_of(label)
    if len(labels) != 1 and not multi_label:
        raise ValueError(f"clip {name} has the labels {list(labels)}: one is needed, or a multi-label training")
    unknown = [one for one in labels if one not in label2id]
    if unknown:
        raise ValueError(f"labels must be some of {sorted(label2id)}, got {unknown} of clip {name}")
    return tuple(label2id[one] for one in labels)


@dataclass(frozen=True)
class _SampleMaker:
    """What by-index and streamed data sets make of the frames they have read."""

    augment: Augment
    num_labels: int
    seed: int
    num_sample: int
    multi_label: bool

    def make(
        self, frames: Tensor, label_ids: tuple[int, ...], size: int, epoch: int, index: int, failures: list[Failure]
    ) -> dict[str, Any]:
        seeds = [
            int(np.random.default_rng([self.seed, epoch, index, copy, _FOR_AUGMENT]).integers(2**63))
            for copy in range(self.num_sample)
        ]
        videos = [self.augment(frames, size, torch.Generator().manual_seed(seed)) for seed in seeds]
        if self.multi_label:
            label = torch.zeros(self.num_labels)
            label[list(label_ids)] = 1
        else:
            label = torch.tensor(label_ids[0])
        return {
            "pixel_values_videos": torch.stack(videos),
            "labels": torch.stack([label] * self.num_sample),
            "seeds": torch.tensor(seeds),
            "failures": failures,
        }


def _sample_maker(
    augment: Augment, label2id: Mapping[str, int], seed: int, num_sample: int, multi_label: bool
) -> _SampleMaker:
    num_labels = max(label2id.values(), default=-1) + 1
    if num_labels == 0:
        raise ValueError("label2id must hold at least one label, got none")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return _SampleMaker(augment, num_labels, seed, as_count("num_sample", num_sample), multi_label)


class ClipDataset(torch.utils.data.Dataset):
    """Clips by index, read and augmented.

    A clip that cannot be read is replaced by another, drawn from the seed and its index, and named in `failures`; all
    the others keep their places, so none of them is lost.

    Args:
        clips: The set.
        label2id: Ids of the labels.
        augment: `(frames (T, 3, H, W) uint8, size, generator) -> (T, 3, size, size) float32`.
        seed: With epoch, index and copy, decides everything random.
        num_sample: Augmented copies of each clip, which is decoded once (repeated augmentation).
        multi_label: Labels as 0 and 1 for each class.
        sampling_rule: Of `pick_frames`; if not given, `ssv2` for folders of frames and `kinetics` for others.

    Raises:
        ValueError: no clips, a label that is missing or not in `label2id`, several labels of one clip without
            `multi_label`, an unknown rule, `num_sample` below 1, a negative seed.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        label2id: Mapping[str, int],
        augment: Augment,
        seed: int = 0,
        num_sample: int = 1,
        multi_label: bool = False,
        sampling_rule: str | None = None,
    ):
        if not clips:
            raise ValueError("clips must hold at least one clip, got none")
        _check_rule(sampling_rule)
        self.clips = list(clips)
        self.sampling_rule = sampling_rule
        self._label_ids = [_encode_label(clip.label, label2id, multi_label, clip.name) for clip in self.clips]
        self._maker = _sample_maker(augment, label2id, seed, num_sample, multi_label)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, request: ClipRequest) -> dict[str, Any]:
        """Reads the clip that `request` names.

        Returns:
            `pixel_values_videos` (num_sample, T, 3, size, size) as `augment` gives them, `labels` (num_sample,) int64
            or (num_sample, num_labels) float32, `seeds` (num_sample,) int64 of the copies' generators, and
            `failures`, the (name, reason) of clips that could not be read.

        Raises:
            TooManyFailedClips: neither it nor any of those tried in its place can be read.
        """
        failures = []
        for attempt, index in enumerate(self._candidates(request.index)):
            clip = self.clips[index]
            words = [self._maker.seed, request.epoch, request.index, attempt, _FOR_FRAMES]
            try:
                frames = clip.read(self._frame_sampler(clip, request.num_frames, words))
            except READ_ERRORS as error:
                failures.append((clip.name, describe_failure(error)))
                continue
            label_ids = self._label_ids[index]
            return self._maker.make(frames, label_ids, request.size, request.epoch, request.index, failures)
        raise _all_failed(failures)

    def _candidates(self, index: int) -> Iterator[int]:
        """The clip itself, then others in a random order, up to MAX_TRIES in all."""
        yield index
        rng = np.random.default_rng([self._maker.seed, 0, index, 0, _FOR_REPLACEMENT])
        tried = {index}
        while len(tried) < min(len(self.clips), MAX_TRIES):
            candidate = int(rng.integers(len(self.clips)))
            if candidate not in tried:
                tried.add(candidate)
                yield candidate

    def _frame_sampler(self, clip: Clip, num_frames: int, words: list[int]) -> FrameSampler:
        rule = self.sampling_rule or clip.sampling_rule
        return lambda total_frames: pick_frames(total_frames, num_frames, rule, np.random.default_rng(words))


def _all_failed(failures: list[Failure]) -> TooManyFailedClips:
    bad = "\n".join(f"  {name}: {reason}" for name, reason in failures)
    return TooManyFailedClips(f"{len(failures)} clips in a row cannot be read:\n{bad}")


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins samples of one shape: tensors with B * num_sample in front, copies of a clip adjacent, failures joined."""
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0] if name != "failures"}
    return {**batch, "failures": [failure for sample in samples for failure in sample["failures"]]}


class StreamingClips(torch.utils.data.IterableDataset):
    """Batches of a streamed `datasets` set, each as `collate` gives it: for a `DataLoader` with `batch_size=None`.

    The set may be larger than the disk, and its length unknown, so an epoch is `num_batches` batches for each process;
    one whose share ends earlier goes on with a share of the set shuffled anew. Each process has its share already: the
    loader must not be split among processes again (`accelerator.prepare` would).

    Worker w of W builds every W-th batch from the w-th on, and passes over the other workers' clips undecoded: the
    batches do not depend on the number of workers. Where reading what is passed over is dear (contents inside the
    files of a remote set), `split_workers` gives each worker a share of its own instead; then they do.

    Where a clip cannot be read, the next ones of the stream stand in for it, and are read again in their own places.

    Args:
        stream: From `open_stream`.
        shape_of: `(epoch, step) -> ClipShape` of the batch at that step.
        batch_size: Clips of a batch, before `num_sample`.
        num_batches: Batches of an epoch.
        label2id, augment, seed, num_sample, multi_label: As in `ClipDataset`.
        sampling_rule: As in `ClipDataset`.
        rank, world_size: This process, and their number.
        buffer_size: Clips to draw the next one from; their contents are held in memory, in every worker. Files of the
            set are shuffled too. 0 keeps the set's order.
        split_workers: See above.
        verify: As in `read_clips`.

    Raises:
        ValueError: a count below 1, a rank outside the world, an unknown rule. While reading: a label that is missing
            or not in `label2id`, a process without a single clip.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        shape_of: Callable[[int, int], ClipShape],
        batch_size: int,
        num_batches: int,
        label2id: Mapping[str, int],
        augment: Augment,
        seed: int = 0,
        num_sample: int = 1,
        multi_label: bool = False,
        sampling_rule: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 256,
        split_workers: bool = False,
        verify: bool = True,
    ):
        if not 0 <= rank < as_count("world_size", world_size):
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
        _check_rule(sampling_rule)
        if buffer_size < 0:
            raise ValueError(f"buffer_size must not be negative, got {buffer_size}")
        self.stream, self.shape_of, self.label2id = stream, shape_of, dict(label2id)
        self.batch_size, self.num_batches = as_count("batch_size", batch_size), as_count("num_batches", num_batches)
        self.rule = sampling_rule or "kinetics"
        self.rank, self.world_size, self.buffer_size = rank, world_size, buffer_size
        self.split_workers, self.verify = split_workers, verify
        self._maker = _sample_maker(augment, label2id, seed, num_sample, multi_label)
        # Epoch and batches to skip; shared, so that workers that outlive an epoch see them.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Chooses the epoch of the next iteration, which leaves out its first `skip_batches` (when resuming)."""
        if not 0 <= skip_batches <= self.num_batches:
            raise ValueError(f"skip_batches must lie in [0, {self.num_batches}], got {skip_batches}")
        self._position[0], self._position[1] = epoch, skip_batches

    def __len__(self) -> int:
        """Batches of the next iteration."""
        return self.num_batches - int(self._position[1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, first = self._position.tolist()
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        first += worker
        if self.split_workers:
            # By step, not by worker: after a resumption step and worker go together in another way.
            share = first % num_workers
            examples = _Lookahead(self._examples(epoch, self.rank * num_workers + share, self.world_size * num_workers))
            examples.skip(first // num_workers * self.batch_size)
            skipped = 0
        else:
            examples = _Lookahead(self._examples(epoch, self.rank, self.world_size))
            examples.skip(first * self.batch_size)
            skipped = (num_workers - 1) * self.batch_size
        for step in range(first, self.num_batches, num_workers):
            if step > first:
                examples.skip(skipped)
            yield self._batch(epoch, step, examples)

    def _examples(self, epoch: int, share: int, num_shares: int) -> Iterator[dict[str, Any]]:
        """The rows of a share, without end."""
        for lap in itertools.count():
            stream = self.stream
            if self.buffer_size:
                order = np.random.default_rng([self._maker.seed, epoch, lap, 0, _FOR_STREAM])
                stream = stream.shuffle(generator=order, buffer_size=self.buffer_size)
            stream = split_dataset_by_node(stream, share, num_shares)
            empty = True
            # Iterating the set itself would split it among the loader's workers once more.
            for rows in stream.iter(batch_size=1):
                empty = False
                yield {name: values[0] for name, values in rows.items()}
            if empty:
                raise ValueError(f"share {share} of {num_shares} of the streamed set holds no clip")

    def _batch(self, epoch: int, step: int, examples: "_Lookahead") -> dict[str, Any]:
        shape = self.shape_of(epoch, step)
        own = [examples.take() for _ in range(self.batch_size)]
        stand_in = 0
        samples = []
        for place, example in enumerate(own):
            # Of all places of all processes' batches of the epoch.
            index = (step * self.world_size + self.rank) * self.batch_size + place
            failures: list[Failure] = []
            while True:
                words = [self._maker.seed, epoch, index, len(failures), _FOR_FRAMES]
                try:
                    frames = decode_value(example["video"], self._frame_sampler(shape, words), self.verify)
                    break
                except READ_ERRORS as error:
                    failures.append((_example_name(example["video"]), describe_failure(error)))
                if len(failures) == MAX_TRIES:
                    raise _all_failed(failures)
                example = examples.peek(stand_in)
                stand_in += 1
            label = as_label(example["label"], stream_label_names(self.stream), "the streamed set")
            name = _example_name(example["video"]) if label is None else ""
            label_ids = _encode_label(label, self.label2id, self._maker.multi_label, name)
            samples.append(self._maker.make(frames, label_ids, shape.size, epoch, index, failures))
        return collate(samples)

    def _frame_sampler(self, shape: ClipShape, words: list[int]) -> FrameSampler:
        return lambda total: pick_frames(total, shape.num_frames, self.rule, np.random.default_rng(words))


class _Lookahead:
    """An iterator whose next elements can be seen without taking them."""

    def __init__(self, elements: Iterator):
        self._elements, self._seen = elements, deque()

    def take(self) -> Any:
        return self._seen.popleft() if self._seen else next(self._elements)

    def skip(self, count: int) -> None:
        for _ in range(count):
            self.take()

    def peek(self, position: int) -> Any:
        while len(self._seen) <= position:
            self._seen.append(next(self._elements))
        return self._seen[position]


def _example_name(video: Mapping[str, Any] | bytes | str | None) -> str:
    """The path; of contents also a hash, for inside different files the same path may occur again."""
    if not isinstance(video, Mapping):
        video = {"bytes": video} if isinstance(video, bytes) else {"path": video}
    content, path = video.get("bytes"), video.get("path")
    if content is None:
        return str(path)
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{path} ({digest})" if path else f"<{digest}>"
