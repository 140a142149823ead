# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Units of work gone through by one process, by several, or by a Ray cluster; what is found of each is a shard."""

import csv
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from flux_hf.checkpoint_files import BYTES, remove_leftovers

from ..arguments import PartArguments
from ..data.reader import Clip
from .measures import Measure, Source, measured
from .parts import Part, UnitBatch, UnitMaker, Units, WholeClips, Windows, make_units


# Does units somewhere, and gives what is found of their batches, in any order.
Elsewhere = Callable[[Sequence[tuple[int, Sequence[Clip]]]], Iterator[tuple[UnitBatch, Tensor | None]]]


class Shards(Protocol):
    """What is found of each unit, written whole or not at all."""

    def is_done(self, unit: int) -> bool:
        """Whether a unit is written."""

    def prepare(self) -> None:
        """Makes ready for writing; one process does."""

    def write(self, unit: int, parts: Sequence[Part], values: Tensor | None) -> None:
        """Writes a unit.

        Args:
            unit: Its number.
            parts: All of it.
            values: (n, ...) of the n that could be read, in their order; None without any.
        """


class ShardFolder(Shards):
    """A folder with a file of each unit.

    Args:
        directory: The folder.
        template: Of a file's name, with the unit's number.
    """

    def __init__(self, directory: Path, template: str):
        self.directory, self.template = directory, template

    def path(self, unit: int) -> Path:
        return self.directory / self.template.format(unit)

    def is_done(self, unit: int) -> bool:
        return self.path(unit).exists()

    def prepare(self) -> None:
        """Makes the folder, and removes what a killed run left half-written."""
        os.makedirs(self.directory, exist_ok=True)
        remove_leftovers(self.directory)


def read_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a csv behind its header."""
    with open(path, newline="", encoding="utf-8", errors=BYTES) as file:
        yield from itertools.islice(csv.reader(file), 1, None)


class Gathering:
    """Puts the batches of units together, in whatever order they come, and writes a unit when it is whole."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self.waiting: dict[int, dict[int, tuple[UnitBatch, Tensor | None]]] = {}

    def add(self, batch: UnitBatch, values: Tensor | None) -> bool:
        """Takes a batch, whose pixels may be gone, with what was found of them; whether its unit is written now."""
        found = self.waiting.setdefault(batch.unit, {})
        found[batch.number] = (batch, values)
        last = max(found)
        if len(found) <= last or not found[last][0].is_last:
            return False
        batches = [found[number] for number in range(last + 1)]
        parts = [part for batch, _ in batches for part in batch.parts]
        of_parts = [values for _, values in batches if values is not None]
        self.shards.write(batch.unit, parts, torch.cat(of_parts) if of_parts else None)
        del self.waiting[batch.unit]
        return True


def go_through(
    clips: Sequence[Clip],
    clips_per_shard: int,
    make: UnitMaker,
    measure: Callable[[Tensor], Tensor],
    shards: Shards,
    accelerator: Accelerator,
    num_workers: int,
    elsewhere: Elsewhere | None = None,
) -> None:
    """Makes the shards that are missing: each process its share of them (collective).

    Args:
        clips: All of them.
        clips_per_shard: How many are a unit.
        make: Makes the batches of a unit.
        measure: (B, T, 3, S, S) uint8 -> (B, ...).
        shards: Where what is found goes.
        accelerator: Whose processes share the work.
        num_workers: Of a process's loader.
        elsewhere: Does the units in place of this process.
    """
    if accelerator.is_main_process:
        shards.prepare()
    accelerator.wait_for_everyone()
    units = list(enumerate(make_units(clips, clips_per_shard)))
    missing = [unit for unit in units if not shards.is_done(unit[0])]
    accelerator.wait_for_everyone()  # all have looked before one writes
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if not mine:
        found = ()
    elif elsewhere is not None:
        found = elsewhere(mine)
    else:
        workers = min(num_workers, len(mine))
        # A generator of its own: else it takes a number from the global one.
        loader = DataLoader(Units(mine, make), batch_size=None, num_workers=workers, generator=torch.Generator())
        found = (measured(batch, measure, make.views) for batch in loader)
    gathering, sizes = Gathering(shards), {unit: len(some) for unit, some in mine}
    with tqdm(total=sum(sizes.values()), unit="clip", disable=not accelerator.is_main_process) as shown:
        for batch, values in found:
            if gathering.add(batch, values):
                shown.update(sizes[batch.unit])
    accelerator.wait_for_everyone()


def go_through_parts(
    clips: Sequence[Clip],
    source: Source,
    measure: Measure,
    shards: Shards,
    args: PartArguments,
    accelerator: Accelerator,
) -> None:
    """`go_through` of clips or windows, by the flags; on a Ray cluster if they say so (collective).

    Raises:
        ValueError: several processes, each with a Ray cluster.
    """
    if args.window is None:
        parts_of = WholeClips(measure.processor, measure.point, args.num_clips, args.num_crops)
    else:
        parts_of = Windows(measure.processor, measure.point, args.window, args.stride or args.window, args.num_crops)
    make = UnitMaker(parts_of, args.num_clips * args.num_crops, args.per_device_eval_batch_size)
    elsewhere = None
    if args.engine == "ray":
        if accelerator.num_processes > 1:
            raise ValueError(f"--engine ray shares the work out from one process, got {accelerator.num_processes}")
        from .ray_cluster import on_ray  # an extra

        elsewhere = partial(on_ray, make=make, source=source, args=args, mixed_precision=accelerator.mixed_precision)
    go_through(
        *(clips, args.clips_per_shard, make, measure, shards, accelerator),
        num_workers=args.dataloader_num_workers,
        elsewhere=elsewhere,
    )
