"""Two real processes (gloo): loops of other people, the frame cache, and streams."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from training_runs import ENVIRONMENT, REPOSITORY, different, flags, launch, losses, weights, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips"), 16, 6)


@pytest.mark.parametrize("kind", ["loop", "trainer", "checkpointing"])
def test_loops_that_know_nothing_of_the_heads(tmp_path, kind):
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + [str(Path(__file__).with_name("two_processes.py")), kind, str(tmp_path)],
        cwd=REPOSITORY,
        env={
            **ENVIRONMENT,
            "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("finished") == 2


SHORT = {"max_train_steps": 2, "num_warmup_steps": 1, "checkpointing_steps": "no", "per_device_train_batch_size": 2}


def test_processes_share_the_decoding_of_a_frame_cache(data, tmp_path):
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    launch(flags(data, plain, **SHORT), processes=2)
    log = launch(flags(data, cached, frame_cache=tmp_path / "frames", **SHORT), processes=2)
    assert log.count("16 clips in the cache") == 2  # each process has them all
    assert len(list((tmp_path / "frames").rglob("*.npy"))) == 16 + 6
    assert losses(cached) == losses(plain) and different(weights(plain), weights(cached)) == []


def test_streams_with_two_workers_each(data, tmp_path):
    names = sorted({line.split(",")[1] for line in (data / "train.csv").read_text().split()[1:]})
    rows = [line.split(",") for line in (data / "train.csv").read_text().split()[1:]]
    features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=names)})
    content = {
        "video": [{"path": None, "bytes": (data / path).read_bytes()} for path, _ in rows],
        "label": [names.index(label) for _, label in rows],
    }
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    source = {"data": None, "dataset_name": tmp_path / "set", "split": "train", "streaming": True}
    source |= {"max_train_samples": 16, "validation_data": None, "dataloader_num_workers": 2}
    outputs = {}
    for name, more in (("whole", {}), ("split", {"split_stream": True, "shuffle_buffer_size": 4})):
        launch(flags(data, tmp_path / name, **{**SHORT, **source, **more}), processes=2)
        outputs[name] = losses(tmp_path / name)
    assert len(outputs["whole"]) == len(outputs["split"]) == 2 and outputs["whole"] != outputs["split"]
