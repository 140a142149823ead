# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What tells one model's weights, and one list of clips, from another: for names of what was computed from them."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn

from .data.reader import READ_ERRORS, Clip, describe_failure


def weights_digest(model: nn.Module) -> str:
    """Of a model's weights, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def identities(clips: Sequence[Clip]) -> list[str]:
    """What tells each clip's content from another's: path, size and time of change; or why they cannot be read."""
    told = []
    for clip in clips:
        try:
            told.append(json.dumps(clip.identity()))
        except READ_ERRORS as error:
            told.append(json.dumps(describe_failure(error)))
    return told


def clips_digest(clips: Sequence[Clip]) -> str:
    """Of a list of clips and their content."""
    digest = hashlib.sha256()
    for told in identities(clips):
        digest.update(told.encode())
    return digest.hexdigest()
