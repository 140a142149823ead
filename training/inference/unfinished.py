# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A csv of labels that is written as they come, and that a later run goes on with where one was cut short."""

import csv
import glob
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flux_hf.checkpoint_files import BYTES, flush_tree, remove_leftovers_of, write_csv

from ..data.reader import Clip
from ..digests import weights_digest


HEADER = ("name", "rank", "label", "score", "error")


@dataclass(frozen=True)
class Done:
    """What is written already: rows without the header, clips, and how many of these could not be read."""

    rows: int = 0
    clips: int = 0
    failed: int = 0


def identity_of(model: nn.Module, clips: Iterable[Clip], facts: Any) -> str:
    """12 hexadecimal digits of what labels depend on: the model's weights, the clips' names and places, json facts."""
    digest = hashlib.sha256(json.dumps([facts, weights_digest(model)]).encode())
    for clip in clips:
        digest.update(repr(clip).encode())
    return digest.hexdigest()[:12]


class UnfinishedCsv:
    """`OUTPUT.IDENTITY.partial`, which becomes `output` when it is whole. For one process.

    Clips stand in their order, each with its rows for rank 1, 2, ... or one with the error. Other runs' identities
    differ, so that nothing is ever gone on with but the same work.

    Args:
        output: The csv to be.
        identity: Of `identity_of`.
    """

    def __init__(self, output: Path, identity: str):
        self.output = output
        self.path = output.with_name(f"{output.name}.{identity}.partial")

    def resume(self, clips: Sequence[Clip], top_k: int) -> Done:
        """Cuts the file behind the last clip that has all its `top_k` labels, or makes it with its header.

        Clips behind that one which could not be read are tried again: what ended the run may have been the reason.
        """
        done = self._count(clips, top_k) if self.path.exists() else Done()
        kept = itertools.islice(self._rows(), done.rows) if done.rows else []
        write_csv(self.path, HEADER, kept)
        return done

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Writes rows; once this returns, no kill takes them away."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        with open(self.path, "a", newline="", encoding="utf-8", errors=BYTES) as file:
            file.write(text.getvalue())

    def finish(self) -> None:
        """Gives the file its name, and removes what other runs that were cut short left for that name."""
        flush_tree(self.path)
        os.replace(self.path, self.output)
        for other in self.output.parent.glob(f"{glob.escape(self.output.name)}.*.partial"):
            other.unlink()
        remove_leftovers_of(self.output)

    def _rows(self) -> Iterable[list[str]]:
        """Without the header; the last one may be cut."""
        with open(self.path, newline="", encoding="utf-8", errors=BYTES) as file:
            yield from itertools.islice(csv.reader(file), 1, None)

    def _count(self, clips: Sequence[Clip], top_k: int) -> Done:
        done, seen, failed, rank = Done(), 0, 0, 0
        for number, cells in enumerate(self._rows(), start=1):
            if len(cells) != len(HEADER) or seen == len(clips) or cells[0] != clips[seen].name:
                break
            if cells[1] == "" and rank == 0:
                seen, failed = seen + 1, failed + 1
            elif cells[1] != str(rank + 1):
                break
            elif rank + 1 < top_k:
                rank += 1
            else:
                seen, rank = seen + 1, 0
                done = Done(number, seen, failed)
        return done
