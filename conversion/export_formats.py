# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A classifier at one token budget as a program of ONNX, OpenVINO or torch.export, by transformers' own exporters.

Their exporters find a form for the stable sort that selection rests on: ONNX's TopK, which puts the lower index first
among equals, and OpenVINO's, which is told to be stable. In int8 all that leads to the kept tokens stays in float32, so
that they stay the same.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.exporters import (
    DynamoConfig,
    DynamoExporter,
    ExportedComponent,
    NNCFOpenVINOQuantizer,
    NNCFWeightCompressionConfig,
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
    OpenVINOConfig,
    OpenVINOExporter,
)
from transformers.exporters.base import HfExporter

from flux_hf.exported import check_installed


# By the names of `--format`: transformers' exporters call torch.export after the compiler's front end.
TRANSFORMERS_NAMES = {"onnx": "onnx", "openvino": "openvino", "torch": "dynamo"}
INT8_FORMATS = ("onnx", "openvino")
LINEAR = ("MatMul", "Gemm")
INPUT, LOGITS, KEPT = "pixel_values_videos", "logits", "keep_indices"


class AtBudget(nn.Module):
    """What is exported: clips in, logits and kept tokens out, at one budget."""

    def __init__(self, model: PreTrainedModel, token_budget: int):
        super().__init__()
        self.model, self.token_budget = model, token_budget

    def forward(self, pixel_values_videos: Tensor) -> dict[str, Tensor]:
        """(B, T, 3, H, W) -> logits (B, num_labels), keep_indices (B, K)."""
        outputs = self.model(pixel_values_videos, token_budget=self.token_budget)
        return {LOGITS: outputs.logits, KEPT: outputs.keep_indices}


class SelectionSafeOnnxQuantizer(OnnxRuntimeQuantizer):
    """ONNX Runtime's dynamic int8 for the linear layers that the kept tokens do not come from."""

    def quantize(self, model: Any, sample_inputs: dict[str, Any], export_format: str) -> Any:
        output = next(value for value in model.graph.outputs if value.name == KEPT)
        before = {node.name for node in onnx_ancestors(output)}
        self.config = OnnxRuntimeDynamicConfig(
            op_types_to_quantize=list(LINEAR), per_channel=True, nodes_to_exclude=sorted(before)
        )
        return super().quantize(model, sample_inputs, export_format)


class SelectionSafeOpenVINOQuantizer(NNCFOpenVINOQuantizer):
    """NNCF's int8 weights for the linear layers that the kept tokens do not come from."""

    def quantize(self, model: Any, sample_inputs: dict[str, Any], export_format: str) -> Any:
        import nncf

        result = next(port for port in model.outputs if KEPT in port.get_names())
        before = {node.get_friendly_name() for node in openvino_ancestors(result.get_node())}
        linear = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
        # Gather: the position table, which is looked up and not multiplied by.
        kept = nncf.IgnoredScope(names=[name for name in linear if name in before], types=["Gather"], validate=False)
        self.config = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=kept)
        return super().quantize(model, sample_inputs, export_format)


def onnx_ancestors(value: Any) -> list[Any]:
    """All nodes of an `onnx_ir` graph that a value comes from."""
    found, waiting = {}, [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            waiting.extend(source.producer() for source in node.inputs if source is not None)
    return list(found.values())


def openvino_ancestors(node: Any) -> list[Any]:
    """All operations of an OpenVINO model that one comes from, by their inputs."""
    found, waiting = {}, [node]
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name not in found:
            found[name] = node
            waiting.extend(source.get_node() for source in node.input_values())
    return list(found.values())


def exporter_of(export_format: str, int8: bool) -> tuple[HfExporter, dict[str, Any], type[DynamoConfig]]:
    """transformers' exporter of a format, its options, and the class of its config."""
    if export_format == "onnx":
        return OnnxExporter(), {"quantizer": SelectionSafeOnnxQuantizer()} if int8 else {}, OnnxConfig
    if export_format == "openvino":
        options = {"quantizer": SelectionSafeOpenVINOQuantizer()} if int8 else {}
        return OpenVINOExporter(), {"stateful": False, **options}, OpenVINOConfig
    return DynamoExporter(), {}, DynamoConfig


def check_format(export_format: str, int8: bool) -> None:
    """Raises ValueError for a format that does not exist or has no int8, ImportError where something is missing."""
    if export_format not in TRANSFORMERS_NAMES:
        raise ValueError(f"format must be one of {list(TRANSFORMERS_NAMES)}, got {export_format!r}")
    if int8 and export_format not in INT8_FORMATS:
        raise ValueError(f"int8 is for {' and '.join(INT8_FORMATS)}, not for {export_format}")
    more = {"onnx": ("onnx", "onnxscript"), "openvino": ("nncf",) if int8 else (), "torch": ()}[export_format]
    check_installed(TRANSFORMERS_NAMES[export_format], *more)


def export_at(
    model: PreTrainedModel, token_budget: int, clip: tuple[int, int, int, int], export_format: str, int8: bool
) -> ExportedComponent:
    """A program for batches of any size.

    Args:
        model: A classifier, in float32, for evaluation.
        token_budget: Tokens it keeps.
        clip: (frames, channels, height, width) of its clips.
        export_format: As in `check_format`.
        int8: Whether to quantize linear layers.
    """
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    sample = {INPUT: torch.zeros(2, *clip)}  # of one clip, the batch would be taken for a constant
    with quiet():
        exporter, options, config_class = exporter_of(export_format, int8)
        config = config_class(dynamic_shapes=shapes, **options)
        exported = exporter.export(AtBudget(model, token_budget).eval(), sample, config)
    return exported.components["model"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what exporters say of every export: that they are experimental, and progress of no interest."""
    loggers = [logging.getLogger(name) for name in ("transformers", "torch.onnx", "nncf", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
