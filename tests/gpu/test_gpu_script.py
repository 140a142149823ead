"""`run.sh --cpu`: every step of the script for a GPU, tried without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import summary


SCRIPT = Path(__file__).with_name("run.sh")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_step_runs_on_a_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "LIMIT": "1400"}
    run = subprocess.run([SCRIPT, "--cpu", tmp_path], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads((tmp_path / "summary.json").read_text())
    steps = {step["name"]: step for step in told["steps"]}
    assert told["device"] == "cpu" and not any(step["status"] for step in steps.values())
    with_figures = {"parity", "waits", "training", "compiled", "forward", "step"}
    assert with_figures == {name for name, step in steps.items() if "figures" in step}
    assert steps["waits"]["figures"]["waits"] == {}
    losses = steps["training"]["figures"]["losses"]
    assert losses["whole"] == losses["cut"] and len(set(losses["whole"])) > 1
    assert all(f"| {name} | 0 |" in run.stdout for name in steps)


def test_a_step_that_failed_or_had_no_time_is_said(tmp_path, capsys):
    (tmp_path / "steps.tsv").write_text("good\t0\t3\nbad\t1\t2\nlate\t124\t0\nslow\t124\t9\n")
    (tmp_path / "good.txt").write_text('figures: {"ms": 1.5}\nall well\n')
    (tmp_path / "bad.txt").write_text("Traceback\nValueError: no\n")
    (tmp_path / "slow.txt").write_text("step 7\n")
    assert summary.main(tmp_path, "cpu") == 1
    table = capsys.readouterr().out
    for row in ("good | 0 | 3 | all well", "bad | 1 | 2 | ValueError: no", "late | 124 | 0 | not run"):
        assert f"| {row} |" in table
    assert "| slow | 124 | 9 | out of time after: step 7 |" in table
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert [step.get("figures") for step in steps] == [{"ms": 1.5}, None, None, None]
