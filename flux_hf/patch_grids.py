# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips as grids of patches: what may be cut into them, where they are, which of them are kept.

Shape letters: B batch, T frames, T' = T / tubelet_size, L patches a frame, N = T' * L, D width, K kept tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_clip(pixel_values_videos: Tensor, num_channels: int, tubelet_size: int, patch_size: int) -> None:
    """Raises ValueError for no tensor, another rank or channel count than (B, T, C, H, W), or not whole patches."""
    if not isinstance(pixel_values_videos, Tensor):
        found = type(pixel_values_videos).__name__
        raise ValueError(
            f"pixel_values_videos must be a tensor (batch, frames, channels, height, width), got a {found}"
        )
    shape = tuple(pixel_values_videos.shape)
    if len(shape) != 5:
        raise ValueError(f"pixel_values_videos must be (batch, frames, channels, height, width), got shape {shape}")
    _, frames, channels, height, width = shape
    if channels != num_channels:
        raise ValueError(f"pixel_values_videos must have {num_channels} channels at dim 2, got shape {shape}")
    if frames == 0 or frames % tubelet_size:
        raise ValueError(f"the number of frames must be a multiple of {tubelet_size}, got {frames}")
    if height == 0 or width == 0 or height % patch_size or width % patch_size:
        raise ValueError(f"height and width must be multiples of {patch_size}, got {height}x{width}")


def group_by_shape(clips: Sequence[Tensor]) -> list[dict[int, Tensor]]:
    """The clips of a list, those of one shape together.

    Args:
        clips: (T, C, H, W) each, or (V, T, C, H, W), V views of one.

    Returns:
        For each shape its clips by their place in the list, each (V, T, C, H, W).

    Raises:
        ValueError: an empty list, or an entry of another kind or rank.
    """
    if not clips:
        raise ValueError("pixel_values_videos must hold at least one clip, got an empty list")
    groups: dict[tuple[int, ...], dict[int, Tensor]] = {}
    for index, clip in enumerate(clips):
        if not isinstance(clip, Tensor) or clip.ndim not in (4, 5):
            found = f"shape {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
            raise ValueError(
                "a clip of a list must be (frames, channels, height, width), or (views, frames, channels, height, "
                f"width), got {found} for clip {index}"
            )
        views = clip if clip.ndim == 5 else clip[None]
        groups.setdefault(tuple(views.shape[1:]), {})[index] = views
    return list(groups.values())


def join_groups(of_groups: Sequence[Tensor], groups: Sequence[dict[int, Tensor]]) -> Tensor:
    """What was made of each group, (its views, or 1 for them all, ...) -> (all views, ...) in the order of the list."""
    by_clip: dict[int, Tensor] = {}
    for made, group in zip(of_groups, groups, strict=True):
        views = [len(clip) for clip in group.values()]
        by_clip |= zip(group, made.expand(sum(views), *made.shape[1:]).split(views), strict=True)
    return torch.cat([by_clip[index] for index in range(len(by_clip))])


def check_keep_indices(keep_indices: Tensor, batch: int, num_patches: int) -> None:
    """Raises ValueError unless `keep_indices` is (batch, 1 to num_patches) of integers in [0, num_patches)."""
    if not isinstance(keep_indices, Tensor) or keep_indices.dtype not in (torch.int64, torch.int32):
        kind = keep_indices.dtype if isinstance(keep_indices, Tensor) else type(keep_indices).__name__
        raise ValueError(f"keep_indices must be a tensor of int64 indices, got {kind}")
    if keep_indices.ndim != 2 or keep_indices.shape[0] != batch or not 1 <= keep_indices.shape[1] <= num_patches:
        raise ValueError(
            f"keep_indices must be (batch={batch}, kept tokens between 1 and {num_patches}), "
            f"got shape {tuple(keep_indices.shape)}"
        )
    # a GPU would stall, and a fake tensor has no values
    can_look = keep_indices.device.type == "cpu" and type(keep_indices) is Tensor
    can_look = can_look and not torch.compiler.is_compiling()
    if can_look and (keep_indices.min() < 0 or keep_indices.max() >= num_patches):
        raise ValueError(
            f"keep_indices must lie in [0, {num_patches}), got {keep_indices.min()} to {keep_indices.max()}"
        )


def resize_position_table(table: Tensor, trained: Sequence[int], grid: Sequence[int]) -> Tensor:
    """A position table for another grid: linear in time, then bicubic in space, each only where the size differs.

    In float32 whatever the table's dtype: bicubic has no half-precision kernel everywhere.

    Args:
        table: (T0 * h0 * w0, D), raster order.
        trained: (T0, h0, w0).
        grid: (frames, rows, columns) wanted, another one.

    Returns:
        (frames * rows * columns, D) float32.
    """
    (trained_frames, trained_rows, trained_columns), (frames, rows, columns) = trained, grid
    table = table.float()
    if frames != trained_frames:
        series = table.reshape(trained_frames, -1).t()[None]  # (1, h0 * w0 * D, T0)
        series = nn.functional.interpolate(series, size=frames, mode="linear", align_corners=False)
        table = series[0].t()
    images = table.reshape(frames, trained_rows, trained_columns, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (trained_rows, trained_columns):
        images = nn.functional.interpolate(images, size=(rows, columns), mode="bicubic", align_corners=False)
    return images.permute(0, 2, 3, 1).reshape(frames * rows * columns, -1)


def place_patches(patches: Tensor, positions: Tensor | None, keep_indices: Tensor, in_order: bool) -> Tensor:
    """The kept patches with their positions added.

    Args:
        patches: (B, N, D).
        positions: (1, N, D), or None where nothing is added.
        keep_indices: (B, K).
        in_order: Whether the indices rise, so that N of them are all patches as they lie.

    Returns:
        (B, K, D).
    """
    if in_order and keep_indices.shape[1] == patches.shape[1]:
        return patches if positions is None else patches + positions
    kept = patches.gather(1, keep_indices[..., None].expand(-1, -1, patches.shape[2]))
    return kept if positions is None else kept + positions[0][keep_indices]


def scatter_to_grid(
    features: Tensor, keep_indices: Tensor, grid: Sequence[int], fill: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Features of kept patches, back at their places in the clip: for tasks that want a dense volume.

    Args:
        features: (B, K, D) of the kept patches, without class tokens: `last_hidden_state[:, 1:]` of FluxViT.
        keep_indices: (B, K), the patches that these are, of the model's output.
        grid: (T', h, w) of the clip: frames by tubelet, height and width by patch.
        fill: What stands where no patch was kept.

    Returns:
        (B, T', h, w, D), and (B, T', h, w) bool: where a patch was kept.

    Raises:
        ValueError: features and indices of other numbers, or indices outside the grid.
    """
    if features.ndim != 3 or features.shape[:2] != keep_indices.shape:
        shapes = f"{tuple(features.shape)} and {tuple(keep_indices.shape)}"
        raise ValueError(f"features must be (batch, kept patches, width) and keep_indices alike, got {shapes}")
    batch, _, width = features.shape
    frames, rows, columns = grid
    check_keep_indices(keep_indices, batch, frames * rows * columns)
    places = keep_indices.long()
    volume = features.new_full((batch, frames * rows * columns, width), fill)
    volume = volume.scatter(1, places[..., None].expand(-1, -1, width), features)
    kept = torch.zeros(volume.shape[:2], dtype=torch.bool, device=features.device).scatter(1, places, True)
    return volume.unflatten(1, (frames, rows, columns)), kept.unflatten(1, (frames, rows, columns))


__all__ = [
    "check_clip",
    "check_keep_indices",
    "group_by_shape",
    "join_groups",
    "place_patches",
    "resize_position_table",
    "scatter_to_grid",
]
