# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Training clips a second, ours and a per-frame Pillow pipeline's: `python tests/benchmarks/train_loader.py DIR`.

Each video of DIR is decoded once (8 frames) and augmented twice (224 pixels, the `released` recipe: bicubic geometric
operations, bilinear crop), in one process on one core. The rival is built as training code usually is: decord's
`get_batch`, RandAugment on Pillow images of the whole frames, then float tensors. Both pick the same frames and apply
the same draws. They take turns, all videos a turn; a video's time is its median over the turns.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from training.data import augment
from training.data.augment import ClipAugment
from training.data.augment_config import AUGMENT_PRESETS, AugmentConfig, RandAugment
from training.data.reader import VideoFile


NUM_FRAMES, SIZE, NUM_SAMPLE, CONFIG = 8, 224, 2, AUGMENT_PRESETS["released"]
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm"}


def pick_frames(total_frames: int, seed: int) -> np.ndarray:
    """(NUM_FRAMES,) one frame drawn from each of as many equal parts of the video."""
    ends = np.round((total_frames - 1) / NUM_FRAMES * np.arange(NUM_FRAMES + 1)).astype(int)
    return np.random.default_rng(seed).integers(ends[:-1], ends[1:], endpoint=True)


# ---------------------------------------------------------------------------------------------------------------------
# The rival: Pillow, frame by frame
# ---------------------------------------------------------------------------------------------------------------------


def transform(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.AFFINE, matrix, Image.BICUBIC, fillcolor=(128, 128, 128))


def table(function: Callable[[int], int]) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point([function(level) for level in range(256)] * 3)


PILLOW_OPS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, value: ImageOps.autocontrast(image),
    "Equalize": lambda image, value: ImageOps.equalize(image),
    "Invert": lambda image, value: ImageOps.invert(image),
    "Rotate": lambda image, value: image.rotate(value, Image.BICUBIC, fillcolor=(128, 128, 128)),
    # Pillow refuses to leave no bits
    "Posterize": lambda image, value: ImageOps.posterize(image, value) if value else table(lambda level: 0)(image),
    "Solarize": lambda image, value: ImageOps.solarize(image, value),
    "SolarizeAdd": lambda image, value: table(lambda v: min(255, v + int(value)) if v < 128 else v)(image),
    "Color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "Contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "Brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "Sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "ShearX": lambda image, value: transform(image, (1, value, 0, 0, 1, 0)),
    "ShearY": lambda image, value: transform(image, (1, 0, 0, value, 1, 0)),
    "TranslateX": lambda image, value: transform(image, (1, 0, value * image.width, 0, 1, 0)),
    "TranslateY": lambda image, value: transform(image, (1, 0, 0, 0, 1, value * image.height)),
}


def augment_with_pillow(frames: np.ndarray, seed: int, config: AugmentConfig = CONFIG) -> Tensor:
    """(T, H, W, 3) uint8 to (3, T, S, S) float32."""
    generator = torch.Generator().manual_seed(seed)
    rng = augment.numpy_generator(generator)  # as ours draws
    images = [to_pil_image(frame) for frame in frames]
    for op in augment.draw_ops(config, RandAugment.parse(config.rand_augment), rng):
        images = [PILLOW_OPS[op.name](image, op.value) for image in images]
    values = torch.stack([pil_to_tensor(image).float().div_(255) for image in images], dim=1)
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (config.mean, config.std))
    values = (values - mean) / std
    rows, columns = augment.draw_crop(config, tuple(values.shape[-2:]), rng).slices()
    values = F.interpolate(values[:, :, rows, columns], size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    if rng.random() < config.hflip:
        values = values.flip(-1)
    box = augment.draw_erasing(config, (SIZE, SIZE), rng)
    if box is not None:
        rows, columns = box.slices()
        for frame in values.unbind(1):
            frame[:, rows, columns] = torch.randn(3, box.height, box.width, generator=generator)
    return values


def decode_with_decord(path: str, seed: int) -> np.ndarray:
    import decord  # after torch

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(pick_frames(len(reader), seed)).asnumpy()


# ---------------------------------------------------------------------------------------------------------------------
# Ours, and the race
# ---------------------------------------------------------------------------------------------------------------------


def decode_ours(path: str, seed: int) -> Tensor:
    clip = VideoFile(path, None, path, num_threads=1)
    return clip.read(lambda total_frames: pick_frames(total_frames, seed))


OURS = ClipAugment(CONFIG)


def augment_ours(frames: Tensor, seed: int) -> Tensor:
    return OURS(frames, SIZE, torch.Generator().manual_seed(seed))


def crop_ours(frames: Tensor, seed: int) -> Tensor:
    return OURS.on_worker(frames, SIZE, torch.Generator().manual_seed(seed))["pixel_values_videos"]


RIVAL = "Pillow, a frame at a time"
WAYS: dict[str, tuple[Callable, Callable]] = {  # (decode, augment)
    RIVAL: (decode_with_decord, augment_with_pillow),
    "ours": (decode_ours, augment_ours),
    "ours, the rest on the device": (decode_ours, crop_ours),
}


def run(way: str, paths: list[str], clock: Callable[[], float]) -> np.ndarray:
    """(len(paths), 2) seconds of decoding and of augmenting."""
    decode, augment_copy = WAYS[way]
    spent = []
    for seed, path in enumerate(paths):
        start = clock()
        frames = decode(path, seed)
        decoded = clock()
        for copy in range(NUM_SAMPLE):
            augment_copy(frames, NUM_SAMPLE * seed + copy)
        spent.append((decoded - start, clock() - decoded))
    return np.array(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--num_clips", type=int, default=60, help="videos, spread over the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that others use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # decord has a thread of its own: one core for all
    paths = sorted(str(path) for path in Path(options.folder).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    paths = paths[:: max(1, len(paths) // options.num_clips)][: options.num_clips]
    print(f"{len(paths)} videos of {options.folder}, {NUM_FRAMES} frames, {NUM_SAMPLE} copies of {SIZE} pixels, 1 core")
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rounds = [{way: run(way, paths, clock) for way in WAYS} for _ in range(options.rounds + 1)][1:]  # first: warm-up
    means = {way: np.median([spent[way] for spent in rounds], axis=0).mean(axis=0) * 1e3 for way in WAYS}
    for way, (decode, copies) in means.items():
        total = decode + copies
        ratio = means[RIVAL].sum() / total
        print(
            f"{way:30s}{1e3 * NUM_SAMPLE / total:7.1f} clips/s ({ratio:.2f}x); a video {total:.1f} ms: decoding "
            f"{decode:.1f} ({decode / total:.0%}), {NUM_SAMPLE} copies {copies:.1f}"
        )


if __name__ == "__main__":
    main()
