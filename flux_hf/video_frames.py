# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Decodes frames with PyAV, and raises an error for damage: one that is the same for any number of threads.

The decoders of a few codecs raise what they find, in several threads too. Of the others' damage FFmpeg only logs much,
and so they work in the calling thread while `errors_said` listens. After damage a second pass, in one thread, gives the
frames before it, and says when and why.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np

from .ffmpeg_log import Said, errors_said, threads_at_work
from .video_streams import (
    MediaFile,
    Stream,
    VideoDecodeError,
    best_stream,
    decode_packet,
    import_decoder,
    packets_of,
    seconds_of,
)


# Damage is an error of the packet it is in: else FFmpeg conceals it, or marks the frame alone, which may be skipped.
STRICT = {"err_detect": "explode"}
# Codecs whose decoders do so, and find the same in any number of threads. MPEG-4's does not, DV's and AV1's only log.
_RAISING_CODECS = {"h264", "hevc", "vp8", "vp9"}
_DEAF = nullcontext(Said([], 0))
# FFmpeg's AV_PICTURE_TYPE_B
_B_FRAME = 3
# No decoder keeps more frames than these for others to refer to.
_MOST_KEPT = 16
# Frames by which H.264 streams are out of order, at most in practice, and by which FFmpeg can hold them back.
_H264_REORDER, _H264_MOST_DELAY = 4, 15
# Containers that store when a frame is shown; of others FFmpeg may hand out the time it is decoded at.
_SHOWN_TIMES = {"mov", "mp4", "matroska", "webm", "mpegts"}
# A broadcast, or two files one behind the other, may start anew at another time: a step back to a keyframe is no
# damage, nor one by more than this, as FFmpeg's `dts_delta_threshold`.
_NEW_START_SECONDS = 10
# One frame that is shown at a wrong time leaves a gap of two steps, and halves the step it falls into.
_UNEVEN = 3


# Decoding ------------------------------------------------------------------------------------------------------------


def _threads_by_itself() -> int:
    """As many as FFmpeg would take."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpus + 1 if cpus > 1 else 1


class _Decoder:
    """Decodes packets of the best video stream of an open file. `explain`: in one thread, for the cause of damage."""

    def __init__(self, file: MediaFile, container, num_threads: int, explain: bool):
        self._file, self._container = file, container
        self._video = best_stream(file, container)
        self.context = self._video.codec_context
        self._raises = self.context.codec.name in _RAISING_CODECS
        self._listens = explain or not self._raises
        self._video.thread_type = "AUTO"
        self.context.thread_count = 1 if self._listens else num_threads
        self.context.options = STRICT if self._raises else {}
        if self.context.codec.name == "h264" and not self._listens and num_threads != 1:
            self._wait_for_marks(num_threads or _threads_by_itself())
        formats = set(container.format.name.split(","))
        self._has_times, self._may_restart = bool(formats & _SHOWN_TIMES), "mpegts" in formats
        self._last_pts: int | None = None
        self.at_end = False  # of the stream: what comes out now are frames that were left in the decoder

    def _wait_for_marks(self, num_threads: int) -> None:
        """A frame that comes out while another thread still decodes it is not marked: it comes out later than that."""
        most = _H264_MOST_DELAY - _H264_REORDER
        self.context.thread_count = min(num_threads, most)
        self.context.options = {**self.context.options, "has_b_frames": str(_H264_REORDER + min(num_threads, most))}

    def packets(self) -> Iterator:
        return packets_of(self._file, self._container, self._video)

    def decode(self, packet, strict: bool = True) -> Iterator:
        """Frames of a packet, of None those that are left. Raises VideoDecodeError for damage, if `strict`."""
        self.at_end = packet is None or (packet.size == 0 and packet.pts is None)
        with errors_said() if self._listens else _DEAF as said:
            try:
                frames = self.context.decode(None) if packet is None else decode_packet(packet, strict)
            except import_decoder("av").FFmpegError as error:
                raise self._file.error(said.error() or error, seconds_of(packet)) from error
        words = said.error()
        if words and strict and not self._raises:
            raise self._file.error(words, seconds_of(packet))
        for frame in frames:
            if frame.is_corrupt:  # what refers to it is damaged too, and not marked
                raise self._damage(frame.pts, words or "the decoder marks the frame")
            self._check_order(frame)
            yield frame

    def _check_order(self, frame) -> None:
        """The decoder gives frames in the order of their pictures, whatever times the container gives them."""
        pts = frame.pts
        if not self._has_times or pts is None:
            return
        if self._last_pts is not None and pts <= self._last_pts:
            step, time_base = self._last_pts - pts, self._video.time_base
            anew = frame.key_frame or step * time_base > _NEW_START_SECONDS
            if not (self._may_restart and anew):
                raise self._damage(pts, f"the frame before it has the time {float(self._last_pts * time_base):.3f} s")
        self._last_pts = pts

    def _damage(self, pts: int | None, reason: str | Exception) -> VideoDecodeError:
        return self._file.error(reason, None if pts is None else float(pts * self._video.time_base))


@contextmanager
def _decoder(file: MediaFile, num_threads: int, explain: bool) -> Iterator[_Decoder]:
    try:
        with file.open() as container, ExitStack() as stack:
            decoder = _Decoder(file, container, num_threads, explain)
            if decoder.context.thread_count != 1:
                stack.enter_context(threads_at_work())
            try:
                yield decoder
            finally:
                # Threads still at work log damage, and wait for Python to do so; PyAV does not let go of it while it
                # closes a decoder, but here it does.
                decoder.context.flush_buffers()
    except import_decoder("av").FFmpegError as error:
        raise file.error(error) from error


def _kept_until_sure(frames: Iterator) -> Iterator:
    """Keeps frames that may refer to later ones until those have come out sound as well."""
    kept: deque = deque()
    for frame in frames:
        kept.append(frame)
        while kept and (frame.pict_type != _B_FRAME or len(kept) > _MOST_KEPT):
            yield kept.popleft()
    yield from kept


class _FramesLost(Exception):
    """Not all frames came out in several threads: only one of them tells whether there is damage."""


def _explained(read: Callable[[bool], Iterator], again: bool) -> Iterator:
    """`read(False)`, and after damage `read(True)`: one thread meets it in the stream's order, and raises the error.

    What threads have not given by then comes from there too. `again`: `read(True)` gives also what was given before.
    """
    given = 0
    try:
        for frame in read(False):
            given += again
            yield frame
    except _FramesLost:
        yield from itertools.islice(read(True), given, None)
    except VideoDecodeError:
        yield from itertools.islice(read(True), given, None)
        raise


def sequential_frames(file: MediaFile, stream: Stream, num_threads: int) -> Iterator:
    """Every frame of the stream in presentation order. Raises VideoDecodeError for damage."""

    def decoded(decoder: _Decoder) -> Iterator:
        packets, has_keyframe = 0, False
        for packet in decoder.packets():
            if stream.damage is not None and packets == stream.damage[0]:
                yield from decoder.decode(None)
                raise file.error(*stream.damage[1:])
            packets += packet.size > 0
            if packet.pts is not None and packet.dts is not None and packet.pts < packet.dts:
                packet.pts = None  # shown before it is decoded: a wrong time, which its place in the order replaces
            yield from decoder.decode(packet, strict=has_keyframe or packet.is_keyframe)
            has_keyframe |= packet.is_keyframe

    def read(explain: bool) -> Iterator:
        seen, tail = 0, []
        with _decoder(file, num_threads, explain) as decoder:
            for frame in _kept_until_sure(decoded(decoder)):
                if decoder.at_end and decoder.context.thread_count != 1:
                    tail.append(frame)
                    continue
                seen += 1
                yield frame
        # PyAV passes over an error in the last packets where other threads gave frames of the ones before
        if tail and seen + len(tail) != stream.likely_frame_count:
            raise _FramesLost
        yield from tail

    return _explained(read, again=True)


def frames_of_groups(
    file: MediaFile, stream: Stream, wanted: np.ndarray, num_threads: int, only_check: bool = False
) -> Iterator:
    """The frames at the sorted positions `wanted`, decoding nothing that they do not depend on.

    Of each group of pictures the packets up to the last wanted one, without those nothing refers to. `only_check`
    leaves out the work that no error can come from, and the pictures are wrong. Raises VideoDecodeError for damage, and
    where one is missing; some of it only after the last frame.
    """
    order = np.argsort(stream.packet_times, kind="stable")
    missing = set(stream.packet_times[order[wanted]].tolist())
    plain, needed = _packets_to_decode(stream, order[wanted])
    last = np.flatnonzero(needed)[-1]

    def decoded(decoder: _Decoder) -> Iterator:
        position = -1
        for packet in decoder.packets():
            if packet.size:
                position += 1
                if position <= last and needed[position]:
                    decoder.context.skip_frame = "DEFAULT" if plain[position] else "NONREF"
                    yield from decoder.decode(packet)
            if position >= last:
                yield from decoder.decode(None)
                break

    def read(explain: bool) -> Iterator:
        tail = []
        with _decoder(file, num_threads, explain) as decoder:
            if only_check:
                decoder.context.options = {**decoder.context.options, "skip_loop_filter": "all", "skip_idct": "all"}
            for frame in _kept_until_sure(decoded(decoder)):
                if frame.pts not in missing:
                    continue
                if decoder.at_end and decoder.context.thread_count != 1:
                    tail.append(frame)
                    continue
                missing.remove(frame.pts)
                yield frame
        if len(tail) < len(missing):
            lost = len(missing) - len(tail)
            raise file.error(f"{lost} of the {len(wanted)} frames asked for are missing or damaged")
        yield from tail

    return _explained(read, again=False)


def _packets_to_decode(stream: Stream, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each packet, (packets,) bool: whether to decode it even if nothing refers to it, and whether at all.

    A group whose times are uneven may have a wrong one, which the order of its pictures tells: it is decoded whole.
    """
    times = stream.packet_times
    plain = np.zeros(len(times), dtype=bool)
    plain[wanted] = True
    needed = plain.copy()
    for start, stop in zip(stream.key_packets, [*stream.key_packets[1:], len(times)], strict=True):
        if not plain[start:stop].any():
            continue
        steps = np.diff(np.sort(times[start : stop + 1]))  # up to the next group
        if len(steps) and steps.max() >= _UNEVEN * steps.min():
            plain[start:stop] = needed[start:stop] = True
        else:
            needed[start:stop] = np.logical_or.accumulate(plain[start:stop][::-1])[::-1]
    return plain, needed


__all__ = ["sequential_frames", "frames_of_groups"]
