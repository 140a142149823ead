# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Trains FluxViT to classify videos at several token budgets at once.

    accelerate launch -m training.finetune --model_name_or_path CHECKPOINT --train_file train.csv \
        --validation_file val.csv --output_dir out --num_frames 8 --size 224 --token_budgets 2048 1024 512

Each step encodes one clip at every budget and sums the cross entropies, each through the head trained nearest its
budget. This script is for small data: every process decodes each clip once and keeps all of them in memory. Processes,
device and mixed precision are `accelerate launch`'s to choose.
"""

import argparse
import csv
import json
import logging
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import get_cosine_schedule_with_warmup

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor


logger = get_logger(__name__)


# Arguments -----------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, named as in Hugging Face's example scripts. Raises ValueError, naming a value that cannot work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True, help="csv with columns path,label; paths relative to the csv")
    parser.add_argument(
        "--validation_file", help="csv as --train_file; accuracy per budget is measured on it at the end"
    )
    parser.add_argument("--model_name_or_path", help="checkpoint to start from; exclusive with --config_name")
    parser.add_argument("--config_name", help="json file of FluxViTConfig fields for a new model")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an --output_dir that holds files")
    parser.add_argument("--num_frames", type=int, help="frames of a clip; the model's default if not given")
    parser.add_argument("--size", type=int, help="side of the frames in pixels; the model's default if not given")
    parser.add_argument("--token_budgets", type=int, nargs="+", help="the model's own if not given")
    parser.add_argument("--per_device_train_batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="at its peak; taken as it is")
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--num_train_epochs", type=int, default=10)
    parser.add_argument("--max_train_steps", type=int, help="overrides --num_train_epochs")
    parser.add_argument("--num_warmup_steps", type=int, default=20)
    parser.add_argument("--logging_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if bool(args.model_name_or_path) == bool(args.config_name):
        given = f"{args.model_name_or_path!r} and {args.config_name!r}"
        raise ValueError(f"give one of --model_name_or_path and --config_name, got {given}")
    counts = "num_frames size per_device_train_batch_size num_train_epochs max_train_steps logging_steps token_budgets"
    for name in counts.split():
        value = getattr(args, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    output_dir = Path(args.output_dir)
    if output_dir.exists() and any(output_dir.iterdir()) and not args.overwrite_output_dir:
        raise ValueError(f"--output_dir {args.output_dir!r} holds files; --overwrite_output_dir replaces it")
    return args


# Data ----------------------------------------------------------------------------------------------------------------


def read_csv(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Rows `(path, label)` of a csv with these columns, relative paths resolved against the csv's folder.

    Raises:
        ValueError: another header, an empty field, or no rows.
    """
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if not {"path", "label"} <= set(reader.fieldnames or []):
            raise ValueError(f"{path} must have the columns path and label, got {reader.fieldnames}")
        rows = [(row["path"], row["label"]) for row in reader]
    if not rows:
        raise ValueError(f"{path} has no rows")
    for row in rows:
        if not all(row):
            raise ValueError(f"{path} has an empty field in row {row}")
    return [(str(Path(path).parent / clip), label) for clip, label in rows]


def load_clips(
    rows: list[tuple[str, str]], label2id: dict[str, int], processor: FluxViTVideoProcessor
) -> TensorDataset:
    """Decodes each video once: clips (N, T, 3, H, W) uint8, sampled and cropped by the processor, and labels (N,).

    Raises:
        ValueError: a label the model does not have; `VideoDecodeError`, one of these, for a video that cannot be read.
    """
    unknown = sorted({label for _, label in rows} - set(label2id))
    if unknown:
        raise ValueError(f"labels must be some of {sorted(label2id)}, got {unknown}")

    def load(row: tuple[str, str]) -> Tensor:
        values = processor(
            row[0], do_sample_frames=True, do_rescale=False, do_normalize=False, num_threads=1, return_tensors="pt"
        )
        return values["pixel_values_videos"][0].round().clamp(0, 255).to(torch.uint8)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        clips = torch.stack(list(pool.map(load, rows)))
    return TensorDataset(clips, torch.tensor([label2id[label] for _, label in rows]))


def normalize(clips: Tensor, processor: FluxViTVideoProcessor) -> Tensor:
    """(B, T, 3, H, W) pixels of 0 to 255 -> what the processor would have given the model, float32."""
    mean, std = (
        torch.tensor(v, device=clips.device).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std)
    )
    return (clips.float() * processor.rescale_factor - mean) / std


def augment(clips: Tensor) -> Tensor:
    """(B, T, 3, H, W) of 0 to 255 -> float32, each clip shifted by up to an eighth and its contrast jittered.

    One shift and one factor for all frames of a clip, so motion is untouched; no flips, for they would turn left into
    right.
    """
    batch, frames, channels, height, width = clips.shape
    reach = height // 8, width // 8
    padded = nn.functional.pad(clips.float().flatten(1, 2), (reach[1],) * 2 + (reach[0],) * 2, mode="replicate")
    tops, lefts = (torch.randint(0, 2 * pixels + 1, (batch,)).tolist() for pixels in reach)
    shifted = torch.stack(
        [clip[:, top : top + height, left : left + width] for clip, top, left in zip(padded, tops, lefts, strict=True)]
    )
    shifted = shifted.reshape(batch, frames, channels, height, width)
    center = shifted.mean(dim=(1, 3, 4), keepdim=True)
    contrast = torch.empty(batch, 1, 1, 1, 1).uniform_(0.7, 1.3).to(clips.device)
    return (center + contrast * (shifted - center)).clamp(0, 255)


# Model ---------------------------------------------------------------------------------------------------------------


def build_model(
    args: argparse.Namespace, labels: list[str]
) -> tuple[FluxViTForVideoClassification, FluxViTVideoProcessor]:
    """The model, pretrained or new, with one output a label, and the processor that feeds it square clips."""
    clip = {"num_frames": args.num_frames, "image_size": args.size}
    fields = {name: value for name, value in clip.items() if value is not None}
    if args.model_name_or_path:
        known = FluxViTConfig.from_pretrained(args.model_name_or_path).id2label
        if set(known.values()) == set(labels):
            labels = [known[index] for index in range(len(known))]  # its classifier's order
        # Classifiers for another number of labels do not fit and start anew; so must those for other labels.
        model = FluxViTForVideoClassification.from_pretrained(
            args.model_name_or_path, ignore_mismatched_sizes=True, **fields, **_label_fields(labels)
        )
        if set(known.values()) != set(labels):
            for classifier in model.classifiers:
                nn.init.trunc_normal_(classifier.weight, std=model.config.initializer_range)
                nn.init.zeros_(classifier.bias)
    else:
        if args.token_budgets:
            budgets = sorted(set(args.token_budgets), reverse=True)
            fields.update(token_budgets=budgets, token_budget=budgets[0])
        given = json.loads(Path(args.config_name).read_text())
        model = FluxViTForVideoClassification(FluxViTConfig(**{**given, **fields, **_label_fields(labels)}))
    config = model.config
    height, width = config.image_height_width
    if height != width:
        raise ValueError(f"clips must be square: give --size, the config's image_size is {config.image_size}")
    settings = {"num_frames": config.num_frames, "size": {"shortest_edge": height}, "patch_size": config.patch_size}
    if args.model_name_or_path:
        return model, FluxViTVideoProcessor.from_pretrained(args.model_name_or_path, **settings)
    return model, FluxViTVideoProcessor(**settings)


def _label_fields(labels: list[str]) -> dict[str, dict]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


class MultiBudgetLoss(nn.Module):
    """Sum over budgets of the cross entropy, each through the head trained nearest its budget.

    A module around the model, so that the hooks of distributed wrappers see one forward a step. Parameters no budget
    reaches (other heads, alignment decoders) are frozen: such wrappers wait for the gradient of every other one.
    """

    def __init__(self, model: FluxViTForVideoClassification, token_budgets: list[int], num_patches: int):
        super().__init__()
        self.model, self.token_budgets = model, token_budgets
        used = {model.fluxvit.resolve_head(min(budget, num_patches)) for budget in token_budgets}
        for head in set(range(len(model.classifiers))) - used:
            model.classifiers[head].requires_grad_(False)
            model.fluxvit.projectors[head].requires_grad_(False)
        model.alignment_decoders.requires_grad_(False)

    def forward(self, pixel_values_videos: Tensor, labels: Tensor) -> Tensor:
        """(B, T, 3, H, W), (B,) -> scalar."""
        return sum(self.model(pixel_values_videos, token_budget=b, labels=labels).loss for b in self.token_budgets)


# Training ------------------------------------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; no decay on vectors, class token and position table."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    plain = {name for name, weight in trained if weight.ndim < 2 or "cls_token" in name or "position_emb" in name}
    groups = [
        {"params": [w for name, w in trained if name not in plain], "weight_decay": args.weight_decay},
        {"params": [w for name, w in trained if name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))


@torch.no_grad()
def evaluate(
    model: FluxViTForVideoClassification,
    loader: DataLoader,
    processor: FluxViTVideoProcessor,
    token_budgets: list[int],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Top-1 accuracy per budget, as {"eval_top1_BUDGET": share}."""
    model.eval()
    correct = {budget: [] for budget in token_budgets}
    for clips, labels in loader:
        videos = normalize(clips, processor)
        for budget in token_budgets:
            hits = model(videos, token_budget=budget).logits.argmax(-1) == labels
            correct[budget].append(accelerator.gather_for_metrics(hits))
    return {f"eval_top1_{budget}": torch.cat(hits).float().mean().item() for budget, hits in correct.items()}


def save(
    output_dir: str, model: FluxViTForVideoClassification, processor: FluxViTVideoProcessor, metrics: dict[str, float]
) -> None:
    """Writes model, processor and eval_results.json under a temporary name, then renames: never half a checkpoint."""
    target = Path(output_dir).absolute()
    temporary, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    (temporary / "eval_results.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if target.exists():
        os.replace(target, replaced)
    os.replace(temporary, target)
    shutil.rmtree(replaced, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = Accelerator()
    set_seed(args.seed)

    train_rows = read_csv(args.train_file)
    model, processor = build_model(args, sorted({label for _, label in train_rows}))
    config = model.config
    train_set = load_clips(train_rows, config.label2id, processor)
    eval_set = load_clips(read_csv(args.validation_file), config.label2id, processor) if args.validation_file else None

    rows, columns = (side // config.patch_size for side in train_set[0][0].shape[-2:])
    num_patches = config.num_frames // config.tubelet_size * rows * columns
    budgets = args.token_budgets or config.token_budgets
    objective = MultiBudgetLoss(model, budgets, num_patches)
    optimizer = build_optimizer(model, args)
    order = torch.Generator().manual_seed(args.seed)
    train_loader = DataLoader(train_set, args.per_device_train_batch_size, shuffle=True, generator=order)
    objective, optimizer, train_loader = accelerator.prepare(objective, optimizer, train_loader)
    total_steps = args.max_train_steps or args.num_train_epochs * len(train_loader)
    # Not prepared: accelerate would step it once a process, and `total_steps` counts optimiser steps.
    scheduler = get_cosine_schedule_with_warmup(optimizer, min(args.num_warmup_steps, total_steps // 2), total_steps)
    set_seed(args.seed, device_specific=True)  # every process augments its own clips in its own way
    logger.info(f"{len(train_set)} clips of {num_patches} patches, budgets {budgets}, {total_steps} steps")

    step = 0
    for _ in range(math.ceil(total_steps / len(train_loader))):
        objective.train()
        for clips, labels in train_loader:
            loss = objective(normalize(augment(clips), processor), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(objective.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step % args.logging_steps == 0 or step == total_steps:
                logger.info(f"step {step}/{total_steps} loss {loss.item() / len(budgets):.3f} a budget")
            if step == total_steps:
                break

    metrics = {"train_steps": step}
    if eval_set is not None:
        eval_loader = accelerator.prepare(DataLoader(eval_set, args.per_device_train_batch_size))
        metrics.update(evaluate(model, eval_loader, processor, budgets, accelerator))
        logger.info(str(metrics))
    if accelerator.is_main_process:
        save(args.output_dir, model, processor, metrics)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
