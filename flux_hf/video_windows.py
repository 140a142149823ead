# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Windows of a video of any length, from one pass over it: frames at even times, whatever its frame rate does."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .token_selection import as_count
from .video_decoding import Converter, Source, open_source, threads_for
from .video_frames import sequential_frames
from .video_streams import MediaFile, Stream, probe


# Seconds by which a window may end after the video and still be whole: times are rounded to a container's time base.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class VideoWindow:
    """A part of a video.

    Args:
        start, end: In seconds from the video's first frame; `end` is at most that of the last frame.
        frames: (T, H, W, 3) uint8 RGB.
        indices: (T,) int64, which frames of the video these are, not decreasing.
    """

    start: float
    end: float
    frames: Tensor
    indices: np.ndarray


@dataclass
class _OpenWindow:
    """A window that is being filled. Its end and places are on the axis of the stride."""

    begin: float  # in seconds
    end: float
    is_whole: bool
    places: np.ndarray  # rising
    pictures: list[np.ndarray] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)

    def take(self, picture, index: int, until: float) -> None:
        """Gives all places before `until` that are empty a frame; `picture()` converts it."""
        while len(self.indices) < len(self.places) and self.places[len(self.indices)] < until:
            self.pictures.append(picture())
            self.indices.append(index)

    def finished(self, end: float) -> VideoWindow:
        frames = torch.from_numpy(np.stack(self.pictures))
        return VideoWindow(self.begin, end, frames, np.array(self.indices, dtype=np.int64))


def iter_windows(
    video: Source,
    seconds: float = 2.0,
    stride: float = 1.0,
    num_frames: int = 16,
    *,
    frames: int | None = None,
    frame_stride: int | None = None,
    drop_partial: bool = False,
    num_threads: int = 0,
) -> Iterator[VideoWindow]:
    """Windows of a video, in order, decoded once however much they overlap.

    Window k begins at k * stride and shows what is on the screen at the middle of each of `num_frames` equal parts of
    it: a frame stays until the next one is due, so that nothing depends on a constant frame rate, edit lists and start
    offsets included. The last window is the first that reaches the end of the video; where it would reach beyond, it
    ends with the video, and its parts are shorter. (Where the container is wrong about that end, the last frame stays
    for the parts that are left.) The frames of windows that are open are held in memory, and nothing else, however long
    the video is.

    Args:
        video: A path, an http(s) URL, the bytes of a file, or a binary file object.
        seconds: Length of a window.
        stride: Seconds from the beginning of a window to that of the next.
        num_frames: T, frames of each window.
        frames: Length of a window in frames, in place of `seconds` and `stride`: the middle one of each of `num_frames`
            equal parts.
        frame_stride: With `frames`: frames from a window to the next; `frames` if not given.
        drop_partial: Leave out a last window that reaches beyond the end, and so all of a video shorter than one.
        num_threads: Decoding threads, as in `decode_video`.

    Yields:
        `VideoWindow`s.

    Raises:
        VideoDecodeError: as `decode_video`, but where the damage is reached, behind the windows before it.
        ValueError: an argument below what is allowed.
    """
    if frames is not None:
        length = as_count("frames", frames)
        step = as_count("frame_stride", length if frame_stride is None else frame_stride)
    else:
        length, step = float(seconds), float(stride)
        if not (length > 0 and step > 0 and np.isfinite([length, step]).all()):
            raise ValueError(f"seconds and stride must be finite and above 0, got {seconds} and {stride}")
        if frame_stride is not None:
            raise ValueError(f"frame_stride={frame_stride} is for windows by frames: give frames, or stride")
    as_count("num_frames", num_frames)
    file = open_source(video)
    stream = probe(file)
    shown = _shown_frames(file, stream, threads_for(num_threads))
    total: float | None = stream.frame_count or stream.likely_frame_count
    if frames is None:
        total = stream.shown_seconds or (total / stream.fps if stream.fps else None)
    windows = _Windows(length, step, num_frames, total, by_frames=frames is not None)
    return windows.of(shown, drop_partial)


@dataclass(frozen=True)
class _Shown:
    """A decoded frame, from when and until when it is shown, in seconds from the first."""

    frame: object
    start: float
    end: float
    is_last: bool


def _shown_frames(file: MediaFile, stream: Stream, num_threads: int) -> Iterator[_Shown]:
    """All frames with their times.

    A time that is missing, or not after the one before it (a broadcast that starts anew), is that of the frame rate.
    """
    usual = 1 / stream.fps if stream.fps else None
    before, start, shift = None, 0.0, None
    for frame in sequential_frames(file, stream, num_threads):
        time = float(frame.time) if stream.timed and frame.time is not None else None
        if before is None:
            shift = time
        else:
            known = None if time is None or shift is None else time - shift
            if known is None or known <= start:
                if usual is None:
                    raise file.error("it has no frame rate, and frames without a time of their own")
                known = start + usual
                shift = None if time is None else time - known
            yield _Shown(before, start, known, is_last=False)
            usual, start = usual or known - start, known
        before = frame
    if before is None:
        raise file.error("no frame can be decoded")
    if stream.cut_short is not None:
        raise file.error(f"it is cut short: {stream.cut_short}")
    own = before.duration * before.time_base if stream.timed and before.duration and before.time_base else None
    length = float(own) if own else usual
    if length is None:
        raise file.error("it has one frame, and nothing tells how long that is shown")
    yield _Shown(before, start, start + length, is_last=True)


@dataclass(frozen=True)
class _Windows:
    """Length and stride of windows, on the axis of seconds or of frames; where that is likely to end."""

    length: float
    step: float
    num_frames: int
    total: float | None
    by_frames: bool

    def open(self, number: int, shown: _Shown) -> _OpenWindow:
        """A window that begins while a frame is shown; shorter where it would reach beyond the likely end."""
        start, span = number * self.step, self.length
        if self.total is not None and start < self.total - _ROUNDING:
            span = min(span, self.total - start)
        places = start + (np.arange(self.num_frames) + 0.5) * span / self.num_frames
        begin = shown.start if self.by_frames else start
        return _OpenWindow(begin, start + span, span > self.length - _ROUNDING, places)

    def of(self, shown: Iterator[_Shown], drop_partial: bool) -> Iterator[VideoWindow]:
        """The windows of frames as they come."""
        waiting: deque[_OpenWindow] = deque()
        convert, opened, last_end = Converter(), 0, -np.inf
        for index, part in enumerate(shown):
            convert.see(part.frame)
            until = index + 1 if self.by_frames else part.end
            while opened * self.step < until - _ROUNDING:
                waiting.append(self.open(opened, part))
                opened += 1
            picture = _once(convert, part.frame)
            for window in waiting:
                window.take(picture, index, until)
            while waiting and (part.is_last or waiting[0].end <= until + _ROUNDING):
                window = waiting.popleft()
                window.take(picture, index, np.inf)
                is_over = window.end <= until + _ROUNDING  # before the video is
                end = window.end if is_over else until
                is_whole = window.is_whole and is_over
                if end > last_end + _ROUNDING and (is_whole or not drop_partial):
                    yield window.finished(part.end if self.by_frames else end)
                last_end = max(last_end, end)


def _once(convert: Converter, frame: object) -> Callable[[], np.ndarray]:
    """Gives a frame's picture, converted when it is first asked for."""
    pictures: list[np.ndarray] = []

    def picture() -> np.ndarray:
        if not pictures:
            pictures.append(convert(frame))
        return pictures[0]

    return picture


__all__ = ["VideoWindow", "iter_windows"]
