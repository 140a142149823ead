# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT video processor: decode, sample, resize, crop, normalise; one clip or several views of it.

Files are read by `video_decoding`; decoders are imported when the first is, for frames in memory need none.
"""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    PILImageResampling,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType, logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .checkpoint_files import AUTO_MAP, save_source_files, without_source_files
from .configuration_fluxvit import as_token_plan
from .token_selection import as_count
from .video_decoding import decode_unique_frames, sample_frame_indices
from .video_inputs import as_frames, flatten_metadata, flatten_videos, is_decoder, is_source, read_decoder
from .video_transforms import crop_corners, resize, target_size


logger = logging.get_logger(__name__)

DEFAULT_NUM_FRAMES = 12  # the clip FluxViT is trained around; used where neither the call nor the checkpoint says


class FluxViTVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    num_clips (`int`, *optional*, defaults to 1):
        Clips sampled from each video, spread evenly.
    num_crops (`int`, *optional*, defaults to 1):
        Crops taken from each clip along its long side.
    antialias (`bool`, *optional*, defaults to `False`):
        Whether the resize smooths before it shrinks. The official evaluation does not.
    keep_aspect_ratio (`bool`, *optional*, defaults to `False`):
        No crop: the whole picture, short side `size["shortest_edge"]`, both sides rounded to whole patches.
    patch_size (`int`, *optional*, defaults to 14):
        Pixels of a patch of the model, used by `keep_aspect_ratio`.
    num_threads (`int`, *optional*, defaults to 0):
        Decoding threads; 0 lets the decoder choose, and means 1 inside a DataLoader worker.
    backend (`str`, *optional*, defaults to `"pyav"`):
        The decoder of files: "pyav", or "decord", which reads the same frames of some files and refuses the others.
    token_budget (`int`, *optional*):
        Tokens that the model will encode of each view. Where `token_plan` has an entry for it, that entry is the clip,
        unless `num_frames`, `fps`, `size` or `crop_size` is given, or `do_sample_frames` is `False`.
    token_plan (`dict[int, list[int]]`, *optional*):
        Budget -> [num_frames, size] found best for it on a validation split.
    """

    num_clips: int | None
    num_crops: int | None
    antialias: bool | None
    keep_aspect_ratio: bool | None
    patch_size: int | None
    num_threads: int | None
    backend: str | None
    token_budget: int | None
    token_plan: dict | None


class FluxViTVideoProcessor(BaseVideoProcessor):
    """Videos in, `pixel_values_videos` (B*V, T, 3, H, W) float32 out; V = `num_clips` x `num_crops` views of a video.
    Where views differ in shape it is a list of them, each (T, 3, H, W), which the models take too.

    A video is a path, a URL, bytes or a binary file object (decoded, and sampled by default); or frames: (T, H, W, C)
    or (T, C, H, W) numpy or torch, a list of PIL images or of frame arrays. Lists of these, mixed, are a batch. Views
    of a video follow each other, clips outer, crops inner.

    Frames in memory are sampled only where the call gives `num_frames` or `fps`, or `do_sample_frames=True`. A video
    shorter than the clip repeats frames; only frames in memory given to a processor whose own `do_sample_frames` is
    True must be enough, as transformers asks of such a processor. Integer frames are 0 to 255; float frames are 0 to
    255 too, or 0 to 1 (told by their largest value), which `do_rescale` then leaves alone.

    `size` R or `{"shortest_edge": R}` resizes the short side to R and sets a square crop of R (in a call of a processor
    that resizes further than it crops, a short side greater in the same proportion); `{"height", "width"}` resizes to
    exactly that; `crop_size` overrides the crop.

    `token_budget` asks for the clip that a checkpoint's `token_plan` holds for that budget, and counts as giving
    `num_frames` and `size`; without a plan, or for a budget not in it, the clip is the default one. It changes nothing
    else: the model must be given the budget too.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = None  # None: files yes, frames in memory only if the call says how many
    num_frames = None  # None: DEFAULT_NUM_FRAMES; a checkpoint may set it
    num_clips = 1
    num_crops = 1
    antialias = False
    keep_aspect_ratio = False
    patch_size = 14
    num_threads = 0
    backend = "pyav"
    token_budget = None
    token_plan = None
    valid_kwargs = FluxViTVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs: Unpack[FluxViTVideoProcessorKwargs]):
        super().__init__(**_with_matching_crop(_with_checked_values(kwargs)))

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        if kwargs.get("size") is not None and kwargs.get("crop_size") is None:
            # a size given at load must not meet the crop saved for another size
            video_processor_dict = {k: v for k, v in video_processor_dict.items() if k != "crop_size"}
        return super().from_dict(video_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Saves the settings with the code that loads them: a checkpoint folder works without this package."""
        if not os.path.isfile(save_directory):  # the library says what is wrong with a file
            save_source_files(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        return without_source_files(super()._get_files_timestamps(working_dir))

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        num_clips: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """Which frames of a video to take, by the rule of `sample_frame_indices`.

        Args:
            metadata: of the whole video; `fps` sampling needs its `fps`.
            num_frames: T, frames of a clip.
            fps: frames of a clip per second of video, in place of `num_frames`; overrides a default `num_frames`.
            num_clips: S, clips.

        Returns:
            (S * T,) int64, clip after clip.

        Raises:
            ValueError: both `num_frames` and `fps`, a value out of range, or `fps` for a video of unknown rate.
        """
        if num_frames is not None and fps is not None:
            raise ValueError(f"`num_frames` and `fps` exclude each other, got {num_frames} and {fps}")
        if num_frames is None and fps is None:
            fps, num_frames = self.fps, self.num_frames
        if fps is not None:
            if fps <= 0:
                raise ValueError(f"`fps` must be above 0, got {fps}")
            if not metadata.fps:
                raise ValueError(f"sampling {fps} frames a second needs the rate of the video: pass `video_metadata`")
            # the small term keeps 6.0 frames from becoming 5 by rounding
            num_frames = max(1, int(metadata.total_num_frames * fps / metadata.fps + 1e-6))
        elif num_frames is None:
            num_frames = DEFAULT_NUM_FRAMES
        num_clips = self.num_clips if num_clips is None else num_clips
        return sample_frame_indices(metadata.total_num_frames, num_frames, num_clips).reshape(-1)

    def preprocess(self, videos: Any, **kwargs: Unpack[FluxViTVideoProcessorKwargs]) -> BatchFeature:
        """Turns one video, or a list of videos, into model input.

        Args:
            videos: see the class.
            kwargs: any attribute of the processor, for this call; `device` to work on; `return_tensors`;
                `video_metadata`, one entry a video, for `fps` sampling of frames in memory; `return_metadata`.

        Returns:
            BatchFeature with `pixel_values_videos`: (B*V, T, 3, H, W), or the list of its B*V rows without
            `return_tensors` and where their shapes differ; and with `return_metadata` also `video_metadata`, one entry
            a video.

        Raises:
            VideoDecodeError: a file that cannot be decoded.
            ValueError: a value out of range, or views of different shapes with `return_tensors` other than "pt".
        """
        options = self._call_options(kwargs)
        sources = flatten_videos(videos)
        given_metadata = flatten_metadata(options["video_metadata"], len(sources))
        views, metadata = [], []
        for source, known in zip(sources, given_metadata, strict=True):
            frames, positions, about = self._load(source, known, options)
            views.extend(self._views(frames, positions, options))
            metadata.append(about)
        return_tensors = options["return_tensors"]
        if return_tensors is not None:
            shapes = sorted({tuple(view.shape) for view in views})
            if len(shapes) == 1:
                views = torch.stack(views)
            elif return_tensors == TensorType.PYTORCH:
                return_tensors = None  # a list of tensors, which the models take
            else:
                raise ValueError(
                    f"views of different shapes {shapes} cannot be one array: ask for `return_tensors='pt'`, which "
                    "gives a list, crop them to one size, or sample the same number of frames from each"
                )
        data = BatchFeature(data={"pixel_values_videos": views}, tensor_type=return_tensors)
        if options["return_metadata"]:
            data["video_metadata"] = metadata
        return data

    def _call_options(self, call: dict[str, Any]) -> dict[str, Any]:
        """The settings of one call: what it gives, then the processor's own; sizes as dicts."""
        call = _with_checked_values(call)
        if call.get("num_frames") is not None and call.get("fps") is not None:
            raise ValueError(f"`num_frames` and `fps` exclude each other, got {call['num_frames']} and {call['fps']}")
        validate_typed_dict(self.valid_kwargs, call)
        given = self._with_planned_clip({name: value for name, value in call.items() if value is not None})
        sampling_given = "num_frames" in given or "fps" in given
        given = _with_matching_crop(self._with_own_margin(given))
        options = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        options.update(return_tensors=None, video_metadata=None)
        if sampling_given:
            options.update(num_frames=None, fps=None)  # what the call says beats either default
        options.update(given)
        options["sampling_given"] = sampling_given
        options["may_repeat"] = self.do_sample_frames is not True or "do_sample_frames" in given
        if options["keep_aspect_ratio"] and options["num_crops"] != 1:
            raise ValueError(f"`keep_aspect_ratio` leaves nothing to crop, got `num_crops`={options['num_crops']}")
        if options["num_crops"] != 1 and not options["do_center_crop"]:
            raise ValueError(f"`num_crops`={options['num_crops']} needs `do_center_crop`")
        return options

    def _with_planned_clip(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a call gives, and the planned clip for its budget where it says nothing of the clip itself."""
        says_clip = any(name in given for name in ("num_frames", "fps", "size", "crop_size"))
        if says_clip or given.get("do_sample_frames", self.do_sample_frames) is False:
            return given
        plan = given.get("token_plan", self.token_plan) or {}
        clip = plan.get(given.get("token_budget", self.token_budget))
        return given if clip is None else {**given, "num_frames": clip[0], "size": clip[1]}

    def with_margin(self, crop: int) -> dict[str, int]:
        """The size for a square crop: its short side exceeds the crop as much as the processor's own exceeds its own.

        Encoders that resize to 256 and crop 224 look at the same part of the picture whatever the crop's side.
        """
        edge, own = self.size.get("shortest_edge"), dict(self.crop_size)
        if not edge or own["height"] != own["width"]:
            return {"shortest_edge": crop}
        return {"shortest_edge": round(crop * edge / own["height"])}

    def _with_own_margin(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a call gives, and a crop where it gives a size alone."""
        crops = given.get("do_center_crop", self.do_center_crop)
        if "size" not in given or "crop_size" in given or not crops or given.get("keep_aspect_ratio"):
            return given
        side = _size_dict("size", given["size"]).get("shortest_edge")
        if side is None:
            return given
        return {**given, "size": self.with_margin(side), "crop_size": {"height": side, "width": side}}

    def _load(self, source: Any, known: VideoMetadata | None, options: dict[str, Any]):
        """Frames (U, C, H, W) of one video on the device, each once; (num_clips, T) positions in them; metadata."""
        sampling = options["do_sample_frames"]
        num_clips = options["num_clips"]

        def sampler(metadata: VideoMetadata) -> np.ndarray:
            return self.sample_frames(
                metadata, num_frames=options["num_frames"], fps=options["fps"], num_clips=num_clips
            )

        if is_decoder(source):
            whole = sampling is False
            frames, positions, about = read_decoder(source, None if whole else sampler)
        elif is_source(source):
            whole = sampling is False
            frames, positions, about = decode_unique_frames(
                source, None if whole else sampler, options["num_threads"], options["backend"]
            )
            frames = frames.permute(0, 3, 1, 2)
        else:
            whole = sampling is False or (sampling is None and not options["sampling_given"])
            frames = as_frames(source, options["input_data_format"])
            about = known or VideoMetadata(total_num_frames=len(frames))
            about.height, about.width = frames.shape[-2:]
            chosen = np.arange(len(frames)) if whole else sampler(replace(about, total_num_frames=len(frames)))
            if not options["may_repeat"] and len(chosen) > len(frames) * num_clips:
                raise ValueError(
                    f"{len(chosen) // num_clips} frames asked for, but the video has {len(frames)}: ask for fewer, or "
                    "pass `do_sample_frames=True` to repeat frames"
                )
            about.frames_indices = chosen.tolist()
            kept, positions = np.unique(chosen, return_inverse=True)
            frames = frames if len(kept) == len(frames) else frames[torch.from_numpy(kept)]
        if whole and num_clips > 1:
            raise ValueError(f"`num_clips`={num_clips} needs frames to be sampled: give `num_frames` or `fps`")
        positions = positions.reshape(1 if whole else num_clips, -1)
        return frames.to(options["device"] or frames.device), positions, about

    def _views(self, frames: torch.Tensor, positions: np.ndarray, options: dict[str, Any]) -> list[torch.Tensor]:
        """num_clips x num_crops views (T, C, h, w) from frames (U, C, H, W); each frame is resized once."""
        do_rescale = options["do_rescale"]
        if do_rescale and frames.is_floating_point() and float(frames.max()) <= 1.0:
            logger.warning_once("Float frames within [0, 1] are taken as rescaled already: not divided by 255 again.")
            do_rescale = False
        if options["do_convert_rgb"]:
            frames = self.convert_to_rgb(frames)
        if options["do_resize"]:
            target = target_size(frames.shape[-2:], options)
            if target != tuple(frames.shape[-2:]):
                frames = resize(frames, target, options["resample"], options["antialias"])
        corners = [(0, 0)]
        height, width = frames.shape[-2:]
        if options["do_center_crop"] and not options["keep_aspect_ratio"]:
            crop = options["crop_size"]
            corners = crop_corners((height, width), (crop["height"], crop["width"]), options["num_crops"])
            height, width = crop["height"], crop["width"]
        crops = []
        for top, left in corners:
            crop = frames[:, :, top : top + height, left : left + width]
            crops.append(self._to_values(crop, do_rescale, options))
        return [crop[torch.from_numpy(clip).to(crop.device)] for clip in positions for crop in crops]

    def _to_values(self, frames: torch.Tensor, do_rescale: bool, options: dict[str, Any]) -> torch.Tensor:
        """Rescales and normalises (U, C, h, w) into a new float32 tensor."""
        values = frames.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if do_rescale:
            values.mul_(options["rescale_factor"])
        if options["do_normalize"]:
            mean = torch.as_tensor(options["image_mean"], dtype=torch.float32, device=values.device).view(-1, 1, 1)
            std = torch.as_tensor(options["image_std"], dtype=torch.float32, device=values.device).view(-1, 1, 1)
            values.sub_(mean).div_(std)
        return values


def _size_dict(name: str, size: Any) -> dict[str, int]:
    """{"shortest_edge"} or {"height", "width"} from an int, a (height, width) pair or a dict; raises ValueError."""
    if isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    try:
        size = {key: value for key, value in dict(size).items() if value is not None}
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an int, a (height, width) pair or a dict, got {size!r}") from error
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"`{name}` must have `shortest_edge`, or `height` and `width`, got {size!r}")
    for key, value in size.items():
        as_count(f"{name}[{key!r}]", value)
    return size


def _with_checked_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with their counts as plain ints and a legal token plan; raises ValueError naming what is not."""
    counts = ("num_frames", "num_clips", "num_crops", "patch_size", "token_budget")
    given = {name: settings[name] for name in counts if settings.get(name) is not None}
    settings = {**settings, **{name: as_count(name, value) for name, value in given.items()}}
    if settings.get("token_plan") is not None:
        settings["token_plan"] = as_token_plan(settings["token_plan"])
    return settings


def _with_matching_crop(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with `size` and `crop_size` as dicts, and a crop that follows a size given without one."""
    settings = dict(settings)
    if settings.get("size") is not None:
        size = settings["size"] = _size_dict("size", settings["size"])
        if settings.get("crop_size") is None:
            edge = size.get("shortest_edge")
            settings["crop_size"] = {"height": edge, "width": edge} if edge else dict(size)
    if settings.get("crop_size") is not None:
        crop = _size_dict("crop_size", settings["crop_size"])
        edge = crop.get("shortest_edge")
        settings["crop_size"] = {"height": edge, "width": edge} if edge else crop
    return settings
