# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads frames of video files exactly: those of a full sequential decode, decoding no more than they need."""

import http.client
import importlib
import io
import os
import re
import stat
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .token_selection import as_count


logger = logging.get_logger(__name__)

URL_TIMEOUT_SECONDS = 30.0

Source = str | os.PathLike | bytes | bytearray | memoryview | io.IOBase
IndexSampler = Callable[[VideoMetadata], Sequence[int] | np.ndarray]

# ---------------------------------------------------------------------------------------------------------------------
# Which frames
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# How they are read
# ---------------------------------------------------------------------------------------------------------------------
#
# The frames of a file are those of a full sequential decode of its best video stream, in presentation order, without
# the ones its edit list discards, turned upright as its display matrix says. decord finds a frame by its position
# among the packets and seeks by time, which gives those frames only where every packet is one frame, none is
# discarded, and each keyframe starts a closed group. Demuxing tells all that without decoding, so PyAV looks first:
# where it holds decord reads the wanted frames, elsewhere PyAV decodes from the start. Both decoders patch pictures up
# where the stream is damaged; only PyAV says so, and therefore looks over the packets that decord is about to decode.

# Demuxers that would read other files, open the network, or turn plain text into pictures.
_REFUSED_FORMATS = {"tty", "hls", "concat", "concatf", "dash", "lavfi", "rtsp", "sdp", "bin", "adf", "idf", "xbin"}
# Containers whose index stores each keyframe, so that decord's seek lands on the keyframe it asked for.
_SEEKABLE_FORMATS = {"mov", "mp4", "matroska", "webm"}
# Frames equal packets (discarded ones aside) in these codecs, so the packets give the number of frames.
_ONE_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "gif", "png", "rawvideo"}
# Formats in which decord's frames and PyAV's `rgb24` are equal bit for bit. Deep ones are not, nor odd sizes: the two
# FFmpeg versions upsample chroma differently. 4:4:4 is, except after a seek (see `_OLD_ENCODER`).
_EQUAL_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}
# FFmpeg works around faults of early x264 builds, known by a note in the first packet alone. decord forgets that note
# when it seeks.
_OLD_ENCODER = 68
# FFmpeg's AV_DISPOSITION_ATTACHED_PIC
_COVER_PICTURE = 0x400


class VideoDecodeError(ValueError):
    """A video that cannot be read: `source` names it, `reason` says why. Can be pickled (DataLoader workers)."""

    def __init__(self, source: str, reason: str):
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot decode {self.source}: {self.reason}"


@dataclass(frozen=True)
class _Stream:
    """What is known of the video stream to read before its frames are."""

    width: int  # as decoded, before it is turned upright
    height: int
    fps: float | None
    duration: float | None  # seconds
    frame_count: int | None  # None where only decoding can tell
    likely_frame_count: int  # what the packets suggest; true of most files
    needs_pyav: str | None  # why decord would not give the right frames; None where it does
    packet_times: np.ndarray | None = None  # (packets,) in decoding order, time base units; where decord can read it
    key_packets: np.ndarray | None = None  # positions of the keyframes among them

    def metadata(self, backend: str | None, indices: np.ndarray | None) -> VideoMetadata:
        return VideoMetadata(
            total_num_frames=self.frame_count,
            fps=self.fps,
            width=self.width,
            height=self.height,
            duration=self.duration,
            video_backend=backend,
            frames_indices=None if indices is None else indices.tolist(),
        )


def decode_video(
    source: Source,
    indices: Sequence[int] | np.ndarray | IndexSampler | None = None,
    num_threads: int = 0,
    verify: bool = True,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Reads frames of a video file, decoding no more of it than they need.

    The frames are those of a full sequential decode: B-frames, edit lists, variable frame rates and rotation included.
    Of several video streams FFmpeg's `av_find_best_stream` picks the one to read (PyAV's FFmpeg, where decord's would
    pick another); a cover picture never.

    Args:
        source: a path, an http(s) URL, the bytes of a file, or a binary file object (read from where it stands).
        indices: which frames, in any order, repeated at will; or a function that gets the metadata, whose
            `total_num_frames` is the true number of frames, and returns them; None for all.
        num_threads: decoding threads; 0 lets the decoder choose, and means 1 inside a DataLoader worker.
        verify: whether PyAV looks for damage in what decord is to decode: decord returns patched-up pictures instead.
            Costs half a second decode; to be turned off for files known to be sound.

    Returns:
        Frames (N, H, W, 3) uint8 RGB on the CPU in the order asked for, and their metadata (`fps` in frames a second,
        `duration` in seconds).

    Raises:
        VideoDecodeError: not a video, damaged where it was read, or a URL that cannot be fetched.
        FileNotFoundError, IsADirectoryError, PermissionError: as `open` would.
        ValueError: an index outside the video.
        ImportError: neither decord nor PyAV is installed.
    """
    frames, positions, metadata = _decode_unique(source, indices, num_threads, verify)
    if not np.array_equal(positions, np.arange(len(frames))):
        frames = frames[torch.from_numpy(positions)]
    return frames, metadata


def _decode_unique(
    source: Source,
    indices: Sequence[int] | np.ndarray | IndexSampler | None,
    num_threads: int,
    verify: bool = True,
) -> tuple[torch.Tensor, np.ndarray, VideoMetadata]:
    """`decode_video` with each frame once: frames (U, H, W, 3), the position in them of each index (N,), metadata."""
    if num_threads == 0 and torch.utils.data.get_worker_info() is not None:
        num_threads = 1
    name, data = _open_source(source)
    av, decord = _import_decoder("av"), _import_decoder("decord")
    if av is None and decord is None:
        raise ImportError("Reading video files needs decord or PyAV: `pip install decord av`.")
    backend = "decord"
    if av is None:
        frames, chosen, stream = _read_with_decord_alone(decord, name, data, indices, num_threads)
    else:
        stream = _probe(av, name, data)
        if stream.needs_pyav is not None:
            backend = "pyav"
            frames, chosen, stream = _read_with_pyav(av, name, data, stream, indices, num_threads)
        else:
            chosen = _choose(name, stream, indices)
            wanted, frames = np.unique(chosen), None
            # On one thread PyAV is the faster one: it leaves out frames that nothing wanted refers to, and sees damage
            # while it decodes.
            if decord is not None and num_threads != 1:
                if verify:  # first, so that decord never meets a damaged stream
                    for _ in _frames_of_groups(av, name, data, stream, wanted, num_threads, only_check=True):
                        pass
                frames = _read_with_decord(decord, name, data, stream, wanted, num_threads)
            if frames is None:
                backend = "pyav"
                frames = _read_groups_with_pyav(av, name, data, stream, wanted, num_threads)
    metadata = stream.metadata(backend, chosen)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, np.unique(chosen, return_inverse=True)[1], metadata


def _import_decoder(name: str):
    """The module, or None where it is not installed. By name, so that loading this file never requires it."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    if name == "decord":
        module.logging.set_level(module.logging.QUIET)  # errors are raised, not printed
    return module


def _open_source(source: Source) -> tuple[str, bytes | None]:
    """(path, None) for a file on disk; (name for messages, content) for everything else."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return f"<{len(data)} bytes>", data
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(f"a video file object must be opened in binary mode, its read() gave {type(data).__name__}")
        return f"<{getattr(source, 'name', type(source).__name__)}, {len(data)} bytes>", data
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a video must be a path, a URL, bytes or a file object, got {type(source).__name__}")
    path = os.fsdecode(source)
    if path.startswith(("http://", "https://")):
        return path, _download(path)
    if "://" in path and not os.path.exists(path):
        raise VideoDecodeError(path, "only http and https URLs can be fetched")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VideoDecodeError(path, "not a regular file")  # opening a pipe would wait for ever
    with open(path, "rb"):  # the natural error for a folder, or a file that is not ours to read
        pass
    return os.path.abspath(path), None  # absolute: FFmpeg would take "clip:1.mp4" for a protocol


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "flux-hf"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise VideoDecodeError(url, f"the URL cannot be fetched ({error})") from error


def _choose(name: str, stream: "_Stream", indices: Sequence[int] | np.ndarray | IndexSampler | None) -> np.ndarray:
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
        raise ValueError(f"frame indices must lie in [0, {total}) for {name}, got {chosen.min()} to {chosen.max()}")
    return chosen.astype(np.int64)


# --- PyAV: looking at the packets ------------------------------------------------------------------------------------


def _open_with_pyav(av, name: str, data: bytes | None):
    # tags in another encoding than UTF-8 are nothing to fail for
    return av.open(name if data is None else io.BytesIO(data), metadata_errors="replace")


def _ffmpeg_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _probe(av, name: str, data: bytes | None) -> _Stream:
    """Demuxes the file and decodes its first frame. Raises VideoDecodeError where there is no frame."""
    try:
        with _open_with_pyav(av, name, data) as container:
            formats = set(container.format.name.split(","))
            if formats & _REFUSED_FORMATS:
                raise VideoDecodeError(name, f"not a video file (FFmpeg takes it for {container.format.name!r})")
            return _scan(av, name, container, _best_stream(name, container), bool(formats & _SEEKABLE_FORMATS))
    except av.FFmpegError as error:
        raise VideoDecodeError(name, _ffmpeg_reason(error)) from error


def _best_stream(name: str, container):
    # a codec that this FFmpeg does not know has no context
    streams = [s for s in container.streams.video if s.codec_context and not s.disposition.value & _COVER_PICTURE]
    if not streams:
        raise VideoDecodeError(name, "it has no video stream that FFmpeg can decode")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def _packets(name: str, container, video) -> Iterator:
    """The stream's packets. Raises VideoDecodeError where damage makes FFmpeg see a stream that PyAV has not listed."""
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError as error:
            raise VideoDecodeError(name, "a further stream appears midway, which PyAV cannot follow") from error
        yield packet


def _scan(av, name: str, container, video, seekable_format: bool) -> _Stream:
    """Reads every packet of the stream."""
    codec = video.codec_context.codec.name
    groups = _GroupChecker(codec, video.codec_context.extradata, "mov" in container.format.name)
    first, packets, discarded, empty = None, 0, 0, 0
    for packet in _packets(name, container, video):
        if first is None:
            first = next(iter(_decode_packet(av, packet, strict=groups.has_keyframe)), None)
        if packet.size:
            packets += 1
            discarded += packet.is_discard
            empty += packet.size == 1  # XviD writes such packets in place of frames that come later
            groups.add(packet)
    if first is None:
        raise VideoDecodeError(name, "no frame can be decoded")
    if not seekable_format:
        fault = f"the packets of {container.format.name} do not tell frames"
    elif video.frames not in (0, packets):
        # damage; decord reserves memory for that many, and dies if it is absurd
        fault = "its header tells another number of frames"
    elif discarded:
        fault = "its edit list discards frames"  # decord counts them, and repeats the last frame in their place
    else:
        fault = groups.fault or _picture_fault(video, first)
    rate = video.average_rate or video.guessed_rate
    if video.duration:
        duration = float(video.duration * video.time_base)
    else:
        duration = container.duration / av.time_base if container.duration else None
    known = codec in _ONE_FRAME_A_PACKET and (seekable_format or codec == "gif") and not groups.starts_late
    return _Stream(
        width=first.width,
        height=first.height,
        fps=float(rate) if rate else None,
        duration=duration,
        frame_count=packets - discarded if known else None,
        likely_frame_count=max(1, packets - discarded - empty),
        needs_pyav=fault,
        packet_times=None if fault else np.array(groups.times),
        key_packets=None if fault else np.array(groups.keys),
    )


def _picture_fault(video, frame) -> str | None:
    """Why decord's pixels would differ from PyAV's `rgb24`, judged by the first frame."""
    if frame.format.name not in _EQUAL_PIXEL_FORMATS or frame.width % 2 or frame.height % 2:
        return f"colours of {frame.format.name} {frame.width}x{frame.height}"
    if min(frame.width, frame.height) < 32:
        return f"size {frame.width}x{frame.height}"  # decord fails on, or misreads, rows shorter than its alignment
    if getattr(video.codec_context, "field_order", 0) > 1 or frame.interlaced_frame:
        return "interlaced: a packet may be a field"
    transpose, mirror, flip = _orientation(frame)
    if transpose == (mirror == flip):
        return "mirrored by its display matrix"  # decord only turns
    return None


class _GroupChecker:
    """Follows packets in decoding order, and notes in `fault` what would break decord's seeking.

    decord takes the n-th packet by time for the n-th frame, seeks to the time of the keyframe before it, and counts
    frames from there. That is exact if each keyframe restarts decoding, all frames of its group come after it and
    before the next keyframe, and, where the container seeks by decoding time (`seeks_by_dts`: MP4), no other keyframe
    decodes as early as it is shown.
    """

    def __init__(self, codec: str, extradata: bytes | None, seeks_by_dts: bool):
        self.fault = None if codec in ("h264", "hevc") else f"the packets of {codec} do not tell frames"
        self.has_keyframe = False
        self.times: list[int] = []
        self.keys: list[int] = []
        self.starts_late = False  # packets before the first keyframe: they may or may not give frames
        self._codec = codec
        self._extradata = bytes(extradata or b"")
        self._seeks_by_dts = seeks_by_dts
        self._parameter_sets: set[bytes] = set()
        self._key_pts: int | None = None
        self._last_pts: int | None = None

    def add(self, packet) -> None:
        if not self.has_keyframe and not packet.is_keyframe:
            self.starts_late = True
        self.has_keyframe |= packet.is_keyframe
        if self.fault is None:
            self.fault = self._fault(packet)
            if packet.is_keyframe:
                self.keys.append(len(self.times))
            self.times.append(packet.pts)

    def _fault(self, packet) -> str | None:
        if packet.pts is None or packet.pts < 0 or (self._seeks_by_dts and packet.dts is None):
            return "packets without a time of their own"
        if packet.is_corrupt or (hasattr(packet, "has_sidedata") and packet.has_sidedata("new_extradata")):
            return "a damaged packet, or a change of format"
        if self._key_pts is None and not packet.is_keyframe:
            return "it does not start with a keyframe"
        if packet.is_keyframe:
            if self._key_pts is not None:
                seek_time = packet.dts if self._seeks_by_dts else packet.pts
                if seek_time <= self._key_pts or packet.pts <= self._last_pts:
                    return "keyframes too close to tell apart by time"
            if self._key_pts is None and _x264_build(packet) < _OLD_ENCODER:
                return "an early x264"
            self._key_pts = packet.pts
        elif packet.pts <= self._key_pts:
            return "open groups of pictures"
        self._last_pts = packet.pts if self._last_pts is None else max(self._last_pts, packet.pts)
        return self._unit_fault(bytes(packet)) if packet.is_keyframe else None

    def _unit_fault(self, packet: bytes) -> str | None:
        """Reads the NAL unit types of a keyframe (ISO/IEC 14496-15: each unit follows its length)."""
        hevc = self._codec == "hevc"
        if self._extradata[:1] != b"\x01" or len(self._extradata) < (23 if hevc else 7):
            return "units without their lengths"
        length_bytes = (self._extradata[21 if hevc else 4] & 3) + 1
        position = 0
        while position < len(packet):
            start = position + length_bytes
            position = start + int.from_bytes(packet[start - length_bytes : start], "big")
            if start >= len(packet) or position > len(packet):
                return "a damaged keyframe"
            kind = (packet[start] >> 1) & 63 if hevc else packet[start] & 31
            if kind == (33 if hevc else 7) and packet[start:position] not in self._extradata:
                return "sequence parameters inside the stream, which may change its size"
            if (kind < 16 or 21 < kind < 32) if hevc else kind in (1, 2, 3, 4):
                return "keyframes that do not restart decoding"
        return None


def _x264_build(packet) -> float:
    """The build number that x264 writes into the first packet; infinity for other encoders."""
    match = re.search(rb"x264 - core (\d+)", bytes(packet))
    return int(match[1]) if match else float("inf")


# --- PyAV: decoding --------------------------------------------------------------------------------------------------


def _decode_packet(av, packet, strict: bool) -> list:
    """Frames of a packet; an empty packet inside the stream has none, the one at its end flushes the decoder.

    What comes before the first keyframe may be undecodable in a sound file (a cut of a broadcast): not `strict`.
    """
    if packet.size == 0 and packet.pts is not None:
        return []
    try:
        return packet.decode()
    except av.FFmpegError:
        if strict or packet.is_keyframe:
            raise
        return []


def _sequential_frames(av, name: str, data: bytes | None, num_threads: int) -> Iterator:
    """Every frame of the stream in presentation order."""
    try:
        with _open_with_pyav(av, name, data) as container:
            video = _best_stream(name, container)
            video.thread_type = "AUTO"
            video.codec_context.thread_count = num_threads
            has_keyframe = False
            for packet in _packets(name, container, video):
                for frame in _decode_packet(av, packet, strict=has_keyframe):
                    if frame.is_corrupt:
                        raise VideoDecodeError(name, f"the frame at {frame.time} s is damaged")
                    yield frame
                has_keyframe |= packet.is_keyframe
    except av.FFmpegError as error:
        raise VideoDecodeError(name, _ffmpeg_reason(error)) from error


def _read_with_pyav(
    av, name: str, data: bytes | None, stream: _Stream, indices: Any, num_threads: int
) -> tuple[torch.Tensor, np.ndarray, _Stream]:
    """Decodes from the start. Frames (U, H, W, 3), the indices chosen, and the stream with its true frame count.

    Where only decoding can tell the number of frames, the indices are chosen by what the packets suggest while the
    frames are counted, and chosen again, for a second pass, where that was wrong.
    """
    count, certain = stream.frame_count, stream.frame_count is not None
    if not certain:
        count = stream.likely_frame_count
    for _ in range(3):
        stream = replace(stream, frame_count=count)
        try:
            chosen = _choose(name, stream, indices)
        except ValueError:
            if certain:
                raise
            chosen = np.empty(0, dtype=np.int64)  # count first: the index may exist
        frames = _sequential_frames(av, name, data, num_threads)
        picked, seen = _pick(av, frames, np.unique(chosen), to_the_end=not certain)
        if seen == 0:
            raise VideoDecodeError(name, "no frame can be decoded")
        if picked is not None and (certain or seen == count):
            return torch.from_numpy(picked), chosen, stream
        # the packets suggested, or promised, another number of frames: choose again among those there are
        count, certain = seen, True
    raise VideoDecodeError(name, f"it ended after {seen} frames")


def _read_groups_with_pyav(
    av, name: str, data: bytes | None, stream: _Stream, wanted: np.ndarray, num_threads: int
) -> torch.Tensor:
    """Frames (U, H, W, 3) at the sorted positions `wanted` of a stream in closed groups."""
    frames = _frames_of_groups(av, name, data, stream, wanted, num_threads)
    picked, seen = _pick(av, frames, np.arange(len(wanted)))
    if picked is None:
        raise VideoDecodeError(name, f"only {seen} of {len(wanted)} frames can be decoded")
    return torch.from_numpy(picked)


def _frames_of_groups(
    av, name: str, data: bytes | None, stream: _Stream, wanted: np.ndarray, num_threads: int, only_check: bool = False
) -> Iterator:
    """The frames at the sorted positions `wanted`, decoding nothing that they do not depend on.

    Of each group of pictures the packets up to the last wanted one, without those nothing refers to. `only_check`
    leaves out the work that no error can come from, and the pictures are wrong. Raises VideoDecodeError for damage.
    """
    order = np.argsort(stream.packet_times, kind="stable")
    missing = set(stream.packet_times[order[wanted]].tolist())
    wanted_packets = np.zeros(len(order), dtype=bool)
    wanted_packets[order[wanted]] = True
    needed = wanted_packets.copy()
    for start, stop in zip(stream.key_packets, [*stream.key_packets[1:], len(order)], strict=True):
        needed[start:stop] = np.logical_or.accumulate(wanted_packets[start:stop][::-1])[::-1]
    last, position = np.flatnonzero(needed)[-1], -1
    try:
        with _open_with_pyav(av, name, data) as container:
            video = _best_stream(name, container)
            context = video.codec_context
            video.thread_type = "AUTO"
            context.thread_count = num_threads
            if only_check:
                context.options = {"skip_loop_filter": "all", "skip_idct": "all"}
            for packet in _packets(name, container, video):
                frames = []
                if packet.size:
                    position += 1
                    if position <= last and needed[position]:
                        context.skip_frame = "DEFAULT" if wanted_packets[position] else "NONREF"
                        frames = packet.decode()
                if position >= last:
                    frames = frames + context.decode(None)
                for frame in frames:
                    if frame.is_corrupt:  # what refers to it is damaged too, and not marked
                        raise VideoDecodeError(name, f"the frame at {frame.time} s is damaged")
                    if frame.pts in missing:
                        missing.remove(frame.pts)
                        yield frame
                if position >= last:
                    break
    except av.FFmpegError as error:
        raise VideoDecodeError(name, _ffmpeg_reason(error)) from error
    if missing:
        raise VideoDecodeError(name, f"{len(missing)} of the {len(wanted)} frames asked for are missing or damaged")


def _pick(av, frames: Iterator, wanted: np.ndarray, to_the_end: bool = False) -> tuple[np.ndarray | None, int]:
    """Converts the frames at the sorted positions `wanted`: (U, H, W, 3) uint8, and how many frames were seen.

    Where the picture size changes inside the stream, all frames are brought to the size of its first, as FFmpeg does.
    None in place of the frames where the stream ends before the last of them. Stops there unless `to_the_end`.
    """
    reformatter = importlib.import_module("av.video.reformatter").VideoReformatter()
    out, size, orientation, done, seen = None, None, None, 0, 0
    for seen, frame in enumerate(frames, start=1):
        if size is None:
            size, orientation = (frame.width, frame.height), _orientation(frame)
        if done == len(wanted) or seen - 1 < wanted[done]:
            continue
        rgb = reformatter.reformat(frame, *size, format="rgb24").to_ndarray()
        rgb = _turn(rgb, orientation)
        if out is None:
            out = np.empty((len(wanted), *rgb.shape), dtype=np.uint8)
        out[done] = rgb
        done += 1
        if done == len(wanted) and not to_the_end:
            break
    return out if done == len(wanted) else None, seen


def _orientation(frame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror left-right, then flip upside down) that turns a frame upright, by its display matrix.

    Rows of the matrix map (x, y) to (a x + c y, b x + d y), as in FFmpeg's libavutil/display.h. Angles between the
    quarter turns are taken for the nearest one.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _turn(image: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, mirror, flip = orientation
    image = image.transpose(1, 0, 2) if transpose else image
    image = image[:, ::-1] if mirror else image
    return image[::-1] if flip else image


# --- decord ----------------------------------------------------------------------------------------------------------


def _decord_errors(decord) -> tuple:
    return RuntimeError, decord.DECORDError, AssertionError, OSError


def _open_with_decord(decord, name: str, data: bytes | None, num_threads: int):
    source = name if data is None else io.BytesIO(data)
    return decord.VideoReader(source, ctx=decord.cpu(0), num_threads=num_threads)


def _read_with_decord(
    decord, name: str, data: bytes | None, stream: _Stream, wanted: np.ndarray, num_threads: int
) -> torch.Tensor | None:
    """Frames (U, H, W, 3) at the sorted positions `wanted`; None where PyAV should decide what the file holds."""
    reader = None
    try:
        # the torch bridge hands over memory without a copy; scoped, so that the caller's bridge stays as it was
        with decord.bridge.use_torch():
            reader = _open_with_decord(decord, name, data, num_threads)
            if len(reader) != stream.frame_count:
                return None
            frames = reader.get_batch(wanted)
    except _decord_errors(decord) as error:
        logger.debug("decord cannot read %s, PyAV decides: %s", name, error)
        return None
    finally:
        del reader  # an open reader goes on decoding in the background, and hangs in a forked process
    if frames.shape[-1] != 3 or sorted(frames.shape[1:3]) != sorted((stream.height, stream.width)):
        return None  # another stream, or padded rows
    return frames


def _read_with_decord_alone(
    decord, name: str, data: bytes | None, indices: Any, num_threads: int
) -> tuple[torch.Tensor, np.ndarray, _Stream]:
    """Without PyAV: the times decord knows show an edit list or missing times, and then frames are read in sequence.

    Open groups of pictures cannot be seen this way, nor a file that ends early.
    """
    reader = None
    try:
        reader = _open_with_decord(decord, name, data, num_threads)
        count, fps = len(reader), float(reader.get_avg_fps())
        starts = reader.get_frame_timestamp(range(count))[:, 0]
    except _decord_errors(decord) as error:
        raise VideoDecodeError(name, str(error).strip().split("\n")[0]) from error
    finally:
        del reader
    in_order = bool((starts >= 0).all() and (np.diff(starts) > 0).all())
    if not in_order and starts.min() > -1e6:  # far below: the container has no times
        count = int((starts >= 0).sum())  # decord counts the frames that the edit list discards
    stream = _Stream(-1, -1, fps, count / fps if fps > 0 else None, count, count, None)
    chosen = _choose(name, stream, indices)
    wanted = np.unique(chosen)
    try:
        with decord.bridge.use_torch():
            reader = _open_with_decord(decord, name, data, num_threads)
            if in_order:
                frames = reader.get_batch(wanted)
            else:
                positions = set(wanted.tolist())
                read = ((i, reader.next()) for i in range(wanted[-1] + 1))
                frames = torch.stack([frame.clone() for i, frame in read if i in positions])
    except _decord_errors(decord) as error:
        raise VideoDecodeError(name, str(error).strip().split("\n")[0]) from error
    finally:
        reader = None
    return frames, chosen, stream


__all__ = ["Source", "VideoDecodeError", "decode_video", "sample_frame_indices"]
