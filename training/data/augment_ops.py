# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""How RandAugment's operations are applied to the part of a clip that is kept, several of them in one pass."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from .augment_config import AugmentConfig


_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_STATISTICAL = ("AutoContrast", "Equalize", "Contrast")


@dataclass(frozen=True)
class Region:
    """A box of pixels of the frame."""

    top: int
    left: int
    height: int
    width: int

    def slices(self, within: "Region | None" = None) -> tuple[slice, slice]:
        """Rows and columns of this region in the frame, or in a tensor that holds `within`."""
        top, left = (self.top - within.top, self.left - within.left) if within else (self.top, self.left)
        return slice(top, top + self.height), slice(left, left + self.width)

    def grown(self, pixels: int, size: tuple[int, int]) -> "Region":
        """With so many more pixels on each side, as far as a frame of `size` (height, width) has them."""
        top, left = max(self.top - pixels, 0), max(self.left - pixels, 0)
        bottom, right = min(self.top + self.height + pixels, size[0]), min(self.left + self.width + pixels, size[1])
        return Region(top, left, bottom - top, right - left)


@dataclass(frozen=True)
class Op:
    """One operation of RandAugment with its parameter: a factor, a level, an angle or a length, by `name`."""

    name: str
    value: float = 0.0


def apply_ops(frames: Tensor, ops: list[Op], box: Region, config: AugmentConfig) -> Tensor:
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


def _steps(ops: list[Op], size: tuple[int, int], config: AugmentConfig) -> list:
    """Groups of operations that are applied as one; each has `reads` (the region it needs) and `apply`."""
    steps: list = []
    for op in ops:
        if op.name in _GEOMETRIC:
            steps.append(_Warp(_matrix(op, size), config.fill))
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

    ops: tuple[Op, ...]

    def reads(self, target: Region, size: tuple[int, int]) -> Region:
        return Region(0, 0, *size) if any(op.name in _STATISTICAL for op in self.ops) else target

    def apply(self, frames: Tensor, source: Region, target: Region, size: tuple[int, int]) -> Tensor:
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


def _level_table(op: Op, levels: Tensor) -> Tensor:
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


def _statistical_table(op: Op, levels: Tensor, counts: Tensor) -> Tensor:
    """(T, 3, 256), or (T, 1, 256) for all channels: new levels by operations that look at histograms (T, 3, 256)."""
    if op.name == "Contrast":
        means = (counts * levels).sum(-1).double() / counts.sum(-1)
        grey = (means * _told_to(counts.device, _LUMA)).sum(-1) / 65536
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
    offsets = torch.arange(0, length * 768, 256, device=frames.device).view(length, 1, 1, 3)
    places = (frames + offsets).view(-1)
    counts = torch.zeros(length * 768, dtype=torch.int64, device=frames.device)  # bincount would look for the largest
    return counts.scatter_add_(0, places, torch.ones_like(places)).view(length, 3, 256)


def _told_to(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Numbers as int64 on a device, which is not waited for."""
    return torch.tensor(numbers).to(device, non_blocking=True)


@dataclass(frozen=True)
class _Color:
    """Between the grey picture (factor 0) and the picture (1), or beyond."""

    factor: float

    def reads(self, target: Region, size: tuple[int, int]) -> Region:
        return target

    def apply(self, frames: Tensor, source: Region, target: Region, size: tuple[int, int]) -> Tensor:
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

    def reads(self, target: Region, size: tuple[int, int]) -> Region:
        return target.grown(1, size)

    def apply(self, frames: Tensor, source: Region, target: Region, size: tuple[int, int]) -> Tensor:
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


def _matrix(op: Op, size: tuple[int, int]) -> tuple[float, ...]:
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


def _bicubic(distance: Tensor) -> list[Tensor]:
    """Weights of the pixels around a position by its distance (0 to 1) from the one before it, as Pillow's bicubic:
    the slope at a pixel is the difference of its neighbours.
    """
    square = distance * distance
    cube = square * distance
    return [2 * square - cube - distance, cube - 2 * square + 1, distance + square - cube, cube - square]


_BORDER = 2  # pixels repeated around the table, so that every pixel of the frame has the neighbours the kernel asks for


@dataclass(frozen=True)
class _Warp:
    """An affine map, as `_matrix` describes it, of all frames at once.

    Each pixel is a table row with the values of all frames and channels, so each new pixel is a weighted sum of rows,
    the same for all of them: an embedding bag.
    """

    matrix: tuple[float, ...]
    fill: tuple[int, int, int]

    def reads(self, target: Region, size: tuple[int, int]) -> Region:
        ends = []
        for rows in (target.top, target.top + target.height):
            for columns in (target.left, target.left + target.width):
                ends.append(self._look(columns, rows))
        (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*ends, strict=True))
        # what lies beyond the frame is filled, but one pixel must be there to be pointed at
        top, left = (min(max(math.floor(v), 0), side - 1) for v, side in zip((top, left), size, strict=True))
        bottom, right = max(math.ceil(bottom), top + 1), max(math.ceil(right), left + 1)
        region = Region(top, left, min(bottom, size[0]) - top, min(right, size[1]) - left)
        return region.grown(2, size)

    def _look(self, x, y):
        """Where pixels at columns `x` and rows `y` look; an axis that does not depend on the other keeps its shape."""
        a, b, c, d, e, f = self.matrix
        return (a * x + b * y if b else a * x) + c, (d * x + e * y if d else e * y) + f

    def apply(self, frames: Tensor, source: Region, target: Region, size: tuple[int, int]) -> Tensor:
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
        places = (rows * stride + columns)[:, None] + _told_to(device, steps).to(torch.int32)
        sums = F.embedding_bag(places, _pixel_table(frames), mode="sum", per_sample_weights=weights)
        sums = sums.clamp_(0, 255).view(*shape, 3, length)
        if device.type == "cpu":
            sums[outside] = torch.tensor(self.fill, dtype=torch.float32)[:, None]
        else:  # a GPU would be asked how many there are
            for channel, level in enumerate(self.fill):
                sums[..., channel, :].masked_fill_(outside[..., None], level)
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
            weights = [w.mul_(lift) for w in _bicubic((position - first).to(torch.float32))]
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
