# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Every file below a folder through the pipeline at several budgets: `python tests/benchmarks/classify_all.py DIR`.

FluxViT-S with random weights, 12 frames of 224x224. Each file gives an answer or a `VideoDecodeError`; anything else
ends the run. Prints the errors and a count.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from flux_hf import (
    FluxViTConfig,
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
    VideoDecodeError,
)


NOT_CLIPS = {".csv", ".md", ".json", ".txt"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--token_budgets", type=int, nargs="+", default=[2048, 512])
    parser.add_argument("--json", type=Path, help="write one line a file here, and skip files already in it")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = FluxViTForVideoClassification(FluxViTConfig.small(num_labels=400)).eval()
    classify = FluxViTVideoClassificationPipeline(model=model, video_processor=FluxViTVideoProcessor(), device="cpu")
    files = sorted(path for path in options.directory.rglob("*") if path.is_file() and path.suffix not in NOT_CLIPS)
    rows = []
    if options.json and options.json.exists():
        rows = [json.loads(line) for line in options.json.read_text().splitlines()]
    done = {row["file"] for row in rows}
    for path in files:
        name = str(path.relative_to(options.directory))
        if name in done:
            continue
        row, start = {"file": name}, time.perf_counter()
        try:
            for budget in options.token_budgets:
                result = classify(str(path), token_budget=budget)
                if len(result) != 5 or not all(0 < entry["score"] < 1 for entry in result):
                    raise RuntimeError(f"{name} at {budget} tokens gave {result}")
        except VideoDecodeError as error:
            row["error"] = str(error)
        row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        if options.json:
            with open(options.json, "a") as stream:
                stream.write(json.dumps(row) + "\n")
    errors = [row for row in rows if "error" in row]
    for row in errors:
        print(f"{row['file']}: {row['error']}")
    print(f"{len(rows) - len(errors)} of {len(rows)} files classified at {options.token_budgets}, {len(errors)} errors")


if __name__ == "__main__":
    main()
