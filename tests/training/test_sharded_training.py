"""FSDP2: on a GPU through Accelerate; on CPUs, where Accelerate falls back to DDP, by `fully_shard` itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_training import batch
from training_runs import ENVIRONMENT, REPOSITORY, flags, losses, weights, write_data

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor


def test_sharded_training_saves_resumes_and_exports(tmp_path):
    """What is compared on the way is in sharded_training.py: DTensors, bit-equal resume, equality with one process."""
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + [str(Path(__file__).with_name("sharded_training.py")), str(tmp_path)],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    exported = tmp_path / "checkpoint-6"
    model = FluxViTForVideoClassification.from_pretrained(exported).eval()
    assert FluxViTVideoProcessor.from_pretrained(exported).num_frames == 4
    saved = torch.load(exported / "training_state.pt", weights_only=True)
    for name, average in saved["ema"].items():  # the average is what is exported
        assert torch.equal(model.get_parameter(name.removeprefix("model.")), average)
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in saved["objective"].items()})
    with torch.no_grad():
        logits = model(batch(99)[0], token_budget=8).logits
    torch.testing.assert_close(logits, torch.load(tmp_path / "logits.pt", weights_only=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Accelerate shards on GPUs only")
def test_fsdp2_through_accelerate_resumes(tmp_path):
    data = write_data(tmp_path / "clips")
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "ACCELERATE_USE_CPU"}

    def launch(output_dir: Path, *more: str) -> None:
        words = "accelerate.commands.launch --config_file training/accelerate_configs/fsdp2.yaml --num_processes 1"
        command = [sys.executable, "-m", *words.split(), "--mixed_precision", "no", "-m", "training.finetune"]
        run = subprocess.run(
            [*command, *flags(data, output_dir), *more],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert run.returncode == 0, run.stderr[-4000:]

    launch(tmp_path / "whole")
    launch(tmp_path / "resumed", "--resume_from_checkpoint", str(tmp_path / "whole/checkpoint-3"))
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "whole")[3:], abs=1e-4)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        if not name.endswith("k_proj.bias"):  # rounding noise alone moves it
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-4)
