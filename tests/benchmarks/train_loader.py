# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Training clips a second, ours and a per-frame Pillow pipeline's: `python tests/benchmarks/train_loader.py DIR`.

Each video of DIR is decoded once (8 frames) and augmented twice (224 pixels, the `released` recipe: bicubic geometric
operations, bilinear crop), in one process on one core. The rival is built as training code usually is: decord's
`get_batch`, RandAugment on Pillow images of the whole frames, then float tensors. They take turns, all videos a
turn; what is printed are medians over the turns.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path


# isort: off
import torch
import decord  # after torch
# isort: on

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from flux_hf.video_processing_fluxvit import decode_video
from training.augment import AUGMENT_PRESETS, RAND_AUGMENT_OPS, ClipAugment, RandAugment


NUM_FRAMES, SIZE, NUM_SAMPLE, PRESET = 8, 224, 2, "released"
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm"}


def pick_frames(total_frames: int) -> np.ndarray:
    """(NUM_FRAMES,) one frame drawn from each of as many equal parts of the video."""
    ends = np.round((total_frames - 1) / NUM_FRAMES * np.arange(NUM_FRAMES + 1)).astype(int)
    return np.array([random.randint(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)])


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


def crop_box(height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop."""
    config = AUGMENT_PRESETS[PRESET]
    low, high = config.crop_ratio
    for _ in range(10):
        area = height * width * random.uniform(*config.crop_scale)
        ratio = math.exp(random.uniform(math.log(low), math.log(high)))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            return random.randint(0, height - rows), random.randint(0, width - columns), rows, columns
    ratio = min(max(width / height, low), high)
    rows, columns = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def erase(values: Tensor) -> None:
    """One box for all frames of (3, T, S, S), noise of its own in each frame."""
    config = AUGMENT_PRESETS[PRESET]
    for _ in range(100):
        area = SIZE * SIZE * random.uniform(*config.erasing_area)
        ratio = math.exp(random.uniform(*map(math.log, config.erasing_ratio)))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows < SIZE and columns < SIZE:
            top, left = random.randint(0, SIZE - rows), random.randint(0, SIZE - columns)
            for frame in values.unbind(1):
                frame[:, top : top + rows, left : left + columns] = torch.randn(3, rows, columns)
            return


def augment_with_pillow(frames: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 to (3, T, S, S) float32."""
    config = AUGMENT_PRESETS[PRESET]
    policy = RandAugment.parse(config.rand_augment)
    images = [to_pil_image(frame) for frame in frames]
    for name in random.choices(list(RAND_AUGMENT_OPS), k=policy.num_ops):
        if random.random() < policy.probability:
            level = min(10.0, max(0.0, random.gauss(policy.magnitude, policy.magnitude_std)))
            value = RAND_AUGMENT_OPS[name](level, random.choice((-1.0, 1.0)))
            images = [PILLOW_OPS[name](image, value) for image in images]
    values = torch.stack([pil_to_tensor(image).float().div_(255) for image in images], dim=1)
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (config.mean, config.std))
    values = (values - mean) / std
    top, left, rows, columns = crop_box(*values.shape[-2:])
    values = values[:, :, top : top + rows, left : left + columns]
    values = F.interpolate(values, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    if random.random() < config.hflip:
        values = values.flip(-1)
    if random.random() < config.erasing:
        erase(values)
    return values


def decode_with_decord(path: str) -> np.ndarray:
    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(pick_frames(len(reader))).asnumpy()


# ---------------------------------------------------------------------------------------------------------------------
# Ours, and the race
# ---------------------------------------------------------------------------------------------------------------------


def decode_ours(path: str, verify: bool) -> Tensor:
    frames, _ = decode_video(path, lambda about: pick_frames(about.total_num_frames), num_threads=1, verify=verify)
    return frames.permute(0, 3, 1, 2)


def ways() -> dict[str, tuple[Callable, Callable]]:
    """Name: (decode a path, augment what that gave)."""
    augment, generator = ClipAugment(AUGMENT_PRESETS[PRESET]), torch.Generator().manual_seed(0)

    def augment_ours(frames: Tensor) -> Tensor:
        return augment(frames, SIZE, generator)

    return {
        "Pillow, a frame at a time": (decode_with_decord, augment_with_pillow),
        "ours": (lambda path: decode_ours(path, verify=True), augment_ours),
        "ours, verify=False": (lambda path: decode_ours(path, verify=False), augment_ours),
    }


def run(paths: list[str], decode: Callable, augment: Callable, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of decoding and of augmenting, summed over the videos."""
    spent = [0.0, 0.0]
    for path in paths:
        times = [clock()]
        frames = decode(path)
        times.append(clock())
        torch.stack([augment(frames) for _ in range(NUM_SAMPLE)])
        times.append(clock())
        spent = [total + end - start for total, start, end in zip(spent, times[:-1], times[1:], strict=True)]
    return spent[0], spent[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--num_clips", type=int, default=40, help="videos, spread over the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that others use too"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # decord has a thread of its own: one core for all
    paths = sorted(str(path) for path in Path(options.folder).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    paths = paths[:: max(1, len(paths) // options.num_clips)][: options.num_clips]
    print(f"{len(paths)} videos of {options.folder}, {NUM_FRAMES} frames, {NUM_SAMPLE} copies of {SIZE} pixels, 1 core")
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rounds = [
        {name: run(paths, decode, augment, clock) for name, (decode, augment) in ways().items()}
        for _ in range(options.rounds + 1)
    ][1:]  # the first one warms up
    rival = statistics.median(sum(spent["Pillow, a frame at a time"]) for spent in rounds)
    for name in rounds[0]:
        total = statistics.median(sum(spent[name]) for spent in rounds)
        decode = statistics.median(spent[name][0] for spent in rounds)
        each = 1e3 / len(paths)
        print(
            f"{name:28s}{NUM_SAMPLE * len(paths) / total:7.1f} clips/s ({rival / total:.2f}x), a video {total * each:.1f}"
            f" ms: decoding {decode * each:.1f} ({decode / total:.0%}), {NUM_SAMPLE} copies {(total - decode) * each:.1f}"
        )


if __name__ == "__main__":
    main()
