import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flux_hf import FluxViTVideoProcessor
from flux_hf.video_decoding import decode_video
from training.data.augment import RAND_AUGMENT_OPS, ClipAugment, draw_crop, draw_multi_scale_crop, draw_ops
from training.data.augment_config import AUGMENT_PRESETS, AugmentConfig, RandAugment
from training.data.augment_ops import Op, Region, apply_ops
from training.study.motion_clips import MotionClipConfig, render_motion_clip, write_video


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
RECIPE = AUGMENT_PRESETS["released"]
CROP_ONLY = AugmentConfig(hflip=0.0, erasing=0.0)


def load_benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "train_loader.py"
    spec = importlib.util.spec_from_file_location("train_loader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pillow = load_benchmark()  # the per-frame Pillow pipeline that ours is measured against


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """(4, 3, 110, 150) uint8 frames of a real mp4 file, textured and noisy, in the decoder's memory layout."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    config = MotionClipConfig(size=150, num_frames=4, background_contrast=50.0, background_brightness=(90.0, 140.0))
    write_video(path, render_motion_clip(config, "left", np.random.default_rng(0))[:, :110], config.frame_rate)
    return decode_video(path)[0].permute(0, 3, 1, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def apply(frames, *ops, box=None, config=RECIPE):
    """`ops` applied to frames (T, 3, H, W): (T, H, W, 3), the whole or a box of it."""
    return apply_ops(frames.permute(0, 2, 3, 1), list(ops), box or Region(0, 0, *frames.shape[-2:]), config)


def differences(ours, images):
    return np.abs(ours.numpy().astype(int) - np.stack([np.asarray(image) for image in images]))


def as_images(frames):
    return [Image.fromarray(frame.numpy()) for frame in frames.permute(0, 2, 3, 1)]


# --- the operations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
def test_each_operation_is_pillows(frames, name):
    changed = False
    for level in (0.0, 3.3, 7.0, 10.0):
        for sign in (1.0, -1.0):
            value = RAND_AUGMENT_OPS[name](level, sign)
            error = differences(
                apply(frames, Op(name, value)), [pillow.PILLOW_OPS[name](image, value) for image in as_images(frames)]
            )
            # geometry is a sum of sixteen products in float32, and Pillow cuts what comes out to a whole level
            assert error.max() <= (1 if name in GEOMETRIC else 0), (name, value)
            assert (error > 0).mean() < 0.01, (name, value)
            changed |= bool((apply(frames, Op(name, value)) != frames.permute(0, 2, 3, 1)).any())
    assert changed


@pytest.mark.parametrize("name, value", [("Rotate", 17.0), ("ShearX", -0.2), ("TranslateY", 0.317)])
def test_geometry_and_the_fill_are_pillows(frames, name, value):
    config = replace(RECIPE, fill=(255, 0, 40))
    height, width = frames.shape[-2:]
    matrix = {"ShearX": (1, value, 0, 0, 1, 0), "TranslateY": (1, 0, 0, 0, 1, value * height)}.get(name)
    images = [
        image.rotate(value, Image.BICUBIC, fillcolor=config.fill)
        if matrix is None
        else image.transform((width, height), Image.AFFINE, matrix, Image.BICUBIC, fillcolor=config.fill)
        for image in as_images(frames)
    ]
    error = differences(apply(frames, Op(name, value), config=config), images)
    assert error.max() <= 1 and (error > 0).mean() < 0.02


def test_flat_and_two_level_frames(frames):
    """Where stretching has nothing to stretch, and where a sum of equal levels must give that level."""
    flat = torch.full((1, 3, 20, 30), 128, dtype=torch.uint8)
    for name in RAND_AUGMENT_OPS:
        value = RAND_AUGMENT_OPS[name](7.0, 1.0)
        assert (
            differences(apply(flat, Op(name, value)), [pillow.PILLOW_OPS[name](as_images(flat)[0], value)]).max() == 0
        )
    half = flat.clone()
    half[..., :15] = 10
    for name in ("AutoContrast", "Equalize", "Contrast"):
        assert differences(apply(half, Op(name, 1.6)), [pillow.PILLOW_OPS[name](as_images(half)[0], 1.6)]).max() == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_part_of_the_frame_is_that_part_of_the_whole(frames, seed):
    """Chains of operations, each computed only where the next one looks, on boxes inside and at the frame's edges."""
    rng = np.random.default_rng(seed)
    height, width = frames.shape[-2:]
    for _ in range(8):
        names = rng.choice(list(RAND_AUGMENT_OPS), 4)
        ops = [Op(name, RAND_AUGMENT_OPS[name](rng.uniform(1, 10), rng.choice([-1.0, 1.0]))) for name in names]
        whole = apply(frames, *ops)
        rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        for top, left in ((0, 0), (height - rows, width - columns), ((height - rows) // 2, (width - columns) // 2)):
            part = apply(frames, *ops, box=Region(top, left, rows, columns))
            assert torch.equal(part, whole[:, top : top + rows, left : left + columns]), (ops, top, left)


def test_tables_of_several_operations_are_those_operations_in_turn(frames):
    names = ["Brightness", "Equalize", "SolarizeAdd", "Contrast", "Posterize", "AutoContrast", "Invert", "Solarize"]
    ops = [Op(name, RAND_AUGMENT_OPS[name](5.0, 1.0)) for name in names]
    one_by_one = frames
    for op in ops:
        one_by_one = apply(one_by_one, op).permute(0, 3, 1, 2)
    assert torch.equal(apply(frames, *ops), one_by_one.permute(0, 2, 3, 1))


# --- the clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_the_recipe_equals_the_per_frame_pipeline(frames, preset):
    """Given the same draws; a level of difference before a steep operation is more after it, in few pixels."""
    config = replace(AUGMENT_PRESETS[preset], erasing=0.0)
    std = torch.tensor(config.std).view(3, 1, 1) * 255
    off = []
    for seed in range(20):
        ours = ClipAugment(config)(frames, pillow.SIZE, generator(seed))
        theirs = pillow.augment_with_pillow(frames.permute(0, 2, 3, 1).numpy(), seed, config)
        error = (ours - theirs.permute(1, 0, 2, 3)).abs() * std
        assert error.mean() < 1, seed
        off.append((error > 2.1).float().mean().item())
    assert np.mean(off) < 0.005


def test_one_draw_for_all_frames_and_fresh_noise(frames):
    still = frames[:1].expand(5, -1, -1, -1)
    boxes = 0
    for seed in range(40):
        values = ClipAugment(RECIPE)(still, 32, generator(seed))
        same = (values == values[:1]).all(0).all(0)  # (32, 32)
        if not same.all():
            boxes += 1
            rows, columns = (~same).any(1), (~same).any(0)
            assert torch.equal(~same, rows[:, None] & columns[None])  # one box, the same in all frames
            for line in (rows, columns):
                places = line.nonzero()
                assert len(places) == places[-1] - places[0] + 1
            noise = values[..., ~same]
            assert len(torch.unique(noise)) > 0.99 * noise.numel()  # of each frame, channel and pixel its own
            assert abs(noise.mean()) < 6 / noise.numel() ** 0.5 and abs(noise.std() - 1) < 0.2
            assert 0.01 < (~same).float().mean() < 0.4
    assert 3 <= boxes <= 18  # a quarter of 40


def test_a_function_of_the_generator_alone(frames):
    augment, one = ClipAugment(RECIPE), generator(7)
    torch.manual_seed(1)
    np.random.seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = augment(frames, 32, one), augment(frames, 32, one)
    again = generator(7)
    assert torch.equal(first, augment(frames, 32, again)) and torch.equal(second, augment(frames, 32, again))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    planes = frames.contiguous()  # another memory layout of the same clip
    assert torch.equal(first, augment(planes, 32, generator(7)))


@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
@pytest.mark.parametrize("shape", [(1, 3, 110, 150), (3, 3, 7, 90), (3, 3, 1, 1), (2, 3, 2, 5)])
def test_any_frame_size_gives_the_size_asked_for(frames, preset, shape):
    clip = torch.randint(256, shape, dtype=torch.uint8, generator=generator())
    original = clip.clone()
    config = AUGMENT_PRESETS[preset]
    low, high = (
        -torch.tensor(config.mean) / torch.tensor(config.std),
        (1 - torch.tensor(config.mean)) / torch.tensor(config.std),
    )
    for seed in range(8):
        values = ClipAugment(replace(config, erasing=0.0))(clip, 28, generator(seed))
        assert values.shape == (shape[0], 3, 28, 28) and values.dtype == torch.float32 and values.is_contiguous()
        assert (values >= low.view(3, 1, 1) - 1e-4).all() and (values <= high.view(3, 1, 1) + 1e-4).all()
        assert ClipAugment(config)(clip, 28, generator(seed)).isfinite().all()
    assert torch.equal(clip, original)


def test_no_augmentation_is_the_processors_result(frames):
    values = ClipAugment(AUGMENT_PRESETS["none"])(frames, 56, generator())
    expected = FluxViTVideoProcessor(size=56)(frames, return_tensors="pt")["pixel_values_videos"][0]
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_mirrored_only_where_the_preset_says(frames):
    ramp = torch.arange(0, 200, 2, dtype=torch.uint8).expand(2, 3, 60, 100)
    mirrored = {}
    for name, config in AUGMENT_PRESETS.items():
        augment = ClipAugment(replace(config, rand_augment=None, erasing=0.0))
        slopes = [augment(ramp, 16, generator(seed)) for seed in range(60)]
        mirrored[name] = sum(bool(values[0, 0, 0, 0] > values[0, 0, 0, -1]) for values in slopes)
    assert mirrored["light"] == mirrored["none"] == 0
    assert 15 <= mirrored["released"] <= 45 and 15 <= mirrored["paper"] <= 45


def test_light_keeps_most_of_the_picture_and_its_levels(frames):
    config = AUGMENT_PRESETS["light"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert all(
            op.name in ("Brightness", "Contrast") and 0.8 <= op.value <= 1.2 for op in draw_ops(config, None, rng)
        )
        box = draw_crop(config, (110, 150), rng)
        assert box.height * box.width >= 0.55 * 110 * 150


# --- the draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset, mean", [("released", 7.0), ("paper", 9.0)])
def test_operations_are_drawn_as_the_string_says(preset, mean):
    config = AUGMENT_PRESETS[preset]
    policy, rng = RandAugment.parse(config.rand_augment), np.random.default_rng(0)
    draws = [draw_ops(config, policy, rng) for _ in range(6000)]
    counts = {name: sum(op.name == name for ops in draws for op in ops) for name in RAND_AUGMENT_OPS}
    # 4 draws x probability 0.5 / 15 operations = 800 each, standard deviation 28
    assert all(680 < count < 920 for count in counts.values()), counts
    lengths = np.bincount([len(ops) for ops in draws], minlength=5) / len(draws)
    np.testing.assert_allclose(lengths, np.array([1, 4, 6, 4, 1]) / 16, atol=0.03)
    shears = np.array([op.value for ops in draws for op in ops if op.name.startswith("Shear")]) / 0.03
    assert abs(np.abs(shears).mean() - mean) < 0.1 and np.abs(shears).max() <= 10
    assert 0.35 < np.abs(shears).std() < 0.6 and 0.42 < (shears > 0).mean() < 0.58


def test_crops_are_drawn_by_area_and_ratio():
    rng = np.random.default_rng(0)
    boxes = [draw_crop(RECIPE, (300, 400), rng) for _ in range(3000)]
    areas = np.array([box.height * box.width for box in boxes]) / (300 * 400)
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.078 < areas.min() < 0.12 and areas.max() > 0.9 and 0.4 < areas.mean() < 0.6
    assert 0.73 < ratios.min() < 0.8 and 1.28 < ratios.max() < 1.36
    assert all(0 <= box.top <= 300 - box.height and 0 <= box.left <= 400 - box.width for box in boxes)
    # nothing fits a strip: the centre, at the widest ratio allowed
    assert draw_crop(RECIPE, (9, 900), rng) == Region(0, 444, 9, 12)
    assert draw_crop(RECIPE, (900, 9), rng) == Region(444, 0, 12, 9)


def test_strings_of_rand_augment():
    assert RandAugment.parse("rand-m7-n4-mstd0.5-inc1") == RandAugment(7.0, 4, 0.5, 0.5)
    assert RandAugment.parse("rand-m9-n2-p1-inc1") == RandAugment(9.0, 2, 0.0, 1.0)
    for text in (
        "m7-n4-inc1",
        "rand-m7-n4",
        "rand-m7-inc1",
        "rand-m7-n4-inc0",
        "rand-m7-m8-n4-inc1",
        "rand-m7-n4-w1-inc1",
    ):
        with pytest.raises(ValueError, match=text):
            RandAugment.parse(text)
    for text in ("rand-m11-n4-inc1", "rand-m7-n0-inc1", "rand-m7-n4-p2-inc1", "rand-m7-n2.5-inc1"):
        with pytest.raises(ValueError):
            RandAugment.parse(text)


# --- crops on the worker, the rest on the batch ----------------------------------------------------------------------


def test_a_batch_is_finished_as_the_clips_alone_are(frames):
    """What workers send is a byte a level; normalised and erased as a batch it is the call's result bit by bit."""
    augment, seeds = ClipAugment(RECIPE), torch.arange(40)
    parts = [augment.pictures(frames, 32, generator(seed)) for seed in range(40)]
    batch = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    assert batch["pixel_values_videos"].dtype == torch.uint8
    assert 3 <= (batch["erasing"][:, 2] > 0).sum() <= 18
    finished = augment.finish(batch["pixel_values_videos"], batch["erasing"], seeds)
    whole = torch.stack([augment(frames, 32, generator(seed)) for seed in range(40)])
    assert torch.equal(finished, whole) and finished.dtype == torch.float32


def test_worker_crops_alone(frames):
    crop = ClipAugment(RECIPE).on_worker(frames, 40, generator(3))["pixel_values_videos"]
    assert crop.dtype == torch.uint8 and crop.shape == (4, 3, 40, 40)
    values = ClipAugment(CROP_ONLY)(frames, 40, generator(3))
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CROP_ONLY.mean, CROP_ONLY.std))
    torch.testing.assert_close((crop / 255 - mean) / std, values, rtol=0, atol=1e-5)
    assert not torch.equal(crop, ClipAugment(RECIPE).on_worker(frames, 40, generator(4))["pixel_values_videos"])


def test_batch_augments_each_clip_by_its_seed(frames):
    augment = ClipAugment(RECIPE)
    crop = augment.on_worker(frames, 40, generator(3))["pixel_values_videos"]
    seeds = torch.tensor([5, 2**63 - 1, 0, 5, 12])
    videos = augment.on_batch(crop.expand(5, -1, -1, -1, -1), seeds)
    assert videos.shape == (5, 4, 3, 40, 40) and videos.dtype == torch.float32
    assert torch.equal(videos[0], videos[3]) and not torch.equal(videos[0], videos[2])
    other_batch = torch.stack([frames[..., 10:50, 10:50].contiguous(), crop])
    assert torch.equal(augment.on_batch(other_batch, torch.tensor([1, 12]))[1], videos[4])
    still = crop[:1].expand(1, 4, -1, -1, -1)
    same = augment.on_batch(still, seeds[:1])[0]
    without_erasing = ClipAugment(replace(RECIPE, erasing=0.0)).on_batch(still, seeds[:1])[0]
    assert torch.equal(without_erasing, without_erasing[:1].expand_as(same))


def test_batch_does_all_that_the_worker_leaves(frames):
    """Operations, flips and boxes each occur on the batch as often as they should."""
    crop = frames[:2, :, :40, :40].contiguous()
    videos = crop.expand(80, -1, -1, -1, -1)
    plain = ClipAugment(CROP_ONLY).on_batch(videos[:1], torch.tensor([0]))[0]
    seeds = torch.arange(80)
    flipped = ClipAugment(replace(CROP_ONLY, hflip=0.5)).on_batch(videos, seeds)
    flips = sum(torch.equal(video, plain.flip(-1)) for video in flipped)
    assert 24 <= flips <= 56 and flips + sum(torch.equal(video, plain) for video in flipped) == 80
    erased = ClipAugment(replace(CROP_ONLY, erasing=0.25)).on_batch(videos, seeds)
    assert 8 <= sum(not torch.equal(video, plain) for video in erased) <= 34
    changed = ClipAugment(replace(CROP_ONLY, rand_augment=RECIPE.rand_augment)).on_batch(videos, seeds)
    assert sum(not torch.equal(video, plain) for video in changed) >= 64  # but for 1 in 16, and for equalised ones


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batch_on_a_gpu(frames):
    crops = torch.stack(
        [ClipAugment(RECIPE).on_worker(frames, 56, generator(seed))["pixel_values_videos"] for seed in range(16)]
    )
    seeds = torch.arange(16)
    config = replace(RECIPE, erasing=0.0)
    std = torch.tensor(config.std).view(3, 1, 1) * 255
    error = (
        (ClipAugment(config).on_batch(crops.cuda(), seeds).cpu() - ClipAugment(config).on_batch(crops, seeds)) * std
    ).abs()
    assert error.mean() < 0.1 and (error > 2.1).float().mean() < 0.002
    erasing = ClipAugment(AugmentConfig(hflip=0.0, erasing=1.0))
    on_gpu, on_cpu = (erasing.on_batch(videos, seeds).cpu() for videos in (crops.cuda(), crops))
    plain = ClipAugment(CROP_ONLY).on_batch(crops, seeds)
    torch.testing.assert_close((on_gpu - plain).abs() > 1e-4, (on_cpu - plain).abs() > 1e-4)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rand_augment": "rand-m7"}, "rand-m7"),
        ({"hflip": 1.5}, "hflip.*1.5"),
        ({"brightness": -0.1}, "brightness.*-0.1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale.*0.0"),
        ({"crop_scale": (0.5, 1.2)}, "crop_scale.*1.2"),
        ({"erasing_ratio": (3.0, 0.3)}, "erasing_ratio.*3.0"),
        ({"fill": (128, 128)}, "fill.*128"),
        ({"fill": (0, 0, 256)}, "fill.*256"),
        ({"std": (1.0, 0.0, 1.0)}, "std.*0.0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**changes)


def test_wrong_clips_are_named(frames):
    augment = ClipAugment(RECIPE)
    for call in (augment, augment.pictures, augment.on_worker):
        with pytest.raises(ValueError, match="float32"):
            call(frames.float(), 32, generator())
        with pytest.raises(ValueError, match=r"\(4, 110, 150, 3\)"):
            call(frames.permute(0, 2, 3, 1), 32, generator())
        with pytest.raises(ValueError, match=r"\(0, 3"):
            call(frames[:0], 32, generator())
        with pytest.raises(ValueError, match="size.*0"):
            call(frames, 0, generator())
    crops = frames[None, ..., :40, :40]
    with pytest.raises(ValueError, match="float32"):
        augment.on_batch(crops.float(), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"seeds.*\(2,\)"):
        augment.on_batch(crops, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="seeds.*int32"):
        augment.on_batch(crops, torch.tensor([0], dtype=torch.int32))
    with pytest.raises(ValueError, match="float32"):
        augment.finish(crops.float(), torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"erasing.*\(2, 4\)"):
        augment.finish(crops, torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0]))


def test_multi_scale_crops():
    rng, scales = np.random.default_rng(0), (0.66, 0.75, 0.875, 1.0)
    boxes = [draw_multi_scale_crop(scales, (100, 160), rng) for _ in range(3000)]
    sides = [66, 75, 87, 100]
    assert {(box.width, box.height) for box in boxes} == {
        (one, other) for i, one in enumerate(sides) for j, other in enumerate(sides) if abs(i - j) <= 1
    }
    small = {(box.top, box.left) for box in boxes if (box.width, box.height) == (66, 66)}
    corners = {(top, left) for top in (0, 32) for left in (0, 92)}
    assert len(small) == 13 and corners < small and (16, 46) in small and (8, 23) in small
    assert all(0 <= box.top <= 100 - box.height and 0 <= box.left <= 160 - box.width for box in boxes)
    tiny = draw_multi_scale_crop(scales, (1, 1), rng)
    assert (tiny.width, tiny.height) == (1, 1)
    with pytest.raises(ValueError, match="crop_scales must be rising"):
        AugmentConfig(crop_scales=(1.0, 0.5))
