# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What exports cost a trained model: `PYTHONPATH=. python tests/benchmarks/export_accuracy.py CHECKPOINT LIST.csv`.

Top-1 of the model and of its exports on the same pixels of a list's clips, one view each, the budget's own clip where
the checkpoint has a token plan; how many clips have the same label, and the same kept tokens.
"""

import argparse
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from conversion.export import export
from flux_hf import FluxViTVideoClassificationPipeline, load_classifier, load_exported, load_processor
from training.data.sources import read_clips


WAYS = ("onnx", "openvino", "onnx int8", "openvino int8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="a csv of videos and labels")
    parser.add_argument("--token_budgets", type=int, nargs="+", required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--max_clips", type=int)
    parser.add_argument("--batch_size", type=int, default=16)
    return parser.parse_args()


@torch.no_grad()
def predict(model, pixels: list[Tensor], budget: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Labels (N,) and keep_indices (N, K)."""
    labels, kept = [], []
    for batch in torch.cat(pixels).split(batch_size):
        outputs = model(batch, token_budget=budget)
        labels.append(outputs.logits.argmax(-1))
        kept.append(outputs.keep_indices)
    return torch.cat(labels), torch.cat(kept)


def main() -> None:
    options = parse_arguments()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = load_classifier(options.checkpoint, dtype=torch.float32).eval()
    processor = load_processor(options.checkpoint, model.config)
    classify = FluxViTVideoClassificationPipeline(model, video_processor=processor, device="cpu")
    clips = read_clips(options.data)[: options.max_clips]
    truth = torch.tensor([int(model.config.label2id.get(clip.label, clip.label)) for clip in clips])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        exports = {}
        for way in options.ways:
            export_format, _, how = way.partition(" ")
            output = Path(folder, way.replace(" ", "-"))
            export(options.checkpoint, str(output), export_format, options.token_budgets, int8=how == "int8")
            exports[way] = load_exported(output)
        print(f"{len(clips)} clips\n\n| tokens | way | top-1 | change | same label | same kept tokens |")
        print("|---:|---|---:|---:|---:|---:|")
        for budget in options.token_budgets:
            prepare = [pool.submit(classify.preprocess, clip.path, token_budget=budget) for clip in clips]
            pixels = [prepared.result()["pixel_values_videos"] for prepared in prepare]
            labels, kept = predict(model, pixels, budget, options.batch_size)
            eager = 100 * (labels == truth).float().mean().item()
            print(f"| {budget} | eager, float32 | {eager:.1f} | | | |", flush=True)
            for way, exported in exports.items():
                own_labels, own_kept = predict(exported, pixels, budget, options.batch_size)
                top1 = 100 * (own_labels == truth).float().mean().item()
                same_label, same_kept = (own_labels == labels).sum(), (own_kept == kept).all(1).sum()
                print(
                    f"| {budget} | {way} | {top1:.1f} | {top1 - eager:+.1f} | {same_label} | {same_kept} |", flush=True
                )


if __name__ == "__main__":
    main()
