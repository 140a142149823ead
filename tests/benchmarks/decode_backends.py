# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Wall time of reading real files: PyAV, decord with our look and damage check, plain decord. Opening included.

    python tests/benchmarks/decode_backends.py DATA_DIR [--per_folder 12] [--long] [--rounds 5] [--json OUT]

Takes files of each folder, evenly spread, and with --long also makes of some of them 11 minutes long ones (their
packets repeated with later times) and versions of 240, 480, 720 and 1080 lines. Each is read as 12 uniform frames and,
the short ones, as all frames; on 1 and 2 threads; as a path and as bytes. The ways take turns in every round; a figure
is the ratio of two medians of a file's rounds, and a cell the median of these over files, with the least and the most.
"""

import argparse
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path


# isort: off
import torch  # noqa: F401
import av
import decord  # after torch
# isort: on

from flux_hf import VideoDecodeError, decode_video, sample_frame_indices


NUM_FRAMES = 12
LONG_SECONDS = 660
HEIGHTS = (240, 480, 720, 1080)
ALL_FRAMES_LIMIT = 1500  # and of at most 720 lines: all frames have to fit into the memory
VIDEOS = {".mp4", ".avi", ".mkv", ".mov", ".webm"}


def uniform(metadata):
    return sample_frame_indices(metadata.total_num_frames, NUM_FRAMES)[0]


def plain_decord(source: str | bytes, sparse: bool, threads: int) -> None:
    reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else source, num_threads=threads)
    indices = sample_frame_indices(len(reader), NUM_FRAMES)[0] if sparse else range(len(reader))
    reader.get_batch(list(indices))


def ours(backend: str) -> Callable[[str | bytes, bool, int], None]:
    return lambda source, sparse, threads: decode_video(source, uniform if sparse else None, threads, backend)


PLAIN, CHECKED = "decord unchecked", "decord checked"
WAYS = {PLAIN: plain_decord, "PyAV": ours("pyav"), CHECKED: ours("decord")}


def lengthened(path: Path, folder: Path) -> Path:
    """The file's packets, repeated until LONG_SECONDS are full."""
    target = folder / f"long_{path.stem}.mp4"
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = source.streams.best("video")
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        content = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in packets]
        lap = max(p.pts for p in packets) - min(p.pts for p in packets) + (packets[0].duration or 1)
        for turn in range(int(LONG_SECONDS / float(lap * stream.time_base)) + 1):
            for data, pts, dts, key in content:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.time_base = pts + turn * lap, dts + turn * lap, stream.time_base
                packet.is_keyframe, packet.stream = key, copy
                out.mux(packet)
    return target


def resized(path: Path, height: int, folder: Path) -> Path:
    """The first 600 frames at another height, in H.264 with the encoder's usual groups of 250."""
    target = folder / f"{height}p_{path.stem}.mp4"
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        original = source.streams.best("video")
        width = round(original.width * height / original.height / 2) * 2
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for index, frame in enumerate(itertools.islice(source.decode(original), 600)):
            frame = frame.reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target


def choose_files(data: Path, per_folder: int, made: Path | None) -> list[Path]:
    """Real files that PyAV reads, and made ones."""
    files = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS)
        files += [found[index * len(found) // per_folder] for index in range(min(per_folder, len(found)))]
    readable = []
    for path in dict.fromkeys(files):
        try:
            decode_video(path, [0])
        except (VideoDecodeError, ValueError):
            continue
        readable.append(path)
    if made is not None:
        sound = [path for path in readable if plays_with_decord(path)]
        long = [lengthened(path, made) for path in sound[:: max(1, len(sound) // 5)][:5]]
        readable += [*long, *(resized(long[-1], height, made) for height in HEIGHTS)]
    return readable


def plays_with_decord(path: Path) -> bool:
    try:
        decode_video(path, [0], backend="decord")
    except VideoDecodeError:
        return False
    return True


def time_file(path: Path, rounds: int) -> list[dict]:
    """A row for each (frames, threads, source): medians of each way in seconds, None where it cannot."""
    metadata = decode_video(path, [0])[1]
    whole = metadata.total_num_frames <= ALL_FRAMES_LIMIT and min(metadata.height, metadata.width) <= 720
    rows = []
    for sparse in (True, False) if whole else (True,):
        for threads in (1, 2):
            for source in (str(path), path.read_bytes()):
                times: dict[str, list[float]] = {name: [] for name in WAYS}
                for _ in range(rounds + 1):  # the first round warms up
                    for name, read in WAYS.items():
                        start = time.perf_counter()
                        try:
                            read(source, sparse, threads)
                        except (VideoDecodeError, decord.DECORDError, RuntimeError, IndexError):
                            continue
                        times[name].append(time.perf_counter() - start)
                row = {"file": path.name, "sparse": sparse, "threads": threads, "bytes": isinstance(source, bytes)}
                medians = {name: statistics.median(t[1:]) if len(t) > rounds else None for name, t in times.items()}
                rows.append({**row, **medians})
    return rows


def table(rows: list[dict]) -> str:
    """Ratios to plain decord, and of PyAV to decord with the check, as markdown."""
    lines = ["| frames | threads | source | files | PyAV / plain | checked / plain | PyAV / checked |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|")
    for sparse in (True, False):
        for threads in (1, 2):
            for as_bytes in (False, True):
                chosen = [r for r in rows if (r["sparse"], r["threads"], r["bytes"]) == (sparse, threads, as_bytes)]
                pairs = (
                    ("PyAV", "decord unchecked"),
                    ("decord checked", "decord unchecked"),
                    ("PyAV", "decord checked"),
                )
                cells = []
                for above, below in pairs:
                    ratios = [r[above] / r[below] for r in chosen if r[above] and r[below]]
                    cells.append(
                        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}, n={len(ratios)})"
                    )
                kind = f"{NUM_FRAMES} uniform" if sparse else "all"
                source = "bytes" if as_bytes else "path"
                lines.append(f"| {kind} | {threads} | {source} | {len(chosen)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--per_folder", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="also make long files, and other sizes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    decord.logging.set_level(decord.logging.QUIET)
    with tempfile.TemporaryDirectory() as made:
        rows = []
        for path in choose_files(options.data, options.per_folder, Path(made) if options.long else None):
            rows += time_file(path, options.rounds)
            print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
