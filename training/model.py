# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The model that a training run trains, from its flags, and the checkpoint folder it becomes."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from flux_hf.loading import CLASSIFIERS, load_classifier, load_processor
from flux_hf.protocol import check_exact_budgets
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import ModelArguments, ObjectiveArguments, TrainedModelArguments
from .data.targets import MULTI_LABEL, with_numbers
from .engine.optim import freeze_layers
from .objectives import FluxMulti, FluxObjective, FluxSingle


logger = get_logger(__name__)


def build_model(
    args: ModelArguments, objective: ObjectiveArguments, labels: list[str], multi_label: bool = False
) -> tuple[PreTrainedModel, FluxViTVideoProcessor, dict[str, int]]:
    """The model, pretrained or new, with one output a label and one head a budget, and its processor.

    Returns:
        Model, processor, and the model's ids of what its labels may be called: their names and the data's.

    Raises:
        ValueError: it selects by a threshold, or its clips are not square.
    """
    changes = {"num_frames": args.num_frames, "image_size": args.size, "drop_path_rate": args.drop_path_rate}
    changes["classifier_dropout"] = args.classifier_dropout
    changes = {name: value for name, value in changes.items() if value is not None}
    if multi_label:
        changes["problem_type"] = MULTI_LABEL
    if args.model_name_or_path:
        model, label2id = _pretrained_model(args, labels, changes)
    else:
        given = json.loads(Path(args.config_name).read_text(encoding="utf-8"))
        fields = {**given, **changes, **label_fields(labels), **_budget_fields(objective, given)}
        config = AutoConfig.for_model(fields.pop("model_type", "fluxvit"), **fields)
        model = CLASSIFIERS[config.model_type]._from_config(config, **args.model_options())
        label2id = dict(model.config.label2id)
    check_exact_budgets(model, "training")
    model = model.with_token_budgets(_wanted_budgets(objective, model.config))
    return model, build_processor(args, model.config), label2id


def build_processor(args: TrainedModelArguments, config: PreTrainedConfig) -> FluxViTVideoProcessor:
    """A new model's processor, or the checkpoint's, for the default clip of the config.

    Raises:
        ValueError: that clip is not square.
    """
    height, width = config.image_height_width
    if height != width:
        raise ValueError(f"clips must be square: give --size, the model's image_size is {config.image_size}")
    settings = {"num_frames": config.num_frames, "patch_size": config.patch_size}
    if not args.model_name_or_path:
        return FluxViTVideoProcessor(size=height, **settings)
    settings.update(args.hub_options(), token_plan=None)
    processor = load_processor(args.model_name_or_path, config, **settings)
    if dict(processor.crop_size) != {"height": height, "width": width}:
        processor = load_processor(args.model_name_or_path, config, size=height, **settings)
    return processor


def _pretrained_model(args: ModelArguments, labels: list[str], changes: dict) -> tuple[PreTrainedModel, dict[str, int]]:
    # Float32 whatever the checkpoint's dtype: in bfloat16 most steps are too small to change a weight. Token plan and
    # automatic budgets were found for the old weights.
    options = {**args.hub_options(), **changes, **args.model_options(), "dtype": torch.float32}
    options |= {"token_plan": None, "auto_budgets": None}
    model = load_classifier(args.model_name_or_path, **options)
    return model, take_labels(model, labels, anew=args.new_classifiers)


def take_labels(model: PreTrainedModel, labels: list[str], anew: bool = False) -> dict[str, int]:
    """Gives a model one output for each of the data's labels: the rows that its classifiers have for them, or new ones.

    A label is known to the model by name. Where none of its names is a number, numbers below their count are known
    too, if all labels are such: official lists are of indices.

    Args:
        model: Is changed in place.
        labels: The data's, each once.
        anew: Take none of its rows.

    Returns:
        The model's ids of what its labels may be called: their names and, where these differ, the data's.
    """
    PartialState()  # the logger asks which process this is
    names = {name: index for index, name in model.config.id2label.items()}
    numbers = with_numbers(names)
    known = numbers if all(label in numbers and label.isdecimal() for label in labels) else names
    rows = {label: None if anew else known.get(label) for label in labels}
    own = {index: name for name, index in names.items()}
    order = sorted(labels, key=lambda label: (rows[label] is None, rows[label] or 0))  # stable: new ones as they come
    called = [label if rows[label] is None else own[rows[label]] for label in order]
    new = sum(row is None for row in rows.values())
    if new:
        logger.warning(
            f"{new} of {len(labels)} labels are none of the checkpoint's {len(names)}: their rows start anew"
        )
    if known is not names:
        logger.info(f"labels are numbers, taken as the checkpoint's: {order[0]} is {called[0]!r}")
    taken = [rows[label] for label in order]
    if taken != list(range(len(names))):
        _set_rows(model, taken)
        model.config.update(label_fields(called))
        model.num_labels = model.config.num_labels
    return {**{name: index for index, name in enumerate(called)}, **{label: index for index, label in enumerate(order)}}


def _set_rows(model: PreTrainedModel, rows: list[int | None]) -> None:
    """Makes classifiers of these rows of the old ones; None starts anew, in all of them alike."""
    kept = [(new, old) for new, old in enumerate(rows) if old is not None]
    into, out_of = (torch.tensor(part, dtype=torch.long) for part in zip(*kept, strict=True)) if kept else ([], [])
    for index, old in enumerate(model.classifiers):
        classifier = nn.Linear(old.in_features, len(rows), device=old.weight.device, dtype=old.weight.dtype)
        nn.init.trunc_normal_(classifier.weight, std=model.config.initializer_range)
        nn.init.zeros_(classifier.bias)
        with torch.no_grad():
            classifier.weight[into], classifier.bias[into] = old.weight[out_of], old.bias[out_of]
        model.classifiers[index] = classifier


def label_fields(labels: list[str]) -> dict[str, dict]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def _budget_fields(objective: ObjectiveArguments, given: dict) -> dict[str, Any]:
    budgets = sorted(objective.token_budgets or given.get("token_budgets", []), reverse=True)
    return {"token_budgets": budgets, "token_budget": budgets[0]} if budgets else {}


def _wanted_budgets(objective: ObjectiveArguments, config: PreTrainedConfig) -> list[int]:
    if objective.token_budgets:
        return sorted(set(objective.token_budgets), reverse=True)
    if objective.objective == "single":  # the official script's choice among three: the middle one
        return [config.token_budgets[len(config.token_budgets) // 2]]
    return config.token_budgets


def add_lora(model: PreTrainedModel, args: ModelArguments) -> PeftModel:
    """Puts low-rank updates into the layers, which else are frozen, as are the embeddings; heads are trained.

    Returns:
        peft's view of the model, which itself is changed in place.
    """
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or 2 * args.lora_rank,
        lora_dropout=args.lora_dropout,
        target_modules=model.lora_targets(),
    )
    adapted = get_peft_model(model, config)
    for head in model.heads():
        head.requires_grad_(True)
    return adapted


def build_objective(
    model: PreTrainedModel,
    args: ModelArguments,
    objective: ObjectiveArguments,
    class_weights: torch.Tensor | None = None,
) -> FluxObjective:
    """The objective around the model, made ready for training: what is frozen, recomputed, adapted and compiled."""
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.lora_rank:
        add_lora(model, args)
    freeze_layers(model, args.freeze_layers)
    if args.torch_compile:
        model.compile_layers()
    if objective.objective == "single":
        model.freeze_alignment()
        return FluxSingle(model, class_weights)
    if not objective.alignment_weight:
        model.freeze_alignment()
    return FluxMulti(model, objective.alignment_weight, class_weights)


def export_model(
    directory: Path, weights: dict[str, Any], args: ModelArguments, config: PreTrainedConfig, processor
) -> None:
    """Saves the model of an objective's weights, low-rank updates merged, and its processor."""
    weights = {name.removeprefix("model."): weight for name, weight in weights.items()}
    model = CLASSIFIERS[config.model_type](config)
    if args.lora_rank:
        adapted = add_lora(model, args)
        model.load_state_dict(weights)
        adapted.save_pretrained(directory / "adapter")
        model = adapted.merge_and_unload()
    else:
        model.load_state_dict(weights)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
