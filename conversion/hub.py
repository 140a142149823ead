# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What is asked of the Hub and told to it: a repository as it is, what differs, and one commit."""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from conversion.model_card import CARD_NAME, MARK
from conversion.saving import sha256
from conversion.staging import PushError


# Weights of an earlier commit that would be loaded instead of, or beside, those that are pushed.
ANY_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


@dataclass(frozen=True)
class Target:
    """Where a checkpoint goes.

    Args:
        repo_id: "user/name".
        repo_type: "model", or "space".
        revision: Branch, made if missing; or refs/pr/N, a pull request to add to.
        create_pr: Open a pull request instead of committing.
        private: Make the repository private.
        commit_message: First line of the commit.
        tag: Name given to the commit once it is verified.
    """

    repo_id: str
    revision: str = constants.DEFAULT_REVISION
    create_pr: bool = False
    private: bool = False
    commit_message: str = "Upload FluxViT checkpoint"
    tag: str | None = None
    repo_type: str = "model"

    @property
    def address(self) -> str:
        """Of the repository on the Hub, below the Hub's own."""
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    def __post_init__(self):
        if self.create_pr and self.revision != constants.DEFAULT_REVISION:
            raise ValueError(f"--create_pr opens a pull request to main: not with --revision {self.revision}")
        if self.create_pr and self.tag:
            raise ValueError(f"--tag {self.tag} names what is published: not with --create_pr")


@dataclass
class Remote:
    """What the repository holds at the revision, before the push.

    Args:
        exists: Whether there is such a repository.
        has_revision: Whether it has the revision; one that it lacks begins as a copy of main.
        head: Commit that the new one follows; None in a repository to be made.
        files: Path -> file of that commit.
        tags: Name -> commit.
    """

    exists: bool = False
    has_revision: bool = False
    head: str | None = None
    files: dict[str, RepoFile] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Changes:
    """What a commit would do: files to send, paths to delete; `same` is on the Hub already."""

    send: dict[str, Path]
    delete: list[str]
    same: list[str]

    def __bool__(self) -> bool:
        return bool(self.send or self.delete)


def full_repo_id(api: HfApi, repo_id: str) -> tuple[str, dict]:
    """The repository's name with its namespace, and who is asking.

    Raises:
        PushError: the token may only read. LocalTokenNotFoundError, HfHubHTTPError: there is none, or it is wrong.
    """
    user = api.whoami()
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PushError("the token may only read: make one that may write at https://huggingface.co/settings/tokens")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}", user


def look_at(api: HfApi, target: Target, user: dict) -> Remote:
    """The repository as it is; nothing is changed.

    Raises:
        PushError: it cannot be pushed to in the way asked for.
    """
    try:
        info = api.repo_info(target.repo_id, repo_type=target.repo_type)
    except RepositoryNotFoundError:
        return _look_for_new(api, target, user)
    if target.private and not info.private:
        raise PushError(f"{target.repo_id} exists and is public: --private cannot hide it, its settings page can")
    if not target.create_pr:
        api.auth_check(target.repo_id, repo_type=target.repo_type, write=True)
    refs = api.list_repo_refs(target.repo_id, repo_type=target.repo_type)
    tags = {tag.name: tag.target_commit for tag in refs.tags}
    has_revision, head = True, info.sha
    if target.revision != constants.DEFAULT_REVISION:
        try:
            head = api.repo_info(target.repo_id, repo_type=target.repo_type, revision=target.revision).sha
        except RevisionNotFoundError:
            has_revision = False
            if target.revision.startswith("refs/"):
                raise PushError(f"{target.repo_id} has no {target.revision}") from None
    entries = api.list_repo_tree(target.repo_id, recursive=True, revision=head, repo_type=target.repo_type)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    return Remote(True, has_revision, head, files, tags)


def _look_for_new(api: HfApi, target: Target, user: dict) -> Remote:
    for repo_type in ("dataset", "space") if target.repo_type == "model" else ():
        if api.repo_exists(target.repo_id, repo_type=repo_type):
            raise PushError(f"{target.repo_id} is a {repo_type} on the Hub, not a model: choose another name")
    if target.create_pr:
        raise PushError(f"--create_pr needs a repository, and {target.repo_id} does not exist (or is not yours to see)")
    namespace = target.repo_id.split("/")[0]
    allowed = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if namespace not in allowed:
        raise PushError(f"no permission: {user['name']} cannot create repositories of {namespace!r}, only of {allowed}")
    return Remote()


def find_changes(staging: Path, remote: Remote, ours: re.Pattern = ANY_WEIGHTS) -> Changes:
    """What differs between the staged files and the repository's; of those that are `ours` no others stay."""
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    files = {path.relative_to(staging).as_posix(): path for path in paths}
    same = [name for name, path in files.items() if name in remote.files and _is_same(path, remote.files[name])]
    stale = [path for path in remote.files if ours.fullmatch(path) and path not in files]
    return Changes({name: path for name, path in files.items() if name not in same}, sorted(stale), same)


def _is_same(path: Path, remote: RepoFile) -> bool:
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == sha256(path)
    content = path.read_bytes()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def keep_remote_card(api: HfApi, target: Target, remote: Remote, changes: Changes) -> bool:
    """Leaves the repository's card out of the changes where a person wrote it; returns whether that is so."""
    if CARD_NAME not in changes.send or CARD_NAME not in remote.files:
        return False
    with tempfile.TemporaryDirectory(prefix="flux-hf-") as folder:
        where = {"repo_type": target.repo_type, "revision": remote.head, "local_dir": folder}
        path = api.hf_hub_download(target.repo_id, CARD_NAME, **where)
        if MARK in Path(path).read_text(encoding="utf-8"):
            return False
    del changes.send[CARD_NAME]
    return True


def check_tag(target: Target, remote: Remote, changes: Changes) -> None:
    """Raises PushError where the tag names another commit already: tags are not moved."""
    if target.tag in remote.tags and (changes or remote.tags[target.tag] != remote.head):
        raise PushError(f"{target.repo_id} has a tag {target.tag} of another commit: choose a new one")


def send(api: HfApi, target: Target, remote: Remote, changes: Changes) -> tuple[str, str]:
    """Makes repository and branch where missing, and the commit. Large files that had arrived are not sent again.

    Returns:
        The commit's hash, and the address of commit or pull request.
    """
    if not remote.exists:
        kind = {"repo_type": target.repo_type, "space_sdk": "gradio" if target.repo_type == "space" else None}
        api.create_repo(target.repo_id, private=target.private or None, exist_ok=True, **kind)
    if not remote.has_revision and target.revision != constants.DEFAULT_REVISION:
        api.create_branch(target.repo_id, branch=target.revision, revision=remote.head, exist_ok=True)
    if not changes:
        return remote.head, f"{api.endpoint}/{target.address}/commit/{remote.head}"
    operations = [CommitOperationAdd(name, path) for name, path in changes.send.items()]
    operations += [CommitOperationDelete(path) for path in changes.delete]
    commit = api.create_commit(
        target.repo_id,
        operations,
        repo_type=target.repo_type,
        commit_message=target.commit_message,
        revision=target.revision,
        create_pr=target.create_pr,
        parent_commit=remote.head,  # someone else's commit in between is not overwritten
    )
    return commit.oid, commit.pr_url or commit.commit_url


def open_hub(target: Target, token: str | None = None) -> tuple[HfApi, Target, Remote]:
    """The Hub, the target with its namespace, and the repository as it is; nothing is changed.

    Raises:
        PushError: offline, a token that may only read, or a repository that cannot be pushed to in the way asked for.
            Errors of `explain`: no token, or the Hub says no.
    """
    if constants.HF_HUB_OFFLINE:
        raise PushError("HF_HUB_OFFLINE=1 forbids every connection: unset it to push")
    api = HfApi(token=token)
    repo_id, user = full_repo_id(api, target.repo_id)
    target = replace(target, repo_id=repo_id)
    return api, target, look_at(api, target, user)


def describe(target: Target, remote: Remote, changes: Changes) -> list[str]:
    """The commit, a line a file."""
    kind = "a pull request" if target.create_pr else f"one commit on {target.revision}"
    new = "" if remote.exists else f" (new, {'private' if target.private else 'public'})"
    sizes = {name: path.stat().st_size for name, path in changes.send.items()}
    lines = [f"{target.repo_id}{new}, {kind}: {len(sizes)} files, {sum(sizes.values()):,} bytes"]
    lines += [f"  send {size:>15,}  {name}" for name, size in sizes.items()]
    lines += [f"  delete {'':>13}  {name}" for name in changes.delete]
    lines += [f"  same {'':>15}  {name}" for name in changes.same]
    return lines


def explain(error: Exception, repo_id: str) -> str:
    """What a person can do about an error of the Hub, of the way to it, or of the request."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what befell a large file
    if isinstance(error, LocalTokenNotFoundError):
        return "no token: run `hf auth login`, or set HF_TOKEN to one that may write"
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, HTTPError):
            return f"no connection to {constants.ENDPOINT} ({error}); the same command goes on where this one stopped"
        return str(error)
    status, said = error.response.status_code, error.server_message or str(error).strip().splitlines()[0]
    advice = {
        401: "the token is not valid: run `hf auth login`, or set HF_TOKEN to one that may write",
        403: f"no permission to write to {repo_id}: --create_pr asks its owner to",
        404: f"{repo_id} is not there, or not yours to see",
        409: "another operation is in progress: try again",
        412: f"{repo_id} has changed meanwhile: look at it, then try again",
    }
    default = "the same command goes on where this one stopped" if status >= 500 else "the Hub refused"
    return f"{advice.get(status, default)} (the Hub says {status}: {said})"


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns errors of the Hub, and of the way to it, into a PushError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, HTTPError) as error:
        raise PushError(explain(error, repo_id)) from error
