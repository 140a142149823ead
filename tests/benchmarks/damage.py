# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Damages small videos in many ways, and compares what is said of them with what FFmpeg's program says.

    python tests/benchmarks/damage.py [--mutants 200] [--seed 0] [--ffmpeg PROGRAM] [--json OUT]

Clips of H.264, HEVC, MPEG-4, MJPEG, VP9, GIF, DV and WMV in MP4, MOV, Matroska, AVI, TS and ASF are cut, get bytes
zeroed, or bits flipped. For each mutant: whether `ffmpeg -v error` has anything to say; whether reading it whole raises
VideoDecodeError; and for the frames it gives, at one and at two threads, whether each equals the undamaged file's, or
the frame of that index in a plain sequential decode of the mutant. The program is `ffmpeg`, or imageio-ffmpeg's.
"""

import argparse
import collections
import io
import json
import shutil
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from flux_hf.video_decoding import VideoDecodeError, decode_video


NUM_FRAMES, WIDTH, HEIGHT = 40, 160, 120
# name, container, codec, pixel format, size, options
FORMATS = [
    ("h264.mp4", "mp4", "libx264", "yuv420p", (WIDTH, HEIGHT), {"g": "12"}),
    ("h264.mov", "mov", "libx264", "yuv420p", (WIDTH, HEIGHT), {"g": "12", "bf": "0"}),
    ("h264.mkv", "matroska", "libx264", "yuv420p", (WIDTH, HEIGHT), {"g": "12"}),
    ("h264.ts", "mpegts", "libx264", "yuv420p", (WIDTH, HEIGHT), {"g": "12"}),
    ("hevc.mp4", "mp4", "libx265", "yuv420p", (WIDTH, HEIGHT), {"x265-params": "log-level=none:keyint=12"}),
    ("mpeg4.avi", "avi", "mpeg4", "yuv420p", (WIDTH, HEIGHT), {}),
    ("mjpeg.avi", "avi", "mjpeg", "yuvj420p", (WIDTH, HEIGHT), {}),
    ("vp9.mkv", "matroska", "libvpx-vp9", "yuv420p", (WIDTH, HEIGHT), {"cpu-used": "8", "deadline": "realtime"}),
    ("gif.gif", "gif", "gif", "rgb8", (WIDTH, HEIGHT), {}),
    ("dv.avi", "avi", "dvvideo", "yuv420p", (720, 576), {}),
    ("wmv2.asf", "asf", "wmv2", "yuv420p", (WIDTH, HEIGHT), {}),
]


def picture(index: int, width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    levels = [columns * 2 + 7 * index, rows * 3 + 3 * index, (rows + columns) // 8 * 16 + 9 * index]
    return np.stack([level % 200 + 20 for level in levels], axis=-1).astype(np.uint8)


def encoded(container: str, codec: str, pixel_format: str, size: tuple[int, int], options: dict) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def mutant(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """What was done, and the result. The first twentieth, with the headers, is spared but for cuts."""
    kind = ("cut", "zeroed", "flipped")[int(rng.integers(3))]
    if kind == "cut":
        return kind, content[: int(len(content) * rng.uniform(0.2, 0.98))]
    damaged = bytearray(content)
    for at in rng.integers(len(content) // 20, len(content) - 8, int(rng.integers(1, 4))):
        if kind == "zeroed":
            damaged[at : at + 8] = bytes(8)
        else:
            damaged[at] ^= 1 << int(rng.integers(8))
    return kind, bytes(damaged)


def ffmpeg_says(program: str, path: Path) -> str:
    command = [program, "-v", "error", "-i", str(path), "-map", "0:v:0", "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120).stderr.strip()


def plain_frames(path: Path) -> dict[int, list[np.ndarray]]:
    """A sequential decode that takes what it gets: index by place, and by time -> frames."""
    frames: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"  # as the program's; by slices HEVC is concealed otherwise
            for place, frame in enumerate(container.decode(video=0)):
                picture = frame.to_ndarray(format="rgb24")
                for index in {place, place if frame.time is None else round(frame.time * 25)}:
                    frames[index].append(picture)
    except av.FFmpegError:
        pass  # the frames before it are what counts
    return frames


def check(path: Path, sound: np.ndarray) -> dict:
    """Whether it is read whole, and how many frames are neither the sound file's nor the plain decode's."""
    result = {"ours": "", "other": 0}
    try:
        decode_video(path)
    except VideoDecodeError as error:
        result["ours"] = error.reason
    plain = plain_frames(path)
    for threads in (1, 2):
        for indices in ([0, 1], [7, 19], [5, 11, 23, 31, 39]):
            try:
                frames, _ = decode_video(path, indices, num_threads=threads)
            except (VideoDecodeError, ValueError):
                continue
            for index, frame in zip(indices, frames.numpy(), strict=True):
                allowed = [*plain[int(index)], *sound[index : index + 1]]
                result["other"] += not any(np.array_equal(frame, picture) for picture in allowed)
    return result


def find_program(given: str | None) -> str:
    program = given or shutil.which("ffmpeg")
    if program is None:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ffmpeg", help="the program; the one on the path, or imageio-ffmpeg's")
    parser.add_argument("--json", type=Path, help="also write all results there")
    options = parser.parse_args()
    program, rng, rows = find_program(options.ffmpeg), np.random.default_rng(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for name, *how in FORMATS:
            content = encoded(*how)
            (Path(folder) / name).write_bytes(content)
            sources[name] = content, decode_video(content)[0].numpy()
            rows.append({"file": name, "kind": "sound", "ffmpeg": ffmpeg_says(program, Path(folder) / name)})
            rows[-1] |= check(Path(folder) / name, sources[name][1])
        for number in range(options.mutants):
            name = FORMATS[number % len(FORMATS)][0]
            content, sound = sources[name]
            kind, damaged = mutant(content, rng)
            path = Path(folder) / f"{number:04d}_{name}"
            path.write_bytes(damaged)
            rows.append({"file": name, "kind": kind, "ffmpeg": ffmpeg_says(program, path), **check(path, sound)})
    print("| file | kind | number | both say damaged | both say sound | only ffmpeg | only ours | other pictures |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    groups: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for row in rows:
        groups[row["file"], row["kind"]].append(row)
        groups["all", "sound" if row["kind"] == "sound" else "damaged"].append(row)
    for (name, kind), members in groups.items():
        said = collections.Counter((bool(row["ffmpeg"]), bool(row["ours"])) for row in members)
        counts = [said[True, True], said[False, False], said[True, False], said[False, True]]
        other = sum(row["other"] > 0 for row in members)
        print(f"| {name} | {kind} | {len(members)} | {' | '.join(map(str, counts))} | {other} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
