# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Checks every clip under a folder against a full sequential decode, and prints what is exact and what is not.

    python tests/benchmarks/decode_exactness.py DATA_DIR [--json OUT] [--seconds 120]

Reference: all frames that PyAV decodes in sequence from FFmpeg's best video stream, turned upright. Against it:
`decode_video` at uniform, random, reversed and repeated indices, with `backend="decord"` too, which may refuse a file,
and decord's `get_batch` alone at the same ones.
A file that does not decode counts as "error" if `decode_video` raises VideoDecodeError too. Each file is read in a
process of its own kind that is replaced when it dies or takes too long. Exit status 1 if anything is not exact.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import multiprocessing
from pathlib import Path

import numpy as np


NOT_VIDEO = {".csv", ".md", ".txt", ".json", ".npz", ".npy", ".pt"}


def digest(image: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest()


def reference_frames(path: str) -> list[str]:
    """Digests of all frames in presentation order. Independent of the code under test."""
    import av

    quarter_turns = {0: 0, 90: 1, 180: 2, -180: 2, -90: 3}
    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream")
        frames = container.decode(stream)
        return [digest(np.rot90(f.to_ndarray(format="rgb24"), quarter_turns[f.rotation])) for f in frames]


def index_lists(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    uniform = np.linspace(0, count - 1, 16).round().astype(int)
    return {
        "uniform": uniform,
        "random": rng.integers(0, count, 24),
        "reversed": uniform[::-1],
        "repeated": np.repeat(uniform[:4], 2),
        "ends": np.array([count - 1, 0]),
        "late": np.unique(rng.integers(count // 2, count, 4)),
        "last": np.array([count - 1]),
    }


def check_with(read, reference: list[str]) -> dict[str, int]:
    """Wrong frames for each list of indices; `read` gives (N, H, W, 3)."""
    wrong = {}
    for name, indices in index_lists(len(reference)).items():
        frames = read(indices)
        wrong[name] = sum(digest(frame) != reference[i] for frame, i in zip(frames, indices, strict=True))
    return {name: count for name, count in wrong.items() if count}


def decord_alone(path: str, reference: list[str]) -> str:
    """How decord's `get_batch` does without help."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        length = len(decord.VideoReader(path))
        wrong = check_with(lambda indices: decord.VideoReader(path).get_batch(indices).asnumpy(), reference)
    except Exception as error:  # whatever a plain reader raises is the result here
        return f"{type(error).__name__}"
    notes = [] if length == len(reference) else [f"{length} frames for {len(reference)}"]
    notes += [f"wrong {wrong}"] if wrong else []
    return ", ".join(notes) or "exact"


def decord_backend(path: str, reference: list[str]) -> str:
    """Whether `backend="decord"` gives the same frames."""
    from flux_hf.video_decoding import VideoDecodeError, decode_video

    try:
        wrong = check_with(lambda indices: decode_video(path, indices, backend="decord")[0].numpy(), reference)
    except VideoDecodeError:
        return "refused"
    return "WRONG" if wrong else "exact"


def check_file(path: str) -> dict:
    import torch  # noqa: F401  before decord

    from flux_hf.video_decoding import VideoDecodeError, decode_video

    result = {"path": path, "status": "exact", "backend": "", "frames": 0, "note": "", "decord": ""}
    reference = None
    try:
        reference = reference_frames(path)
    except Exception as error:  # any failure of the reference must be an error of ours
        result["note"] = f"reference: {type(error).__name__}"
    try:
        frames, metadata = decode_video(path, lambda metadata: [0, metadata.total_num_frames - 1])
        result.update(backend=metadata.video_backend, frames=metadata.total_num_frames)
        if reference is None:
            result.update(status="DECODED", note="the reference decoder fails on it")
            return result
        wrong = check_with(lambda indices: decode_video(path, indices)[0].numpy(), reference)
        if metadata.total_num_frames != len(reference):
            wrong["length"] = len(reference)
        if wrong:
            result.update(status="WRONG", note=str(wrong))
        result["decord_backend"] = decord_backend(path, reference)
        if result["decord_backend"] == "WRONG":
            result.update(status="WRONG", note="backend='decord'")
        result["decord"] = decord_alone(path, reference)
    except VideoDecodeError as error:
        result["note"] = error.reason
        result["status"] = "error" if not reference else "FAILED"
    except Exception as error:
        result.update(status="FAILED", note=f"{type(error).__name__}: {error}")
    return result


def check_folder(folder: Path, seconds: float) -> list[dict]:
    paths = [str(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() not in NOT_VIDEO]
    context, results, pool = multiprocessing.get_context("spawn"), [], None
    for path in paths:
        pool = pool or concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        try:
            results.append(pool.submit(check_file, path).result(timeout=seconds))
            continue
        except concurrent.futures.process.BrokenProcessPool:
            status = "DEAD"
        except TimeoutError:
            status = "HANGS"
            for process in list(pool._processes.values()):
                process.kill()
        results.append({"path": path, "status": status, "backend": "", "frames": 0, "note": "", "decord": ""})
        pool.shutdown(wait=True, cancel_futures=True)
        pool = None
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="also write all results there")
    parser.add_argument("--seconds", type=float, default=120.0, help="a file that takes longer counts as hanging")
    arguments = parser.parse_args()
    results = check_folder(arguments.folder, arguments.seconds)
    for r in results:
        if r["status"] != "exact" or r["decord"] != "exact":
            path = Path(r["path"]).relative_to(arguments.folder)
            print(f"{r['status']:8} {r['backend']:7} {r['frames']:6} {path}  {r['note']}  [decord: {r['decord']}]")
    print()
    groups = collections.defaultdict(collections.Counter)
    for r in results:
        parts = Path(r["path"]).relative_to(arguments.folder).parts
        group = parts[0] if len(parts) > 1 else "."
        groups[group][f"{r['status']} {r['backend']}".strip()] += 1
        groups["all"][r["status"]] += 1
        groups['backend="decord"'][r.get("decord_backend", "error")] += 1
        groups["decord's get_batch alone"]["exact" if r["decord"] == "exact" else "not exact"] += 1
    for group, counts in groups.items():
        print(f"{group:28} {dict(counts)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return int(any(r["status"] not in ("exact", "error") for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
