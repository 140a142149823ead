# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""How frames are brought to the size of a clip: target sizes, the official evaluation's resize, crops."""

from typing import Any

import numpy as np
import PIL.Image
import torch
import torchvision.transforms.v2.functional as tvF
from transformers.image_utils import PILImageResampling, pil_torch_interpolation_mapping


def target_size(frame_size: tuple[int, int], options: dict[str, Any]) -> tuple[int, int]:
    """(height, width) to resize frames of `frame_size` to."""
    height, width = frame_size
    size = {key: value for key, value in dict(options["size"]).items() if value is not None}
    if "height" in size:
        target = (size["height"], size["width"])
    else:
        edge = size["shortest_edge"]
        if options["keep_aspect_ratio"]:
            target = (height * edge / min(height, width), width * edge / min(height, width))
        elif height <= width:
            target = (edge, width * edge // height)
        else:
            target = (height * edge // width, edge)
    if options["keep_aspect_ratio"]:
        patch = options["patch_size"]
        target = tuple(max(patch, round(side / patch) * patch) for side in target)
    return target


def resize(frames: torch.Tensor, size: tuple[int, int], resample: Any, antialias: bool) -> torch.Tensor:
    """Frames (T, C, H, W) at `size` (height, width)."""
    resample = PILImageResampling(resample)
    if resample == PILImageResampling.BILINEAR and not antialias and frames.dtype == torch.uint8:
        return _resize_as_opencv(frames, size)
    mode = pil_torch_interpolation_mapping[resample]
    return tvF.resize(frames, list(size), interpolation=mode, antialias=antialias)


def _resize_as_opencv(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`cv2.resize(..., INTER_LINEAR)` of uint8 frames (T, C, H, W), bit for bit: the official evaluation's resize.

    OpenCV weighs with 11-bit integers, rows after columns, and drops 4 and 16 bits on the way; torch's own kernels
    differ from it by one level in a fifth of the pixels. Frame by frame, with the channels last, which is how decoders
    leave them: rows are then copied whole, and the work stays in the cache.
    """
    frames = frames.movedim(1, -1).contiguous()
    length, height, width, channels = frames.shape
    device = frames.device
    left, right, *column_weights = _linear_taps(width, size[1], device, zero_outside=True)
    upper, lower, upper_weight, lower_weight = _linear_taps(height, size[0], device)
    offsets = torch.arange(channels, device=device)
    left, right = ((taps[:, None] * channels + offsets).reshape(-1) for taps in (left, right))
    left_weight, right_weight = (weight.repeat_interleave(channels) for weight in column_weights)
    out = torch.empty((length, *size, channels), dtype=torch.uint8, device=device)
    for source, target in zip(frames.view(length, height, width * channels), out, strict=True):
        total = 2
        for rows, weight in ((upper, upper_weight), (lower, lower_weight)):
            picked = source.index_select(0, rows)
            line = picked[:, left].to(torch.int32).mul_(left_weight)
            line.add_(picked[:, right].to(torch.int32).mul_(right_weight)).bitwise_right_shift_(4)
            total = line.mul_(weight[:, None]).bitwise_right_shift_(16).add_(total)
        target.copy_(total.bitwise_right_shift_(2).view(target.shape))
    return out.movedim(-1, 1)


def _linear_taps(length: int, new_length: int, device: torch.device, zero_outside: bool = False) -> tuple:
    """For each new position the two old ones it lies between, and their weights in 1/2048."""
    scale = 1.0 / (new_length / length)  # OpenCV divides twice, and it shows in the last bit
    position = ((torch.arange(new_length, dtype=torch.float64) + 0.5) * scale - 0.5).to(torch.float32)
    first = position.floor()
    fraction = position - first
    if zero_outside:  # columns: a position beyond the border takes the border pixel whole
        fraction[(first < 0) | (first >= length - 1)] = 0
    weights = ((1 - fraction) * 2048).round().to(torch.int32), (fraction * 2048).round().to(torch.int32)
    taps = first.long().clamp(0, length - 1), (first.long() + 1).clamp(0, length - 1)
    return tuple(tensor.to(device) for tensor in taps + weights)


def picture_levels(picture: PIL.Image.Image, keep_alpha: bool = False) -> np.ndarray:
    """A picture's levels (H, W, 3) uint8; with `keep_alpha` (H, W, 4) where it has transparency.

    16-bit ones are scaled to 8, as FFmpeg does.

    Raises:
        ValueError: a mode whose range of levels is not known (32-bit integers, floats).
    """
    if picture.mode.startswith("I;16"):
        levels = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise ValueError(f"pictures must have 8 or 16 bits a channel, got mode {picture.mode!r}")
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    return np.array(picture.convert("RGBA" if keep_alpha and has_alpha else "RGB"))


def crop_corners(frame_size: tuple[int, int], crop_size: tuple[int, int], num_crops: int) -> list[tuple[int, int]]:
    """(top, left) of `num_crops` crops spread along the long side, the first and last at its ends; one: the centre."""
    (height, width), (crop_height, crop_width) = frame_size, crop_size
    spare_rows, spare_columns = height - crop_height, width - crop_width
    if spare_rows < 0 or spare_columns < 0:
        raise ValueError(f"frames of {height}x{width} are smaller than the crop of {crop_height}x{crop_width}")
    if num_crops == 1:
        return [(spare_rows // 2, spare_columns // 2)]
    steps = range(num_crops)
    if height > width:
        return [(j * spare_rows // (num_crops - 1), spare_columns // 2) for j in steps]
    return [(spare_rows // 2, j * spare_columns // (num_crops - 1)) for j in steps]


__all__ = ["crop_corners", "picture_levels", "resize", "target_size"]
