# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels over time as a picture: a strip a video, a colour a label."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flux_hf.checkpoint_files import plain_text, replacing

from .units import read_rows


MAX_STRIPS = 40
# Labels with a colour of their own, the most frequent first; the others are grey.
COLOURS = matplotlib.colormaps["tab20"].colors
OTHER = "lightgrey"

Spans = list[tuple[float, float, str]]


def read_spans(path: Path) -> dict[str, Spans]:
    """The best label over time of each video of a csv of `training.predict --window`.

    A window's label holds from its middle less half the way to the middle before it, to half the way to the next one;
    the first from the video's first window's start, the last to the last's end.

    Returns:
        For each video (start, end, label), in seconds, without gaps or overlaps; none of one without a window.
    """
    windows: dict[str, Spans] = {}
    for name, start, end, rank, label, *_ in read_rows(path):
        of_video = windows.setdefault(name, [])
        if rank == "1":
            of_video.append((float(start), float(end), label))
    return {name: _without_overlaps(of_video) for name, of_video in windows.items()}


def _without_overlaps(windows: Spans) -> Spans:
    if not windows:
        return []
    middles = [(start + end) / 2 for start, end, _ in windows]
    edges = [windows[0][0], *(sum(pair) / 2 for pair in pairwise(middles)), windows[-1][1]]
    return [(*edge, label) for edge, (*_, label) in zip(pairwise(edges), windows, strict=True)]


def draw_timeline(rows: Path, picture: Path) -> None:
    """Draws the strips of the first `MAX_STRIPS` videos of a csv of `training.predict --window` as a png."""
    spans = read_spans(rows)
    shown = dict(list(spans.items())[:MAX_STRIPS])
    seconds: Counter[str] = Counter()
    for of_video in shown.values():
        for start, end, label in of_video:
            seconds[label] += end - start
    colours = dict(zip((label for label, _ in seconds.most_common()), COLOURS, strict=False))
    figure = Figure(figsize=(12, 1.2 + 0.4 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, of_video in enumerate(shown.values()):
        bars = [(start, end - start) for start, end, _ in of_video]
        axes.broken_barh(bars, (place - 0.4, 0.8), color=[colours.get(label, OTHER) for *_, label in of_video])
    axes.set_yticks(range(len(shown)), [plain_text(Path(name).name) for name in shown])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    if len(spans) > len(shown):
        axes.set_title(f"the first {len(shown)} of {len(spans)} videos")
    keys = [Patch(color=colour, label=label) for label, colour in colours.items()]
    keys += [Patch(color=OTHER, label="others")] if len(seconds) > len(colours) else []
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=5, fontsize="small")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
