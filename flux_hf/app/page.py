# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The page: where what stands, and which function answers."""

import os
from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from .choices import CROPS, MAX_CLIPS, default_choice, describe_cost, suggested_budgets
from .examples import MOVES
from .handlers import Handlers, explained
from .pictures import COMPARISON_COLUMNS, TIMELINE_COLUMNS


TITLE = "One video model for every compute budget"
ABOUT = (
    "The model looks at all patches of a clip, keeps the `token budget` most informative ones, and encodes only those. "
    "Choose a clip, move the budget, and see what is kept and what it costs."
)
MODEL_QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}  # clips are classified one after another
QUIET = {"queue": False, "show_progress": "hidden"}
# Gradio's trimming loads a decoder from another host, and its sharing sends to one.
CSS = "#clip button[aria-label*='rim'] {display: none} #clip video {height: 280px; max-height: 280px}"
# Browsers would record all the camera has, and drop frames where they cannot keep up.
CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
PICTURE = {"format": "png", "interactive": False, "show_label": False, "buttons": ["download", "fullscreen"]}


class _WritesNothing(type(gr.Video)):
    """Gradio's own metaclass writes a .pyi file beside the module of each component."""

    def __new__(cls, name: str, bases: tuple, attributes: dict):
        return ABCMeta.__new__(cls, name, bases, attributes)


class PlainVideo(gr.Video, metaclass=_WritesNothing):
    """A video as it is: Gradio's own would convert what browsers cannot play, and the model would see other frames.

    Nor does it fetch addresses given in place of a file; `links.fetch` does that, with care.
    """

    is_template = True  # the look of gr.Video

    def preprocess(self, payload: FileData | None) -> str | None:
        return None if payload is None else payload.path

    def postprocess(self, value: str | None) -> FileData | None:
        return None if value is None else FileData(path=str(value), orig_name=os.path.basename(value))

    def move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        _refuse_address(url_or_file_path)
        return super().move_resource_to_block_cache(url_or_file_path)

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        _refuse_address(url_or_file_path)
        return await super().async_move_resource_to_block_cache(url_or_file_path)


def _refuse_address(path: Any) -> None:
    with explained():
        if path is not None and "://" in str(path):
            raise ValueError("a clip must be uploaded: addresses are not taken in place of a file")


def build_page(handlers: Handlers, delete_cache: tuple[int, int]) -> gr.Blocks:
    """The page of a model.

    Args:
        handlers: Its functions.
        delete_cache: Seconds between looks for files left over, and their age when they are deleted.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=delete_cache) as page:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        with gr.Row():
            with gr.Column(scale=2):
                clip = _clip_part(handlers)
                choices = _choices_part(handlers)
            with gr.Column(scale=3):
                with gr.Tab("Labels and kept patches"):
                    _labels_part(handlers, clip, choices)
                with gr.Tab("Budgets side by side"):
                    _comparison_part(handlers, clip, choices)
                with gr.Tab("Labels over time"):
                    _timeline_part(handlers, clip, choices)
        page.unload(handlers.end_session)
    return page


def _clip_part(handlers: Handlers) -> gr.Video:
    clip = PlainVideo(
        label="Clip",
        sources=["upload", "webcam"],
        include_audio=True,  # without, Gradio would write the file anew
        buttons=[],
        webcam_options=gr.WebcamOptions(mirror=False, constraints=CAMERA),
        elem_id="clip",
    )
    facts = gr.Markdown(elem_id="facts")
    with gr.Row():
        for number, move in enumerate(MOVES):
            button = gr.Button(move, size="sm", min_width=90, elem_id=f"example-{number}")
            button.click(handlers.make_example(move), None, clip, api_name=f"example_{number}")
    if handlers.links != "none":
        with gr.Row():
            link = gr.Textbox(placeholder="https://... a video file", show_label=False, scale=4, elem_id="link")
            fetched = gr.Button("Fetch", scale=1, size="sm", elem_id="fetch")
        gr.on([fetched.click, link.submit], handlers.fetch_link, link, clip, api_name="fetch")
    clip.change(handlers.take_clip, clip, [clip, facts], api_name="take", show_progress="hidden")
    return clip


def _choices_part(handlers: Handlers) -> list[gr.components.Component]:
    """Budget, frames, size, clips and crops, in the order of `Handlers._choice`, and what they cost."""
    model, limits, default = handlers.classify.model, handlers.limits, default_choice(handlers.classify)
    config = model.config
    most_frames = limits.num_frames // config.tubelet_size * config.tubelet_size
    most_size = limits.size // config.patch_size * config.patch_size
    most_budget = max([*config.token_budgets, default.token_budget, *(config.token_plan or {})])
    budget = gr.Slider(1, most_budget, default.token_budget, step=1, label="Token budget", elem_id="budget")
    with gr.Row():
        frames = gr.Slider(
            config.tubelet_size, most_frames, default.num_frames, step=config.tubelet_size, label="Frames"
        )
        size = gr.Slider(config.patch_size, most_size, default.size, step=config.patch_size, label="Size in pixels")
    with gr.Row():
        clips = gr.Slider(1, MAX_CLIPS, 1, step=1, label="Views in time")
        crops = gr.Radio(list(CROPS), value=1, label="Views in space")
    cost = gr.Markdown(describe_cost(model, default), elem_id="cost")
    choices = [budget, frames, size, clips, crops]
    if config.token_plan:
        budget.change(handlers.follow_plan, choices, [frames, size], api_visibility="private", **QUIET)
    gr.on([each.change for each in choices], handlers.show_cost, choices, cost, **{**QUIET, "api_name": "cost"})
    return choices


def _labels_part(handlers: Handlers, clip: gr.Video, choices: list) -> None:
    button = gr.Button("Classify", variant="primary", elem_id="classify")
    labels = gr.Label(label="Labels", elem_id="labels")
    about = gr.Markdown(elem_id="about")
    look = {"interactive": False, "autoplay": True, "loop": True, "height": 240, "buttons": ["download"]}
    video = PlainVideo(label="Kept patches", elem_id="kept-video", **look)
    picture = gr.Image(label="Kept patches", elem_id="kept", **PICTURE)

    def run(path, budget, frames, size, clips, crops, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        return handlers.run(path, budget, frames, size, clips, crops, request=request, progress=_teller(progress))

    button.click(run, [clip, *choices], [labels, picture, video, about], api_name="classify", **MODEL_QUEUE)


def _comparison_part(handlers: Handlers, clip: gr.Video, choices: list) -> None:
    config = handlers.classify.model.config
    budgets = ", ".join(map(str, suggested_budgets(config.token_budgets)))
    text = gr.Textbox(budgets, label="Token budgets", elem_id="budgets")
    planned = gr.Checkbox(
        bool(config.token_plan),
        label="Each budget with the frames and size that the checkpoint's plan holds for it",
        visible=bool(config.token_plan),
    )
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    picture = gr.Image(label="What each budget keeps", elem_id="compared", **PICTURE)
    widths = ["11%", "15%", "21%", "13%", "10%", "30%"]
    headers = list(COMPARISON_COLUMNS)
    table = gr.Dataframe(headers=headers, interactive=False, wrap=True, column_widths=widths, elem_id="table")
    gr.Markdown("ms: in the model, all views, after a run to warm up. GFLOPs: multiply-adds, as the paper counts.")

    def compare(path, text, planned, budget, frames, size, clips, crops, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        values = (budget, frames, size, clips, crops)
        return handlers.compare(path, text, planned, *values, request=request, progress=_teller(progress))

    inputs = [clip, text, planned, *choices]
    button.click(compare, inputs, [table, picture], api_name="compare", **MODEL_QUEUE)


def _timeline_part(handlers: Handlers, clip: gr.Video, choices: list) -> None:
    with gr.Row():
        window = gr.Number(2.0, label="Window, seconds", minimum=0.1, elem_id="window")
        stride = gr.Number(1.0, label="Stride, seconds", minimum=0.1, elem_id="stride")
    with gr.Row():
        button = gr.Button("Label", variant="primary", elem_id="follow")
        stop = gr.Button("Stop", elem_id="stop")
    line = gr.HTML(elem_id="timeline")
    table = gr.Dataframe(headers=list(TIMELINE_COLUMNS), interactive=False, elem_id="windows")

    def follow(path, window, stride, budget, frames, size, clips, crops, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        values = (budget, frames, size, clips, crops)
        yield from handlers.follow_time(path, window, stride, *values, request=request, progress=_teller(progress))

    inputs = [clip, window, stride, *choices]
    running = button.click(follow, inputs, [line, table], api_name="windows", **MODEL_QUEUE)
    stop.click(None, cancels=[running], queue=False, api_visibility="private")


def _teller(progress: gr.Progress):
    return lambda share, what: progress(share, desc=what)
