# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes small real video files whose every frame shows its own number, and reads the number back."""

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


BITS = 10
FILLER = b"\x7f"  # what XviD writes for its delay: a packet with no picture in it


def barcode_frame(index: int, width: int = 160, height: int = 96) -> np.ndarray:
    """(height, width, 3) uint8: `index` as black and white bars in the upper half, a moving pattern below."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    image[..., 0] = (columns * 2 + index * 5) % 200 + 20
    image[..., 1] = (rows * 3 + index * 2) % 200 + 20
    image[..., 2] = ((rows + columns) // 8 * 16 + index * 9) % 200 + 20
    for bit in range(BITS):
        bar = slice(bit * width // BITS, (bit + 1) * width // BITS)
        image[: height // 2, bar] = 235 if index >> bit & 1 else 20
    return image


def read_barcode(frame: np.ndarray) -> int:
    """The number that `barcode_frame` drew into an upright (H, W, 3) frame."""
    height, width = frame.shape[:2]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    level = np.asarray(frame)[height // 8 : 3 * height // 8, centres].astype(float).mean(axis=(0, 2))
    return sum(1 << bit for bit in range(BITS) if level[bit] > 128)


def encode(
    codec: str,
    num_frames: int,
    size: tuple[int, int] = (160, 96),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rate: int = 25,
    times: list[int] | None = None,
    container: str = "mp4",
    container_options: dict[str, str] | None = None,
    turn: dict | None = None,
    audio: bool = False,
    first: int = 0,
) -> bytes:
    """A video file of `num_frames` numbered frames, at `times` (in 1/rate s) where given."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=container_options or {}) as out:
        stream = add_stream(out, codec, size, pix_fmt, options, rate)
        if turn is not None:
            stream.set_display_rotation(**turn)
        sound = out.add_stream("mp2" if container in ("avi", "mpegts") else "aac", rate=44100) if audio else None
        for index in range(num_frames):
            mux_frame(out, stream, first + index, times[index] if times else index, rate)
        out.mux(stream.encode())
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
            silence.sample_rate = 44100
            out.mux(sound.encode(silence) + sound.encode())
    return buffer.getvalue()


def add_stream(out, codec: str, size=(160, 96), pix_fmt="yuv420p", options=None, rate: int = 25):
    stream = out.add_stream(codec, rate=rate, options=options or {})
    stream.width, stream.height = size
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = Fraction(1, rate)
    return stream


def mux_frame(out, stream, index: int, time: int, rate: int = 25) -> None:
    image = barcode_frame(index, stream.width, stream.height)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
    frame.pts, frame.time_base = time, Fraction(1, rate)
    out.mux(stream.encode(frame))


def packets_of(data: bytes) -> list:
    with av.open(io.BytesIO(data)) as container:
        return [packet for packet in container.demux(container.streams.video[0]) if packet.size]


def remux(data: bytes, change, container: str = "mp4", container_options: dict[str, str] | None = None) -> bytes:
    """The file with its packets passed through `change(list of packets) -> list of packets`."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(buffer, "w", format=container, options=container_options or {}) as out,
    ):
        video = source.streams.video[0]
        stream = out.add_stream_from_template(video)
        for packet in change([packet for packet in source.demux(video) if packet.size]):
            packet.stream = stream
            out.mux(packet)
    return buffer.getvalue()


def cut_by_edit_list(data: bytes, frames: int, rate: int = 25) -> bytes:
    """As `ffmpeg -ss ... -c copy` cuts: the first `frames` stay in the file, and an edit list hides them."""

    def shift(packets):
        for packet in packets:
            offset = int(frames / rate / packet.time_base)
            packet.pts -= offset
            packet.dts -= offset
        return packets

    return remux(data, shift)


def packed_bframes_avi(num_frames: int) -> bytes:
    """MPEG-4 part 2 as XviD packs it into AVI: each B-frame rides in its P-frame's packet, and leaves an empty one.

    Two more packets after the first hold no picture at all: the packets are two more than the frames.
    """
    data = encode("mpeg4", num_frames, options={"bf": "1", "b_strategy": "0", "g": "300"}, container="avi")
    with av.open(io.BytesIO(data)) as source:
        payloads = [bytes(p) for p in source.demux(source.streams.video[0]) if p.size]
    not_coded = b"\x00\x00\x01\xb6\x50\x00\x7f"

    def is_b(payload):
        return payload[payload.index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2

    # the encoder's own note would say it does not pack
    first = re.sub(rb"\x00\x00\x01\xb2Lavc[^\x00]*", b"", payloads[0])
    packed, i = [b"\x00\x00\x01\xb2DivX503b1393p" + first, FILLER, FILLER], 1
    while i < len(payloads):
        if i + 1 < len(payloads) and is_b(payloads[i + 1]):
            packed += [payloads[i] + payloads[i + 1], not_coded]
            i += 2
        else:
            packed.append(payloads[i])
            i += 1

    def repack(packets):
        new = []
        for n, payload in enumerate(packed):
            packet = av.Packet(payload)
            packet.pts = packet.dts = n
            packet.time_base = packets[0].time_base
            packet.is_keyframe = n < 3
            new.append(packet)
        return new

    return remux(data, repack, container="avi")


def two_video_streams() -> bytes:
    """A small stream of 20 frames first, then a larger one of 30."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        small, large = add_stream(out, "libx264", (64, 48)), add_stream(out, "libx264", (160, 96))
        for index in range(30):
            if index < 20:
                mux_frame(out, small, index + 500, index)
            mux_frame(out, large, index, index)
        out.mux(small.encode())
        out.mux(large.encode())
    return buffer.getvalue()


def changing_size() -> bytes:
    """20 frames of 160x96, then 20 of 96x64: Annex B H.264 streams one after another, parameters inside the stream."""
    parts = [
        encode("libx264", 20, size=(160, 96), container="h264", options={"bf": "0"}),
        encode("libx264", 20, size=(96, 64), container="h264", options={"bf": "0"}, first=20),
    ]
    buffer = io.BytesIO()
    with av.open(io.BytesIO(b"".join(parts)), format="h264") as source, av.open(buffer, "w", format="matroska") as out:
        video = source.streams.video[0]
        stream = out.add_stream_from_template(video)
        for n, packet in enumerate(p for p in source.demux(video) if p.size):
            packet.pts = packet.dts = n
            packet.time_base = Fraction(1, 25)
            packet.stream = stream
            out.mux(packet)
    return buffer.getvalue()


def audio_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
        silence.sample_rate = 44100
        out.mux(sound.encode(silence) + sound.encode())
    return buffer.getvalue()


def write(folder: Path, name: str, data: bytes) -> str:
    path = Path(folder) / name
    path.write_bytes(data)
    return str(path)
