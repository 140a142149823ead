# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A cache of decoded frames on disk: each clip is decoded once, for all epochs, processes and runs."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from torch import Tensor

from flux_hf.token_selection import as_count
from flux_hf.video_decoding import VideoDecodeError

from .reader import (
    READ_ERRORS,
    Clip,
    FrameSampler,
    chosen_frames,
    describe_failure,
    file_identity,
    iter_frames,
    single_threaded,
)


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedClip(Clip):
    """A clip whose frames lie decoded in `path`, an .npy file (N, 3, H, W) uint8 of `cache_clips`."""

    path: str
    rule: str = "kinetics"
    picture: bool = False

    @property
    def sampling_rule(self) -> str:
        return self.rule

    @property
    def is_picture(self) -> bool:
        return self.picture

    def read(self, sampler: FrameSampler) -> Tensor:
        try:
            frames = np.lib.format.open_memmap(self.path, mode="r")
        except ValueError as error:
            raise VideoDecodeError(self.path, f"a damaged file of the cache ({error})") from error
        return torch.from_numpy(np.asarray(frames[chosen_frames(self.path, sampler, len(frames))]))

    def identity(self) -> list:
        return file_identity(self.path)


@dataclass(frozen=True, slots=True)
class FailedClip(Clip):
    """A clip that could not be read when it was to be cached: `read` says so."""

    reason: str
    picture: bool = False

    @property
    def is_picture(self) -> bool:
        return self.picture

    def read(self, sampler: FrameSampler) -> Tensor:
        raise VideoDecodeError(self.name, self.reason)

    def identity(self) -> list:
        raise VideoDecodeError(self.name, self.reason)


def cache_clips(
    clips: Sequence[Clip],
    directory: str | os.PathLike,
    short_side: int | None = None,
    max_frames: int | None = None,
    num_workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
) -> list[Clip]:
    """Decodes each clip once, for all epochs, processes and runs that share `directory`.

    A file is named by its clip's content (path, size and time of change) and the settings, so that one written by
    another process or run is used, and a clip that has changed is decoded anew. Several processes may work at once.
    A clip takes N x 3 x H x W bytes: 3 GB for a thousand clips of 64 frames of 128 x 128 pixels.

    Args:
        clips: What to cache.
        directory: Where to; made if it is not there.
        short_side: Pixels that the shorter side is brought down to (bilinear, antialiased) if it is longer.
        max_frames: Frames kept of a clip, spread evenly; all if not given. Training then picks among these.
        num_workers: Threads that decode.
        rank, world_size: Of this process, among those that cache the same clips. Each begins at another one, and finds
            what the others have written.

    Returns:
        Clips of the same names and labels in the same order. `read` copies the wanted frames from the file; of a
        clip that cannot be decoded it raises VideoDecodeError, and another run tries it again.

    Raises:
        OSError: the cache cannot be written.
    """
    for name, value in (("short_side", short_side), ("max_frames", max_frames)):
        if value is not None:
            as_count(name, value)
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)

    def cache(clip: Clip) -> Clip:
        return _cache_clip(clip, directory, short_side, max_frames)

    start = len(clips) * rank // world_size
    with ThreadPoolExecutor(as_count("num_workers", num_workers)) as pool:
        turned = list(pool.map(cache, [*clips[start:], *clips[:start]]))
    cached = [*turned[len(clips) - start :], *turned[: len(clips) - start]]
    failed = sum(isinstance(clip, FailedClip) for clip in cached)
    logger.info("%d clips in the cache %s, %d cannot be decoded", len(cached) - failed, directory, failed)
    return cached


def _cache_clip(clip: Clip, directory: Path, short_side: int | None, max_frames: int | None) -> Clip:
    try:
        settings = [clip.identity(), short_side, max_frames]
    except READ_ERRORS as error:
        return FailedClip(clip.name, clip.label, describe_failure(error), clip.is_picture)
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    # In sub-folders: file systems are slow with a hundred thousand names in one.
    target = directory / name[:2] / f"{name}.npy"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{name}.{uuid.uuid4().hex}.npy")
        try:
            with open(temporary, "wb") as file:
                reason = _write_frames(file, single_threaded(clip), short_side, max_frames)
            if reason is not None:
                return FailedClip(clip.name, clip.label, reason, clip.is_picture)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return CachedClip(clip.name, clip.label, str(target), clip.sampling_rule, clip.is_picture)


def _write_frames(file: BinaryIO, clip: Clip, short_side: int | None, max_frames: int | None) -> str | None:
    """Writes an .npy file part by part; why the clip cannot be read, if it cannot. An error of writing is raised."""
    parts, count, shape = iter_frames(clip, max_frames), 0, None
    while True:
        try:
            frames = next(parts, None)
        except READ_ERRORS as error:
            return describe_failure(error)
        if frames is None:
            break
        height, width = frames.shape[-2:]
        if short_side is not None and min(height, width) > short_side:
            scale = short_side / min(height, width)
            frames = tvF.resize(frames, [round(height * scale), round(width * scale)], antialias=True)
        if shape is None:
            shape = tuple(frames.shape[1:])
            _write_npy_header(file, count, shape)
        count += len(frames)
        file.write(frames.contiguous().numpy().data)
    # numpy leaves room for any number in the first place, so that the header keeps its length.
    file.seek(0)
    _write_npy_header(file, count, shape)
    return None


def _write_npy_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
