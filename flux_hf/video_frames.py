# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Decodes frames with PyAV, and raises an error for damage: one that is the same for any number of threads.

Codecs that FFmpeg decodes in several threads are asked to raise what they find. Of the others it only logs much, and so
they are decoded in the calling thread while `errors_said` listens. After damage a second pass, in one thread, says when
and why.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from .ffmpeg_log import errors_said
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
# Containers that store when a frame is shown; of others FFmpeg may hand out the time it is decoded at.
_SHOWN_TIMES = {"mov", "mp4", "matroska", "webm", "mpegts"}
# A broadcast may start anew at another time: a step back by more is no damage, as FFmpeg's `dts_delta_threshold`.
_NEW_START_SECONDS = 10
# One frame that is shown at a wrong time leaves a gap of two steps, and halves the step it falls into.
_UNEVEN = 3


# Decoding ------------------------------------------------------------------------------------------------------------


def _takes_threads(codec) -> bool:
    """Whether FFmpeg decodes it in several threads, and raises the damage it finds: of DV it only logs it."""
    can = importlib.import_module("av.codec.codec").Capabilities
    return bool(codec.capabilities & (can.frame_threads | can.auto_threads)) and codec.name != "dvvideo"


class _Decoder:
    """Decodes packets of the best video stream of an open file. `explain`: in one thread, for the cause of damage."""

    def __init__(self, file: MediaFile, container, num_threads: int, explain: bool):
        self._file, self._container = file, container
        self._video = best_stream(file, container)
        self.context = self._video.codec_context
        self._raises = _takes_threads(self.context.codec)
        self._listens = explain or not self._raises
        self._video.thread_type = "AUTO"
        self.context.thread_count = 1 if self._listens else num_threads
        self.context.options = STRICT if self._raises else {}
        formats = set(container.format.name.split(","))
        self._has_times, self._may_restart = bool(formats & _SHOWN_TIMES), "mpegts" in formats
        self._last_pts: int | None = None

    def packets(self) -> Iterator:
        return packets_of(self._file, self._container, self._video)

    def decode(self, packet, strict: bool = True) -> list:
        """Frames of a packet, of None those that are left. Raises VideoDecodeError for damage, if `strict`."""
        frames, failed = [], None
        with errors_said(self._listens) as said:
            try:
                frames = self.context.decode(None) if packet is None else decode_packet(packet, strict)
            except import_decoder("av").FFmpegError as error:
                failed = error
            words = said.error()
        if failed is not None or (words and strict and not self._raises):
            raise self._file.error(words or failed, seconds_of(packet) if packet else None) from failed
        for frame in frames:
            if frame.is_corrupt:  # what refers to it is damaged too, and not marked
                raise self._damage(frame.pts, words or "the decoder marks the frame")
            self._check_order(frame.pts)
        return frames

    def _check_order(self, pts: int | None) -> None:
        """The decoder gives frames in the order of their pictures, whatever times the container gives them."""
        if not self._has_times or pts is None:
            return
        back = 0 if self._last_pts is None else self._last_pts - pts
        restart = self._may_restart and back * self._video.time_base > _NEW_START_SECONDS
        if self._last_pts is not None and back >= 0 and not restart:
            raise self._damage(pts, f"the frame before it has the time {float(self._last_pts * self._video.time_base)}")
        self._last_pts = pts

    def _damage(self, pts: int | None, reason: str | Exception) -> VideoDecodeError:
        return self._file.error(reason, None if pts is None else float(pts * self._video.time_base))


@contextmanager
def _decoder(file: MediaFile, num_threads: int, explain: bool) -> Iterator[_Decoder]:
    try:
        with file.open() as container:
            decoder = _Decoder(file, container, num_threads, explain)
            try:
                yield decoder
            finally:
                # Threads still at work log damage, and wait for Python to do so; PyAV does not let go of it while it
                # closes a decoder, but here it does.
                decoder.context.flush_buffers()
    except import_decoder("av").FFmpegError as error:
        raise file.error(error) from error


def _explained(read: Callable[[bool], Iterator]) -> Iterator:
    """`read(False)`, and after damage `read(True)`: one thread meets it in the stream's order, and raises the error."""
    try:
        yield from read(False)
    except VideoDecodeError:
        for _ in read(True):
            pass
        raise


def sequential_frames(file: MediaFile, stream: Stream, num_threads: int) -> Iterator:
    """Every frame of the stream in presentation order. Raises VideoDecodeError for damage."""

    def read(explain: bool) -> Iterator:
        seen, packets, has_keyframe = 0, 0, False
        with _decoder(file, num_threads, explain) as decoder:
            for packet in decoder.packets():
                if stream.damage is not None and packets == stream.damage[0]:
                    yield from decoder.decode(None)  # so that threads do not tell which frames can be had
                    raise file.error(*stream.damage[1:])
                packets += packet.size > 0
                for frame in decoder.decode(packet, strict=has_keyframe or packet.is_keyframe):
                    seen += 1
                    yield frame
                has_keyframe |= packet.is_keyframe
            in_threads = decoder.context.thread_count != 1
        # PyAV passes over an error in the last packets where other threads gave frames of the ones before
        if in_threads and seen != stream.likely_frame_count:
            for _ in read(True):
                pass

    return _explained(read)


def frames_of_groups(
    file: MediaFile, stream: Stream, wanted: np.ndarray, num_threads: int, only_check: bool = False
) -> Iterator:
    """The frames at the sorted positions `wanted`, decoding nothing that they do not depend on.

    Of each group of pictures the packets up to the last wanted one, without those nothing refers to. `only_check`
    leaves out the work that no error can come from, and the pictures are wrong. Raises VideoDecodeError for damage.
    """
    order = np.argsort(stream.packet_times, kind="stable")
    missing = set(stream.packet_times[order[wanted]].tolist())
    plain, needed = _packets_to_decode(stream, order[wanted])

    def read(explain: bool) -> Iterator:
        last, position = np.flatnonzero(needed)[-1], -1
        with _decoder(file, num_threads, explain) as decoder:
            if only_check:
                decoder.context.options = {**decoder.context.options, "skip_loop_filter": "all", "skip_idct": "all"}
            for packet in decoder.packets():
                frames = []
                if packet.size:
                    position += 1
                    if position <= last and needed[position]:
                        decoder.context.skip_frame = "DEFAULT" if plain[position] else "NONREF"
                        frames = decoder.decode(packet)
                if position >= last:
                    frames = frames + decoder.decode(None)
                for frame in frames:
                    if frame.pts in missing:
                        missing.remove(frame.pts)
                        yield frame
                if position >= last:
                    break
        if missing:
            raise file.error(f"{len(missing)} of the {len(wanted)} frames asked for are missing or damaged")

    return _explained(read)


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


__all__ = ["errors_said", "sequential_frames", "frames_of_groups"]
