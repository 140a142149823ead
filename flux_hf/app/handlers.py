# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What the page does when something is pressed: from Gradio's values to plain functions and back."""

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..pipelines import FluxViTVideoClassificationPipeline
from ..video_streams import VideoDecodeError
from .choices import Choice, Limits, check_choice, check_file, describe_cost, parse_budgets, planned_choice
from .classify import classify_file, compare_budgets, label_windows
from .examples import write_example
from .links import fetch, file_suffix
from .pictures import comparison_picture, comparison_rows, kept_picture, timeline_html, timeline_rows, write_kept_video
from .recordings import RECORDING_NAME, mend_recording
from .sessions import Sessions


MESSAGE_SECONDS = 30


@contextmanager
def explained() -> Iterator[None]:
    """Shows what was wrong with a request on the page, without the server's paths."""
    try:
        yield
    except VideoDecodeError as error:
        raise _shown(f"This file cannot be read: {error.reason}") from error
    except FileNotFoundError as error:
        raise _shown("The clip is not here any more: choose it again") from error
    except ValueError as error:
        raise _shown(str(error)) from error


def _shown(message: str) -> gr.Error:
    return gr.Error(html.escape(message, quote=False), duration=MESSAGE_SECONDS, print_exception=False)


@dataclass
class Handlers:
    """The page's functions.

    Args:
        classify: The model.
        limits: What may be asked of it.
        sessions: Where visitors' files are.
        links: Whose links are fetched: "public", "any" (of private networks too) or "none".
    """

    classify: FluxViTVideoClassificationPipeline
    limits: Limits
    sessions: Sessions
    links: str = "public"

    # The clip ---------------------------------------------------------------------------------------------------------

    def take_clip(self, path: str | None, request: gr.Request) -> tuple[Any, str]:
        """A clip was chosen: moves it to its session and says what it is, or what is wrong with it."""
        if path is None:
            return gr.skip(), ""
        with explained():
            taken = self._clip(path, request)
        try:
            with explained():
                facts = str(check_file(taken, self.limits))
        except gr.Error as error:
            facts = f"**{error.message}**"
        return (gr.skip() if str(taken) == path else str(taken)), facts

    def make_example(self, move: str) -> Callable:
        """The function of an example's button."""

        def make(request: gr.Request) -> str:
            path = self.sessions.new_file(request.session_hash, "clip.mp4")
            write_example(path, move)
            return str(path)

        return make

    def fetch_link(self, link: str, request: gr.Request) -> str:
        with explained():
            if not link.strip():
                raise ValueError("paste the address of a video file first")
            fetched = self.sessions.new_file(request.session_hash, f"fetched{file_suffix(link)}")
            fetch(link, fetched, int(self.limits.file_megabytes * 1e6), self.links == "any")
            path = self.sessions.new_file(request.session_hash, f"clip{file_suffix(link)}")  # the one before goes now
            fetched.rename(path)
        return str(path)

    # Choices ----------------------------------------------------------------------------------------------------------

    def show_cost(self, *values: Any) -> str:
        with explained():
            choice = self._choice(*values)
        try:
            check_choice(self.classify.model, choice, self.limits)
        except ValueError as error:
            return f"**{html.escape(str(error), quote=False)}**"
        return describe_cost(self.classify.model, choice)

    def follow_plan(self, *values: Any) -> tuple[int, int]:
        """Frames and size that the checkpoint's plan holds for the budget; as they are without."""
        with explained():
            choice = planned_choice(self.classify.model.config, self._choice(*values))
        return choice.num_frames, choice.size

    def _choice(
        self, token_budget: float, num_frames: float, size: float, num_clips: float, num_crops: float
    ) -> Choice:
        given = (num_frames, size, token_budget, num_clips, num_crops)
        if any(value is None or value != int(value) for value in given):
            raise ValueError(f"budget, frames, size and views must be whole numbers, got {list(given)}")
        return Choice(*map(int, given))

    # Results ----------------------------------------------------------------------------------------------------------

    def run(self, path: str | None, *values: Any, request: gr.Request, progress: Callable) -> tuple:
        """Labels, the picture and video of kept patches, and a line about them."""
        with explained():
            clip = self._clip(path, request)
            result = classify_file(self.classify, clip, self._choice(*values), self.limits, progress)
            picture = self.sessions.new_file(request.session_hash, "kept.png")
            kept_picture(result).save(picture)
            video = self.sessions.new_file(request.session_hash, "kept_video.mp4")
            write_kept_video(video, result)
        views = f", the middle one of {result.choice.num_views} views" if result.choice.num_views > 1 else ""
        kept = f"{result.cost.kept_tokens:,} of {result.cost.tokens:,} patches kept{views}"
        return result.labels, str(picture), str(video), f"{kept}; {result.milliseconds:.1f} ms in the model"

    def compare(
        self, path: str | None, budgets: str, planned: bool, *values: Any, request: gr.Request, progress: Callable
    ) -> tuple[list[list[str]], str]:
        """The table and the picture of budgets side by side."""
        with explained():
            clip = self._clip(path, request)
            wanted = parse_budgets(budgets)
            choice = replace(self._choice(*values), token_budget=wanted[0])
            results = compare_budgets(self.classify, clip, choice, wanted, self.limits, bool(planned), progress)
            picture = self.sessions.new_file(request.session_hash, "compared.png")
            comparison_picture(results).save(picture)
        return comparison_rows(results), str(picture)

    def follow_time(
        self, path: str | None, window: float, stride: float, *values: Any, request: gr.Request, progress: Callable
    ) -> Iterator[tuple[str, list]]:
        """The time line as it grows."""
        found: list[dict] = []
        with explained():
            clip, choice = self._clip(path, request), self._choice(*values)
            for each in label_windows(self.classify, clip, choice, window or 0, stride or 0, self.limits, progress):
                found.append(each)
                yield timeline_html(found), timeline_rows(found)

    def _clip(self, path: str | None, request: gr.Request) -> Path:
        if path is None:
            raise ValueError("choose a clip first")
        taken = self.sessions.take(request.session_hash, path)
        if Path(path).name == RECORDING_NAME:
            mend_recording(taken)
        return taken

    def end_session(self, request: gr.Request) -> None:
        self.sessions.close(request.session_hash)
