# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips of a streamed `datasets` set, in batches."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from flux_hf.token_selection import as_count

from .dataset import FOR_FRAMES, FOR_STREAM, MAX_TRIES, Augment, SampleMaker, collate
from .failures import Failure, all_failed
from .reader import READ_ERRORS, decode_value, describe_failure
from .sampling import ClipRequest, ClipShape, check_rule, pick_frames
from .sources import as_label, stream_label_names
from .targets import TargetEncoder


@dataclass(eq=False)
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
        targets, augment, seed, num_sample, sampling_rule: As in `ClipDataset`.
        rank, world_size: This process, and their number.
        buffer_size: Clips to draw the next one from; their contents are held in memory, in every worker. Files of the
            set are shuffled too. 0 keeps the set's order.
        split_workers: See above.

    Raises:
        ValueError: a count below 1, a rank outside the world, an unknown rule. While reading: a label that is missing
            or not in `label2id`, a process without a single clip.
    """

    stream: datasets.IterableDataset
    shape_of: Callable[[int, int], ClipShape]
    batch_size: int
    num_batches: int
    targets: TargetEncoder
    augment: Augment
    seed: int = 0
    num_sample: int = 1
    sampling_rule: str | None = None
    rank: int = 0
    world_size: int = 1
    buffer_size: int = 256
    split_workers: bool = False

    def __post_init__(self):
        if not 0 <= self.rank < as_count("world_size", self.world_size):
            raise ValueError(f"rank must lie in [0, {self.world_size}), got {self.rank}")
        check_rule(self.sampling_rule)
        if self.buffer_size < 0:
            raise ValueError(f"buffer_size must not be negative, got {self.buffer_size}")
        as_count("batch_size", self.batch_size), as_count("num_batches", self.num_batches)
        self._maker = SampleMaker(self.augment, self.seed, self.num_sample)
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
            share = self.rank * num_workers + first % num_workers
            examples = _Lookahead(self._examples(epoch, share, self.world_size * num_workers))
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
                order = np.random.default_rng([self._maker.seed, epoch, lap, 0, FOR_STREAM])
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
        own = [examples.take() for _ in range(self.batch_size)]
        shape = self.shape_of(epoch, step)
        stand_ins = itertools.count()
        samples = []
        for place, example in enumerate(own):
            # Of all places of all processes' batches of the epoch.
            index = (step * self.world_size + self.rank) * self.batch_size + place
            request = ClipRequest(index, shape.num_frames, shape.size, epoch)
            frames, example, failures = self._read(request, example, stand_ins, examples)
            label = as_label(example.get("label"), stream_label_names(self.stream), "the streamed set")
            name = _example_name(example["video"]) if label is None else ""
            samples.append(self._maker.make(frames, self.targets.encode(label, name), request, failures))
        return collate(samples)

    def _read(
        self, request: ClipRequest, example: dict[str, Any], stand_ins: Iterator[int], examples: "_Lookahead"
    ) -> tuple[Tensor, dict[str, Any], list[Failure]]:
        """Frames of an example, or of the first after it that can be read; that one; and those that cannot."""
        failures: list[Failure] = []
        rule = self.sampling_rule or "kinetics"
        while True:
            words = [self._maker.seed, request.epoch, request.index, len(failures), FOR_FRAMES]

            def sampler(total_frames: int, words: list[int] = words) -> np.ndarray:
                return pick_frames(total_frames, request.num_frames, rule, np.random.default_rng(words))

            try:
                return decode_value(example["video"], sampler), example, failures
            except READ_ERRORS as error:
                failures.append((_example_name(example["video"]), describe_failure(error)))
            if len(failures) == MAX_TRIES:
                raise all_failed(failures)
            example = examples.peek(next(stand_ins))


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
