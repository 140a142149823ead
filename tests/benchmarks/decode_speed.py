# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Wall time of decoding, ours and plain decord's, in turn, medians: `python tests/benchmarks/decode_speed.py FILE ...`.

Twelve uniform frames, opening included; ratios are to `decord.VideoReader.get_batch`, which looks for no damage.
"""

import argparse
import statistics
import time
from collections.abc import Callable


# isort: off
import torch  # noqa: F401
import decord  # after torch
# isort: on

from flux_hf import decode_video, sample_frame_indices


NUM_FRAMES = 12


def plain_decord(path: str) -> None:
    reader = decord.VideoReader(path, num_threads=0)
    reader.get_batch(sample_frame_indices(len(reader), NUM_FRAMES)[0])


def ours(path: str, verify: bool = True) -> None:
    decode_video(path, lambda metadata: sample_frame_indices(metadata.total_num_frames, NUM_FRAMES)[0], verify=verify)


WAYS: dict[str, Callable[[str], None]] = {
    "decord": plain_decord,
    "ours": ours,
    "ours, verify=False": lambda path: ours(path, verify=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for path in options.files:
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds + 1):
            for name, decode in WAYS.items():
                start = time.perf_counter()
                decode(path)
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up
        shown = ", ".join(f"{name} {t * 1e3:.0f} ms ({t / medians['decord']:.2f})" for name, t in medians.items())
        print(f"{path}: {shown}")


if __name__ == "__main__":
    main()
