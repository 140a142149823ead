# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the tensors of a checkpoint file or DeepSpeed folder, without running anything that is in it."""

import argparse
import json
import os
import pathlib
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


DEEPSPEED_STATES = "mp_rank_00_model_states.pt"
CONTAINERS = ("model", "module", "state_dict")
# Plain data that training scripts store beside the weights; unpickling them runs no code of the file.
HARMLESS_CLASSES = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    range,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)},
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # its name in numpy 1
]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """Name -> tensor (on the CPU) of a .pth, .pt, .bin or .safetensors file, or of a DeepSpeed checkpoint folder.

    Of a pickled file, the tensors under "model", else "module", else "state_dict", else at the top are taken.

    Raises:
        FileNotFoundError: nothing is there. ValueError: it is not a checkpoint, is damaged, or its pickle would need
            more than plain data to be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    files = _files_of_folder(path) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file))
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return tensors


def _files_of_folder(folder: Path) -> list[Path]:
    """The files that hold the weights: DeepSpeed's, or those of a (sharded) Hugging Face style folder."""
    tag = folder / "latest"
    if tag.is_file():
        # DeepSpeed writes the name of the newest subfolder into this file; only a plain name is followed.
        name = tag.read_text(encoding="utf-8").strip()
        if Path(name).name != name or not (folder / name).is_dir():
            raise ValueError(f"{tag} names {name!r}, which is not a folder beside it")
        folder = folder / name
    ranks = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if len(ranks) > 1:
        raise ValueError(f"{folder} is split over {len(ranks)} model-parallel ranks; merge it with DeepSpeed first")
    if ranks:
        return ranks
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index_name).is_file():
            names = set(json.loads((folder / index_name).read_text(encoding="utf-8"))["weight_map"].values())
            if any(Path(name).name != name for name in names):
                raise ValueError(f"{folder / index_name} names files outside its folder")
            return [folder / name for name in sorted(names)]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"{folder} holds neither {DEEPSPEED_STATES} nor model.safetensors nor pytorch_model.bin")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(HARMLESS_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        reason = f"it asks for {refused[1]}" if refused else str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain data: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return _tensors_of(content)


def _tensors_of(content: dict) -> dict[str, Tensor]:
    """The tensors in the first container that holds any, else at the top."""
    for name in CONTAINERS:
        if isinstance(content.get(name), dict):
            inside = _tensors_of(content[name])
            if inside:
                return inside
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
