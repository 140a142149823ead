import csv
from dataclasses import replace

import av
import numpy as np
import pytest

from training.study.design import CLIPS
from training.study.motion_clips import (
    MOTIONS,
    PATTERNS,
    MotionClipConfig,
    _draw_appearance,
    _paint,
    _trajectory,
    main,
    render_motion_clip,
    write_motion_clips,
    write_video,
)


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_real_videos_balanced_labels_and_a_csv(tmp_path):
    config = MotionClipConfig(size=64, num_frames=6, motions=MOTIONS)
    rows = write_motion_clips(tmp_path, 12, seed=0, split="train", config=config)
    assert [label for _, label in rows] == list(MOTIONS) * 2
    with open(tmp_path / "train.csv", newline="") as file:
        listed = [(str(tmp_path / row["path"]), row["label"]) for row in csv.DictReader(file)]
    assert listed == rows
    with av.open(rows[0][0]) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert decode(rows[0][0]).shape == (6, 64, 64, 3)
    assert not list(tmp_path.rglob(".*"))  # nothing temporary left


def test_a_narrow_picture_is_the_same_bytes_every_time(tmp_path):
    """x264's macroblock tree reads what lies behind them in memory: of these frames it made up to 10 files in 12."""
    frames = render_motion_clip(CLIPS, CLIPS.labels[0], np.random.default_rng([0, 3632233996, 0]))
    written = set()
    for index in range(12):
        kept = np.random.default_rng(index).bytes(300_000 * (index + 1))  # memory that is not zero
        write_video(tmp_path / "clip.mp4", frames, CLIPS.frame_rate)
        written.add((tmp_path / "clip.mp4").read_bytes())
        del kept
    assert len(written) == 1


def test_a_function_of_seed_split_and_index(tmp_path):
    config = MotionClipConfig(size=64, num_frames=4)

    def clips(folder, num_clips, seed=0, split="train"):
        rows = write_motion_clips(tmp_path / folder, num_clips, seed, split, config)
        return [decode(path) for path, _ in rows]

    first, longer = clips("a", 3), clips("b", 5)
    for clip, again in zip(first, longer[:3], strict=True):
        assert np.array_equal(clip, again)
    assert not np.array_equal(first[0], clips("c", 1, seed=1)[0])
    assert not np.array_equal(first[0], clips("d", 1, split="val")[0])


@pytest.mark.parametrize("motion", MOTIONS)
def test_position_in_any_frame_is_uniform_whatever_the_motion(motion):
    config = MotionClipConfig()
    rng = np.random.default_rng(0)
    centers = np.stack([_trajectory(config, motion, rng) for _ in range(4000)])
    for frame in (0, 7, 15):
        for axis in (0, 1):
            share = np.histogram(centers[:, frame, axis], bins=8, range=(0, 1))[0] / len(centers)
            assert np.abs(share - 1 / 8).max() < 0.025  # five standard deviations


def test_motion_goes_where_its_name_says():
    config = MotionClipConfig()
    expected = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for motion in MOTIONS:
        path = _trajectory(config, motion, np.random.default_rng(3))
        steps = (np.diff(path, axis=0) + 0.5) % 1 - 0.5
        assert config.path_length[0] * 0.95 < np.hypot(*steps.T).sum() < config.path_length[1]
        if motion in expected:
            direction = steps / np.hypot(*steps.T)[:, None]
            assert np.allclose(direction, expected[motion])
        else:
            # With y down, a positive cross product of successive steps turns clockwise as seen.
            turn = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
            assert (np.sign(turn) == (1 if motion == "clockwise" else -1)).all()


def test_only_the_moving_object_and_the_noise_change():
    config = MotionClipConfig(noise=0.0)
    frames = render_motion_clip(config, "left", np.random.default_rng(0)).astype(int)
    moved = np.abs(np.diff(frames, axis=0)).max(axis=-1) > 0
    assert 0 < moved.mean() < 0.15
    noisy = render_motion_clip(MotionClipConfig(), "left", np.random.default_rng(0)).astype(int)
    assert 3 < np.std(noisy - frames) < 6


def test_patterns_are_classes_of_the_moving_object():
    config = MotionClipConfig(motions=("left", "up"), patterns=("plain", "ringed"))
    assert config.labels == ("left_plain", "left_ringed", "up_plain", "up_ringed")
    assert config.split_label("up_ringed") == ("up", "ringed") and config.split_label("down") == ("down", None)


def test_patterns_look_as_they_are_called():
    """Seen in what moves: a plain object has one level inside, the others two; rings look the same from all sides."""
    config = MotionClipConfig(patterns=PATTERNS, noise=0.0, object_radius=(0.2, 0.2), path_length=(0.5, 0.5))
    for seed in range(3):
        for pattern in PATTERNS:
            rng = np.random.default_rng(seed)
            appearance = replace(_draw_appearance(config, rng, pattern), num_sides=64)
            image = np.zeros((96, 96, 3), np.float32)
            _paint(image, appearance, np.array([0.5, 0.5]))
            inside = image[48 - 12 : 48 + 12, 48 - 12 : 48 + 12].max(axis=-1)
            darkest = inside.min() / inside.max()
            assert darkest > 0.99 if pattern == "plain" else darkest < 0.6
            turned = np.abs(inside - np.rot90(inside)).mean() / inside.max()
            assert (turned < 0.1) == (pattern != "striped"), (pattern, turned)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: MotionClipConfig(motions=("left", "sideways")), "sideways"),
        (lambda path: MotionClipConfig(motions=()), r"\[\]"),
        (lambda path: MotionClipConfig(patterns=("plain", "dotted")), "dotted"),
        (lambda path: MotionClipConfig(size=33), "33"),
        (lambda path: MotionClipConfig(num_frames=1), "1"),
        (lambda path: MotionClipConfig(num_still_objects=-1), "-1"),
        (lambda path: render_motion_clip(MotionClipConfig(), "zoom", np.random.default_rng(0)), "zoom"),
        (lambda path: write_motion_clips(path, 0, 0, "train"), "num_clips.*0"),
        (lambda path: write_motion_clips(path, 1, -1, "train"), "seed.*-1"),
        (lambda path: write_motion_clips(path, 1, 0, "../train"), "../train"),
    ],
)
def test_bad_arguments_are_named(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_command_line(tmp_path, capsys):
    main([str(tmp_path), "--train", "2", "--val", "1", "--motions", "up", "clockwise"])
    assert len(list((tmp_path / "train").glob("*.mp4"))) == 2
    assert len(list((tmp_path / "val").glob("*.mp4"))) == 1
    assert "train.csv" in capsys.readouterr().out
