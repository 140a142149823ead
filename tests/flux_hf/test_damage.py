"""Damage inside a file, and files that are cut short: an error, or the true frames; never other pictures."""

import io
import os
import re
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import video_files
from PIL import Image, ImageOps

from flux_hf import decode_video
from flux_hf.video_decoding import VideoDecodeError, iter_video_frames


NUM_FRAMES, WIDTH, HEIGHT = 48, 96, 64


def picture(index, width=WIDTH, height=HEIGHT):
    rows, columns = np.mgrid[:height, :width]
    levels = [columns * 2 + 7 * index, rows * 3 + 3 * index, (rows + columns) // 4 * 8 + 9 * index]
    return np.stack([level % 200 + 20 for level in levels], axis=-1).astype(np.uint8)


def encoded(
    container="mp4",
    codec="libx264",
    options=None,
    container_options=None,
    path=None,
    size=(WIDTH, HEIGHT),
    pix_fmt="yuv420p",
):
    """The content of a file; `path`: where it is written, for a container that reads itself again."""
    buffer = io.BytesIO()
    with av.open(str(path) if path else buffer, "w", format=container, options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24").reformat(format=pix_fmt)
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


def read_in_all_ways(content, tmp_path):
    """(frames, reason of the error or None), the same from every source and for any number of threads."""
    path = tmp_path / "clip"
    path.write_bytes(content)
    results = []
    for source, threads in ((path, 1), (path, 2), (content, 3), (io.BytesIO(content), 4), (str(path), 0)):
        frames, reason = [], None
        try:
            for chunk in iter_video_frames(source, chunk_frames=1, num_threads=threads):
                frames.append(chunk[0].numpy().tobytes())
        except VideoDecodeError as error:
            reason = error.reason
            assert error.source in (str(path), f"<{len(content)} bytes>", f"<BytesIO, {len(content)} bytes>")
        results.append((frames, reason))
    assert all(result == results[0] for result in results), [(len(frames), reason) for frames, reason in results]
    return results[0]


def zeroed(content, number, share=0.5, count=8, fill=0):
    """With up to `count` bytes of one packet's data all alike."""
    start, size = packets_of(content)[number]
    damaged, at = bytearray(content), int(size * share)
    count = min(count, size - at)
    damaged[start + at : start + at + count] = bytes([fill]) * count
    return bytes(damaged)


LOGGED = {
    "gif": ({"container": "gif", "codec": "gif", "pix_fmt": "rgb8"}, "LZW decode failed"),
    "dv": (
        {"container": "avi", "codec": "dvvideo", "size": (720, 576)},
        "AC EOB marker|Concealing",
    ),
    "wmv": ({"container": "avi", "codec": "wmv2"}, "ignoring overflow|damaged|Error at MB|overflow"),
    "mpeg4": ({"container": "avi", "codec": "mpeg4"}, "damaged|Error at MB|slice end|header|f_code|marks the frame"),
}


@pytest.mark.parametrize("kind", LOGGED)
def test_damage_that_is_only_logged(kind, tmp_path):
    how, words = LOGGED[kind]
    content = encoded(**how)
    frames, reason = read_in_all_ways(content, tmp_path)
    assert (len(frames), reason) == (NUM_FRAMES, None)
    found = 0
    for share in (0.4, 0.5, 0.6):
        for _ in range(2):  # FFmpeg's log passes over what it said before
            read, reason = read_in_all_ways(zeroed(content, 20, share, 16, 255), tmp_path)
            if reason is None:
                continue
            found += 1
            assert re.match(f"damaged at 0\\.[78][0-9]{{2}} s: .*({words})", reason), reason
            assert read == frames[: len(read)]
    assert found >= 2


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_a_last_packet_that_is_cut(share, tmp_path):
    content = encoded("mpegts", options={"g": "12"})
    frames, _ = read_in_all_ways(content, tmp_path)
    read, reason = read_in_all_ways(content[: int(len(content) * share) // 188 * 188], tmp_path)
    assert read == frames[: len(read)]
    assert reason is None or reason.startswith("damaged at ")
    if share == 0.55:
        assert reason is not None


@pytest.mark.parametrize("seed", range(6))
def test_frames_before_damage_are_the_same_for_any_number_of_threads(sound, seed, tmp_path):
    content, _ = sound
    rng = np.random.default_rng(seed)
    read, reason = read_in_all_ways(zeroed(content, int(rng.integers(1, NUM_FRAMES)), rng.uniform(0.3, 0.9)), tmp_path)
    assert reason is None or len(read) < NUM_FRAMES


def test_a_damaged_container(tmp_path):
    """The broken size of a Matroska element is only logged."""
    content = encoded("matroska", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"})
    damaged, (start, _) = bytearray(content), packets_of(content)[40]
    damaged[start - 8 : start + 4] = b"\x0b" * 12
    _, reason = read_in_all_ways(bytes(damaged), tmp_path)
    assert reason is not None


# One wrong time: of (packet in decoding order, moved by frames).
MOVED = [(5, -2), (5, 1), (8, -3.4), (8, 2.5), (14, -0.5), (20, -1), (20, 5), (52, -3.4), (30, -6.5)]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(("number", "by"), MOVED)
def test_one_wrong_time_gives_an_error_or_the_true_frames(container, number, by):
    sound = video_files.encode("libx264", 60, options={"g": "12", "bf": "2", "preset": "veryfast"}, container=container)

    def move(packets):
        packet, step = packets[number], packets[1].duration
        packet.pts = max(0, packet.pts + int(by * step))
        return packets

    try:
        content = video_files.remux(sound, move, container)
    except av.FFmpegError:
        pytest.skip("it cannot be written")
    for indices in ([number], [number - 1], [max(number - 2, 0), number + 2], [5, 33, 55], list(range(60))):
        outcomes = []
        for threads in (1, 2, 4):
            try:
                frames, _ = decode_video(content, indices, num_threads=threads)
            except VideoDecodeError as error:
                assert "damaged at" in error.reason
                outcomes.append(error.reason)
                continue
            assert [video_files.read_barcode(frame) for frame in frames.numpy()] == indices
            outcomes.append("")
        assert len(set(outcomes)) == 1, outcomes


@pytest.mark.parametrize("threads", [1, 2])
def test_two_broadcasts_one_behind_the_other_start_anew(threads):
    """Their times go back, by less than a damaged one might: at a keyframe that is no damage."""
    part = video_files.encode("libx264", 40, container="mpegts", options={"g": "12"})
    frames, _ = decode_video(part + part, num_threads=threads)
    numbers = [video_files.read_barcode(frame) for frame in frames.numpy()]
    assert numbers == [*range(40), *range(40)]


@pytest.mark.parametrize("level", [None, av.logging.PANIC, av.logging.WARNING])
def test_the_callers_log_stays_as_it_was(level):
    content = zeroed(encoded(**LOGGED["gif"][0]), 20, 0.5, 16)
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    try:
        av.logging.set_level(level)
        with av.logging.Capture() as heard:
            with pytest.raises(VideoDecodeError, match="LZW"):
                decode_video(content)
            assert (av.logging.get_level(), av.logging.get_skip_repeated()) == (level, before[1])
            av.logging.log(av.logging.ERROR, "mine", "still heard")
    finally:
        av.logging.set_level(before[0])
    names = [name for _, name, _ in heard]
    assert names.count("mine") == (level == av.logging.WARNING)
    assert ("gif" in names) == (level == av.logging.WARNING)


CROWD = """
import os, sys, threading
from flux_hf.video_decoding import VideoDecodeError, decode_video

def read(content):
    for _ in range(40):
        try:
            decode_video(content, num_threads=3)
        except VideoDecodeError:
            continue
        raise SystemExit("damage was not found")

contents = [open(path, "rb").read() for path in sys.argv[1:]]
threads = [threading.Thread(target=read, args=(content,)) for content in contents * 2]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
child = os.fork()
if child == 0:
    read(contents[0])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
import av.logging
assert av.logging.get_level() is None and av.logging.get_skip_repeated()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_and_forked_processes_that_meet_damage(sound, tmp_path):
    """FFmpeg's threads wait for Python to log: none may wait for the other, and nothing is printed."""
    paths = [tmp_path / "clip.gif", tmp_path / "clip.mp4"]
    paths[0].write_bytes(zeroed(encoded(**LOGGED["gif"][0]), 20, 0.5, 16))
    damaged = sound[0]
    for number in range(13, NUM_FRAMES):
        damaged = zeroed(damaged, number, 0.4, 8)
    paths[1].write_bytes(damaged)
    command = [sys.executable, "-c", CROWD, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert "libav" not in done.stderr and "LZW" not in done.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
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
    upright = np.asarray(ImageOps.exif_transpose(Image.open(jpeg)))
    assert frames.shape == (4, *upright.shape)
    assert np.abs(frames[3].numpy().astype(int) - upright).mean() < 4
