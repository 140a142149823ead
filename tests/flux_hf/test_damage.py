"""Damage inside a file, and files that are cut short: an error, or the true frames; never other pictures."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from flux_hf import decode_video
from flux_hf.video_decoding import VideoDecodeError, iter_video_frames


NUM_FRAMES, WIDTH, HEIGHT = 48, 96, 64


def picture(index):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    levels = [columns * 2 + 7 * index, rows * 3 + 3 * index, (rows + columns) // 4 * 8 + 9 * index]
    return np.stack([level % 200 + 20 for level in levels], axis=-1).astype(np.uint8)


def encoded(container="mp4", codec="libx264", options=None, container_options=None, path=None):
    """The content of a file; `path`: where it is written, for a container that reads itself again."""
    buffer = io.BytesIO()
    with av.open(str(path) if path else buffer, "w", format=container, options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes() if path else buffer.getvalue()


def packets_of(content):
    """(position in the file, size) of each packet, in decoding order."""
    with av.open(io.BytesIO(content)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def strict_frames(content):
    """All frames of a sequential decode that stops at the first fault; None where there is one."""
    with av.open(io.BytesIO(content)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        try:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0) if not frame.is_corrupt]
        except av.FFmpegError:
            return None
    return frames if len(frames) == NUM_FRAMES else None


@pytest.fixture(scope="module")
def sound():
    content = encoded(options={"g": "12", "bf": "2", "preset": "veryfast"})
    return content, decode_video(content)[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(24))
def test_a_zeroed_packet_gives_an_error_or_the_true_frames(sound, seed, threads):
    content, frames = sound
    rng = np.random.default_rng(seed)
    start, size = packets_of(content)[int(rng.integers(1, NUM_FRAMES))]
    damaged = bytearray(content)
    at = start + 5 + int(rng.integers(0, max(size - 12, 1)))
    damaged[at : at + 4] = bytes(4)
    wanted = rng.choice(NUM_FRAMES, 4, replace=False)
    told = strict_frames(bytes(damaged))
    try:
        found, _ = decode_video(bytes(damaged), wanted, num_threads=threads)
    except VideoDecodeError:
        assert told is None, "FFmpeg finds no fault in it"
        return
    # where FFmpeg finds no fault there is none to be found: other bytes make other pictures
    expected = frames.numpy() if told is None else told
    for index, frame in zip(wanted, found, strict=True):
        assert (frame.numpy() == expected[index]).all(), f"frame {index} is another picture"


def test_damage_is_found_at_all(sound):
    """The test above must not pass because nothing was damaged."""
    content, _ = sound
    refused = 0
    for start, size in packets_of(content)[1::4]:
        damaged = bytearray(content)
        damaged[start + 5 : start + 5 + min(size - 5, 8)] = bytes(min(size - 5, 8))
        try:
            decode_video(bytes(damaged))
        except VideoDecodeError:
            refused += 1
    assert refused > 6


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize(
    ("container", "options"), [("mp4", {"movflags": "faststart"}), ("mov", {"movflags": "faststart"}), ("matroska", {})]
)
def test_a_file_that_is_cut_short_is_an_error(tmp_path, container, options, share):
    path = tmp_path / "clip"
    whole = encoded(container, container_options=options, path=path)
    assert len(decode_video(path)[0]) == NUM_FRAMES
    path.write_bytes(whole[: int(len(whole) * share)])
    for indices in (None, lambda metadata: [0, metadata.total_num_frames - 1]):
        with pytest.raises(VideoDecodeError, match="cut short"):
            decode_video(path, indices)
        with pytest.raises(VideoDecodeError, match="cut short"):
            next(iter_video_frames(path, indices))
    assert (decode_video(path, [0, 1])[0] == decode_video(whole, [0, 1])[0]).all()  # what is there can be had


def test_an_avi_that_is_cut_short():
    whole = encoded("avi", "mpeg4")
    assert len(decode_video(whole)[0]) == NUM_FRAMES
    with pytest.raises(VideoDecodeError, match="cut short: it ends [0-9]+ bytes before its own end"):
        decode_video(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_frames_with_exif_stand_upright(orientation):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for index in range(4):
            jpeg = io.BytesIO()
            Image.fromarray(picture(index)).save(jpeg, "JPEG", exif=exif, subsampling="4:2:0")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            out.mux(packet)
    frames, _ = decode_video(buffer.getvalue())
    upright = np.rot90(picture(2), {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert frames.shape == (4, *upright.shape)
    assert np.abs(frames[2].numpy().astype(int) - upright).mean() < 20
