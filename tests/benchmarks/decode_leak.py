# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Opens videos 2,000 times and prints memory, open files and threads: all must stay flat.

    python tests/benchmarks/decode_leak.py [FILE ...] [--opens 2000]

Without files it makes its own: one that decord reads, two that PyAV reads, and one that cannot be decoded. Linux only.
Exit status 1 if files or threads grow, or memory by more than 32 MiB after the first tenth.
"""

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

import torch  # noqa: F401  before decord


REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "flux_hf")]


def usage() -> tuple[float, int, int]:
    """(resident memory in MiB, open files, threads) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def make_files(folder: Path) -> list[str]:
    import video_files

    options = {"g": "12", "bf": "2"}
    return [
        video_files.write(folder, "h264.mp4", video_files.encode("libx264", 60, options=options)),
        video_files.write(folder, "packed.avi", video_files.packed_bframes_avi(61)),
        video_files.write(folder, "open.mkv", video_files.encode("libx264", 60, (640, 360), container="matroska")),
        video_files.write(folder, "bad.mp4", b"not a video"),
    ]


def main() -> int:
    from flux_hf.video_decoding import VideoDecodeError, decode_video, sample_frame_indices

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--opens", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or make_files(Path(folder))
        start, errors = None, 0
        for i in range(arguments.opens + 1):
            if i % max(1, arguments.opens // 10) == 0:
                gc.collect()
                memory, open_files, threads = usage()
                print(f"{i:6} opens  {memory:8.1f} MiB  {open_files:4} files  {threads:4} threads", flush=True)
                if i == max(1, arguments.opens // 10):
                    start = memory, open_files, threads
            try:
                decode_video(files[i % len(files)], lambda m: sample_frame_indices(m.total_num_frames, 8).reshape(-1))
            except VideoDecodeError:
                errors += 1
    print(f"{errors} of them raised VideoDecodeError")
    grown = memory - start[0] > 32 or open_files > start[1] or threads > start[2]
    return int(grown)


if __name__ == "__main__":
    raise SystemExit(main())
