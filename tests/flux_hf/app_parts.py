"""A checkpoint, clips and a site for the tests of the page."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import torch
from flux_models import fluxvit_config
from PIL import Image

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor
from flux_hf.visualization import GAP


def save_checkpoint(folder: Path) -> Path:
    """Of `fluxvit_config`, with a plan for one of its budgets."""
    torch.manual_seed(0)
    config = fluxvit_config(token_plan={32: [4, 56]}, id2label={index: f"<b>class {index}" for index in range(7)})
    FluxViTForVideoClassification(config).save_pretrained(folder)
    FluxViTVideoProcessor(size=56, num_frames=8).save_pretrained(folder)
    return folder


def write_coloured(path: Path, channel: int = 0, num_frames: int = 20) -> Path:
    """A lossless clip of noise in one of the colours red, green and blue: no patch of it is grey."""
    frames = np.zeros((num_frames, 96, 96, 3), np.uint8)
    frames[..., channel] = np.random.default_rng(channel).integers(150, 250, frames.shape[:3])
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "rgb24"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def count_coloured(picture: Image.Image, frame_side: int, patch_side: int, num_frames: int) -> int:
    """Patches of a picture of kept tokens that are not grey."""
    pixels, found, per_row = np.asarray(picture.convert("RGB")).astype(int), 0, frame_side // patch_side
    for frame in range(num_frames):
        row, column = divmod(frame, 8)
        view = pixels[row * (frame_side + GAP) :, column * (frame_side + GAP) :][:frame_side, :frame_side]
        patches = view.reshape(per_row, patch_side, per_row, patch_side, 3).transpose(0, 2, 1, 3, 4)
        found += int(((patches.max(-1) - patches.min(-1)).max((2, 3)) > 0).sum())
    return found


class _Site(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing."""


@contextmanager
def serving() -> Iterator[ThreadingHTTPServer]:
    """A site on this machine: `pages` by path are (status, headers, body), `asked` are the paths it was asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        server.asked, server.pages, server.url = [], {}, f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()
