# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Video augmentation on uint8 tensors, one draw a clip shared by all its frames.

The recipe is that of the official fine-tuning: RandAugment at the clip's own size, normalisation, random resized crop,
flip, erasing. What is computed is the same, pixels that the crop throws away excepted: the draws are made first, each
step then works on the part of the frame that the steps after it read, runs of colour changes become one lookup table,
and geometric changes are one weighted gather for all frames at once. Statistics (the mean of `Contrast`, the histograms
of `AutoContrast` and `Equalize`) are those of each whole frame, as in Pillow, and so differ a little between frames.
Each operation equals Pillow's within one level. The crop is resized in uint8, that is rounded to whole levels before it
is normalised.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flux_hf import FluxViTVideoProcessor
from flux_hf.token_selection import as_count

from .augment_config import AugmentConfig, RandAugment
from .augment_ops import Op, Region, apply_ops


def _factor(level: float, sign: float) -> float:
    return 1 + sign * 0.9 * level / 10


# The fifteen operations that grow with their strength: parameter from strength (0..10) and sign (1 or -1). Translations
# are parts of the frame's side. The translations' 45 % and the strengths' spread are the official code's; the other
# ends are those of the well-known policy, in which Posterize can leave no bits, and the picture is black then.
RAND_AUGMENT_OPS: dict[str, Callable[[float, float], float]] = {
    "AutoContrast": lambda level, sign: 0.0,
    "Equalize": lambda level, sign: 0.0,
    "Invert": lambda level, sign: 0.0,
    "Rotate": lambda level, sign: sign * 30 * level / 10,
    "Posterize": lambda level, sign: 4 - int(4 * level / 10),
    "Solarize": lambda level, sign: 256 - min(256, int(256 * level / 10)),
    "SolarizeAdd": lambda level, sign: min(128, int(110 * level / 10)),
    "Color": _factor,
    "Contrast": _factor,
    "Brightness": _factor,
    "Sharpness": _factor,
    "ShearX": lambda level, sign: sign * 0.3 * level / 10,
    "ShearY": lambda level, sign: sign * 0.3 * level / 10,
    "TranslateX": lambda level, sign: sign * 0.45 * level / 10,
    "TranslateY": lambda level, sign: sign * 0.45 * level / 10,
}


def draw_ops(config: AugmentConfig, policy: RandAugment | None, rng: np.random.Generator) -> list[Op]:
    ops = []
    if policy is not None:
        names = list(RAND_AUGMENT_OPS)
        for index in rng.integers(len(names), size=policy.num_ops):
            applied, level, sign = rng.random(), rng.normal(policy.magnitude, policy.magnitude_std), rng.random()
            if applied < policy.probability:
                level = min(10.0, max(0.0, float(level)))
                ops.append(Op(names[index], RAND_AUGMENT_OPS[names[index]](level, 1.0 if sign < 0.5 else -1.0)))
    for name, spread in (("Brightness", config.brightness), ("Contrast", config.contrast)):
        if spread > 0:
            ops.append(Op(name, float(rng.uniform(1 - spread, 1 + spread))))
    return ops


# Where a multi-scale crop lies, in quarters of the room left over (right, down): corners, the middles of the sides, the
# centre, and the four points half-way from it to the corners.
CROP_PLACES = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 0), (0, 2), (4, 2), (2, 4), (2, 2)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


def draw_multi_scale_crop(scales: Sequence[float], size: tuple[int, int], rng: np.random.Generator) -> Region:
    """The box of a multi-scale crop. Source: temporal segment networks; the paper's Table 14 names its scales."""
    height, width = size
    sides = [max(1, int(min(size) * scale)) for scale in scales]
    pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= 1]
    across, down = pairs[rng.integers(len(pairs))]
    columns, rows = sides[across], sides[down]
    right, below = CROP_PLACES[rng.integers(len(CROP_PLACES))]
    return Region((height - rows) // 4 * below, (width - columns) // 4 * right, rows, columns)


def draw_crop(config: AugmentConfig, size: tuple[int, int], rng: np.random.Generator) -> Region:
    """The box of a random resized crop: ten tries to place one, then the centre at the nearest allowed ratio."""
    if config.crop_scales:
        return draw_multi_scale_crop(config.crop_scales, size, rng)
    height, width = size
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(low, high))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return Region(int(top), int(left), rows, columns)
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    rows, columns = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return Region((height - rows) // 2, (width - columns) // 2, rows, columns)


def draw_erasing(config: AugmentConfig, size: tuple[int, int], rng: np.random.Generator) -> Region | None:
    """The box to erase in a picture of `size` (height, width): a hundred tries to place one; None for no erasing."""
    if rng.random() >= config.erasing:
        return None
    height, width = size
    low, high = (math.log(ratio) for ratio in config.erasing_ratio)
    for _ in range(100):
        area = height * width * rng.uniform(*config.erasing_area)
        ratio = math.exp(rng.uniform(low, high))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < columns < width:
            return Region(int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns)
    return None


# Frames are held as (T, height, width, 3), the memory layout of decoders, which the resize likes best too.


class ClipAugment:
    """Augments clips as `config` says, every frame of a clip alike.

    `augment(frames, size, generator)` does all of it on the CPU. A loader's workers stop at whole levels (`pictures`),
    which are a quarter of the bytes to move, and the rest is done for the batch where it is trained on (`finish`): on
    a CPU the values are the same. The other way is to crop alone in the workers (`on_worker`) and to do all else on
    the device (`on_batch`). RandAugment then sees the crop, not the frame: its statistics are the crop's, translations
    are parts of the crop, and what lies beyond it is `fill`.

    The result is a function of the frames and of the generator's state, which moves on.
    """

    def __init__(self, config: AugmentConfig):
        self.config = config
        self._policy = None if config.rand_augment is None else RandAugment.parse(config.rand_augment)

    def __call__(self, frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Augments one clip.

        Args:
            frames: (T, 3, H, W) uint8 on the CPU; fastest where the memory is (T, H, W, 3), as decoded.
            size: S, side of the square crop.
            generator: on the CPU.

        Returns:
            (T, 3, S, S) float32, normalised.

        Raises:
            ValueError: frames of another type, shape or device, or a size that is not a whole number above 0.
        """
        pictures, box = self._pictures(frames, size, generator)
        values = self._normalize(pictures)
        if box is not None:
            _erase(values, box, generator)
        return values

    def pictures(self, frames: Tensor, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All but normalisation and erasing. Arguments and errors as of the call.

        Returns:
            `pixel_values_videos` (T, 3, S, S) uint8, and `erasing` (4,) int64: top, left, rows and columns of the box
            to erase, no rows and columns for none.
        """
        pictures, box = self._pictures(frames, size, generator)
        numbers = (0, 0, 0, 0) if box is None else (box.top, box.left, box.height, box.width)
        return {"pixel_values_videos": pictures.contiguous(), "erasing": torch.tensor(numbers)}

    def finish(self, videos: Tensor, erasing: Tensor, seeds: Tensor) -> Tensor:
        """Normalisation and erasing of a batch of what `pictures` made; waits for no device.

        Args:
            videos: (B, T, 3, S, S) uint8, on any device.
            erasing: (B, 4) int64 on the CPU.
            seeds: (B,) int64 on the CPU, of the generators that `pictures` began with. The noise is drawn on the
                device of the videos: on a CPU what the call draws, elsewhere other numbers.

        Returns:
            (B, T, 3, S, S) float32 on the device of the videos.

        Raises:
            ValueError: videos, boxes or seeds of another type or shape.
        """
        _check_batch(videos, seeds)
        if erasing.dtype != torch.int64 or erasing.shape != (len(videos), 4):
            raise ValueError(f"erasing must be int64 ({len(videos)}, 4), got {erasing.dtype} {tuple(erasing.shape)}")
        out = self._normalize(videos)
        for values, box, seed in zip(out, erasing.tolist(), seeds.tolist(), strict=True):
            if all(box[2:]):
                generator = torch.Generator(videos.device).manual_seed(seed)
                _first_draw(generator)  # `pictures` made it
                _erase(values, Region(*box), generator)
        return out

    def on_worker(self, frames: Tensor, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The crop alone, as `pixel_values_videos` (T, 3, S, S) uint8. Arguments and errors as of the call."""
        _check_clip(frames, size)
        crop = self._crop(frames, [], size, numpy_generator(generator))
        return {"pixel_values_videos": crop.permute(0, 3, 1, 2).contiguous()}

    def on_batch(self, videos: Tensor, seeds: Tensor) -> Tensor:
        """RandAugment, flip, normalisation and erasing of crops, each clip drawn from its own seed.

        Args:
            videos: (B, T, 3, S, S) uint8, on any device.
            seeds: (B,) int64. What becomes of a clip depends on its own seed alone, not on the batch it is in. The
                noise of erasing is drawn on the videos' device, and differs between kinds of device.

        Returns:
            (B, T, 3, S, S) float32 on the device of the videos.

        Raises:
            ValueError: videos or seeds of another type or shape.
        """
        _check_batch(videos, seeds)
        size = tuple(videos.shape[-2:])
        out = torch.empty(videos.shape, dtype=torch.float32, device=videos.device)
        for video, values, seed in zip(videos, out, seeds.tolist(), strict=True):
            rng = np.random.default_rng([_ON_BATCH, seed % 2**64])
            ops = draw_ops(self.config, self._policy, rng)
            frames = apply_ops(video.permute(0, 2, 3, 1), ops, Region(0, 0, *size), self.config)
            flip = rng.random() < self.config.hflip
            values.copy_(self._normalize((frames.flip(2) if flip else frames).permute(0, 3, 1, 2)))
            box = draw_erasing(self.config, size, rng)
            if box is not None:
                _erase(values, box, torch.Generator(videos.device).manual_seed(int(rng.integers(2**63))))
        return out

    def _pictures(self, frames: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Region | None]:
        """(T, 3, H, W) uint8 to (T, 3, S, S) uint8 and the box to erase in it: all that is drawn but the noise."""
        _check_clip(frames, size)
        rng = numpy_generator(generator)
        ops = draw_ops(self.config, self._policy, rng)
        crop = self._crop(frames, ops, size, rng)
        flip = rng.random() < self.config.hflip
        return (crop.flip(2) if flip else crop).permute(0, 3, 1, 2), draw_erasing(self.config, (size, size), rng)

    def _crop(self, frames: Tensor, ops: list[Op], size: int, rng: np.random.Generator) -> Tensor:
        """(T, 3, H, W) uint8 to (T, S, S, 3) uint8: `ops` and the crop."""
        frame_size = tuple(frames.shape[-2:])
        if self.config.crop_scale is None:
            whole = Region(0, 0, *frame_size)
            frames = apply_ops(frames.permute(0, 2, 3, 1), ops, whole, self.config).permute(0, 3, 1, 2)
            crop = _centre_crop(size)(frames, input_data_format="channels_first")["pixel_values_videos"][0]
            return crop.to(torch.uint8).permute(0, 2, 3, 1)
        box = draw_crop(self.config, frame_size, rng)
        frames = apply_ops(frames.permute(0, 2, 3, 1), ops, box, self.config).permute(0, 3, 1, 2)
        crop = F.interpolate(frames, size=(size, size), mode="bilinear", align_corners=False)
        return crop.permute(0, 2, 3, 1)

    def _normalize(self, pictures: Tensor) -> Tensor:
        """(..., 3, S, S) uint8 to float32 of the same shape, contiguous."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.mean, self.config.std))
        factor, offset = (values.to(pictures.device, non_blocking=True) for values in (1 / (255 * std), mean / std))
        return pictures.to(torch.float32, memory_format=torch.contiguous_format).mul_(factor).sub_(offset)


_ON_BATCH = 0x6F6E  # keeps the draws of `on_batch` apart from others made from the same seed


@lru_cache
def _centre_crop(size: int) -> FluxViTVideoProcessor:
    """Resizes and crops as for evaluation, and leaves the levels as they are."""
    return FluxViTVideoProcessor(size=size, do_rescale=False, do_normalize=False, do_sample_frames=False)


def _check_clip(frames: Tensor, size: int) -> None:
    as_count("size", size)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (T, 3, H, W) and not empty, got {frames.dtype} {tuple(frames.shape)}")
    if frames.device.type != "cpu":
        raise ValueError(f"frames must be on the CPU, got {frames.device}: `on_batch` works on any device")


def _check_batch(videos: Tensor, seeds: Tensor) -> None:
    if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[2] != 3 or 0 in videos.shape:
        raise ValueError(f"videos must be uint8 (B, T, 3, S, S), got {videos.dtype} {tuple(videos.shape)}")
    if seeds.dtype != torch.int64 or seeds.shape != videos.shape[:1]:
        raise ValueError(f"seeds must be int64 ({len(videos)},), got {seeds.dtype} {tuple(seeds.shape)}")


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """NumPy's scalar draws are several times faster than torch's."""
    return np.random.default_rng(int(_first_draw(generator)))


def _first_draw(generator: torch.Generator) -> Tensor:
    return torch.randint(2**63 - 1, (), generator=generator, device=generator.device)


def _erase(values: Tensor, box: Region, generator: torch.Generator) -> None:
    """Fills `box` of every frame (T, 3, S, S) with standard normal noise, new in each frame."""
    target = values[(..., *box.slices())]
    target.copy_(torch.randn(target.shape, generator=generator, device=values.device))
