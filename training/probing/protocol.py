# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Which probes are fitted on which clips: all of them, folds, few of each class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .probes import ATTENTIVE, KNN, ProbeSettings, fit_probe
from .report import ProbeResult
from .samples import Samples, check_classes, draw_shots, splits


PREDICTION_COLUMNS = ("point", "probe", "fold", "name", "label", "predicted")


@dataclass(frozen=True)
class Protocol:
    """What is asked of the features.

    Args:
        probes: Names of probes to fit on all training clips.
        shots: Those of them that know no tokens are also fitted on so many clips of each class,
        draws: drawn so often.
        folds: Of the training clips, where no others are to be tested.
    """

    probes: Sequence[str]
    shots: Sequence[int] = ()
    draws: int = 5
    folds: int | None = None

    def check(self, train: Samples, test: Samples | None, classes: Sequence[str], neighbors: int) -> None:
        """Raises ValueError for a split that lacks clips of some class, or has fewer than neighbours."""
        train = replace(train, vectors=None, tokens=None)  # not to be copied for this
        for training, tested in splits(train, test, self.folds):
            check_classes(training, tested, classes, max(self.shots, default=0))
            if KNN in self.probes and neighbors > len(training):
                raise ValueError(f"--neighbors must be at most the {len(training)} training clips, got {neighbors}")


def run_protocol(
    protocol: Protocol,
    train: Samples,
    test: Samples | None,
    classes: Sequence[str],
    settings: ProbeSettings,
    point: str,
    tokens: int,
) -> tuple[list[ProbeResult], list[tuple]]:
    """Fits the probes at a point.

    Returns:
        The results, and the rows of predictions.csv, which are of the probes that saw all training clips.

    Raises:
        ValueError: as `Protocol.check` and `fit_probe`.
    """
    protocol.check(train, test, classes, settings.neighbors)  # some may not have been read
    results: dict[tuple[str, int | None], ProbeResult] = {}
    rows = []

    def fit(name: str, training: Samples, tested: Samples, shots: int | None, settings: ProbeSettings) -> np.ndarray:
        answer = fit_probe(name, training, tested, settings)
        result = results.setdefault((name, shots), ProbeResult(point, tokens, name, shots))
        result.accuracies.append(float((answer.predicted == tested.labels).mean()))
        result.chosen.append(answer.chosen)
        return answer.predicted

    for fold, (training, tested) in enumerate(splits(train, test, protocol.folds)):
        for name in protocol.probes:
            labels = zip(tested.labels, fit(name, training, tested, None, settings), strict=True)
            named = zip(tested.names, labels, strict=True)
            rows += [(point, name, fold, clip, classes[label], classes[found]) for clip, (label, found) in named]
        for shots in protocol.shots:
            few = replace(settings, neighbors=min(settings.neighbors, shots))  # else other classes outvote the nearest
            for draw in range(protocol.draws):
                drawn = draw_shots(training.labels, shots, settings.seed, draw)
                some = replace(training, tokens=None, groups=None).at(drawn)
                for name in protocol.probes:
                    if name not in ATTENTIVE:
                        fit(name, some, tested, shots, few)
    return list(results.values()), rows
