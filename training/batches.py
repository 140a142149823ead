# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""From flags to batches of clips, labelled or not: what tasks share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig

from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import (
    AugmentationArguments,
    DataArguments,
    HeldOutArguments,
    SamplingArguments,
    SourceArguments,
    TrainingCommandArguments,
)
from .data.augment import ClipAugment
from .data.augment_config import AUGMENT_PRESETS
from .data.clip_table import are_pictures
from .data.dataset import ClipDataset, collate
from .data.failures import FailureLog
from .data.frame_cache import cache_clips
from .data.reader import Clip
from .data.sampling import SAMPLING_PRESETS, ClipShape, FlexibleSampling, FluxBatchSampler
from .data.streaming import StreamingClips
from .data.targets import TargetEncoder, class_shares
from .engine.loop import Batches


def held_out_source(args: HeldOutArguments) -> SourceArguments:
    """Where validation clips come from: the training set's own source, but for what is said of them."""
    other_set = {"data": args.validation_data, "dataset_name": None} if args.validation_data else {}
    return replace(args, split=args.validation_split, **other_set)


def cached(clips: Sequence[Clip], args: DataArguments, accelerator: Accelerator) -> Sequence[Clip]:
    """The clips with their frames kept on disk, if asked for; all processes share the decoding."""
    if args.frame_cache is None or not clips:
        return clips
    return cache_clips(
        clips,
        args.frame_cache,
        short_side=args.frame_cache_short_side,
        max_frames=args.frame_cache_max_frames,
        num_workers=max(args.dataloader_num_workers, 1),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def clip_shapes(args: SamplingArguments, config: PreTrainedConfig) -> list[ClipShape]:
    """What `--sampling` draws from."""
    if args.sampling == "fixed":
        return [ClipShape(config.num_frames, config.image_height_width[0])]
    if args.sampling in SAMPLING_PRESETS:
        sampling = SAMPLING_PRESETS[args.sampling].in_units_of(config.patch_size, config.tubelet_size)
    else:
        sampling = FlexibleSampling(tuple(args.frames), tuple(args.sizes), tuple(args.token_window))
    return sampling.legal_shapes(config.patch_size, config.tubelet_size)


def picture_shapes(shapes: Sequence[ClipShape], config: PreTrainedConfig) -> list[ClipShape]:
    """Of pictures among videos: their sizes, and as few frames as can be."""
    return [ClipShape(config.tubelet_size, size) for size in sorted({shape.size for shape in shapes})]


def build_augmentation(args: AugmentationArguments, processor: FluxViTVideoProcessor) -> ClipAugment:
    """The clips' augmentation, with the processor's mean and deviation."""
    changes = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    if args.horizontal_flip is not None:
        changes["hflip"] = args.horizontal_flip
    return ClipAugment(replace(AUGMENT_PRESETS[args.augmentation], **changes))


def build_batches(
    args: TrainingCommandArguments,
    config: PreTrainedConfig,
    source: Sequence[Clip] | datasets.IterableDataset,
    targets: TargetEncoder,
    augment: ClipAugment,
    accelerator: Accelerator,
) -> Batches:
    """Batches of listed or streamed clips, with shapes by `--sampling`; `--class_balanced` needs `ClassTargets`."""
    world, per_process = accelerator.num_processes, args.optimization.per_device_train_batch_size
    streamed = isinstance(source, datasets.IterableDataset)
    shapes = clip_shapes(args.sampling, config)
    num_clips = args.data.max_train_samples if streamed else len(source)
    sampler = FluxBatchSampler(
        num_clips,
        per_process,
        shapes,
        args.run.seed,
        accelerator.process_index,
        world,
        same_shape_on_all_ranks=not args.sampling.independent_shapes,
        clip_weights=class_shares(source, targets)[1].numpy() if args.sampling.class_balanced else None,
        pictures=None if streamed else are_pictures(source),
        picture_shapes=picture_shapes(shapes, config),
    )
    samples = {
        "targets": targets,
        "augment": augment.on_worker if args.augmentation.augment_on_device else augment.pictures,
        "seed": args.run.seed,
        "num_sample": args.augmentation.num_sample,
        "sampling_rule": args.sampling.sampling_rule,
    }
    loading = {
        "num_workers": args.data.dataloader_num_workers,
        "persistent_workers": args.data.dataloader_num_workers > 0,
        "pin_memory": accelerator.device.type == "cuda",
        # its own: a loader draws from the global one, which dropout needs to be where it was when resuming
        "generator": torch.Generator(),
    }
    if streamed:
        place = {"rank": accelerator.process_index, "world_size": world}
        place |= {"buffer_size": args.data.shuffle_buffer_size, "split_workers": args.data.split_stream}
        clips = StreamingClips(source, sampler.shape_of, per_process, len(sampler), **samples, **place)
        return Batches(DataLoader(clips, batch_size=None, **loading), clips, len(sampler), num_clips)
    loader = DataLoader(ClipDataset(source, **samples), batch_sampler=sampler, collate_fn=collate, **loading)
    return Batches(loader, sampler, len(sampler), num_clips)


def on_device(batch: dict[str, Any], args: AugmentationArguments, augment: ClipAugment, device: torch.device) -> Tensor:
    """A batch's clips (B, T, 3, S, S) on the device that trains, augmented to the end and normalised."""
    videos = batch["pixel_values_videos"].to(device, non_blocking=True)
    if args.augment_on_device:
        return augment.on_batch(videos, batch["seeds"])
    return augment.finish(videos, batch["erasing"], batch["seeds"])


class KeepsFailures:
    """Of a task: the clips that could not be read are what it resumes with."""

    accelerator: Accelerator
    failures: FailureLog

    def state_dict(self) -> dict[str, Any]:
        """The clips that failed, of all processes (collective)."""
        for failures in gather_object([list(self.failures.failures.items())]):
            self.failures.add(failures)
        return {"failures": self.failures.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.failures.load_state_dict(state["failures"])
