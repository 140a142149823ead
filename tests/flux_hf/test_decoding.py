# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding gives the frames of a full sequential decode, and one clear error for what cannot be decoded."""

import functools
import http.server
import importlib
import io
import os
import pickle
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import video_files

import flux_hf.video_decoding as decoding
import flux_hf.video_frames as video_frames
import flux_hf.video_streams as streams
from flux_hf.video_decoding import VideoDecodeError, decode_video, iter_video_frames


REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("FLUX_HF_DATA", REPOSITORY.parent / "shared" / "data"))

X264 = {"g": "12", "bf": "2", "preset": "veryfast"}
VFR_TIMES = np.cumsum(np.random.default_rng(0).integers(1, 6, 60)).tolist()
CLOSED_HEVC = "keyint=12:min-keyint=12:bframes=3:open-gop=0:log-level=none"
OPEN_HEVC = "keyint=12:min-keyint=12:bframes=3:open-gop=1:log-level=none"
OPEN_X264 = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0"
VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "12"}

encode = video_files.encode
# name -> (maker, number of frames, first number shown, the other decoder that reads it exactly, if one does)
KINDS = {
    "h264_bframes_mp4": (lambda: encode("libx264", 60, options=X264), 60, 0, "decord"),
    "h264_bframes_mkv": (lambda: encode("libx264", 60, options=X264, container="matroska"), 60, 0, "decord"),
    "h264_vfr_mp4": (lambda: encode("libx264", 60, options=X264, times=VFR_TIMES), 60, 0, "decord"),
    "h264_late_start": (lambda: encode("libx264", 60, options=X264, times=list(range(100, 160))), 60, 0, "decord"),
    "h264_fragmented": (
        lambda: encode("libx264", 60, options=X264, container_options={"movflags": "frag_keyframe+empty_moov"}),
        60,
        0,
        "decord",
    ),
    "h264_with_sound": (lambda: encode("libx264", 60, options=X264, audio=True), 60, 0, "decord"),
    "h264_all_keyframes": (lambda: encode("libx264", 60, options={"g": "1"}), 60, 0, "decord"),
    "h264_open_groups": (lambda: encode("libx264", 60, options={"x264-params": OPEN_X264}), 60, 0, None),
    "h264_avi": (lambda: encode("libx264", 60, options=X264, container="avi"), 60, 0, None),
    "h264_ts": (lambda: encode("libx264", 60, options=X264, container="mpegts"), 60, 0, None),
    "h264_10_bit": (lambda: encode("libx264", 30, pix_fmt="yuv420p10le", options=X264), 30, 0, None),
    "h264_444": (lambda: encode("libx264", 60, pix_fmt="yuv444p", options=X264), 60, 0, None),
    "h264_interlaced": (
        lambda: encode("libx264", 30, options={"flags": "+ildct+ilme", "x264-params": "tff=1:keyint=12"}),
        30,
        0,
        None,
    ),
    "h264_one_frame": (lambda: encode("libx264", 1), 1, 0, "decord"),
    "h264_cut_by_edit_list": (
        lambda: video_files.cut_by_edit_list(encode("libx264", 60, options=X264), 17),
        43,
        17,
        None,
    ),
    "h264_changing_size": (video_files.changing_size, 40, 0, None),
    "hevc_closed_groups": (
        lambda: encode("libx265", 60, options={"preset": "ultrafast", "x265-params": CLOSED_HEVC}),
        60,
        0,
        "decord",
    ),
    "hevc_open_groups": (
        lambda: encode("libx265", 60, options={"preset": "ultrafast", "x265-params": OPEN_HEVC}),
        60,
        0,
        None,
    ),
    "mpeg4_bframes_avi": (lambda: encode("mpeg4", 60, options={"bf": "2", "g": "12"}, container="avi"), 60, 0, None),
    "mpeg4_packed_avi": (lambda: video_files.packed_bframes_avi(61), 61, 0, None),
    "mpeg2_ts": (lambda: encode("mpeg2video", 60, options={"bf": "2"}, container="mpegts"), 60, 0, None),
    "mjpeg_avi": (lambda: encode("mjpeg", 60, pix_fmt="yuvj420p", container="avi"), 60, 0, None),
    "wmv": (lambda: encode("wmv2", 60, container="asf"), 60, 0, None),
    "flv": (lambda: encode("flv", 60, container="flv"), 60, 0, None),
    "vp8_hidden_frames": (
        lambda: encode("libvpx", 60, options={"auto-alt-ref": "1", "lag-in-frames": "16"}, container="webm"),
        60,
        0,
        None,
    ),
    "vp9_odd_size": (lambda: encode("libvpx-vp9", 60, size=(161, 97), options=VP9, container="webm"), 60, 0, None),
    "gif": (lambda: encode("gif", 20, pix_fmt="rgb8", container="gif"), 20, 0, None),
}
# name -> (display matrix, what FFmpeg's own tool makes of a stored picture, whether decord can do it)
TURNS = {
    "quarter": ({"degrees": 90}, lambda image: np.rot90(image), True),
    "other_quarter": ({"degrees": -90}, lambda image: np.rot90(image, -1), True),
    "half": ({"degrees": 180}, lambda image: image[::-1, ::-1], True),
    "mirrored": ({"degrees": 0, "hflip": True}, lambda image: image[:, ::-1], False),
    "upside_down": ({"degrees": 180, "hflip": True}, lambda image: image[::-1], False),
    "quarter_and_flipped": ({"degrees": 90, "vflip": True}, lambda image: image.transpose(1, 0, 2), False),
}


@functools.cache
def video(kind: str) -> bytes:
    return KINDS[kind][0]()


def sequential_frames(data: bytes) -> list[np.ndarray]:
    """The reference: every frame of the best stream, decoded in sequence, as stored (not turned upright)."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(container.streams.best("video")))
        width, height = frames[0].width, frames[0].height
        return [f.reformat(width, height, format="rgb24").to_ndarray() for f in frames]


def index_lists(count: int) -> list[list[int]]:
    draw = random.Random(count)
    uniform = np.linspace(0, count - 1, 8).round().astype(int).tolist()
    scattered = [sorted(draw.sample(range(count), min(count, k))) for k in (1, 2, 3, 3, 5, 9)]
    return [uniform, uniform[::-1], [count - 1], [count - 1, 0, count - 1], *scattered]


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_equal_the_sequential_decode(kind):
    _, count, first, _ = KINDS[kind]
    reference = sequential_frames(video(kind))
    frames, metadata = decode_video(video(kind))
    assert metadata.total_num_frames == count == len(reference) == len(frames)
    assert [video_files.read_barcode(frame) for frame in frames.numpy()] == list(range(first, first + count))
    assert metadata.video_backend == "pyav"
    for indices in index_lists(count):
        frames, metadata = decode_video(video(kind), indices)
        assert frames.dtype == torch.uint8 and frames.shape == (len(indices), *reference[0].shape)
        pairs = zip(indices, frames.numpy(), strict=True)
        wrong = [i for i, frame in pairs if not np.array_equal(frame, reference[i])]
        assert not wrong, f"wrong at {wrong} of {indices}"
        assert metadata.frames_indices == indices


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_upright(turn):
    rotation, upright, by_decord = TURNS[turn]
    data = encode("libx264", 20, options=X264, turn=rotation)
    stored = sequential_frames(data)
    frames, metadata = decode_video(data, [3, 11])
    assert np.array_equal(frames[0].numpy(), upright(stored[3]))
    assert np.array_equal(frames[1].numpy(), upright(stored[11]))
    assert (metadata.height, metadata.width) == tuple(frames.shape[1:3])
    if by_decord:
        assert torch.equal(decode_video(data, [3, 11], backend="decord")[0], frames)
    else:
        with pytest.raises(VideoDecodeError, match="mirrored"):
            decode_video(data, [3, 11], backend="decord")


@pytest.mark.parametrize("kind", KINDS)
def test_decord_gives_the_same_frames_or_refuses(kind):
    pytest.importorskip("decord")
    _, count, _, other = KINDS[kind]
    for indices in (None, [0, count // 2, count - 1], [count - 1]):
        if other is None:
            with pytest.raises(VideoDecodeError, match="decord would not give its exact frames"):
                decode_video(video(kind), indices, backend="decord")
            continue
        frames, metadata = decode_video(video(kind), indices, backend="decord")
        assert metadata.video_backend == other and metadata.total_num_frames == count
        assert torch.equal(frames, decode_video(video(kind), indices)[0])


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend must be one of .*'decord'.*got 'opencv'"):
        decode_video(video("h264_one_frame"), backend="opencv")


def test_frames_without_a_picture_are_not_counted():
    """XviD's packed files: packets outnumber frames, and decord alone repeats the last frame for the surplus."""
    data = video("mpeg4_packed_avi")
    assert len(video_files.packets_of(data)) > 61
    decord = pytest.importorskip("decord")
    assert len(decord.VideoReader(io.BytesIO(data))) > 61
    assert decode_video(data, lambda metadata: [metadata.total_num_frames - 1])[1].frames_indices == [60]


def test_keyframes_nearer_than_the_reordering_delay():
    """MP4 seeks by decoding time: with frames reordered, the next keyframe may decode before this one is shown."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = video_files.add_stream(out, "libx264", options={**X264, "g": "250", "sc_threshold": "0"})
        for index in range(60):
            image = av.VideoFrame.from_ndarray(video_files.barcode_frame(index), format="rgb24")
            frame = image.reformat(format="yuv420p")
            frame.pts, frame.time_base = index, stream.codec_context.time_base
            frame.pict_type = 1 if 30 <= index < 34 or index == 0 else 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    data = buffer.getvalue()
    keys = [packet for packet in video_files.packets_of(data) if packet.is_keyframe]
    assert any(later.dts <= key.pts for key, later in zip(keys[:-1], keys[1:], strict=True))
    reference = sequential_frames(data)
    for i in range(28, 40):
        frames, metadata = decode_video(data, [i])
        assert np.array_equal(frames[0].numpy(), reference[i]) and video_files.read_barcode(frames[0].numpy()) == i
        with pytest.raises(VideoDecodeError, match="keyframes too close"):
            decode_video(data, [i], backend="decord")


def test_the_best_of_two_streams_is_read():
    data = video_files.two_video_streams()
    assert np.array_equal(decode_video(data)[0].numpy(), np.stack(sequential_frames(data)))


def test_a_still_video_is_read_whole():
    """Equal neighbours are no sign of a decoder repeating itself."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = video_files.add_stream(out, "libx264", options=X264)
        for time in range(30):
            video_files.mux_frame(out, stream, 5, time)
        out.mux(stream.encode())
    frames, metadata = decode_video(buffer.getvalue(), [0, 10, 29])
    reference = sequential_frames(buffer.getvalue())
    assert metadata.total_num_frames == 30
    assert all(np.array_equal(frame, reference[i]) for frame, i in zip(frames.numpy(), (0, 10, 29), strict=True))


def test_more_packets_than_frames_chooses_again(monkeypatch):
    """Where the packets promise frames that do not come, the sampler is asked again with the true number."""
    real = decoding.probe
    data = video("hevc_open_groups")

    def optimistic(*arguments):
        stream = real(*arguments)
        return replace(stream, frame_count=stream.frame_count + 5)

    monkeypatch.setattr(decoding, "probe", optimistic)
    counts = []

    def last(metadata):
        counts.append(metadata.total_num_frames)
        return [metadata.total_num_frames - 1]

    frames, metadata = decode_video(data, last)
    assert counts == [65, 60] and metadata.total_num_frames == 60
    assert video_files.read_barcode(frames[0].numpy()) == 59


@pytest.mark.parametrize("kind", ["mpeg4_bframes_avi", "vp8_hidden_frames"])
@pytest.mark.parametrize("error", [-7, 0, 5, 1000])
def test_a_wrong_guess_of_an_unknown_length_is_made_good(monkeypatch, kind, error):
    scan, counts = streams._scan, []

    def guessing(*arguments):
        stream = scan(*arguments)
        return replace(stream, likely_frame_count=60 + error)

    def sampler(metadata):
        counts.append(metadata.total_num_frames)
        return [0, metadata.total_num_frames // 2, metadata.total_num_frames - 1]

    monkeypatch.setattr(streams, "_scan", guessing)
    frames, metadata = decode_video(video(kind), sampler)
    assert [video_files.read_barcode(frame) for frame in frames.numpy()] == [0, 30, 59]
    assert metadata.total_num_frames == 60 and counts == ([60] if error == 0 else [60 + error, 60])
    frames, _ = decode_video(video(kind), [59])  # beyond the guess, perhaps, but not beyond the video
    assert video_files.read_barcode(frames[0].numpy()) == 59
    with pytest.raises(ValueError, match="60"):
        decode_video(video(kind), [60])


@pytest.mark.parametrize("kind", KINDS)
def test_one_thread_gives_the_same_frames(kind):
    last = KINDS[kind][1] - 1
    expected, _ = decode_video(video(kind), [0, last // 2, last])
    frames, metadata = decode_video(video(kind), [0, last // 2, last], num_threads=1)
    assert torch.equal(frames, expected) and metadata.total_num_frames == last + 1


@pytest.mark.parametrize("module", ["av", "decord"])
def test_a_missing_decoder_says_what_to_install(monkeypatch, module):
    real = importlib.import_module

    def without(name):
        if name == module:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=f"pip install {module}"):
        decode_video(video("h264_one_frame"), backend="decord")
    if module == "decord":
        assert decode_video(video("h264_one_frame"))[1].total_num_frames == 1


# --- how much is decoded ---------------------------------------------------------------------------------------------


@pytest.fixture
def converted(monkeypatch):
    """Counts the frames that come out of decoders, by where they are asked for."""
    count = {"frames": 0}

    def counting(name):
        real = getattr(decoding, name)

        def frames(*arguments, **options):
            for frame in real(*arguments, **options):
                count["frames"] += 1
                yield frame

        monkeypatch.setattr(decoding, name, frames)

    counting("sequential_frames")
    counting("frames_of_groups")
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_the_frames_from_one_pass(converted, kind):
    count = KINDS[kind][1]
    expected, _ = decode_video(video(kind))
    converted["frames"] = 0
    chunks = list(iter_video_frames(video(kind), chunk_frames=7))
    assert converted["frames"] == count
    assert [len(chunk) for chunk in chunks] == [7] * (count // 7) + [count % 7] * (count % 7 > 0)
    assert torch.equal(torch.cat(chunks), expected)
    some = [0, count // 2, count - 1]
    assert torch.equal(torch.cat(list(iter_video_frames(video(kind), some, 2))), expected[sorted(set(some))])


def test_chunks_of_a_damaged_file_end_in_an_error(monkeypatch):
    with pytest.raises(VideoDecodeError, match="damaged|Invalid"):
        list(iter_video_frames(flipped_bits(video("h264_bframes_mp4"), 60, 3)))
    real = decoding.probe  # packets that promise more than there is
    monkeypatch.setattr(decoding, "probe", lambda file: replace(real(file), frame_count=65))
    with pytest.raises(VideoDecodeError, match="ended after 60 frames"):
        list(iter_video_frames(video("hevc_open_groups"), [0, 64]))


def an_hour(path: Path) -> Path:
    """3,600 seconds of H.264 at 4 frames a second, in groups of 60 frames: 60 of them, repeated with later times."""
    data = encode("libx264", 60, size=(64, 48), options={"g": "60", "bf": "2", "sc_threshold": "0"}, rate=4)
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        step = packets[0].duration or int(0.25 / stream.time_base)
        times = [(packet.pts, packet.dts) for packet in packets]
        contents = [bytes(packet) for packet in packets]
        for lap in range(240):
            for (pts, dts), content, old in zip(times, contents, packets, strict=True):
                packet = av.Packet(content)
                packet.pts, packet.dts = pts + lap * 60 * step, dts + lap * 60 * step
                packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, copy, old.is_keyframe
                out.mux(packet)
    return path


class CountedPacket:
    """A packet that notes when it is decoded."""

    def __init__(self, packet, decoded: list):
        self.packet, self.decoded, self.size = packet, decoded, packet.size

    def decode(self):
        self.decoded.append(self.packet.pts)
        return self.packet.decode()


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_sparse_read_of_an_hour_decodes_a_few_groups(tmp_path, monkeypatch, container):
    path, decoded = an_hour(tmp_path / f"hour.{container}"), []
    real = video_frames.packets_of
    monkeypatch.setattr(
        video_frames, "packets_of", lambda *arguments: (CountedPacket(packet, decoded) for packet in real(*arguments))
    )
    indices = np.linspace(0, 14399, 12).round().astype(int)
    frames, metadata = decode_video(path, indices)
    assert metadata.total_num_frames == 14400 and metadata.duration == pytest.approx(3600, abs=1)
    assert [video_files.read_barcode(frame) for frame in frames.numpy()] == (indices % 60).tolist()
    assert len(decoded) <= 12 * 60  # of 14,400


# --- where a video comes from ----------------------------------------------------------------------------------------


def test_every_kind_of_source(tmp_path):
    data = video("h264_bframes_mp4")
    path = video_files.write(tmp_path, "clip:1 é%03d.mp4", data)
    expected, _ = decode_video(path, [4, 40])
    with open(path, "rb") as file:
        sources = [Path(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        for source in sources:
            frames, metadata = decode_video(source, [4, 40])
            assert torch.equal(frames, expected), type(source)
            assert metadata.total_num_frames == 60
        assert not file.closed


def test_relative_path_that_looks_like_a_protocol(tmp_path, monkeypatch):
    video_files.write(tmp_path, "tcp:1.mp4", video("h264_one_frame"))
    monkeypatch.chdir(tmp_path)
    assert decode_video("tcp:1.mp4")[1].total_num_frames == 1


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path in ("/clip.mp4", "/%C3%A9t%C3%A9%20clip.mp4?a=b%2Fc"):
            body = video("h264_bframes_mp4")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/moved.mp4":
            self.send_response(302)
            self.send_header("Location", "/clip.mp4")
            self.end_headers()
        elif self.path == "/cut.mp4":  # promises more than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        elif self.path == "/silent.mp4":
            self.server.waiting.wait(10)
        else:
            self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.waiting = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.waiting.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_urls(server, monkeypatch):
    monkeypatch.setattr(decoding, "URL_TIMEOUT_SECONDS", 1.0)
    for name in ("clip.mp4", "moved.mp4"):
        frames, metadata = decode_video(f"{server}/{name}", [7])
        assert video_files.read_barcode(frames[0].numpy()) == 7
    encoded = f"{server}/%C3%A9t%C3%A9%20clip.mp4?a=b%2Fc"
    for url in (encoded, f"{server}/été clip.mp4?a=b%2Fc", f"{server}/clip.mp4".replace("http", "HTTP")):
        assert len(decode_video(url, [7])[0]) == 1
    for name in ("missing.mp4", "cut.mp4", "silent.mp4"):
        with pytest.raises(VideoDecodeError, match=f"{server}/{name}.*cannot be fetched"):
            decode_video(f"{server}/{name}")


def test_a_refused_connection_and_other_protocols():
    with pytest.raises(VideoDecodeError, match="127.0.0.1:9/clip.mp4"):
        decode_video("http://127.0.0.1:9/clip.mp4")
    for url in ("rtsp://127.0.0.1/clip", "s3://bucket/clip.mp4", "ftp://127.0.0.1/clip.mp4"):
        with pytest.raises(VideoDecodeError, match="only http and https"):
            decode_video(url)


def test_metadata():
    frames, metadata = decode_video(encode("libx264", 50, options=X264, rate=25), [1, 2])
    assert (metadata.fps, metadata.total_num_frames, metadata.height, metadata.width) == (25.0, 50, 96, 160)
    assert metadata.duration == pytest.approx(2.0, abs=0.1)


# --- indices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[60], [-1], [], [0.5], [[0, 1]], ["a"]])
@pytest.mark.parametrize("kind", ["h264_bframes_mp4", "hevc_open_groups"])
def test_indices_outside_the_video(kind, indices):
    with pytest.raises(ValueError, match="frame indices"):
        decode_video(video(kind), indices)


@pytest.mark.parametrize("kind", ["h264_bframes_mp4", "hevc_open_groups", "mpeg4_bframes_avi"])
def test_the_sampler_gets_the_true_count_once_and_its_errors_pass(kind):
    seen = []

    def sampler(metadata):
        seen.append(metadata.total_num_frames)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        decode_video(video(kind), sampler)
    assert seen == [60]


# --- what cannot be decoded ------------------------------------------------------------------------------------------

NOT_VIDEOS = {
    "empty": b"",
    "text.txt": b"once upon a time " * 300,
    "page.mp4": b"<!DOCTYPE html><html><body>Not found</body></html>" * 50,
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "concat.txt": b"ffconcat version 1.0\nfile clip.mp4\n",
    "noise.mp4": random.Random(0).randbytes(20_000),
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_files_that_are_no_video(tmp_path, name):
    video_files.write(tmp_path, "clip.mp4", video("h264_one_frame"))
    path = video_files.write(tmp_path, name, NOT_VIDEOS[name])
    for source in (path, NOT_VIDEOS[name]):
        with pytest.raises(VideoDecodeError):
            decode_video(source)
    with pytest.raises(VideoDecodeError, match=name):
        decode_video(path)


def test_sound_without_pictures():
    with pytest.raises(VideoDecodeError, match="no video stream"):
        decode_video(video_files.audio_only())


def test_missing_file_folder_and_pipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        decode_video(tmp_path / "nothing.mp4")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        decode_video(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoDecodeError, match="not a regular file"):
        decode_video(tmp_path / "pipe.mp4")
    with pytest.raises(TypeError, match="int"):
        decode_video(3)
    with pytest.raises(TypeError, match="binary"):
        decode_video(io.StringIO("text"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = Path(video_files.write(tmp_path, "clip.mp4", video("h264_one_frame")))
    path.chmod(0)
    with pytest.raises(PermissionError, match="clip.mp4"):
        decode_video(path)


@pytest.mark.parametrize(
    "kind", ["h264_bframes_mp4", "hevc_open_groups", "h264_bframes_mkv", "h264_ts", "vp9_odd_size"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error_or_true_frames(kind, share):
    data = video(kind)[: int(len(video(kind)) * share)]
    reference = sequential_frames(video(kind))
    try:
        frames, metadata = decode_video(data)
    except VideoDecodeError:
        return
    assert metadata.total_num_frames <= len(reference)
    whole = [np.array_equal(frame, reference[i]) for i, frame in enumerate(frames.numpy())]
    assert all(whole[:-1]), "a frame that is not in the file"


def flipped_bits(data: bytes, flips: int, seed: int) -> bytes:
    """`data` with bits flipped among the coded pictures."""
    draw, broken = random.Random(seed), bytearray(data)
    start = data.index(b"mdat") + 1000  # x264's note stands first
    stop = data.index(b"moov") if b"moov" in data[start:] else len(data)
    for _ in range(flips):
        broken[draw.randrange(start, stop)] ^= 1 << draw.randrange(8)
    return bytes(broken)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_damaged_pictures_are_an_error(backend):
    """Decoders patch damaged pictures up: they must not come out. A few flips no decoder can see."""
    data = video("h264_bframes_mp4")
    reference, _ = decode_video(data)
    indices = [0, 9, 18, 27, 36, 45, 54, 59]
    errors = seen = 0
    for seed in range(20):
        try:
            frames, _ = decode_video(flipped_bits(data, 8, seed), indices, backend=backend)
            seen += not torch.equal(frames, reference[indices])
        except VideoDecodeError:
            errors += 1
    assert errors >= 15 and seen <= 2


def test_damage_elsewhere_does_no_harm():
    """Only what the wanted frames depend on is decoded: the others may be damaged."""
    data = video("h264_bframes_mp4")
    reference, _ = decode_video(data, [3])
    packets = video_files.packets_of(data)
    broken = bytearray(data)
    position = packets[40].pos
    broken[position + 20 : position + 120] = random.Random(0).randbytes(100)
    assert torch.equal(decode_video(bytes(broken), [3])[0], reference)
    with pytest.raises(VideoDecodeError):
        decode_video(bytes(broken))


def test_the_error_names_file_and_cause_and_crosses_processes(tmp_path):
    path = video_files.write(tmp_path, "bad.mp4", NOT_VIDEOS["page.mp4"])
    with pytest.raises(VideoDecodeError) as caught:
        decode_video(path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, VideoDecodeError) and isinstance(copy, ValueError)
    assert str(copy) == str(caught.value) and path in str(copy) and copy.reason and copy.source == path


FUZZ = """
import random, sys
import torch
from flux_hf.video_decoding import VideoDecodeError, decode_video
good = bad = 0
for seed in range(int(sys.argv[1])):
    data = open(sys.argv[2 + seed % len(sys.argv[2:])], "rb").read()
    draw = random.Random(seed)
    broken = bytearray(data)
    for _ in range(draw.choice([1, 5, 50])):
        broken[draw.randrange(len(broken))] = draw.randrange(256)
    if seed % 4 == 0:
        del broken[draw.randrange(len(broken)):]
    try:
        frames, metadata = decode_video(bytes(broken), lambda m: [0, m.total_num_frames // 2, m.total_num_frames - 1])
        good += 1
    except VideoDecodeError:
        bad += 1
print(good, bad)
"""


def fuzz(tmp_path, kinds: list[str], files: int, seconds: float) -> None:
    paths = [video_files.write(tmp_path, kind, video(kind)) for kind in kinds]
    command = [sys.executable, "-c", FUZZ, str(files), *paths]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-2000:]  # negative: the interpreter died
    good, bad = map(int, run.stdout.split())
    assert good + bad == files
    assert bad > 0 or kinds == ["gif"]  # which has no redundancy that damage could be seen by


@pytest.mark.parametrize("count", [7, 10**6, 2**32 - 2])
def test_a_header_that_lies_about_the_number_of_frames(tmp_path, count):
    """decord reserves memory for as many frames as the sample size table claims to have, and aborts if it cannot."""
    data = bytearray(video("h264_bframes_mp4"))
    expected, _ = decode_video(bytes(data), [0])
    table = data.index(b"stsz") + 12  # version and flags, one size for all, then the number of samples
    data[table : table + 4] = count.to_bytes(4, "big")
    path = video_files.write(tmp_path, "lying.mp4", bytes(data))
    script = "import sys, torch; from flux_hf import *; print(decode_video(sys.argv[1], [0])[0].sum().item())"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    if run.returncode == 0:
        assert int(run.stdout) == int(expected.sum())
    else:
        assert run.returncode == 1 and "VideoDecodeError" in run.stderr, run.stderr


def test_damaged_files_neither_hang_nor_kill(tmp_path):
    fuzz(tmp_path, ["h264_bframes_mp4", "mpeg4_packed_avi", "hevc_closed_groups", "h264_bframes_mkv"], 60, 120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_neither_hang_nor_kill(tmp_path, kind):
    fuzz(tmp_path, [kind], 100, 600)


# --- other users of decord, other processes --------------------------------------------------------------------------


def test_the_bridge_of_others_is_kept():
    decord = pytest.importorskip("decord")
    expected, _ = decode_video(video("h264_bframes_mp4"), [1, 50])
    for bridge in ("torch", "native"):
        decord.bridge.set_bridge(bridge)
        try:
            frames, _ = decode_video(video("h264_bframes_mp4"), [1, 50], backend="decord")
            assert torch.equal(frames, expected)
            theirs = decord.VideoReader(io.BytesIO(video("h264_bframes_mp4"))).next()
            assert isinstance(theirs, torch.Tensor) == (bridge == "torch")
        finally:
            decord.bridge.reset_bridge()


def test_frames_outlive_the_reader():
    first, _ = decode_video(video("h264_bframes_mp4"), [1])
    copy = first.clone()
    for i in range(5):
        decode_video(video("h264_bframes_mp4"), [i])
    assert torch.equal(first, copy)
    first.add_(1)  # the memory is ours to write


class Clips(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return decode_video(self.paths[i], [3, 30])[0]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_of_a_parent_that_has_decoded(tmp_path, method, workers):
    kinds = ["h264_bframes_mp4", "mpeg4_bframes_avi", "hevc_open_groups", "h264_bframes_mkv"]
    paths = [video_files.write(tmp_path, kind, video(kind)) for kind in kinds]
    expected = [decode_video(path, [3, 30])[0] for path in paths]
    paths.append(video_files.write(tmp_path, "bad.mp4", NOT_VIDEOS["page.mp4"]))
    loader = torch.utils.data.DataLoader(
        Clips(paths), batch_size=None, num_workers=workers, multiprocessing_context=method, timeout=60
    )
    batches = iter(loader)
    for right in expected:
        assert torch.equal(next(batches), right)
    with pytest.raises(Exception, match="bad.mp4"):
        next(batches)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_nothing_stays_open(tmp_path):
    kinds = ["h264_bframes_mp4", "mpeg4_bframes_avi"]
    paths = [video_files.write(tmp_path, kind, video(kind)) for kind in kinds]
    bad = video_files.write(tmp_path, "bad.mp4", NOT_VIDEOS["page.mp4"])

    def open_files_and_threads():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for path in paths:
        decode_video(path, [0, 59])
    before = open_files_and_threads()
    for _ in range(20):
        for path in paths:
            decode_video(path, [0, 59])
        with pytest.raises(VideoDecodeError):
            decode_video(bad)
    after = open_files_and_threads()
    assert after[0] <= before[0] and after[1] <= before[1] + 1


def test_quiet(tmp_path):
    """Neither decoder writes to the terminal, good file or bad."""
    paths = [
        video_files.write(tmp_path, "good.mp4", video("h264_bframes_mp4")),
        video_files.write(tmp_path, "bad.mp4", NOT_VIDEOS["page.mp4"]),
        video_files.write(tmp_path, "cut.mp4", video("h264_fragmented")[:9000]),
    ]
    code = (
        "import sys, torch\nfrom flux_hf.video_decoding import VideoDecodeError, decode_video\n"
        "for path in sys.argv[1:]:\n    try:\n        decode_video(path)\n    except VideoDecodeError:\n        pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout == "" and run.stderr == ""


# --- real clips, where they are --------------------------------------------------------------------------------------


ODD_CLIPS = DATA / "odd_clips"
UNREADABLE = {"05_corrupted.mp4", "27_toothsome-dts.mp4", "34_FlashVideo.flv", "35_mp4-with-audio.mp4"}
FRAME_COUNTS = {"10_nasa_13013.mp4": 390, "16_discard_first_keyframe.mp4": 25, "20_basketball.mp4": 214}


@pytest.mark.skipif(not ODD_CLIPS.is_dir(), reason="the real clips are not here")
@pytest.mark.parametrize("name", sorted(p.name for p in ODD_CLIPS.glob("*.*") if p.suffix != ".csv"))
def test_real_clips(name):
    path = str(ODD_CLIPS / name)
    if name in UNREADABLE:
        with pytest.raises(VideoDecodeError, match=name):
            decode_video(path)
        return
    frames, metadata = decode_video(path, lambda metadata: [0, metadata.total_num_frames // 2])
    assert metadata.total_num_frames == FRAME_COUNTS.get(name, metadata.total_num_frames)
    with av.open(path) as container:
        stored = container.decode(container.streams.best("video"))
        wanted = [f for i, f in enumerate(stored) if i in (0, metadata.frames_indices[1])]
        turn = {0: 0, 90: 1, 180: 2, -180: 2, -90: 3}[wanted[0].rotation]
        reference = [np.rot90(f.to_ndarray(format="rgb24"), turn) for f in wanted]
    assert np.array_equal(frames[0].numpy(), reference[0])
    assert np.array_equal(frames[1].numpy(), reference[-1])
