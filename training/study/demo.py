# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The whole path in a few minutes on a CPU: make clips, train, classify at three budgets, draw the kept tokens.

    python -m training.study.demo --output_dir demo_output

A tiny FluxViT learns from scratch how an object moves (`motion_clips.py`; one frame tells nothing). Run from
the top of the checkout; needs no network.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import pipeline
from transformers.utils import logging

from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.pipelines import FluxViTVideoClassificationPipeline
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor
from flux_hf.visualization import visualize_kept_tokens

from .motion_clips import MotionClipConfig, write_motion_clips


NUM_FRAMES, SIZE = 8, 56
TOKEN_BUDGETS = (64, 32, 16)  # of 4 x 4 x 4 patches: all, half and a quarter
# Two frames a patch: a single layer can then see motion. LayerScale and initialisation are for a short run from
# scratch at this width; the defaults (1e-5, 0.02) are for long ones and would not leave chance level in this time.
MODEL_CONFIG = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "num_pooling_heads": 3,
    "projection_dim": 96,
    "tubelet_size": 2,
    "position_embedding_grid": [4, 4, 4],
    "layer_scale_init_value": 1.0,
    "initializer_range": 0.08,
}
PICTURE_SCALE = 3


def train(data_dir: Path, model_dir: Path, max_train_steps: int, seed: int) -> None:
    """Runs `accelerate launch -m training.finetune` on the CPU. Raises CalledProcessError if it fails."""
    config_file = data_dir / "config.json"
    config_file.write_text(json.dumps(MODEL_CONFIG, indent=2))
    launch = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no"
    launch += f" --dynamo_backend no --num_cpu_threads_per_process {os.cpu_count()}"
    command = [sys.executable, "-m", *launch.split(), "-m", "training.finetune"]
    flags = {
        "config_name": config_file,
        "data": data_dir / "train.csv",
        "validation_data": data_dir / "val.csv",
        "output_dir": model_dir,
        "frame_cache": data_dir / "frames",
        "sampling": "fixed",
        "num_frames": NUM_FRAMES,
        "size": SIZE,
        "augmentation": "light",
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 32,
        "learning_rate": 2e-3,
        "adam_beta2": 0.98,
        "layer_decay": 1.0,
        "max_grad_norm": 1.0,
        "max_train_steps": max_train_steps,
        "num_warmup_steps": min(20, max_train_steps),
        "eval_steps": "no",
        "checkpointing_steps": "no",
        "dataloader_num_workers": 0,
        "logging_steps": 30,
        "seed": seed,
    }
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    command += ["--no_scale_lr", "--overwrite_output_dir", "--token_budgets", *map(str, TOKEN_BUDGETS)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"})


def classify_at_budgets(model_dir: Path, clips: list[tuple[str, str]]) -> dict[int, float]:
    """Classifies held-out clips through the pipeline and prints a row a budget. Returns accuracy per budget."""
    classify = pipeline(
        "video-classification",
        model=str(model_dir),
        pipeline_class=FluxViTVideoClassificationPipeline,
        device="cpu",
    )
    paths, labels = map(list, zip(*clips, strict=True))
    num_patches = NUM_FRAMES // classify.model.config.tubelet_size * (SIZE // classify.model.config.patch_size) ** 2
    classify(paths[:16], batch_size=16)  # the first call pays for lazy set-up
    print(f"\n{'token_budget':>12} {'tokens kept':>12} {'GFLOPs':>8} {'accuracy':>9} {'seconds/clip':>13}")
    accuracies = {}
    for budget in TOKEN_BUDGETS:
        start = time.perf_counter()
        results = classify(paths, token_budget=budget, top_k=1, batch_size=16)
        seconds = (time.perf_counter() - start) / len(paths)
        hits = sum(result[0]["label"] == label for result, label in zip(results, labels, strict=True))
        accuracies[budget] = hits / len(labels)
        gflops = classify.model.flops(NUM_FRAMES, SIZE, budget) / 1e9
        kept = f"{min(budget, num_patches)} of {num_patches}"
        print(f"{budget:>12} {kept:>12} {gflops:>8.4f} {accuracies[budget]:>9.1%} {seconds:>13.4f}")
    return accuracies


def draw_kept_tokens(model_dir: Path, clip: str, token_budget: int, path: Path) -> None:
    """Saves a picture of the patches of `clip` that the model encodes at `token_budget`."""
    model = FluxViTForVideoClassification.from_pretrained(model_dir).eval()
    processor = FluxViTVideoProcessor.from_pretrained(model_dir)
    with torch.no_grad():
        keep_indices = model(**processor(clip, return_tensors="pt"), token_budget=token_budget).keep_indices[0]
    # The same frames, larger, so that there is something to look at; patches grow with them.
    pixels = processor(
        clip, size=SIZE * PICTURE_SCALE, do_rescale=False, do_normalize=False, return_tensors="pt"
    ).pixel_values_videos[0]
    frames = pixels.round().clamp(0, 255).to(torch.uint8)
    patch_size, tubelet_size = model.config.patch_size * PICTURE_SCALE, model.config.tubelet_size
    visualize_kept_tokens(frames, keep_indices, patch_size, tubelet_size, columns=4).save(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--num_train_clips", type=int, default=480)
    parser.add_argument("--num_val_clips", type=int, default=120)
    parser.add_argument("--max_train_steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    logging.disable_progress_bar()
    begin = time.perf_counter()
    data_dir, model_dir = args.output_dir / "clips", args.output_dir / "model"
    write_motion_clips(data_dir, args.num_train_clips, args.seed, "train")
    held_out = write_motion_clips(data_dir, args.num_val_clips, args.seed, "val")
    made = time.perf_counter()
    motions = MotionClipConfig().motions
    counts = f"{args.num_train_clips} + {args.num_val_clips}"
    print(f"made {counts} clips of the motions {', '.join(motions)}: {made - begin:.0f} s", flush=True)
    try:
        train(data_dir, model_dir, args.max_train_steps, args.seed)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the training failed with exit status {error.returncode}") from error
    trained = time.perf_counter()
    print(f"trained {args.max_train_steps} steps: {trained - made:.0f} s")

    accuracies = classify_at_budgets(model_dir, held_out)
    chance = 1 / len(motions)
    print(f"chance level: {chance:.1%}, {len(held_out)} held-out clips; the seconds include decoding, most of them")
    picture = args.output_dir / "kept_tokens.png"
    draw_kept_tokens(model_dir, held_out[0][0], TOKEN_BUDGETS[-1], picture)
    print(f"kept tokens at budget {TOKEN_BUDGETS[-1]}: {picture}")
    print(f"model: {model_dir}; whole demo: {time.perf_counter() - begin:.0f} s")
    if accuracies[TOKEN_BUDGETS[0]] < 2 * chance:
        raise SystemExit(f"the model did not learn: accuracy {accuracies[TOKEN_BUDGETS[0]]:.1%}, chance {chance:.1%}")


if __name__ == "__main__":
    main()
