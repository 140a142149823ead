# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Three short clips made on the spot, for whoever has none at hand: one thing moves, the others stand still."""

import os

import numpy as np
from PIL import Image

from .pictures import write_video


SIDE, NUM_FRAMES, FRAME_RATE = 160, 24, 12
MOVES = ("moves right", "falls", "goes round")
STILL_THINGS = 2


def example_frames(move: str, rng: np.random.Generator) -> np.ndarray:
    """A bright striped disc that moves over a dim cloudy ground, out on one side and in on the other.

    Args:
        move: One of `MOVES`.

    Returns:
        (24, 160, 160, 3) uint8 RGB.

    Raises:
        ValueError: another move.
    """
    if move not in MOVES:
        raise ValueError(f"move must be one of {list(MOVES)}, got {move!r}")
    scene = _ground(rng)
    for _ in range(STILL_THINGS):
        scene = _with_disc(scene, rng.uniform(0, 1, 2), _looks(rng))
    passed = np.linspace(0, 1, NUM_FRAMES)
    start, looks = rng.uniform(0, 1, 2), _looks(rng)
    if move == "goes round":
        angle = 2 * np.pi * (passed + rng.uniform())
        path = start + 0.22 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        path = start + passed[:, None] * np.array([1.0, 0.0] if move == "moves right" else [0.0, 1.0])
    frames = np.stack([_with_disc(scene, place % 1, looks) for place in path])
    return np.clip(frames + rng.normal(0, 4, frames.shape), 0, 255).round().astype(np.uint8)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) of dim clouds."""
    clouds = np.zeros((SIDE, SIDE))
    for cells in (4, 8, 16):
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        clouds += np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / cells**0.5
    return 20 * (clouds / clouds.std())[..., None] + rng.uniform(45, 80) + rng.uniform(-10, 10, 3)


def _looks(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Radius (share of the side), two colours, and the stripes' direction and number."""
    turn = rng.uniform(0, 2 * np.pi)
    return {
        "radius": rng.uniform(0.11, 0.15),
        "colors": rng.uniform(130, 255, (2, 3)),
        "stripes": rng.uniform(3, 6) * np.array([np.cos(turn), np.sin(turn)]),
    }


def _with_disc(image: np.ndarray, center: np.ndarray, looks: dict[str, np.ndarray]) -> np.ndarray:
    """A copy of (SIDE, SIDE, 3) with a disc at (x, y) in [0, 1); what leaves on one side comes back on the other."""
    axis = (np.arange(SIDE) + 0.5) / SIDE
    dx, dy = ((axis - place + 0.5) % 1 - 0.5 for place in center)
    inside = np.clip((looks["radius"] - np.hypot(dx[None], dy[:, None])) * SIDE + 0.5, 0, 1)[..., None]
    wave = np.sin(2 * np.pi * (dx[None] * looks["stripes"][0] + dy[:, None] * looks["stripes"][1]))[..., None]
    share = 0.5 + 0.5 * wave
    return image * (1 - inside) + inside * (share * looks["colors"][0] + (1 - share) * looks["colors"][1])


def write_example(path: str | os.PathLike, move: str, seed: int | None = None) -> None:
    """Writes a clip as an mp4 file; another one each time where no `seed` is given."""
    write_video(path, example_frames(move, np.random.default_rng(seed)), FRAME_RATE)
