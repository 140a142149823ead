# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Damages small videos in many ways, and compares what is said of them with what FFmpeg's program says.

    python tests/benchmarks/damage.py [--mutants 200] [--seed 0] [--data FOLDER] [--ffmpeg PROGRAM] [--json OUT]

Clips of H.264, HEVC, MPEG-4, MJPEG, VP9, GIF, DV and WMV in MP4, MOV, Matroska, AVI, TS and ASF are cut, get bytes
zeroed, or bits flipped. With --data it is the files of a folder of up to 200 kB instead, and all its files are checked
as they are. For each: whether `ffmpeg -v error` has anything to say (times are left as the file has them, else it
complains of the rounding of sound ones); whether reading it whole raises VideoDecodeError; whether that, or the frames,
depend on threads (1, 2, 4) or source (path, bytes, file object); and for the frames of some indices, at one and at two
threads, whether each equals the undamaged file's, or the frame of that index or time in a plain sequential decode of
the mutant. The program is `ffmpeg`, or imageio-ffmpeg's.
"""

import argparse
import collections
import hashlib
import io
import json
import shutil
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from flux_hf.video_decoding import VideoDecodeError, decode_video, iter_video_frames
from flux_hf.video_streams import MediaFile


NUM_FRAMES, WIDTH, HEIGHT = 40, 160, 120
SMALL_BYTES = 200_000
NOT_VIDEO = {".csv", ".md", ".txt", ".json", ".npz", ".npy", ".pt"}
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
    command = [program, "-v", "error", "-i", str(path), "-map", "0:v:0", "-enc_time_base", "demux", "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120).stderr.strip()


def digest(image: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest()


def plain_frames(path: Path) -> list[tuple[float | None, str]]:
    """(seconds, digest) of each frame of a sequential decode that takes what it gets."""
    frames = []
    try:
        with MediaFile(str(path)).open() as container:
            video = container.streams.best("video")
            video.thread_type = "AUTO"  # as the program's; by slices HEVC is concealed otherwise
            for frame in container.decode(video):
                turns = {90: 1, 180: 2, -180: 2, -90: 3}.get(frame.rotation, 0)
                image = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                frames.append((frame.time, digest(image)))
    except (av.FFmpegError, AttributeError, IndexError):
        pass  # the frames before it are what counts; no video stream, or one that appears midway
    return frames


def whole(source, threads: int) -> tuple[str, list[str]]:
    """Why it cannot be read whole, if so, and the frames before that."""
    frames = []
    try:
        for chunk in iter_video_frames(source, chunk_frames=1, num_threads=threads):
            frames.append(digest(chunk[0].numpy()))
    except VideoDecodeError as error:
        return error.reason, frames
    return "", frames


def check(path: Path, sound: list[tuple[float | None, str]]) -> dict:
    """Whether it is read whole, on what that depends, and how many frames are neither file's."""
    content = path.read_bytes()
    ways = [whole(str(path), 1), whole(str(path), 2), whole(content, 4), whole(io.BytesIO(content), 0)]
    result = {"ours": ways[0][0], "differs": sum(way != ways[0] for way in ways), "other": 0}
    plain = plain_frames(path)
    for threads in (1, 2):
        for share in ([0.0, 0.03], [0.18, 0.5], [0.13, 0.28, 0.6, 0.8, 0.99]):
            indices = sorted({int(part * len(sound)) for part in share})
            try:
                frames, _ = decode_video(path, indices, num_threads=threads)
            except (VideoDecodeError, ValueError):
                continue
            for index, frame in zip(indices, frames.numpy(), strict=True):
                time = sound[index][0]
                allowed = [look for place, (at, look) in enumerate(plain) if place == index or (at == time is not None)]
                result["other"] += digest(frame) not in [*allowed, sound[index][1]]
    return result


def find_program(given: str | None) -> str:
    program = given or shutil.which("ffmpeg")
    if program is None:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    return program


def kind_of(path: Path) -> str:
    """Codec and the ending of the name."""
    try:
        with MediaFile(str(path)).open() as container:
            codec = container.streams.best("video").codec_context.name
    except (av.FFmpegError, AttributeError):
        return "no video"
    return f"{codec} {path.suffix}"


def table(rows: list[dict]) -> str:
    lines = ["| file | kind | number | both damaged | both sound | only ffmpeg | only ours | differs | other |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    groups: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for row in rows:
        groups[row["file"], row["kind"]].append(row)
        groups["all", "as they are" if row["kind"] == "as it is" else "damaged"].append(row)
    for (name, kind), members in sorted(groups.items()):
        said = collections.Counter((bool(row["ffmpeg"]), bool(row["ours"])) for row in members)
        counts = [said[True, True], said[False, False], said[True, False], said[False, True]]
        counts += [sum(row[key] > 0 for row in members) for key in ("differs", "other")]
        lines.append(f"| {name} | {kind} | {len(members)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="take the files of this folder")
    parser.add_argument("--ffmpeg", help="the program; the one on the path, or imageio-ffmpeg's")
    parser.add_argument("--json", type=Path, help="also write all results there")
    options = parser.parse_args()
    program, rng, rows, made = find_program(options.ffmpeg), np.random.default_rng(options.seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            files = [Path(folder) / name for name, *_ in FORMATS]
            for path, (_, *how) in zip(files, FORMATS, strict=True):
                path.write_bytes(encoded(*how))
        else:
            files = [path for path in sorted(options.data.rglob("*")) if path.suffix.lower() not in NOT_VIDEO]
        for path in filter(Path.is_file, files):
            ways = [whole(str(path), threads) for threads in (1, 2)]
            row = {"path": path.name, "ffmpeg": ffmpeg_says(program, path), "ours": ways[0][0], "other": 0}
            kind = kind_of(path)
            rows.append({"file": kind, "kind": "as it is", **row, "differs": int(ways[0] != ways[1])})
            if not ways[0][0] and (options.data is None or path.stat().st_size <= SMALL_BYTES):
                made.append((kind, path))
        kinds = sorted({kind for kind, _ in made})
        for number in range(options.mutants):
            # a file of each kind in turn
            candidates = [path for kind, path in made if kind == kinds[number % len(kinds)]]
            original = candidates[int(rng.integers(len(candidates)))]
            kind, damaged = mutant(original.read_bytes(), rng)
            path = Path(folder) / f"{options.seed}_{number:04d}_{original.name}"
            path.write_bytes(damaged)
            row = {"file": kinds[number % len(kinds)], "kind": kind, "path": path.name}
            rows.append({**row, "ffmpeg": ffmpeg_says(program, path), **check(path, plain_frames(original))})
            path.unlink()
    print(table(rows))
    for row in rows:
        if bool(row["ffmpeg"]) != bool(row["ours"]) or row["differs"] or row["other"]:
            print(
                f"{row['path']} ({row['kind']}): ffmpeg {row['ffmpeg'][:200]!r}, ours {row['ours']!r}, {row['differs']}"
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
