# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What the study compares: methods, the model, clips and budgets, the points measured, and what a training costs."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from flux_hf.loading import CLASSIFIERS

from ..arguments import read_recipe
from ..data.sampling import ClipShape, FlexibleSampling
from ..inference.points import EvalPoint
from .motion_clips import PATTERNS, MotionClipConfig


RECIPES = Path(__file__).parent / "recipes"
METHODS = {
    "fixed": "fixed grid",
    "fixed_equal": "fixed grid, equal compute",
    "single": "Flux-Single",
    "multi_unaligned": "Flux-Multi, not aligned",
    "multi": "Flux-Multi",
}
BASELINE = "fixed_equal"  # as many multiply-adds as Flux-Multi's training
WAYS = {"direct": "direct", "fewer": "fewer frames", "to": "TO"}
# In place of the model's own selector, at test time.
SELECTORS = {
    "group_dynamic": "group-dynamic",
    "dynamic_l2": "no groups",
    "tube": "random tubes",
    "random": "random",
}
OWN_SELECTOR = "group_dynamic"
SCHEDULE = ("max_train_steps", "num_warmup_steps")
NUM_LOOKS = 15  # at the validation clips, spread over a training

# Two frames a patch: a single layer can then see motion. LayerScale and initialisation are for short runs from scratch.
# All encoders have 2 layers of width 96 and the same patches.
ENCODERS = ("fluxvit", "videomae", "vjepa2")
MODEL_CONFIGS = {
    encoder: json.loads((RECIPES / f"model_{encoder}.json").read_text(encoding="utf-8")) for encoder in ENCODERS
}
TUBELET = MODEL_CONFIGS["fluxvit"]["tubelet_size"]
# The class is where the object goes and which pattern it bears; how fast it goes is left open. Of 8 frames the fastest
# crosses two fifths of the frame between two, of 32 a tenth.
CLIPS = MotionClipConfig(
    size=48,
    num_frames=32,
    path_length=(0.6, 3.2),
    patterns=PATTERNS[:2],
    object_radius=(0.13, 0.18),
    num_still_objects=3,
    background_contrast=12.0,
)
NUM_FRAMES, SIZE = 8, 42
TOKENS = 144  # of 4 x 6 x 6 patches: the default clip's
BUDGETS = (TOKENS, TOKENS // 2, TOKENS // 4, TOKENS // 8)
SEARCH_FRAMES, SEARCH_SIZES = (8, 16, 32), (42, 49)


def merged_recipe(recipe: str, method: str, encoder: str = "fluxvit") -> dict[str, Any]:
    """The flags of a run: those of all runs of the kind of data, and over them those of the method.

    The fixed grid at equal compute takes as many more steps as Flux-Multi's cost more.
    """
    own = "fixed" if method == "fixed_equal" else method
    flags = {**read_recipe(RECIPES / f"{recipe}.yaml"), **read_recipe(RECIPES / f"{own}.yaml")}
    if method == "fixed_equal":
        ratio = step_cost(merged_recipe(recipe, "multi"), encoder) / step_cost(flags, encoder)
        flags |= {name: round(ratio * flags[name]) for name in SCHEDULE}
    return flags


def with_steps(flags: dict[str, Any], share: float) -> dict[str, Any]:
    """The flags of a run of a share of the steps, at least one; warm-up and looks at the validation clips as well."""
    scaled = {name: max(1, round(share * flags[name])) for name in SCHEDULE}
    return {**flags, **scaled, "eval_steps": str(max(1, scaled["max_train_steps"] // NUM_LOOKS))}


def points_of(plan: dict[int, tuple[int, int]]) -> dict[str, dict[int, EvalPoint]]:
    """What is measured: way of `WAYS` -> budget -> point; fewer frames only where whole tubelets are left."""
    fewer = {budget: NUM_FRAMES * budget // TOKENS for budget in BUDGETS}
    return {
        "direct": {budget: EvalPoint(NUM_FRAMES, SIZE, budget) for budget in BUDGETS},
        "fewer": {budget: EvalPoint(frames, SIZE, budget) for budget, frames in fewer.items() if frames >= TUBELET},
        "to": {budget: EvalPoint(*plan[budget], budget) for budget in BUDGETS},
    }


def step_cost(flags: dict[str, Any], encoder: str = "fluxvit") -> float:
    """Multiply-adds of an optimiser step, forward and backward, on average over the clip shapes.

    A backward pass counts as two forward ones. All patches of a clip are embedded, once for all budgets.
    """
    model = new_model(encoder)
    if flags["sampling"] == "fixed":
        shapes = [ClipShape(NUM_FRAMES, SIZE)]
    else:
        window = FlexibleSampling(*(tuple(flags[name]) for name in ("frames", "sizes", "token_window")))
        shapes = window.legal_shapes(model.config.patch_size, model.config.tubelet_size)
    of_shape = []
    for shape in shapes:
        points = [EvalPoint(shape.num_frames, shape.size, budget) for budget in flags["token_budgets"]]
        dense = point_flops(model, replace(points[0], token_budget=None))
        of_shape.append(dense["embedding"] + sum(point_flops(model, point)["encoder"] for point in points))
    return 3 * flags["per_device_train_batch_size"] * statistics.mean(of_shape)


def training_cost(flags: dict[str, Any], encoder: str = "fluxvit") -> dict[str, float]:
    """What a run costs: optimiser steps, clips seen, and 10^12 multiply-adds."""
    steps = flags["max_train_steps"]
    return {
        "steps": steps,
        "clips": steps * flags["per_device_train_batch_size"],
        "tera_multiply_adds": round(steps * step_cost(flags, encoder) / 1e12, 2),
    }


def new_model(encoder: str = "fluxvit") -> PreTrainedModel:
    fields = {
        **MODEL_CONFIGS[encoder],
        "token_budgets": [TOKENS],
        "token_budget": None,
        "num_labels": len(CLIPS.labels),
    }
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return CLASSIFIERS[config.model_type](config)


def point_flops(model: PreTrainedModel, point: EvalPoint) -> dict[str, int]:
    """Multiply-adds of one view: of embedding every patch, which the selector needs, and of all that comes after."""
    config = model.config
    patch = config.num_channels * config.tubelet_size * config.patch_size**2 * config.hidden_size
    kept, dense = point.kept_tokens(model), point.dense_tokens(config)
    whole = model.flops(point.num_frames, point.size, point.token_budget or dense)
    return {"embedding": dense * patch, "encoder": whole - kept * patch}
