# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub on this machine for tests: the endpoints huggingface_hub calls to push and to load, and faults on demand.

Repositories live in memory. The client reads its settings when it is imported, so what talks to a `LocalHub` is a child
process started with `environment()`. Large files take the LFS protocol; Xet, which the client would prefer, is
switched off there, for its storage protocol is not spoken here.
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


DATE = "2026-01-01T00:00:00.000Z"
LARGE_SUFFIXES = (".safetensors", ".bin", ".pth", ".mp4")
LARGE_SIZE = 1 << 20
SPACE_SDKS = ("gradio", "docker", "static")
SPACE_FIELDS = ("title", "sdk", "app_file")
REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class File:
    """A file of a commit; `sha256` where it is stored as a large one."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """What git calls it: the SHA-1 of the blob, of a large file of its pointer."""
        blob = self.content
        if self.sha256 is not None:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(blob)}\n"
            blob = text.encode()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()


@dataclass
class Repository:
    """Commits by hash, and what names them: branches (main, refs/pr/1, ...) and tags."""

    repo_id: str
    private: bool = False
    sdk: str | None = None  # of a Space
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, File], title: str) -> str:
        seed = f"{self.repo_id} {branch} {title} {len(self.commits)}"
        commit = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[commit], self.titles[commit], self.branches[branch] = files, title, commit
        return commit

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit hash means. Raises `Refusal` for anything else."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def contents(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.commits[self.resolve(revision)].items()}


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    token: str | None

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What goes wrong with the `first`-th request that matches `pattern`, and the `times` - 1 after it.

    Args:
        pattern: Regular expression, searched for in "METHOD /path".
        first: Which of the matching requests is the first to fail, from 1.
        times: How many fail; None for all from then on.
        status: Answer this instead of doing what was asked.
        message: Reason given with `status`.
        cut_request: Close the connection after so many bytes of the request's body; nothing is done.
        cut_response: Do what was asked, then close the connection after so many bytes of the answer's body; 0 sends
            no answer at all.
    """

    pattern: str
    first: int = 1
    times: int | None = 1
    status: int | None = None
    message: str = "made to fail"
    cut_request: int | None = None
    cut_response: int | None = None
    seen: int = 0
    fired: threading.Event = field(default_factory=threading.Event)

    def strikes(self, line: str) -> bool:
        """Whether this request, counted from now on, is one to fail."""
        if not re.search(self.pattern, line):
            return False
        self.seen += 1
        last = float("inf") if self.times is None else self.first + self.times - 1
        return self.first <= self.seen <= last


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = "", **content):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.content = {"error": message, **content}


class LocalHub:
    """Serves from construction to `close`; use as a context manager.

    Args:
        user: Whose tokens `tokens` are; may write to `user/...` only.
        tokens: Token -> role, "write" or "read".
        part_size: Large files above it are asked for in parts of so many bytes.
    """

    def __init__(self, user: str = "tester", tokens: dict[str, str] | None = None, part_size: int | None = None):
        self.user = user
        self.tokens = tokens or {"hf_write": "write", "hf_read": "read"}
        self.part_size = part_size
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []  # "METHOD /path" of each request, before any fault
        self.lock = threading.RLock()
        hub = self

        class BoundHandler(Handler):
            local_hub = hub

        self.server = Server(("127.0.0.1", 0), BoundHandler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> "LocalHub":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = "hf_write") -> dict[str, str]:
        """The variables of a process whose Hub this is, with everything it keeps under `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        if token is not None:
            kept["HF_TOKEN"] = token
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def add_repository(self, repo_id: str, repo_type: str = "model", private: bool = False) -> Repository:
        return self.repositories.setdefault((repo_type, repo_id), Repository(repo_id, private))

    # Permissions ------------------------------------------------------------------------------------------------------

    def require_user(self, request: Request) -> None:
        if request.token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")

    def require_writer(self, request: Request, namespace: str) -> None:
        self.require_user(request)
        if self.tokens[request.token] != "write" or namespace != self.user:
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace!r}")

    def find(self, request: Request, kind: str, repo_id: str) -> Repository:
        repository = self.repositories.get((REPO_TYPES[kind], repo_id))
        if repository is None or (repository.private and request.token not in self.tokens):
            known = request.token in self.tokens
            raise Refusal(404 if known else 401, "Repository not found", "RepoNotFound")
        return repository

    # Endpoints --------------------------------------------------------------------------------------------------------

    def whoami(self, request: Request) -> dict:
        self.require_user(request)
        role = {"accessToken": {"displayName": "test", "role": self.tokens[request.token]}}
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token", **role}}

    def validate_yaml(self, request: Request) -> dict:
        """Of a Space's card the Hub wants to know how to run it."""
        content, is_space = request.json()["content"], request.json().get("repoType") == "space"
        if is_space and not all(re.search(rf"^{name}: \S", content, flags=re.MULTILINE) for name in SPACE_FIELDS):
            return {"errors": [{"message": f"a Space's card needs {SPACE_FIELDS}"}], "warnings": []}
        if re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL):
            return {"errors": [], "warnings": []}
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}

    def create_repository(self, request: Request) -> dict:
        wanted = request.json()
        namespace, repo_type = wanted.get("organization") or self.user, wanted.get("type") or "model"
        self.require_writer(request, namespace)
        repo_id = f"{namespace}/{wanted['name']}"
        url = f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if (repo_type, repo_id) in self.repositories:
            raise Refusal(409, "You already created this repo", url=url)
        if repo_type == "space" and wanted.get("sdk") not in SPACE_SDKS:
            raise Refusal(400, f"a Space's sdk must be one of {SPACE_SDKS}")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.add_repository(repo_id, repo_type, private).sdk = wanted.get("sdk")
        return {"url": url, "name": repo_id, "id": repo_id}

    def info(self, request: Request, kind: str, repo_id: str, revision: str = "main") -> dict:
        repository = self.find(request, kind, repo_id)
        commit = repository.resolve(revision)
        return {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit,
            "private": repository.private,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": DATE,
            "lastModified": DATE,
            "siblings": [{"rfilename": path} for path in sorted(repository.commits[commit])],
        }

    def tree(self, request: Request, kind: str, repo_id: str, revision: str) -> list[dict]:
        """All files, without folders: what the client makes of a recursive listing."""
        repository = self.find(request, kind, repo_id)
        files = sorted(repository.commits[repository.resolve(revision)].items())
        return [
            {
                "type": "file",
                "path": path,
                "oid": file.oid,
                "size": len(file.content),
                **({"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}} if file.sha256 else {}),
            }
            for path, file in files
        ]

    def refs(self, request: Request, kind: str, repo_id: str) -> dict:
        repository = self.find(request, kind, repo_id)

        def entries(names: dict[str, str], prefix: str) -> list[dict]:
            return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in names.items()]

        branches = {name: commit for name, commit in repository.branches.items() if not name.startswith("refs/")}
        return {
            "branches": entries(branches, "refs/heads/"),
            "tags": entries(repository.tags, "refs/tags/"),
            "converts": [],
        }

    def check_access(self, request: Request, kind: str, repo_id: str, write: str | None) -> dict:
        self.find(request, kind, repo_id)
        if write:
            self.require_writer(request, repo_id.split("/")[0])
        return {}

    def create_branch(self, request: Request, kind: str, repo_id: str, branch: str) -> dict:
        repository = self.find(request, kind, repo_id)
        self.require_writer(request, repo_id.split("/")[0])
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = repository.resolve(request.json().get("startingPoint") or "main")
        return {}

    def create_tag(self, request: Request, kind: str, repo_id: str, revision: str) -> dict:
        repository = self.find(request, kind, repo_id)
        self.require_writer(request, repo_id.split("/")[0])
        name = request.json()["tag"]
        if name in repository.tags:
            raise Refusal(409, "Tag reference exists already")
        repository.tags[name] = repository.resolve(revision)
        return {}

    def preupload(self, request: Request, kind: str, repo_id: str, revision: str) -> dict:
        repository = self.find(request, kind, repo_id)
        self.require_user(request)
        present = repository.commits[repository.resolve(revision)]
        answers = []
        for entry in request.json()["files"]:
            path = entry["path"]
            large = path.endswith(LARGE_SUFFIXES) or entry["size"] >= LARGE_SIZE
            old = present.get(path)
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if old is None else old.sha256 or old.oid,
                }
            )
        return {"files": answers}

    def commit(self, request: Request, kind: str, repo_id: str, revision: str) -> dict:
        repository = self.find(request, kind, repo_id)
        parent = repository.resolve(revision)
        as_request = bool(request.query.get("create_pr"))
        self.require_user(request)
        if not as_request:
            self.require_writer(request, repo_id.split("/")[0])
        lines = [json.loads(line) for line in request.body.splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = self.apply(lines, dict(repository.commits[parent]))
        number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
        commit = repository.commit(f"refs/pr/{number}" if as_request else revision, files, header["summary"])
        address = f"{self.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        pull_request = {"pullRequestUrl": f"{address}/discussions/{number}"} if as_request else {}
        return {"success": True, "commitOid": commit, "commitUrl": f"{address}/commit/{commit}"} | pull_request

    def apply(self, lines: list[dict], files: dict[str, File]) -> dict[str, File]:
        """The files after a commit's operations. Raises `Refusal` for a large file that was not uploaded."""
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refusal(400, f"LFS object {value['oid']} does not exist")
                files[value["path"]] = File(self.objects[value["oid"]], value["oid"])
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[value["path"]]
        return files

    def lfs_batch(self, request: Request, kind: str | None, repo_id: str) -> dict:
        self.find(request, kind or "models", repo_id)
        self.require_user(request)
        answers = []
        for entry in request.json()["objects"]:
            oid, size = entry["oid"], entry["size"]
            answer: dict = {"oid": oid, "size": size}
            if oid not in self.objects:
                upload: dict = {"href": f"{self.url}/lfs/{oid}"}
                if self.part_size is not None and size > self.part_size:
                    numbers = range(1, 1 + -(-size // self.part_size))
                    parts = {str(number): f"{self.url}/lfs/{oid}/{number}" for number in numbers}
                    upload["header"] = {"chunk_size": str(self.part_size), **parts}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs-verify"}}
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def store_object(self, request: Request, oid: str) -> dict:
        """A whole large file, or (POST) the end of one sent in parts."""
        content = request.body
        if request.method == "POST":
            content = b"".join(part for _, part in sorted(self.parts.pop(oid, {}).items()))
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content is not what its SHA-256 says")
        self.objects[oid] = content
        return {}

    def store_part(self, request: Request, oid: str, number: str) -> "Answer":
        self.parts.setdefault(oid, {})[int(number)] = request.body
        return Answer(b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def verify_object(self, request: Request) -> dict:
        wanted = request.json()
        if len(self.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "no such object")
        return {}

    def download(self, request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> "Answer":
        repository = self.find(request, kind or "models", repo_id)
        commit = repository.resolve(revision)
        file = repository.commits[commit].get(path)
        if file is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers["X-Repo-Commit"] = commit
            raise refusal
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.sha256 or file.oid}"', "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(file.content, headers)
        start, size = int(wanted[1]), len(file.content)
        part = file.content[start : int(wanted[2]) + 1 if wanted[2] else None]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{size}"
        return Answer(part, headers, 206)


@dataclass
class Answer:
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


KIND = "(models|datasets|spaces)"
REPO = "([^/]+/[^/]+)"
PLACE = "(?:(datasets|spaces)/)?"  # before the name where files of another kind than models are
# Method, path, and what answers; the groups, unquoted, are its arguments.
ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", LocalHub.whoami),
    ("POST", "/api/validate-yaml", LocalHub.validate_yaml),
    ("POST", "/api/repos/create", LocalHub.create_repository),
    ("GET", f"/api/{KIND}/{REPO}", LocalHub.info),
    ("GET", f"/api/{KIND}/{REPO}/revision/(.+)", LocalHub.info),
    ("GET", f"/api/{KIND}/{REPO}/tree/([^/]+)", LocalHub.tree),
    ("GET", f"/api/{KIND}/{REPO}/refs", LocalHub.refs),
    ("GET", f"/api/{KIND}/{REPO}/auth-check(/write)?", LocalHub.check_access),
    ("POST", f"/api/{KIND}/{REPO}/branch/(.+)", LocalHub.create_branch),
    ("POST", f"/api/{KIND}/{REPO}/tag/(.+)", LocalHub.create_tag),
    ("POST", f"/api/{KIND}/{REPO}/preupload/(.+)", LocalHub.preupload),
    ("POST", f"/api/{KIND}/{REPO}/commit/(.+)", LocalHub.commit),
    ("POST", rf"/{PLACE}{REPO}\.git/info/lfs/objects/batch", LocalHub.lfs_batch),
    ("PUT|POST", "/lfs/([0-9a-f]{64})", LocalHub.store_object),
    ("PUT", r"/lfs/([0-9a-f]{64})/(\d+)", LocalHub.store_part),
    ("POST", "/lfs-verify", LocalHub.verify_object),
    ("GET|HEAD", f"/{PLACE}{REPO}/resolve/([^/]+)/(.+)", LocalHub.download),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Says nothing of clients that go away: they are killed here on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets the hub's faults strike, answers."""

    protocol_version = "HTTP/1.1"
    local_hub: LocalHub

    def log_message(self, *_) -> None:
        """Says nothing; `LocalHub.log` keeps the requests."""

    def respond(self) -> None:
        hub, url = self.local_hub, urlsplit(self.path)
        line = f"{self.command} {self.path}"
        with hub.lock:
            hub.log.append(line)
            fault = next((fault for fault in hub.faults if fault.strikes(line)), None)
        if fault is not None and fault.cut_request is not None:
            self.rfile.read(min(fault.cut_request, int(self.headers.get("Content-Length") or 0)))
            return self.cut(fault)
        request = Request(
            self.command,
            url.path,
            {name: values[0] for name, values in parse_qs(url.query).items()},
            {name.lower(): value for name, value in self.headers.items()},
            self.read_body(),
            (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None,
        )
        answer = self.answer(request, fault)
        if fault is not None and fault.cut_response is not None:
            if fault.cut_response > 0:
                self.send(answer, fault.cut_response)
            return self.cut(fault)
        self.send(answer)
        if fault is not None:
            fault.fired.set()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def cut(self, fault: Fault) -> None:
        self.close_connection = True
        fault.fired.set()
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        try:
            if fault is not None and fault.status is not None:
                raise Refusal(fault.status, fault.message, errors=[{"message": fault.message}])
            with self.local_hub.lock:
                found = self.dispatch(request)
        except Refusal as refusal:
            return Answer(json.dumps(refusal.content).encode(), refusal.headers, refusal.status)
        if isinstance(found, Answer):
            return found
        return Answer(json.dumps(found).encode(), {"Content-Type": "application/json"})

    def dispatch(self, request: Request):
        for methods, pattern, function in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match is not None and request.method in methods.split("|"):
                groups = (None if group is None else unquote(group) for group in match.groups())
                return function(self.local_hub, request, *groups)
        raise Refusal(404, f"the local Hub does not know {request}")

    def send(self, answer: Answer, limit: int | None = None) -> None:
        """Sends the answer; with a limit, only so many bytes of a body announced as whole."""
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:limit])
            self.wfile.flush()
