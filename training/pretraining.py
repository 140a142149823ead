# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Pretraining as a task of the training engine: unlabelled clips in, a frozen teacher's features learnt at budgets."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoImageProcessor

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.loading import ENCODERS, is_plain, load_encoder, load_processor
from flux_hf.modeling_fluxvit_pretraining import FluxViTForPreTraining
from flux_hf.protocol import check_exact_budgets
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import DataArguments, TrainedModelArguments
from .batches import KeepsFailures, build_augmentation, build_batches, cached, held_out_source, on_device
from .data.augment import ClipAugment
from .data.augment_config import AugmentConfig
from .data.dataset import ClipDataset, collate
from .data.failures import FailureLog
from .data.reader import Clip
from .data.sampling import ClipRequest
from .data.sources import open_stream, spread
from .data.targets import NoTargets
from .digests import clips_digest, weights_digest
from .distillation import FluxUMT
from .engine.loop import Batches
from .engine.optim import count_parameters
from .feature_cache import FeatureCache, RepeatedEpochs, names_of
from .inference.command import list_clips
from .model import build_processor
from .pretrain_arguments import DistillationArguments, PretrainArguments, TeacherArguments
from .teachers import ImageTeacher, Teacher, TeacherFeatures, VideoTeacher, load_image_encoder, spread_layers


logger = get_logger(__name__)


# Models --------------------------------------------------------------------------------------------------------------


def load_teacher(args: TeacherArguments, aligned_layers: int) -> tuple[Teacher, Any]:
    """The frozen teacher and its processor, which has `image_mean` and `image_std`.

    FluxViT, InternVideo2, Flux around another encoder, a plain VideoMAE, V-JEPA 2 or ViViT; every other kind is taken
    for an image encoder.

    Raises:
        ValueError: layers that it does not have, or a model without patches, or that selects by a threshold.
    """
    config, dtype = AutoConfig.from_pretrained(args.teacher), {"dtype": getattr(torch, args.teacher_dtype)}
    if config.model_type in ENCODERS or is_plain(config):
        kind, model = VideoTeacher, load_encoder(args.teacher, **dtype)
        check_exact_budgets(model, "a teacher")
    else:
        kind, model = ImageTeacher, load_image_encoder(args.teacher, **dtype)
    layers = args.teacher_layers
    if layers is None:
        layers = spread_layers(model.config.num_hidden_layers, aligned_layers, args.teacher_layer_interval)
    if args.teacher_compile:
        if kind is ImageTeacher:
            model.compile()
        else:
            model.compile_layers()
    if kind is ImageTeacher:
        processor = AutoImageProcessor.from_pretrained(args.teacher)
    else:
        processor = load_processor(args.teacher, model.config)
    return kind(model, layers, args.teacher_tokens), processor


def build_student(
    args: TrainedModelArguments, teacher: Teacher, wanted: DistillationArguments
) -> tuple[FluxViTForPreTraining, FluxViTVideoProcessor]:
    """The student, new or from a checkpoint (whose decoders are new where they fit another teacher), and its processor.

    It pools by one projector, a checkpoint's of the largest budget, whatever its config says: every parameter gets a
    gradient at every step then.

    Raises:
        ValueError: another kind of model than FluxViT, one that selects by a threshold, or clips that are not square.
    """
    if args.model_name_or_path:
        given = AutoConfig.from_pretrained(args.model_name_or_path, **args.hub_options()).to_dict()
    else:
        given = json.loads(Path(args.config_name).read_text(encoding="utf-8"))
    kind = given.pop("model_type", FluxViTConfig.model_type)
    if kind != FluxViTConfig.model_type:
        raise ValueError(f"the student must be a {FluxViTConfig.model_type}, got {kind}")
    depth, budget = given.get("num_hidden_layers", FluxViTConfig().num_hidden_layers), max(wanted.student_budgets)
    changes = {"num_frames": args.num_frames, "image_size": args.size, "drop_path_rate": args.drop_path_rate}
    changes = {name: value for name, value in changes.items() if value is not None}
    changes |= {
        "token_budgets": [budget],
        "token_budget": budget,
        **{"token_plan": None, "auto_budgets": None},  # found for other weights
        "alignment_layers": spread_layers(depth, wanted.aligned_layers, 1),
        "teacher_hidden_size": teacher.hidden_size,
        "teacher_projection_dim": teacher.projection_dim,
    }
    config = FluxViTConfig(**{**given, **changes})
    processor = build_processor(args, config)
    if args.model_name_or_path:
        # Float32 whatever the checkpoint's dtype: in bfloat16 most steps are too small to change a weight.
        options = {**args.hub_options(), **args.model_options(), "dtype": torch.float32}
        model = FluxViTForPreTraining.from_pretrained(
            args.model_name_or_path, config=config, ignore_mismatched_sizes=True, **options
        )
    else:
        model = FluxViTForPreTraining._from_config(config, **args.model_options())
    check_exact_budgets(model, "training")
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.torch_compile:
        model.compile_layers()
    return model, processor


def build_objective(args: PretrainArguments, model: FluxViTForPreTraining, teacher: Teacher) -> FluxUMT:
    """Raises ValueError where student and teacher do not fit, or weights."""
    wanted, ours, theirs = args.distillation, model.config.alignment_layers, list(teacher.layers)
    if len(ours) != len(theirs):
        raise ValueError(f"layers {ours} of the student and {theirs} of the teacher must be as many")
    weights = (wanted.layer_weight, wanted.pooled_weight, wanted.budget_weights)
    return FluxUMT(model, wanted.student_budgets, teacher.token_budget, *weights)


def renormalised(videos: Tensor, ours: FluxViTVideoProcessor, theirs: Any) -> Tensor:
    """Clips (B, T, 3, H, W) that one processor normalised, as another one does; the same tensor where they agree."""
    mean, std, other_mean, other_std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (ours.image_mean, ours.image_std, theirs.image_mean, theirs.image_std)
    )
    if torch.equal(mean, other_mean) and torch.equal(std, other_std):
        return videos
    scales = (std / other_std, (mean - other_mean) / other_std)
    factor, offset = (values.to(videos, non_blocking=True) for values in scales)  # waits for no device
    return videos * factor + offset


# Data ----------------------------------------------------------------------------------------------------------------


def read_clips(
    args: DataArguments, max_eval_samples: int | None
) -> tuple[Sequence[Clip] | datasets.IterableDataset, Sequence[Clip]]:
    """Lists (or opens) the sets that the flags name, for training and held out; labels are not read."""
    held_out = []
    if args.validation_data or args.validation_split:
        held_out = spread(list_clips(held_out_source(args), labelled=False), max_eval_samples)
    if args.streaming:
        return open_stream(args.dataset_name, labelled=False, **args.set_options()), held_out
    return spread(list_clips(args, labelled=False), args.max_train_samples), held_out


def placed(teacher: Teacher, accelerator: Accelerator, sharded: bool) -> Teacher:
    """The teacher on the device that trains: all of it, or a part on each process's where there are several."""
    if sharded and accelerator.num_processes > 1:
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        teacher.shard(mesh)
    else:
        teacher.to(accelerator.device)
    here = count_parameters(p.to_local() if isinstance(p, DTensor) else p for p in teacher.parameters())
    logger.info(f"{here:,} of the teacher's {count_parameters(teacher.parameters()):,} parameters are here")
    return teacher


def build_cache(
    args: PretrainArguments,
    clips: Sequence[Clip],
    augment: ClipAugment,
    processor: FluxViTVideoProcessor,
    teacher: tuple[Teacher, Any],
) -> FeatureCache | None:
    """Of the teacher's features, if asked for; other models, clips or augmentations get another folder."""
    if args.teacher.feature_cache is None:
        return None
    model, processors = teacher[0].model, (processor, teacher[1])
    origin = {
        "teacher": [model.config.to_json_string(), weights_digest(model), args.teacher.teacher_dtype],
        "layers": list(teacher[0].layers),
        "tokens": teacher[0].token_budget,
        "normalisation": [[list(each.image_mean), list(each.image_std)] for each in processors],
        "clips": clips_digest(clips),
        "sampling_rule": args.sampling.sampling_rule,
        "augmentation": [repr(augment.config), args.augmentation.augment_on_device],
    }
    return FeatureCache(args.teacher.feature_cache, origin)


# The task ------------------------------------------------------------------------------------------------------------


@dataclass
class PretrainingTask(KeepsFailures):
    """Distillation at several token budgets, as `training.engine.loop.Task`."""

    args: PretrainArguments
    accelerator: Accelerator
    config: FluxViTConfig
    processor: FluxViTVideoProcessor
    teacher: Teacher
    teacher_processor: Any
    cache: FeatureCache | None
    batches: Batches
    augment: ClipAugment
    held_out: Sequence[Clip]
    failures: FailureLog
    metric: str = "eval_similarity"

    def loss(self, wrapped: nn.Module, batch: dict[str, Any], epoch: int, index: int) -> Tensor:
        """The objective's loss of a batch; remembers what could not be read."""
        self.failures.add(batch["failures"])
        videos = on_device(batch, self.args.augmentation, self.augment, self.accelerator.device)
        told = self.ask(videos) if self.cache is None else self.ask_once(videos, batch["seeds"])
        return wrapped(videos, told, batch["seeds"]).loss

    def ask_once(self, videos: Tensor, seeds: Tensor) -> TeacherFeatures:
        """As `ask`, or what the cache keeps of these views: of all processes or of none, where they ask together."""
        views = names_of(seeds, videos.shape[1], videos.shape[-1])
        told = self.cache.read(views)
        missing = told is None
        if self.args.teacher.teacher_sharded:
            missing = bool(self.accelerator.reduce(torch.tensor(int(missing), device=videos.device), "sum"))
        if missing:
            return self.cache.write(views, self.ask(videos))
        return told.to(videos.device)

    def ask(self, videos: Tensor) -> TeacherFeatures:
        """What the teacher says of clips (B, T, 3, H, W), normalised for the student."""
        config, (frames, _, height, width) = self.config, videos.shape[1:]
        grid = (frames // config.tubelet_size, height // config.patch_size, width // config.patch_size)
        return self.teacher(renormalised(videos, self.processor, self.teacher_processor), grid)

    @torch.no_grad()
    def evaluate(self, wrapped: nn.Module) -> dict[str, float]:
        """{"eval_similarity_BUDGET": cosine to the teacher's features of layers, ..., "eval_similarity": their mean,
        "eval_pooled_similarity": of the pooled feature} of the held-out clips' default view; nothing without any.

        A mean over batches, each counted by its clips, of every process (collective).
        """
        if not self.held_out:
            return {}
        batches = self._held_out_batches()
        augment = ClipAugment(
            AugmentConfig(
                crop_scale=None,
                hflip=0.0,
                erasing=0.0,
                mean=tuple(self.processor.image_mean),
                std=tuple(self.processor.image_std),
            )
        )
        loader = DataLoader(
            ClipDataset(self.held_out, NoTargets(), augment, self.args.run.seed, sampling_rule="center"),
            batch_sampler=[requests for requests, _ in batches],
            collate_fn=collate,
            num_workers=self.args.data.dataloader_num_workers,
            generator=torch.Generator(),
        )
        budgets = self.args.distillation.student_budgets
        sums = torch.zeros(2 * len(budgets) + 1, dtype=torch.float64, device=self.accelerator.device)
        for batch, (_, weight) in zip(loader, batches, strict=True):
            self.failures.add(batch["failures"])
            videos = batch["pixel_values_videos"].to(self.accelerator.device)
            found = wrapped(videos, self.ask(videos), batch["seeds"])
            shares = torch.cat([1 - found.layer_losses / 2, 1 - found.pooled_losses / 2, sums.new_ones(1)])
            sums += weight * shares.double()
        sums = self.accelerator.reduce(sums, "sum")
        means = (sums[:-1] / sums[-1]).tolist()
        of_layers, of_pooled = means[: len(budgets)], means[len(budgets) :]
        metrics = {f"{self.metric}_{budget}": share for budget, share in zip(budgets, of_layers, strict=True)}
        metrics[self.metric] = sum(of_layers) / len(budgets)
        return {**metrics, "eval_pooled_similarity": sum(of_pooled) / len(budgets)}

    def _held_out_batches(self) -> list[tuple[list[ClipRequest], int]]:
        """This process's, and how many clips each counts for: equally many on all, for sharded models run together.

        One that has none left where others have takes the first clip, for nothing.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        shape, number = (self.config.num_frames, self.config.image_height_width[0]), len(self.held_out)
        size = self.args.views.per_device_eval_batch_size
        requests = [ClipRequest(index, *shape, 0) for index in range(rank, number, world)]
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        counted = [(batch, len(batch)) for batch in batches]
        missing = math.ceil(math.ceil(number / world) / size) - len(batches)
        return counted + [([ClipRequest(0, *shape, 0)], 0)] * missing

    def export(self, directory: Path, weights: dict[str, Tensor]) -> None:
        """Writes the student, with its decoders, and its processor."""
        model = FluxViTForPreTraining(self.config)
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
        model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def build_task(
    args: PretrainArguments,
    config: FluxViTConfig,
    processor: FluxViTVideoProcessor,
    teacher: tuple[Teacher, Any],
    accelerator: Accelerator,
) -> PretrainingTask:
    """The task of the flags, for a student of this config; `teacher` with its processor."""
    training, held_out = read_clips(args.data, args.views.max_eval_samples)
    source = training if args.data.streaming else cached(training, args.data, accelerator)
    augment = build_augmentation(args.augmentation, processor)
    batches = build_batches(args, config, source, NoTargets(), augment, accelerator)
    cache = build_cache(args, source, augment, processor, teacher)
    if cache is not None:
        batches.order = RepeatedEpochs(batches.order, args.teacher.cached_epochs)
    return PretrainingTask(
        args=args,
        accelerator=accelerator,
        config=config,
        processor=processor,
        teacher=placed(teacher[0], accelerator, args.teacher.teacher_sharded),
        teacher_processor=teacher[1],
        cache=cache,
        batches=batches,
        augment=augment,
        held_out=cached(held_out, args.data, accelerator),
        failures=FailureLog(args.data.max_failed_share, batches.num_clips),
    )
