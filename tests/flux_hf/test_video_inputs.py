"""What else than files and arrays is given: values of `datasets` sets, open decoders, pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

from flux_hf import (
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
    decode_video,
)
from training.data.reader import FrameFolder


@pytest.fixture(scope="module")
def processor():
    return FluxViTVideoProcessor(num_frames=4, size=28)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from training.study.motion_clips import MotionClipConfig, render_motion_clip, write_video

    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    config = MotionClipConfig(size=48, num_frames=9)
    write_video(path, render_motion_clip(config, "left", np.random.default_rng(0)), 8)
    return path


class Decoder:
    """What torchcodec's `VideoDecoder` offers."""

    def __init__(self, path):
        self.frames = decode_video(path)[0].permute(0, 3, 1, 2)
        self.metadata, self.asked = SimpleNamespace(average_fps=8.0), []

    def __len__(self):
        return len(self.frames)

    def get_frames_at(self, indices):
        self.asked.append(indices)
        return SimpleNamespace(data=self.frames[indices], pts_seconds=None)


def test_values_of_datasets_sets(processor, clip):
    expected = processor(clip, return_tensors="pt").pixel_values_videos
    for value in ({"path": str(clip), "bytes": None}, {"path": None, "bytes": clip.read_bytes()}):
        assert torch.equal(processor(value, return_tensors="pt").pixel_values_videos, expected)
        both = processor([value, str(clip)], return_tensors="pt").pixel_values_videos
        assert torch.equal(both, torch.cat([expected, expected]))


def test_an_open_decoder_is_asked_for_the_frames_that_are_sampled(processor, clip):
    expected = processor(clip, return_tensors="pt").pixel_values_videos
    decoder = Decoder(clip)
    assert torch.equal(processor(decoder, return_tensors="pt").pixel_values_videos, expected)
    assert len(decoder.asked) == 1 and len(decoder.asked[0]) == 4
    assert processor([decoder, decoder], fps=2, return_tensors="pt").pixel_values_videos.shape[:2] == (2, 2)
    batch = decoder.get_frames_at([0, 2, 4])
    assert processor(batch, return_tensors="pt").pixel_values_videos.shape[:2] == (1, 3)


def test_paths_of_pictures_inside_a_list_are_one_video(processor, clip, tmp_path):
    frames = decode_video(clip)[0].numpy()
    paths = []
    for index, frame in enumerate(frames):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(frame).save(paths[-1])
    expected = processor(frames, num_frames=4, return_tensors="pt").pixel_values_videos
    assert torch.equal(processor([paths], num_frames=4, return_tensors="pt").pixel_values_videos, expected)
    assert processor([paths, paths], num_frames=4, return_tensors="pt").pixel_values_videos.shape[0] == 2


class Computed(torch.utils.data.Dataset):
    """Has a length, and an answer for any index."""

    def __init__(self, path):
        self.path = str(path)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.path


def test_a_torch_dataset_ends_where_its_length_says(processor, clip):
    model = FluxViTForVideoClassification(tiny_config()).eval()
    classify = FluxViTVideoClassificationPipeline(model=model, video_processor=processor, device="cpu")
    results = list(classify(Computed(clip)))
    assert len(results) == 3 and results[0] == classify(str(clip))
    assert classify({"path": str(clip), "bytes": None}) == results[0]


# --- more than 8 bits ------------------------------------------------------------------------------------------------


@pytest.fixture
def ramp():
    """16-bit grey, from black to white."""
    return (np.arange(64 * 48, dtype=np.uint32) * 65535 // (64 * 48 - 1)).astype(np.uint16).reshape(48, 64)


def test_16_bit_pictures_are_scaled(processor, ramp, tmp_path):
    pictures = [Image.fromarray(ramp) for _ in range(4)]
    assert pictures[0].mode == "I;16"
    levels = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values_videos
    assert 120 < levels.mean() < 136 and levels.min() < 10 and levels.max() > 245
    for index, picture in enumerate(pictures, start=1):
        picture.save(tmp_path / f"img_{index:05}.png")
    frames = FrameFolder("f", "x", str(tmp_path), 4, "img_{:05}.png").read(lambda total: np.arange(total))
    expected = np.round(ramp / 257).astype(int)
    assert np.abs(frames[0].numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_unknown_range_are_refused(processor, mode):
    with pytest.raises(ValueError, match=f"8 or 16 bits a channel, got mode '{mode}'"):
        processor([Image.new(mode, (64, 48))] * 4)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int32])
def test_arrays_of_wide_integers(processor, dtype):
    frames = np.full((4, 48, 64, 3), 200, dtype)
    expected = processor(frames.astype(np.uint8), return_tensors="pt").pixel_values_videos
    assert torch.equal(processor(frames, return_tensors="pt").pixel_values_videos, expected)
    with pytest.raises(ValueError, match="integer frames must lie in 0 to 255"):
        processor(frames * 2)
