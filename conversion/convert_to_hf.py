# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts an official FluxViT or InternVideo2 checkpoint to the Hugging Face layout.

    python -m conversion.convert_to_hf CHECKPOINT OUT_DIR

CHECKPOINT is a .pth, .pt, .bin or .safetensors file, or a DeepSpeed checkpoint folder. OUT_DIR then holds weights
(safetensors), config, video processor, and the source files that load it with `trust_remote_code=True`. Every key of
the checkpoint is converted, or dropped for a stated reason; anything else stops the conversion and nothing is written.
The result is loaded again and compared before it is moved to OUT_DIR.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from conversion.checkpoint_reader import read_checkpoint
from conversion.infer_config import ConfigChoices, infer_config
from conversion.key_mapping import VISION_PREFIX, reason_to_drop, strip_prefixes, translate_key
from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel, FluxViTVideoProcessor


REPORT_NAME = "conversion_report.json"
MAX_KEYS_SHOWN = 20


class ConversionError(ValueError):
    """The checkpoint cannot be converted; the message lists why."""


@dataclass
class KeyReport:
    """What became of every key of the checkpoint.

    converted: official name -> our name. dropped: official name -> reason. notes: what was assumed or sliced.
    """

    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as printed."""
        lines = [f"converted {len(self.converted)} keys, dropped {len(self.dropped)}"]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            lines.append(f"  dropped, {reason}: {_shorten(names)}")
        return lines + [f"  note: {note}" for note in self.notes]


def _shorten(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:MAX_KEYS_SHOWN])
    return shown if len(names) <= MAX_KEYS_SHOWN else f"{shown} and {len(names) - MAX_KEYS_SHOWN} more"


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


def slice_labels(weights: dict[str, Tensor], rows: list[int], report: KeyReport) -> None:
    """Keeps these rows of every classifier, in this order (K710 -> K400 keeps the first 400).

    Raises:
        ConversionError: the checkpoint has no classifier, or not these rows.
    """
    names = [name for name in weights if name.startswith("head.")]
    if not names:
        raise ConversionError("the checkpoint has no classifier whose labels could be chosen")
    for name in names:
        available = len(weights[name])
        wrong = [row for row in rows if not 0 <= row < available]
        if wrong:
            raise ConversionError(f"labels {wrong[:5]} are not among the {available} of {name}")
        if rows == list(range(available)):
            continue
        report.notes.append(f"{name}: kept {len(rows)} of {available} rows")
        weights[name] = weights[name][torch.tensor(rows)]


def translate_weights(weights: dict[str, Tensor], report: KeyReport, has_classifier: bool) -> dict[str, Tensor]:
    """Official names and layouts -> the state dict of our task model, or of the bare encoder without a classifier.

    Raises:
        ConversionError: keys that are neither converted nor dropped for a known reason, or not finite, all listed.
    """
    state_dict: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, tensor in weights.items():
        translated: tuple[str, Callable[[Tensor], Tensor] | None] | None = translate_key(name)
        if translated is None:
            unexpected.append(name)
            continue
        new_name, change = translated
        if not has_classifier:
            new_name = new_name.removeprefix("fluxvit.")
        state_dict[new_name] = (tensor if change is None else change(tensor)).contiguous().clone()
        report.converted[name] = new_name
    broken = [name for name in report.converted if not torch.isfinite(weights[name]).all()]
    if broken:
        raise ConversionError(f"NaN or infinite values in {len(broken)} keys: {', '.join(broken)}")
    if unexpected:
        raise ConversionError(f"{len(unexpected)} unexpected keys: {', '.join(unexpected)}")
    dtypes = {tensor.dtype for tensor in state_dict.values()}
    if len(dtypes) > 1:
        report.notes.append(f"the checkpoint mixes {', '.join(sorted(map(str, dtypes)))}: all became float32")
        state_dict = {name: tensor.float() for name, tensor in state_dict.items()}
    return state_dict


def load_strictly(model: torch.nn.Module, state_dict: dict[str, Tensor], report: KeyReport) -> None:
    """Pours the state dict into the model.

    Raises:
        ConversionError: missing, unexpected or misshapen keys, all listed.
    """
    official = {new: old for old, new in report.converted.items()}
    expected = model.state_dict()
    problems = [f"missing: what becomes {name}" for name in sorted(expected.keys() - state_dict.keys())]
    problems += [f"unexpected: {official[name]} -> {name}" for name in sorted(state_dict.keys() - expected.keys())]
    problems += [
        f"misshapen: {official[name]} is {tuple(state_dict[name].shape)}, the model's {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state_dict.keys())
        if state_dict[name].shape != expected[name].shape
    ]
    if problems:
        raise ConversionError("\n  ".join([f"{len(problems)} keys do not fit the model of this config:", *problems]))
    model.load_state_dict(state_dict, strict=True, assign=True)


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
    if Path(output_directory).is_file():
        raise ValueError(f"OUT_DIR must be a folder, {output_directory} is a file")
    weights = official_vision_weights(read_checkpoint(checkpoint_path), report)
    if label_rows is not None:
        slice_labels(weights, label_rows, report)
    config = infer_config(weights, choices or ConfigChoices(), report.notes)
    has_classifier = any(name.startswith("head.") for name in weights)
    if not has_classifier:
        weights = _without_classifier_parts(weights, report)
    state_dict = translate_weights(weights, report, has_classifier)
    if labels is not None:
        config = _with_labels(config, labels, has_classifier)
    model_class = FluxViTForVideoClassification if has_classifier else FluxViTModel
    with torch.device("meta"):
        model = model_class(config)
    load_strictly(model, state_dict, report)
    _save_verified(model.eval(), Path(output_directory), Path(checkpoint_path), report)
    return report


def _without_classifier_parts(weights: dict[str, Tensor], report: KeyReport) -> dict[str, Tensor]:
    """Drops what only the task model has: the classifier's norm and the alignment decoders."""
    report.notes.append("no classifier in the checkpoint: the result is a FluxViTModel")
    parts = [name for name in weights if name.startswith(("fc_norm.", "final_clip_decoder_for_projs."))]
    report.dropped.update(dict.fromkeys(parts, "part of the task model, and the checkpoint has no classifier"))
    return {name: tensor for name, tensor in weights.items() if name not in parts}


def _with_labels(config: FluxViTConfig, labels: list[str], has_classifier: bool) -> FluxViTConfig:
    if not has_classifier:
        raise ConversionError("labels were given, but the checkpoint has no classifier")
    if len(labels) != config.num_labels:
        raise ConversionError(f"{len(labels)} labels were given, but the classifier has {config.num_labels}")
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ConversionError(f"labels must differ, these are given more than once: {repeated}")
    fields = config.to_dict()
    fields.update(id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)})
    return FluxViTConfig.from_dict(fields)


def make_processor(config: FluxViTConfig) -> FluxViTVideoProcessor:
    """The video processor of a model: its default clip, and its patch size for sides that are not square."""
    height, width = config.image_height_width
    size = {"shortest_edge": height} if height == width else {"height": height, "width": width}
    return FluxViTVideoProcessor(
        size=size,
        crop_size={"height": height, "width": width},
        num_frames=config.num_frames,
        patch_size=config.patch_size,
    )


def _save_verified(model: torch.nn.Module, output: Path, source: Path, report: KeyReport) -> None:
    """Saves to a temporary folder beside `output`, loads it again, compares, and only then moves it into place."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as staging_name:
        staging = Path(staging_name) / "checkpoint"
        model.save_pretrained(staging)
        make_processor(model.config).save_pretrained(staging)
        difference = _compare_with_saved(model, staging)
        report.notes.append(
            f"verified: loaded again, every tensor is bit-equal, a random clip's features within {difference:.0e}"
        )
        record = {
            "source": source.name,
            "source_sha256": sha256(source),
            "verified": True,
            "converted": report.converted,
            "dropped": report.dropped,
            "notes": report.notes,
        }
        (staging / REPORT_NAME).write_text(json.dumps(record, indent=2) + "\n")
        _move_into_place(staging, output)


def _compare_with_saved(model: torch.nn.Module, saved: Path) -> float:
    """Largest difference between the pooled features of `model` and of what is saved, on one random clip.

    It need not be 0 for equal weights: where tensors lie in memory decides which kernels multiply them.

    Raises:
        ConversionError: a saved tensor is not bit-equal, or the features differ by more than rounding.
    """
    reloaded = type(model).from_pretrained(saved).eval()
    restored = reloaded.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.dtype != restored[name].dtype or not torch.equal(tensor, restored[name]):
            raise ConversionError(f"{name} is not what was saved")
    config = model.config
    height, width = config.image_height_width
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_frames, config.num_channels, height, width)
    clip = torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)
    with torch.no_grad():
        first, second = model(clip).pooler_output, reloaded(clip).pooler_output
    difference = (first - second).abs().max().item()
    allowed = 100 * torch.finfo(first.dtype).eps * first.abs().max().item()
    if difference > allowed:
        raise ConversionError(f"the saved checkpoint's pooled features differ by {difference}, {allowed} is rounding")
    return difference


def _move_into_place(staging: Path, output: Path) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        if output.exists():
            output.rmdir()
        os.replace(staging, output)
        return
    # A folder that already holds something: each file whole, the config last, so that a reader sees old or new.
    for file in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(file, output / file.name)


def sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and contents in order."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_labels(path: str | os.PathLike) -> list[str]:
    """Class names from a .json list or id -> name object, or from a text file with one name a line.

    Raises:
        ValueError: the file is neither, or its ids are not 0 ... n - 1.
    """
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix != ".json":
        labels = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        labels = json.loads(text)
        if isinstance(labels, dict):
            if sorted(labels, key=_as_id) != [str(index) for index in range(len(labels))]:
                raise ValueError(f"{path}: the ids must be 0 to {len(labels) - 1}")
            labels = [labels[str(index)] for index in range(len(labels))]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: expected class names, as a JSON list or object or one a line")
    return labels


def _as_id(key: str) -> int:
    return int(key) if key.isdigit() else -1


def read_label_map(path: str | os.PathLike) -> list[int]:
    """Classifier rows to keep, from a JSON list of row numbers or a text file with one a line.

    Raises:
        ValueError: the file holds anything else.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: expected row numbers, as a JSON list or one a line ({error})") from error
    if not rows or not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
        raise ValueError(f"{path}: expected row numbers, as a JSON list or one a line")
    return rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conversion.convert_to_hf", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help=".pth, .pt, .bin or .safetensors file, or DeepSpeed checkpoint folder")
    parser.add_argument("output_directory", metavar="OUT_DIR")
    unknown = "for sizes that are not published ones"
    parser.add_argument("--num-attention-heads", type=int, help=f"heads of each layer, {unknown}")
    parser.add_argument("--num-pooling-heads", type=int, help="heads of the attention pooling; 16 if not given")
    parser.add_argument("--position-frames", type=int, help=f"frames of the trained position table, {unknown}")
    parser.add_argument("--hidden-act", help="activation of the MLP; the released weights expect gelu_pytorch_tanh")
    parser.add_argument("--num-frames", type=int, help="frames of the default clip")
    parser.add_argument("--image-size", type=int, help="side of the default clip, in pixels")
    parser.add_argument("--token-budgets", type=int, nargs="+", help="trained budgets, largest first, one a head")
    parser.add_argument("--token-budget", type=int, help="budget used by default")
    parser.add_argument("--labels", metavar="FILE", help="class names: JSON list or object, or one a line")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--num-labels", type=int, help="keep the classifiers' first rows (400: Kinetics-710 -> 400)")
    rows.add_argument("--label-map", metavar="FILE", help="keep these rows of the classifiers: JSON list or one a line")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    choices = ConfigChoices(
        **{name: getattr(options, name) for name in ConfigChoices.__dataclass_fields__}  # the flags' names are theirs
    )
    try:
        if options.num_labels is not None and options.num_labels < 1:
            raise ValueError(f"--num-labels must be at least 1, got {options.num_labels}")
        rows = list(range(options.num_labels)) if options.num_labels else None
        rows = read_label_map(options.label_map) if options.label_map else rows
        labels = read_labels(options.labels) if options.labels else None
        report = convert(options.checkpoint, options.output_directory, choices, labels, rows)
    except (ValueError, OSError) as error:
        print(f"not converted: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines()))
    print(f"saved to {os.path.abspath(options.output_directory)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
