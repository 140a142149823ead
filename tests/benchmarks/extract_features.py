# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips/s of `training.extract_features` by one process, by two, and by a Ray cluster of this machine.

    python tests/benchmarks/extract_features.py CHECKPOINT DIR [--rounds 3] [-- FLAG ...]

Each way does the videos of the folder in shards of two, with one thread a process, in interleaved rounds. Its rate is
that from its first shard to its last, so that starting up, which is shown beside it, is not in it. What stands behind
`--` is given to the command: --dataloader_num_workers 1, say. Prints a table and a line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


REPOSITORY = Path(__file__).parents[2]
LAUNCH = "-m accelerate.commands.launch --cpu --num_machines 1 --mixed_precision no --dynamo_backend no"
WAYS = {
    "one process": (f"{LAUNCH} --num_processes 1 -m", ""),
    "two processes": (f"{LAUNCH} --num_processes 2 -m", ""),
    "Ray, one model": ("-m", "--engine ray --ray_actors 1"),
}
SHARD = 2


def run(way: str, checkpoint: str, folder: str, more: list[str]) -> tuple[float, float]:
    """(clips/s from the first shard to the last, seconds until the first) of one run."""
    before, behind = WAYS[way]
    with tempfile.TemporaryDirectory() as output:
        words = f"training.extract_features {folder} --model_name_or_path {checkpoint} --output_dir {output}"
        command = [
            sys.executable,
            *before.split(),
            *words.split(),
            "--clips_per_shard",
            str(SHARD),
            *behind.split(),
            *more,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        start = time.time()
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
        times = sorted(path.stat().st_mtime for path in Path(output).glob("*.parquet"))
    return SHARD * (len(times) - 1) / (times[-1] - times[0]), times[0] - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=3)
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    checkpoint, folder = (os.path.abspath(path) for path in (args.checkpoint, args.folder))
    found = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            found[way].append(run(way, checkpoint, folder, more))
    base = statistics.median(rate for rate, _ in found["one process"])
    print(f"{'':16} clips/s  of one process  seconds to the first shard")
    for way, runs in found.items():
        rate, begin = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{way:16} {rate:7.2f} {rate / base:15.2f} {begin:27.1f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
