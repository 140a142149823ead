# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m flux_hf.app`: opens the page of a checkpoint."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from .choices import Limits


# Read when Gradio and the Hub's client are imported: nobody is told that the page is opened.
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
CHECK_SEED = 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flux_hf.app", description="A page to try a checkpoint on.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a checkpoint")
    parser.add_argument("--revision", help="of a Hub id: branch, tag or commit")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on if not given")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    parser.add_argument("--max_file_mb", type=float, default=Limits.file_megabytes, help="of an upload or link")
    parser.add_argument("--max_seconds", type=float, default=Limits.seconds, help="length of a video")
    parser.add_argument("--max_frames", type=int, default=Limits.num_frames, help="of a view")
    parser.add_argument("--max_size", type=int, default=Limits.size, help="side of a view, in pixels")
    parser.add_argument("--max_kept_tokens", type=int, default=Limits.kept_tokens, help="encoded of a view")
    parser.add_argument("--keep_minutes", type=float, default=60.0, help="a visitor's files without use; less if left")
    parser.add_argument(
        "--links",
        choices=("public", "any", "none"),
        default="public",
        help="whether links are fetched; any: also from this machine and private networks",
    )
    parser.add_argument("--check", action="store_true", help="serve, classify a made-up clip, print json, and stop")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    os.environ.update(SILENT)
    try:
        from .server import Address, served, wait_for_the_end
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        print("the page needs gradio: pip install 'flux-hf[app]'", file=sys.stderr)
        return 1
    from .classify import load

    limits = Limits(
        file_megabytes=args.max_file_mb,
        seconds=args.max_seconds,
        num_frames=args.max_frames,
        size=args.max_size,
        kept_tokens=args.max_kept_tokens,
    )
    try:
        classify = load(args.model, args.device, args.revision)
    except (ValueError, OSError) as error:
        print(f"{args.model} cannot be loaded: {error}", file=sys.stderr)
        return 1
    address = Address("127.0.0.1") if args.check else Address(args.host, args.port)
    with served(classify, address, limits, 60 * args.keep_minutes, args.links, quiet=True) as url:
        if args.check:
            print(json.dumps(check(classify, url, limits)))
            return 0
        print(f"{args.model} at {url} (Ctrl-C stops it)", flush=True)
        wait_for_the_end()
    return 0


def check(classify, url: str, limits: Limits) -> dict:
    """Whether the page is served, and what the model makes of a made-up clip: the same on every run."""
    from urllib.request import urlopen

    from .choices import default_choice
    from .classify import classify_file
    from .examples import MOVES, write_example

    with urlopen(f"{url}config", timeout=60) as answer:
        title = json.load(answer)["title"]
    with tempfile.TemporaryDirectory(prefix="flux-hf-") as folder:
        path = Path(folder) / "clip.mp4"
        write_example(path, MOVES[0], CHECK_SEED)
        result = classify_file(classify, path, default_choice(classify), limits)
    package = os.path.realpath(Path(__file__).parents[1])  # which copy of it runs
    return {"title": title, "kept_tokens": len(result.keep_indices), "labels": result.labels, "package": package}
