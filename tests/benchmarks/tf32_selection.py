# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""How many kept tokens are others if the patch embedding is computed in TF32, with what a CPU can tell.

    python tests/benchmarks/tf32_selection.py DIR [--model_name_or_path CHECKPOINT] [--clips 40]

TF32 is simulated: inputs and weights of the patch embedding's matmul are rounded to TF32's ten bits of mantissa (to
nearest), products are summed in float32. Clips are the videos in DIR, 16 frames of 224 pixels; without a checkpoint the
weights are new (seed 0). The share is of kept tokens that float32 keeps too.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTVideoProcessor


BUDGETS = (512, 1024, 2048)


def rounded(values: Tensor) -> Tensor:
    """float32 to the nearest number with 10 bits of mantissa, as float32."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@torch.no_grad()
def kept(model: FluxViTForVideoClassification, pixels: Tensor) -> list[set[int]]:
    patches, _ = model.embed(pixels)
    return [set(indices[0].tolist()) for indices in model.select(patches, BUDGETS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--clips", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.model_name_or_path:
        model = FluxViTForVideoClassification.from_pretrained(args.model_name_or_path).eval()
    else:
        model = FluxViTForVideoClassification(FluxViTConfig.small()).eval()
    processor = FluxViTVideoProcessor(num_frames=16, size=224)
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix in (".mp4", ".avi", ".webm"))
    paths = paths[:: max(len(paths) // args.clips, 1)][: args.clips]
    clips = [processor(path, return_tensors="pt")["pixel_values_videos"] for path in paths]
    exact = [kept(model, clip) for clip in clips]
    projection = model.fluxvit.embeddings.patch_embeddings.projection
    projection.weight.data = rounded(projection.weight.data)
    projection.register_forward_pre_hook(lambda module, inputs: tuple(map(rounded, inputs)))
    shares = [
        [1 - len(one & other) / len(one) for one, other in zip(*sets, strict=True)]
        for sets in zip(exact, (kept(model, clip) for clip in clips), strict=True)
    ]
    print(f"{len(clips)} clips, {args.model_name_or_path or 'new weights'}: kept tokens that change, mean and most")
    for budget, changed in zip(BUDGETS, zip(*shares, strict=True), strict=True):
        print(f"{budget:>6} {sum(changed) / len(changed):.3%} {max(changed):.3%}")


if __name__ == "__main__":
    main()
