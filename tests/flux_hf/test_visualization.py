import numpy as np
import pytest
import torch

from flux_hf.visualization import GAP, visualize_kept_tokens


PATCH = 4


def make_frames(num_frames=4, height=8, width=12):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def frame_of(picture, index, columns, height=8, width=12):
    row, column = divmod(index, columns)
    top, left = row * (height + GAP), column * (width + GAP)
    return np.asarray(picture)[top : top + height, left : left + width]


def test_kept_patches_are_untouched_and_the_others_grey_and_lighter():
    frames = make_frames()
    index = 1 * 6 + 1 * 3 + 2  # frame 1, second row, third column of the 2x3 patches
    picture = visualize_kept_tokens(frames, [index], PATCH, columns=2)
    assert picture.mode == "RGB"
    assert picture.size == (2 * 12 + GAP, 2 * 8 + GAP)
    drawn = frame_of(picture, 1, columns=2)
    assert np.array_equal(drawn[4:, 8:], frames[1, 4:, 8:])
    for frame in range(4):
        drawn = frame_of(picture, frame, columns=2).copy()
        if frame == 1:
            drawn[4:, 8:] = 255
        assert (drawn == drawn[..., :1]).all()
        assert drawn.min() >= round(0.75 * 255)


def test_keeping_everything_shows_the_frames():
    frames = make_frames()
    picture = visualize_kept_tokens(frames, range(24), PATCH)
    for frame in range(4):
        assert np.array_equal(frame_of(picture, frame, columns=4), frames[frame])


def test_a_tubelet_covers_its_frames():
    frames = make_frames()
    picture = visualize_kept_tokens(frames, [6], PATCH, tubelet_size=2, dropped_opacity=0.0)
    for frame in (0, 1):
        assert (frame_of(picture, frame, columns=4) == 255).all()
    for frame in (2, 3):
        assert np.array_equal(frame_of(picture, frame, columns=4)[:4, :4], frames[frame, :4, :4])


def test_layouts_and_containers_agree():
    frames = make_frames()
    expected = visualize_kept_tokens(frames, [0, 7], PATCH)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert visualize_kept_tokens(tensor, torch.tensor([0, 7]), PATCH) == expected
    assert visualize_kept_tokens(tensor, torch.tensor([[0, 7]]), PATCH) == expected
    assert visualize_kept_tokens(frames.transpose(0, 3, 1, 2), np.array([0, 7]), PATCH) == expected


def test_more_than_eight_frames_wrap():
    assert visualize_kept_tokens(make_frames(10), [0], PATCH).size == (8 * 12 + 7 * GAP, 2 * 8 + GAP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": make_frames().astype(np.float32)}, "uint8.*float32"),
        ({"frames": make_frames()[0]}, r"\(8, 12, 3\)"),
        ({"frames": make_frames()[..., :2]}, r"\(4, 8, 12, 2\)"),
        ({"frames": make_frames()[:0]}, r"\(0, 8, 12, 3\)"),
        ({"frames": make_frames(width=13)}, "8x13"),
        ({"tubelet_size": 3}, "tubelet_size=3, got 4"),
        ({"keep_indices": [24]}, r"\[0, 24\).*4x2x3.*24 to 24"),
        ({"keep_indices": [-1, 3]}, "-1 to 3"),
        ({"keep_indices": []}, r"\(0,\)"),
        ({"keep_indices": torch.zeros(2, 3, dtype=torch.long)}, r"\(2, 3\)"),
        ({"keep_indices": [0.5]}, "float64"),
        ({"patch_size": 0}, "patch_size.*0"),
        ({"columns": 0}, "columns.*0"),
        ({"dropped_opacity": 1.5}, "1.5"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {"frames": make_frames(), "keep_indices": [0], "patch_size": PATCH, **changes}
    with pytest.raises(ValueError, match=message):
        visualize_kept_tokens(**arguments)
