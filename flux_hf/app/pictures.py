# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What the page draws: kept patches as a grid, as a video and budget by budget, and labels over time."""

import html
import os
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..checkpoint_files import replacing
from ..visualization import fade_dropped_tokens, tile_frames, visualize_kept_tokens
from .classify import Result


COLORS = ("#2563eb", "#f59e0b", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#475569", "#92400e")
STRIP_FRAMES, STRIP_SIDE = 8, 112  # frames of a row of the comparison, and their side in pixels
CAPTION_WIDTH, MARGIN = 270, 10


def kept_picture(result: Result) -> Image.Image:
    """The view's frames in reading order, dropped patches grey and faded."""
    return visualize_kept_tokens(result.frames, result.keep_indices, result.patch_size, result.tubelet_size)


def _kept_frames(result: Result) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return fade_dropped_tokens(result.frames, result.keep_indices, result.patch_size, result.tubelet_size)


def write_kept_video(path: str | os.PathLike, result: Result) -> None:
    """The same as a video (H.264 in yuv420p, which browsers play)."""
    write_video(path, _kept_frames(result), result.play_rate)


def write_video(path: str | os.PathLike, frames: np.ndarray, frame_rate: int) -> None:
    """Encodes (T, H, W, 3) uint8 RGB frames as an mp4 file; odd sides get a row or column of white."""
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, constant_values=255)
    # The macroblock tree of x264 reads what lies behind narrow pictures: without it the same frames are the same file.
    options = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frame_rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def comparison_rows(results: Sequence[Result]) -> list[list[str]]:
    """The cells of a table, a row a budget; `COMPARISON_COLUMNS` names them."""
    rows = []
    for result in results:
        choice, cost = result.choice, result.cost
        labels = ", ".join(f"{label} {score:.0%}" for label, score in list(result.labels.items())[:3])
        clip = f"{choice.num_frames}x{choice.size}"
        kept = f"{cost.kept_tokens:,} of {cost.tokens:,}"
        rows.append([str(choice.token_budget), clip, kept, f"{cost.gflops:.3g}", f"{result.milliseconds:.1f}", labels])
    return rows


COMPARISON_COLUMNS = ("budget", "frames x size", "tokens kept", "GFLOPs", "ms", "best labels")


def comparison_picture(results: Sequence[Result]) -> Image.Image:
    """A row a budget: what it keeps of up to 8 frames, what that costs, and the best label."""
    strips = []
    for result in results:
        frames = _kept_frames(result)
        frames = frames[np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)]
        small = [Image.fromarray(frame).resize((STRIP_SIDE, STRIP_SIDE), Image.Resampling.BOX) for frame in frames]
        strips.append(tile_frames(np.stack([np.asarray(picture) for picture in small]), len(small)))
    width = CAPTION_WIDTH + max(strip.width for strip in strips) + MARGIN
    canvas = Image.new("RGB", (width, MARGIN + len(strips) * (STRIP_SIDE + MARGIN)), "white")
    draw, large, small_font = ImageDraw.Draw(canvas), ImageFont.load_default(18), ImageFont.load_default(15)
    for row, (result, strip) in enumerate(zip(results, strips, strict=True)):
        top = MARGIN + row * (STRIP_SIDE + MARGIN)
        label, score = next(iter(result.labels.items()))
        cost = f"{result.cost.gflops:.3g} GFLOPs, {result.milliseconds:.1f} ms"
        tokens = f"{result.cost.kept_tokens:,} of {result.cost.tokens:,} tokens"
        draw.text((MARGIN, top + 12), tokens, "black", large)
        draw.text((MARGIN, top + 42), cost, "#555555", small_font)
        draw.text((MARGIN, top + 66), f"{_shortened(label, 22)} {score:.0%}", COLORS[0], large)
        canvas.paste(strip, (CAPTION_WIDTH, top))
    return canvas


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def timeline_rows(windows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """A row a window: start and end in seconds, best label, its score."""
    rows = []
    for each in windows:
        best = each["labels"][0]
        rows.append([round(each["start"], 2), round(each["end"], 2), best["label"], round(best["score"], 3)])
    return rows


TIMELINE_COLUMNS = ("start", "end", "label", "score")


def timeline_html(windows: Sequence[dict[str, Any]]) -> str:
    """Labels over time as an SVG picture: a bar a window in the colour of its best label, as high as its score.

    Where windows overlap, each bar ends where the next begins. Labels are escaped.
    """
    if not windows:
        return ""
    labels = list(dict.fromkeys(each["labels"][0]["label"] for each in windows))
    colors = {label: COLORS[index % len(COLORS)] for index, label in enumerate(labels)}
    end = max(each["end"] for each in windows)
    scale = 1000 / max(end, 1e-6)
    bars = []
    for index, each in enumerate(windows):
        label, score = each["labels"][0]["label"], each["labels"][0]["score"]
        until = windows[index + 1]["start"] if index + 1 < len(windows) else each["end"]
        width = max((min(until, each["end"]) - each["start"]) * scale, 1)
        title = html.escape(f"{each['start']:.2f} to {each['end']:.2f} s: {label} {score:.0%}")
        height = 100 * min(max(score, 0.02), 1.0)
        bars.append(
            f'<rect x="{each["start"] * scale:.1f}" y="{100 - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{colors[label]}"><title>{title}</title></rect>'
        )
    ticks = "".join(
        f'<text x="{x}" y="116" font-size="12" fill="currentColor" text-anchor="{anchor}">{x / scale:.1f} s</text>'
        for x, anchor in ((0, "start"), (500, "middle"), (1000, "end"))
    )
    legend = " ".join(
        f'<span><span style="color:{color}">&#9632;</span>&nbsp;{html.escape(label)}</span>'
        for label, color in colors.items()
    )
    return (
        f'<svg viewBox="0 0 1000 120" role="img" aria-label="labels over time" style="width:100%">{"".join(bars)}'
        f'<line x1="0" y1="100" x2="1000" y2="100" stroke="currentColor"/>{ticks}</svg><div>{legend}</div>'
    )
