# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Units of work on a Ray cluster, by Ray Data: decoding on its CPUs, models as actors on its devices.

What a lost node was at, and what it still held, is done again by the others. Every node has this checkout, its
libraries, the videos and the checkpoint at the same paths; what is found comes back to this process, which writes it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
import ray.data
import torch
from accelerate import Accelerator
from torch import Tensor

from ..arguments import PartArguments
from ..data.reader import Clip
from .measures import SAME_BITS, Source, measured
from .parts import UnitBatch, UnitMaker


CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class _Unit:
    """A unit of work, as one value of a row."""

    number: int
    clips: Sequence[Clip]


@dataclass(frozen=True)
class _Found:
    """What was found of a batch, as one value of a row."""

    batch: UnitBatch
    values: Tensor | None


class _Model:
    """A model as an actor."""

    def __init__(self, source: Source, mixed_precision: str, views: int, num_threads: int):
        torch.set_num_threads(num_threads)
        self.measure, self.views = source(Accelerator(mixed_precision=mixed_precision)), views

    def __call__(self, row: dict[str, UnitBatch]) -> dict[str, _Found]:
        return {"found": _Found(*measured(row["batch"], self.measure, self.views))}


def _batches(make: UnitMaker, row: dict[str, _Unit]) -> Iterator[dict[str, UnitBatch]]:
    for batch in make(row["unit"].number, row["unit"].clips):
        yield {"batch": batch}


def on_ray(
    units: Sequence[tuple[int, Sequence[Clip]]],
    make: UnitMaker,
    source: Source,
    args: PartArguments,
    mixed_precision: str,
) -> Iterator[tuple[UnitBatch, Tensor | None]]:
    """What is found of all batches of the units, in any order.

    Raises:
        ConnectionError: there is no cluster at --ray_address.
    """
    search = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    ray.init(address=args.ray_address, runtime_env={"env_vars": {"PYTHONPATH": search}}, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
    try:
        resources, threads = ray.cluster_resources(), torch.get_num_threads()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        rows = ray.data.from_items([{"unit": _Unit(*unit)} for unit in units], override_num_blocks=len(units))
        found = rows.flat_map(partial(_batches, make)).map(
            _Model,
            fn_constructor_args=(source, mixed_precision, make.views, threads),
            compute=ray.data.ActorPoolStrategy(size=args.ray_actors or gpus or max(1, cpus // 2 // threads)),
            num_gpus=1 if gpus else 0,
            num_cpus=0,  # else models might hold all CPUs that are left, and decoding wait for ever
            runtime_env={"env_vars": {SAME_BITS[0]: os.environ[SAME_BITS[0]]}},
        )
        for row in found.iter_rows():
            yield row["found"].batch, row["found"].values
    finally:
        ray.shutdown()
