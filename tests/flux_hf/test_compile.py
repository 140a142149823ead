import pytest
import torch
from flux_models import CLASSIFIERS, CONFIGS, with_random_weights
from torch._dynamo.testing import CompileCounter

from flux_hf import FluxForVideoClassification, FluxViTConfig, FluxViTForVideoClassification
from training.data.sampling import SAMPLING_PRESETS
from training.objectives import FluxMulti


PATCH = 2  # the paper's grids, of smaller pictures
WIDE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32, "num_labels": 3}
BUDGETS = (3072, 2048, 1024)


def paper_clips(tubelet: int = 1):
    shapes = SAMPLING_PRESETS["paper"].legal_shapes()
    assert len(shapes) == 18
    for shape in shapes:
        side = shape.size // 14 * PATCH
        yield torch.rand(1, shape.num_frames * tubelet, 3, side, side)


def fluxvit() -> FluxViTForVideoClassification:
    sizes = {**WIDE, "num_pooling_heads": 2, "projection_dim": 16}
    return FluxViTForVideoClassification(FluxViTConfig(**sizes, patch_size=PATCH, token_budgets=list(BUDGETS)))


def flux(name: str) -> FluxForVideoClassification:
    patch = [2, PATCH, PATCH] if name == "vivit" else None
    fields = {"tubelet_size": patch} if patch else {"patch_size": PATCH}
    stock = with_random_weights(CLASSIFIERS[name](CONFIGS[name](**fields, num_hidden_layers=2)))
    return FluxForVideoClassification.from_backbone(stock, token_budgets=list(BUDGETS))


MODELS = {"fluxvit": (fluxvit, 1), "videomae": (lambda: flux("videomae"), 2), "vjepa2": (lambda: flux("vjepa2"), 2)}


def compiled(name: str) -> tuple[torch.nn.Module, CompileCounter]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, counter = MODELS[name][0](), CompileCounter()
    model.compile_layers(backend=counter)
    return model, counter


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "fluxvit")) for name in MODELS]
)
@torch.inference_mode()
def test_layers_compile_twice_for_all_of_the_papers_shapes_and_budgets(name):
    model, counter = compiled(name)
    model.eval()
    for clip in paper_clips(MODELS[name][1]):
        for budget in BUDGETS:
            model(clip, token_budget=budget)
    assert 1 <= counter.frame_count <= 2  # for the first number of tokens, then for any


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_layers_compile_twice_in_training(name):
    model, counter = compiled(name)
    objective = FluxMulti(model.train(), alignment_weight=1.0 if len(model.alignment_decoders) else 0.0)
    targets = torch.full((1, model.config.num_labels), 1 / model.config.num_labels)
    for clip in paper_clips(MODELS[name][1]):
        objective(clip, targets).loss.backward()
    assert 1 <= counter.frame_count <= 2
