# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What a processor may be given: files, decoders, frames in memory, values of `datasets` sets, however nested."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension
from transformers.video_utils import VideoMetadata

from .video_transforms import picture_levels


PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def is_source(video: Any) -> bool:
    return isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(video, "read")


def is_decoder(video: Any) -> bool:
    """torchcodec's `VideoDecoder`, or what does what it does."""
    return hasattr(video, "get_frames_at") and hasattr(video, "__len__")


def read_decoder(decoder: Any, sampler: Callable[[VideoMetadata], np.ndarray] | None):
    """Frames (U, C, H, W) of an open decoder, each once; the position in them of each index (N,); metadata."""
    about, known = VideoMetadata(total_num_frames=len(decoder)), getattr(decoder, "metadata", None)
    about.fps = getattr(known, "average_fps", None)
    chosen = np.arange(len(decoder)) if sampler is None else sampler(about)
    kept, positions = np.unique(chosen, return_inverse=True)
    frames = as_frames(decoder.get_frames_at(kept.tolist()).data, None)
    about.frames_indices, (about.height, about.width) = chosen.tolist(), frames.shape[-2:]
    return frames, positions, about


def _plain(video: Any) -> Any:
    """What a value of a `datasets` Video column, a batch of torchcodec's frames, or a list of pictures' paths holds."""
    if isinstance(video, Mapping) and {"bytes", "path"} & set(video):
        content = video.get("bytes")
        video = video.get("path") if content is None else content
    elif isinstance(getattr(video, "data", None), torch.Tensor) and not _is_array(video):
        video = video.data
    elif isinstance(video, (list, tuple)) and video and all(map(_is_picture_path, video)):
        video = [PIL.Image.open(path) for path in video]
    return video


def _is_picture_path(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).lower().endswith(PICTURE_SUFFIXES)


def _is_array(video: Any) -> bool:
    return isinstance(video, (np.ndarray, torch.Tensor))


def _is_frame(frame: Any) -> bool:
    return isinstance(frame, PIL.Image.Image) or (_is_array(frame) and frame.ndim in (2, 3))


def is_frame_list(video: Any) -> bool:
    """Whether a list or tuple holds the frames of one video (images or arrays of 2 or 3 dimensions), not videos."""
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(_is_frame(item) for item in video)


def flatten_videos(videos: Any) -> list[Any]:
    """The videos of a batch, however nested: sources, decoders, 4-D arrays, or lists of frames.

    A list of pictures' paths inside another list is one video.
    """
    videos = videos if isinstance(videos, (list, tuple)) else _plain(videos)
    if isinstance(videos, PIL.Image.Image):
        return [[videos]]
    if is_source(videos) or is_decoder(videos):
        return [videos]
    if _is_array(videos):
        if videos.ndim == 5:
            return list(videos)
        if videos.ndim == 4:
            return [videos]
        if videos.ndim == 3:
            return [[videos]]
        raise ValueError(f"frames must be (T, H, W, C), (T, C, H, W), a batch of them or one frame, got {videos.shape}")
    if not isinstance(videos, (list, tuple)):
        raise ValueError(f"a video must be a file, frames or a list of them, got {type(videos).__name__}")
    if len(videos) == 0:
        raise ValueError("no video given: the list is empty")
    if is_frame_list(videos):
        return [videos]
    return [video for item in map(_plain, videos) for video in flatten_videos(item)]


def flatten_metadata(metadata: Any, num_videos: int) -> list[VideoMetadata | None]:
    """One entry a video, copied; None where none was given."""
    if metadata is None:
        return [None] * num_videos

    def flat(item):
        return [entry for part in item for entry in flat(part)] if isinstance(item, (list, tuple)) else [item]

    entries = [None if entry is None else VideoMetadata(**dict(entry)) for entry in flat(metadata)]
    if len(entries) != num_videos:
        raise ValueError(f"`video_metadata` must have one entry a video: got {len(entries)} for {num_videos} videos")
    return entries


def _as_tensor(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Unsigned integers of more than 8 bits, on which torch does little, as signed ones."""
    if isinstance(frames, torch.Tensor):
        return frames.long() if frames.dtype in (torch.uint16, torch.uint32, torch.uint64) else frames
    wide = frames.dtype.kind == "u" and frames.dtype.itemsize > 1
    return torch.from_numpy(np.ascontiguousarray(frames.astype(np.int64) if wide else frames))


def as_frames(video: Any, data_format: str | ChannelDimension | None) -> torch.Tensor:
    """Frames in memory as one (T, C, H, W) tensor; integers as uint8."""
    if isinstance(video, (list, tuple)):
        parts = []
        for frame in video:
            if isinstance(frame, PIL.Image.Image):
                frame = picture_levels(frame, keep_alpha=True)
                data_format = ChannelDimension.LAST
            frame = _as_tensor(frame)
            parts.append(frame[..., None] if frame.ndim == 2 else frame)
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) > 1:
            raise ValueError(f"the frames of a video must have one size, got {shapes}")
        video = torch.stack(parts)
    else:
        video = _as_tensor(video)
    if video.numel() == 0:
        raise ValueError(f"a video without frames or pixels: {tuple(video.shape)}")
    if data_format is None:
        channels = (1, 3, 4)
        if video.shape[1] not in channels and video.shape[-1] not in channels:
            raise ValueError(f"neither dimension 1 nor the last of {tuple(video.shape)} is 1, 3 or 4 colour channels")
        first = video.shape[1] in channels
        data_format = ChannelDimension.FIRST if first else ChannelDimension.LAST
    if ChannelDimension(data_format) == ChannelDimension.LAST:
        video = video.permute(0, 3, 1, 2)
    if not video.is_floating_point() and video.dtype != torch.uint8:
        if video.dtype == torch.bool or int(video.min()) < 0 or int(video.max()) > 255:
            raise ValueError(f"integer frames must lie in 0 to 255, got {video.dtype} up to {video.max()}")
        video = video.to(torch.uint8)
    return video


__all__ = [
    "as_frames",
    "flatten_metadata",
    "flatten_videos",
    "is_decoder",
    "is_frame_list",
    "is_source",
    "read_decoder",
]
