"""Frozen evaluation: probes on made-up features, and the command on real files with tiny encoders."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from evaluation_parts import tiny_model, tiny_processor
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from training_runs import ENVIRONMENT, REPOSITORY
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, VideoMAEConfig, VideoMAEModel, VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler
from video_files import encode

from flux_hf import FluxViTModel, FluxViTVideoProcessor
from training.engine.optim import cosine_schedule
from training.probe import main
from training.probing.attentive import AttentiveProbes, AttentiveTraining, best_probe, probe_logits, train_probes
from training.probing.probes import (
    INVERSE_PENALTIES,
    PROBES,
    ProbeSettings,
    fit_attentive,
    fit_knn,
    fit_probe,
    inner_folds,
)
from training.probing.protocol import Protocol, run_protocol
from training.probing.samples import Samples, draw_shots, splits


CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")
FAST = AttentiveTraining(num_epochs=15, batch_size=16, heads=4)
SETTINGS = ProbeSettings(5, [(3e-3, 0.01), (3e-2, 0.01)], FAST)


def samples(number=48, width=16, tokens=6, signal=3.0, seed=0, groups=None) -> Samples:
    """Clips of three classes in turn; each shows its class in its vector, and in one token, wherever that is."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % len(CLASSES)
    directions = np.random.default_rng(7).standard_normal((len(CLASSES), width))
    vectors = rng.standard_normal((number, width)) + signal * directions[labels]
    kept = rng.standard_normal((number, tokens, width))
    kept[np.arange(number), rng.integers(tokens, size=number)] += 4 * signal * directions[labels]
    names = np.array([f"clip {seed} {index}" for index in range(number)])
    return Samples(names, labels, groups, vectors.astype(np.float32), torch.from_numpy(kept).float())


def accuracy(name, train, test, settings):
    return (fit_probe(name, train, test, settings).predicted == test.labels).mean()


# Probes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBES)
def test_what_is_in_the_features_is_found_and_nothing_else(name):
    settings = replace(SETTINGS, training=replace(FAST, num_epochs=8 if name == "attentive4" else 15))
    train, test = samples(144, width=32), samples(60, width=32, seed=1)
    assert accuracy(name, train, test, settings) == 1.0
    # Labels that were shuffled: nothing to be found.
    unlike, others = samples(48, signal=0.0), samples(300, signal=0.0, seed=1)
    shuffled = replace(unlike, labels=np.random.default_rng(0).permutation(unlike.labels))
    assert accuracy(name, shuffled, others, settings) == pytest.approx(1 / 3, abs=0.1)


def test_knn_is_the_vote_of_the_nearest_by_cosine():
    train, test = samples(signal=0.3), samples(40, signal=0.3, seed=1)
    for k in (1, 4, 7):
        answer = fit_knn(train, test, replace(SETTINGS, neighbors=k))
        nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(train.vectors).kneighbors(test.vectors)[1]
        units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train.vectors, test.vectors)]
        by_hand = np.argsort(-(units[1] @ units[0].T), axis=1)[:, :k]
        assert (np.sort(nearest, axis=1) == np.sort(by_hand, axis=1)).all()
        votes = [np.bincount(train.labels[row]).argmax() for row in by_hand]
        assert answer.predicted.tolist() == votes and answer.chosen == {"k": k}


def test_linear_probes_choose_their_penalty_within_the_training_clips():
    """The strongest of those that are best in cross-validation; one clip of a class leaves no choice."""
    train, test = samples(signal=0.2), samples(seed=1)
    answer, shares = fit_probe("linear", train, test, SETTINGS), {}
    models = {C: make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)) for C in INVERSE_PENALTIES}
    for C, model in models.items():
        hits = [
            model.fit(train.vectors[fit], train.labels[fit]).score(train.vectors[held], train.labels[held])
            for fit, held in inner_folds(train, 0)
        ]
        shares[C] = np.mean(hits)
    assert answer.chosen == {"C": max(shares, key=shares.get)} and len(set(shares.values())) > 1
    wanted = models[answer.chosen["C"]].fit(train.vectors, train.labels).predict(test.vectors)
    assert (answer.predicted == wanted).all()
    one = samples().at(np.arange(3))
    assert fit_probe("linear", one, samples(seed=1), SETTINGS).chosen == {"C": 1.0}


def test_choices_keep_groups_whole():
    groups = np.array([f"person {index // 6}" for index in range(48)])
    for known, wanted in ((None, False), (groups, True)):
        folds = inner_folds(samples(groups=known), 0)
        assert len(folds) == 5
        assert sorted(row for _, held in folds for row in held) == list(range(48))
        apart = all(not set(groups[fit]) & set(groups[held]) for fit, held in folds)
        assert apart == wanted
    assert len(inner_folds(samples(groups=np.repeat(["x", "y"], 24)), 0)) == 2
    assert inner_folds(samples(groups=np.full(48, "x")), 0) == []
    rare = samples().at(np.flatnonzero(samples().labels > 0))  # and one clip of another class
    rare = replace(rare, labels=np.where(np.arange(len(rare)) == 0, 0, rare.labels))
    assert [len(held) for _, held in inner_folds(rare, 0)] == [7, 7, 6, 6, 6]
    assert len(inner_folds(samples().at(np.arange(6)), 0)) == 2


# Attentive probes ----------------------------------------------------------------------------------------------------


THEIR_NAMES = {
    r"^cross_attention\.(\w_proj)": r"pooler.cross_attention_layer.cross_attn.\1",
    r"^cross_attention\.": "pooler.cross_attention_layer.",
    r"^self_attentions\.(\d)\.(\w+_proj)": r"pooler.self_attention_layers.\1.self_attn.\2",
    r"^self_attentions\.": "pooler.self_attention_layers.",
}


class OneAlone(nn.Module):
    """A probe by the pooler of transformers' V-JEPA 2, with the weights of one of a grid's."""

    def __init__(self, probes: AttentiveProbes, member: int, blocks: int, heads: int, width: int):
        super().__init__()
        config = VJEPA2Config(
            hidden_size=width, num_attention_heads=heads, num_pooler_layers=blocks - 1, layer_norm_eps=1e-5
        )
        config._attn_implementation = "eager"
        self.pooler, self.classifier = VJEPA2AttentivePooler(config), nn.Linear(width, len(CLASSES))
        state = {name: value[member].detach().clone() for name, value in probes.state_dict().items()}
        poured = {"pooler.query_tokens": state.pop("cross_attention.query")[None, None]}
        poured["pooler.cross_attention_layer.cross_attn.k_proj.bias"] = torch.zeros(width)
        for name, value in state.items():
            for pattern, theirs in THEIR_NAMES.items():
                name = re.sub(pattern, theirs, name)
            poured[name] = value
        self.load_state_dict(poured)

    def forward(self, tokens):
        return self.classifier(self.pooler(tokens))


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_grid_is_each_probe_alone(blocks):
    """At the beginning and trained: by the library's pooler and AdamW, one probe after the other."""
    train, rates, heads = samples(40), [(1e-2, 0.01), (2e-2, 0.8), (1e-3, 0.0)], 4
    tokens, labels = train.tokens, torch.from_numpy(train.labels)
    how = AttentiveTraining(num_epochs=6, num_warmup_epochs=1, batch_size=16, heads=heads, seed=3)
    beginning = AttentiveProbes(len(rates), 16, 3, blocks, heads, seed=3)
    grid = probe_logits(train_probes(tokens, labels, 3, blocks, rates, how, CPU), tokens, 7, CPU)
    assert (grid[0] - beginning(tokens)[0]).abs().max() > 0.1
    for member, (rate, decay) in enumerate(rates):
        alone = OneAlone(beginning, member, blocks, heads, 16)
        torch.testing.assert_close(beginning(tokens)[member], alone(tokens), atol=1e-5, rtol=1e-5)
        # The keys' bias has no effect, and no gradient but for rounding, which Adam would make steps of.
        alone.pooler.cross_attention_layer.cross_attn.k_proj.bias.requires_grad_(False)
        parameters = [parameter for parameter in alone.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay)
        schedule, order = cosine_schedule(optimizer, rate, 3, 18), torch.Generator().manual_seed(3)
        for _ in range(6):
            for rows in torch.randperm(40, generator=order).split(16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(alone(tokens[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(grid[member], alone(tokens), atol=1e-4, rtol=1e-4)
        [single] = probe_logits(train_probes(tokens, labels, 3, blocks, [rates[member]], how, CPU), tokens, 40, CPU)
        torch.testing.assert_close(grid[member], single, atol=1e-4, rtol=1e-4)


def test_the_best_is_right_most_often_then_surest_and_never_one_that_diverged():
    labels = torch.tensor([0, 1])
    right, surer = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    wrong, diverged = -surer, torch.full((2, 2), torch.nan)
    assert best_probe(torch.stack([wrong, right, surer, diverged]), labels) == 2
    assert best_probe(torch.stack([diverged, wrong]), labels) == 1


def test_rates_are_chosen_by_held_out_training_clips():
    """One that learns nothing is not taken, nor one that diverges; which clips are tested has no say."""
    train, settings = samples(), replace(SETTINGS, rates=[(1e-9, 0.0), (3e-2, 0.0), (1e30, 0.0)])
    answers = [fit_attentive(train, samples(9, seed=seed), settings, 1) for seed in (1, 2)]
    assert [answer.chosen for answer in answers] == [{"learning_rate": 3e-2, "weight_decay": 0.0}] * 2
    again = fit_attentive(train, samples(9, seed=1), settings, 1)
    assert (again.predicted == answers[0].predicted).all()
    with pytest.raises(ValueError, match="3 training clips are too few to choose among 3 rates"):
        fit_attentive(train.at(np.arange(3)), train, settings, 1)


def test_a_probe_is_the_same_again_and_another_by_another_seed():
    train = samples()
    labels = torch.from_numpy(train.labels)
    logits = [
        probe_logits(train_probes(train.tokens, labels, 3, 1, [(1e-3, 0.1)], how, CPU), train.tokens, 48, CPU)
        for how in (FAST, FAST, replace(FAST, seed=1))
    ]
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])
    with pytest.raises(ValueError, match="--probe_heads must divide the tokens' width 16, got 5"):
        AttentiveProbes(1, 16, 3, heads=5)
    heads = [AttentiveProbes(1, width, 3).cross_attention.heads for width in (16, 96, 100, 384, 768)]
    assert heads == [1, 3, 2, 12, 16]


# Which clips ---------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_again_and_lie_within_each_other():
    labels = samples().labels
    two, five = (draw_shots(labels, shots, 0, 0) for shots in (2, 5))
    assert np.bincount(labels[five]).tolist() == [5, 5, 5] and set(two) < set(five)
    assert (draw_shots(labels, 5, 0, 0) == five).all()
    assert not (draw_shots(labels, 5, 0, 1) == five).all() and not (draw_shots(labels, 5, 1, 0) == five).all()


def test_folds_part_groups_and_test_every_clip_once():
    groups = np.array([f"person {index // 6}" for index in range(48)])
    parted = list(splits(samples(groups=groups), None, 4))
    assert len(parted) == 4
    assert sorted(name for _, test in parted for name in test.names) == sorted(samples().names)
    for train, test in parted:
        assert len(train) + len(test) == 48 and not set(train.groups) & set(test.groups)
        assert len(train.vectors) == len(train.tokens) == len(train.names)


def test_few_shots_are_told_with_mean_and_spread():
    protocol = Protocol(["linear", "knn", "attentive"], shots=[1, 4], draws=3)
    settings = replace(SETTINGS, rates=[(1e-2, 0.0)], neighbors=3)
    told = [run_protocol(protocol, samples(), samples(30, 16, seed=1), CLASSES, settings, "p", 6) for _ in range(2)]
    assert told[0] == told[1]
    results, rows = told[0]
    keys = [(result.probe, result.shots, len(result.accuracies)) for result in results]
    few = [(probe, shots, 3) for shots in (1, 4) for probe in ("linear", "knn")]
    assert keys == [("linear", None, 1), ("knn", None, 1), ("attentive", None, 1), *few]
    assert [result.chosen[0]["k"] for result in results if result.probe == "knn"] == [3, 1, 3]
    assert results[0].spread is None and str(results[0]) == f"{100 * results[0].mean:.1f}"
    one = results[3]
    assert one.spread == pytest.approx(np.std(one.accuracies, ddof=1)) and one.mean == np.mean(one.accuracies)
    assert str(one) == f"{100 * one.mean:.1f} ± {100 * one.spread:.1f}" and one.title == "linear, 1 shot"
    assert len(rows) == 3 * 30


# The command ---------------------------------------------------------------------------------------------------------

NUM_TRAIN, NUM_TEST = 12, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Real files of three classes, in a table with groups and splits, and encoders."""
    folder = tmp_path_factory.mktemp("probe")
    rows = []
    for clip in range(NUM_TRAIN + NUM_TEST):
        label, split = clip % 3, "train" if clip < NUM_TRAIN else "test"
        video = encode("libx264", 8 + clip, size=(64, 48), first=256 * label + 3 * clip)
        (folder / f"{clip}.mp4").write_bytes(video)
        rows.append((f"{clip}.mp4", CLASSES[label], f"person {clip // 3}", split))
    with open(folder / "split.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "split"), *rows])
    tiny_model().save_pretrained(folder / "fluxvit")
    tiny_processor().save_pretrained(folder / "fluxvit")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).save_pretrained(folder / "dinov2")
    side = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=side).save_pretrained(folder / "dinov2")
    clip = {"image_size": 32, "patch_size": 16, "num_frames": 4, "tubelet_size": 2, "intermediate_size": 64}
    VideoMAEModel(VideoMAEConfig(**sizes, **clip)).save_pretrained(folder / "videomae")
    return folder


def flags(folder, output_dir, *more, model="fluxvit", **values):
    given = {"model_name_or_path": folder / model, "data": folder / "split.csv", "output_dir": output_dir}
    given |= {"dataloader_num_workers": 0, "clips_per_shard": 4, "num_train_epochs": 2, "dtype": "float32", **values}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    test = [] if "--folds" in more else ["--split", "train", "--validation_split", "test"]
    return [*words, *test, "--learning_rates", "1e-3", "3e-4", "--weight_decays", "0.1", *map(str, more)]


def told(output_dir):
    return json.loads((output_dir / "metrics.json").read_text())


def features_of(folder):
    rows = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(path).to_pydict()
        rows |= {name: np.array(row) for name, row in zip(table["video"], table["vector"], strict=True)}
    return rows


def test_the_command_probes_at_two_budgets(data, tmp_path, capsys):
    out = tmp_path / "out"
    main(flags(data, out, "--token_budgets", 8, 4, "--shots", 1, 2, "--draws", 2, neighbors=1))
    run = told(out)
    titles = ["linear", "knn", "attentive", "linear, 1 shot", "knn, 1 shot", "linear, 2 shots", "knn, 2 shots"]
    table = (out / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {title}" for title in titles]
    assert table.startswith("| probe | 8 tokens | 4 tokens |\n") and table in capsys.readouterr().out
    assert [(row["point"], row["probe"], row["shots"]) for row in run["results"]] == [
        (point, *key)
        for point in ("4x28@8", "4x28@4")
        for key in [("linear", None), ("knn", None), ("attentive", None)]
        + [(probe, shots) for shots in (1, 2) for probe in ("linear", "knn")]
    ]
    assert run["clips"] == {"train": NUM_TRAIN, "test": NUM_TEST} and run["failures"] == []
    assert run["validation_split"] == "test" and run["learning_rates"] == [1e-3, 3e-4]
    with open(out / "results.csv", newline="") as file:
        assert [row["probe"] for row in csv.DictReader(file)] == [row["probe"] for row in run["results"]]
    with open(out / "predictions.csv", newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 2 * 3 * NUM_TEST
    for row in run["results"]:
        if row["shots"] is None:
            hits = [
                one["label"] == one["predicted"]
                for one in predictions
                if (one["point"], one["probe"]) == (row["point"], row["probe"])
            ]
            assert row["accuracy"] == pytest.approx(np.mean(hits)) and len(hits) == NUM_TEST
    # The features are the model's own, and 1-NN of them the nearest.
    model, processor = FluxViTModel.from_pretrained(data / "fluxvit").eval(), tiny_processor()
    pooled = {}
    for part, number in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for budget in (8, 4):
            rows = features_of(out / "features" / part / f"4x28@{budget}-tokens")
            assert len(rows) == number
            for name, vector in rows.items():
                with torch.no_grad():
                    outputs = model(**processor(str(data / name), return_tensors="pt"), token_budget=budget)
                wanted = torch.cat([outputs.pooler_output[0], outputs.last_hidden_state[0, 1:].flatten()])
                np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-4)
                pooled[budget, part, name] = outputs.pooler_output[0]
    for one in predictions:
        if one["probe"] == "knn":
            budget = int(one["point"].split("@")[1])
            query = pooled[budget, "test", one["name"]]
            near = {
                name: torch.cosine_similarity(query, value, dim=0)
                for (other, part, name), value in pooled.items()
                if (other, part) == (budget, "train")
            }
            nearest = max(near, key=near.get)
            assert one["predicted"] == CLASSES[int(nearest.split(".")[0]) % 3]


def test_folds_of_groups(data, tmp_path):
    out = tmp_path / "out"
    more = ["--folds", 3, "--group_column", "group", "--probes", "linear", "knn", "--pooling", "mean"]
    main(flags(data, out, *more, "--token_budgets", 8))
    results = told(out)["results"]
    assert [len(row["accuracies"]) for row in results] == [3, 3]
    with open(out / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["probe"] == "knn"]
    assert sorted(row["name"] for row in rows) == sorted(f"{clip}.mp4" for clip in range(NUM_TRAIN + NUM_TEST))
    folds = {}
    for row in rows:
        folds.setdefault(int(row["name"].split(".")[0]) // 3, set()).add(row["fold"])
    assert all(len(of_group) == 1 for of_group in folds.values())
    # Without tokens to be pooled or attended to, only pooled features are kept.
    main(flags(data, tmp_path / "pooled", *more[:-2], "--token_budgets", 8))
    [kept] = (tmp_path / "pooled" / "features" / "train").iterdir()
    assert kept.name == "4x28@8-pooled" and {len(row) for row in features_of(kept).values()} == {16}


def test_an_image_encoder_is_read_frame_by_frame(data, tmp_path):
    out = tmp_path / "out"
    main(flags(data, out, model="dinov2", num_frames=3))
    assert [row["tokens"] for row in told(out)["results"]] == [3 * 4] * 3
    model = Dinov2Model.from_pretrained(data / "dinov2").eval()
    own = BitImageProcessor()
    settings = {"image_mean": own.image_mean, "image_std": own.image_std, "resample": own.resample, "antialias": True}
    processor = FluxViTVideoProcessor(size=28, num_frames=3, **settings)
    for name, vector in features_of(out / "features" / "train" / "3x28-tokens").items():
        frames = processor(str(data / name), return_tensors="pt")["pixel_values_videos"][0]
        with torch.no_grad():
            outputs = [model(frame[None]) for frame in frames]
        pooled = torch.stack([output.pooler_output[0] for output in outputs]).mean(0)
        tokens = torch.cat([output.last_hidden_state[0, 1:] for output in outputs])
        np.testing.assert_allclose(vector, torch.cat([pooled, tokens.flatten()]).numpy(), atol=1e-4)


def test_a_plain_encoder_of_the_library_is_wrapped(data, tmp_path):
    main(flags(data, tmp_path / "out", "--token_budgets", 8, 2, model="videomae"))
    assert [row["tokens"] for row in told(tmp_path / "out")["results"]] == [8] * 3 + [2] * 3


def test_a_run_goes_on_with_the_features_that_are_there(data, tmp_path):
    out = tmp_path / "out"
    words = flags(data, out, "--token_budgets", 8, 4)
    main(words)
    wanted = told(out)
    shards = sorted((out / "features").rglob("*.parquet"))
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    lost = out / "features" / "train" / "4x28@4-tokens" / "features-000001.parquet"
    lost.unlink()
    (lost.parent / ".half.tmp").write_text("left")
    (out / "metrics.json").unlink()
    main(words)
    assert told(out)["results"] == wanted["results"] and not (lost.parent / ".half.tmp").exists()
    made = {shard for shard in shards if shard.stat().st_mtime_ns != times[shard]}
    assert made == {lost, lost.parent.parent / "4x28@8-tokens" / lost.name}  # a unit's points are made together
    main(flags(data, out, "--token_budgets", 8, 4, "--probes", "attentive4"))  # other probes, the same features
    assert all(shard.stat().st_mtime_ns == times[shard] for shard in shards if shard not in made)
    assert [row["probe"] for row in told(out)["results"]] == ["attentive4"] * 2
    with pytest.raises(ValueError, match=r"made otherwise \(clips\)"):
        main(flags(data, out, "--token_budgets", 8, 4, "--max_eval_samples", 6))


def launch(words, processes=1):
    command = [sys.executable, "-m", "training.probe", *words]
    if processes > 1:
        command[1:2] = f"-m torch.distributed.run --standalone --nproc_per_node {processes} -m".split()
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_and_a_killed_run_give_the_same(data, tmp_path):
    words = {
        name: flags(data, tmp_path / name, "--token_budgets", 8, clips_per_shard=1) for name in ("one", "two", "killed")
    }
    run = launch(words["killed"])
    while not list((tmp_path / "killed").rglob("features-000002.parquet")):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    for name, processes in (("one", 1), ("two", 2), ("killed", 1)):
        run = launch(words[name], processes)
        assert run.wait(300) == 0, run.stderr.read()
    wanted = told(tmp_path / "one")["results"]
    assert told(tmp_path / "killed")["results"] == told(tmp_path / "two")["results"] == wanted


def test_what_cannot_be_read_is_left_out_and_told(data, tmp_path, capsys):
    lines = (data / "split.csv").read_text().splitlines()
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    table = tmp_path / "split.csv"
    table.write_text("\n".join([*lines, f"{tmp_path / 'bad.mp4'},a,person 9,train"]) + "\n")
    more = ["--token_budgets", 8, "--data_root", data]
    main(flags(data, tmp_path / "out", *more, data=table))
    [failure] = told(tmp_path / "out")["failures"]
    assert failure["part"] == "train" and failure["name"].endswith("bad.mp4") and failure["reason"]
    assert "1 clips could not be read" in capsys.readouterr().out
    table.write_text("\n".join([*lines, f"{tmp_path / 'bad.mp4'},d,person 9,train", "17.mp4,d,person 5,test"]) + "\n")
    with pytest.raises(ValueError, match=r"each class must have training clips, \['d'\] have none"):
        main(flags(data, tmp_path / "other", *more, data=table))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--token_budgets", "8", "17"], "--token_budgets must be at most the 16 tokens of 4x28, got 17"),
        (["--num_frames", "4", "--size", "30"], "must be a multiple of patch_size=14"),
        (["--shots", "1", "5"], r"--shots 5 needs as many training clips of each class, there are only \{'a': 4, "),
        (["--neighbors", "13", "--probes", "knn"], "--neighbors must be at most the 12 training clips, got 13"),
        (["--probe_heads", "5"], "--probe_heads must divide the tokens' width 32, got 5"),
        (["--folds", "2"], "give --validation_data or --validation_split, or --folds, got None, 'test' and 2"),
        (["--multi_label"], "--multi_label: probes give each clip one label"),
        (
            ["--probes", "attentive", "--shots", "1"],
            r"--shots \[1\] is for linear and knn, got --probes \['attentive'\]",
        ),
        (["--validation_split", "train"], "12 clips are to be trained on and tested, the first '0.mp4'"),
        (["--num_warmup_epochs", "3"], "--num_warmup_epochs must be at most --num_train_epochs 2, got 3.0"),
        (["--draws", "0"], "--draws must be at least 1, got 0"),
        (["--learning_rates", "0"], "--learning_rates must be above 0, got 0.0"),
        (["--group_column", "nobody"], "must have the columns .*'nobody'"),
    ],
)
def test_bad_flags_are_named(data, tmp_path, more, message):
    words = flags(data, tmp_path / "out") + more
    with pytest.raises(ValueError, match=message):
        main(words)


def test_bad_folds_are_named(data, tmp_path):
    with pytest.raises(ValueError, match="--folds 2 parts groups: give --group_column"):
        main(flags(data, tmp_path / "out", "--folds", 2))
    with pytest.raises(ValueError, match="between 2 and the 6 groups, got 7"):
        main(flags(data, tmp_path / "out", "--folds", 7, "--group_column", "group"))
    with pytest.raises(ValueError, match=r"each class must have training clips, \['.'\] have none"):
        main(flags(data, tmp_path / "out", "--folds", 3, "--group_column", "label"))
    with pytest.raises(ValueError, match=r"labels must be some of \['a', 'b', 'c'\], got \['d'\] of clip 17.mp4"):
        (data / "other.csv").write_text("path,label,split\n17.mp4,d,test\n")
        main(flags(data, tmp_path / "out", "--validation_data", data / "other.csv"))
    with pytest.raises(ValueError, match="--token_budgets is for encoders that select tokens, got .* of dinov2"):
        main(flags(data, tmp_path / "out", "--token_budgets", 4, model="dinov2"))
    assert not (tmp_path / "out").exists()


def test_numbers_that_half_precision_does_not_hold_are_named(data, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "projector" in name:
                parameter.mul_(1e6)
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    words = flags(data, tmp_path / "out", "--token_budgets", 8, dtype="float16")
    words[1] = str(tmp_path / "model")
    with pytest.raises(ValueError, match="4x28@8-tokens are not finite in float16: try --dtype float32"):
        main(words)
