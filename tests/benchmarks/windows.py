# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What windows of a long video cost over one sequential decode, whether they are right, and what memory they take.

    PYTHONPATH=. python tests/benchmarks/windows.py DIR [--minutes 10] [--rounds 3] [--longest 60]

Joins the videos of a folder, over and over, to one of --minutes (MP4, H.264, 320x240, 30 frames a second, a keyframe
every 2 seconds). In each round: all frames decoded in order, and converted to RGB; windows of 2 s every second, of 16
frames. Then every window's frames against `decode_video` of their indices alone; then the peak memory of a process that
goes through the windows of 1 minute and of --longest, made of the same packets repeated. Prints a table and a line of
JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import av
import numpy as np
import torch

from flux_hf import decode_video, iter_windows
from flux_hf.video_decoding import iter_video_frames
from training.data.sources import video_files


SIZE, FPS = (320, 240), 30
MEASURE = """
import resource, sys
from flux_hf import iter_windows
count = sum(1 for _ in iter_windows(sys.argv[1], 2.0, 1.0, 16))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def frames_of(files: list[Path]) -> Iterator[np.ndarray]:
    """All frames of the files, over and over."""
    for file in cycle(files):
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield frame.reformat(*SIZE, format="yuv420p").to_ndarray()


def write_joined(files: list[Path], path: Path, minutes: float) -> None:
    """One video of so many minutes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(2 * FPS), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        frames = frames_of(files)
        for index in range(round(minutes * 60 * FPS)):
            frame = av.VideoFrame.from_ndarray(next(frames), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_repeated(source: Path, path: Path, minutes: float, part: float) -> None:
    """A video of `minutes` of the packets of `source`, a video of `part` minutes, without encoding them again."""
    with av.open(str(path), "w") as container:
        stream, before = None, 0
        for _ in range(max(1, round(minutes / part))):
            with av.open(str(source)) as one:
                stream = stream or container.add_stream_from_template(one.streams.video[0])
                end = before
                for packet in one.demux(video=0):
                    if packet.dts is None or packet.pts * packet.time_base >= 60 * minutes:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + before, packet.dts + before, stream
                    end = max(end, packet.pts + packet.duration)
                    container.mux(packet)
                before = end


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wrong_windows(path: str) -> tuple[int, int]:
    """Windows, and those of which a frame is not that of `decode_video`."""
    count = wrong = 0
    for window in iter_windows(path, 2.0, 1.0, 16):
        alone, _ = decode_video(path, lambda _, window=window: window.indices)
        count, wrong = count + 1, wrong + (not torch.equal(alone, window.frames))
    return count, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=float, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "joined.mp4")
        write_joined(video_files(args.folder), Path(path), args.minutes)
        ways: dict[str, Callable[[], object]] = {
            "sequential decode": lambda: sum(len(part) for part in iter_video_frames(path)),
            "windows of 2 s every second": lambda: sum(1 for _ in iter_windows(path, 2.0, 1.0, 16)),
        }
        times = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, work in ways.items():
                times[way].append(seconds(work))
        medians = {way: statistics.median(some) for way, some in times.items()}
        base = medians["sequential decode"]
        for way, median in medians.items():
            print(f"{way:30} {median:7.1f} s {median / base:6.2f}")
        count, wrong = wrong_windows(path)
        print(f"{wrong} of {count} windows differ from what is read alone")
        memory = {}
        for minutes in (1, args.longest):
            file = Path(folder) / f"{minutes}.mp4"
            write_repeated(Path(path), file, minutes, args.minutes)
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True
            )
            windows, peak = done.stdout.split()
            memory[minutes] = float(peak)
            print(f"{minutes:5.0f} minutes, {windows} windows: at most {float(peak):.0f} MiB")
        print(json.dumps({"seconds": times, "windows": count, "wrong": wrong, "peak_mib": memory}))


if __name__ == "__main__":
    main()
