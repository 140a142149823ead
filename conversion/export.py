# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Exports a classifier for ONNX Runtime, OpenVINO or torch without its Python code: one program for each token budget.

    python -m conversion.export fluxvit-s-k400 fluxvit-s-onnx --format onnx --token_budget 2048 1024

Takes FluxViT and Flux folders, and plain VideoMAE, V-JEPA 2 and ViViT ones. Each program takes batches of any size, of
clips of one shape. What was written is loaded again and compared with the model before it gets its name.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.exporters import ExportedModel

from conversion.export_formats import TRANSFORMERS_NAMES, check_format, export_at
from conversion.export_verification import verify
from conversion.report import read_object, run_command
from conversion.staging import CONFIG_NAME, PROCESSOR_NAME
from flux_hf import __version__, load_classifier, load_exported, load_processor
from flux_hf.checkpoint_files import replacing, write_json
from flux_hf.exported import MANIFEST, SECTION
from flux_hf.patch_grids import check_clip
from flux_hf.token_selection import TOKEN_SELECTORS, as_count


# What made a program, whose versions the manifest tells; NNCF only in int8.
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}


@dataclass
class ExportReport:
    """What was exported: budget -> what the manifest says of its program."""

    models: dict[int, dict[str, Any]]

    def lines(self) -> list[str]:
        """The report as printed."""
        lines = []
        for about in self.models.values():
            clip = f"{about['num_frames']}x{about['height']}x{about['width']}"
            compared = about["verification"]
            lines += [
                f"{about['file']}: {about['kept_tokens']} tokens of {clip}",
                f"  verified on {compared['clips']} clips: the same tokens kept, logits within "
                f"{compared['logits_difference']:.1e} where the largest is {compared['largest_logit']:.2g}",
            ]
        return lines


def check_selection(name: str) -> None:
    """Raises ValueError for a selector that no program of one size can be made of."""
    if not TOKEN_SELECTORS[name].needs_motion:
        raise ValueError(f"token_selection={name!r} draws anew at each call: nothing to export")
    if TOKEN_SELECTORS[name].by_threshold:
        raise ValueError(
            f"token_selection={name!r} keeps another number of each clip's tokens, a program as many of all"
        )


def export(
    checkpoint: str,
    output: str,
    export_format: str,
    token_budgets: Sequence[int],
    num_frames: int | None = None,
    size: int | None = None,
    int8: bool = False,
) -> ExportReport:
    """Writes a folder of programs with config, processor and manifest.

    Args:
        checkpoint: Folder or Hub id that `load_classifier` takes.
        output: A folder that does not exist or is empty.
        export_format: "onnx", "openvino" or "torch".
        token_budgets: One program each.
        num_frames, size: Of every budget's clips. Where neither is given a budget has the clip that the checkpoint's
            `token_plan` holds for it, or the config's default one.
        int8: Whether linear layers get weights of 8 bits; what selects tokens stays as it is.

    Raises:
        ValueError: something of these that cannot be, or a program that does not do what the model does.
        ImportError: an extra that is not installed.
    """
    check_format(export_format, int8)
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"OUT must be a folder that does not exist or is empty, got {output}")
    budgets = sorted({as_count("token_budget", budget) for budget in token_budgets}, reverse=True)
    if not budgets:
        raise ValueError("token_budgets must hold at least one budget, got none")
    model = load_classifier(checkpoint, dtype=torch.float32).eval()
    check_selection(model.config.token_selection)
    clips = {budget: clip_of(model.config, budget, num_frames, size) for budget in budgets}
    packages = ("torch", "transformers", *PACKAGES[export_format])
    packages += ("nncf",) if int8 and export_format == "openvino" else ()
    facts = {
        "version": __version__,
        "source": Path(checkpoint).name,
        "format": export_format,
        "dtype": "float32",
        "int8": int8,
        "packages": {name: version(name) for name in packages},
    }
    with replacing(target, durable=True) as staging:
        facts |= write_programs(staging, model, clips, export_format, int8)
        write_settings(staging, model.config, checkpoint, clips)
        models = {budget: about_program(model, budget, clip, staging) for budget, clip in clips.items()}
        write_section(staging, {**facts, "models": models})
        exported = load_exported(staging, trust_remote_code=True)
        for budget, about in models.items():
            about["verification"] = verify(model, exported, budget, exact=not int8)
        write_section(staging, {**facts, "models": models})
    return ExportReport(models)


def clip_of(
    config: PreTrainedConfig, token_budget: int, num_frames: int | None, size: int | None
) -> tuple[int, int, int, int]:
    """(frames, channels, height, width) of a budget's clips. Raises ValueError where they are not whole patches."""
    frames, (height, width) = config.num_frames, config.image_height_width
    if num_frames is None and size is None and token_budget in (config.token_plan or {}):
        num_frames, size = config.token_plan[token_budget]
    if num_frames is not None:
        frames = as_count("num_frames", num_frames)
    if size is not None:
        height = width = as_count("size", size)
    clip = (frames, config.num_channels, height, width)
    check_clip(torch.empty(1, *clip, device="meta"), config.num_channels, config.tubelet_size, config.patch_size)
    return clip


def write_programs(
    folder: Path, model: PreTrainedModel, clips: dict[int, tuple[int, int, int, int]], export_format: str, int8: bool
) -> dict[str, Any]:
    """Exports at each budget; writes programs and transformers' manifest. Returns what more there is to say of them."""
    folder.mkdir()
    components = {
        f"model_{budget}": export_at(model, budget, clip, export_format, int8) for budget, clip in clips.items()
    }
    ExportedModel(components, TRANSFORMERS_NAMES[export_format]).save_pretrained(folder)
    if export_format != "onnx":
        return {}
    return {"opset": max(component.program.opset_imports[""] for component in components.values())}


def write_settings(
    folder: Path, config: PreTrainedConfig, checkpoint: str, clips: dict[int, tuple[int, int, int, int]]
) -> None:
    """Config and processor of the checkpoint, which say of budgets and clips what was exported.

    The default budget is the checkpoint's, or if it was not exported the largest that was; its clip is the default one.
    """
    default = config.token_budget if config.token_budget in clips else max(clips)
    frames, _, height, width = clips[default]
    square = all(height == width for *_, height, width in clips.values())
    plan = {budget: [frames, height] for budget, (frames, _, height, _) in clips.items()} if square else None
    processor = load_processor(checkpoint, config)
    changes: dict[str, Any] = {"num_frames": frames, "token_plan": plan}
    if dict(processor.crop_size) != {"height": height, "width": width}:
        crop = {"height": height, "width": width}
        changes |= {"size": processor.with_margin(height) if height == width else crop, "crop_size": crop}
    processor = type(processor)(**{**processor.to_dict(), **changes})
    config = type(config)(**{**config.to_dict(), "token_budget": default, "token_plan": plan})
    for name, settings in ((CONFIG_NAME, config), (PROCESSOR_NAME, processor)):
        values = json.loads(settings.to_json_string())
        values.pop("auto_map", None)  # of source files, which no program needs
        write_json(folder / name, values)


def about_program(
    model: PreTrainedModel, token_budget: int, clip: tuple[int, int, int, int], folder: Path
) -> dict[str, Any]:
    """What the manifest says of a budget's program."""
    frames, _, height, width = clip
    component = f"model_{token_budget}"
    return {
        "component": component,
        "file": read_object(folder / MANIFEST)["components"][component]["file"],
        "num_frames": frames,
        "height": height,
        "width": width,
        "kept_tokens": model.count_kept(frames, height, width, token_budget),
    }


def write_section(folder: Path, section: dict[str, Any]) -> None:
    """Puts our section into transformers' manifest, in place of the one there."""
    write_json(folder / MANIFEST, {**read_object(folder / MANIFEST), SECTION: section})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", help="folder or Hub id of a FluxViT, Flux, VideoMAE, V-JEPA 2 or ViViT classifier"
    )
    parser.add_argument("output", metavar="OUT", help="a folder that does not exist or is empty")
    parser.add_argument("--format", required=True, choices=TRANSFORMERS_NAMES)
    parser.add_argument("--token_budget", type=int, nargs="+", required=True, help="a program for each")
    parser.add_argument("--num_frames", type=int, help="of a clip; by default the token plan's, or the config's")
    parser.add_argument("--size", type=int, help="side of the frames in pixels; by default likewise")
    parser.add_argument("--int8", action="store_true", help="8 bits for the weights of linear layers: onnx, openvino")
    options = parser.parse_args(arguments)
    settings = (options.format, options.token_budget, options.num_frames, options.size, options.int8)
    return run_command(lambda: export(options.checkpoint, options.output, *settings), options.output, "not exported")


if __name__ == "__main__":
    sys.exit(main())
