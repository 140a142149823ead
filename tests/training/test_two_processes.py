"""Two real processes (gloo): loops of other people, the frame cache, and streams."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from training_runs import ENVIRONMENT, REPOSITORY, different, flags, launch, losses, weights, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips"), 16, 6)


def torchrun(script: str, *arguments: str) -> str:
    """Runs a script of this folder on two processes; what it prints."""
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + [str(Path(__file__).with_name(script)), *arguments],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize("kind", ["loop", pytest.param("trainer", marks=pytest.mark.slow), "checkpointing"])
def test_loops_that_know_nothing_of_the_heads(tmp_path, kind):
    assert torchrun("two_processes.py", kind, str(tmp_path)).count("finished") == 2


SHORT = {"max_train_steps": 2, "num_warmup_steps": 1, "checkpointing_steps": "no", "per_device_train_batch_size": 2}


def test_processes_share_the_decoding_of_a_frame_cache(data, tmp_path):
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    launch(flags(data, plain, **SHORT), processes=2)
    log = launch(flags(data, cached, frame_cache=tmp_path / "frames", **SHORT), processes=2)
    assert log.count("16 clips in the cache") == 2  # each process has them all
    assert len(list((tmp_path / "frames").rglob("*.npy"))) == 16 + 6
    assert losses(cached) == losses(plain) and different(weights(plain), weights(cached)) == []


@pytest.mark.slow
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


def write_stream(data: Path, folder: Path, files: int) -> Path:
    """16 clips in so many parquet files, each a class of its own, so that it is known again."""
    features = datasets.Features(
        {"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=[f"clip {n}" for n in range(16)])}
    )
    folder.mkdir()
    for file in range(files):
        clips = list(range(16))[file * 16 // files : (file + 1) * 16 // files]
        videos = [{"path": None, "bytes": (data / "train" / f"{clip:05}.mp4").read_bytes()} for clip in clips]
        rows = datasets.Dataset.from_dict({"video": videos, "label": clips}, features=features)
        rows.to_parquet(folder / f"train-{file:05}-of-{files:05}.parquet")
    return folder


@pytest.mark.slow
def test_each_clip_of_a_stream_is_read_once_an_epoch(data, tmp_path):
    """By one of two workers of one of two processes."""
    cases, source = {}, {"data": None, "split": "train", "streaming": True, "max_train_samples": 16}
    source |= {"validation_data": None, "dataloader_num_workers": 2}
    for files in (1, 8):
        folder = write_stream(data, tmp_path / str(files), files)
        for more in ({"shuffle_buffer_size": 5}, {"shuffle_buffer_size": 0}, {"split_stream": True}):
            changes = {**SHORT, **source, "dataset_name": folder, **more}
            cases[f"{files} files, {more}"] = flags(data, tmp_path / "out", **changes)
    (tmp_path / "cases").write_text(json.dumps(cases))
    torchrun("stream_epochs.py", str(tmp_path / "cases"))
    for name, (one, other) in json.loads((tmp_path / "cases").read_text()).items():
        for epoch in range(2):
            assert len(one[epoch]) == len(other[epoch]) == 8, name
            assert sorted(one[epoch] + other[epoch]) == list(range(16)), name
        assert (one[0] != one[1]) == ("_size': 0" not in name), name
