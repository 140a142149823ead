"""Equality with the official FluxViT and InternVideo2, by numbers they computed: see fixtures/golden/README.md.

The models under test come out of the converter, so checkpoint, converter, `from_pretrained` and forward are one path.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize, one_hot

from conversion.convert_to_hf import convert
from conversion.infer_config import ConfigChoices
from flux_hf import FluxViTForVideoClassification
from training.objectives import FluxMulti


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
TINY = ConfigChoices(num_attention_heads=3, num_pooling_heads=4, position_frames=8)
FLUXVIT = json.loads((GOLDEN / "fluxvit_tiny_golden.json").read_text())
INTERNVIDEO2 = json.loads((GOLDEN / "internvideo2_tiny_golden.json").read_text())
EVERYTHING = 10**6


def pixels(video_uint8: torch.Tensor) -> torch.Tensor:
    """(B, 3, T, H, W) uint8 -> what the official model saw, (B, T, 3, H, W)."""
    return (video_uint8.float() / 255 * 6 - 3).transpose(1, 2).contiguous()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "fluxvit_tiny_golden.safetensors")


@pytest.fixture(scope="module")
def teacher_golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "internvideo2_tiny_golden.safetensors")


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name in ("fluxvit", "internvideo2"):
        folders[name] = tmp_path_factory.mktemp("converted") / name
        convert(GOLDEN / f"{name}_tiny_checkpoint.pth", folders[name], TINY)
    return folders


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, converted) -> FluxViTForVideoClassification:
    folder = converted["fluxvit"]
    return FluxViTForVideoClassification.from_pretrained(folder, attn_implementation=request.param).eval()


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def teacher(request, converted) -> FluxViTForVideoClassification:
    folder = converted["internvideo2"]
    return FluxViTForVideoClassification.from_pretrained(folder, attn_implementation=request.param).eval()


@pytest.mark.parametrize("case", FLUXVIT["cases"])
@torch.no_grad()
def test_every_golden_tensor_of_a_case(model, golden, case):
    video = pixels(golden[f"{case}.video_uint8"])
    budget = FLUXVIT["cases"][case]["budget"] or EVERYTHING
    compared = {f"{case}.video_uint8"}

    def check(name: str, value: torch.Tensor) -> None:
        torch.testing.assert_close(value, golden[f"{case}.{name}"], **TOLERANCE)
        compared.add(f"{case}.{name}")

    embeddings = model.fluxvit.embeddings
    _, frames, _, height, width = video.shape
    check("patch_embeddings", embeddings.patch_embeddings(video).flatten(1, 2))
    check("position_embeddings", embeddings.position_embeddings(frames, height // 14, width // 14))
    for head in range(3):
        outputs = model(video, token_budget=budget, head=head, output_hidden_states=True)
        check("hidden.first", outputs.hidden_states[1])
        check("hidden.last", outputs.last_hidden_state)
        check(f"pooled.{head}", outputs.pooler_output)
        check(f"logits.{head}", outputs.logits)
        if head > 0:
            check(f"projected.{head}", model.align(outputs.pooler_output, head))
    if budget != EVERYTHING:
        kept = torch.zeros_like(golden[f"{case}.kept"]).scatter_(1, outputs.keep_indices, 1)
        assert torch.equal(kept, golden[f"{case}.kept"])
        compared.add(f"{case}.kept")
    assert compared == {name for name in golden if name.startswith(f"{case}.")}


@torch.no_grad()
def test_exact_gelu(converted, golden):
    model = FluxViTForVideoClassification.from_pretrained(converted["fluxvit"], hidden_act="gelu").eval()
    logits = model(pixels(golden["full.video_uint8"]), token_budget=EVERYTHING, head=0).logits
    torch.testing.assert_close(logits, golden["erf_gelu.logits.0"], **TOLERANCE)


def test_multi_budget_loss_and_gradient_norms(model, converted, golden):
    expected = FLUXVIT["multi_loss"]
    video = pixels(golden[f"{expected['case']}.video_uint8"])
    labels = torch.tensor(expected["labels"])
    attention = model.config._attn_implementation
    model = FluxViTForVideoClassification.from_pretrained(
        converted["fluxvit"], token_budgets=expected["budgets"], attn_implementation=attention
    ).eval()
    output = FluxMulti(model)(video, one_hot(labels, model.config.num_labels).float())
    output.loss.backward()
    torch.testing.assert_close(output.cross_entropies, torch.tensor(expected["cross_entropy"]), **TOLERANCE)
    torch.testing.assert_close(output.alignment, torch.tensor(sum(expected["alignment"])), **TOLERANCE)
    torch.testing.assert_close(output.loss.detach(), torch.tensor(expected["loss"]), **TOLERANCE)

    official_names = json.loads((converted["fluxvit"] / "conversion_report.json").read_text())["converted"]
    parameters = dict(model.named_parameters())
    assert expected["grad_norm"].keys() == official_names.keys()
    assert set(official_names.values()) == parameters.keys()
    for official, norm in expected["grad_norm"].items():
        ours = parameters[official_names[official]].grad.norm()
        torch.testing.assert_close(ours, torch.tensor(norm), rtol=1e-4, atol=1e-6, msg=f"gradient of {official}")


@torch.no_grad()
def test_internvideo2_as_classifier_and_as_teacher(teacher, teacher_golden):
    outputs = teacher(
        pixels(teacher_golden["video_uint8"]),
        token_budget=EVERYTHING,
        output_hidden_states=True,
        output_pooler_attentions=True,
    )
    torch.testing.assert_close(outputs.logits, teacher_golden["logits"], **TOLERANCE)
    layers = sorted(INTERNVIDEO2["teacher_layer_index"])
    features = torch.stack([normalize(outputs.hidden_states[layer + 1], dim=-1) for layer in layers])
    torch.testing.assert_close(features, teacher_golden["teacher_layers"], **TOLERANCE)
    pooled = normalize(outputs.pooler_output, dim=-1)
    torch.testing.assert_close(pooled, teacher_golden["teacher_pooled"], **TOLERANCE)
    (attention,) = outputs.pooler_attentions
    torch.testing.assert_close(attention.mean(1)[:, 0, 1:], teacher_golden["teacher_attention"], **TOLERANCE)

    # and in four steps, as a distillation asks it
    patches, grid = teacher.embed(pixels(teacher_golden["video_uint8"]))
    [everything] = teacher.select(patches, [None])
    hidden_states, states = teacher.encode(patches, grid, everything, layers)
    features = torch.stack([normalize(state, dim=-1) for state in states])
    torch.testing.assert_close(features, teacher_golden["teacher_layers"], **TOLERANCE)
    pooled, attention = teacher.pool(hidden_states, 0, attention=True)
    torch.testing.assert_close(normalize(pooled, dim=-1), teacher_golden["teacher_pooled"], **TOLERANCE)
    torch.testing.assert_close(attention.mean(1)[:, 0, 1:], teacher_golden["teacher_attention"], **TOLERANCE)
