# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts an official FluxViT or InternVideo2 checkpoint to the Hugging Face layout.

    python -m conversion.convert_to_hf CHECKPOINT OUT_DIR

CHECKPOINT is a .pth, .pt, .bin or .safetensors file, or a DeepSpeed checkpoint folder. OUT_DIR then holds weights
(safetensors), config, video processor, and the source files that load it with `trust_remote_code=True`. Every key of
the checkpoint is converted, or dropped for a stated reason; anything else stops the conversion and nothing is written.
The result is loaded again and compared before it is moved to OUT_DIR.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from conversion.checkpoint_reader import read_checkpoint
from conversion.infer_config import ConfigChoices, infer_config
from conversion.key_mapping import VISION_PREFIX, reason_to_drop, strip_prefixes, translate_key
from conversion.labels import read_label_map, read_labels, slice_labels, with_labels
from conversion.report import ConversionError, KeyReport, run_command, shorten
from conversion.saving import check_output_directory, save_verified
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel, FluxViTPreTrainedModel


WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_official(
    checkpoint_path: str | os.PathLike, label_rows: list[int] | None, report: KeyReport
) -> dict[str, Tensor]:
    """The video encoder's weights by their bare official names, with some rows of its classifiers, or all.

    Raises:
        ValueError: the checkpoint cannot be read, or has not these rows.
    """
    weights = official_vision_weights(read_checkpoint(checkpoint_path), report)
    if label_rows is not None:
        slice_labels(weights, label_rows, report)
    return weights


def official_vision_weights(checkpoint: dict[str, Tensor], report: KeyReport) -> dict[str, Tensor]:
    """The video encoder's weights by their bare official names; everything else goes to `report.dropped`.

    Raises:
        ConversionError: two keys of the checkpoint have the same bare name.
    """
    multimodal = any(VISION_PREFIX in name for name in checkpoint)
    weights: dict[str, Tensor] = {}
    for name, tensor in checkpoint.items():
        bare = strip_prefixes(name)
        reason = reason_to_drop(bare)
        if multimodal and VISION_PREFIX not in name:
            reason = "not part of the vision encoder"
        if reason is not None:
            report.dropped[name] = reason
        elif bare in weights:
            raise ConversionError(f"two keys of the checkpoint both mean {bare!r}, one of them {name!r}")
        else:
            weights[bare] = tensor
    return weights


def translate_weights(weights: dict[str, Tensor], report: KeyReport, has_classifier: bool) -> dict[str, Tensor]:
    """Official names and layouts -> the state dict of our task model, or of the bare encoder without a classifier.

    Raises:
        ConversionError: keys that are neither converted nor dropped for a known reason, or not finite, all listed.
    """
    state_dict: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, tensor in weights.items():
        translated = translate_key(name)
        if translated is None:
            unexpected.append(name)
            continue
        new_name, change = translated
        if not has_classifier:
            new_name = new_name.removeprefix("fluxvit.")
        state_dict[new_name] = change(tensor).contiguous().clone()
        report.converted[name] = new_name
    check_values({name: weights[name] for name in report.converted})
    if unexpected:
        raise ConversionError(f"{len(unexpected)} unexpected keys: {shorten(unexpected)}")
    dtypes = {tensor.dtype for tensor in state_dict.values()}
    if len(dtypes) > 1:
        report.notes.append(f"the checkpoint mixes {', '.join(sorted(map(str, dtypes)))}: all became float32")
        state_dict = {name: tensor.float() for name, tensor in state_dict.items()}
    return state_dict


def check_values(weights: dict[str, Tensor]) -> None:
    """Raises ConversionError, with the list, where weights are no floating-point numbers, or not finite."""
    other = [f"{name} ({tensor.dtype})" for name, tensor in weights.items() if tensor.dtype not in WEIGHT_DTYPES]
    if other:
        raise ConversionError(f"{len(other)} keys are of no dtype for weights: {shorten(other)}")
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConversionError(f"NaN or infinite values in {len(broken)} keys: {shorten(broken)}")


def check_fit(expected: dict[str, Tensor], state_dict: dict[str, Tensor], report: KeyReport) -> None:
    """Compares a state dict with the one the model of its config has.

    Raises:
        ConversionError: missing, unexpected or misshapen keys, all listed; by their official names too, where `report`
            has these.
    """
    official = {new: f"{old} -> {new}" for old, new in report.converted.items()}
    problems = [f"missing: {name}" for name in sorted(expected.keys() - state_dict.keys())]
    problems += [f"unexpected: {official.get(name, name)}" for name in sorted(state_dict.keys() - expected.keys())]
    problems += [
        f"misshapen: {official.get(name, name)} is {tuple(state_dict[name].shape)}, "
        f"the model's {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state_dict.keys())
        if state_dict[name].shape != expected[name].shape
    ]
    if problems:
        raise ConversionError("\n  ".join([f"{len(problems)} keys do not fit the model of this config:", *problems]))


def empty_model(config: FluxViTConfig, has_classifier: bool) -> FluxViTPreTrainedModel:
    """The model of a config without memory for its weights (on the meta device)."""
    model_class = FluxViTForVideoClassification if has_classifier else FluxViTModel
    with torch.device("meta"), no_init_weights():
        return model_class(config)


def convert(
    checkpoint_path: str | os.PathLike,
    output_directory: str | os.PathLike,
    choices: ConfigChoices | None = None,
    labels: list[str] | None = None,
    label_rows: list[int] | None = None,
) -> KeyReport:
    """Converts a checkpoint and writes the result to `output_directory`.

    Args:
        checkpoint_path: File or DeepSpeed folder, see `conversion.checkpoint_reader`.
        output_directory: Made if missing; files of the same name in it are replaced, once the result is verified.
        choices: What tensor shapes cannot tell.
        labels: Names of the classes, after any slicing.
        label_rows: Rows of the classifiers to keep, in this order.

    Raises:
        ConversionError: keys that do not fit, with the list. ValueError: anything else wrong with the input.
    """
    report = KeyReport()
    check_output_directory(output_directory)
    weights = read_official(checkpoint_path, label_rows, report)
    config = infer_config(weights, choices or ConfigChoices(), report.notes)
    has_classifier = any(name.startswith("head.") for name in weights)
    if not has_classifier:
        report.notes.append("no classifier in the checkpoint: the result is a FluxViTModel")
        weights = without_classifier_parts(weights, report)
    state_dict = translate_weights(weights, report, has_classifier)
    if labels is not None:
        if not has_classifier:
            raise ConversionError("labels were given, but the checkpoint has no classifier")
        config = with_labels(config, labels)
    model = empty_model(config, has_classifier)
    check_fit(model.state_dict(), state_dict, report)
    model.load_state_dict(state_dict, assign=True)
    save_verified(model.eval(), Path(output_directory), Path(checkpoint_path), report)
    return report


def without_classifier_parts(weights: dict[str, Tensor], report: KeyReport) -> dict[str, Tensor]:
    """Drops what only the task model has: the classifier's norm and the alignment decoders."""
    parts = [name for name in weights if name.startswith(("fc_norm.", "final_clip_decoder_for_projs."))]
    report.dropped.update(dict.fromkeys(parts, "part of the task model, and the checkpoint has no classifier"))
    return {name: tensor for name, tensor in weights.items() if name not in parts}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that reads an official checkpoint."""
    parser.add_argument("checkpoint", help=".pth, .pt, .bin or .safetensors file, or DeepSpeed checkpoint folder")
    parser.add_argument("output_directory", metavar="OUT_DIR")
    unknown = "for sizes that are not published ones"
    parser.add_argument("--num_attention_heads", type=int, help=f"heads of each layer, {unknown}")
    parser.add_argument("--num_pooling_heads", type=int, help="heads of the attention pooling; 16 if not given")
    parser.add_argument("--position_frames", type=int, help=f"frames of the trained position table, {unknown}")
    parser.add_argument("--hidden_act", help="activation of the MLP; the released weights expect gelu_pytorch_tanh")
    parser.add_argument("--num_frames", type=int, help="frames of the default clip")
    parser.add_argument("--image_size", type=int, help="side of the default clip, in pixels")
    parser.add_argument("--token_budgets", type=int, nargs="+", help="trained budgets, largest first, one a head")
    parser.add_argument("--token_budget", type=int, help="budget used by default")
    parser.add_argument("--labels", metavar="FILE", help="class names: JSON list or object, or one a line")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--num_labels", type=int, help="keep the classifiers' first rows (400: Kinetics-710 -> 400)")
    rows.add_argument("--label_map", metavar="FILE", help="keep these rows of the classifiers: JSON list or one a line")


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What the parsed arguments say of config, labels and classifier rows.

    Raises:
        ValueError: no rows, or a file that holds something else.
    """
    choices = ConfigChoices(**{name: getattr(options, name) for name in ConfigChoices.__dataclass_fields__})
    labels = read_labels(options.labels) if options.labels else None
    if options.num_labels is not None and options.num_labels < 1:
        raise ValueError(f"--num_labels must be at least 1, got {options.num_labels}")
    rows = None if options.num_labels is None else list(range(options.num_labels))
    return {
        "choices": choices,
        "labels": labels,
        "label_rows": read_label_map(options.label_map) if options.label_map else rows,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conversion.convert_to_hf", description=__doc__.split("\n")[0])
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(
        lambda: convert(options.checkpoint, options.output_directory, **chosen(options)),
        options.output_directory,
        "not converted",
    )


if __name__ == "__main__":
    sys.exit(main())
