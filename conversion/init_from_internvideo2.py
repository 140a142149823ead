# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes an untrained FluxViT out of an InternVideo2 checkpoint: the start of Flux training.

    python -m conversion.init_from_internvideo2 CHECKPOINT OUT_DIR

CHECKPOINT is what `conversion.convert_to_hf` reads: a distilled or fine-tuned S, B or L, a stage-1 1B or 6B, or a
stage-2 model, whose text tower is dropped. Weights are copied, projector and classifier once for each budget, and the
position table is interpolated to FluxViT's grid. What FluxViT adds starts so that it changes nothing, except the dual
patch norm, for which no such start exists: without it (`--no_dual_patch_norm`) and on the checkpoint's own grid the
result computes what InternVideo2 does. To have InternVideo2 itself, as a teacher, use `conversion.convert_to_hf`.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from conversion.convert_to_hf import (
    add_arguments,
    check_fit,
    chosen,
    empty_model,
    read_official,
    translate_weights,
    without_classifier_parts,
)
from conversion.infer_config import (
    PUBLISHED_FLUXVIT_BUDGETS,
    ConfigChoices,
    complete_config,
    count_numbered,
    infer_encoder,
)
from conversion.labels import with_labels
from conversion.report import ConversionError, KeyReport, by_value, run_command, shorten
from conversion.saving import check_output_directory, save_verified
from flux_hf import FluxViTConfig, FluxViTPreTrainedModel
from flux_hf.configuration_fluxvit import FLUXVIT_SIZES
from flux_hf.modeling_fluxvit import FluxViTPositionEmbeddings


ZERO = "zero: adds nothing"
# Parts of FluxViT that InternVideo2 lacks: (pattern of our name, how they start).
NEW_PARTS = [
    (r".*\.local_position_encoding\..*", ZERO),
    (r".*\.global_position_encoding\..*", "identity"),
    (r".*\.patch_embeddings\.(norm|norm_before)\..*", "ones, which is no identity"),
    (r"alignment_decoders\..*", "official initialisation"),
]
# What an InternVideo2 that was never fine-tuned lacks besides.
NEW_CLASSIFIER_PARTS = [
    (r"classifiers\..*", "official initialisation: the checkpoint has no classifier"),
    (r"fc_norm\..*", "ones and zeros: the checkpoint has no classifier"),
]
MAX_PROJECTION = 8192  # published: 768
HEAD_PARTS = re.compile(r"(.*\bprojectors|classifiers)\.0\.(.+)")


@dataclass(frozen=True)
class StartChoices:
    """What to start with.

    dual_patch_norm: whether to have FluxViT's RMSNorms around the patch embedding. position_grid: (T0, h0, w0) to
    interpolate the position table to; the published FluxViT's by default, where there is one. num_labels: rows of a
    new classifier, where the checkpoint has none; without it the result is then the bare encoder. seed: of what starts
    from random values.
    """

    dual_patch_norm: bool = True
    position_grid: list[int] | None = None
    num_labels: int | None = None
    seed: int = 0


@dataclass
class StartReport(KeyReport):
    """Adds to where each key went what InternVideo2 has no key for.

    replicated: official name -> all our names, where there are several. interpolated: official name -> from and to.
    new: our name -> how it starts.
    """

    replicated: dict[str, list[str]] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        copied = len(self.converted) - len(self.replicated) - len(self.interpolated)
        counts = f"copied {copied} keys, replicated {len(self.replicated)}, interpolated {len(self.interpolated)}"
        lines = [f"{counts}, dropped {len(self.dropped)}; {len(self.new)} are new"]
        if self.replicated:
            copies = max(map(len, self.replicated.values()))
            lines.append(f"  replicated {copies} times: {shorten(list(self.replicated))}")
        lines += [f"  interpolated {change}: {name}" for name, change in self.interpolated.items()]
        lines += self._dropped_lines()
        lines += [f"  new, {how}: {shorten(names)}" for how, names in by_value(self.new).items()]
        return lines + self._note_lines()


def initialize(
    checkpoint_path: str | os.PathLike,
    output_directory: str | os.PathLike,
    choices: ConfigChoices | None = None,
    start: StartChoices | None = None,
    labels: list[str] | None = None,
    label_rows: list[int] | None = None,
) -> StartReport:
    """Initialises FluxViT from an InternVideo2 checkpoint and writes it to `output_directory`.

    Args:
        checkpoint_path, output_directory, labels, label_rows: As `conversion.convert_to_hf.convert` takes them.
        choices: What tensor shapes cannot tell; default clip and token budgets are the new model's.
        start: What to start with.

    Raises:
        ConversionError: keys that do not fit, with the list. ValueError: anything else wrong with the input.
    """
    choices, start, report = choices or ConfigChoices(), start or StartChoices(), StartReport()
    check_output_directory(output_directory)
    weights = read_official(checkpoint_path, label_rows, report)
    source = infer_encoder(weights, choices, report.notes)
    if source["use_glpe"] or source["use_dual_patch_norm"] or count_numbered(weights, "clip_projector."):
        raise ValueError("the checkpoint is a FluxViT already: use conversion.convert_to_hf")
    config = fluxvit_config(source, choices, start, report.notes)
    has_classifier = "num_labels" in source or start.num_labels is not None
    if labels is not None:
        if not has_classifier:
            raise ConversionError("labels were given, but the checkpoint has no classifier and no new one is asked for")
        config = with_labels(config, labels)
    if not has_classifier:
        report.notes.append("no classifier in the checkpoint, and none asked for: the result is a FluxViTModel")
        weights = without_classifier_parts(weights, report)
    state_dict = translate_weights(weights, report, has_classifier)
    state_dict = _replicate_heads(state_dict, config, report)
    _interpolate_positions(state_dict, source, config, report)
    model = empty_model(config, has_classifier)
    _add_new_parts(model, state_dict, start, report)
    model.load_state_dict(state_dict, assign=True)
    save_verified(model.eval(), Path(output_directory), Path(checkpoint_path), report)
    return report


def fluxvit_config(source: dict, choices: ConfigChoices, start: StartChoices, notes: list[str]) -> FluxViTConfig:
    """FluxViT's config for an InternVideo2 given by `infer_encoder`'s fields; `notes` gains a line for each guess.

    Raises:
        ValueError: a choice is impossible.
    """
    if start.num_labels is not None and "num_labels" in source:
        raise ValueError(f"the checkpoint has a classifier of {source['num_labels']} labels: choose among its rows")
    fields = {**source, "use_glpe": True, "use_dual_patch_norm": start.dual_patch_norm}
    if start.num_labels is not None:
        fields["num_labels"] = start.num_labels
    fields["position_embedding_grid"] = _target_grid(source, start, notes)
    heads = len(PUBLISHED_FLUXVIT_BUDGETS) if choices.token_budgets is None else len(choices.token_budgets)
    return complete_config(fields, heads, choices, notes)


def _target_grid(source: dict, start: StartChoices, notes: list[str]) -> list[int]:
    if start.position_grid is not None:
        if min(start.position_grid) < 1:
            raise ValueError(f"--position_grid must be three sizes of at least 1, got {start.position_grid}")
        return list(start.position_grid)
    shape = ("hidden_size", "num_hidden_layers", "intermediate_size")
    for size in FLUXVIT_SIZES.values():
        if all(size[name] == source[name] for name in shape):
            return list(size["position_embedding_grid"])
    notes.append(f"no FluxViT of this size is published: the position grid stays {source['position_embedding_grid']}")
    return source["position_embedding_grid"]


def _replicate_heads(state_dict: dict[str, Tensor], config: FluxViTConfig, report: StartReport) -> dict[str, Tensor]:
    """Gives the one projector and classifier to every budget."""
    official = {new: old for old, new in report.converted.items()}
    replicated = dict(state_dict)
    for name, tensor in state_dict.items():
        match = HEAD_PARTS.fullmatch(name)
        if match and len(config.token_budgets) > 1:
            copies = [f"{match[1]}.{head}.{match[2]}" for head in range(len(config.token_budgets))]
            replicated.update({copy: tensor.clone() for copy in copies})
            report.replicated[official[name]] = copies
    return replicated


def _interpolate_positions(
    state_dict: dict[str, Tensor], source: dict, config: FluxViTConfig, report: StartReport
) -> None:
    """Resizes the position table as the model itself would for a clip of that grid."""
    old, new = source["position_embedding_grid"], config.position_embedding_grid
    if old == new:
        return
    name = next(name for name in state_dict if name.endswith("position_embeddings.table"))
    trained = {**config.to_dict(), "position_embedding_grid": old, "use_glpe": False}
    with torch.device("meta"):
        positions = FluxViTPositionEmbeddings(FluxViTConfig.from_dict(trained))
    positions.load_state_dict({"table": state_dict[name]}, assign=True)
    with torch.no_grad():
        state_dict[name] = positions(*new).clone()
    report.interpolated["pos_embed"] = f"from {'x'.join(map(str, old))} to {'x'.join(map(str, new))}"


def _add_new_parts(
    model: FluxViTPreTrainedModel, state_dict: dict[str, Tensor], start: StartChoices, report: StartReport
) -> None:
    """Initialises what InternVideo2 lacks, in modules of `model`, and adds it to the state dict.

    Raises:
        ConversionError: other keys than those are missing, or some do not fit.
    """
    expected = model.state_dict()
    parts = NEW_PARTS if start.num_labels is None else NEW_PARTS + NEW_CLASSIFIER_PARTS
    lacking = sorted(expected.keys() - state_dict.keys())
    new = {name: how for name in lacking for pattern, how in parts if re.fullmatch(pattern, name)}
    check_fit(expected, {**{name: expected[name] for name in new}, **state_dict}, report)
    # All else is as large as the file; a forged width, squared, could make the decoders larger than memory.
    if model.config.projection_dim > MAX_PROJECTION:
        width = model.config.projection_dim
        raise ConversionError(f"the projector's output is {width} wide: at most {MAX_PROJECTION} is believed")
    dtype = next(iter(state_dict.values())).dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start.seed)
        for prefix, module in model.named_modules():
            for name in [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]:
                if name in new and name not in state_dict:
                    state_dict.update(_fresh(model, prefix, module, dtype) | state_dict)
    for name, how in new.items():
        if how == ZERO:
            state_dict[name].zero_()
    report.new.update(new)


def _fresh(model: FluxViTPreTrainedModel, prefix: str, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The module's own parameters as the model initialises them."""
    module.to_empty(device="cpu", recurse=False)
    model._init_weights(module)
    return {f"{prefix}.{name}": value.data.to(dtype) for name, value in module.named_parameters(recurse=False)}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.init_from_internvideo2", description=__doc__.split("\n")[0]
    )
    add_arguments(parser)
    parser.add_argument(
        "--dual_patch_norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="RMSNorms around the patch embedding, as FluxViT has; without them the start equals InternVideo2",
    )
    grid = "grid to interpolate the position table to; by default that of FluxViT-S or -B, else as it is"
    parser.add_argument("--position_grid", type=int, nargs=3, metavar=("FRAMES", "ROWS", "COLUMNS"), help=grid)
    parser.add_argument("--new_classifier", type=int, metavar="LABELS", help="where the checkpoint has no classifier")
    parser.add_argument("--seed", type=int, default=0, help="of the parts that start from random values")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    start = StartChoices(options.dual_patch_norm, options.position_grid, options.new_classifier, options.seed)
    return run_command(
        lambda: initialize(options.checkpoint, options.output_directory, start=start, **chosen(options)),
        options.output_directory,
        "not initialised",
    )


if __name__ == "__main__":
    sys.exit(main())
