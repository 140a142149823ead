"""DeepSpeed on two CPU processes, where it is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import ENVIRONMENT, REPOSITORY


@pytest.mark.slow  # DeepSpeed compiles its communication at first
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [1, 2])
def test_the_average_is_of_the_float32_weights(tmp_path, stage):
    """What is compared is in deepspeed_training.py: averages, what is seen of them, exported and resumed."""
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + [str(Path(__file__).with_name("deepspeed_training.py")), str(stage), str(tmp_path)],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count("finished") == 2
