# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the tensors of a checkpoint file or DeepSpeed folder, without running anything that is in it."""

import argparse
import os
import pathlib
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conversion.report import read_json, read_text


DEEPSPEED_STATES = "mp_rank_00_model_states.pt"
CONTAINERS = ("model", "module", "state_dict")
MAX_SHARING = 4  # how many times a file's size its tensors may have in all
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
        FileNotFoundError: nothing is there. ValueError: it is not a checkpoint, is damaged, claims more than it holds,
            or its pickle would need more than plain data to be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not path.is_dir():
        return _read_files([path], path)
    folder = _tagged_folder(path)
    files = _deepspeed_files(folder) or model_files(folder)
    if not files:
        raise ValueError(f"{folder} holds neither {DEEPSPEED_STATES} nor model.safetensors nor pytorch_model.bin")
    return _read_files(files, path)


def read_model_folder(folder: Path) -> dict[str, Tensor]:
    """The weights that `save_pretrained` wrote into a folder, whatever else a training left there.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    files = model_files(folder)
    if not files:
        raise ValueError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    return _read_files(files, folder)


def _read_files(files: list[Path], source: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        read = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
        _check_tensors(read, file)
        tensors.update(read)
    if not tensors:
        raise ValueError(f"{source} holds no tensors")
    return tensors


def _tagged_folder(folder: Path) -> Path:
    """The subfolder whose name DeepSpeed wrote into `latest`, or the folder itself where there is no such file."""
    tag = folder / "latest"
    if not tag.is_file():
        return folder
    name = read_text(tag).strip()
    if not _is_plain_name(name) or not (folder / name).is_dir():
        raise ValueError(f"{tag} names {name[:100]!r}, which is not a folder beside it")
    return folder / name


def _deepspeed_files(folder: Path) -> list[Path]:
    """The file that holds the weights in a DeepSpeed checkpoint folder; none where it is not one."""
    ranks = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if len(ranks) > 1:
        raise ValueError(f"{folder} is split over {len(ranks)} model-parallel ranks; merge it with DeepSpeed first")
    return ranks


def model_files(folder: Path) -> list[Path]:
    """The file or shards that hold the weights in a folder of `save_pretrained`; none where it is not one.

    Raises:
        ValueError: an index that is damaged, or names shards that are not there, or elsewhere.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):  # in the order in which transformers looks
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return [folder / shard for shard in sorted(_shard_names(folder / f"{name}.index.json"))]
    return []


def _shard_names(index: Path) -> set[str]:
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} has no weight_map of tensor names to file names")
    outside = sorted(name for name in shards.values() if not _is_plain_name(name))
    if outside:
        raise ValueError(f"{index} names files outside its folder: {outside[0][:100]!r}")
    missing = sorted(name for name in shards.values() if not (index.parent / name).is_file())
    if missing:
        raise ValueError(f"{index} names {missing[0][:100]!r}, which is not there")
    return set(shards.values())


def _is_plain_name(name: str) -> bool:
    """Whether a name found in a file means something in the folder of that file, and nothing elsewhere."""
    return 0 < len(name) < 256 and name not in (".", "..") and not set(name) & set("/\\\0")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(HARMLESS_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over in a damaged file
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain data: {_why(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return _tensors_of(content)


def _why(error: Exception) -> str:
    """The cause in torch's message, without its advice to read the file carelessly."""
    text = str(error)
    if refused := re.search(r"GLOBAL (\S+) ", text):
        return f"it asks for {refused[1]}"
    cause = re.search(r"WeightsUnpickler error: (.*)", text)
    return cause[1] if cause else text.split("\n")[0]


def _check_archive(path: Path) -> None:
    """Raises ValueError for an archive that would unpack to more than its size: torch does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch's older format; or damaged, as reading it will tell
    if unpacked > path.stat().st_size:
        raise ValueError(f"{path} is compressed: it would unpack to {unpacked} bytes")


def _check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError where tensors are not plain arrays, or claim more than the file can hold.

    A few stored numbers can pose as any number of elements by strides of zero, and one storage as many tensors: copying
    these would take memory without end. Some sharing is usual.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is not a plain array: {tensor.layout} on {tensor.device}")
        if tensor.numel() == 0:
            raise ValueError(f"{path}: {name} is empty, of shape {tuple(tensor.shape)}")
    claimed, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if claimed > MAX_SHARING * size:
        raise ValueError(f"{path} has {size} bytes, but its tensors claim {claimed}")


def _tensors_of(content: dict) -> dict[str, Tensor]:
    """The tensors in the first container that holds any, else at the top."""
    for name in CONTAINERS:
        if isinstance(content.get(name), dict):
            inside = _tensors_of(content[name])
            if inside:
                return inside
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
