"""A process with the settings of a `LocalHub`'s client, which does each job in a fork of itself.

Those settings are read when the client is imported, and importing takes seconds; a fork takes none. A job can be killed
at any moment. Run as a script, this file is that process; `HubProcess` starts it and gives it jobs.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path


REPOSITORY = Path(__file__).parents[2]


@dataclass
class Finished:
    """Exit status, negative for the signal that killed it, and what was printed."""

    status: int
    output: str
    errors: str


class HubProcess:
    """Use as a context manager; one job at a time.

    Args:
        environment: Of `LocalHub.environment`.
        folder: For what jobs print.
    """

    def __init__(self, environment: dict[str, str], folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**environment, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def start(self, job: str, *arguments, **environment: str | None) -> int:
        """Starts a job with these variables changed (None removes one); returns its process id."""
        order = {"job": job, "arguments": arguments, "environment": environment, "folder": str(self.folder)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def finished(self, status: str) -> Finished:
        return Finished(int(status), (self.folder / "output").read_text(), (self.folder / "errors").read_text())

    def run(self, job: str, *arguments, **environment: str | None) -> Finished:
        self.start(job, *arguments, **environment)
        return self.finished(self.process.stdout.readline())

    def run_until(self, event: threading.Event, job: str, *arguments) -> Finished:
        """Kills the job when the event is set; a job that ends before is left to."""
        pid, ended = self.start(job, *arguments), threading.Event()

        def kill() -> None:
            while not ended.is_set():
                if event.wait(timeout=0.05):
                    return os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        status = self.process.stdout.readline()
        ended.set()
        killer.join()
        return self.finished(status)


# In the process ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    from conversion.push_to_hub import main

    return main(list(arguments))


def command_that_dies(stop: int, *arguments: str) -> int:
    """The command, killed before rename number `stop`, if it comes so far."""
    count = 0

    def dying(rename):
        def counted(*names, **options):
            nonlocal count
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(*names, **options)

        return counted

    os.replace, os.rename = dying(os.replace), dying(os.rename)
    return command(*arguments)


def send_staged(staging: str, target: dict, keep_card: bool = False) -> int:
    """The part of a push that talks to the Hub, for a folder that `stage` made."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    from conversion.hub import (
        Target,
        check_tag,
        explain,
        find_changes,
        full_repo_id,
        keep_remote_card,
        look_at,
        send,
    )

    api, target = HfApi(), Target(**target)
    try:
        _, user = full_repo_id(api, target.repo_id)
        remote = look_at(api, target, user)
        changes = find_changes(Path(staging), remote)
        if keep_card:
            keep_remote_card(api, target, remote, changes)
        check_tag(target, remote, changes)
        print(*send(api, target, remote, changes))
    except (ValueError, OSError, RuntimeError, HTTPError) as error:
        print(explain(error, target.repo_id), file=sys.stderr)
        return 1
    return 0


def push_objects(checkpoint: str) -> int:
    """`push_to_hub` of the classes themselves."""
    from transformers import pipeline

    from flux_hf import (
        FluxViTForVideoClassification,
        FluxViTVideoClassificationPipeline,
        FluxViTVideoProcessor,
    )

    FluxViTForVideoClassification.from_pretrained(checkpoint).push_to_hub("pieces")
    FluxViTVideoProcessor.from_pretrained(checkpoint).push_to_hub("pieces")
    classify = pipeline("video-classification", model=checkpoint, pipeline_class=FluxViTVideoClassificationPipeline)
    classify.push_to_hub("whole", private=True)
    return 0


def snapshot(repo_id: str, revision: str) -> int:
    from huggingface_hub import snapshot_download

    print(snapshot_download(repo_id, revision=revision))
    return 0


JOBS = {
    "command": command,
    "dies": command_that_dies,
    "send": send_staged,
    "objects": push_objects,
    "snapshot": snapshot,
}


def work(order: dict) -> None:
    """Does a job in this process, which was forked for it, and ends it."""
    status = 1
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(Path(order["folder"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    try:
        for name, value in order["environment"].items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        status = JOBS[order["job"]](*order["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    import transformers.pipelines  # noqa: F401  what jobs need, imported once

    import conversion.push_to_hub  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            work(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
