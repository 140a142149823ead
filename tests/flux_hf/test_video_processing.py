# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor: which frames, which pixels, which shapes; and one clear error for each thing that cannot be."""

import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.transforms.v2.functional as tvF
import video_files
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import TensorType
from transformers.video_utils import VideoMetadata

from flux_hf.video_decoding import VideoDecodeError, decode_video, sample_frame_indices
from flux_hf.video_processing_fluxvit import DEFAULT_NUM_FRAMES, FluxViTVideoProcessor


REPOSITORY = Path(__file__).parents[2]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
AT_24 = {"total_num_frames": 4, "fps": 24}


@functools.cache
def clip(num_frames: int = 40, size: tuple[int, int] = (160, 96), container: str = "mp4") -> bytes:
    return video_files.encode("libx264", num_frames, size=size, options={"g": "12", "bf": "2"}, container=container)


def random_video(frames: int = 8, height: int = 60, width: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def values(processor: FluxViTVideoProcessor, videos, **kwargs) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **kwargs)["pixel_values_videos"]


def as_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """Undoes the normalisation: uint8 levels."""
    return ((pixel_values * STD + MEAN) * 255).round().to(torch.uint8)


@pytest.fixture
def processor():
    return FluxViTVideoProcessor()


# --- which frames ----------------------------------------------------------------------------------------------------


def test_official_indices():
    indices = sample_frame_indices(300, 8, 4)
    assert indices[0].tolist() == [7, 44, 82, 119, 157, 194, 231, 269]
    assert indices[3].tolist() == [29, 66, 104, 141, 179, 216, 253, 291]
    assert indices.dtype == np.int64 and indices.shape == (4, 8)


def test_one_clip_takes_the_middle_of_each_segment():
    """The official validation rule is the test rule for one clip: round(seg*i) + int(seg/2)."""
    for total, frames in ((300, 8), (17, 4), (5, 8), (100, 24)):
        segment = (total - 1) / frames
        expected = [min(int(np.round(segment * i)) + int(segment / 2), total - 1) for i in range(frames)]
        assert sample_frame_indices(total, frames)[0].tolist() == expected


@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 11, 12, 13, 299, 10_000])
@pytest.mark.parametrize("frames", [1, 2, 5, 8, 12, 24, 64])
@pytest.mark.parametrize("clips", [1, 2, 4])
def test_indices_are_always_as_many_as_asked_and_in_the_video(total, frames, clips):
    indices = sample_frame_indices(total, frames, clips)
    assert indices.shape == (clips, frames)
    assert indices.min() >= 0 and indices.max() < total
    assert (np.diff(indices, axis=1) >= 0).all()


@pytest.mark.parametrize("arguments", [(0, 8), (10, 0), (10, 8, 0), (10, -1), (10, 2.5), (10, True)])
def test_bad_counts_are_named(arguments):
    with pytest.raises(ValueError, match="at least 1, got"):
        sample_frame_indices(*arguments)


def test_sample_frames(processor):
    about = VideoMetadata(total_num_frames=100, fps=25.0)
    assert processor.sample_frames(about, num_frames=8).tolist() == sample_frame_indices(100, 8)[0].tolist()
    assert len(processor.sample_frames(about, fps=2)) == 8
    assert len(processor.sample_frames(about, fps=0.01)) == 1
    assert len(processor.sample_frames(about)) == DEFAULT_NUM_FRAMES
    assert processor.sample_frames(about, num_frames=4, num_clips=3).shape == (12,)
    saved = FluxViTVideoProcessor(num_frames=6)
    assert len(saved.sample_frames(about)) == 6
    assert len(saved.sample_frames(about, fps=2)) == 8
    for bad in ({"fps": 2, "num_frames": 4}, {"fps": 0}, {"num_frames": 0}):
        with pytest.raises(ValueError):
            processor.sample_frames(about, **bad)
    with pytest.raises(ValueError, match="rate"):
        processor.sample_frames(VideoMetadata(total_num_frames=100), fps=2)


def test_files_are_sampled_by_default(processor, tmp_path):
    path = video_files.write(tmp_path, "clip.mp4", clip())
    assert values(processor, path).shape == (1, DEFAULT_NUM_FRAMES, 3, 224, 224)
    assert values(FluxViTVideoProcessor(num_frames=5), path).shape[1] == 5
    assert values(FluxViTVideoProcessor(num_frames=5), path, fps=5).shape[1] == 8
    assert values(FluxViTVideoProcessor(fps=5), path).shape[1] == 8
    assert values(FluxViTVideoProcessor(fps=5), path, num_frames=3).shape[1] == 3
    assert values(processor, path, do_sample_frames=False).shape[1] == 40
    as_the_pipeline_calls = processor(path, num_frames=7, do_sample_frames=True, return_tensors="pt")
    assert as_the_pipeline_calls.to(torch.float16)["pixel_values_videos"].shape == (1, 7, 3, 224, 224)


def test_frames_in_memory_are_sampled_when_the_call_says_so(processor):
    video = random_video(8)
    assert values(processor, video).shape[1] == 8
    assert values(FluxViTVideoProcessor(num_frames=4), video).shape[1] == 8
    assert values(FluxViTVideoProcessor(num_frames=4), video, do_sample_frames=True).shape[1] == 4
    assert values(processor, video, num_frames=3).shape[1] == 3
    assert values(processor, video, num_frames=3, do_sample_frames=False).shape[1] == 8
    about = {"total_num_frames": 8, "fps": 4}
    assert values(processor, video, fps=2, video_metadata=about).shape[1] == 4
    chosen = sample_frame_indices(8, 3)[0]
    assert torch.equal(values(processor, video, num_frames=3)[0], values(processor, video)[0][chosen])


def test_the_frames_of_a_file_are_the_sampled_ones(processor):
    raw = as_pixels(values(processor, clip(), num_frames=5, num_clips=2, do_resize=False, do_center_crop=False))
    shown = [video_files.read_barcode(frame.permute(1, 2, 0).numpy()) for view in raw for frame in view]
    assert shown == sample_frame_indices(40, 5, 2).reshape(-1).tolist()


@pytest.mark.parametrize("frames", [1, 3, 11])
def test_short_files_repeat_frames(processor, frames):
    data = clip(frames)
    out = processor(data, num_frames=12, return_tensors="pt", return_metadata=True)
    assert out["pixel_values_videos"].shape[1] == 12
    assert out["video_metadata"][0].frames_indices == sample_frame_indices(frames, 12)[0].tolist()


@pytest.mark.parametrize("frames", [1, 3, 11])
def test_short_videos_in_memory_repeat_frames(processor, frames):
    video = random_video(frames)
    expected = values(processor, video)[0][sample_frame_indices(frames, 12)[0]]
    assert torch.equal(values(processor, video, num_frames=12)[0], expected)
    assert torch.equal(values(processor, video, num_frames=12, do_sample_frames=True)[0], expected)


def test_a_processor_set_to_sample_wants_enough_frames(processor):
    video, always = random_video(8), FluxViTVideoProcessor(do_sample_frames=True)
    with pytest.raises(ValueError, match="10 frames asked for, but the video has 8"):
        values(always, video, num_frames=10)
    assert values(always, video, num_frames=10, do_sample_frames=True).shape[1] == 10


# --- which pixels ----------------------------------------------------------------------------------------------------


def reference_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's INTER_LINEAR for uint8, pixel by pixel in plain Python integers: (h, w, C) to (height, width, C)."""

    def taps(length, new_length, zero_outside):
        for i in range(new_length):
            position = np.float32((i + 0.5) * (1.0 / (new_length / length)) - 0.5)
            first = int(np.floor(position))
            fraction = np.float32(position - np.float32(first))
            if zero_outside and (first < 0 or first >= length - 1):
                fraction = np.float32(0)
            ends = min(max(first, 0), length - 1), min(max(first + 1, 0), length - 1)
            yield (*ends, int(np.rint((np.float32(1) - fraction) * 2048)), int(np.rint(fraction * 2048)))

    image = image.astype(np.int64)
    columns = [image[:, a] * wa + image[:, b] * wb for a, b, wa, wb in taps(image.shape[1], width, True)]
    middle = np.stack(columns, axis=1) >> 4
    rows = [
        (((middle[a] * wa) >> 16) + ((middle[b] * wb) >> 16) + 2) >> 2
        for a, b, wa, wb in taps(image.shape[0], height, False)
    ]
    return np.stack(rows).astype(np.uint8)


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (33, 47), (10, 300), (224, 300), (224, 224)])
def test_the_default_resize_is_opencv_bit_for_bit(processor, size):
    video = random_video(2, *size)
    short, long = min(size), max(size)
    new_long = int(long * 224 / short)
    target = (224, new_long) if size[0] <= size[1] else (new_long, 224)
    pixels = as_pixels(values(processor, video, do_center_crop=False)[0])
    assert tuple(pixels.shape) == (2, 3, *target)
    for frame, source in zip(pixels, video, strict=True):
        expected = source if target == size else reference_resize(source, *target)
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), expected)


def test_the_reference_of_the_resize_is_opencv():
    cv2 = pytest.importorskip("cv2")
    image = random_video(1, 61, 97)[0]
    for height, width in ((30, 47), (224, 356), (61, 40)):
        assert np.array_equal(reference_resize(image, height, width), cv2.resize(image, (width, height)))


def test_other_resizes_are_torchvisions(processor):
    video = torch.from_numpy(random_video(2)).permute(0, 3, 1, 2)
    smooth = values(processor, video, antialias=True, do_center_crop=False)[0]
    mode = tvF.InterpolationMode
    assert torch.equal(as_pixels(smooth), tvF.resize(video, [224, 373], mode.BILINEAR, antialias=True))
    cubic = values(processor, video, resample=3, do_center_crop=False)[0]
    assert torch.equal(as_pixels(cubic), tvF.resize(video, [224, 373], mode.BICUBIC, antialias=False))


def test_values_are_rescaled_and_normalised(processor):
    video = random_video(2, 224, 224)
    expected = (torch.from_numpy(video).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    out = values(processor, video)
    assert out.dtype == torch.float32 and out.is_contiguous()
    torch.testing.assert_close(out[0], expected)
    plain = values(processor, video, do_rescale=False, do_normalize=False)
    assert torch.equal(plain[0], torch.from_numpy(video).permute(0, 3, 1, 2).float())


def test_the_input_is_not_changed(processor):
    video = random_video(4, 224, 224)
    copy = video.copy()
    values(processor, video)
    assert np.array_equal(video, copy)
    floats = torch.rand(4, 3, 224, 224)
    kept = floats.clone()
    values(processor, floats)
    assert torch.equal(floats, kept)


def test_float_frames(processor):
    video = random_video(2, 224, 224)
    expected = values(processor, video)
    torch.testing.assert_close(values(processor, video.astype(np.float32)), expected)
    torch.testing.assert_close(values(processor, video.astype(np.float32) / 255), expected)
    torch.testing.assert_close(values(processor, torch.from_numpy(video).double() / 255), expected)


def test_integer_frames(processor):
    video = random_video(2, 224, 224)
    assert torch.equal(values(processor, video.astype(np.int64)), values(processor, video))
    for bad in (video.astype(np.int32) + 1, video.astype(np.int32) - 1, video > 3):
        with pytest.raises(ValueError, match="0 to 255"):
            values(processor, bad)


def test_grey_and_transparent_frames(processor):
    grey = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 1), dtype=np.uint8)
    assert torch.equal(values(processor, grey), values(processor, grey.repeat(3, axis=-1)))
    images = [PIL.Image.fromarray(frame[..., 0]) for frame in grey]
    assert torch.equal(values(processor, images), values(processor, grey))
    clear = np.concatenate([random_video(2, 224, 224), np.zeros((2, 224, 224, 1), np.uint8)], axis=-1)
    assert torch.equal(values(processor, clear), values(processor, np.full((2, 224, 224, 3), 255, np.uint8)))


# --- what a video is -------------------------------------------------------------------------------------------------


def test_every_form_of_frames_gives_the_same(processor):
    video = random_video()
    expected = values(processor, video)
    tensor = torch.from_numpy(video)
    forms = [
        video.transpose(0, 3, 1, 2),
        tensor,
        tensor.permute(0, 3, 1, 2),
        list(video),
        tuple(tensor),
        [PIL.Image.fromarray(frame) for frame in video],
        [video],
        [[video]],
        video[None],
        np.asfortranarray(video),
        video[:, ::-1][:, ::-1],
    ]
    for form in forms:
        assert torch.equal(values(processor, form), expected)
    assert torch.equal(values(processor, video[0])[0], expected[0][:1])
    assert torch.equal(values(processor, PIL.Image.fromarray(video[0]))[0], expected[0][:1])


def test_every_form_of_file_gives_the_same(processor, tmp_path):
    path = video_files.write(tmp_path, "clip.mp4", clip())
    expected = values(processor, path)
    with open(path, "rb") as file:
        for form in (Path(path), clip(), io.BytesIO(clip()), file, [path], [[Path(path)]]):
            assert torch.equal(values(processor, form), expected)


def test_mixed_batches(processor, tmp_path):
    path = video_files.write(tmp_path, "clip.mp4", clip())
    small, tall = random_video(4, 40, 50), random_video(9, 300, 200, seed=1)
    images = [PIL.Image.fromarray(frame) for frame in random_video(6, 30, 90, seed=2)]
    batch = [path, small, clip(20, (96, 160)), tall, images]
    together = values(processor, batch, num_frames=4)
    assert together.shape == (5, 4, 3, 224, 224)
    for row, video in zip(together, batch, strict=True):
        assert torch.equal(row, values(processor, video, num_frames=4)[0])


def test_batches_of_different_lengths(processor):
    batch = [random_video(4), random_video(6)]
    rows = processor(batch)["pixel_values_videos"]
    assert [tuple(row.shape) for row in rows] == [(4, 3, 224, 224), (6, 3, 224, 224)]
    with pytest.raises(ValueError, match="different shapes"):
        processor(batch, return_tensors="np")


def test_a_batch_of_different_shapes_is_a_list_that_moves(processor):
    batch = [random_video(4), clip(20), random_video(6, seed=1), random_video(4, 100, 60)]
    for return_tensors in ("pt", TensorType.PYTORCH):
        features = processor(batch, keep_aspect_ratio=True, size=56, return_tensors=return_tensors)
        rows = features["pixel_values_videos"]
        shapes = [(4, 3, 56, 98), (12, 3, 56, 98), (6, 3, 56, 98), (4, 3, 98, 56)]
        assert type(rows) is list and [tuple(row.shape) for row in rows] == shapes
    for row, video in zip(rows, batch, strict=True):
        assert torch.equal(row, values(processor, video, keep_aspect_ratio=True, size=56)[0])
    assert [row.dtype for row in features.to(torch.bfloat16)["pixel_values_videos"]] == [torch.bfloat16] * 4
    assert [row.device.type for row in features.to("meta")["pixel_values_videos"]] == ["meta"] * 4
    views = values(processor, batch[:3:2], num_clips=2, fps=12, do_sample_frames=True, video_metadata=[AT_24, AT_24])
    assert [tuple(view.shape) for view in views] == [(2, 3, 224, 224)] * 2 + [(3, 3, 224, 224)] * 2


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [[]],
        3,
        None,
        {"a": 1},
        np.zeros((2, 2)),
        np.zeros((0, 20, 20, 3), np.uint8),
        np.zeros((2, 20, 20, 7), np.uint8),
        [np.zeros((20, 20, 3), np.uint8), np.zeros((20, 21, 3), np.uint8)],
    ],
    ids=repr,
)
def test_what_is_no_video(processor, bad):
    with pytest.raises(ValueError):
        processor(bad)


def test_only_arguments_of_the_model_come_out(processor):
    assert list(processor(random_video())) == ["pixel_values_videos"]
    assert isinstance(processor(random_video(), return_tensors="np")["pixel_values_videos"], np.ndarray)
    both = processor([random_video(), clip()], return_metadata=True)
    assert list(both) == ["pixel_values_videos", "video_metadata"]
    arrays, file = both["video_metadata"]
    assert arrays.frames_indices == list(range(8)) and (arrays.height, arrays.width) == (60, 100)
    assert file.frames_indices == sample_frame_indices(40, 12)[0].tolist() and file.fps == 25


def test_metadata_must_match_the_videos(processor):
    with pytest.raises(ValueError, match="got 1 for 2 videos"):
        processor([random_video(), random_video()], video_metadata=[{"total_num_frames": 8}])
    about = VideoMetadata(total_num_frames=8, fps=4)
    processor(random_video(), fps=1, video_metadata=about)
    assert about.frames_indices is None  # the caller's object is not written to


def test_files_that_cannot_be_decoded(processor, tmp_path):
    path = video_files.write(tmp_path, "bad.mp4", b"not a video")
    with pytest.raises(VideoDecodeError, match="bad.mp4"):
        processor([clip(), path], return_tensors="pt")
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        processor(str(tmp_path / "gone.mp4"))


# --- sizes and views -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "call", "expected"),
    [
        ({}, {}, (224, 224)),
        ({}, {"size": 112}, (112, 112)),
        ({}, {"size": {"shortest_edge": 280}}, (280, 280)),
        ({}, {"size": {"height": 112, "width": 140}}, (112, 140)),
        ({}, {"size": (112, 140)}, (112, 140)),
        ({}, {"size": 256, "crop_size": 224}, (224, 224)),
        ({}, {"size": 256, "crop_size": {"height": 196, "width": 224}}, (196, 224)),
        ({}, {"crop_size": 196}, (196, 196)),
        ({}, {"do_center_crop": False, "size": 112}, (112, 186)),
        ({"size": 168}, {}, (168, 168)),
        ({"size": 168}, {"size": 112}, (112, 112)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, {}, (224, 224)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, {"size": 112}, (112, 112)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, {"crop_size": 112}, (112, 112)),
        ({}, {"size": None, "crop_size": None}, (224, 224)),
    ],
)
def test_sizes(settings, call, expected):
    processor = FluxViTVideoProcessor(**settings)
    assert values(processor, random_video(2), **call).shape[-2:] == expected
    assert values(processor, random_video(2), **call).shape[-2:] == expected  # a call leaves nothing behind


def test_a_size_at_load_does_not_meet_the_saved_crop(tmp_path):
    FluxViTVideoProcessor(size=224, num_frames=6).save_pretrained(tmp_path)
    processor = FluxViTVideoProcessor.from_pretrained(tmp_path, size=112)
    assert values(processor, random_video(2)).shape[-2:] == (112, 112)
    processor = FluxViTVideoProcessor.from_pretrained(tmp_path, size=256, crop_size=224)
    assert values(processor, random_video(2)).shape[-2:] == (224, 224)


@pytest.mark.parametrize("bad", [{"size": {"longest_edge": 3}}, {"size": 0}, {"size": (1, 2, 3)}, {"crop_size": -1}])
def test_bad_sizes(processor, bad):
    with pytest.raises((ValueError, TypeError), match="size"):
        processor(random_video(), **bad)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (64, 64), (61, 97)])
@pytest.mark.parametrize("crops", [1, 2, 3, 5])
def test_crops_lie_along_the_long_side(processor, height, width, crops):
    video = random_video(2, height, width)
    whole = values(processor, video, size=32, do_center_crop=False)[0]
    views = values(processor, video, size=32, num_crops=crops)
    assert views.shape == (crops, 2, 3, 32, 32)
    spare = max(whole.shape[-2:]) - 32
    for j, view in enumerate(views):
        start = int(spare / 2) if crops == 1 else int(j * spare / (crops - 1))
        expected = whole[..., start : start + 32] if width >= height else whole[..., start : start + 32, :]
        assert torch.equal(view, expected)


def test_views_are_clips_outside_and_crops_inside(processor):
    views = values(processor, [clip(), clip(20)], num_frames=4, num_clips=2, num_crops=3)
    assert views.shape == (12, 4, 3, 224, 224)
    for v, data in enumerate((clip(), clip(20))):
        count = 40 if v == 0 else 20
        for c, indices in enumerate(sample_frame_indices(count, 4, 2)):
            frames, _ = decode_video(data, indices)
            crops = values(processor, frames, num_crops=3)
            assert torch.equal(views[v * 6 + c * 3 : v * 6 + c * 3 + 3], crops)


def test_many_views_of_frames_in_memory(processor):
    video = random_video(40)
    views = values(processor, video, num_frames=4, num_clips=2)
    for view, indices in zip(views, sample_frame_indices(40, 4, 2), strict=True):
        assert torch.equal(view, values(processor, video[indices])[0])
    with pytest.raises(ValueError, match="`num_clips`=2 needs"):
        values(processor, video, num_clips=2)


@pytest.mark.parametrize(
    ("frame", "size", "expected"),
    [
        ((60, 100), 224, (224, 378)),
        ((100, 60), 224, (378, 224)),
        ((720, 1280), 112, (112, 196)),
        ((8, 300), 28, (28, 1050)),
    ],
)
def test_whole_pictures_in_whole_patches(processor, frame, size, expected):
    out = values(processor, random_video(1, *frame), size=size, keep_aspect_ratio=True)
    assert tuple(out.shape[-2:]) == expected
    assert all(side % 14 == 0 for side in out.shape[-2:])
    other = values(processor, random_video(1, *frame), size=size, keep_aspect_ratio=True, patch_size=16)
    assert all(side % 16 == 0 for side in other.shape[-2:])


def test_whole_pictures_have_one_view(processor):
    with pytest.raises(ValueError, match="`num_crops`=3"):
        processor(random_video(), keep_aspect_ratio=True, num_crops=3)
    assert values(processor, [random_video(2, 60, 100)] * 2, keep_aspect_ratio=True).shape == (2, 2, 3, 224, 378)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_clips": 0}, "num_clips"),
        ({"num_crops": 0}, "num_crops"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": -3}, "-3"),
        ({"token_budget": 0}, "token_budget"),
        ({"num_frames": 4, "fps": 2}, "exclude"),
        ({"num_crops": 3, "do_center_crop": False}, "num_crops"),
        ({"do_resize": False}, "smaller than the crop"),
        ({"fps": 2}, "rate"),
    ],
)
def test_values_out_of_range_are_named(processor, call, message):
    with pytest.raises(ValueError, match=message):
        processor(random_video(), **call)


def test_unknown_and_mistyped_options(processor):
    for bad in ({"num_crop": 3}, {"antialias": "yes"}, {"num_frames": "8"}):
        with pytest.raises((TypeError, ValueError, StrictDataclassError), match=next(iter(bad))):
            processor(random_video(), **bad)


# --- a clip for a budget ---------------------------------------------------------------------------------------------


@pytest.fixture
def planned():
    return FluxViTVideoProcessor(num_frames=6, size=56, token_plan={64: [4, 84], 32: [8, 42]})


def test_a_budget_of_the_plan_sets_frames_size_and_crop(planned):
    assert values(planned, clip()).shape == (1, 6, 3, 56, 56)
    plain = FluxViTVideoProcessor()
    for budget, (frames, size) in planned.token_plan.items():
        expected = values(plain, clip(), num_frames=frames, size=size, num_clips=2)
        assert torch.equal(values(planned, clip(), token_budget=np.int64(budget), num_clips=2), expected)
    assert values(planned, random_video(20), token_budget=32).shape == (1, 8, 3, 42, 42)  # frames in memory too
    assert list(planned(clip(), token_budget=32)) == ["pixel_values_videos"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"token_budget": 48}, (6, 56)),
        ({"token_budget": 64, "num_frames": 3}, (3, 56)),
        ({"token_budget": 64, "fps": 5}, (8, 56)),
        ({"token_budget": 64, "size": 28}, (6, 28)),
        ({"token_budget": 64, "crop_size": 28}, (6, 28)),
        ({"token_budget": 64, "do_sample_frames": False}, (40, 56)),
        ({"token_budget": 64, "token_plan": {64: [2, 70]}}, (2, 70)),
    ],
)
def test_what_a_call_says_of_the_clip_beats_the_plan(planned, call, expected):
    frames, size = expected
    assert values(planned, clip(), **call).shape == (1, frames, 3, size, size)


def test_a_budget_without_a_plan_changes_nothing(processor):
    assert torch.equal(values(processor, clip(), token_budget=64), values(processor, clip()))


def test_a_plan_survives_saving(planned, tmp_path):
    saved = json.loads(Path(planned.save_pretrained(tmp_path)[0]).read_text())
    assert saved["token_plan"] == {"32": [8, 42], "64": [4, 84]}
    again = FluxViTVideoProcessor.from_pretrained(tmp_path)
    assert again.token_plan == {64: [4, 84], 32: [8, 42]}
    assert torch.equal(values(again, clip(), token_budget=64), values(planned, clip(), token_budget=64))


@pytest.mark.parametrize(
    "plan",
    [[64, 4, 84], {64: 4}, {64: [4]}, {64: [0, 84]}, {64: [4, 84.5]}, {0: [4, 84]}, {"many": [4, 84]}, {6.5: [4, 84]}],
)
def test_a_plan_that_cannot_work_is_refused(processor, plan):
    with pytest.raises(ValueError, match="token_plan"):
        FluxViTVideoProcessor(token_plan=plan)
    with pytest.raises(ValueError, match="token_plan"):
        processor(random_video(), token_plan=plan)


# --- saved, loaded, copied -------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    first = FluxViTVideoProcessor(num_frames=6, num_clips=4, num_crops=3, size=196, antialias=True)
    files = first.save_pretrained(tmp_path / "new" / "folder")
    saved = json.loads(Path(files[0]).read_text())
    assert saved["auto_map"]["AutoVideoProcessor"] == "video_processing_fluxvit.FluxViTVideoProcessor"
    assert (saved["num_frames"], saved["num_crops"], saved["crop_size"]) == (6, 3, {"height": 196, "width": 196})
    assert (tmp_path / "new" / "folder" / "video_processing_fluxvit.py").is_file()
    second = FluxViTVideoProcessor.from_pretrained(tmp_path / "new" / "folder")
    assert second.to_dict() == first.to_dict()
    assert torch.equal(values(second, clip()), values(first, clip()))
    (tmp_path / "file").write_text("")
    with pytest.raises(AssertionError, match="directory, not a file"):
        first.save_pretrained(tmp_path / "file")


def test_the_saved_folder_loads_without_the_package(tmp_path):
    FluxViTVideoProcessor(num_frames=5).save_pretrained(tmp_path / "checkpoint")
    path = video_files.write(tmp_path, "clip.mp4", clip())
    code = (
        "import sys\nfrom transformers import AutoVideoProcessor\n"
        "processor = AutoVideoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'flux_hf' not in sys.modules\n"
        "print(tuple(processor(sys.argv[2], return_tensors='pt')['pixel_values_videos'].shape))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoint"), path]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "(1, 5, 3, 224, 224)"


def test_importing_loads_no_decoder():
    code = (
        "import sys, flux_hf.video_processing_fluxvit\n"
        "assert 'decord' not in sys.modules, 'decord must come after torch, when a file is read'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


class Clips(torch.utils.data.Dataset):
    def __init__(self, processor, paths):
        self.processor, self.paths = processor, paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return values(self.processor, self.paths[i], num_frames=4)[0]


def test_the_processor_works_in_workers(processor, tmp_path):
    paths = [video_files.write(tmp_path, f"{i}.mp4", clip(20 + i)) for i in range(4)]
    expected = torch.stack([values(processor, path, num_frames=4)[0] for path in paths])
    loader = torch.utils.data.DataLoader(Clips(processor, paths), batch_size=4, num_workers=2, timeout=60)
    assert torch.equal(next(iter(loader)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pixels_are_the_same_on_a_gpu(processor):
    video = random_video(4)
    there = values(processor, video, device="cuda", num_crops=3)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), values(processor, video, num_crops=3))


@pytest.mark.parametrize("setting", [{"num_frames": 0}, {"num_clips": -1}, {"num_crops": 2.5}, {"patch_size": 0}])
def test_a_processor_is_not_made_with_counts_that_cannot_work(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        FluxViTVideoProcessor(**setting)
