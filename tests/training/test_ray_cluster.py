"""A Ray cluster of two nodes on this machine, one of which is killed while it works."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from evaluation_parts import write_videos_and_model
from training_runs import ENVIRONMENT, REPOSITORY

from training.extract_features import parse_arguments
from training.inference.units import go_through_parts


NUM_CLIPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos of 50 to 142 frames, one that is none, and a model."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos_and_model(folder, [50 + 4 * clip for clip in range(NUM_CLIPS)])
    (folder / "clips" / "none.mp4").write_bytes(b"nothing")
    return folder


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    # Less on the node that stays than both models and the decoding have threads.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def start(command, data, output, *more):
    """A command of two on all windows, as a process of its own; shards of one clip."""
    words = f"{data / 'clips'} --model_name_or_path {data / 'model'} --window 0.2 --stride 0.04 --token_budget 8"
    words += f" --clips_per_shard 1 --dataloader_num_workers 0 {output}"
    return subprocess.Popen(
        [sys.executable, "-m", f"training.{command}", *words.split(), *more],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(run):
    """Waits for its end: status 1, for one video is none."""
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 1, errors.decode()


@pytest.mark.slow
def test_a_node_is_lost_and_no_row(data, tmp_path, cluster):
    finish(start("extract_features", data, f"--output_dir {tmp_path / 'one'}"))
    node = cluster.add_node(num_cpus=2)
    run = start(
        *("extract_features", data, f"--output_dir {tmp_path / 'ray'}"),
        *("--engine", "ray", "--ray_address", cluster.address, "--ray_actors", "2"),
    )
    while len(list((tmp_path / "ray").glob("*.parquet"))) < 4 and run.poll() is None:
        time.sleep(0.02)
    assert run.poll() is None, run.stderr.read().decode()
    cluster.remove_node(node, allow_graceful=False)
    there = {path.name for path in (tmp_path / "ray").glob("*.parquet")}
    finish(run)
    assert len(there) < NUM_CLIPS  # the node was lost before the end
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == names and len(names) == NUM_CLIPS + 1 + 3
    for name in names:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


@pytest.mark.slow
def test_labels_on_a_cluster_of_this_machine(data, tmp_path):
    """Without an address there is a cluster for this run alone."""
    for engine in ("accelerate", "ray"):
        finish(start("predict", data, f"--output {tmp_path / engine}.csv", "--engine", engine))
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "accelerate.csv").read_bytes()
    assert len((tmp_path / "ray.csv").read_text().splitlines()) > 1000


def test_flags_of_ray_are_for_ray(tmp_path):
    fixed = ["x.mp4", "--model_name_or_path", "m", "--output_dir", str(tmp_path)]
    for flag, value in (("--ray_actors", "2"), ("--ray_address", "host:6379")):
        with pytest.raises(ValueError, match=f"{flag} {value} is for --engine ray"):
            parse_arguments([*fixed, flag, value])
    with pytest.raises(ValueError, match="--ray_actors must be at least 1, got 0"):
        parse_arguments([*fixed, "--engine", "ray", "--ray_actors", "0"])
    args = parse_arguments([*fixed, "--engine", "ray"])
    measure = SimpleNamespace(processor=None, point=None)
    with pytest.raises(ValueError, match="from one process, got 2"):
        go_through_parts([], None, measure, None, args, SimpleNamespace(num_processes=2))
