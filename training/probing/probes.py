# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Probes on frozen features, fitted on some clips and asked about others; all choices are made on the first."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .attentive import AttentiveTraining, best_probe, probe_logits, train_probes
from .samples import Samples


INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # rising, for of equals the first is taken
INNER_FOLDS = 5
LINEAR, KNN = "linear", "knn"
ATTENTIVE = {"attentive": 1, "attentive4": 4}  # blocks
PROBES = (LINEAR, KNN, *ATTENTIVE)


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are fitted.

    Args:
        neighbors: k of k-NN.
        rates: (learning rate, weight decay) of the attentive probes.
        training: How these are trained.
        device: Where.
        seed: Of what is drawn.
    """

    neighbors: int = 5
    rates: Sequence[tuple[float, float]] = ((1e-3, 0.01),)
    training: AttentiveTraining = field(default_factory=AttentiveTraining)
    device: torch.device = torch.device("cpu")
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a probe says of the tested clips (n,), and what was chosen for it on the others."""

    predicted: np.ndarray
    chosen: dict[str, Any]


def inner_folds(samples: Samples, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows to choose by), five times or as often as the clips allow, none if they are too few.

    Classes are spread evenly, groups stay whole.
    """
    counts = np.unique(samples.labels, return_counts=True)[1]
    parts = min(INNER_FOLDS, counts.max())
    if samples.groups is not None:
        parts = min(parts, len(np.unique(samples.groups)))
    if parts < 2:
        return []
    kind = StratifiedKFold if samples.groups is None else StratifiedGroupKFold
    splitter = kind(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of fewer clips is held out in some folds alone: so be it
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = list(splitter.split(samples.vectors, samples.labels, samples.groups))
    return [(fit, held) for fit, held in folds if len(held) and len(np.unique(samples.labels[fit])) > 1]


def fit_linear(train: Samples, test: Samples, settings: ProbeSettings) -> Answer:
    """Logistic regression on standardised vectors, its penalty chosen by cross-validation within the training clips.

    Where these are too few for that, one of each class, the penalty is scikit-learn's default.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = inner_folds(train, settings.seed)
    if not folds:
        return Answer(model.fit(train.vectors, train.labels).predict(test.vectors), {"C": 1.0})
    search = GridSearchCV(model, {"logisticregression__C": list(INVERSE_PENALTIES)}, cv=folds)
    predicted = search.fit(train.vectors, train.labels).predict(test.vectors)
    return Answer(predicted, {"C": search.best_params_["logisticregression__C"]})


def fit_knn(train: Samples, test: Samples, settings: ProbeSettings) -> Answer:
    """The label that most of the k nearest training clips have, by the cosine of their vectors."""
    model = KNeighborsClassifier(settings.neighbors, metric="cosine", algorithm="brute")
    return Answer(model.fit(train.vectors, train.labels).predict(test.vectors), {"k": settings.neighbors})


def fit_attentive(train: Samples, test: Samples, settings: ProbeSettings, blocks: int) -> Answer:
    """An attentive probe. Rate and decay are those of the probe of the grid that does best on a fifth of the training
    clips, which it was not trained on; with them one is trained on all training clips.

    V-JEPA takes the best of the grid, and of the epochs, by the accuracy on the tested clips; here they choose nothing.

    Raises:
        ValueError: too few clips to choose by.
    """
    tokens, labels, how = train.tokens, torch.from_numpy(train.labels), settings.training
    num_classes = int(labels.max()) + 1
    best = 0
    if len(settings.rates) > 1:
        folds = inner_folds(train, settings.seed)
        if not folds:
            raise ValueError(f"{len(train)} training clips are too few to choose among {len(settings.rates)} rates by")
        fit, held = map(torch.from_numpy, folds[0])
        grid = train_probes(tokens[fit], labels[fit], num_classes, blocks, settings.rates, how, settings.device)
        best = best_probe(probe_logits(grid, tokens[held], how.batch_size, settings.device), labels[held])
    rates = [settings.rates[best]]
    probe = train_probes(tokens, labels, num_classes, blocks, rates, how, settings.device)
    [logits] = probe_logits(probe, test.tokens, how.batch_size, settings.device)
    return Answer(logits.argmax(-1).numpy(), dict(zip(("learning_rate", "weight_decay"), rates[0], strict=True)))


def fit_probe(name: str, train: Samples, test: Samples, settings: ProbeSettings) -> Answer:
    """One of `PROBES`. Raises as they do."""
    if name in ATTENTIVE:
        return fit_attentive(train, test, settings, ATTENTIVE[name])
    return (fit_linear if name == LINEAR else fit_knn)(train, test, settings)
