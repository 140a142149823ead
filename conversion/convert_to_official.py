# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts a checkpoint folder of this project to a file that the official FluxViT or InternVideo2 code reads.

    python -m conversion.convert_to_official CHECKPOINT OUT.pth

CHECKPOINT is a folder written by `save_pretrained`, the converter or the training. OUT.pth then holds
{"model": state dict}, which the official code looks for first. A model with GLPE, dual patch norm or three heads
becomes a FluxViT, any other an InternVideo2; what the official code cannot compute is refused, what it needs to be told
is noted. The file is read and translated back, and compared, before it is moved to OUT.pth.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from conversion.checkpoint_reader import read_checkpoint, read_model_folder
from conversion.convert_to_hf import check_fit, check_values, empty_model
from conversion.key_mapping import INDEXED_HEAD, official_key, translate_key
from conversion.report import ConversionError, KeyReport, run_command
from flux_hf import FluxViTConfig
from flux_hf.checkpoint_files import replacing


SUFFIXES = (".pth", ".pt", ".bin")
FLUXVIT_HEADS = 3
# Config fields that are constants in the official code.
FIXED_FIELDS = {"rms_norm_eps": 1e-6, "layer_norm_eps": 1e-5, "tubelet_size": 1, "num_channels": 3}
OFFICIAL_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")


def export(checkpoint_directory: str | os.PathLike, output_path: str | os.PathLike) -> KeyReport:
    """Converts a checkpoint folder and writes the result to `output_path`, replacing a file that is there.

    Raises:
        ConversionError: the official code cannot hold the model. ValueError: anything else wrong with the input.
    """
    output, report = Path(output_path), KeyReport()
    if output.suffix not in SUFFIXES or output.is_dir():
        raise ValueError(f"OUT must be a file ending in one of {', '.join(SUFFIXES)}, got {output}")
    config, state_dict = load_whole(Path(checkpoint_directory))
    check_official(config)
    weights = official_state_dict(state_dict, config, report)
    describe(config, report)
    _write_verified(weights, state_dict, report, output)
    report.notes.append("verified: read again and translated back, every tensor is bit-equal")
    return report


def load_whole(folder: Path) -> tuple[FluxViTConfig, dict[str, Tensor]]:
    """Config and weights in a checkpoint folder, those of a bare encoder by the names they have in a task model.

    Raises:
        ValueError: there is none, it is an adapter, or its weights are not exactly those of its config.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds a LoRA adapter: merge it into its model first (merge_and_unload of peft)")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint folder: it has no config.json")
    try:
        config = FluxViTConfig.from_pretrained(folder)
    except StrictDataclassError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    state_dict = read_model_folder(folder)
    check_values(state_dict)
    has_classifier = config.architectures != ["FluxViTModel"]
    check_fit(empty_model(config, has_classifier).state_dict(), state_dict, KeyReport())
    return config, state_dict if has_classifier else {f"fluxvit.{name}": value for name, value in state_dict.items()}


def is_fluxvit(config: FluxViTConfig) -> bool:
    """Whether the model is a FluxViT in official terms; any other is an InternVideo2."""
    return config.use_glpe or config.use_dual_patch_norm or len(config.token_budgets) > 1


def check_official(config: FluxViTConfig) -> None:
    """Raises ConversionError, listing why, where the official code cannot compute what the model does."""
    problems = [
        f"{name} is {getattr(config, name)}, of the official models {value}"
        for name, value in FIXED_FIELDS.items()
        if getattr(config, name) != value
    ]
    _, rows, columns = config.position_embedding_grid
    if rows != columns:
        problems.append(f"position_embedding_grid is {config.position_embedding_grid}, of the official models square")
    if config.hidden_act not in OFFICIAL_ACTIVATIONS:
        allowed = " or ".join(OFFICIAL_ACTIVATIONS)
        problems.append(f"hidden_act is {config.hidden_act}, of the official models {allowed}")
    budgets = config.token_budgets
    if is_fluxvit(config) and len(budgets) not in (1, FLUXVIT_HEADS):
        problems.append(f"token_budgets is {budgets}, of the official FluxViT {FLUXVIT_HEADS} budgets")
    if problems:
        raise ConversionError("\n  ".join(["the official code cannot hold this model:", *problems]))


def official_state_dict(state_dict: dict[str, Tensor], config: FluxViTConfig, report: KeyReport) -> dict[str, Tensor]:
    """A task model's weights by their official names and in their official layouts.

    Raises:
        ConversionError: a parameter has no official name.
    """
    fluxvit = is_fluxvit(config)
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        translated = official_key(name)
        if translated is None:
            raise ConversionError(f"{name} has no official name")
        official, change = translated
        report.converted[name] = official if fluxvit else INDEXED_HEAD.sub(r"\1.", official)
        weights[report.converted[name]] = change(tensor, config).contiguous().clone()
    if fluxvit and len(config.token_budgets) == 1:
        weights |= _copied_heads(weights)
        report.notes.append(f"the one head was copied to all {FLUXVIT_HEADS}; alignment decoders are left out")
    if fluxvit and not config.use_glpe:
        weights |= _silent_encodings(weights, config)
        report.notes.append("no GLPE: written with values that add nothing, for the official FluxViT always has it")
    return weights


def _copied_heads(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in weights.items():
        if INDEXED_HEAD.match(name):
            copies.update({INDEXED_HEAD.sub(rf"\1.{head}.", name): tensor.clone() for head in range(1, FLUXVIT_HEADS)})
    return copies


def _silent_encodings(weights: dict[str, Tensor], config: FluxViTConfig) -> dict[str, Tensor]:
    """A global encoding that is the identity, and local ones that are zero."""
    width, like = config.hidden_size, weights["cls_token"]
    kernel, bias = like.new_zeros(width, 1, 1, 1, 1), like.new_zeros(width)
    encodings = {"gpe_proj.depthwise_conv.weight": kernel + 1, "gpe_proj.depthwise_conv.bias": bias}
    for layer in range(config.num_hidden_layers):
        encodings[f"blocks.{layer}.attn.lpe.depthwise_conv.weight"] = kernel.clone()
        encodings[f"blocks.{layer}.attn.lpe.depthwise_conv.bias"] = bias.clone()
    return encodings


def describe(config: FluxViTConfig, report: KeyReport) -> None:
    """Notes the official constructor's values, and what of the model is not in the weights."""
    fluxvit, notes = is_fluxvit(config), report.notes
    frames, side, _ = config.position_embedding_grid
    values = {
        "img_size": side * config.patch_size,
        "patch_size": config.patch_size,
        "num_frames": frames,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "attn_pool_num_heads": config.num_pooling_heads,
        "clip_embed_dim": config.projection_dim,
    }
    if any(name.startswith("classifiers.") for name in report.converted):
        values["num_classes"] = config.num_labels
    listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
    notes.append(f"the official {'FluxViT' if fluxvit else 'InternVideo2'} has to be built with {listed}")
    if config.hidden_act == "gelu":
        notes.append("exact GELU: to be built without the fused MLP, which approximates it")
    if config.qkv_bias:
        notes.append("to be built with bias for queries, keys and values")
    if not config.use_qk_norm:
        notes.append("to be built without normalisation of queries and keys")
    if fluxvit and not config.use_dual_patch_norm:
        notes.append("to be built without dual patch norm")
    if fluxvit and not (config.token_selection.startswith("group_dynamic") and config.num_token_groups == 4):
        selection = f"{config.token_selection} in {config.num_token_groups} groups"
        notes.append(f"tokens were selected by {selection}; the official code selects by group_dynamic in 4")
    if fluxvit:
        notes.append(f"not part of the file: the heads' token_budgets {config.token_budgets}")
    if config.token_plan:
        notes.append(f"not part of the file: token_plan {config.token_plan}")
    if config.auto_budgets:
        notes.append(f"not part of the file: auto_budgets {config.auto_budgets}")
    if config.id2label != {index: f"LABEL_{index}" for index in range(config.num_labels)}:
        notes.append(f"not part of the file: the names of the {config.num_labels} labels")


def _write_verified(weights: dict[str, Tensor], state_dict: dict[str, Tensor], report: KeyReport, output: Path) -> None:
    """Writes a temporary file beside `output`, reads it again, compares, and only then moves it into place.

    Raises:
        ConversionError: what was read is not what was to be written, or does not translate back to the model.
    """
    with replacing(output) as file:
        try:
            torch.save({"model": weights}, file)
        except RuntimeError as error:  # of torch's writer, on a full disk
            raise OSError(f"{output} could not be written: {error}") from error
        read = read_checkpoint(file)
        if read.keys() != weights.keys():
            raise ConversionError("the file does not hold the keys that were saved")
        for name, tensor in weights.items():
            _require_equal(name, tensor, read[name])
        for name, official in report.converted.items():
            new_name, change = translate_key(official)
            _require_equal(new_name, state_dict[name], change(read[official]))


def _require_equal(name: str, expected: Tensor, found: Tensor) -> None:
    if expected.dtype != found.dtype or not torch.equal(expected, found):
        raise ConversionError(f"{name} is not what was saved")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.convert_to_official", description=__doc__.split("\n")[0]
    )
    parser.add_argument("checkpoint", help="folder with config.json and weights")
    parser.add_argument("output", metavar="OUT.pth")
    options = parser.parse_args(arguments)
    return run_command(lambda: export(options.checkpoint, options.output), options.output, "not converted")


if __name__ == "__main__":
    sys.exit(main())
