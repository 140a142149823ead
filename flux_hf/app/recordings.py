# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Mends what Gradio's camera button records: it sends what the browser had written so far, cut in mid-element.

(Gradio 6.31 makes the file of the pieces that came before it told the recorder to stop; the last one comes after.) The
file is right up to there, so it is ended there. Any other file that ends early stays an error.
"""

import os
from pathlib import Path

from ..checkpoint_files import replacing


RECORDING_NAME = "sample.webm"  # Gradio's, whatever the visitor does
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # the elements of WebM that hold the others


def mend_recording(path: str | os.PathLike) -> bool:
    """Ends a live WebM file behind its last whole element; returns whether it was longer."""
    data = Path(path).read_bytes()
    length = whole_length(data)
    if length is None or length == len(data):
        return False
    with replacing(path) as temporary:
        temporary.write_bytes(data[:length])
    return True


def whole_length(data: bytes) -> int | None:
    """Bytes up to the end of the last whole element; None for what was not recorded live (its sizes are known)."""
    position, length, live = 0, 0, False
    while position < len(data):
        name, body = _number(data, position, marked=True)
        size, body = _number(data, body) if name is not None else (None, body)
        if name is None or body > len(data):
            break
        if size is None:
            if name not in (SEGMENT, CLUSTER) or body >= len(data):
                break
            live = live or name == SEGMENT
            position = body
            continue
        if body + size > len(data):
            break
        position = length = body + size
    return length if live else None


def _number(data: bytes, position: int, marked: bool = False) -> tuple[int | None, int]:
    """An EBML number and where it ends; None for the size that means unknown, and for a number that is not whole.

    Args:
        marked: Keep the bit that tells the length: names have it.
    """
    if position >= len(data) or data[position] == 0:
        return None, len(data) + 1
    length = 9 - data[position].bit_length()
    end = position + length
    if end > len(data):
        return None, end
    value, bits = int.from_bytes(data[position:end], "big"), 7 * length
    if not marked:
        value &= (1 << bits) - 1
        if value == (1 << bits) - 1:
            return None, end
    return value, end
