"""A tiny checkpoint, real clips, what the model says of a clip by another way than `training.inference`; processes."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import tiny_config
from video_files import encode

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor


FRAME_COUNTS = (20, 31, 9, 3, 25, 14)  # of the clips; one is shorter than any view


def tiny_model(**changes) -> FluxViTForVideoClassification:
    """Random weights, but large enough that clips and points differ. 28 pixels: 2x2 patches."""
    torch.manual_seed(0)
    labels = {index: f"class {index}" for index in range(6)}
    fields = {"id2label": labels, "layer_scale_init_value": 1.0, "initializer_range": 0.5}
    config = tiny_config(**{**fields, **changes})
    return FluxViTForVideoClassification(config).eval()


def tiny_processor(**changes) -> FluxViTVideoProcessor:
    return FluxViTVideoProcessor(**{"num_frames": 4, "size": 28, **changes})


def save_checkpoint(folder: Path, **changes) -> Path:
    """The tiny model, changed so, and its processor."""
    tiny_model(**changes).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def write_clips(folder: Path) -> list[Path]:
    """Videos wider than high, two of them of one stem in two folders, with dots in their names."""
    names = ("a/clip.1.mp4", "b/clip.1.mp4", "a/second.mp4", "short.mp4", "fifth.mp4", "last.mp4")
    for index, (name, frames) in enumerate(zip(names, FRAME_COUNTS, strict=True)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode("libx264", frames, size=(64, 48), first=index * 150))
    return [folder / name for name in names]


def write_videos_and_model(folder: Path, frame_counts: list[int]) -> None:
    """`clips/00.mp4` and so on, of so many frames each, and `model`."""
    (folder / "clips").mkdir()
    for clip, frames in enumerate(frame_counts):
        (folder / "clips" / f"{clip:02}.mp4").write_bytes(encode("libx264", frames, first=clip * 64))
    save_checkpoint(folder / "model")


def lines_drawn(path: Path) -> list[bool]:
    """Whether a diagram has a first, second and third line, by matplotlib's colours."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return [bool((pixels == colour).all(1).sum() > 100) for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44))]


@torch.no_grad()
def direct_scores(model, processor, path: Path, point, multi_label: bool = False, **views) -> torch.Tensor:
    """(num_labels,): the processor reads the file itself, and the model gets all views at once."""
    inputs = processor(str(path), num_frames=point.num_frames, size=point.size, return_tensors="pt", **views)
    logits = model(**inputs, token_budget=point.token_budget).logits.float()
    return (logits.sigmoid() if multi_label else logits.softmax(-1)).mean(0)


def run_on_processes(processes: int, main: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Runs a command on several CPU processes, connected as `torchrun` would."""
    # A fork server imports once for all of them, and has no threads that a fork would lose.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([main.__module__])
    with socket.create_server(("localhost", 0)) as probe:
        port = str(probe.getsockname()[1])
    ranks = [
        context.Process(target=_run_rank, args=(rank, processes, port, main, arguments)) for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
        rank.kill()  # where it still runs
        rank.join()
    codes = [rank.exitcode for rank in ranks]
    if any(codes):
        raise RuntimeError(f"the processes ended with {codes}")


def _run_rank(rank: int, processes: int, port: str, main: Callable, arguments: list[str]) -> None:
    os.environ.update(
        ACCELERATE_USE_CPU="true",
        MASTER_ADDR="localhost",
        MASTER_PORT=port,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
    )
    torch.set_num_threads(1)
    main(arguments)
