# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a big list costs, in time and memory: `python tests/benchmarks/large_list.py DIR [--rows 650000]`.

A csv as large as Kinetics-710's is listed as `training.finetune` does (no video but the first is there, or needed), its
labels are collected and the data set is built. Then loader workers read clips in a random order from a list as long,
whose rows all mean a few short videos of DIR, and their private memory is shown as it grows. Linux only.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.data.dataset import ClipDataset, collate
from training.data.sampling import ClipRequest
from training.data.sources import label_names, read_clips, spread, video_files
from training.data.targets import ClassTargets


CLASSES, BATCH, WORKERS = 710, 16, 2


def mebibytes(process: int | str, *fields: str) -> float:
    """The sum of fields of a process's memory in /proc."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text() + Path(f"/proc/{process}/status").read_text()
    sizes = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.endswith(" kB")}
    return sum(int(sizes[field]) for field in fields) / 1024


def write_list(path: Path, rows: int, names: bool, clips: Sequence[Path] = ()) -> None:
    """Paths as long as Kinetics'. With `clips`, each by a way round to one of these."""
    with open(path, "w") as file:
        file.write("path,label\n")
        for row in range(rows):
            label = row * 7919 % CLASSES
            name = f"k710/train/class number {label}/{row * 2654435761 % 2**40:011x}_{row % 300:06}_{row % 300 + 10:06}"
            name = f"{name}/../../../../{clips[row % len(clips)].name}" if clips else f"{name}.mp4"
            file.write(f"{name},{f'class number {label}' if names else label}\n")
    if not clips:  # one of those that are looked for, to know whether the root is right
        with open(path) as file:
            first = path.parent / [next(file), next(file)][1].rpartition(",")[0]
        first.parent.mkdir(parents=True)
        first.touch()


def center_pixels(frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return frames[..., :size, :size].float()


def build(path: Path) -> ClipDataset:
    """As `training.finetune` does; says what each part took."""
    memory, start = mebibytes("self", "Rss"), time.perf_counter()

    def tell(what: str) -> None:
        now, peak = mebibytes("self", "Rss"), mebibytes("self", "VmHWM")
        seconds = time.perf_counter() - start
        print(f"  {what:10} {seconds:6.2f} s, {now - memory:+6.0f} MiB, peak {peak - memory:+6.0f} MiB", flush=True)

    clips = spread(read_clips(path), None)
    tell("listed")
    labels = label_names(clips)
    tell("labels")
    dataset = ClipDataset(clips, ClassTargets({name: index for index, name in enumerate(labels)}), center_pixels)
    tell("data set")
    return dataset


def watch_workers(dataset: ClipDataset, batches: int) -> None:
    """Prints the private memory of the loader's workers, all of them together, at each quarter of the batches."""
    order = np.random.default_rng(0).integers(len(dataset), size=(batches, BATCH))
    requests = [[ClipRequest(int(index), 1, 28, 0) for index in batch] for batch in order]
    loader = DataLoader(dataset, batch_sampler=requests, num_workers=WORKERS, collate_fn=collate)
    print(f"{WORKERS} workers, private memory of both", flush=True)
    batches_read = iter(loader)
    workers = [worker.pid for worker in batches_read._workers]
    for number, _ in enumerate(batches_read, start=1):
        if number == 20 or number % (batches // 4) == 0 and number < batches:
            used = sum(mebibytes(worker, "Private_Clean", "Private_Dirty") for worker in workers)
            print(f"  after {number * BATCH:6} clips {used:6.0f} MiB", flush=True)


def run(kind: str, videos: Path, rows: int, batches: int) -> None:
    """One measurement, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.csv"
        short = sorted(video_files(videos), key=lambda video: video.stat().st_size)[:8] if kind == "workers" else []
        for video in short:
            (path.parent / video.name).symlink_to(video.absolute())
        write_list(path, rows, names=kind != "integers", clips=short)
        print(f"{kind}: {rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB", flush=True)
        dataset = build(path)
        if kind == "workers":
            watch_workers(dataset, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="videos, of which the workers read the smallest")
    parser.add_argument("--rows", type=int, default=650_000)
    parser.add_argument("--batches", type=int, default=1200, help=f"of {BATCH} clips, that the workers read")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores", flush=True)
    for kind in ("names", "integers", "workers"):
        child = os.fork()
        if child == 0:
            run(kind, options.folder, options.rows, options.batches)
            sys.exit()
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{kind} failed")


if __name__ == "__main__":
    main()
