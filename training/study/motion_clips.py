# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labelled motion clips as real mp4 files: the class is how an object moves and, if wanted, what it bears.

One textured object moves over a textured, noisy background among still objects drawn from the same distribution, so
clutter says nothing about the class, nor does appearance unless patterns are classes. The frame is a torus (what
leaves on one side comes back on the other) and the start is uniform, so in any one frame the position is uniform
whatever the class: a single frame is at chance by construction.

    python -m training.study.motion_clips clips --train 600 --val 120 --seed 0

writes clips/train/*.mp4, clips/val/*.mp4, clips/train.csv and clips/val.csv (columns path,label).
"""

import argparse
import itertools
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from flux_hf.checkpoint_files import replacing, write_csv


# Direction of travel (x to the right, y down) of straight motions; sense of rotation, as seen, of circular ones.
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
ROTATIONS = {"clockwise": 1.0, "anticlockwise": -1.0}
MOTIONS = (*DIRECTIONS, *ROTATIONS)
# Patterns that may tell an object's class: one colour; stripes, rings of it and a darker one.
PATTERNS = ("plain", "striped", "ringed")
PATTERN_CYCLES = 8.0  # a side of the frame
DARKER = 0.35


@dataclass(frozen=True)
class MotionClipConfig:
    """What the clips look like. Lengths are fractions of the frame's side, pairs are the ends of a uniform draw.

    Args:
        size: Side of the square frames, in pixels; even, as yuv420p needs.
        num_frames: Frames of a clip.
        frame_rate: Frames a second.
        motions: The classes, from `MOTIONS`. The circular ones are much harder to tell apart than the straight ones.
        path_length: How far the object travels in the whole clip.
        patterns: Where given, each motion is a class with each of these `PATTERNS` on the moving object, written
            "left_striped". The still objects have them too, drawn at random: the pattern of what moves counts.
        orbit_radius: Radius of the circular motions.
        object_radius: Radius of the moving and the still objects.
        num_still_objects: Clutter, drawn like the moving object.
        object_brightness: Range of each channel of an object's two colours, of 255.
        background_brightness: Range of the background's mean level, of 255.
        background_contrast: Standard deviation of the background's texture, of 255.
        noise: Standard deviation of the sensor noise, new in every frame, of 255.
    """

    size: int = 96
    num_frames: int = 16
    frame_rate: int = 8
    motions: tuple[str, ...] = tuple(DIRECTIONS)
    path_length: tuple[float, float] = (0.8, 1.2)
    patterns: tuple[str, ...] = ()
    orbit_radius: tuple[float, float] = (0.18, 0.26)
    object_radius: tuple[float, float] = (0.10, 0.15)
    num_still_objects: int = 2
    object_brightness: tuple[float, float] = (130.0, 255.0)
    background_brightness: tuple[float, float] = (40.0, 90.0)
    background_contrast: float = 20.0
    noise: float = 5.0

    def __post_init__(self):
        unknown = [motion for motion in self.motions if motion not in MOTIONS]
        if unknown or not self.motions:
            raise ValueError(f"motions must be some of {list(MOTIONS)}, got {list(self.motions)}")
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size must be even and at least 16 pixels, got {self.size}")
        if self.num_frames < 2:
            raise ValueError(f"num_frames must be at least 2, got {self.num_frames}")
        if self.num_still_objects < 0:
            raise ValueError(f"num_still_objects must not be negative, got {self.num_still_objects}")
        if len(set(self.patterns)) < len(self.patterns) or not set(self.patterns) <= set(PATTERNS):
            raise ValueError(f"patterns must be some of {list(PATTERNS)}, each once, got {list(self.patterns)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes: the motions, each with every pattern."""
        return tuple(
            "_".join(words) for words in itertools.product(self.motions, *[self.patterns] * bool(self.patterns))
        )

    def split_label(self, label: str) -> tuple[str, str | None]:
        """Motion and pattern (None without one) of a class.

        Raises:
            ValueError: it is none of `labels`, nor a bare motion.
        """
        if label not in self.labels and label not in MOTIONS:
            raise ValueError(f"motion must be one of {list(MOTIONS)}, or a class of {list(self.labels)}, got {label!r}")
        motion, _, pattern = label.partition("_")
        return motion, pattern or None


@dataclass(frozen=True)
class _Appearance:
    """A regular polygon (many sides: a disc) in two colours, mixed by stripes or by rings."""

    radius: float
    num_sides: int
    angle: float
    colors: np.ndarray  # (2, 3), 0 to 255
    stripes: np.ndarray  # (2,) cycles a side, along x and y
    phase: float
    rings: float = 0.0  # cycles a side, from the centre outwards


def _draw_appearance(config: MotionClipConfig, rng: np.random.Generator, pattern: str | None = None) -> _Appearance:
    """An object; of a given pattern, or of any where the pattern is to tell the class."""
    appearance = _Appearance(
        radius=rng.uniform(*config.object_radius),
        num_sides=int(rng.choice([3, 4, 5, 6, 64])),
        angle=rng.uniform(0, 2 * np.pi),
        colors=rng.uniform(*config.object_brightness, (2, 3)).astype(np.float32),
        stripes=rng.uniform(-6, 6, 2),
        phase=rng.uniform(0, 2 * np.pi),
    )
    if not config.patterns:
        return appearance
    pattern = pattern or str(rng.choice(config.patterns))
    colors = appearance.colors[0] * np.array([[1.0], [1.0 if pattern == "plain" else DARKER]], np.float32)
    direction = rng.uniform(0, 2 * np.pi)
    stripes = PATTERN_CYCLES * (pattern == "striped") * np.array([np.cos(direction), np.sin(direction)])
    return replace(appearance, colors=colors, stripes=stripes, rings=PATTERN_CYCLES * (pattern == "ringed"))


def _paint(image: np.ndarray, appearance: _Appearance, center: np.ndarray) -> None:
    """Draws an object at `center` (x, y) in [0, 1) on the torus, into `image` (H, W, 3) of floats."""
    size = image.shape[0]
    # Only the pixels under the object, wrapped around the edges.
    reach = np.arange(-int(appearance.radius * size) - 2, int(appearance.radius * size) + 3)
    columns, rows = (np.floor(coordinate * size).astype(int) + reach for coordinate in center)
    dx = ((columns + 0.5) / size - center[0])[None, :]
    dy = ((rows + 0.5) / size - center[1])[:, None]
    wedge = 2 * np.pi / appearance.num_sides
    turned = (np.arctan2(dy, dx) + appearance.angle) % wedge - wedge / 2
    # Distance to the nearest side; one pixel of soft edge lets the object move by fractions of a pixel.
    inside = appearance.radius * np.cos(wedge / 2) - np.hypot(dx, dy) * np.cos(turned)
    mask = np.clip(inside * size + 0.5, 0, 1)[..., None]
    cycles = dx * appearance.stripes[0] + dy * appearance.stripes[1] + np.hypot(dx, dy) * appearance.rings
    wave = np.sin(2 * np.pi * cycles + appearance.phase)
    share = 0.5 + 0.5 * wave[..., None]
    texture = share * appearance.colors[0] + (1 - share) * appearance.colors[1]
    window = np.ix_(rows % size, columns % size)
    image[window] = image[window] * (1 - mask) + texture * mask


def _background(config: MotionClipConfig, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float32: noise of several scales around a random level, tinted a little."""
    texture = np.zeros((config.size, config.size), np.float32)
    for cells in (4, 8, 16, 32):
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        texture += np.asarray(coarse.resize((config.size, config.size), Image.Resampling.BICUBIC)) / cells**0.5
    texture *= config.background_contrast / texture.std()
    level = rng.uniform(*config.background_brightness) + rng.uniform(-12, 12, 3)
    return texture[..., None] + level.astype(np.float32)


def _trajectory(config: MotionClipConfig, label: str, rng: np.random.Generator) -> np.ndarray:
    """(num_frames, 2) centres (x, y) on the torus; every frame's centre is uniform whatever the class."""
    motion, _ = config.split_label(label)
    start = rng.uniform(0, 1, 2)
    length, radius, phase = rng.uniform(*config.path_length), rng.uniform(*config.orbit_radius), rng.uniform(0, 1)
    travelled = length * np.arange(config.num_frames) / (config.num_frames - 1)
    if motion in DIRECTIONS:
        return (start + travelled[:, None] * np.array(DIRECTIONS[motion])) % 1
    angle = 2 * np.pi * phase + ROTATIONS[motion] * travelled / radius
    return (start + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)) % 1


def render_motion_clip(config: MotionClipConfig, label: str, rng: np.random.Generator) -> np.ndarray:
    """Draws one clip of the class `label`.

    Returns:
        (num_frames, size, size, 3) uint8 RGB frames.

    Raises:
        ValueError: `label` is not one of `MOTIONS`, nor one of `config.labels`.
    """
    pattern = config.split_label(label)[1]
    scene = _background(config, rng)
    for _ in range(config.num_still_objects):
        _paint(scene, _draw_appearance(config, rng), rng.uniform(0, 1, 2))
    appearance = _draw_appearance(config, rng, pattern)
    frames = np.repeat(scene[None], config.num_frames, axis=0)
    for frame, center in zip(frames, _trajectory(config, label, rng), strict=True):
        _paint(frame, appearance, center)
    frames += config.noise * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def write_video(path: str | os.PathLike, frames: np.ndarray, frame_rate: int) -> None:
    """Encodes (T, H, W, 3) uint8 RGB frames as an mp4 file of h264 in yuv420p."""
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # The bytes must not depend on the number of cores, hence one thread; nor on what lies in memory behind a narrow
        # picture, which x264's macroblock tree reads in one such file of ten.
        options = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=frame_rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_motion_clips(
    directory: str | os.PathLike,
    num_clips: int,
    seed: int,
    split: str,
    config: MotionClipConfig | None = None,
) -> list[tuple[str, str]]:
    """Writes `directory/split/*.mp4` and `directory/split.csv` (columns path,label; paths relative to the csv).

    Clip i of a split is a function of (seed, split, i) and the config alone: a longer split begins with the shorter
    one. Classes take turns, so they are as balanced as `num_clips` allows.

    Returns:
        `(path, label)` of each clip; the paths begin with `directory`.

    Raises:
        ValueError: `num_clips` below 1, a negative seed, or a split that is no plain name.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not split.isidentifier():
        raise ValueError(f"split must be a plain name such as 'train', got {split!r}")
    config = config or MotionClipConfig()
    directory = Path(directory)
    rows = []
    for index in range(num_clips):
        label = config.labels[index % len(config.labels)]
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
        name = f"{split}/{index:05d}.mp4"
        write_video(directory / name, render_motion_clip(config, label, rng), config.frame_rate)
        rows.append((name, label))
    write_csv(directory / f"{split}.csv", ("path", "label"), rows)
    return [(str(directory / name), label) for name, label in rows]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir")
    parser.add_argument("--train", type=int, default=600, help="clips of the training split")
    parser.add_argument("--val", type=int, default=120, help="clips of the validation split")
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, default=list(DIRECTIONS), help="the classes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    for split, num_clips in (("train", args.train), ("val", args.val)):
        config = MotionClipConfig(motions=tuple(args.motions))
        write_motion_clips(args.output_dir, num_clips, args.seed, split, config)
        print(f"{num_clips} clips: {Path(args.output_dir) / split}.csv")


if __name__ == "__main__":
    main()
