"""Windows of videos: which frames they show, by a plain reckoning from every frame's time, and what they cost."""

import io
import tracemalloc

import av
import numpy as np
import pytest
from video_files import cut_by_edit_list, encode, packed_bframes_avi, read_barcode, remux

from flux_hf import VideoDecodeError, decode_video, iter_windows


def times_of(data: bytes) -> list[float]:
    """When each frame is shown, in seconds from the first, and when the last one ends."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(frame.time, float(frame.duration * frame.time_base)) for frame in container.decode(video=0)]
    starts = [time - frames[0][0] for time, _ in frames]
    return [*starts, starts[-1] + frames[-1][1]]


def expected(times: list[float], seconds: float, stride: float, num_frames: int) -> list[tuple]:
    """(start, end, indices) of each window, one after the other."""
    windows, total = [], times[-1]
    for number in range(10_000):
        start = number * stride
        if start >= total - 1e-6 or (windows and windows[-1][1] >= total - 1e-6):
            return windows
        end = min(start + seconds, total)
        instants = start + (np.arange(num_frames) + 0.5) * (end - start) / num_frames
        shown = np.searchsorted(np.array(times[:-1]) - 1e-9, instants, side="right") - 1
        windows.append((start, end, shown.tolist()))
    raise AssertionError


def found(video, **options) -> list[tuple]:
    return [(w.start, w.end, w.indices.tolist()) for w in iter_windows(video, **options)]


def check(data: bytes, seconds: float, stride: float, num_frames: int) -> list:
    """All windows are those reckoned, and each shows what `decode_video` reads alone."""
    windows = list(iter_windows(data, seconds, stride, num_frames))
    wanted = expected(times_of(data), seconds, stride, num_frames)
    assert [window.indices.tolist() for window in windows] == [indices for *_, indices in wanted]
    for window, (start, end, indices) in zip(windows, wanted, strict=True):
        assert (window.start, window.end) == pytest.approx((start, end), abs=1e-5)
        frames, _ = decode_video(data, indices)
        assert (window.frames == frames).all() and window.frames.shape == frames.shape
    return windows


FILES = {
    "constant": lambda: encode("libx264", 60, options={"g": "12", "bf": "2"}),
    "odd_rate": lambda: encode("libx264", 41, rate=24, options={"g": "7"}),
    "variable": lambda: encode("libx264", 20, times=[*range(5), *range(20, 25), 40, 41, 60, *range(100, 107)]),
    "late": lambda: encode("libx264", 30, times=list(range(50, 80))),
    "edited": lambda: cut_by_edit_list(encode("libx264", 50, options={"g": "10"}), 15),
    "packed": lambda: packed_bframes_avi(40),
    "matroska": lambda: encode("libx264", 33, container="matroska"),
    "transport": lambda: encode("libx264", 33, container="mpegts"),
    "one": lambda: encode("libx264", 1),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("seconds", "stride", "num_frames"), [(1.0, 0.5, 4), (0.5, 0.7, 3), (0.3, 0.1, 5), (9, 9, 8)])
def test_windows_show_what_is_on_the_screen(name, seconds, stride, num_frames):
    if name == "packed":  # AVI tells no times: its frame rate does
        data = FILES[name]()
        times = [index / 25 for index in range(len(decode_video(data)[0]) + 1)]
        wanted = expected(times, seconds, stride, num_frames)
        assert [indices for *_, indices in found(data, seconds=seconds, stride=stride, num_frames=num_frames)] == [
            indices for *_, indices in wanted
        ]
    else:
        check(FILES[name](), seconds, stride, num_frames)


def test_windows_by_frames(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode("libx264", 27, times=[*range(20), *range(30, 37)]))
    windows = found(path, frames=8, frame_stride=4, num_frames=4)
    assert [indices for *_, indices in windows] == [
        [start + place for place in (1, 3, 5, 7)] for start in range(0, 20, 4)
    ] + [[20, 22, 24, 26]]
    assert [window[:2] for window in windows[:2]] == [pytest.approx((0, 0.32)), pytest.approx((0.16, 0.48))]
    assert windows[-1][:2] == pytest.approx((1.2, 1.48))  # 7 frames, from the gap's other side on
    assert [read_barcode(frame.numpy()) for frame in next(iter_windows(path, frames=3, num_frames=3)).frames] == [
        0,
        1,
        2,
    ]
    assert [w[2] for w in found(path, frames=9, num_frames=1)] == [[4], [13], [22]]  # one behind the other


def test_what_does_not_fill_a_window():
    data = encode("libx264", 30)  # 1.2 s
    assert [window[:2] for window in found(data, seconds=0.5, stride=0.5)][-1] == pytest.approx((1.0, 1.2))
    assert len(found(data, seconds=0.5, stride=0.5, drop_partial=True)) == 2
    assert len(found(data, seconds=0.6, stride=0.6, drop_partial=True)) == 2  # nothing is left over
    assert found(data, seconds=5.0, drop_partial=True) == []
    assert len(found(data, seconds=5.0)) == 1
    assert len(found(data, frames=16, drop_partial=True)) == 1


def test_sources_and_threads(tmp_path):
    data = encode("libx264", 40, options={"g": "8"})
    (tmp_path / "clip.mp4").write_bytes(data)
    wanted = found(data)
    assert len(wanted) == 1
    for source in (tmp_path / "clip.mp4", str(tmp_path / "clip.mp4"), io.BytesIO(data)):
        assert found(source, num_threads=2) == wanted


def test_damage_is_met_where_it_is():
    """What comes before is given, whole and sound; then the error of `decode_video`."""
    data = encode("libx264", 100, options={"g": "10"})

    def break_one(packets):
        content = bytearray(bytes(packets[60]))
        content[20:60] = bytes(40)
        broken = av.Packet(bytes(content))
        for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
            setattr(broken, name, getattr(packets[60], name))
        return [*packets[:60], broken, *packets[61:]]

    windows, error = [], None
    try:
        for window in iter_windows(remux(data, break_one), 0.8, 0.8, 4):
            windows.append(window)
    except VideoDecodeError as raised:
        error = raised
    assert error is not None and 1 <= len(windows) <= 3
    for one, other in zip(windows, iter_windows(data, 0.8, 0.8, 4), strict=False):
        assert (one.frames == other.frames).all()


def test_a_file_that_ends_early_says_so_at_its_end():
    data = encode("libx264", 75, container="matroska", options={"g": "5"})
    windows = iter_windows(data[: len(data) // 2], 0.4, 0.4, 2)
    assert next(windows).start == 0
    with pytest.raises(VideoDecodeError):
        list(windows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds and stride must be finite and above 0, got 0 and 1.0"),
        ({"stride": float("nan")}, "got 2.0 and nan"),
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"frames": 4, "frame_stride": 0}, "frame_stride must be a whole number of at least 1, got 0"),
        ({"frame_stride": 4}, "frame_stride=4 is for windows by frames"),
    ],
)
def test_what_cannot_be_a_window_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        iter_windows(b"", **options)


def test_memory_is_that_of_open_windows():
    """Of a video four times as long no more is held."""
    peaks = []
    for num_frames in (100, 400):
        data = encode("libx264", num_frames, size=(320, 240))
        tracemalloc.start()
        count = sum(1 for _ in iter_windows(data, 1.0, 0.5, 8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == num_frames / 12.5 - 1
    assert peaks[1] < 1.2 * peaks[0]


def test_a_frame_that_several_windows_show_is_converted_once(monkeypatch):
    from flux_hf import video_windows

    calls = []

    class Counting(video_windows.Converter):
        def __call__(self, frame):
            calls.append(frame.pts)
            return super().__call__(frame)

    monkeypatch.setattr(video_windows, "Converter", Counting)
    windows = found(encode("libx264", 100), seconds=2.0, stride=0.08, num_frames=25)
    shown = {index for *_, indices in windows for index in indices}
    assert len(calls) == len(set(calls)) and len(shown) <= len(calls) < 100
    assert sum(len(indices) for *_, indices in windows) > 5 * len(calls)


def test_a_whole_windows_end_is_its_start_and_length():
    """Not what the sum of thirty thirtieths is rounded to, where frames have no times of their own."""
    windows = list(iter_windows(encode("mpeg4", 121, rate=30, container="avi"), 1.0, 0.5, 4))
    assert [(window.start, window.end) for window in windows[:-1]] == [(k / 2, k / 2 + 1) for k in range(7)]
