# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Units of work gone through by one process, by several, or by a Ray cluster; what is found of each is a shard."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from flux_hf.checkpoint_files import remove_leftovers

from ..arguments import PartArguments
from ..data.reader import Clip
from .measures import Measure, Source, measured
from .parts import Part, UnitBatch, UnitMaker, Units, WholeClips, Windows, make_units


class Shards:
    """A folder of shards, one of each unit, each written whole or not at all.

    Args:
        directory: The folder.
        template: Of a shard's name, with its number.
    """

    def __init__(self, directory: Path, template: str):
        self.directory, self.template = directory, template

    def path(self, unit: int) -> Path:
        return self.directory / self.template.format(unit)

    def is_done(self, unit: int) -> bool:
        """Whether a unit's shard is there."""
        return self.path(unit).exists()

    def prepare(self) -> None:
        """Makes the folder, and removes what a killed run left half-written; one process does."""
        os.makedirs(self.directory, exist_ok=True)
        remove_leftovers(self.directory)

    def write(self, unit: int, parts: Sequence[Part], values: Tensor | None) -> None:
        """Writes a unit's shard.

        Args:
            unit: Its number.
            parts: All of it.
            values: (n, ...) of the n that could be read, in their order; None without any.
        """
        raise NotImplementedError


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
    source: Source,
    measure: Measure,
    shards: Shards,
    args: PartArguments,
    accelerator: Accelerator,
) -> None:
    """Makes the shards that are missing: this process its share of them, or a Ray cluster all (collective).

    Raises:
        ValueError: several processes, each with a Ray cluster.
    """
    if args.engine == "ray" and accelerator.num_processes > 1:
        raise ValueError(f"--engine ray shares the work out from one process, got {accelerator.num_processes}")
    if accelerator.is_main_process:
        shards.prepare()
    accelerator.wait_for_everyone()
    units = list(enumerate(make_units(clips, args.clips_per_shard)))
    missing = [unit for unit in units if not shards.is_done(unit[0])]
    accelerator.wait_for_everyone()  # all have looked before one writes
    if args.window is None:
        parts_of = WholeClips(measure.processor, measure.point, args.num_clips, args.num_crops)
    else:
        parts_of = Windows(measure.processor, measure.point, args.window, args.stride or args.window, args.num_crops)
    make = UnitMaker(parts_of, args.num_clips * args.num_crops, args.per_device_eval_batch_size)
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    shown = tqdm(total=sum(len(some) for _, some in mine), unit="clip", disable=not accelerator.is_main_process)
    gathering, sizes = Gathering(shards), {unit: len(some) for unit, some in mine}
    if not mine:
        found = ()
    elif args.engine == "ray":
        from .ray_cluster import on_ray  # an extra

        found = on_ray(mine, make, source, args, accelerator.mixed_precision)
    else:
        workers = min(args.dataloader_num_workers, len(mine))
        # A generator of its own: else it takes a number from the global one.
        loader = DataLoader(Units(mine, make), batch_size=None, num_workers=workers, generator=torch.Generator())
        found = (measured(batch, measure, make.views) for batch in loader)
    for batch, values in found:
        if gathering.add(batch, values):
            shown.update(sizes[batch.unit])
    shown.close()
    accelerator.wait_for_everyone()
