# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads frames of video files: exactly those of a full sequential decode, decoding no more than they need.

PyAV is the decoder. Of a stream in closed groups of pictures it decodes the groups that hold a wanted frame, up to it
and without the frames nothing refers to; of others all frames up to the last one wanted. `backend="decord"` reads those
files that decord reads exactly, and refuses the others.
"""

import http.client
import importlib
import io
import os
import stat
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from .token_selection import as_count
from .video_frames import frames_of_groups, sequential_frames
from .video_streams import MediaFile, Stream, VideoDecodeError, import_decoder, orientation, probe, turn


URL_TIMEOUT_SECONDS = 30.0
BACKENDS = ("pyav", "decord")

Source = str | os.PathLike | bytes | bytearray | memoryview | io.IOBase
IndexSampler = Callable[[VideoMetadata], Sequence[int] | np.ndarray]
Indices = Sequence[int] | np.ndarray | IndexSampler | None


# Which frames --------------------------------------------------------------------------------------------------------


def sample_frame_indices(total_frames: int, num_frames: int, num_clips: int = 1) -> np.ndarray:
    """Indices of `num_clips` interleaved clips spread over the whole video: the official evaluation rule.

    With `seg = (N-1)/T`, clip c of S takes `round(seg*i) + int(seg/(S+1)*(c+1))`, at most N-1 (round half to even). A
    video shorter than `num_frames` repeats frames by the same rule.

    Args:
        total_frames: N, frames in the video.
        num_frames: T, frames of a clip.
        num_clips: S.

    Returns:
        (num_clips, num_frames) int64, not decreasing along a clip.

    Raises:
        ValueError: an argument is below 1 or not an integer.
    """
    for name, value in (("total_frames", total_frames), ("num_frames", num_frames), ("num_clips", num_clips)):
        as_count(name, value)
    segment = (total_frames - 1) / num_frames
    starts = np.round(segment * np.arange(num_frames)).astype(np.int64)
    offsets = np.array([int(segment / (num_clips + 1) * (clip + 1)) for clip in range(num_clips)], dtype=np.int64)
    return np.minimum(starts[None, :] + offsets[:, None], total_frames - 1)


# Reading -------------------------------------------------------------------------------------------------------------


def decode_video(
    source: Source, indices: Indices = None, num_threads: int = 0, backend: str = "pyav"
) -> tuple[torch.Tensor, VideoMetadata]:
    """Reads frames of a video file, decoding no more of it than they need.

    The frames are those of a full sequential decode: B-frames, edit lists, variable frame rates and rotation included.
    Of several video streams FFmpeg's `av_find_best_stream` picks the one to read; a cover picture never.

    Args:
        source: a path, an http(s) URL, the bytes of a file, or a binary file object (read from where it stands).
        indices: which frames, in any order, repeated at will; or a function that gets the metadata, whose
            `total_num_frames` is the true number of frames, and returns them; None for all.
        num_threads: decoding threads; 0 lets the decoder choose, and means 1 inside a DataLoader worker. Result and
            error do not depend on it. Codecs other than H.264, HEVC, VP8 and VP9 are decoded in one.
        backend: "pyav", or "decord", which reads the same frames of some files, and refuses the others.

    Returns:
        Frames (N, H, W, 3) uint8 RGB on the CPU in the order asked for, and their metadata (`fps` in frames a second,
        `duration` in seconds).

    Raises:
        VideoDecodeError: not a video, damaged where it was read, cut short (unless `indices` are a list of frames that
            are there), a URL that cannot be fetched, or a file whose frames decord would not give exactly. Damage is
            what FFmpeg's decoder or container reader raises, marks or logs as an error, and frames out of order.
        FileNotFoundError, IsADirectoryError, PermissionError: as `open` would.
        ValueError: an index outside the video, or an unknown backend.
        ImportError: the decoder is not installed.
    """
    frames, positions, metadata = decode_unique_frames(source, indices, num_threads, backend)
    if not np.array_equal(positions, np.arange(len(frames))):
        frames = frames[torch.from_numpy(positions)]
    return frames, metadata


def decode_unique_frames(
    source: Source, indices: Indices = None, num_threads: int = 0, backend: str = "pyav"
) -> tuple[torch.Tensor, np.ndarray, VideoMetadata]:
    """`decode_video` with each frame once: frames (U, H, W, 3), the position in them of each index (N,), metadata."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    num_threads = threads_for(num_threads)
    file = open_source(source)
    stream = probe(file)
    _check_whole(file, stream, indices)
    if backend == "decord":
        if stream.decord_fault is not None:  # it finds frames otherwise than by decoding all, and is wrong then
            raise file.error(f"decord would not give its exact frames: {stream.decord_fault}")
        chosen = _choose(file, stream, indices)
        frames = _read_with_decord(file, stream, np.unique(chosen), num_threads)
    elif stream.group_fault is None:
        chosen = _choose(file, stream, indices)
        frames = _read_groups(file, stream, np.unique(chosen), num_threads)
    else:
        frames, chosen, stream = _read_from_the_start(file, stream, indices, num_threads)
    metadata = stream.metadata(backend, chosen)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, np.unique(chosen, return_inverse=True)[1], metadata


def iter_video_frames(
    source: Source, indices: Indices = None, chunk_frames: int = 256, num_threads: int = 0
) -> Iterator[torch.Tensor]:
    """Frames of a video file in chunks, from one pass over it: for more of them than the memory should hold.

    Where only decoding can tell the number of frames, and a function chooses among them, they are counted in a pass
    before.

    Args:
        source, num_threads: as in `decode_video`.
        indices: as there, but each frame is given once, in rising order.
        chunk_frames: most frames of a chunk.

    Yields:
        (n, H, W, 3) uint8 RGB.

    Raises:
        As `decode_video`.
    """
    num_threads = threads_for(num_threads)
    file = open_source(source)
    stream = probe(file)
    _check_whole(file, stream, indices)
    if stream.group_fault is None:
        frames, wanted = frames_of_groups(file, stream, np.unique(_choose(file, stream, indices)), num_threads), None
    else:
        frames, wanted = sequential_frames(file, stream, num_threads), None
        if indices is not None:
            count = stream.frame_count or sum(1 for _ in sequential_frames(file, stream, num_threads))
            wanted = np.unique(_choose(file, replace(stream, frame_count=count), indices))
    yield from _chunks(file, frames, wanted, as_count("chunk_frames", chunk_frames))


def _chunks(file: MediaFile, frames: Iterator, wanted: np.ndarray | None, chunk_frames: int) -> Iterator[torch.Tensor]:
    """The frames at the sorted positions `wanted`, all if None, converted and stacked."""
    convert, chunk, done, seen = Converter(), [], 0, 0
    for seen, frame in enumerate(frames, start=1):
        convert.see(frame)
        if wanted is not None and (done == len(wanted) or wanted[done] != seen - 1):
            continue
        chunk.append(convert(frame))
        done += 1
        if len(chunk) == chunk_frames:
            yield torch.from_numpy(np.stack(chunk))
            chunk = []
        if wanted is not None and done == len(wanted):
            break
    if wanted is not None and done < len(wanted):
        raise file.error(f"it ended after {seen} frames")
    if done == 0:
        raise file.error("no frame can be decoded")
    if chunk:
        yield torch.from_numpy(np.stack(chunk))


def _check_whole(file: MediaFile, stream: Stream, indices: Indices) -> None:
    """Raises VideoDecodeError for a damaged container, unless frames are asked for that lie in what is there."""
    if indices is None or callable(indices):
        if stream.cut_short is not None:
            raise file.error(f"it is cut short: {stream.cut_short}")
        if stream.damage is not None:
            raise file.error(*stream.damage[1:])


def threads_for(num_threads: int) -> int:
    return 1 if num_threads == 0 and torch.utils.data.get_worker_info() is not None else num_threads


# Sources -------------------------------------------------------------------------------------------------------------


def open_source(source: Source) -> MediaFile:
    """A file on disk by its path, everything else with its content.

    Raises:
        VideoDecodeError: a URL that cannot be fetched, or what is no regular file.
        OSError: as `open` would.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return MediaFile(f"<{len(data)} bytes>", data)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(f"a video file object must be opened in binary mode, its read() gave {type(data).__name__}")
        return MediaFile(f"<{getattr(source, 'name', type(source).__name__)}, {len(data)} bytes>", data)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a video must be a path, a URL, bytes or a file object, got {type(source).__name__}")
    path = os.fsdecode(source)
    if path.lower().startswith(("http://", "https://")):
        return MediaFile(path, _download(path))
    if "://" in path and not os.path.exists(path):
        raise VideoDecodeError(path, "only http and https URLs can be fetched")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VideoDecodeError(path, "not a regular file")  # opening a pipe would wait for ever
    with open(path, "rb"):  # the natural error for a folder, or a file that is not ours to read
        pass
    return MediaFile(os.path.abspath(path))  # absolute: FFmpeg would take "clip:1.mp4" for a protocol


def _download(url: str) -> bytes:
    try:
        address = urllib.parse.quote(url, safe="!#$%&'()*+,/:;=?@[]~")  # what is encoded already stays as it is
        request = urllib.request.Request(address, headers={"User-Agent": "flux-hf"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise VideoDecodeError(url, f"the URL cannot be fetched ({error})") from error


def _choose(file: MediaFile, stream: Stream, indices: Sequence[int] | np.ndarray | IndexSampler | None) -> np.ndarray:
    """Resolves `indices` against a stream whose number of frames is known: (N,) int64, each in [0, frame_count)."""
    total = stream.frame_count
    if indices is None:
        return np.arange(total)
    if callable(indices):
        indices = indices(stream.metadata(None, None))
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"frame indices must be a non-empty flat list of integers, got {indices!r}")
    if chosen.min() < 0 or chosen.max() >= total:
        raise ValueError(
            f"frame indices must lie in [0, {total}) for {file.name}, got {chosen.min()} to {chosen.max()}"
        )
    return chosen.astype(np.int64)


# Pictures ------------------------------------------------------------------------------------------------------------


class Converter:
    """Turns decoded frames into upright RGB (H, W, 3).

    Where the picture size changes inside the stream, all frames are brought to the size of its first, as FFmpeg does.
    """

    def __init__(self):
        self._reformatter = importlib.import_module("av.video.reformatter").VideoReformatter()
        self._size, self._orientation = None, None

    def see(self, frame) -> None:
        """Notes size and orientation of the first frame of the stream."""
        if self._size is None:
            self._size, self._orientation = (frame.width, frame.height), orientation(frame)

    def __call__(self, frame) -> np.ndarray:
        rgb = self._reformatter.reformat(frame, *self._size, format="rgb24").to_ndarray()
        return turn(rgb, self._orientation)


def _read_from_the_start(
    file: MediaFile, stream: Stream, indices: Any, num_threads: int
) -> tuple[torch.Tensor, np.ndarray, Stream]:
    """Frames (U, H, W, 3), the indices chosen, and the stream with its true frame count.

    Where only decoding can tell the number of frames, the indices are chosen by what the packets suggest while the
    frames are counted, and chosen again, for a second pass, where that was wrong.
    """
    count, certain = stream.frame_count, stream.frame_count is not None
    if not certain:
        count = stream.likely_frame_count
    for _ in range(3):
        stream = replace(stream, frame_count=count)
        try:
            chosen = _choose(file, stream, indices)
        except ValueError:
            if certain:
                raise
            chosen = np.empty(0, dtype=np.int64)  # count first: the index may exist
        frames = sequential_frames(file, stream, num_threads)
        picked, seen = _pick(frames, np.unique(chosen), to_the_end=not certain)
        if seen == 0:
            raise file.error("no frame can be decoded")
        if picked is not None and (certain or seen == count):
            return torch.from_numpy(picked), chosen, stream
        # the packets suggested, or promised, another number of frames: choose again among those there are
        count, certain = seen, True
    raise file.error(f"it ended after {seen} frames")


def _read_groups(file: MediaFile, stream: Stream, wanted: np.ndarray, num_threads: int) -> torch.Tensor:
    """Frames (U, H, W, 3) at the sorted positions `wanted` of a stream in closed groups."""
    frames = frames_of_groups(file, stream, wanted, num_threads)
    picked, _ = _pick(frames, np.arange(len(wanted)), to_the_end=True)  # there a wrong order shows
    return torch.from_numpy(picked)


def _pick(frames: Iterator, wanted: np.ndarray, to_the_end: bool = False) -> tuple[np.ndarray | None, int]:
    """Converts the frames at the sorted positions `wanted`: (U, H, W, 3) uint8, and how many frames were seen.

    None in place of the frames where the stream ends before the last of them. Stops there unless `to_the_end`.
    """
    convert, out, done, seen = Converter(), None, 0, 0
    for seen, frame in enumerate(frames, start=1):
        convert.see(frame)
        if done == len(wanted) or seen - 1 < wanted[done]:
            continue
        rgb = convert(frame)
        if out is None:
            out = np.empty((len(wanted), *rgb.shape), dtype=np.uint8)
        out[done] = rgb
        done += 1
        if done == len(wanted) and not to_the_end:
            break
    return out if done == len(wanted) else None, seen


# decord --------------------------------------------------------------------------------------------------------------


def _read_with_decord(file: MediaFile, stream: Stream, wanted: np.ndarray, num_threads: int) -> torch.Tensor:
    """Frames (U, H, W, 3) at the sorted positions `wanted`.

    decord returns patched-up pictures of damaged streams, so that PyAV looks over what it is about to decode first.
    """
    decord = import_decoder("decord")
    for _ in frames_of_groups(file, stream, wanted, num_threads, only_check=True):
        pass
    reader = None
    try:
        source = file.name if file.data is None else io.BytesIO(file.data)
        # the torch bridge hands over memory without a copy; scoped, so that the caller's bridge stays as it was
        with decord.bridge.use_torch():
            reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=num_threads)
            count = len(reader)
            frames = reader.get_batch(wanted) if count == stream.frame_count else None
    except (RuntimeError, decord.DECORDError, AssertionError, OSError) as error:
        raise file.error(f"decord cannot read it: {str(error).strip().splitlines()[0]}") from error
    finally:
        del reader  # an open reader goes on decoding in the background, and hangs in a forked process
    if frames is None:
        raise file.error(f"decord sees {count} frames of {stream.frame_count}")
    if frames.shape[-1] != 3 or sorted(frames.shape[1:3]) != sorted((stream.height, stream.width)):
        raise file.error(f"decord reads pictures of {tuple(frames.shape[1:])}")  # another stream, or padded rows
    return frames


__all__ = ["Source", "VideoDecodeError", "decode_video", "iter_video_frames", "sample_frame_indices"]
