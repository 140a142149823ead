"""An encoder that has nothing in common with FluxViT but the protocol trains, is evaluated, searched and decayed."""

import pytest
import torch
from accelerate import Accelerator
from evaluation_parts import tiny_processor, write_clips
from torch.nn.functional import cross_entropy, normalize, one_hot, smooth_l1_loss
from toy_encoder import ToyEncoder

from flux_hf.protocol import features_at_budgets, logits_at_budgets
from training.arguments import ViewArguments
from training.data.reader import VideoFile
from training.engine.optim import freeze_layers, parameter_groups
from training.evaluate import evaluate
from training.inference.command import model_predictor
from training.inference.points import EvalPoint
from training.inference.search import search
from training.objectives import FluxMulti


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ToyEncoder()


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    paths = write_clips(tmp_path_factory.mktemp("clips"))
    return [VideoFile(path.name + str(i), f"class {i % 3}", str(path)) for i, path in enumerate(paths)]


def scores_of_files(encoder, clips, point):
    """What the encoder says of each file at a point, by way of the processor, one budget at a time."""
    rows = []
    for clip in clips:
        inputs = tiny_processor()(clip.path, num_frames=point.num_frames, size=point.size, return_tensors="pt")
        (logits,) = logits_at_budgets(encoder, inputs["pixel_values_videos"], [point.token_budget])
        rows.append(logits[0].softmax(-1))
    return torch.stack(rows)


def test_flux_multi_trains_it(encoder):
    videos = torch.randn(6, 4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    targets = one_hot(torch.arange(6) % 3, 3).float()
    videos = videos + targets[:, None, :, None, None]  # a class is a colour
    objective = FluxMulti(encoder, alignment_weight=0.5)
    features = [feature for feature, _ in features_at_budgets(encoder, videos, [16, 8, 4], [0, 1, 2])]
    losses = [cross_entropy(encoder.classify(feature, head), targets) for head, feature in enumerate(features)]
    aligned = [smooth_l1_loss(encoder.align(f, 1), normalize(features[0].detach(), dim=-1)) for f in features[1:]]
    expected = sum(losses) + 0.5 * sum(aligned)
    torch.testing.assert_close(objective(videos, targets).loss, expected)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, 0.05, 0.0, 0.5))
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(videos, targets).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * expected


def test_layer_decay_asks_it(encoder):
    groups = parameter_groups(encoder, 1.0, 0.1, layer_decay=0.5)
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert found == {(0.25, 0.0): 1, (0.25, 0.1): 1, (0.5, 0.0): 1, (0.5, 0.1): 1, (1.0, 0.0): 3, (1.0, 0.1): 3}
    freeze_layers(encoder, 2)
    trained = {name.split(".")[0] for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {"heads"}


def predictor(encoder, accelerator):
    return model_predictor(encoder.eval(), tiny_processor(), accelerator, ViewArguments(), num_workers=0)


def test_it_is_evaluated(encoder, accelerator, clips):
    points = [EvalPoint(4, 28, 16), EvalPoint(4, 28, 4), EvalPoint(6, 42, 8)]
    results, predictions, targets = evaluate(encoder, predictor(encoder, accelerator), clips, points)
    assert targets.tolist() == [0, 1, 2, 0, 1, 2]
    for point, result, scores in zip(points, results, predictions.scores, strict=True):
        expected = scores_of_files(encoder, clips, point)
        torch.testing.assert_close(scores, expected)
        assert result["top1"] == pytest.approx((expected.argmax(-1) == targets).float().mean().item())
        assert result["gflops_per_view"] == 1e-6 * point.token_budget


def test_its_budgets_are_optimized(encoder, accelerator, clips):
    grid = [(2, 28), (4, 28), (4, 42), (8, 28)]
    truth = EvalPoint(8, 28, 16)
    best = scores_of_files(encoder, clips, truth).argmax(-1).tolist()
    labelled = [VideoFile(clip.name, f"class {index}", clip.path) for clip, index in zip(clips, best, strict=True)]
    searches, _ = search(encoder, predictor(encoder, accelerator), labelled, [16, 4], grid)
    assert [found.token_budget for found in searches] == [16, 4]
    assert searches[0].measured[truth] == 1.0 and searches[0].too_few_tokens == (EvalPoint(2, 28, 16),)
    for found in searches:
        for point, accuracy in found.measured.items():
            hits = [
                index == own for index, own in zip(scores_of_files(encoder, clips, point).argmax(-1), best, strict=True)
            ]
            assert accuracy == pytest.approx(sum(hits) / len(hits))
        assert found.measured[found.best] == max(found.measured.values())
