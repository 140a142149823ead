# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Serves the page: from this machine alone, with a folder of its own that is deleted when it stops."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from ..pipelines import FluxViTVideoClassificationPipeline
from .choices import Limits
from .handlers import Handlers
from .page import CSS, build_page
from .sessions import Sessions


LEFTOVER_SECONDS = 60  # between looks for uploads that no page took
QUEUE_LENGTH = 20
# Browsers ask nobody else for anything, whatever a later Gradio would have them load. Its scripts are inline and
# compiled in the browser.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
# What Gradio offers beside the page: fetching any address for anyone, and keeping a session's values on disk.
CLOSED = ("file=http", "file/http", "proxy=", "deep_link")


@dataclass(frozen=True)
class Address:
    """Where the page is served; a `port` of None takes the first free one from 7860 on."""

    host: str = "127.0.0.1"
    port: int | None = None


class Guard:
    """Middleware that closes what the page does not use, and tells browsers to ask no other host."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and any(word in scope["path"].lower() for word in CLOSED):
            return await PlainTextResponse("closed", status_code=403)(scope, receive, send)

        async def send_with_policy(message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


@contextmanager
def upload_folder() -> Iterator[str]:
    """A folder that only this user can read, where Gradio puts uploads; deleted when the block ends."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="flux-hf-app-"))
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder  # read when components are made
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def served(
    classify: FluxViTVideoClassificationPipeline,
    address: Address,
    limits: Limits,
    keep_seconds: float = 3600.0,
    links: str = "public",
    quiet: bool = False,
) -> Iterator[str]:
    """Serves the page of a model until the block ends.

    Yields:
        Its address.
    """
    with upload_folder() as folder:
        sessions = Sessions(folder, keep_seconds)
        handlers = Handlers(classify, limits, sessions, links)
        page = build_page(handlers, (LEFTOVER_SECONDS, max(int(keep_seconds), 1)))
        page.queue(max_size=QUEUE_LENGTH)
        sessions.start_sweeping()
        try:
            _, url, _ = page.launch(
                server_name=address.host,
                server_port=address.port,
                max_file_size=int(limits.file_megabytes * 1e6),
                app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None},
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                footer_links=[],
                run_history=False,
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                prevent_thread_lock=True,
                quiet=quiet,
            )
            yield url
        finally:
            page.close(verbose=False)
            sessions.stop()


def wait_for_the_end() -> None:
    """Returns at Ctrl-C and SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
