"""Which rows of a checkpoint's classifiers the data's labels take."""

import logging

import pytest
import torch
from accelerate.state import AcceleratorState
from evaluation_parts import tiny_model
from training_runs import different, flags, losses, weights, write_data

from flux_hf import FluxViTVideoProcessor
from training.arguments import ObjectiveArguments
from training.classification import class_weights
from training.data.reader import VideoFile
from training.data.sampling import ClipShape, FluxBatchSampler
from training.data.targets import ClassTargets, class_shares, label_targets
from training.finetune import main
from training.model import take_labels
from training.objectives import FluxMulti


NAMES = ["abseiling", "archery", "k600only", "zumba"]


@pytest.fixture
def model():
    return tiny_model(id2label=dict(enumerate(NAMES)), label2id={name: index for index, name in enumerate(NAMES)})


def rows(model):
    return [classifier.weight.detach().clone() for classifier in model.classifiers]


def names_of(model):
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


@pytest.mark.parametrize("labels", [NAMES, NAMES[::-1], ["0", "1", "2", "3"]])
def test_all_labels_of_the_checkpoint_change_nothing(model, labels):
    before = rows(model)
    label2id = take_labels(model, labels)
    assert names_of(model) == NAMES
    assert all(torch.equal(old, new) for old, new in zip(before, rows(model), strict=True))
    assert [label2id[name] for name in NAMES] == [0, 1, 2, 3]
    assert labels[0] != "0" or [label2id[label] for label in labels] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "taken", "ids"),
    [
        (["abseiling", "archery", "zumba"], [0, 1, 3], [0, 1, 2]),
        (["zumba", "archery"], [1, 3], [1, 0]),
        (["0", "3"], [0, 3], [0, 1]),
    ],
)
def test_some_of_its_labels_take_their_rows(model, labels, taken, ids):
    before = rows(model)
    label2id = take_labels(model, labels)
    assert names_of(model) == [NAMES[row] for row in taken] and model.num_labels == len(taken)
    for old, new in zip(before, rows(model), strict=True):
        assert torch.equal(new, old[taken])
    assert [label2id[label] for label in labels] == ids
    assert model(torch.zeros(1, 4, 3, 28, 28)).logits.shape == (1, len(taken))


def test_unknown_labels_start_anew_and_are_counted(model, caplog):
    before = rows(model)
    with caplog.at_level(logging.INFO, "training.model"):
        label2id = take_labels(model, ["juggling", "zumba", "yoga"])
    assert "2 of 3 labels are none of the checkpoint's 4" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert names_of(model) == ["zumba", "juggling", "yoga"] and label2id["yoga"] == 2
    for old, new in zip(before, rows(model), strict=True):
        assert torch.equal(new[0], old[3]) and not (new[1:, None] == old[None]).all(-1).any()


@pytest.mark.parametrize("labels", [["0", "4"], ["0", "x"]])
def test_numbers_that_are_not_all_indices_are_names(model, labels, caplog):
    take_labels(model, labels)
    assert names_of(model) == labels and "2 of 2 labels" in caplog.text


def test_names_that_are_numbers_are_names():
    digits = tiny_model(id2label={0: "7", 1: "0", 2: "5"}, label2id={"7": 0, "0": 1, "5": 2})
    before = rows(digits)
    take_labels(digits, ["0", "5"])
    assert names_of(digits) == ["0", "5"] and torch.equal(rows(digits)[0], before[0][[1, 2]])


def test_anew_takes_none(model):
    before = rows(model)
    take_labels(model, NAMES, anew=True)
    assert names_of(model) == NAMES and not torch.equal(rows(model)[0], before[0])


def test_a_label_with_a_gap_is_unknown():
    numbers = tiny_model(id2label={0: "0", 1: "2", 2: "3"}, label2id={"0": 0, "2": 1, "3": 2}).config
    assert label_targets([VideoFile("a", "3", "")], numbers).tolist() == [2]
    with pytest.raises(ValueError, match=r"\['1'\] of clip a"):
        label_targets([VideoFile("a", "1", "")], numbers)


# --- rare classes ----------------------------------------------------------------------------------------------------

CLIPS = [VideoFile(f"{index}", label, "") for index, label in enumerate(["often"] * 6 + ["rare"] * 2)]


def test_how_rare_classes_are():
    counts, worth = class_shares(CLIPS, ClassTargets({"often": 0, "rare": 1, "never": 2}))
    assert counts.tolist() == [6, 2, 0] and worth.tolist() == pytest.approx([1 / 6] * 6 + [1 / 2] * 2)
    several = [VideoFile("a", ("x", "y"), ""), VideoFile("b", "x", ""), VideoFile("c", "x", "")]
    counts, worth = class_shares(several, ClassTargets({"x": 0, "y": 1}, multi_label=True))
    assert counts.tolist() == [3, 1] and worth.tolist() == pytest.approx([(1 / 3 + 1) / 2, 1 / 3, 1 / 3])


def test_a_balanced_epoch_draws_all_classes_alike_and_resumes():
    worth = class_shares(CLIPS, ClassTargets({"often": 0, "rare": 1}))[1].numpy()

    def epoch(number, skip=0):
        sampler = FluxBatchSampler(8, 4, [ClipShape(4, 28)], seed=0, clip_weights=worth)
        sampler.set_epoch(number, skip)
        return [[request.index for request in batch] for batch in sampler]

    drawn = [index for number in range(200) for batch in epoch(number) for index in batch]
    assert len(drawn) == 1600 and 0.45 < sum(index >= 6 for index in drawn) / 1600 < 0.55
    assert epoch(3, 1) == epoch(3)[1:] and epoch(3) != epoch(4)


def test_weights_of_the_loss():
    args = ObjectiveArguments(class_weights=True)
    assert class_weights(ObjectiveArguments(), CLIPS, ClassTargets({"often": 0, "rare": 1})) is None
    weights = class_weights(args, CLIPS, ClassTargets({"often": 0, "rare": 1, "never": 2}))
    assert weights.tolist() == pytest.approx([8 / 18, 8 / 6, 0])
    logits, targets = torch.randn(4, 3), torch.eye(3)[[0, 1, 1, 0]]
    model = tiny_model(num_labels=3, id2label=dict(enumerate("abc")))
    plain, weighed = FluxMulti(model), FluxMulti(model, class_weights=weights)
    each = -logits.log_softmax(-1)[range(4), [0, 1, 1, 0]]
    assert plain.classification_loss(logits, targets).item() == pytest.approx(each.mean().item())
    expected = (each * weights[[0, 1, 1, 0]]).mean().item()
    assert weighed.classification_loss(logits, targets).item() == pytest.approx(expected)
    assert plain.state_dict().keys() == weighed.state_dict().keys()  # no checkpoint holds them


def test_rare_classes_by_flag(tmp_path):
    data = write_data(tmp_path / "clips", 12, 6)
    header, *rows = (data / "train.csv").read_text().split()
    uneven = [row for index, row in enumerate(rows) if index not in (6, 7)]  # two classes occur once, four twice
    (data / "uneven.csv").write_text("\n".join([header, *uneven, ""]))
    rates = {"max_train_steps": 2, "num_warmup_steps": 1, "checkpointing_steps": "no"}
    flag = {"plain": {}, "balanced": {"class_balanced": True}, "weighed": {"class_weights": True}}
    logs = {}
    for clips in ("train", "uneven"):
        for name, more in flag.items():
            out = tmp_path / clips / name
            main(flags(data, out, data=data / f"{clips}.csv", **rates, **more))
            logs[clips, name] = losses(out)
            AcceleratorState._reset_state(reset_partial_state=True)
    assert logs["train", "balanced"] != logs["train", "plain"]
    assert logs["train", "weighed"] == pytest.approx(logs["train", "plain"], abs=1e-5)  # all classes weigh 1
    assert logs["uneven", "weighed"] != pytest.approx(logs["uneven", "plain"], abs=1e-3)
    with pytest.raises(ValueError, match="--class_balanced must know all labels: not with --streaming"):
        main(
            [
                *flags(data, tmp_path / "s", data=None, dataset_name="x", streaming=True, max_train_samples=4),
                "--class_balanced",
            ]
        )


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_list_of_numbers_keeps_the_checkpoints_classifier(tmp_path):
    data = write_data(tmp_path / "clips", 12, 6)
    names = sorted({line.split(",")[1] for line in (data / "train.csv").read_text().split()[1:]})
    for split in ("train", "val"):
        rows = [line.split(",") for line in (data / f"{split}.csv").read_text().split()[1:]]
        lines = ["path,label", *(f"{path},{names.index(label)}" for path, label in rows), ""]
        (data / f"{split}_numbers.csv").write_text("\n".join(lines))
    tiny_model(id2label=dict(enumerate(names))).save_pretrained(tmp_path / "start")
    FluxViTVideoProcessor(num_frames=4, size=28).save_pretrained(tmp_path / "start")
    outputs = []
    for suffix in ("", "_numbers"):
        lists = {"data": data / f"train{suffix}.csv", "validation_data": data / f"val{suffix}.csv"}
        start = {"config_name": None, "model_name_or_path": tmp_path / "start", "token_budgets": [16, 8, 4]}
        main(flags(data, tmp_path / f"out{suffix}", **lists, **start, max_train_steps=2, num_warmup_steps=1))
        AcceleratorState._reset_state(reset_partial_state=True)
        outputs.append(tmp_path / f"out{suffix}")
    assert losses(outputs[0]) == losses(outputs[1]) and different(weights(outputs[0]), weights(outputs[1])) == []
    assert (outputs[0] / "config.json").read_text() == (outputs[1] / "config.json").read_text()
