# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips and how they are read: video files, pictures, folders of pictures, rows of `datasets` sets."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
import fsspec
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from flux_hf.video_decoding import VideoDecodeError, decode_video, iter_video_frames
from flux_hf.video_transforms import picture_levels
from flux_hf.video_windows import VideoWindow, iter_windows


Label = str | tuple[str, ...] | None
FrameSampler = Callable[[int], np.ndarray]

FRAME_TEMPLATE = "img_{:05}.jpg"
READ_ERRORS = (VideoDecodeError, OSError)  # what `Clip.read` raises for a clip that cannot be read
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"}
    | {".vob", ".webm", ".wmv"}
)
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
CHUNK_FRAMES = 256  # read at once where a whole clip is wanted: a minute of 1080p would take 11 GB


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled clip that can be read.

    Args:
        name: What logs and prediction files call it; unique in its set.
        label: The class; several of a multi-label set as a tuple; None where it is unknown.
    """

    name: str
    label: Label

    @property
    def sampling_rule(self) -> str:
        """Of `pick_frames`: how training takes frames from such clips."""
        return "kinetics"

    @property
    def is_picture(self) -> bool:
        """Whether it is a single picture, in which nothing moves."""
        return False

    def read(self, sampler: FrameSampler) -> Tensor:
        """Reads the frames that `sampler(total_frames)` asks for, in any order, repeated at will.

        A video whose index promises more frames than there are calls it again with their true number.

        Returns:
            (N, 3, H, W) uint8 in the order asked for; the channels may be the innermost in memory.

        Raises:
            VideoDecodeError: damaged, or no video.
            OSError: not there, or not to be opened.
        """
        raise NotImplementedError

    def chunks(self, sampler: FrameSampler | None, chunk_frames: int) -> Iterator[Tensor]:
        """The frames that `sampler` asks for, rising and each once, or all if None, up to `chunk_frames` at a time.

        This one looks frames up; videos are decoded in one pass.

        Yields:
            (n, 3, H, W) uint8, in order.

        Raises:
            As `read`.
        """
        chosen: np.ndarray | None = None
        for start in itertools.count(0, chunk_frames):

            def part(available: int, start: int = start) -> np.ndarray:
                nonlocal chosen
                chosen = np.arange(available) if sampler is None else sampler(available)
                return chosen[start : start + chunk_frames]

            yield self.read(part)
            if start + chunk_frames >= len(chosen):
                return

    def windows(self, seconds: float, stride: float, num_frames: int) -> Iterator[VideoWindow]:
        """Its windows, as `flux_hf.iter_windows`.

        Raises:
            VideoDecodeError: also where it has no times: folders of frames, cached frames, parts of videos.
        """
        raise VideoDecodeError(self.name, f"a {type(self).__name__} has no windows: give the video itself")

    def identity(self) -> list:
        """What tells this clip's content from another's, for names of cached files. Raises OSError if it is gone."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class VideoFile(Clip):
    """A video file or URL, or the part of it from second `start` to `end`.

    `num_threads`: as in `flux_hf.decode_video`. The part's frames are found by the mean frame rate.
    """

    path: str
    num_threads: int = 0
    start: float | None = None
    end: float | None = None

    def read(self, sampler: FrameSampler) -> Tensor:
        frames, _ = decode_video(self.path, partial(self._chosen, sampler), self.num_threads)
        return frames.permute(0, 3, 1, 2)

    def chunks(self, sampler: FrameSampler | None, chunk_frames: int) -> Iterator[Tensor]:
        indices = None
        if sampler is not None or self.start is not None or self.end is not None:
            indices = partial(self._chosen, sampler or np.arange)
        for frames in iter_video_frames(self.path, indices, chunk_frames, self.num_threads):
            yield frames.permute(0, 3, 1, 2)

    def windows(self, seconds: float, stride: float, num_frames: int) -> Iterator[VideoWindow]:
        if self.start is not None or self.end is not None:
            raise VideoDecodeError(self.name, "a part of a video has no windows: give the video itself")
        yield from iter_windows(self.path, seconds, stride, num_frames, num_threads=self.num_threads)

    def _chosen(self, sampler: FrameSampler, metadata: VideoMetadata) -> np.ndarray:
        """What the sampler asks for, of the part's frames, as indices into the whole."""
        if self.start is None and self.end is None:
            return sampler(metadata.total_num_frames)
        first, last = frames_between(self.path, self.start, self.end, metadata.fps, metadata.total_num_frames)
        return first + np.asarray(sampler(last - first))

    def identity(self) -> list:
        part = [] if self.start is None and self.end is None else [self.start, self.end]
        return [*file_identity(self.path), *part]


@dataclass(frozen=True, slots=True)
class Picture(Clip):
    """A picture file: a clip of one frame."""

    path: str

    @property
    def is_picture(self) -> bool:
        return True

    def read(self, sampler: FrameSampler) -> Tensor:
        frame = torch.from_numpy(_read_picture(self.path)).permute(2, 0, 1)
        return frame[None][torch.from_numpy(chosen_frames(self.path, sampler, 1))]

    def identity(self) -> list:
        return file_identity(self.path)


@dataclass(frozen=True, slots=True)
class FrameFolder(Clip):
    """A folder of pictures `template.format(1)` to `template.format(num_frames)`, all of one size."""

    path: str
    num_frames: int
    template: str = FRAME_TEMPLATE

    @property
    def sampling_rule(self) -> str:
        return "ssv2"

    def read(self, sampler: FrameSampler) -> Tensor:
        if self.num_frames < 1:
            raise VideoDecodeError(self.path, f"its number of frames is {self.num_frames}")
        wanted, positions = np.unique(chosen_frames(self.path, sampler, self.num_frames), return_inverse=True)
        frames = [_read_picture(self._file(index)) for index in wanted]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise VideoDecodeError(self.path, f"its pictures have several sizes: {sorted(sizes)}")
        return torch.from_numpy(np.stack(frames)[positions]).permute(0, 3, 1, 2)

    def identity(self) -> list:
        # A folder's own time changes with every picture added, removed or replaced by renaming.
        ends = (self._file(index) for index in {0, max(self.num_frames, 1) - 1})
        return [self.template, self.num_frames, *map(file_identity, (self.path, *ends))]

    def _file(self, index: int) -> str:
        return os.path.join(self.path, self.template.format(index + 1))


@dataclass(frozen=True, slots=True)
class DatasetRow(Clip):
    """A row of a `datasets.Dataset` whose `column` is a `Video(decode=False)`; `path` is the one it holds, if any."""

    dataset: datasets.Dataset = field(repr=False, compare=False)
    row: int
    column: str
    path: str | None = None
    num_threads: int = 0

    def read(self, sampler: FrameSampler) -> Tensor:
        return decode_value(self.dataset[self.row][self.column], sampler, self.num_threads)

    def chunks(self, sampler: FrameSampler | None, chunk_frames: int) -> Iterator[Tensor]:
        source, path = _source_of(self.dataset[self.row][self.column])
        try:
            yield from _decode_chunks(source, sampler, chunk_frames, self.num_threads)
        except VideoDecodeError as error:
            raise VideoDecodeError(path or error.source, error.reason) from error

    def identity(self) -> list:
        file = file_identity(self.path) if self.path is not None and os.path.isfile(self.path) else None
        return [self.dataset._fingerprint, self.row, self.column, file]


def frames_between(
    name: str, start: float | None, end: float | None, frame_rate: float | None, total_frames: int
) -> tuple[int, int]:
    """The first frame shown at second `start` or later, and the one after the last that is shown before `end`.

    At least one frame; an `end` behind the video's own is taken for that.

    Raises:
        VideoDecodeError: the video has no frame rate, or ends before `start`.
    """
    if not frame_rate:
        raise VideoDecodeError(name, "it has no frame rate, and a part of it is asked for by time")
    first = 0 if start is None else math.ceil(round(start * frame_rate, 6))
    if first >= total_frames:
        raise VideoDecodeError(name, f"it ends after {total_frames / frame_rate:.3f} s, before the start at {start} s")
    last = total_frames if end is None else math.ceil(round(end * frame_rate, 6))
    return first, max(first + 1, min(last, total_frames))


def _decode(source: str | bytes, sampler: FrameSampler, num_threads: int) -> Tensor:
    frames, _ = decode_video(source, lambda metadata: sampler(metadata.total_num_frames), num_threads)
    return frames.permute(0, 3, 1, 2)


def _decode_chunks(
    source: str | bytes, sampler: FrameSampler | None, chunk_frames: int, num_threads: int
) -> Iterator[Tensor]:
    indices = None if sampler is None else lambda metadata: sampler(metadata.total_num_frames)
    for frames in iter_video_frames(source, indices, chunk_frames, num_threads):
        yield frames.permute(0, 3, 1, 2)


def _source_of(video: Mapping[str, Any] | bytes | str | None) -> tuple[str | bytes, str | None]:
    """What to decode of a value of a `Video(decode=False)` column, and the path it bears."""
    if not isinstance(video, Mapping):
        video = {"bytes": video} if isinstance(video, bytes) else {"path": video}
    content, path = video.get("bytes"), video.get("path")
    if content is None and path is None:
        raise VideoDecodeError("<row>", "it holds no video")
    if content is None and "://" in path and not path.lower().startswith(("http://", "https://")):
        content = _fetch(path)
    return (path if content is None else content), path


def decode_value(video: Mapping[str, Any] | bytes | str | None, sampler: FrameSampler, num_threads: int = 0) -> Tensor:
    """Decodes a value of a `Video(decode=False)` column: content, a path, or a URL of any kind that fsspec knows."""
    source, path = _source_of(video)
    try:
        return _decode(source, sampler, num_threads)
    except VideoDecodeError as error:
        raise VideoDecodeError(path or error.source, error.reason) from error


def _fetch(url: str) -> bytes:
    """The content of hf://..., zip://...::hf://... and the like."""
    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except OSError:
        raise
    except Exception as error:  # each of fsspec's file systems has exceptions of its own
        raise VideoDecodeError(url, f"it cannot be fetched ({error})") from error


def chosen_frames(name: str, sampler: FrameSampler, total_frames: int) -> np.ndarray:
    chosen = np.asarray(sampler(total_frames))
    if chosen.ndim != 1 or chosen.size == 0 or chosen.min() < 0 or chosen.max() >= total_frames:
        raise ValueError(f"frame indices of {name} must be a flat list within [0, {total_frames}), got {chosen}")
    return chosen


def _read_picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the camera says (EXIF)."""
    with open(path, "rb") as file:
        try:
            return picture_levels(PIL.ImageOps.exif_transpose(PIL.Image.open(file)))
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise VideoDecodeError(path, str(error)) from error


def file_identity(path: str) -> list:
    if "://" in path and not os.path.exists(path):
        return [path]
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def describe_failure(error: Exception) -> str:
    """A reason that names the file, for one of `READ_ERRORS`."""
    return str(error) if isinstance(error, VideoDecodeError) else f"{type(error).__name__}: {error}"


def iter_frames(clip: Clip, max_frames: int | None = None, chunk_frames: int = CHUNK_FRAMES) -> Iterator[Tensor]:
    """All frames of a clip, or at most `max_frames` spread evenly from its first to its last.

    Yields:
        (n, 3, H, W) uint8, n up to `chunk_frames`, in order.

    Raises:
        As `Clip.read`.
    """
    if max_frames is None:
        yield from clip.chunks(None, chunk_frames)
        return

    def sampler(available: int) -> np.ndarray:
        return np.round(np.linspace(0, available - 1, min(available, max_frames))).astype(np.int64)

    if max_frames <= chunk_frames:
        yield clip.read(sampler)  # which can choose again, where a video ends before its index says
    else:
        yield from clip.chunks(sampler, chunk_frames)


def single_threaded(clip: Clip) -> Clip:
    """The clip, decoded by one thread: for where several are read at once."""
    return replace(clip, num_threads=1) if isinstance(clip, (VideoFile, DatasetRow)) else clip
