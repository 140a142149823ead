# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Classification as a task of the training engine: labelled clips in, an objective at every token budget, accuracies.

Each batch is read with frames and size drawn by `data/sampling.py`; the objective encodes it at every budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import PreTrainedConfig

from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import DataArguments, FinetuneArguments, ObjectiveArguments
from .batches import KeepsFailures, build_augmentation, build_batches, cached, held_out_source, on_device
from .data.augment import ClipAugment
from .data.failures import FailureLog
from .data.mixing import MixConfig, MixupCutmix
from .data.reader import Clip
from .data.sampling import step_generator
from .data.sources import label_names, open_stream, spread, stream_label_names
from .data.targets import ClassTargets, class_shares, encode_labels
from .engine.loop import Batches
from .inference.command import list_clips
from .inference.metrics import evaluate_scores
from .inference.points import EvalPoint
from .inference.prediction import Predictor
from .model import export_model


logger = get_logger(__name__)


# Data ----------------------------------------------------------------------------------------------------------------


@dataclass
class LabelledData:
    """What a run trains on and is evaluated on, and the labels of the first."""

    training: Sequence[Clip] | datasets.IterableDataset
    held_out: Sequence[Clip]
    labels: list[str]


def read_data(args: DataArguments, max_eval_samples: int | None) -> LabelledData:
    """Lists (or opens) the sets that the flags name. Raises ValueError for a stream that declares no classes."""
    held_out = []
    if args.validation_data or args.validation_split:
        held_out = spread(list_clips(held_out_source(args)), max_eval_samples)
    if not args.streaming:
        training = spread(list_clips(args), args.max_train_samples)
        return LabelledData(training, held_out, label_names(training))
    stream = open_stream(args.dataset_name, **args.set_options())
    labels = stream_label_names(stream)
    if labels is None:
        raise ValueError(f"--streaming needs a label column of type ClassLabel, {args.dataset_name!r} has none")
    return LabelledData(stream, held_out, labels)


# The task ------------------------------------------------------------------------------------------------------------


@dataclass
class ClassificationTask(KeepsFailures):
    """Video classification at every token budget, as `training.engine.loop.Task`."""

    args: FinetuneArguments
    accelerator: Accelerator
    config: PreTrainedConfig
    processor: FluxViTVideoProcessor
    batches: Batches
    augment: ClipAugment
    mix: MixupCutmix
    held_out: Sequence[Clip]
    held_out_targets: Tensor | None
    failures: FailureLog
    metric: str = "eval_mean"

    def loss(self, wrapped: nn.Module, batch: dict[str, Any], epoch: int, index: int) -> Tensor:
        """The objective's loss of a batch, augmented and mixed on the device; remembers what could not be read."""
        self.failures.add(batch["failures"])
        device, seed = self.accelerator.device, self.args.run.seed
        labels = batch["labels"].to(device, non_blocking=True)
        videos = on_device(batch, self.args.augmentation, self.augment, device)
        generator = step_generator(seed, epoch, index, self.accelerator.process_index)
        videos, targets = self.mix(videos, labels, generator)
        return wrapped(videos, targets).loss

    def evaluate(self, wrapped: nn.Module) -> dict[str, float]:
        """{"eval_top1_BUDGET": share, ..., "eval_mean": ...} of the default clip; mean average precision if
        multi-label; nothing without held-out clips.
        """
        if not self.held_out:
            return {}
        data = self.args.data
        predict = Predictor(
            lambda videos, budgets: wrapped(videos, token_budgets=budgets).logits,
            self.processor,
            self.accelerator,
            self.args.views,
            data.dataloader_num_workers,
            data.multi_label,
        )
        return evaluate_budgets(predict, self.held_out, self.held_out_targets, self.config)

    def export(self, directory: Path, weights: dict[str, Tensor]) -> None:
        """Writes model and processor."""
        export_model(directory, weights, self.args.model, self.config, self.processor)


def class_weights(args: ObjectiveArguments, clips: Sequence[Clip], targets: ClassTargets) -> Tensor | None:
    """Of the loss, by how rare the classes are, if asked for; one that does not occur weighs nothing."""
    if not args.class_weights:
        return None
    counts, _ = class_shares(clips, targets)
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts), 0.0).float()


def evaluate_budgets(
    predict: Predictor, clips: Sequence[Clip], targets: Tensor, config: PreTrainedConfig
) -> dict[str, float]:
    """Metrics of the default clip at each trained budget."""
    points = [EvalPoint(config.num_frames, config.image_height_width[0], budget) for budget in config.token_budgets]
    predictions = predict(clips, points)
    for name, reason in predictions.failures:
        logger.warning(f"validation clip {name} left out: {reason}")
    scores = [evaluate_scores(predictions.scores[index], targets) for index in range(len(points))]
    metrics = {
        f"eval_{metric}_{point.token_budget}": value
        for point, values in zip(points, scores, strict=True)
        for metric, value in values.items()
    }
    metrics["eval_mean"] = sum(next(iter(values.values())) for values in scores) / len(scores)
    return metrics


def build_task(
    args: FinetuneArguments,
    data: LabelledData,
    targets: ClassTargets,
    config: PreTrainedConfig,
    processor: FluxViTVideoProcessor,
    accelerator: Accelerator,
) -> ClassificationTask:
    """The task of the flags, for a model of this config. Raises ValueError for labels that the model does not have."""
    # labels that training never sees are an error now, not after an epoch
    held_out_targets = encode_labels(data.held_out, targets) if data.held_out else None
    source = data.training if args.data.streaming else cached(data.training, args.data, accelerator)
    augment = build_augmentation(args.augmentation, processor)
    batches = build_batches(args, config, source, targets, augment, accelerator)
    mixed = args.objective
    mixing = MixConfig(mixed.mixup, mixed.cutmix, mixed.mixup_prob, mixed.mixup_switch_prob, mixed.label_smoothing)
    return ClassificationTask(
        args=args,
        accelerator=accelerator,
        config=config,
        processor=processor,
        batches=batches,
        augment=augment,
        mix=MixupCutmix(config.num_labels, mixing),
        held_out=cached(data.held_out, args.data, accelerator),
        held_out_targets=held_out_targets,
        failures=FailureLog(args.data.max_failed_share, batches.num_clips),
    )
