# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Video augmentation on uint8 tensors, one draw a clip shared by all its frames.

Two chapters: what is drawn (`AugmentConfig`, the presets) and how it is applied to a clip (`ClipAugment`).

The recipe is that of the official fine-tuning: RandAugment at the clip's own size, normalisation, random resized crop,
flip, erasing. What is computed is the same, pixels that the crop throws away excepted: the draws are made first, each
step then works on the part of the frame that the steps after it read, runs of colour changes become one lookup table,
and geometric changes are one weighted gather for all frames at once. Statistics (the mean of `Contrast`, the histograms
of `AutoContrast` and `Equalize`) are those of each whole frame, as in Pillow, and so differ a little between frames.
Each operation equals Pillow's within one level. The crop is resized in uint8, that is rounded to whole levels before it
is normalised.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from flux_hf import FluxViTVideoProcessor
from flux_hf.token_selection import as_count


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandAugment:
    """The parts of a string such as `rand-m7-n4-mstd0.5-inc1`, read by `parse`.

    Args:
        magnitude: m, mean of the normal draw of an operation's strength, 0 to 10.
        num_ops: n, operations drawn, with replacement.
        magnitude_std: mstd, standard deviation of the strength; the draw is clipped to 0..10.
        probability: p, that a drawn operation is applied.
    """

    magnitude: float
    num_ops: int
    magnitude_std: float = 0.0
    probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.magnitude <= 10 or not 0 <= self.probability <= 1 or self.num_ops < 1:
            raise ValueError(f"RandAugment needs m in 0..10, n of at least 1 and p in 0..1, got {self}")

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads the string form; `m`, `n` and `inc1` (the operations that grow with m) must be there, `mstd`, `p` may.

        Raises:
            ValueError: another part, a part twice, one missing, or a value out of range.
        """
        head, *parts = text.split("-")
        matches = [re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part) for part in parts]
        values = {match[1]: match[2] for match in matches if match}
        if head != "rand" or len(values) != len(parts) or not {"m", "n"} <= set(values) or values.get("inc") != "1":
            raise ValueError(
                f"rand_augment must be like 'rand-m7-n4-mstd0.5-inc1' (m, n and inc1 given, mstd and p optional), "
                f"got {text!r}"
            )
        if not values["n"].isdigit():
            raise ValueError(f"n of rand_augment must be a whole number, got {text!r}")
        optional = {"magnitude_std": values.get("mstd"), "probability": values.get("p")}
        given = {name: float(value) for name, value in optional.items() if value is not None}
        return cls(magnitude=float(values["m"]), num_ops=int(values["n"]), **given)


@dataclass(frozen=True)
class AugmentConfig:
    """How a clip is augmented. Pairs are the ends of a draw.

    Args:
        rand_augment: RandAugment as a string (`RandAugment.parse`), or None.
        brightness: Brightness is multiplied by a uniform draw from 1 - brightness to 1 + brightness; 0: left alone.
        contrast: The same for contrast. Both come after RandAugment.
        crop_scale: Area of the random crop, as a part of the frame's; None: the short side is resized to the size asked
            for and the centre is cropped, as the processor does.
        crop_ratio: Width by height of the random crop; the draw is uniform in its logarithm.
        hflip: Probability of mirroring left and right.
        erasing: Probability of filling a box with noise.
        erasing_area: Area of that box, as a part of the crop's.
        erasing_ratio: Height by width of that box; the draw is uniform in its logarithm.
        interpolation: Of rotation, shear and translation: "bicubic" (Pillow's, a = -1) or "bilinear".
        fill: Level of each channel where rotation, shear and translation look beyond the frame.
        mean: Of each channel, subtracted after division by 255.
        std: Of each channel, divided by after that.
    """

    rand_augment: str | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    erasing: float = 0.25
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] = (128, 128, 128)
    mean: tuple[float, float, float] = tuple(IMAGENET_DEFAULT_MEAN)
    std: tuple[float, float, float] = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self):
        if self.rand_augment is not None:
            RandAugment.parse(self.rand_augment)
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be 'bicubic' or 'bilinear', got {self.interpolation!r}")
        for name in ("hflip", "erasing", "brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        limits = {"crop_scale": 1, "crop_ratio": math.inf, "erasing_area": 1, "erasing_ratio": math.inf}
        for name, limit in limits.items():
            ends = getattr(self, name)
            if ends is None and name == "crop_scale":
                continue
            if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= limit:
                raise ValueError(f"{name} must be two values above 0 and at most {limit}, the lower first, got {ends}")
        for name in ("fill", "mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must have one value a channel, got {getattr(self, name)}")
        if min(self.std) <= 0 or not 0 <= min(self.fill) <= max(self.fill) <= 255:
            raise ValueError(f"std must be above 0 and fill lie in 0..255, got std={self.std} and fill={self.fill}")


# "released": the defaults of the official fine-tuning code. "paper": table 15 says RandAug(9, 0.5); read as magnitude 9
# with deviation 0.5, all else as released, which is inferred. "light" is ours: for small sets, and for classes that a
# mirror image would change.
AUGMENT_PRESETS: dict[str, AugmentConfig] = {
    "released": AugmentConfig(rand_augment="rand-m7-n4-mstd0.5-inc1"),
    "paper": AugmentConfig(rand_augment="rand-m9-n4-mstd0.5-inc1"),
    "light": AugmentConfig(
        brightness=0.2, contrast=0.2, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25), hflip=0.0, erasing=0.0
    ),
    "none": AugmentConfig(crop_scale=None, hflip=0.0, erasing=0.0),
}


@dataclass(frozen=True)
class _Region:
    """A box of pixels of the frame."""

    top: int
    left: int
    height: int
    width: int

    def slices(self, within: "_Region | None" = None) -> tuple[slice, slice]:
        """Rows and columns of this region in the frame, or in a tensor that holds `within`."""
        top, left = (self.top - within.top, self.left - within.left) if within else (self.top, self.left)
        return slice(top, top + self.height), slice(left, left + self.width)

    def grown(self, pixels: int, size: tuple[int, int]) -> "_Region":
        """With so many more pixels on each side, as far as a frame of `size` (height, width) has them."""
        top, left = max(self.top - pixels, 0), max(self.left - pixels, 0)
        bottom, right = min(self.top + self.height + pixels, size[0]), min(self.left + self.width + pixels, size[1])
        return _Region(top, left, bottom - top, right - left)


@dataclass(frozen=True)
class _Op:
    """One operation of RandAugment with its parameter: a factor, a level, an angle or a length, by `name`."""

    name: str
    value: float = 0.0


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
_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_STATISTICAL = ("AutoContrast", "Equalize", "Contrast")


def _draw_ops(config: AugmentConfig, policy: RandAugment | None, rng: np.random.Generator) -> list[_Op]:
    ops = []
    if policy is not None:
        names = list(RAND_AUGMENT_OPS)
        for index in rng.integers(len(names), size=policy.num_ops):
            applied, level, sign = rng.random(), rng.normal(policy.magnitude, policy.magnitude_std), rng.random()
            if applied < policy.probability:
                level = min(10.0, max(0.0, float(level)))
                ops.append(_Op(names[index], RAND_AUGMENT_OPS[names[index]](level, 1.0 if sign < 0.5 else -1.0)))
    for name, spread in (("Brightness", config.brightness), ("Contrast", config.contrast)):
        if spread > 0:
            ops.append(_Op(name, float(rng.uniform(1 - spread, 1 + spread))))
    return ops


def _draw_crop(config: AugmentConfig, size: tuple[int, int], rng: np.random.Generator) -> _Region:
    """The box of a random resized crop: ten tries to place one, then the centre at the nearest allowed ratio."""
    height, width = size
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(low, high))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return _Region(int(top), int(left), rows, columns)
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    rows, columns = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return _Region((height - rows) // 2, (width - columns) // 2, rows, columns)


def _draw_erasing(config: AugmentConfig, size: tuple[int, int], rng: np.random.Generator) -> _Region | None:
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
            return _Region(int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# How it is applied to a clip
# ---------------------------------------------------------------------------------------------------------------------
#
# Frames are held as (T, height, width, 3), the memory layout of decoders, which the resize likes best too.


class ClipAugment:
    """Augments clips as `config` says, every frame of a clip alike.

    `augment(frames, size, generator)` does all of it on the CPU. The other way is to crop in the loader's workers
    (`on_worker`) and to do the rest on the device for the whole batch (`on_batch`): uint8 crops are a quarter of the
    bytes to move. RandAugment then sees the crop, not the frame: its statistics are the crop's, translations are parts
    of the crop, and what lies beyond it is `fill`.

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
        _check_clip(frames, size)
        rng = _numpy_generator(generator)
        ops = _draw_ops(self.config, self._policy, rng)
        crop = self._crop(frames, ops, size, rng)
        flip = rng.random() < self.config.hflip
        values = self._normalize(crop.flip(2) if flip else crop)
        box = _draw_erasing(self.config, (size, size), rng)
        if box is not None:
            _erase(values, box, generator)
        return values

    def on_worker(self, frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """The crop alone: (T, 3, H, W) uint8 to (T, 3, S, S) uint8. Arguments and errors as of the call."""
        _check_clip(frames, size)
        return self._crop(frames, [], size, _numpy_generator(generator)).permute(0, 3, 1, 2).contiguous()

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
        if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[2] != 3 or 0 in videos.shape:
            raise ValueError(f"videos must be uint8 (B, T, 3, S, S), got {videos.dtype} {tuple(videos.shape)}")
        if seeds.dtype != torch.int64 or seeds.shape != videos.shape[:1]:
            raise ValueError(f"seeds must be int64 ({len(videos)},), got {seeds.dtype} {tuple(seeds.shape)}")
        size = tuple(videos.shape[-2:])
        out = torch.empty(videos.shape, dtype=torch.float32, device=videos.device)
        for video, values, seed in zip(videos, out, seeds.tolist(), strict=True):
            rng = np.random.default_rng([_ON_BATCH, seed % 2**64])
            ops = _draw_ops(self.config, self._policy, rng)
            frames = _apply_ops(video.permute(0, 2, 3, 1), ops, _Region(0, 0, *size), self.config)
            flip = rng.random() < self.config.hflip
            values.copy_(self._normalize(frames.flip(2) if flip else frames))
            box = _draw_erasing(self.config, size, rng)
            if box is not None:
                _erase(values, box, torch.Generator(videos.device).manual_seed(int(rng.integers(2**63))))
        return out

    def _crop(self, frames: Tensor, ops: list[_Op], size: int, rng: np.random.Generator) -> Tensor:
        """(T, 3, H, W) uint8 to (T, S, S, 3) uint8: `ops` and the crop."""
        frame_size = tuple(frames.shape[-2:])
        if self.config.crop_scale is None:
            whole = _Region(0, 0, *frame_size)
            frames = _apply_ops(frames.permute(0, 2, 3, 1), ops, whole, self.config).permute(0, 3, 1, 2)
            crop = _centre_crop(size)(frames, input_data_format="channels_first")["pixel_values_videos"][0]
            return crop.to(torch.uint8).permute(0, 2, 3, 1)
        box = _draw_crop(self.config, frame_size, rng)
        frames = _apply_ops(frames.permute(0, 2, 3, 1), ops, box, self.config).permute(0, 3, 1, 2)
        crop = F.interpolate(frames, size=(size, size), mode="bilinear", align_corners=False)
        return crop.permute(0, 2, 3, 1)

    def _normalize(self, frames: Tensor) -> Tensor:
        """(T, S, S, 3) uint8 to (T, 3, S, S) float32, contiguous."""
        mean, std = (
            torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (self.config.mean, self.config.std)
        )
        values = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(1 / (255 * std)).sub_(mean / std)


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


def _numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """NumPy's scalar draws are several times faster than torch's."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))


def _erase(values: Tensor, box: _Region, generator: torch.Generator) -> None:
    """Fills `box` of every frame (T, 3, S, S) with standard normal noise, new in each frame."""
    target = values[(..., *box.slices())]
    target.copy_(torch.randn(target.shape, generator=generator, device=values.device))


def _apply_ops(frames: Tensor, ops: list[_Op], box: _Region, config: AugmentConfig) -> Tensor:
    """The pixels in `box` of frames (T, H, W, 3) to which `ops` were applied: (T, height, width, 3) uint8.

    Looks from the last step to the first for the region each has to read, then goes forward over those regions.
    """
    size = tuple(frames.shape[1:3])
    steps = _steps(ops, size, config)
    regions = [box]
    for step in reversed(steps):
        regions.append(step.reads(regions[-1], size))
    regions.reverse()
    frames = frames[(slice(None), *regions[0].slices())]
    if frames.stride(-1) != 1:  # planes
        frames = frames.contiguous()
    for step, source, target in zip(steps, regions[:-1], regions[1:], strict=True):
        frames = step.apply(frames, source, target, size)
    return frames


def _steps(ops: list[_Op], size: tuple[int, int], config: AugmentConfig) -> list:
    """Groups of operations that are applied as one; each has `reads` (the region it needs) and `apply`."""
    steps: list = []
    for op in ops:
        if op.name in _GEOMETRIC:
            steps.append(_Warp(_matrix(op, size), config.interpolation, config.fill))
        elif op.name == "Color":
            steps.append(_Color(op.value))
        elif op.name == "Sharpness":
            steps.append(_Sharpness(op.value))
        elif steps and isinstance(steps[-1], _Tables):
            steps[-1] = replace(steps[-1], ops=(*steps[-1].ops, op))
        else:
            steps.append(_Tables((op,)))
    return steps


# --- colour, pixel by pixel ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tables:
    """Operations that map each level of a channel to another one: together one table of 256 levels.

    The statistics of the second of two such operations follow from those of the first: its histogram is the first's,
    moved through the first's table.
    """

    ops: tuple[_Op, ...]

    def reads(self, target: _Region, size: tuple[int, int]) -> _Region:
        return _Region(0, 0, *size) if any(op.name in _STATISTICAL for op in self.ops) else target

    def apply(self, frames: Tensor, source: _Region, target: _Region, size: tuple[int, int]) -> Tensor:
        levels = torch.arange(256, device=frames.device)
        tables, counts = levels.expand(1, 1, 256), None
        for op in self.ops:
            if op.name not in _STATISTICAL:
                tables = _level_table(op, levels)[tables]
                continue
            counts = _histograms(frames) if counts is None else counts
            now = torch.zeros_like(counts).scatter_add_(-1, tables.expand(counts.shape), counts)
            new = _statistical_table(op, levels, now)
            shape = torch.broadcast_shapes(tables.shape, new.shape)
            tables = new.expand(shape).gather(-1, tables.expand(shape))
        frames = frames[(slice(None), *target.slices(source))].contiguous()
        length, height, width, _ = frames.shape
        places = frames.to(torch.int32).view(length, height, width * 3)
        # which of the tables: by frame, and where channels differ by channel too
        by_channel = torch.arange(tables.shape[1], dtype=torch.int32, device=frames.device)
        by_frame = torch.arange(len(tables), dtype=torch.int32, device=frames.device) * tables.shape[1]
        if len(by_channel) > 1:
            places += by_channel.mul_(256).repeat(width)
        if len(by_frame) > 1:
            places += by_frame.mul_(256).view(-1, 1, 1)
        tables = tables.to(torch.uint8).reshape(-1)
        return tables.index_select(0, places.view(-1)).view(frames.shape)


def _blend(base: Tensor, values: Tensor, factor: float) -> Tensor:
    """Pillow's blend of float32 levels: between base (0) and values (1), or beyond, cut to whole levels."""
    return torch.sub(values, base).mul_(factor).add_(base).clamp_(0, 255).to(torch.uint8)


def _level_table(op: _Op, levels: Tensor) -> Tensor:
    """(256,) new levels of the operations that look at nothing but the level."""
    if op.name == "Invert":
        return 255 - levels
    if op.name == "Posterize":
        return levels & ~(2 ** (8 - int(op.value)) - 1)
    if op.name == "Solarize":
        return torch.where(levels < op.value, levels, 255 - levels)
    if op.name == "SolarizeAdd":
        return torch.where(levels < 128, (levels + int(op.value)).clamp(max=255), levels)
    if op.name == "Brightness":
        values = levels.to(torch.float32)
        return _blend(torch.zeros_like(values), values, op.value).long()
    raise ValueError(f"no table for {op.name!r}")


def _statistical_table(op: _Op, levels: Tensor, counts: Tensor) -> Tensor:
    """(T, 3, 256), or (T, 1, 256) for all channels: new levels by operations that look at histograms (T, 3, 256)."""
    if op.name == "Contrast":
        means = (counts * levels).sum(-1).double() / counts.sum(-1)
        grey = (means * torch.tensor(_LUMA, device=counts.device)).sum(-1) / 65536
        base = (grey + 0.5).floor().to(torch.float32).view(-1, 1, 1)
        return _blend(base, levels.to(torch.float32), op.value).long()
    present = counts > 0
    if op.name == "AutoContrast":
        low = torch.where(present, levels, 255).amin(-1, keepdim=True)
        high = torch.where(present, levels, 0).amax(-1, keepdim=True)
        # torch divides a number by a tensor with two roundings, a tensor by a tensor with one, as Python
        scale = torch.full_like(low, 255).double() / (high - low).clamp(min=1)
        stretched = (levels * scale - low * scale).clamp(0, 255).long()
        return torch.where(high > low, stretched, levels)
    last = torch.where(present, levels, 0).amax(-1, keepdim=True)
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, last)) // 255
    before = counts.cumsum(-1) - counts
    equalized = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equalized, levels)


# Weights of red, green and blue in Pillow's grey, of 65536
_LUMA = (19595, 38470, 7471)


def _histograms(frames: Tensor) -> Tensor:
    """(T, 3, 256) int64: how often each level occurs in each channel of each frame (T, H, W, 3)."""
    length = len(frames)
    if frames.device.type == "cpu":  # Pillow counts four times as fast as torch
        counts = [PIL.Image.fromarray(frame).histogram() for frame in frames.numpy()]
        return torch.from_numpy(np.array(counts)).view(length, 3, 256)
    offsets = torch.arange(0, length * 768, 256, dtype=torch.int32, device=frames.device).view(length, 1, 1, 3)
    return torch.bincount((frames + offsets).view(-1), minlength=length * 768).view(length, 3, 256)


@dataclass(frozen=True)
class _Color:
    """Between the grey picture (factor 0) and the picture (1), or beyond."""

    factor: float

    def reads(self, target: _Region, size: tuple[int, int]) -> _Region:
        return target

    def apply(self, frames: Tensor, source: _Region, target: _Region, size: tuple[int, int]) -> Tensor:
        out = torch.empty(frames.shape, dtype=torch.uint8, device=frames.device)
        for frame, result in zip(frames, out, strict=True):  # one at a time stays in the cache
            values = frame.to(torch.float32)
            red, green, blue = values.unbind(-1)
            grey = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])  # below 2**24, thus exact
            grey = grey.add_(32768).mul_(2**-16).floor_()
            result.copy_(_blend(grey[..., None].expand_as(values).contiguous(), values, self.factor))
        return out


@dataclass(frozen=True)
class _Sharpness:
    """Between the smoothed picture (factor 0) and the picture (1), or beyond; the frame's outermost pixels stay."""

    factor: float

    def reads(self, target: _Region, size: tuple[int, int]) -> _Region:
        return target.grown(1, size)

    def apply(self, frames: Tensor, source: _Region, target: _Region, size: tuple[int, int]) -> Tensor:
        out = frames.clone(memory_format=torch.contiguous_format)
        if source.height > 2 and source.width > 2:
            for frame, result in zip(frames, out, strict=True):
                values = frame.to(torch.float32)
                rows = values[:-2] + values[1:-1] + values[2:]
                smooth = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
                inner = values[1:-1, 1:-1]
                smooth = smooth.add_(inner, alpha=4).add_(6.5).div_(13).floor_()
                result[1:-1, 1:-1] = _blend(smooth, inner, self.factor)
        return out[(slice(None), *target.slices(source))]


# --- geometry --------------------------------------------------------------------------------------------------------


def _matrix(op: _Op, size: tuple[int, int]) -> tuple[float, ...]:
    """(a, b, c, d, e, f): the new pixel (x, y) looks at (a x + b y + c, d x + e y + f); pixel centres are at halves."""
    height, width = size
    if op.name == "ShearX":
        return 1.0, op.value, 0.0, 0.0, 1.0, 0.0
    if op.name == "ShearY":
        return 1.0, 0.0, 0.0, op.value, 1.0, 0.0
    if op.name == "TranslateX":
        return 1.0, 0.0, op.value * width, 0.0, 1.0, 0.0
    if op.name == "TranslateY":
        return 1.0, 0.0, 0.0, 0.0, 1.0, op.value * height
    angle = -math.radians(op.value)  # Rotate: counter-clockwise as seen, about the centre
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y


def _bilinear(distance: Tensor) -> list[Tensor]:
    return [1 - distance, distance]


def _bicubic(distance: Tensor) -> list[Tensor]:
    """Pillow's kernel: the slope at a pixel is the difference of its neighbours."""
    square = distance * distance
    cube = square * distance
    return [2 * square - cube - distance, cube - 2 * square + 1, distance + square - cube, cube - square]


# Weights of the pixels around a position by its distance (0 to 1) from the pixel before it.
_KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}
_BORDER = 2  # pixels repeated around the table, so that every pixel of the frame has the neighbours the kernels ask for


@dataclass(frozen=True)
class _Warp:
    """An affine map, as `_matrix` describes it, of all frames at once.

    Each pixel is a table row with the values of all frames and channels, so each new pixel is a weighted sum of rows,
    the same for all of them: an embedding bag.
    """

    matrix: tuple[float, ...]
    interpolation: str
    fill: tuple[int, int, int]

    def reads(self, target: _Region, size: tuple[int, int]) -> _Region:
        ends = []
        for rows in (target.top, target.top + target.height):
            for columns in (target.left, target.left + target.width):
                ends.append(self._look(columns, rows))
        (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*ends, strict=True))
        # what lies beyond the frame is filled, but one pixel must be there to be pointed at
        top, left = (min(max(math.floor(v), 0), side - 1) for v, side in zip((top, left), size, strict=True))
        bottom, right = max(math.ceil(bottom), top + 1), max(math.ceil(right), left + 1)
        region = _Region(top, left, min(bottom, size[0]) - top, min(right, size[1]) - left)
        return region.grown(2, size)

    def _look(self, x, y):
        """Where pixels at columns `x` and rows `y` look; an axis that does not depend on the other keeps its shape."""
        a, b, c, d, e, f = self.matrix
        return (a * x + b * y if b else a * x) + c, (d * x + e * y if d else e * y) + f

    def apply(self, frames: Tensor, source: _Region, target: _Region, size: tuple[int, int]) -> Tensor:
        length, shape, device = len(frames), (target.height, target.width), frames.device
        y = torch.arange(target.height, dtype=torch.float64, device=device)[:, None] + (target.top + 0.5)
        x = torch.arange(target.width, dtype=torch.float64, device=device)[None, :] + (target.left + 0.5)
        x, y = self._look(x, y)
        outside = (x < 0) | (x >= size[1]) | (y < 0) | (y >= size[0])
        a, b, c, d, e, f = self.matrix
        stays_x, stays_y = (a, b) == (1, 0) and c % 1 == 0, (e, d) == (1, 0) and f % 1 == 0
        columns, weights_x = self._taps(x.expand(shape), source.left, source.width, stays_x)
        rows, weights_y = self._taps(y.expand(shape), source.top, source.height, stays_y)
        weights = torch.empty((target.height * target.width, len(weights_y) * len(weights_x)), device=device)
        for index, (weight_y, weight_x) in enumerate(itertools.product(weights_y, weights_x)):
            torch.mul(weight_y, weight_x, out=weights[:, index])
        stride = source.width + 2 * _BORDER
        steps = [row * stride + column for row in range(len(weights_y)) for column in range(len(weights_x))]
        places = (rows * stride + columns)[:, None] + torch.tensor(steps, dtype=torch.int32, device=device)
        sums = F.embedding_bag(places, _pixel_table(frames), mode="sum", per_sample_weights=weights)
        sums = sums.clamp_(0, 255).view(*shape, 3, length)
        sums[outside] = torch.tensor(self.fill, dtype=torch.float32, device=device)[:, None]
        out = torch.empty((length, *shape, 3), dtype=torch.uint8, device=device)
        for index, frame in enumerate(out):
            frame.copy_(sums[..., index])
        return out

    def _taps(self, position: Tensor, start: int, length: int, stays: bool) -> tuple[Tensor, list[Tensor]]:
        """Which pixels are weighed, and how, at N positions along an axis; `stays`: positions are pixels' centres.

        Returns the first of the pixels (N,) int32, counted in a table whose border begins before pixel `start`, and the
        weights (N,) of it and of each one after it.
        """
        position = position.reshape(-1) - 0.5
        first = position.floor()
        # levels are cut to whole ones, as in Pillow, so a sum of equal levels must not fall short of them
        lift = 1 + 2**-19
        if stays:
            weights = [torch.full(first.shape, lift, dtype=torch.float32, device=first.device)]
        else:
            weights = [w.mul_(lift) for w in _KERNELS[self.interpolation]((position - first).to(torch.float32))]
        before = (len(weights) - 1) // 2
        first = first.to(torch.int32) + (_BORDER - start - before)
        return first.clamp_(0, length + 2 * _BORDER - len(weights)), weights


def _pixel_table(frames: Tensor) -> Tensor:
    """((H + 4) (W + 4), 3 T) float32: a row a pixel of frames (T, H, W, 3), with the outermost ones repeated around."""
    length, height, width, _ = frames.shape
    options = {"dtype": torch.float32, "device": frames.device}
    table = torch.empty((height + 2 * _BORDER, width + 2 * _BORDER, 3, length), **options)
    inner = table[_BORDER:-_BORDER, _BORDER:-_BORDER]
    for index, frame in enumerate(frames):
        inner[..., index] = frame
    table[:_BORDER, _BORDER:-_BORDER], table[-_BORDER:, _BORDER:-_BORDER] = inner[:1], inner[-1:]
    table[:, :_BORDER], table[:, -_BORDER:] = table[:, _BORDER, None], table[:, -_BORDER - 1, None]
    return table.view(-1, 3 * length)
