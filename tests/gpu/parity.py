# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Logits and kept sets of FluxViT-S in three dtypes by each attention, beside float32's by SDPA here and on the CPU.

    PYTHONPATH=. python tests/gpu/parity.py [--device cpu --tiny]

Fails where one of them is further away than `TOLERANCES` allows or keeps other tokens; tells of all before it does.
"""

import sys
import traceback
from importlib.util import find_spec

import torch
from parts import SAME_TOKENS, TOLERANCES, budgets, build, clips, difference, parse, same_tokens, tell
from torch import Tensor


ATTENTIONS = ("sdpa", "flex_attention", "flash_attention_2")


def why_not(attention: str, dtype: torch.dtype, device: str, tiny: bool) -> str | None:
    """Why an attention is not tried."""
    if tiny and attention == "flex_attention" and dtype != torch.float32:
        return "not run: compiled once is enough to try this script"
    if attention != "flash_attention_2":
        return None
    if find_spec("flash_attn") is None:
        return "not run: flash-attn is not installed"
    return None if device == "cuda" and dtype != torch.float32 else "not run: half precision on a GPU only"


@torch.no_grad()
def compute(tiny: bool, device: str, dtype: torch.dtype, attention: str) -> list[tuple[Tensor, Tensor]]:
    """Logits and kept tokens at two budgets."""
    model = build(tiny).to(device, dtype)
    model.set_attn_implementation(attention)
    videos = clips(tiny, 2).to(device, dtype)
    outputs = [model(videos, token_budget=budget) for budget in budgets(tiny)[1:]]
    return [(output.logits.cpu(), output.keep_indices.cpu()) for output in outputs]


def compare(found: list, expected: list) -> tuple[float, float]:
    """The largest difference of logits, and the smallest share of equal tokens."""
    pairs = list(zip(found, expected, strict=True))
    return max(difference(f[0], e[0]) for f, e in pairs), min(same_tokens(f[1], e[1]) for f, e in pairs)


def main() -> int:
    options = parse(__doc__)
    references = {
        "here": compute(options.tiny, options.device, torch.float32, "sdpa"),
        "CPU": compute(options.tiny, "cpu", torch.float32, "sdpa"),
    }
    rows, worst, ran = [], 0.0, 0
    print("| dtype | attention | from float32, SDPA, here | same tokens | on the CPU | same tokens | allowed |")
    print(f"|---|---|{'---:|' * 5}")
    for dtype, allowed in TOLERANCES.items():
        for attention in ATTENTIONS:
            row = {"dtype": str(dtype).removeprefix("torch."), "attention": attention, "allowed": allowed}
            rows.append(row)
            reason = why_not(attention, dtype, options.device, options.tiny)
            if reason is None:
                try:
                    found = compute(options.tiny, options.device, dtype, attention)
                except Exception as error:  # told of, and the others are tried
                    traceback.print_exc()
                    reason, row["failed"] = f"{type(error).__name__}, see above", True
            row["not run"] = reason
            if reason is not None:
                print(f"| {row['dtype']} | {attention} | {reason} | | | | |", flush=True)
                continue
            cells, ran = [], ran + 1
            for name, expected in references.items():
                row[name], row[f"same tokens, {name}"] = apart, same = compare(found, expected)
                row["failed"] = row.get("failed", False) or not (apart <= allowed and same >= SAME_TOKENS)
                worst = max(worst, apart / allowed)
                cells += [f"{apart:.1e}", f"{same:.2%}"]
            print(f"| {row['dtype']} | {attention} | {' | '.join(cells)} | {allowed:.0e} |", flush=True)
    failed = [f"{row['dtype']} {row['attention']}" for row in rows if row.get("failed")]
    flash = next(row["not run"] for row in rows if row["attention"] == ATTENTIONS[-1]) or "run"
    line = f"{ran} ways, the furthest at {worst:.0%} of what is allowed; flash_attention_2 {flash}"
    tell({"rows": rows}, f"FAILED: {', '.join(failed)}; {line}" if failed else line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
