"""Puts what `run.sh` did into summary.json and a table. Exit status 1 if a step failed or was not run, or without a GPU
where one is meant.
"""

import csv
import datetime
import json
import sys
from pathlib import Path

import accelerate
import torch
import transformers


FIGURES = "figures: "  # before a line of JSON, `parts.tell`


def read_step(folder: Path, name: str, code: str, seconds: str) -> dict:
    """A step with the last line that it printed, and its figures where it told some."""
    log = folder / f"{name}.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else ["not run"]
    told = [line.removeprefix(FIGURES) for line in lines if line.startswith(FIGURES)]
    step = {"name": name, "status": int(code), "seconds": int(seconds), "last line": lines[-1] if lines else ""}
    if int(code) == 124 and log.exists():
        step["last line"] = f"out of time after: {step['last line']}"
    return {**step, **({"figures": json.loads(told[-1])} if told else {})}


def main(folder: Path, device: str) -> int:
    with open(folder / "steps.tsv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    summary = {
        "device": "cpu" if device == "cpu" else name,
        "date": datetime.date.today().isoformat(),
        "versions": {library.__name__: library.__version__ for library in (torch, transformers, accelerate)},
        "steps": [read_step(folder, *row) for row in rows],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"{summary['device'] or 'no GPU'}, {summary['date']}, {summary['versions']}\n")
    print("| step | status | seconds | last line |\n|---|---:|---:|---|")
    for step in summary["steps"]:
        line = step["last line"].strip(" |").replace("|", "/")  # some end in a table of their own
        print(f"| {step['name']} | {step['status']} | {step['seconds']} | {line} |")
    failed = [step for step in summary["steps"] if step["status"]]
    return 1 if failed or summary["device"] is None else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
