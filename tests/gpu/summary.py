"""Puts what `run.sh` did into summary.json and a table. Exit status 1 if a step failed, or without a GPU."""

import csv
import datetime
import json
import sys
from pathlib import Path

import accelerate
import torch
import transformers


def main(folder: Path) -> int:
    with open(folder / "steps.tsv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    summary = {
        "device": device,
        "date": datetime.date.today().isoformat(),
        "versions": {library.__name__: library.__version__ for library in (torch, transformers, accelerate)},
        "steps": [{"name": name, "status": int(code), "seconds": int(seconds)} for name, code, seconds in rows],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"{device or 'no GPU'}, {summary['date']}, {summary['versions']}\n")
    print("| step | status | seconds | last line |\n|---|---:|---:|---|")
    for step in summary["steps"]:
        log = folder / f"{step['name']}.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        print(f"| {step['name']} | {step['status']} | {step['seconds']} | {lines[-1] if lines else 'not run'} |")
    failed = [step for step in summary["steps"] if step["status"]]
    return 1 if failed or device is None else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
