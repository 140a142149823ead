"""Features of clips and windows as people extract them: real files, real processes, kills."""

import json
import os
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from evaluation_parts import write_videos_and_model
from training_runs import ENVIRONMENT, REPOSITORY
from video_files import encode

from flux_hf import FluxViTModel, FluxViTVideoProcessor, iter_windows, scatter_to_grid
from training.extract_features import main, parse_arguments
from training.inference import features
from training.inference.parts import Part


NUM_CLIPS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos of 20 to 56 frames, and a model."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos_and_model(folder, [20 + 6 * clip for clip in range(NUM_CLIPS)])
    return folder


def flags(data, output_dir, *more, sources=None, **values):
    given = {"model_name_or_path": data / "model", "output_dir": output_dir, "dtype": "float32", "clips_per_shard": 2}
    given |= {"dataloader_num_workers": 0, "token_budget": 8, **values}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    return [*map(str, sources or [data / "clips"]), *words, *more]


def rows(folder):
    """(video, start, end, vector) as a user loads them."""
    table = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")
    return [(row["video"], row["start"], row["end"], np.array(row["vector"])) for row in table]


def same(one, other):
    """To the bit."""
    return [row[:3] for row in one] == [row[:3] for row in other] and all(
        np.array_equal(ours[3], theirs[3], equal_nan=True) for ours, theirs in zip(one, other, strict=True)
    )


def encoder(data):
    return FluxViTModel.from_pretrained(data / "model").eval(), FluxViTVideoProcessor.from_pretrained(data / "model")


@torch.no_grad()
def test_features_of_clips_are_the_models_own(data, tmp_path):
    main(flags(data, tmp_path / "pooled"))
    model, processor = encoder(data)
    found = rows(tmp_path / "pooled")
    assert [os.path.basename(row[0]) for row in found] == [f"{clip:02}.mp4" for clip in range(NUM_CLIPS)]
    assert len(list((tmp_path / "pooled").glob("*.parquet"))) == 4
    for name, start, end, vector in found:
        outputs = model(**processor(name, return_tensors="pt"), token_budget=8)
        assert (start, end) == (None, None)
        np.testing.assert_allclose(vector, outputs.pooler_output[0].numpy(), atol=1e-5)
    assert (tmp_path / "pooled" / "failures.csv").read_text().splitlines() == ["video,error"]


@torch.no_grad()
def test_views_are_averaged(data, tmp_path):
    main(flags(data, tmp_path / "out", "--num_clips", "2", "--num_crops", "3", "--max_eval_samples", "2"))
    model, processor = encoder(data)
    for name, *_, vector in rows(tmp_path / "out"):
        inputs = processor(name, num_clips=2, num_crops=3, return_tensors="pt")
        wanted = model(**inputs, token_budget=8).pooler_output.mean(0)
        np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-5)


@torch.no_grad()
def test_features_over_time_and_at_their_places(data, tmp_path):
    """Of a layer, and of the last one; what was dropped is NaN."""
    model, processor = encoder(data)
    for kind, layer in (("time", None), ("tokens", 0)):
        more = [] if layer is None else ["--layer", str(layer)]
        main(flags(data, tmp_path / kind, "--features", kind, *more, "--max_eval_samples", "3"))
        for name, *_, found in rows(tmp_path / kind):
            outputs = model(**processor(name, return_tensors="pt"), token_budget=8, output_hidden_states=True)
            states = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer + 1]
            volume, kept = scatter_to_grid(states[:, 1:], outputs.keep_indices, (4, 2, 2), fill=torch.nan)
            assert kept.sum() == 8
            wanted = volume[0] if kind == "tokens" else volume[0].flatten(1, 2).nanmean(1)
            assert found.shape == tuple(wanted.shape)
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


@torch.no_grad()
def test_windows(data, tmp_path):
    main(flags(data, tmp_path / "out", "--window", "0.4", "--stride", "0.2", num_frames=6, size=42))
    model, processor = encoder(data)
    wanted = []
    for clip in range(NUM_CLIPS):
        name = str(data / "clips" / f"{clip:02}.mp4")
        for window in iter_windows(name, 0.4, 0.2, 6):
            inputs = processor(window.frames, size=42, do_sample_frames=False, return_tensors="pt")
            vector = model(**inputs, token_budget=8).pooler_output[0].numpy()
            wanted.append((name, window.start, window.end, vector))
    found = rows(tmp_path / "out")
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one[3], other[3], atol=1e-5)


def test_what_cannot_be_read_is_listed(data, tmp_path, capsys):
    """A video that ends early gives the windows before that; the exit status says so."""
    whole = encode("libx264", 75, container="matroska", options={"g": "5"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"nothing")
    (tmp_path / "in" / "b.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "c.mkv").write_bytes(whole)
    for options, names in (((), ["c.mkv"]), (("--window", "0.4"), ["b.mkv", "c.mkv"])):
        output_dir = tmp_path / f"out{len(options)}"
        for _ in range(2):  # what cannot be read is not read again
            with pytest.raises(SystemExit):
                main(flags(data, output_dir, *options, sources=[tmp_path / "in"]))
        assert sorted({os.path.basename(row[0]) for row in rows(output_dir)}) == names
        failed = (output_dir / "failures.csv").read_text().splitlines()
        assert len(failed) == 3 and "a.mp4" in failed[1] and "b.mkv" in failed[2]
    assert "2 of them not read to their end" in capsys.readouterr().out


def launch(words, processes=1):
    command = [sys.executable, "-m", "training.extract_features", *words]
    if processes > 1:
        command[1:2] = f"-m torch.distributed.run --standalone --nproc_per_node {processes} -m".split()
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.slow
def test_two_processes_and_a_run_that_goes_on_give_the_same_rows(data, tmp_path):
    words = ["--window", "0.4", "--stride", "0.2"]
    for name, processes in (("one", 1), ("two", 2)):
        run = launch(flags(data, tmp_path / name, *words, dataloader_num_workers=processes - 1), processes)
        assert run.wait(300) == 0, run.stderr.read()
    wanted = rows(tmp_path / "one")
    assert same(rows(tmp_path / "two"), wanted)
    shards = sorted((tmp_path / "two").glob("*.parquet"))
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    shards[2].unlink()
    run = launch(flags(data, tmp_path / "two", *words))
    assert run.wait(300) == 0, run.stderr.read()
    assert same(rows(tmp_path / "two"), wanted)
    assert [shard for shard in shards if shard.stat().st_mtime_ns == times[shard]] == [*shards[:2], *shards[3:]]


@pytest.mark.slow
def test_twenty_kills_lose_and_double_nothing(data, tmp_path):
    words = ["--window", "0.2", "--stride", "0.04", "--features", "time"]
    run = launch(flags(data, tmp_path / "whole", *words, clips_per_shard=1))
    assert run.wait(300) == 0, run.stderr.read()
    instants = np.random.default_rng(0)
    command = flags(data, tmp_path / "killed", *words, clips_per_shard=1)
    begin = time.perf_counter()
    run = launch(command)
    assert run.wait(300) == 0, run.stderr.read()
    length = time.perf_counter() - begin
    for _ in range(20):
        for shard in sorted((tmp_path / "killed").glob("*.parquet"))[instants.integers(NUM_CLIPS) :]:
            shard.unlink()  # so that there is work again
        run = launch(command)
        time.sleep(instants.uniform(0.3, 1.0) * length)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    run = launch(command)
    assert run.wait(300) == 0, run.stderr.read()
    assert same(rows(tmp_path / "killed"), rows(tmp_path / "whole"))
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("most", [None, 11])
def test_names_that_are_no_text_and_more_than_an_array_holds(most, tmp_path, monkeypatch):
    """A name becomes text that tells it, and rows that do not fit into one array are in one file all the same."""
    if most is not None:
        monkeypatch.setattr(features, "MOST_VALUES", most)  # two rows
    shards = features.FeatureShards(tmp_path / "out", {}, (2, 1, 1, 2), "float32")
    shards.prepare()
    values = torch.arange(20.0).view(5, 2, 1, 1, 2)
    names = ["a.mp4", "b\udcff.mp4", "c.mp4", "d.mp4", "e.mp4"]
    shards.write(0, [Part(name) for name in names], values)
    shards.write(1, [Part("f\udcff.mp4", error="broken")], None)
    found = rows(tmp_path / "out")
    assert [row[0] for row in found] == ["a.mp4", "b\\xff.mp4", *names[2:]]
    assert np.array_equal(np.stack([row[3] for row in found]), values.numpy())
    assert shards.failures() == [("f\udcff.mp4", "broken")]


def test_features_made_otherwise_are_not_mixed(data, tmp_path):
    main(flags(data, tmp_path / "out"))
    origin = json.loads((tmp_path / "out" / "origin.json").read_text())
    assert origin["point"] == "4x28@8" and origin["dtype"] == "float32"
    for more, differ in ((["--num_crops", "3"], "num_crops"), (["--max_eval_samples", "3"], "clips")):
        with pytest.raises(ValueError, match=rf"made otherwise \({differ}\)"):
            main(flags(data, tmp_path / "out", *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stride", "1"], "--stride 1.0 is for windows"),
        (["--window", "0"], "--window must be finite and above 0, got 0.0"),
        (["--window", "1", "--num_clips", "2"], "--num_clips 2 is for whole clips"),
        (["--features", "time", "--num_crops", "3"], "--features time is of one view"),
        (["--layer", "0"], "--layer 0 is for --features time or tokens"),
        (["--clips_per_shard", "0"], "--clips_per_shard must be at least 1, got 0"),
    ],
)
def test_flags_that_do_not_go_together(data, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags(data, tmp_path / "out", *more))


def test_a_layer_there_is_not(data, tmp_path):
    with pytest.raises(ValueError, match="--layer must be from 0 to 1, got 2"):
        main(flags(data, tmp_path / "out", "--features", "time", "--layer", "2"))
    assert not (tmp_path / "out").exists()
