# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels of parts of videos, and the csv that holds them."""

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flux_hf.auto_budgets import AUTO, BudgetLadder, logits_at_auto_budgets
from flux_hf.checkpoint_files import BYTES, marked, remove_leftovers_of, replacing, write_csv
from flux_hf.protocol import VideoTokenClassifier, logits_at_budgets
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from ..arguments import CheckpointArguments
from ..data.reader import Clip
from ..data.targets import MULTI_LABEL
from ..digests import weights_digest
from .command import load_checkpoint
from .measures import refuse_nan
from .parts import Part
from .points import EvalPoint, resolve_point
from .prediction import normalize
from .units import ShardFolder, read_rows


@dataclass(frozen=True)
class Scores:
    """Scores of views: a `Measure`.

    Args:
        model, processor, point, accelerator: What makes them.
        ladder: With it the budget is chosen for each video, by all its views.
        num_views: Of a video.
    """

    model: VideoTokenClassifier
    processor: FluxViTVideoProcessor
    point: EvalPoint
    accelerator: Accelerator
    ladder: BudgetLadder | None = None
    num_views: int = 1

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, S, S) uint8 -> (B, num_labels) float32, as the pipeline gives them: of a multi-label model the
        sigmoid, of a regression the values, else the softmax.

        With a ladder (B, num_labels + 1), the budget that was chosen behind the scores.
        """
        values = normalize(pixels.to(self.accelerator.device), self.processor)
        if self.ladder is not None:
            with self.accelerator.autocast():
                logits, budgets = logits_at_auto_budgets(self.model, values, self.ladder, self.num_views)
            of_views = budgets.repeat_interleave(self.num_views)[:, None]
            return torch.cat([logits.float().softmax(-1), of_views.float()], dim=1)
        with self.accelerator.autocast():
            [logits] = logits_at_budgets(self.model, values, [self.point.token_budget])
        logits, problem_type = logits.float(), self.model.config.problem_type
        if problem_type == "regression":
            return logits
        return logits.sigmoid() if problem_type == MULTI_LABEL else logits.softmax(-1)


@dataclass(frozen=True)
class ScoreSource:
    """Loads what makes scores.

    Args:
        checkpoint: Names it.
        num_frames, size, token_budget: As in `resolve_point`; or "auto".
        num_views: Of a video, which decide on an automatic budget together.
    """

    checkpoint: CheckpointArguments
    num_frames: int | None
    size: int | None
    token_budget: int | str | None
    num_views: int = 1

    def __call__(self, accelerator: Accelerator) -> Scores:
        """On the accelerator's device.

        Raises:
            ValueError: a point that the model cannot be shown, or no automatic budgets.
        """
        model, processor = load_checkpoint(self.checkpoint, accelerator)
        if self.token_budget == AUTO:
            ladder = BudgetLadder.of(model.config)
            point = EvalPoint(*ladder.clip(self.num_frames, self.size))
            return Scores(model, processor, point, accelerator, ladder, self.num_views)
        point = resolve_point(model.config, processor, self.num_frames, self.size, self.token_budget)
        return Scores(model, processor, point, accelerator)


def identity_of(model: nn.Module, clips: Sequence[Clip], facts: Any) -> str:
    """12 hexadecimal digits of what labels depend on: the model's weights, the clips' names and places, json facts."""
    digest = hashlib.sha256(json.dumps([facts, weights_digest(model)]).encode())
    for clip in clips:
        digest.update(repr(clip).encode())
    return digest.hexdigest()[:12]


class LabelShards(ShardFolder):
    """The rows of a csv in parts, in the folder `OUTPUT.IDENTITY.partial` until all are there.

    Other work has another identity, so that nothing is ever gone on with but the same.

    Args:
        output: The csv to be.
        identity: Of `identity_of`.
        names: Of the labels.
        top_k: Labels of a part, a row each.
        of_windows: Whether rows say from when to when they hold.
        with_budgets: Whether rows say at which budget a label was found: it stands behind the scores.
    """

    def __init__(
        self,
        output: Path,
        identity: str,
        names: dict[int, str],
        top_k: int,
        of_windows: bool,
        with_budgets: bool = False,
    ):
        super().__init__(output.with_name(f"{output.name}.{identity}.partial"), "labels-{:06}.csv")
        self.output, self.names, self.top_k = output, names, min(top_k, len(names))
        self.times = ("start", "end") if of_windows else ()
        self.budget = ("token_budget",) if with_budgets else ()
        self.chosen: Counter[str] = Counter()

    @property
    def header(self) -> tuple[str, ...]:
        return ("name", *self.times, "rank", "label", "score", *self.budget, "error")

    def write(self, unit: int, parts: Sequence[Part], values: Tensor | None) -> None:
        """Raises FloatingPointError where scores are not numbers."""
        if values is not None:
            refuse_nan([part for part in parts if not part.error], values.isnan().any(1))
        write_csv(self.path(unit), self.header, self._rows(parts, values))

    def _rows(self, parts: Sequence[Part], values: Tensor | None) -> Iterator[list]:
        """`top_k` of a part, best first, or one with the error."""
        scores = iter(()) if values is None else iter(values)
        for part in parts:
            begin = [part.name, *(getattr(part, time) for time in self.times)]
            if part.error:
                yield [*begin, "", "", "", *("" for _ in self.budget), part.error]
                continue
            of_part = next(scores)
            budget = [int(of_part[-1]) for _ in self.budget]
            best, order = of_part[: len(self.names)].sort(descending=True, stable=True)
            for rank, (score, index) in enumerate(zip(best[: self.top_k].tolist(), order.tolist(), strict=False), 1):
                yield [*begin, rank, self.names[index], score, *budget, ""]

    def finish(self, num_units: int) -> int:
        """Joins all parts in `output`, and removes them and what runs for it that were cut short left; the errors.

        `chosen` counts how often each budget was, where rows say it.
        """
        failed, rank = 0, self.header.index("rank")
        with replacing(self.output, durable=True) as temporary:
            with open(temporary, "w", newline="", encoding="utf-8", errors=BYTES) as file:
                writer = csv.writer(file)
                writer.writerow(self.header)
                for unit in range(num_units):
                    for row in read_rows(self.path(unit)):
                        writer.writerow(row)
                        failed += bool(row[-1])
                        if self.budget and row[rank] == "1":
                            self.chosen[row[-2]] += 1
        for other in marked(self.output, "", ".partial"):
            shutil.rmtree(other)
        remove_leftovers_of(self.output)
        return failed
