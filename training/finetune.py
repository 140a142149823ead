# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes FluxViT so that one checkpoint classifies videos at every token budget.

    accelerate launch -m training.finetune --recipe training/recipes/k400.yaml --model_name_or_path CHECKPOINT \
        --train_data train.csv --validation_data val.csv --output_dir out

Each batch is read with frames and size drawn by `training/data/sampling.py`; the objective encodes it at every budget.
Processes, device, precision and sharding are `accelerate launch`'s to choose (`training/accelerate_configs/`). A run
that was killed goes on with `--resume_from_checkpoint latest`, as if nothing had happened.
"""

import json
import logging
import math
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration, gather_object, set_seed
from huggingface_hub import CommitOperationAdd, HfApi
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import FinetuneArguments, parse_arguments
from .data.augment import AUGMENT_PRESETS, ClipAugment
from .data.clips import Clip, label_names, open_stream, read_clips, stream_label_names
from .data.dataset import ClipDataset, FailureLog, StreamingClips, collate
from .data.frame_cache import cache_clips
from .data.mixing import MixConfig, MixupCutmix
from .data.sampling import SAMPLING_PRESETS, ClipShape, FlexibleSampling, FluxBatchSampler, step_generator
from .engine.checkpoint import (
    ENGINE_FILES,
    STATE_FILE,
    TrainingState,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    publish,
    remove_leftovers,
    save_checkpoint,
    write_json,
)
from .engine.optim import (
    ExponentialMovingAverage,
    cosine_schedule,
    count_parameters,
    freeze_layers,
    parameter_groups,
    scaled_learning_rate,
)
from .inference.prediction import EvalPoint, evaluate_scores, label_targets, predict_clips
from .model import add_lora, build_model, build_objective, export_model


logger = get_logger(__name__)

LOG_FILE = "training_log.jsonl"
# A run whose gradients stay infinite for so many steps will not recover.
MAX_SKIPPED_IN_A_ROW = 20


# Data ----------------------------------------------------------------------------------------------------------------


def training_source(args: FinetuneArguments) -> str:
    return args.dataset_name or args.train_data


def list_clips(args: FinetuneArguments, source: str, split: str | None, limit: int | None) -> list[Clip]:
    """The clips of a source; if they are to be fewer, evenly spread over its list, which may be sorted by class."""
    clips = read_clips(
        source,
        root=args.data_root,
        split=split,
        dataset_config=args.dataset_config_name,
        hub=args.dataset_name is not None and source == args.dataset_name,
        multi_label=args.multi_label,
        verify=not args.no_verify,
    )
    if limit is None or limit >= len(clips):
        return clips
    return [clips[position * len(clips) // limit] for position in range(limit)]


def held_out_clips(args: FinetuneArguments) -> list[Clip]:
    """Validation clips; none if not asked for."""
    if not (args.validation_data or args.validation_split):
        return []
    source = args.validation_data or training_source(args)
    return list_clips(args, source, args.validation_split, args.max_eval_samples)


def cached(clips: list[Clip], args: FinetuneArguments, accelerator: Accelerator) -> list[Clip]:
    """The clips with their frames kept on disk, if asked for; the machine's first process decodes them."""
    if args.frame_cache is None or not clips:
        return clips
    with accelerator.local_main_process_first():
        return cache_clips(
            clips,
            args.frame_cache,
            short_side=args.frame_cache_short_side,
            max_frames=args.frame_cache_max_frames,
            num_workers=max(args.dataloader_num_workers, 1),
        )


def clip_shapes(args: FinetuneArguments, config: FluxViTConfig) -> list[ClipShape]:
    """What `--sampling` draws from."""
    if args.sampling == "fixed":
        return [ClipShape(config.num_frames, config.image_height_width[0])]
    sampling = SAMPLING_PRESETS.get(args.sampling)
    if sampling is None:
        sampling = FlexibleSampling(tuple(args.frames), tuple(args.sizes), tuple(args.token_window))
    return sampling.legal_shapes(config.patch_size, config.tubelet_size)


def build_augmentation(args: FinetuneArguments, processor: FluxViTVideoProcessor) -> ClipAugment:
    changes = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    if args.horizontal_flip is not None:
        changes["hflip"] = args.horizontal_flip
    return ClipAugment(replace(AUGMENT_PRESETS[args.augmentation], **changes))


@dataclass
class Batches:
    """A process's training batches.

    Args:
        loader: Gives them, from where `order` was set.
        order: Has `set_epoch(epoch, skip_batches)`.
        num_batches: Of a whole epoch.
        num_clips: Of an epoch, all processes together.
    """

    loader: DataLoader
    order: FluxBatchSampler | StreamingClips
    num_batches: int
    num_clips: int


def build_batches(
    args: FinetuneArguments,
    config: FluxViTConfig,
    source: list[Clip] | datasets.IterableDataset,
    augment: ClipAugment,
    accelerator: Accelerator,
) -> Batches:
    """Batches of listed or streamed clips, with shapes by `--sampling`."""
    world, per_process = accelerator.num_processes, args.per_device_train_batch_size
    streamed = not isinstance(source, list)
    num_clips = args.max_train_samples if streamed else len(source)
    sampler = FluxBatchSampler(
        num_clips,
        per_process,
        clip_shapes(args, config),
        args.seed,
        accelerator.process_index,
        world,
        same_shape_on_all_ranks=not args.independent_shapes,
    )
    samples = {
        "label2id": config.label2id,
        "augment": augment.on_worker if args.augment_on_device else augment,
        "seed": args.seed,
        "num_sample": args.num_sample,
        "multi_label": args.multi_label,
        "sampling_rule": args.sampling_rule,
    }
    loading = {
        "num_workers": args.dataloader_num_workers,
        "persistent_workers": args.dataloader_num_workers > 0,
        "pin_memory": accelerator.device.type == "cuda",
        # its own: a loader draws from the global one, which dropout needs to be where it was when resuming
        "generator": torch.Generator(),
    }
    if streamed:
        place = {"rank": accelerator.process_index, "world_size": world, "verify": not args.no_verify}
        clips = StreamingClips(source, sampler.shape_of, per_process, len(sampler), **samples, **place)
        return Batches(DataLoader(clips, batch_size=None, **loading), clips, len(sampler), num_clips)
    loader = DataLoader(ClipDataset(source, **samples), batch_sampler=sampler, collate_fn=collate, **loading)
    return Batches(loader, sampler, len(sampler), num_clips)


# Run -----------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What the chapters of a training run share; only `state` and the count of skipped steps change as it goes on."""

    args: FinetuneArguments
    accelerator: Accelerator
    config: FluxViTConfig
    processor: FluxViTVideoProcessor
    wrapped: nn.Module  # the objective as prepared: what a training step calls
    optimizer: Any  # as prepared
    state: TrainingState
    batches: Batches
    augment: ClipAugment
    mix: MixupCutmix
    held_out: list[Clip]
    failures: FailureLog
    steps_per_epoch: int
    total_steps: int
    skipped_in_a_row: int = 0

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    def export(self, directory: Path, collected: dict[str, Any]) -> None:
        export_model(directory, collected, self.args, self.config, self.processor)


def prepare_output_dir(args: FinetuneArguments, accelerator: Accelerator) -> None:
    """Raises ValueError where the folder holds something that would be lost."""
    output_dir = Path(args.output_dir)
    held = output_dir.exists() and any(output_dir.iterdir())
    if held and not args.overwrite_output_dir and not args.resume_from_checkpoint:
        raise ValueError(
            f"--output_dir {args.output_dir!r} holds files: --resume_from_checkpoint latest goes on with them, "
            "--overwrite_output_dir deletes them"
        )
    accelerator.wait_for_everyone()  # all have looked before one writes
    if accelerator.is_main_process:
        if held and args.overwrite_output_dir and not args.resume_from_checkpoint:
            shutil.rmtree(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir)
        write_json(output_dir / "training_arguments.json", {**asdict(args), "hub_token": None})
    accelerator.wait_for_everyone()


def build_run(args: FinetuneArguments, accelerator: Accelerator) -> Run:
    """Data, model, objective and optimiser, prepared; resumed where asked for."""
    if args.streaming:
        source = open_stream(args.dataset_name, args.train_split, dataset_config=args.dataset_config_name, hub=True)
        labels = stream_label_names(source)
        if labels is None:
            raise ValueError(f"--streaming needs a label column of type ClassLabel, {args.dataset_name!r} has none")
    else:
        source = list_clips(args, training_source(args), args.train_split, args.max_train_samples)
        labels = label_names(source)
    held_out = held_out_clips(args)
    model, processor = build_model(args, labels)
    label_targets(held_out, model.config)  # unknown labels are an error now, not after an epoch
    if not args.streaming:
        source = cached(source, args, accelerator)
    augment = build_augmentation(args, processor)
    batches = build_batches(args, model.config, source, augment, accelerator)
    steps_per_epoch = batches.num_batches // args.gradient_accumulation_steps
    if steps_per_epoch == 0:
        raise ValueError(
            f"an epoch has {batches.num_batches} batches a process, fewer than "
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}"
        )
    total_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    wrapped, optimizer, state = prepare_training(args, accelerator, model, steps_per_epoch, total_steps)
    shapes = clip_shapes(args, model.config)
    state.fixed.update(num_clips=batches.num_clips, shapes=[[shape.num_frames, shape.size] for shape in shapes])
    mixing = MixConfig(args.mixup, args.cutmix, args.mixup_prob, args.mixup_switch_prob, args.label_smoothing)
    run = Run(
        args=args,
        accelerator=accelerator,
        config=model.config,
        processor=processor,
        wrapped=wrapped,
        optimizer=optimizer,
        state=state,
        batches=batches,
        augment=augment,
        mix=MixupCutmix(model.config.num_labels, mixing),
        held_out=cached(held_out, args, accelerator),
        failures=FailureLog(args.max_failed_share, batches.num_clips),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    resume(run)
    return run


def prepare_training(
    args: FinetuneArguments,
    accelerator: Accelerator,
    model: FluxViTForVideoClassification,
    steps_per_epoch: int,
    total_steps: int,
) -> tuple[nn.Module, Any, TrainingState]:
    """Objective and optimiser as prepared, and the state to save."""
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.lora_rank:
        add_lora(model, args)
    freeze_layers(model, args.freeze_layers)
    objective = build_objective(model, args)
    if args.torch_compile:
        for layer in model.fluxvit.encoder.layer:
            layer.compile()
    clips_a_step = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    rates = [args.learning_rate, args.warmup_learning_rate, args.min_learning_rate]
    if not args.no_scale_lr:
        rates = [scaled_learning_rate(rate, clips_a_step, args.num_sample) for rate in rates]
    logger.info(f"peak learning rate {rates[0]:.3g} ({clips_a_step} clips x {args.num_sample} copies a step)")
    plain_optimizer = torch.optim.AdamW(
        parameter_groups(model, rates[0], args.weight_decay, args.layer_decay),
        lr=rates[0],
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=args.per_device_train_batch_size * args.num_sample,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            gradient_clipping=args.max_grad_norm or 0.0,
        )
    wrapped, optimizer = accelerator.prepare(objective, plain_optimizer)
    objective = accelerator.unwrap_model(wrapped)
    warmup = args.num_warmup_steps
    if warmup is None:
        warmup = int(args.num_warmup_epochs * steps_per_epoch)
    scheduler = cosine_schedule(plain_optimizer, rates[0], min(warmup, total_steps), total_steps, *rates[1:])
    state = TrainingState(
        objective=objective,
        optimizer=plain_optimizer,
        scheduler=scheduler,
        ema=None if args.ema_decay is None else ExponentialMovingAverage(objective, args.ema_decay),
        engine=wrapped if accelerator.distributed_type == DistributedType.DEEPSPEED else None,
        fixed={
            "clips_a_step": clips_a_step,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "num_sample": args.num_sample,
            "seed": args.seed,
            "total_steps": total_steps,
            "token_budgets": list(model.config.token_budgets),
        },
    )
    trained = count_parameters(p for p in objective.parameters() if p.requires_grad)
    logger.info(f"{trained:,} of {count_parameters(objective.parameters()):,} parameters are trained")
    return wrapped, optimizer, state


def resume(run: Run) -> None:
    """Goes back to a checkpoint where asked for, and drops from the log what came after it."""
    path = find_checkpoint(run.output_dir, run.args.resume_from_checkpoint)
    if path is not None:
        load_checkpoint(path, run.state)
        run.failures.load_state_dict(run.state.extra["failures"])
        logger.info(f"resumed from {path}: {run.state.progress}")
    if run.accelerator.is_main_process:
        lines = read_log(run.output_dir, run.state.progress.step)
        temporary = run.output_dir / f".{LOG_FILE}.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        temporary.replace(run.output_dir / LOG_FILE)


# Training ------------------------------------------------------------------------------------------------------------


def train(run: Run) -> None:
    """All steps that are left."""
    progress, args = run.state.progress, run.args
    bar = tqdm(
        total=run.total_steps,
        initial=progress.step,
        disable=not run.accelerator.is_local_main_process,
        unit="step",
        file=sys.stderr,
        mininterval=1.0,
    )
    meter = Meter(run)
    while progress.step < run.total_steps:
        run.batches.order.set_epoch(progress.epoch, skip_batches=progress.batch)
        for batch in run.batches.loader:
            run.failures.add(batch.pop("failures"))
            progress.batch += 1
            meter.add(training_step(run, batch), batch["labels"].shape[0])
            if not run.accelerator.sync_gradients:
                continue
            bar.update()
            end_of_epoch = progress.batch >= run.steps_per_epoch * args.gradient_accumulation_steps
            if end_of_epoch:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            meter.report(bar)
            between_steps(run, end_of_epoch)
            if end_of_epoch or progress.step == run.total_steps:
                break
    bar.close()


def training_step(run: Run, batch: dict[str, Tensor]) -> Tensor:
    """One batch forward and backward, and the optimiser's step when it ends an accumulation. Returns the loss."""
    progress, accelerator, args = run.state.progress, run.accelerator, run.args
    videos = batch["pixel_values_videos"].to(accelerator.device, non_blocking=True)
    labels = batch["labels"].to(accelerator.device, non_blocking=True)
    if args.augment_on_device:
        videos = run.augment.on_batch(videos, batch["seeds"])
    generator = step_generator(args.seed, progress.epoch, progress.batch, accelerator.process_index)
    videos, targets = run.mix(videos, labels, generator)
    run.wrapped.train()
    with accelerator.accumulate(run.wrapped):
        loss = run.wrapped(videos, targets).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            optimizer_step(run)
    return loss.detach()


def optimizer_step(run: Run) -> None:
    """Clips and steps; leaves out a step whose gradient is not finite (the same on every process), and counts it.

    Raises:
        FloatingPointError: too many such steps in a row.
    """
    progress, accelerator = run.state.progress, run.accelerator
    limit = run.args.max_grad_norm or math.inf
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), limit)
    finite = norm is None or accelerator.scaler is not None or math.isfinite(float(norm))
    if finite:
        run.optimizer.step()
        run.skipped_in_a_row = 0
    else:
        progress.skipped_steps += 1
        run.skipped_in_a_row += 1
        logger.warning(f"step {progress.step}: the gradient is not finite, the step is left out")
        if run.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(f"no finite gradient in {MAX_SKIPPED_IN_A_ROW} successive steps")
    run.state.scheduler.step()
    run.optimizer.zero_grad()
    if run.state.ema is not None and finite:
        run.state.ema.update()
    progress.step += 1


class Meter:
    """Loss and speed since the last report: to the progress bar, the log file and the trackers."""

    def __init__(self, run: Run):
        self.run = run
        self.reset()

    def reset(self) -> None:
        self.losses: list[Tensor] = []
        self.clips, self.start = 0, time.perf_counter()

    def add(self, loss: Tensor, clips: int) -> None:
        self.losses.append(loss)
        self.clips += clips

    def report(self, bar: tqdm) -> None:
        run, step = self.run, self.run.state.progress.step
        if step % run.args.logging_steps and step != run.total_steps:
            return
        loss = run.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        speed = self.clips * run.accelerator.num_processes / (time.perf_counter() - self.start)
        rate = run.optimizer.param_groups[-1]["lr"]
        bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.2e}", clips_per_second=f"{speed:.1f}")
        write_log(run, {"step": step, "loss": loss, "learning_rate": rate, "clips_per_second": round(speed, 2)})
        self.reset()


def write_log(run: Run, line: dict[str, Any]) -> None:
    """Adds a line to the run's log and trackers."""
    if run.accelerator.is_main_process:
        with open(run.output_dir / LOG_FILE, "a") as file:
            file.write(json.dumps(line) + "\n")
    run.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])


def read_log(output_dir: Path, up_to_step: float = math.inf) -> list[dict[str, Any]]:
    """The log's lines up to a step; a last line that a kill cut off is left out."""
    file = output_dir / LOG_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [entry for entry in entries if entry["step"] <= up_to_step]


def _is_due(when: str, step: int, end_of_epoch: bool) -> bool:
    return end_of_epoch if when == "epoch" else when != "no" and step % int(when) == 0


def between_steps(run: Run, end_of_epoch: bool) -> None:
    """Validation and checkpoint, where they are due; validation first, so that a resumed run need not repeat it."""
    progress, args = run.state.progress, run.args
    last = progress.step == run.total_steps
    metrics = None
    if run.held_out and (last or _is_due(args.eval_steps, progress.step, end_of_epoch)):
        metrics = validate(run)
        write_log(run, {"step": progress.step, **metrics})
        logger.info(f"step {progress.step}: {metrics}")
    better = metrics is not None and (progress.best_metric is None or metrics["eval_mean"] > progress.best_metric)
    if not (last or better or _is_due(args.checkpointing_steps, progress.step, end_of_epoch)):
        return
    if better:
        progress.best_metric, progress.best_step = metrics["eval_mean"], progress.step
    collect_failures(run)
    run.state.extra["failures"] = run.failures.state_dict()
    checkpoint = save_checkpoint(run.output_dir, run.state, run.export, args.checkpoints_total_limit)
    if better and run.accelerator.is_main_process:
        mark_best(run.output_dir, checkpoint, metrics)


def collect_failures(run: Run) -> None:
    """Tells every process of the clips that the others could not read (collective)."""
    for failures in gather_object([list(run.failures.failures.items())]):
        run.failures.add(failures)


# Validation ----------------------------------------------------------------------------------------------------------


@contextmanager
def averaged_weights(run: Run):
    """The moving average in the model's place, if one is kept."""
    if run.state.ema is None:
        yield
        return
    run.state.ema.swap()
    try:
        yield
    finally:
        run.state.ema.swap()


def validate(run: Run) -> dict[str, float]:
    """{"eval_top1_BUDGET": share, ..., "eval_mean": ...} of the default clip; mean average precision if multi-label."""
    args, config = run.args, run.config
    run.wrapped.eval()
    points = [EvalPoint(config.num_frames, config.image_height_width[0], budget) for budget in config.token_budgets]

    def forward(videos: Tensor, token_budget: int | None) -> Tensor:
        return run.wrapped(videos, token_budget=token_budget).logits

    with averaged_weights(run), torch.no_grad():
        predictions = predict_clips(
            forward,
            run.processor,
            run.held_out,
            points,
            run.accelerator,
            num_clips=args.eval_num_clips,
            num_crops=args.eval_num_crops,
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            multi_label=args.multi_label,
        )
    for name, reason in predictions.failures:
        logger.warning(f"validation clip {name} left out: {reason}")
    targets = label_targets(run.held_out, config)
    scores = [evaluate_scores(predictions.scores[index], targets) for index in range(len(points))]
    metrics = {
        f"eval_{metric}_{point.token_budget}": value
        for point, values in zip(points, scores, strict=True)
        for metric, value in values.items()
    }
    metrics["eval_mean"] = sum(next(iter(values.values())) for values in scores) / len(scores)
    return metrics


# Main ----------------------------------------------------------------------------------------------------------------


def finish(run: Run) -> dict[str, Any]:
    """Puts the last (or best) checkpoint's model into the output folder itself, with the results. Returns these."""
    args, progress = run.args, run.state.progress
    source = best_checkpoint(run.output_dir) if args.load_best_model_at_end else None
    source = source or list_checkpoints(run.output_dir)[-1]
    evaluations = [line for line in read_log(run.output_dir) if "eval_mean" in line]
    results = {
        "train_steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "failed_clips": dict(run.failures.failures),
        "checkpoint": source.name,
        **next((line for line in reversed(evaluations) if f"checkpoint-{line['step']}" == source.name), {}),
    }
    if run.accelerator.is_main_process:
        staging = run.output_dir / ".final.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(source, staging, ignore=shutil.ignore_patterns(STATE_FILE, *ENGINE_FILES))
        write_json(staging / "all_results.json", results)
        publish(staging, run.output_dir)
        if args.push_to_hub:
            push(run)
    run.accelerator.wait_for_everyone()
    return results


def open_repository(args: FinetuneArguments) -> str:
    """Makes the Hub repository where missing and returns its id."""
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id


def push(run: Run) -> None:
    """Uploads the output folder's own files in one commit: the model, not the checkpoints."""
    repository = open_repository(run.args)
    names = [path.relative_to(run.output_dir) for path in sorted(run.output_dir.rglob("*")) if path.is_file()]
    HfApi(token=run.args.hub_token).create_commit(
        repository,
        [
            CommitOperationAdd(name.as_posix(), run.output_dir / name)
            for name in names
            if not any(part.startswith((".", "checkpoint-")) for part in name.parts)
        ],
        commit_message="Model fine-tuned with flux-hf",
    )
    logger.info(f"pushed to {repository}")


def build_accelerator(args: FinetuneArguments) -> Accelerator:
    """Raises ValueError for a tracker that is not installed, which Accelerate would leave out without a word."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    if args.report_to not in (None, "none", "all", *installed):
        raise ValueError(
            f"--report_to must be 'all', 'none' or installed, of which are {installed}, got {args.report_to!r}"
        )
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    return accelerator


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_arguments(arguments)
    accelerator = build_accelerator(args)
    prepare_output_dir(args, accelerator)
    set_seed(args.seed)  # the same new weights everywhere
    run = build_run(args, accelerator)
    if run.state.progress.step == 0:
        set_seed(args.seed, device_specific=True)  # every process drops its own paths
    if args.push_to_hub and accelerator.is_main_process:
        open_repository(args)  # a token that may not write is an error now, not after the last step
    if accelerator.log_with:
        settings = {key: value for key, value in asdict(args).items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers(args.run_name, {key: value for key, value in settings.items() if key != "hub_token"})
    logger.info(f"{run.total_steps} steps, {run.steps_per_epoch} an epoch; budgets {run.config.token_budgets}")
    train(run)
    results = finish(run)
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
