# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A page to try a model on as a Gradio Space: `flux_hf.app` with the code it needs, pushed in one commit and checked.

The Space holds flux_hf itself, so that it needs nothing but published packages, at the versions it was checked with.
It shows the model at the commit that was pushed with it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from transformers import AutoConfig

import flux_hf
from conversion.hub import Target, describe, find_changes, keep_remote_card, open_hub, send
from conversion.model_card import CARD_NAME, MARK, is_classifier
from conversion.staging import NOT_PASSED_ON, PushError


# What flux_hf and its page import; all are in setup.cfg.
PACKAGES = ("torch", "torchvision", "transformers", "safetensors", "huggingface-hub", "av", "numpy", "pillow", "gradio")
OURS = re.compile(r"flux_hf/.*\.py")
SHORT_TITLE = 60  # characters of a title that the Hub shows
CARD = """\
---
title: "{title}"
emoji: 🎞️
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: apache-2.0
models:
- {model_id}
pinned: false
---
{mark}

A page to try [{model_id}](https://huggingface.co/{model_id}) on: the model keeps the most informative patches of a clip
and encodes only those, as many as the token budget says. What it keeps, what that costs and what it then sees are shown
side by side for several budgets. Clips are deleted when the page is closed.

The license is of this code; the model's is on its own card.
"""
APP = '''\
"""The page of {model_id}: flux_hf's own, with the model at the commit it was pushed with."""

import sys

from flux_hf.app import main


MODEL = ["--model", "{model_id}", "--revision", "{commit}"]

if __name__ == "__main__":
    sys.exit(main([*MODEL, "--host", "0.0.0.0", "--port", "7860", *sys.argv[1:]]))
'''


def check_space(checkpoint: Path, target: Target, space_id: str) -> None:
    """Raises PushError where a page could not be pushed behind the model, before anything is."""
    if target.create_pr:
        raise PushError(f"--space {space_id} shows what is published: not with --create_pr")
    if not is_classifier(AutoConfig.from_pretrained(checkpoint)):
        raise PushError(f"--space {space_id} shows labels, and {checkpoint} has no classifier")
    requirements()
    open_hub(_space(space_id, target))


def _space(space_id: str, target: Target) -> Target:
    return Target(
        space_id, private=target.private, commit_message="Upload a page to try the model on", repo_type="space"
    )


def requirements() -> list[str]:
    """A line a package, at the version that is installed here.

    Raises:
        PushError: one is not installed.
    """
    lines = []
    for name in PACKAGES:
        try:
            lines.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            raise PushError(
                f"--space opens the page to check it, and {name} is not installed: pip install '.[app]'"
            ) from None
    return lines


def stage_space(staging: Path, model_id: str, commit: str) -> None:
    """Puts all of a Space into the folder `staging`.

    Args:
        staging: Made here.
        model_id, commit: The model on the Hub that it shows.
    """
    package = Path(flux_hf.__file__).parent
    shutil.copytree(package, staging / "flux_hf", ignore=_all_but_source)
    pins = requirements()
    title = f"Token budgets of {model_id.partition('/')[2]}"
    card = CARD.format(
        title=title[:SHORT_TITLE],
        gradio=pins[-1].partition("==")[2],
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        model_id=model_id,
        mark=MARK,
    )
    files = {
        CARD_NAME: card,
        "app.py": APP.format(model_id=model_id, commit=commit),
        "requirements.txt": "\n".join(pins) + "\n",
    }
    for name, text in files.items():
        (staging / name).write_text(text, encoding="utf-8")


def _all_but_source(folder: str, names: list[str]) -> list[str]:
    """What of a package's folder is no source file."""
    return [name for name in names if not name.endswith(".py") and (name == "__pycache__" or "." in name)]


def push_space(
    checkpoint: Path,
    target: Target,
    commit: str | None,
    space_id: str,
    overwrite_card: bool = False,
    token: str | None = None,
) -> None:
    """Stages, runs, sends, downloads and runs again; says on stdout what it does.

    Args:
        checkpoint: The folder of the model.
        target: Where that was pushed to.
        commit: Its commit there; None only lists what would be sent (`--dry_run`).

    Raises:
        PushError: the page cannot be served, or what arrived gives other scores. Errors of `explain`.
    """
    api, space, remote = open_hub(_space(space_id, target), token)
    model_id = target.repo_id if "/" in target.repo_id else f"{space.repo_id.split('/')[0]}/{target.repo_id}"
    with tempfile.TemporaryDirectory(prefix="flux-hf-") as folder:
        staging = Path(folder) / "space"
        stage_space(staging, model_id, commit or "main")
        expected = run_page(staging, checkpoint)
        changes = find_changes(staging, remote, OURS)
        if not overwrite_card and keep_remote_card(api, space, remote, changes):
            print(f"the Space's own {CARD_NAME} is kept: --overwrite_card replaces it")
        print("\n".join(describe(space, remote, changes)))
        if commit is None:
            print("dry run: nothing was sent")
            return
        sent, address = send(api, space, remote, changes)
        print(f"pushed: {address}" if changes else f"already there: {address}")
        arrived = _downloaded(api, space, sent, Path(folder) / "arrived")
        if run_page(arrived, token=token) != expected:
            raise PushError(f"{space.repo_id} at {sent} gives other scores than the checkpoint")
    print("verified: downloaded, its page served with the model from the Hub, the same scores bit by bit")
    if remote.exists or not space.private:
        return
    print("a private model needs a secret HF_TOKEN in the Space's settings")


def _downloaded(api: HfApi, space: Target, commit: str, folder: Path) -> Path:
    options = {"repo_type": "space", "revision": commit, "local_dir": folder, "token": api.token}
    return Path(snapshot_download(space.repo_id, **options))


def run_page(folder: Path, model: Path | None = None, token: str | None = None) -> dict:
    """What the page in `folder` makes of a made-up clip, served by a new process from that folder's own files.

    Args:
        model: A checkpoint folder in place of the Space's own model, which is downloaded into an empty cache.

    Raises:
        PushError: it cannot be served, or ran on another copy of flux_hf; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="flux-hf-") as home:
        environment = {name: value for name, value in os.environ.items() if not NOT_PASSED_ON.fullmatch(name)}
        environment |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1" if model else "0", "PYTHONDONTWRITEBYTECODE": "1"}
        if model is None and (token := token or get_token()):
            environment["HF_TOKEN"] = token
        command = [sys.executable, "app.py", "--check", "--device", "cpu"]
        command += [] if model is None else ["--model", str(model.absolute())]
        finished = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PushError(f"the page in {folder} could not be served: {reason}")
    result = json.loads(finished.stdout.splitlines()[-1])
    if not Path(result.pop("package")).is_relative_to(os.path.realpath(folder)):
        raise PushError(f"the page in {folder} ran on another copy of flux_hf than its own")
    return result
