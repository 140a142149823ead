# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What the scripts of this folder share: their flags, their model and clips, and how they say what they found."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flux_hf import FluxViTConfig, FluxViTForVideoClassification


# Largest difference of logits from float32's, over their standard deviation. Weights and pixels are whole in bfloat16,
# so that only the arithmetic differs. Kept sets are chosen in float32 by every dtype: a tie may fall otherwise.
TOLERANCES = {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
SAME_TOKENS = 0.998
# A layer counts: a new one adds 1e-5 of what it computes.
LIVELY = {"layer_scale_init_value": 0.3, "initializer_range": 0.05}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_pooling_heads": 4,
    "projection_dim": 32,
    "position_embedding_grid": [4, 4, 4],
}


def parse(doc: str, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """--device and --tiny, and what `add` adds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and clips, to try the script itself")
    if add is not None:
        add(parser)
    return parser.parse_args()


def budgets(tiny: bool) -> list[int]:
    return [32, 16, 8] if tiny else [3072, 2048, 1024]


def build(tiny: bool, **changes) -> FluxViTForVideoClassification:
    """FluxViT-S, or a tiny one, on the CPU, with random weights of one seed that are whole in bfloat16."""
    torch.manual_seed(0)
    fields = {**LIVELY, **(TINY if tiny else {}), "token_budgets": budgets(tiny), "num_labels": 10, **changes}
    config = FluxViTConfig.small(**{**fields, "token_budget": fields["token_budgets"][1]})
    model = FluxViTForVideoClassification._from_config(config, attn_implementation="sdpa").eval()
    return model.bfloat16().float()


def clips(tiny: bool, batch: int) -> Tensor:
    """(B, T, 3, H, W) of noise that is stronger in some patches than in others, so that scores seldom tie."""
    frames, size = (4, 56) if tiny else (16, 224)
    generator = torch.Generator().manual_seed(0)
    strength = torch.rand(batch, frames, 1, size // 14, size // 14, generator=generator)
    strength = strength.repeat_interleave(14, 3).repeat_interleave(14, 4)
    return (strength * torch.randn(batch, frames, 3, size, size, generator=generator)).bfloat16().float()


def difference(logits: Tensor, expected: Tensor) -> float:
    """The largest, in standard deviations of the expected logits; not a number where there is one."""
    expected = expected.float().cpu()
    return ((logits.float().cpu() - expected).abs().max() / expected.std()).item()


def same_tokens(kept: Tensor, expected: Tensor) -> float:
    """The share of kept tokens (B, K) that are among the expected ones (B, K)."""
    pairs = zip(kept.tolist(), expected.tolist(), strict=True)
    return statistics.mean(len(set(one) & set(other)) / len(other) for one, other in pairs)


def seconds(way: Callable[[], Any], device: str, rounds: int) -> float:
    """Median over rounds, after two that warm up."""
    times = []
    for number in range(rounds + 2):
        wait_for(device)
        start = time.perf_counter()
        way()
        wait_for(device)
        if number > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def tell(found: dict[str, Any], line: str) -> None:
    """What `summary.py` reads: the figures as JSON, and as the last line what they mean."""
    print(f"figures: {json.dumps(found)}\n{line}", flush=True)
