# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The whole path in a few minutes on a CPU: make clips, train, classify at three budgets, draw the kept tokens.

    python -m training.study.demo --output_dir demo_output

A tiny FluxViT learns from scratch how an object moves (`motion_clips.py`; one frame tells nothing). Run from
the top of the checkout; needs no network.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import pipeline
from transformers.utils import logging

from flux_hf.checkpoint_files import write_json
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.pipelines import FluxViTVideoClassificationPipeline
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor
from flux_hf.visualization import visualize_kept_tokens

from ..inference.points import EvalPoint
from .design import MODEL_CONFIGS
from .motion_clips import MotionClipConfig, write_motion_clips
from .runs import OFFLINE, launch


RECIPE = Path(__file__).with_suffix(".yaml")
PICTURE_SCALE = 3


def train(data_dir: Path, model_dir: Path, max_train_steps: int, seed: int) -> None:
    """Runs `accelerate launch -m training.finetune` on the CPU. Raises CalledProcessError if it fails."""
    config_file = data_dir / "config.json"
    write_json(config_file, {**MODEL_CONFIGS["fluxvit"], "patch_size": 14, "position_embedding_grid": [4, 4, 4]})
    flags = {
        "recipe": RECIPE,
        "config_name": config_file,
        "data": data_dir / "train.csv",
        "validation_data": data_dir / "val.csv",
        "frame_cache": data_dir / "frames",
        "output_dir": model_dir,
        "max_train_steps": max_train_steps,
        "num_warmup_steps": min(20, max_train_steps),
        "seed": seed,
    }
    command = [sys.executable, "-m", *launch(os.cpu_count()), "--overwrite_output_dir"]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    subprocess.run(command, check=True, env={**os.environ, **OFFLINE})


def classify_at_budgets(model_dir: Path, clips: list[tuple[str, str]]) -> dict[int, float]:
    """Classifies held-out clips through the pipeline and prints a row a budget. Returns accuracy per budget."""
    classify = pipeline(
        "video-classification",
        model=str(model_dir),
        pipeline_class=FluxViTVideoClassificationPipeline,
        device="cpu",
    )
    paths, labels = map(list, zip(*clips, strict=True))
    model, config = classify.model, classify.model.config
    default = EvalPoint(config.num_frames, config.image_height_width[0])
    classify(paths[:16], batch_size=16)  # the first call pays for lazy set-up
    print(f"\n{'token_budget':>12} {'tokens kept':>12} {'GFLOPs':>8} {'accuracy':>9} {'seconds/clip':>13}")
    accuracies = {}
    for budget in config.token_budgets:
        start = time.perf_counter()
        results = classify(paths, token_budget=budget, top_k=1, batch_size=16)
        seconds = (time.perf_counter() - start) / len(paths)
        hits = sum(result[0]["label"] == label for result, label in zip(results, labels, strict=True))
        accuracies[budget] = hits / len(labels)
        point = replace(default, token_budget=budget)
        gflops = model.flops(point.num_frames, point.size, budget) / 1e9
        kept = f"{point.kept_tokens(model)} of {point.dense_tokens(config)}"
        print(f"{budget:>12} {kept:>12} {gflops:>8.4f} {accuracies[budget]:>9.1%} {seconds:>13.4f}")
    return accuracies


def draw_kept_tokens(model_dir: Path, clip: str, token_budget: int, path: Path) -> None:
    """Saves a picture of the patches of `clip` that the model encodes at `token_budget`."""
    model = FluxViTForVideoClassification.from_pretrained(model_dir).eval()
    processor = FluxViTVideoProcessor.from_pretrained(model_dir)
    with torch.no_grad():
        keep_indices = model(**processor(clip, return_tensors="pt"), token_budget=token_budget).keep_indices[0]
    # The same frames, larger, so that there is something to look at; patches grow with them.
    side = model.config.image_height_width[0] * PICTURE_SCALE
    pixels = processor(clip, size=side, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values_videos
    frames = pixels[0].round().clamp(0, 255).to(torch.uint8)
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
    draw_kept_tokens(model_dir, held_out[0][0], min(accuracies), picture)
    print(f"kept tokens at budget {min(accuracies)}: {picture}")
    print(f"model: {model_dir}; whole demo: {time.perf_counter() - begin:.0f} s")
    best = accuracies[max(accuracies)]
    if best < 2 * chance:
        raise SystemExit(f"the model did not learn: accuracy {best:.1%}, chance {chance:.1%}")


if __name__ == "__main__":
    main()
