"""Flux checkpoints on the way: from the library's folders, to folders and a Hub, to a process without flux_hf."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flux_models import (
    CLASSIFIERS,
    CONFIGS,
    LABELS,
    NAMES,
    clip,
    flux_model,
    library_model,
    videomae_config,
    vivit_config,
    vjepa2_config,
    with_random_weights,
)
from local_hub import LocalHub
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    VideoMAEForPreTraining,
    VideoMAEModel,
    VivitModel,
    VJEPA2Model,
)

from flux_hf import (
    FluxConfig,
    FluxForVideoClassification,
    FluxModel,
    FluxViTVideoProcessor,
    load_classifier,
    load_processor,
)
from flux_hf.checkpoint_files import SOURCE_FILES


ANY_NAME = pytest.mark.parametrize("name", NAMES)

# Runs where flux_hf cannot be imported, whatever is installed: saves each checkpoint anew, and prints its logits.
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "flux_hf":
            raise ModuleNotFoundError("No module named 'flux_hf'", name=name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

clip, folder, *sources = sys.argv[1:]
found, video = [], torch.load(clip)
for source in sources:
    model = AutoModelForVideoClassification.from_pretrained(source, trust_remote_code=True).eval()
    bare = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = [model(video, token_budget=budget).logits.tolist() for budget in (None, 20)]
        assert torch.equal(bare(video).pooler_output, model(video).pooler_output)
    for part in (model, AutoVideoProcessor.from_pretrained(source, trust_remote_code=True)):
        part.save_pretrained(f"{folder}/{source.rsplit('/', 1)[1]}")
    found.append({"module": type(model).__module__, "logits": logits, "labels": model.config.id2label})
assert not [name for name in sys.modules if name.split(".")[0] == "flux_hf"]
print(json.dumps(found))
"""

PUSH = """
import sys
from flux_hf import FluxForVideoClassification, FluxViTVideoProcessor

for source in sys.argv[1:]:
    name = source.rsplit("/", 1)[1]
    FluxForVideoClassification.from_pretrained(source).push_to_hub(name)
    FluxViTVideoProcessor.from_pretrained(source).push_to_hub(name)
"""


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return clip()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A saved Flux model of each kind: separate heads, budgets and a plan of its own, and a processor."""
    folder = tmp_path_factory.mktemp("flux")
    for name in NAMES:
        model = flux_model(name, [48, 20], token_budget=20, separate_heads=True, token_plan={20: [4, 48]})
        model.save_pretrained(folder / name)
        FluxViTVideoProcessor(size=32, num_frames=8, patch_size=8).save_pretrained(folder / name)
    return {name: folder / name for name in NAMES}


def all_logits(model, video) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(video, token_budget=budget).logits for budget in (None, 20)]


def assert_same(found: list, expected: list) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=1e-6, rtol=1e-6)


def run(code: str, *arguments, **environment) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment or None)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


# Ours and back --------------------------------------------------------------------------------------------------------


@ANY_NAME
def test_a_saved_model_loads_again(checkpoints, name, video):
    expected = all_logits(flux_model(name, [48, 20], token_budget=20, separate_heads=True), video)
    model, loading = FluxForVideoClassification.from_pretrained(checkpoints[name], output_loading_info=True)
    assert not any(loading.values()), loading
    assert_same(all_logits(model, video), expected)
    config = model.config
    assert (config.token_budgets, config.token_budget, config.separate_heads) == ([48, 20], 20, True)
    assert config.token_plan == {20: [4, 48]} and config.id2label == LABELS and config.num_labels == 5
    assert type(config.backbone_config) is type(CONFIGS[name]())
    for cls, auto in ((FluxForVideoClassification, AutoModelForVideoClassification), (FluxModel, AutoModel)):
        for trust in ({}, {"trust_remote_code": True}):
            again = auto.from_pretrained(checkpoints[name], **trust)
            assert type(again) is cls
    assert_same([again(video).pooler_output.detach()], [model(video).pooler_output.detach()])
    assert type(AutoConfig.from_pretrained(checkpoints[name])) is FluxConfig
    assert type(AutoVideoProcessor.from_pretrained(checkpoints[name])) is FluxViTVideoProcessor
    assert type(load_classifier(checkpoints[name])) is FluxForVideoClassification
    assert load_processor(checkpoints[name], config).num_frames == 8
    assert {path.name for path in checkpoints[name].glob("*.py")} == set(SOURCE_FILES)


@ANY_NAME
def test_a_bare_model_saves_and_grows_a_classifier(checkpoints, name, tmp_path, video):
    bare = FluxModel.from_pretrained(checkpoints[name])
    bare.save_pretrained(tmp_path)
    again, loading = FluxForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith(("classifiers.", "alignment_decoders.")) for key in loading["missing_keys"])
    assert loading["missing_keys"] and not loading["unexpected_keys"]
    with torch.no_grad():
        assert_same([again.eval()(video).pooler_output], [bare.eval()(video).pooler_output])


@ANY_NAME
def test_shards_and_half_precision(checkpoints, name, tmp_path, video):
    model = FluxForVideoClassification.from_pretrained(checkpoints[name])
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_same(
        all_logits(FluxForVideoClassification.from_pretrained(tmp_path / "shards"), video), all_logits(model, video)
    )
    model.bfloat16().save_pretrained(tmp_path / "half")
    half = FluxForVideoClassification.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    assert_same(all_logits(half, video.bfloat16()), all_logits(model, video.bfloat16()))


@ANY_NAME
def test_device_maps(checkpoints, name, tmp_path, video):
    expected = all_logits(FluxForVideoClassification.from_pretrained(checkpoints[name]), video)
    parts = ("flux.poolers", "dropout", "classifiers", "alignment_decoders")
    for device_map in ("auto", {"flux.backbone": "disk", **dict.fromkeys(parts, "cpu")}):
        model = FluxForVideoClassification.from_pretrained(
            checkpoints[name], device_map=device_map, offload_folder=tmp_path
        )
        assert_same(all_logits(model, video), expected)


@pytest.mark.slow
def test_a_stranger_saves_it_anew_pushes_it_and_another_loads_it_by_id(checkpoints, tmp_path, video):
    """The first without flux_hf installed, and so the last; each gives the logits of the model first saved."""
    torch.save(video, tmp_path / "clip.pt")
    expected = [all_logits(FluxForVideoClassification.from_pretrained(path), video) for path in checkpoints.values()]
    again = [tmp_path / name for name in NAMES]

    def check(printed: str) -> None:
        for logits, entry in zip(expected, json.loads(printed.splitlines()[-1]), strict=True):
            assert entry["module"].startswith("transformers_modules.")
            assert entry["labels"] == {str(key): value for key, value in LABELS.items()}
            assert_same(entry["logits"], logits)

    check(run(STRANGER, tmp_path / "clip.pt", tmp_path, *checkpoints.values()))
    with LocalHub() as hub:
        environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
        run(PUSH, *again, **environment)
        files = {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"}
        for name, folder in zip(NAMES, again, strict=True):
            contents = hub.repository(f"tester/{name}").contents()
            assert set(contents) == files | set(SOURCE_FILES)
            assert contents["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        stranger = {**environment, "HF_HOME": str(tmp_path / "stranger")}
        check(
            run(STRANGER, tmp_path / "clip.pt", tmp_path / "third", *[f"tester/{name}" for name in NAMES], **stranger)
        )


# The library's folders ------------------------------------------------------------------------------------------------


@ANY_NAME
def test_a_classifiers_folder(name, tmp_path, video):
    library = library_model(name)
    library.save_pretrained(tmp_path)
    flux = FluxForVideoClassification.from_backbone(tmp_path, [64, 20]).eval()
    assert flux.config.id2label == LABELS and flux.config.label2id == {label: k for k, label in LABELS.items()}
    with torch.no_grad():
        torch.testing.assert_close(flux(video).logits, library(video).logits, atol=1e-5, rtol=1e-5)
    assert not flux.training and flux.config.token_budgets == [64, 20]
    separate = FluxForVideoClassification.from_backbone(tmp_path, [64, 20], separate_heads=True).eval()
    with torch.no_grad():
        for head in range(2):
            torch.testing.assert_close(separate(video, head=head).logits, library(video).logits, atol=1e-5, rtol=1e-5)
    wrapped = load_classifier(tmp_path, token_budgets=[30])
    assert type(wrapped) is FluxForVideoClassification and wrapped.config.token_budgets == [30]
    eager = FluxForVideoClassification.from_backbone(tmp_path, attn_implementation="eager")
    assert eager.flux.backbone.config._attn_implementation == "eager"
    fresh = FluxForVideoClassification.from_backbone(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert fresh.classifiers[0].weight.shape == (3, 64) and fresh.config.num_labels == 3


@pytest.mark.parametrize("dtype", [None, torch.float32])
@ANY_NAME
def test_a_folder_in_bfloat16(name, dtype, tmp_path, video):
    library = library_model(name).bfloat16()
    library.save_pretrained(tmp_path)
    flux = FluxForVideoClassification.from_backbone(tmp_path, **({} if dtype is None else {"dtype": dtype})).eval()
    assert {parameter.dtype for parameter in flux.parameters()} == {dtype or torch.bfloat16}
    theirs = library.float() if dtype else library
    tolerance = 1e-5 if dtype else 0.1  # ours embeds in float32
    with torch.no_grad():
        expected = theirs(video.to(theirs.dtype)).logits
        torch.testing.assert_close(flux(video.to(theirs.dtype)).logits, expected, atol=tolerance, rtol=tolerance)


BARE = {
    "videomae": (VideoMAEModel, videomae_config(use_mean_pooling=True)),
    "videomae with a norm": (VideoMAEModel, videomae_config(use_mean_pooling=False)),
    "videomae pretraining": (VideoMAEForPreTraining, videomae_config(use_mean_pooling=False)),
    "vivit": (VivitModel, vivit_config()),
    "vjepa2": (VJEPA2Model, vjepa2_config()),
}


@pytest.mark.parametrize("kind", BARE)
@torch.no_grad()
def test_a_bare_encoders_folder(kind, tmp_path, video, caplog):
    cls, config = BARE[kind]
    library = with_random_weights(cls(config))
    library.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        flux = FluxForVideoClassification.from_backbone(tmp_path, num_labels=9).eval()
    finally:
        logger.removeHandler(caplog.handler)
    assert f"{tmp_path} has no classifier: a new one with 9 labels" in caplog.text
    assert flux(video).logits.shape == (2, 9) and flux.config.num_labels == 9
    assert flux.classifiers[0].weight.std() > 0.01 and flux.classifiers[0].bias.abs().max() == 0
    base = library.videomae if kind == "videomae pretraining" else library
    states = base(video).last_hidden_state
    found = flux(video)
    if "videomae" not in kind:
        torch.testing.assert_close(found.last_hidden_state, states, atol=1e-5, rtol=1e-5)
    else:  # fine-tuning moves the last norm behind the mean
        assert flux.config.backbone_config.use_mean_pooling and flux.flux.backbone.layernorm is None
        norm, pooler = base.layernorm or torch.nn.LayerNorm(64), flux.flux.poolers[0].norm
        assert torch.equal(pooler.weight, norm.weight) and torch.equal(pooler.bias, norm.bias)
        again = found.last_hidden_state if base.layernorm is None else base.layernorm(found.last_hidden_state)
        torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-5)
    flux.save_pretrained(tmp_path / "flux")
    again = FluxForVideoClassification.from_pretrained(tmp_path / "flux").eval()
    assert torch.equal(again(video).logits, found.logits)


@pytest.mark.parametrize("cls", [CLASSIFIERS["videomae"], VideoMAEForPreTraining])
@torch.no_grad()
def test_videomaes_old_names_of_biases(cls, tmp_path, video):
    """As in the checkpoints that its authors published."""
    pretrained = cls is VideoMAEForPreTraining
    library = with_random_weights(cls(videomae_config(use_mean_pooling=not pretrained)))
    library.save_pretrained(tmp_path)
    weights = {
        re.sub(r"attention\.attention\.(q|v)(uery|alue)\.bias", r"attention.attention.\1_bias", key): weight
        for key, weight in load_file(tmp_path / "model.safetensors").items()
        if not key.endswith("attention.key.bias")
    }
    assert len([key for key in weights if key.endswith(("q_bias", "v_bias"))]) == 2 * (4 if pretrained else 3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    flux = FluxForVideoClassification.from_backbone(tmp_path)
    for index, layer in enumerate(library.videomae.encoder.layer):
        ours = flux.flux.backbone.encoder.layer[index].attention.attention
        assert torch.equal(ours.query.bias, layer.attention.attention.query.bias)
        assert torch.equal(ours.value.bias, layer.attention.attention.value.bias)
    if not pretrained:
        torch.testing.assert_close(flux.eval()(video).logits, library(video).logits, atol=1e-5, rtol=1e-5)


@ANY_NAME
def test_a_model_in_memory_is_copied(name, video):
    library = library_model(name)
    flux = FluxForVideoClassification.from_backbone(library)
    with torch.no_grad():
        expected = library(video).logits.clone()
        for parameter in flux.parameters():
            parameter.zero_()
        assert torch.equal(library(video).logits, expected)
    assert library.config.num_labels == 5 and library.config.architectures is None


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(OSError):
        FluxForVideoClassification.from_backbone(tmp_path / "missing")
