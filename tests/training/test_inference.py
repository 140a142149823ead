"""Scores of clips equal what the processor and the model say of each file alone; metrics equal values known by hand."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from evaluation_parts import FRAME_COUNTS, direct_scores, tiny_model, tiny_processor, write_clips

from flux_hf.protocol import logits_at_budgets
from flux_hf.video_decoding import VideoDecodeError, sample_frame_indices
from training.arguments import ViewArguments
from training.data.reader import Clip, VideoFile
from training.data.targets import label_targets
from training.inference.metrics import accuracy, average_precisions, evaluate_scores, mean_average_precision
from training.inference.points import EvalPoint, resolve_point
from training.inference.prediction import Predictor
from training.inference.report import describe_point
from training.probing.features import VideoEncoder


POINTS = [EvalPoint(4, 28, 8), EvalPoint(6, 42), EvalPoint(4, 28, 16), EvalPoint(2, 42, 3), EvalPoint(16, 28, 16)]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def clips(paths):
    return [VideoFile(f"{path.parent.name}/{path.name}", None, str(path)) for path in paths]


def forward_of(model):
    """One call a budget, as nothing in the library does it."""
    return lambda values, budgets: [model(values, token_budget=budget).logits for budget in budgets]


def views_of(num_clips=1, num_crops=1, batch_size=8):
    return ViewArguments(num_clips, num_crops, batch_size)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_clips", "num_crops", "batch_size", "num_workers"), [(1, 1, 2, 0), (2, 3, 4, 0), (3, 1, 64, 1), (1, 2, 8, 2)]
)
def test_scores_are_those_of_each_file_alone(model, accelerator, paths, num_clips, num_crops, batch_size, num_workers):
    processor = tiny_processor()
    clips = [VideoFile(str(path), None, str(path)) for path in paths]
    views = {"num_clips": num_clips, "num_crops": num_crops}
    predict = Predictor(
        forward_of(model), processor, accelerator, views_of(**views, batch_size=batch_size), num_workers
    )
    predictions = predict(clips, POINTS)
    assert predictions.scores.shape == (len(POINTS), len(paths), 6) and predictions.scores.dtype == torch.float32
    assert predictions.failures == [] and predictions.decoded.all()
    for point, scores in zip(POINTS, predictions.scores, strict=True):
        expected = [direct_scores(model, processor, path, point, **views) for path in paths]
        torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_a_processor_with_other_habits_still_gives_square_views(model, accelerator, clips, paths):
    """Settings that shape the default clip do not reach the points; those that make pixels into values do."""
    odd = tiny_processor(num_frames=3, num_clips=2, do_sample_frames=True, keep_aspect_ratio=True, image_mean=[0.2] * 3)
    predictions = Predictor(forward_of(model), odd, accelerator, views_of())(clips, POINTS[:2])
    plain = tiny_processor(image_mean=[0.2] * 3)
    for point, scores in zip(POINTS[:2], predictions.scores, strict=True):
        expected = [direct_scores(model, plain, path, point) for path in paths]
        torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_multi_label_scores_are_sigmoids(model, accelerator, clips, paths):
    processor = tiny_processor()
    views = {"num_clips": 2, "num_crops": 1}
    predictions = Predictor(forward_of(model), processor, accelerator, views_of(**views), multi_label=True)(
        clips, POINTS[:1]
    )
    expected = [direct_scores(model, processor, path, POINTS[0], multi_label=True, **views) for path in paths]
    torch.testing.assert_close(predictions.scores[0], torch.stack(expected), atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class CountedClip(Clip):
    """A clip that notes each reading, with the number of frames asked for."""

    clip: Clip
    readings: list = field(default_factory=list, compare=False)

    def read(self, sampler):
        frames = self.clip.read(sampler)
        self.readings.append(len(frames))
        return frames


def test_each_clip_is_read_once_and_each_frame_of_it_once(model, accelerator, clips):
    counted = [CountedClip(clip.name, None, clip) for clip in clips]
    Predictor(forward_of(model), tiny_processor(), accelerator, views_of(2, 3))(counted, POINTS)
    wanted = [
        {index for count in (2, 4, 6, 16) for index in sample_frame_indices(total, count, 2).reshape(-1).tolist()}
        for total in FRAME_COUNTS
    ]
    assert [clip.readings for clip in counted] == [[len(frames)] for frames in wanted]


def test_views_in_a_forward_pass(model, accelerator, clips):
    seen = []

    def forward(values, budgets):
        seen.append((tuple(values.shape), budgets))
        return logits_at_budgets(model, values, budgets)

    points = [EvalPoint(4, 28, 8), EvalPoint(4, 28, 16), EvalPoint(2, 42, 8)]
    Predictor(forward, tiny_processor(), accelerator, views_of(2, 3, 4))(clips, points)
    shapes = [shape for shape, _ in seen]
    per_clip = [(4, 4, 3, 28, 28), (2, 4, 3, 28, 28), (4, 2, 3, 42, 42), (2, 2, 3, 42, 42)]
    assert shapes == per_clip * len(clips)
    assert [budgets for _, budgets in seen] == [[8, 16], [8, 16], [8], [8]] * len(clips)


def test_the_model_gets_the_processors_own_views(accelerator, paths):
    """Bit for bit and in its order, although decoded and resized together with other points'."""
    seen = []

    def forward(values, budgets):
        seen.append(values)
        return [torch.zeros(len(values), 2)] * len(budgets)

    clip, processor, views = VideoFile("one", None, str(paths[0])), tiny_processor(), {"num_clips": 2, "num_crops": 3}
    Predictor(forward, processor, accelerator, views_of(**views, batch_size=6))([clip], POINTS)
    assert len(seen) == 4  # clip shapes; two points differ in the budget alone
    for num_frames, size in {(point.num_frames, point.size) for point in POINTS}:
        expected = processor(paths[0].read_bytes(), num_frames=num_frames, size=size, return_tensors="pt", **views)
        own = [values for values in seen if values.shape[1::3] == (num_frames, size)]
        assert own and all(torch.equal(values, expected["pixel_values_videos"]) for values in own)


def test_clips_that_cannot_be_read_are_named_and_left_out(model, accelerator, clips, paths, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    bad = [VideoFile("bad", None, str(broken)), VideoFile("gone", None, str(tmp_path / "gone.mp4"))]
    mixed = [bad[0], clips[0], bad[1], *clips[1:]]
    predictions = Predictor(forward_of(model), tiny_processor(), accelerator, views_of(batch_size=3))(mixed, POINTS[:2])
    alone = Predictor(forward_of(model), tiny_processor(), accelerator, views_of(batch_size=3))(clips, POINTS[:2])
    assert [name for name, _ in predictions.failures] == ["bad", "gone"]
    assert "broken.mp4" in predictions.failures[0][1] and "gone.mp4" in predictions.failures[1][1]
    assert predictions.decoded.tolist() == [False, True, False, *[True] * 5]
    assert predictions.scores[:, [0, 2]].isnan().all()
    torch.testing.assert_close(predictions.scores[:, predictions.decoded], alone.scores)
    labels = alone.scores[0].argmax(-1)
    assert accuracy(predictions.scores[0], torch.cat([labels[:1], labels[:1], labels]))["top1"] == 1.0


def test_scores_that_are_no_numbers_are_an_error_not_a_failed_clip(accelerator, clips):
    def forward(values, budgets):
        return [torch.full((len(values), 3), math.nan)]

    with pytest.raises(FloatingPointError, match="a/clip.1.mp4"):
        Predictor(forward, tiny_processor(), accelerator, views_of())(clips[:2], POINTS[:1])


def test_the_global_generators_are_left_alone(model, accelerator, clips):
    before = torch.get_rng_state()
    Predictor(forward_of(model), tiny_processor(), accelerator, views_of())(clips[:1], POINTS[:1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": []}, "0 and 1"),
        ({"points": []}, "1 and 0"),
        ({"views": ViewArguments(num_clips=0)}, "num_clips.*0"),
        ({"views": ViewArguments(num_crops=-1)}, "num_crops.*-1"),
        ({"views": ViewArguments(per_device_eval_batch_size=0)}, "batch_size.*0"),
    ],
)
def test_calls_that_cannot_work(model, accelerator, clips, changes, message):
    given = {"clips": clips[:1], "points": POINTS[:1], "views": views_of(), **changes}
    predict = Predictor(forward_of(model), tiny_processor(), accelerator, given.pop("views"))
    with pytest.raises(ValueError, match=message):
        predict(**given)


# --- points ----------------------------------------------------------------------------------------------------------


def test_points_as_text():
    for text, point in (("8x224@2048", EvalPoint(8, 224, 2048)), ("16x196", EvalPoint(16, 196))):
        assert EvalPoint.parse(text) == point and str(point) == text
    for bad in ("8x224@", "8*224", "x224", "8x224@2048 ", "-8x224", "8x0", "0x224@1"):
        with pytest.raises(ValueError):
            EvalPoint.parse(bad)


def test_tokens_of_a_point(model):
    longer = tiny_model(tubelet_size=2)
    config = longer.config
    assert EvalPoint(4, 42).dense_tokens(model.config) == 36 and EvalPoint(4, 42).dense_tokens(config) == 18
    assert [EvalPoint(4, 42, budget).kept_tokens(longer) for budget in (None, 10, 100)] == [8, 10, 18]
    with pytest.raises(ValueError, match="tubelet_size=2"):
        EvalPoint(3, 42).dense_tokens(config)
    with pytest.raises(ValueError, match="4x40: .*patch_size=14"):
        EvalPoint(4, 40).dense_tokens(config)


def test_a_point_is_resolved_as_the_pipeline_does():
    config, processor = tiny_model(token_plan={8: [6, 42]}).config, tiny_processor(num_frames=None)
    assert resolve_point(config, processor) == EvalPoint(4, 28)
    assert resolve_point(config, tiny_processor(num_frames=5)) == EvalPoint(5, 28)
    assert resolve_point(config, processor, token_budget=8) == EvalPoint(6, 42, 8)
    assert resolve_point(config, processor, token_budget=9) == EvalPoint(4, 28, 9)
    assert resolve_point(config, processor, num_frames=2, token_budget=8) == EvalPoint(2, 28, 8)
    assert resolve_point(config, processor, size=56, token_budget=8) == EvalPoint(4, 56, 8)
    with pytest.raises(ValueError, match="square"):
        resolve_point(config, tiny_processor(size={"height": 28, "width": 42}))


# --- labels and metrics ----------------------------------------------------------------------------------------------


def labelled(*labels):
    return [VideoFile(f"clip {index}", label, "") for index, label in enumerate(labels)]


def test_labels_are_the_models(model):
    config = model.config
    assert label_targets(labelled("class 2", "class 0", "4"), config).tolist() == [2, 0, 4]
    digits = tiny_model(id2label={0: "7", 1: "0", 2: "5"}).config
    assert label_targets(labelled("0", "7", "5"), digits).tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match=r"\['1'\] of clip clip 0"):  # names that are numbers are no indices
        label_targets(labelled("1"), digits)
    for labels, message in (
        (("class 2", "sideways"), r"\['sideways'\] of clip clip 1"),
        (("class 2", "6"), r"\['6'\] of clip clip 1"),
        (("class 2", None), "clip 1"),
        ((("class 1", "class 2"),), "clip 0.*class 2"),
    ):
        with pytest.raises(ValueError, match=message):
            label_targets(labelled(*labels), config)


def test_labels_of_a_multi_label_model():
    config = tiny_model(problem_type="multi_label_classification", id2label=dict(enumerate("abc"))).config
    assert label_targets(labelled(("a", "c"), "b", ("2",)), config).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_accuracy():
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [math.nan] * 3])
    labels = torch.tensor([0, 1, 0, 0])
    assert accuracy(scores, labels, top_k=(1, 2, 3)) == pytest.approx({"top1": 1 / 3, "top2": 1.0, "top3": 1.0})
    assert accuracy(scores, labels) == pytest.approx({"top1": 1 / 3, "top5": 1.0})
    assert accuracy(torch.zeros(4, 4), torch.arange(4))["top1"] == 0.25  # all equal: not all right
    with pytest.raises(ValueError, match="none of 2"):
        accuracy(torch.full((2, 3), math.nan), labels[:2])
    with pytest.raises(ValueError, match="3 for 4"):
        accuracy(scores, labels[:3])


def test_average_precision():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [0.7, 0.5, 0.3], [0.6, 0.1, 0.4], [math.nan] * 3])
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    # column 0: (1/1 + 2/3) / 2; column 1: three equal scores share precision 1/3, then 2/4; column 2: no clip has it
    expected = [(1 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2]
    precisions = average_precisions(scores, targets)
    assert precisions[:2].tolist() == pytest.approx(expected) and precisions[2].isnan()
    assert mean_average_precision(scores, targets) == pytest.approx(sum(expected) / 2)
    assert evaluate_scores(scores, targets) == {"mean_average_precision": pytest.approx(sum(expected) / 2)}
    with pytest.raises(ValueError, match="has a label"):
        mean_average_precision(scores, torch.zeros(5, 3))


def test_failures_survive_a_worker(accelerator, model, tmp_path):
    """The error of a clip comes back as text, whatever its class."""
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    clip = VideoFile("bad", None, str(tmp_path / "broken.mp4"))
    with pytest.raises(VideoDecodeError):
        clip.read(lambda total: [0])
    predictions = Predictor(forward_of(model), tiny_processor(), accelerator, views_of(), 1)([clip], POINTS[:1])
    assert predictions.failures[0][0] == "bad" and not predictions.decoded.any()


def test_only_what_is_needed_is_gathered(model, accelerator, clips):
    """A search over many points and classes keeps one number a clip; a clip that cannot be read stays NaN."""
    bad = VideoFile("bad", None, "nowhere.mp4")
    predict = Predictor(forward_of(model), tiny_processor(), accelerator, views_of(batch_size=2))
    whole, seen = predict([*clips[:3], bad], POINTS[:2]), []

    def best(scores, indices):
        seen.extend(indices)
        return scores.amax(-1, keepdim=True)

    kept = predict([*clips[:3], bad], POINTS[:2], best)
    assert kept.scores.shape == (2, 4, 1) and seen == [0, 1, 2, 3]
    torch.testing.assert_close(kept.scores[..., 0], whole.scores.amax(-1), equal_nan=True)
    assert kept.failures == whole.failures and kept.decoded.tolist() == [True] * 3 + [False]


@torch.no_grad()
def test_what_is_told_to_be_kept_is_kept():
    """The official selector keeps fewer tokens than the budget where groups do not divide it."""
    model, point = tiny_model(token_selection="group_dynamic_official"), EvalPoint(8, 28, 15)
    encoder = VideoEncoder(model, tiny_processor(), [point])
    [features] = encoder(torch.randn(1, 8, 3, 28, 28))
    told, kept = describe_point(model, point), features.tokens.shape[1]
    assert encoder.widths(point).tokens == told["kept_tokens"] == kept < 15
    assert told["gflops_per_view"] == model.flops(8, 28, kept) / 1e9
