# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of which tokens a model kept."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


FRAMES_PER_ROW = 8
GAP = 4  # white pixels between frames


def visualize_kept_tokens(
    frames: np.ndarray | torch.Tensor,
    keep_indices: Sequence[int] | np.ndarray | torch.Tensor,
    patch_size: int = 14,
    tubelet_size: int = 1,
    columns: int | None = None,
    dropped_opacity: float = 0.25,
) -> Image.Image:
    """Draws a clip with the kept patches in full colour and the dropped ones grey and faded to white.

    ```python
    inputs = processor("clip.mp4", return_tensors="pt")
    keep_indices = model(**inputs, token_budget=256).keep_indices[0]
    pixels = processor("clip.mp4", do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values_videos
    frames = pixels[0].round().to(torch.uint8)  # (T, 3, H, W), cut as the model saw them
    visualize_kept_tokens(frames, keep_indices).save("kept_tokens.png")
    ```

    Args:
        frames: (T, H, W, 3), or (T, 3, H, W), uint8 RGB, as sampled and cropped for the model. For a larger picture,
            sides and `patch_size` may both be n times the model's.
        keep_indices: (K,) positions in the flattened (T / tubelet_size, H / patch_size, W / patch_size) grid: a row of
            the model's `keep_indices`; (1, K) is taken too.
        patch_size: Side of a patch in pixels of `frames`.
        tubelet_size: Frames in a patch.
        columns: Frames in a row of the picture; all of them up to 8 if not given.
        dropped_opacity: From 0 (dropped patches are white) to 1 (grey, not faded).

    Returns:
        RGB image of the frames in reading order.

    Raises:
        ValueError: frames of another type or shape, sides that are not whole patches, indices outside the grid, or an
            argument out of range.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    faded = fade_dropped_tokens(frames, keep_indices, patch_size, tubelet_size, dropped_opacity)
    return tile_frames(faded, columns or min(len(faded), FRAMES_PER_ROW))


def fade_dropped_tokens(
    frames: np.ndarray | torch.Tensor,
    keep_indices: Sequence[int] | np.ndarray | torch.Tensor,
    patch_size: int = 14,
    tubelet_size: int = 1,
    dropped_opacity: float = 0.25,
) -> np.ndarray:
    """The frames of `visualize_kept_tokens` one by one, (T, H, W, 3) uint8; arguments and errors as there."""
    for name, value in {"patch_size": patch_size, "tubelet_size": tubelet_size}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= dropped_opacity <= 1:
        raise ValueError(f"dropped_opacity must be from 0 to 1, got {dropped_opacity}")
    frames = _as_channels_last(frames)
    kept = _kept_pixels(frames.shape, keep_indices, patch_size, tubelet_size)
    grey = frames @ np.array([0.299, 0.587, 0.114])  # BT.601 luma
    faded = np.rint(255 + dropped_opacity * (grey - 255)).astype(np.uint8)
    return np.where(kept[..., None], frames, faded[..., None])


def _as_channels_last(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    """(T, H, W, 3) uint8 array from either layout; channels last wins where both fit."""
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu().numpy()
    frames = np.asarray(frames)
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 pixels, 0 to 255 and not normalised, got {frames.dtype}")
    if frames.ndim != 4 or 0 in frames.shape or 3 not in (frames.shape[1], frames.shape[3]):
        raise ValueError(f"frames must be (T, H, W, 3) or (T, 3, H, W), got shape {frames.shape}")
    return frames if frames.shape[3] == 3 else frames.transpose(0, 2, 3, 1)


def _kept_pixels(
    shape: tuple[int, ...],
    keep_indices: Sequence[int] | np.ndarray | torch.Tensor,
    patch_size: int,
    tubelet_size: int,
) -> np.ndarray:
    """(T, H, W) bool: whether each pixel of a clip of `shape` (T, H, W, 3) lies in a kept patch."""
    num_frames, height, width = shape[:3]
    if height % patch_size or width % patch_size:
        raise ValueError(f"height and width must be multiples of patch_size={patch_size}, got {height}x{width}")
    if num_frames % tubelet_size:
        raise ValueError(f"the number of frames must be a multiple of tubelet_size={tubelet_size}, got {num_frames}")
    if isinstance(keep_indices, torch.Tensor):
        keep_indices = keep_indices.detach().cpu().numpy()
    indices = np.asarray(keep_indices)
    if indices.ndim == 2 and len(indices) == 1:  # the model's output for a batch of one
        indices = indices[0]
    if indices.ndim != 1 or indices.size == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"keep_indices must be the whole numbers (K,) of one clip, got shape {indices.shape} of {indices.dtype}"
        )
    grid = (num_frames // tubelet_size, height // patch_size, width // patch_size)
    num_patches = int(np.prod(grid))
    if indices.min() < 0 or indices.max() >= num_patches:
        raise ValueError(
            f"keep_indices must lie in [0, {num_patches}) for a grid of {grid[0]}x{grid[1]}x{grid[2]} patches, "
            f"got {indices.min()} to {indices.max()}"
        )
    kept = np.zeros(num_patches, bool)
    kept[indices] = True
    kept = kept.reshape(grid)
    for axis, repeats in enumerate((tubelet_size, patch_size, patch_size)):
        kept = kept.repeat(repeats, axis)
    return kept


def tile_frames(frames: np.ndarray, columns: int) -> Image.Image:
    """(T, H, W, 3) frames -> one image, `columns` in a row, a white gap between them."""
    num_frames, height, width = frames.shape[:3]
    columns = min(columns, num_frames)
    rows = -(-num_frames // columns)
    canvas = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        canvas.paste(Image.fromarray(frame), (column * (width + GAP), row * (height + GAP)))
    return canvas


__all__ = ["fade_dropped_tokens", "tile_frames", "visualize_kept_tokens"]
