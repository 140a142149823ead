# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What is known of a video stream before its frames are read: PyAV looks over the packets, decoding only the first.

The frames of a file are those of a full sequential decode of its best video stream, in presentation order, without the
ones its edit list discards, turned upright as its display matrix says. The packets tell how many there are, and whether
each can be decoded from the keyframe before it.
"""

import importlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import BinaryIO

import numpy as np
from transformers.video_utils import VideoMetadata

from .ffmpeg_log import Said, errors_said


# Demuxers that would read other files, open the network, or turn plain text into pictures.
_REFUSED_FORMATS = {"tty", "hls", "concat", "concatf", "dash", "lavfi", "rtsp", "sdp", "bin", "adf", "idf", "xbin"}
# Containers whose index stores each keyframe, so that decord's seek lands on the keyframe it asked for.
_SEEKABLE_FORMATS = {"mov", "mp4", "matroska", "webm"}
# Frames equal packets (discarded ones aside) in these codecs, so the packets give the number of frames.
_ONE_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "gif", "png", "rawvideo"}
# Formats in which decord's frames and PyAV's `rgb24` are equal bit for bit. Deep ones are not, nor odd sizes: the two
# FFmpeg versions upsample chroma differently.
_EQUAL_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}
# FFmpeg works around faults of early x264 builds, known by a note in the first packet alone: a decoder that starts
# elsewhere does not. In 4:4:4 builds were at fault for longer.
_OLD_ENCODER, _OLD_ENCODER_444 = 68, 151
# So many kinds of side data more than PyAV knows of may FFmpeg have.
_UNKNOWN_SIDE_DATA = 16
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


def import_decoder(name: str) -> ModuleType:
    """PyAV ("av") or decord, imported when a file is first read: frames in memory need neither, and decord must come
    after torch. By name, so that loading this file never requires them.

    Raises:
        ImportError: it is not installed; says what to install.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Reading video files needs {name}: `pip install {name}`.") from error
    if name == "decord":
        module.logging.set_level(module.logging.QUIET)  # errors are raised, not printed
    return module


@dataclass(frozen=True)
class MediaFile:
    """A file to read: `name` for messages, and for opening where `data` is None; else its content."""

    name: str
    data: bytes | None = None

    def open(self):
        """A PyAV container. Tags in another encoding than UTF-8 are nothing to fail for."""
        av = import_decoder("av")
        source = self.name if self.data is None else io.BytesIO(self.data)
        lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}  # 19 always is
        return av.open(source, **lenient)

    def open_bytes(self) -> BinaryIO:
        """Its content, to be read anywhere."""
        return open(self.name, "rb") if self.data is None else io.BytesIO(self.data)

    def error(self, reason: str | Exception, seconds: float | None = None) -> VideoDecodeError:
        """The error for this file, with FFmpeg's own words where it raised one, and when in the video it is damaged."""
        if isinstance(reason, Exception):
            reason = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        if seconds is not None:
            reason = f"damaged at {seconds:.3f} s: {reason}"
        return VideoDecodeError(self.name, reason)


@dataclass(frozen=True)
class Stream:
    """What is known of the video stream to read before its frames are."""

    width: int  # as decoded, before it is turned upright
    height: int
    fps: float | None
    duration: float | None  # seconds
    frame_count: int | None  # None where only decoding can tell
    likely_frame_count: int  # what the packets suggest; true of most files
    group_fault: str | None  # why a group of pictures cannot be read alone; None where it can
    decord_fault: str | None  # why decord would not give the right frames; None where it does
    # where the container is damaged: packets before it, FFmpeg's words, seconds where known
    damage: tuple[int, str, float | None] | None = None
    cut_short: str | None = None  # what is missing at the end, as the container itself tells; None where nothing is
    packet_times: np.ndarray | None = None  # (packets,) in decoding order, time base units; where groups can be read
    key_packets: np.ndarray | None = None  # positions of the keyframes among them
    timed: bool = True  # whether the container stores when a frame is shown
    shown_seconds: float | None = None  # from the first frame to the end of the last one, as the packets tell

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


def probe(file: MediaFile) -> Stream:
    """Demuxes the file and decodes its first frame. Raises VideoDecodeError where there is no frame."""
    av = import_decoder("av")
    try:
        with errors_said() as said, file.open() as container:
            formats = set(container.format.name.split(","))
            if formats & _REFUSED_FORMATS:
                raise file.error(f"not a video file (FFmpeg takes it for {container.format.name!r})")
            return _scan(file, container, said, bool(formats & _SEEKABLE_FORMATS))
    except av.FFmpegError as error:
        raise file.error(error) from error


def best_stream(file: MediaFile, container):
    """The stream that is read: `av_find_best_stream`'s, a cover picture never. Raises VideoDecodeError for none."""
    # a codec that this FFmpeg does not know has no context
    streams = [s for s in container.streams.video if s.codec_context and not s.disposition.value & _COVER_PICTURE]
    if not streams:
        raise file.error("it has no video stream that FFmpeg can decode")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def packets_of(file: MediaFile, container, video) -> Iterator:
    """The stream's packets. Raises VideoDecodeError where damage makes FFmpeg see a stream that PyAV has not listed."""
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError as error:
            raise file.error("a further stream appears midway, which PyAV cannot follow") from error
        yield packet


def seconds_of(packet) -> float | None:
    """When a packet's frame is shown, or decoded where only that is known. None for no packet."""
    time = None if packet is None else packet.dts if packet.pts is None else packet.pts
    return None if time is None else float(time * packet.time_base)


def decode_packet(packet, strict: bool) -> list:
    """Frames of a packet; an empty packet inside the stream has none, the one at its end flushes the decoder.

    What comes before the first keyframe may be undecodable in a sound file (a cut of a broadcast): not `strict`.
    """
    if packet.size == 0 and packet.pts is not None:
        return []
    try:
        return packet.decode()
    except import_decoder("av").FFmpegError:
        if strict or packet.is_keyframe:
            raise
        return []


def _scan(file: MediaFile, container, said: Said, seekable_format: bool) -> Stream:
    """Reads every packet of the stream."""
    video = best_stream(file, container)
    codec = video.codec_context.codec.name
    groups = GroupChecker(codec, video.codec_context.extradata, "mov" in container.format.name)
    first, packets, discarded, empty, damage, last, name = None, 0, 0, 0, None, None, container.format.name
    latest = None
    for packet in packets_of(file, container, video):
        if damage is None and (words := said.error(name, "libdav1d")):  # AV1's packets are parsed in its decoder's name
            damage = packets, words, seconds_of(last)
        if first is None:
            first = next(iter(decode_packet(packet, strict=groups.has_keyframe)), None)
        if packet.size:
            packets += 1
            discarded += packet.is_discard
            empty += packet.size == 1  # XviD writes such packets in place of frames that come later
            groups.add(packet)
            last = packet
            if packet.pts is not None and not packet.is_discard and (latest is None or packet.pts > latest[0]):
                latest = packet.pts, packet.duration or 0
    if first is None:
        raise file.error("no frame can be decoded")
    with file.open_bytes() as content:
        cut_short = _cut_short(content)
    fault = "its container is damaged" if damage else None
    fault = fault or _group_fault(container, video, first, groups, packets, discarded, seekable_format)
    rate = video.average_rate or video.guessed_rate
    if video.duration:
        duration = float(video.duration * video.time_base)
    else:
        duration = container.duration / import_decoder("av").time_base if container.duration else None
    timed = container.format.name != "avi"
    known = codec in _ONE_FRAME_A_PACKET and (seekable_format or codec == "gif") and not groups.starts_late
    return Stream(
        width=first.width,
        height=first.height,
        fps=float(rate) if rate else None,
        duration=duration,
        frame_count=packets - discarded if known else None,
        likely_frame_count=max(1, packets - discarded - empty),
        group_fault=fault,
        decord_fault=fault or groups.decord_fault or _picture_fault(first),
        damage=damage,
        cut_short=cut_short,
        packet_times=None if fault else np.array(groups.times),
        key_packets=None if fault else np.array(groups.keys),
        timed=timed,
        shown_seconds=float((sum(latest) - first.pts) * video.time_base)
        if timed and latest and first.pts is not None
        else None,
    )


def _cut_short(content: BinaryIO) -> str | None:
    """Whether a file ends before the container says: MP4, AVI and Matroska tell how many bytes there should be."""
    head, promised = content.read(4096), 0
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        promised = _end_of_boxes(content)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        promised = 8 + int.from_bytes(head[4:8], "little")
    elif head[:4] == b"\x1a\x45\xdf\xa3":  # EBML header, then the segment that holds everything
        size, start = _ebml_size(head, 4)
        segment = start + (size or 0)
        if head[segment : segment + 4] == b"\x18\x53\x80\x67":
            size, start = _ebml_size(head, segment + 4)
            promised = start + size if size is not None else 0
    missing = promised - content.seek(0, io.SEEK_END)
    return f"it ends {missing} bytes before its own end" if missing > 1 else None  # AVI pads to an even length


def _end_of_boxes(content: BinaryIO) -> int:
    """Where the last box of an MP4 or MOV file (ISO/IEC 14496-12, 4.2) that has a medium's data ends."""
    position, end = 0, 0
    while content.seek(position) == position and len(head := content.read(16)) >= 8:
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: up to the end of the file, whatever that is
            break
        position += size
        if head[4:8] == b"mdat":  # players write what they like behind it
            end = position
    return end


def _ebml_size(data: bytes, position: int) -> tuple[int | None, int]:
    """A variable-length size (RFC 8794, 4), None for unknown, and where what it measures begins."""
    length = 9 - data[position].bit_length() if position < len(data) and data[position] else 8
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), position + length


def _group_fault(
    container, video, first, groups: "GroupChecker", packets: int, discarded: int, seekable_format: bool
) -> str | None:
    if not seekable_format:
        return f"the packets of {container.format.name} do not tell frames"
    if video.frames not in (0, packets):
        return "its header tells another number of frames"  # damage; decord reserves memory for that many
    if discarded:
        return "its edit list discards frames"  # decord counts them, and repeats the last frame in their place
    if getattr(video.codec_context, "field_order", 0) > 1 or first.interlaced_frame:
        return "interlaced: a packet may be a field"
    if groups.x264_build < (_OLD_ENCODER_444 if "444" in first.format.name else _OLD_ENCODER):
        return "an early x264"
    return groups.fault


def _picture_fault(frame) -> str | None:
    """Why decord's pixels would differ from PyAV's `rgb24`, judged by the first frame."""
    if frame.format.name not in _EQUAL_PIXEL_FORMATS or frame.width % 2 or frame.height % 2:
        return f"colours of {frame.format.name} {frame.width}x{frame.height}"
    if min(frame.width, frame.height) < 32:
        return f"size {frame.width}x{frame.height}"  # decord fails on, or misreads, rows shorter than its alignment
    matrix = _display_matrix(frame)
    if matrix is not None and matrix[0] and matrix[1]:
        return "turned by its display matrix by no quarter turn"
    transpose, mirror, flip = orientation(frame)
    if transpose == (mirror == flip):
        return "mirrored by its display matrix"  # decord only turns
    return None


class GroupChecker:
    """Follows packets in decoding order, and notes what would break reading a group of pictures alone.

    The n-th packet by time is the n-th frame, and can be decoded from the keyframe before it, if each keyframe restarts
    decoding and all frames of its group come after it and before the next keyframe: else `fault` says why not.
    decord moreover seeks by time. Where the container does so by decoding time (`seeks_by_dts`: MP4), no other keyframe
    may decode as early as it is shown: else `decord_fault`.
    """

    def __init__(self, codec: str, extradata: bytes | None, seeks_by_dts: bool):
        self.fault = None if codec in ("h264", "hevc") else f"the packets of {codec} do not tell frames"
        self.decord_fault: str | None = None
        self.x264_build = float("inf")
        self.has_keyframe = False
        self.times: list[int] = []
        self.keys: list[int] = []
        self.starts_late = False  # packets before the first keyframe: they may or may not give frames
        self._codec = codec
        self._extradata = bytes(extradata or b"")
        self._seeks_by_dts = seeks_by_dts
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
                if packet.pts <= self._last_pts:
                    return "open groups of pictures"
                if self._seeks_by_dts and packet.dts <= self._key_pts:
                    self.decord_fault = "keyframes too close to tell apart by time"
            if self._key_pts is None:
                self.x264_build = _x264_build(packet)
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


def _display_matrix(frame) -> list[int] | None:
    """The first five numbers of a frame's display matrix, where it has one."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know what lies beside it, such as Exif
        data = _with_known_side_data(frame).side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()


def _with_known_side_data(frame):
    """The frame without those parts that PyAV has no name for."""
    graph = importlib.import_module("av.filter").Graph()
    first = max(kind.value for kind in importlib.import_module("av.sidedata.sidedata").Type) + 1
    links = [
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)),
        *(graph.add("sidedata", f"mode=delete:type={kind}") for kind in range(first, first + _UNKNOWN_SIDE_DATA)),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*links).configure()
    graph.push(frame)
    return graph.pull()


def orientation(frame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror left-right, then flip upside down) that turns a frame upright, by its display matrix.

    Rows of the matrix map (x, y) to (a x + c y, b x + d y), as in FFmpeg's libavutil/display.h. Angles between the
    quarter turns are taken for the nearest one.
    """
    matrix = _display_matrix(frame)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = matrix
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def turn(image: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, mirror, flip = orientation
    image = image.transpose(1, 0, 2) if transpose else image
    image = image[:, ::-1] if mirror else image
    return image[::-1] if flip else image


__all__ = ["Stream", "VideoDecodeError", "MediaFile", "probe"]
