# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the weights of a DINOv2 encoder out of an ONNX file into transformers' `Dinov2Model`.

    python -m conversion.dinov2_from_onnx model.onnx dinov2

For files exported from transformers' own model, alone or as part of another: such are found where no other checkpoint
is, and make a teacher for `training.pretrain`. An export keeps the names of vectors, but multiplies by transposed
matrices without names; the nodes that do so have them. What was written is run beside the file and compared.
"""

import argparse
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from flux_hf.checkpoint_files import replacing


CLASS_TOKEN = "embeddings.cls_token"
HEAD_DIM = 64  # of every published size
TOLERANCE = 1e-4  # of hidden states, over the largest value among them


def read_weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """The encoder's weights by the names that `Dinov2Model` gives them, whatever the file calls the part it is.

    Raises:
        ValueError: no such encoder.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    prefixes = [name.removesuffix(CLASS_TOKEN) for name in values if name.endswith(CLASS_TOKEN)]
    if len(prefixes) != 1:
        raise ValueError(f"the file must hold one DINOv2 encoder as transformers exports it, got {len(prefixes)}")
    parts = tuple(f"{prefixes[0]}{part}" for part in ("embeddings.", "encoder.", "layernorm."))
    named = (name for name in values if name.startswith(parts))
    weights = {name.removeprefix(prefixes[0]): array(values[name]) for name in named}
    for node in graph.node:
        part = re.fullmatch(r".*(encoder/layer\.\d+/.+)/MatMul", node.name)
        used = [name for name in node.input if name in values]
        if node.op_type == "MatMul" and part and used:
            weights[f"{part[1].replace('/', '.')}.weight"] = array(values[used[0]]).T.contiguous()
    weights["embeddings.position_embeddings"] = read_positions(values, weights["embeddings.cls_token"].shape[-1])
    weights["embeddings.mask_token"] = torch.zeros(1, weights["embeddings.cls_token"].shape[-1])  # of training alone
    return weights


def read_positions(values: dict[str, onnx.TensorProto], width: int) -> Tensor:
    """(1, 1 + N, D): an export holds those of the class token and of the patches apart."""
    shapes = {name: tuple(value.dims) for name, value in values.items() if "cls_token" not in name}
    of_class = [name for name, shape in shapes.items() if shape == (1, 1, width)]
    of_patches = [
        name for name, shape in shapes.items() if len(shape) == 3 and shape[::2] == (1, width) and shape[1] > 1
    ]
    if len(of_class) != 1 or len(of_patches) != 1:
        raise ValueError(f"the file must hold one table of positions of width {width}, got {of_class} and {of_patches}")
    return torch.cat([array(values[of_class[0]]), array(values[of_patches[0]])], dim=1)


def array(value: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(value))).float()


def config_of(weights: dict[str, Tensor]) -> Dinov2Config:
    """Sizes by the weights' shapes; heads of 64, as every published size has."""
    width, channels, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    layers = {int(match[1]) for name in weights if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    side = math.isqrt(weights["embeddings.position_embeddings"].shape[1] - 1)
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_DIM,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        image_size=side * patch,
        patch_size=patch,
        num_channels=channels,
    )


def load(path: Path) -> Dinov2Model:
    """The model of a file, by transformers' own loading of published checkpoints, which have these names.

    Raises:
        ValueError: weights are missing, misshapen, or not the model's.
    """
    weights = read_weights(onnx.load(path).graph)
    missing = sorted({"encoder.layer.0.mlp.fc1.weight", "embeddings.patch_embeddings.projection.weight"} - set(weights))
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    with tempfile.TemporaryDirectory() as folder:
        config_of(weights).save_pretrained(folder)
        save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        model, told = Dinov2Model.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    wrong = {kind: sorted(map(str, names))[:5] for kind, names in told.items() if names}
    if wrong:
        raise ValueError(f"{path} and a Dinov2Model of its size do not hold the same weights: {wrong}")
    return model.eval()


def onnx_states(path: Path, pixels: np.ndarray) -> list[np.ndarray]:
    """Outputs of all layers, and of the last norm, by ONNX Runtime."""
    model = onnx.load(path)
    layers, norm = {}, None
    for node in model.graph.node:
        if match := re.fullmatch(r".*/encoder/layer\.(\d+)/Add_1", node.name):
            layers[int(match[1])] = node.output[0]
        elif re.fullmatch(r"(?!.*encoder).*layernorm/(Add_1|LayerNormalization)", node.name):
            norm = node.output[0]
    wanted = [*(layers[index] for index in sorted(layers)), norm]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(wanted, {session.get_inputs()[0].name: pixels})


@torch.no_grad()
def compare(path: Path, model: Dinov2Model, side: int) -> float:
    """The largest difference of any layer's output on a random picture, over the largest value there."""
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    outputs = model(pixels, output_hidden_states=True)
    ours = [*outputs.hidden_states[1:], outputs.last_hidden_state]
    theirs = [torch.from_numpy(states) for states in onnx_states(path, pixels.numpy())]
    pairs = zip(ours, theirs, strict=True)
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def input_side(path: Path) -> int:
    """Of the pictures that the file takes; 224 where it takes any."""
    shape = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape
    return shape.dim[-1].dim_value or 224


def convert(path: Path, output_dir: Path) -> dict[str, Any]:
    """Writes model and processor into a folder. Returns what to tell.

    Raises:
        ValueError: another kind of file, or a model that does not say what the file says.
    """
    side = input_side(path)
    model = load(path)
    difference = compare(path, model, side)
    if not difference <= TOLERANCE:
        raise ValueError(f"the model's outputs differ from those of {path} by {difference:.1e}, allowed is {TOLERANCE}")
    with replacing(output_dir) as temporary:
        model.save_pretrained(temporary)
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        # As DINOv2 was trained; the class's own are CLIP's.
        values = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
        BitImageProcessor(**size, **values).save_pretrained(temporary)
    return {"parameters": sum(p.numel() for p in model.parameters()), "difference": difference}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "onnx_file", type=Path, help="a DINOv2 encoder exported from transformers, or a model around it"
    )
    parser.add_argument("output_dir", type=Path, help="a folder that does not exist or is empty")
    args = parser.parse_args(arguments)
    told = convert(args.onnx_file, args.output_dir)
    print(f"{told['parameters']:,} parameters; layers' outputs within {told['difference']:.0e} of ONNX Runtime's")
    print(f"saved to {args.output_dir}")


if __name__ == "__main__":
    main()
