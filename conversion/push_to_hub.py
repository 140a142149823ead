# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Puts a checkpoint on the Hugging Face Hub in one commit, with its code and a model card, and checks what arrived.

    python -m conversion.push_to_hub CHECKPOINT USER/NAME --license LICENSE [--space USER/PAGE]

CHECKPOINT is a folder of `conversion.convert_to_hf`, `training.finetune` or `save_pretrained`. It is verified first: a
conversion must have passed its own verification, the weights must fit the model and be finite, and a process without
flux_hf must be able to run a clip. Then weights, config, video processor, source files and card go up in one commit
(or pull request), that commit is downloaded into an empty cache, and the clip must give the same logits bit by bit. A
push that was cut short has left the repository as it was or whole; the same command finishes it. `--space` then puts a
page to try the model on beside it, in the same way (`space.py`).
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import HTTPError

from conversion.hub import (
    Target,
    check_tag,
    describe,
    explain,
    find_changes,
    keep_remote_card,
    open_hub,
    send,
)
from conversion.model_card import CARD_NAME, CardFacts, add_card_arguments, card_facts
from conversion.space import check_space, push_space
from conversion.staging import PushError, run_alone, stage, verify_checkpoint, write_card


def push(
    checkpoint: Path,
    target: Target,
    facts: CardFacts,
    max_shard_size: str | None = None,
    overwrite_card: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> str | None:
    """Verifies, sends, downloads, compares, tags; says on stdout what it does.

    Returns:
        The commit; None after a dry run.

    Raises:
        ValueError: the checkpoint or the request is at fault. Errors of `explain`: the Hub or the way to it is.
    """
    model = verify_checkpoint(checkpoint)
    api, target, remote = open_hub(target, token)
    facts = replace(facts, repo_id=target.repo_id)
    with tempfile.TemporaryDirectory(prefix="flux-hf-") as folder:
        staging = Path(folder) / "checkpoint"
        stage(checkpoint, staging, model, max_shard_size)
        made = write_card(checkpoint, staging, model.config, facts, overwrite_card)
        print(f"verified {checkpoint}: weights fit and are finite; {'card made' if made else 'its own card kept'}")
        changes = find_changes(staging, remote)
        if made and not overwrite_card and keep_remote_card(api, target, remote, changes):
            print(f"the repository's own {CARD_NAME} is kept: --overwrite_card replaces it")
        check_tag(target, remote, changes)
        expected = run_alone(str(staging))
        print("\n".join(describe(target, remote, changes)))
        if dry_run:
            print("dry run: nothing was sent")
            return None
        commit, address = send(api, target, remote, changes)
        print(f"pushed: {address}" if changes else f"already there: {address}")
        if run_alone(target.repo_id, commit, token) != expected:
            raise PushError(f"{target.repo_id} at {commit} gives other outputs than the checkpoint")
        print("verified: downloaded into an empty cache and run without flux_hf, the same outputs bit by bit")
    if target.tag and target.tag not in remote.tags:
        api.create_tag(target.repo_id, tag=target.tag, revision=commit)
        print(f"tagged {target.tag}")
    return commit


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conversion.push_to_hub", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository, made if missing; NAME alone is one of yours")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", default="main", help="branch, made if missing; or refs/pr/N")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--commit_message", default=Target.commit_message)
    parser.add_argument("--tag", help="name the commit, once it is verified; such as v1.0")
    parser.add_argument("--max_shard_size", help="split the weights into files of at most so much, such as 5GB")
    parser.add_argument("--space", metavar="USER/PAGE", help="then push a page to try the model on, a Gradio Space")
    parser.add_argument("--dry_run", action="store_true", help="check everything, list what would be sent, and stop")
    parser.add_argument("--overwrite_card", action="store_true", help="make a card though the folder has a README.md")
    add_card_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    names = ("repo_id", "revision", "create_pr", "private", "commit_message", "tag")
    asked = options.repo_id  # of what goes wrong
    try:
        target = Target(**{name: getattr(options, name) for name in names})
        facts = card_facts(options, options.repo_id)
        if options.space:
            check_space(options.checkpoint, target, options.space)
        commit = push(
            options.checkpoint, target, facts, options.max_shard_size, options.overwrite_card, options.dry_run
        )
        if options.space:
            asked = options.space
            push_space(options.checkpoint, target, commit, options.space, options.overwrite_card)
    except (ValueError, OSError, RuntimeError, HTTPError) as error:
        print(f"not pushed: {explain(error, asked)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
