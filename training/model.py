# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The model that a training run trains, from its flags, and the checkpoint folder it becomes."""

import json
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from flux_hf.configuration_fluxvit import FluxViTConfig
from flux_hf.modeling_fluxvit import FluxViTForVideoClassification
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor

from .arguments import ModelArguments, ObjectiveArguments
from .data.targets import MULTI_LABEL
from .engine.optim import freeze_layers
from .objectives import FluxMulti, FluxObjective, FluxSingle


logger = get_logger(__name__)

# The linear maps of a layer that get low-rank updates.
LORA_TARGETS = ["attention.qkv", "attention.out_proj", "mlp.fc1", "mlp.fc2"]


def build_model(
    args: ModelArguments, objective: ObjectiveArguments, labels: list[str], multi_label: bool = False
) -> tuple[FluxViTForVideoClassification, FluxViTVideoProcessor]:
    """The model, pretrained or new, with one output a label and one head a budget, and its processor."""
    changes = {"num_frames": args.num_frames, "image_size": args.size, "drop_path_rate": args.drop_path_rate}
    changes["classifier_dropout"] = args.classifier_dropout
    changes = {name: value for name, value in changes.items() if value is not None}
    if multi_label:
        changes["problem_type"] = MULTI_LABEL
    if args.model_name_or_path:
        model = _pretrained_model(args, labels, changes)
    else:
        given = json.loads(Path(args.config_name).read_text(encoding="utf-8"))
        fields = {**given, **changes, **_label_fields(labels), **_budget_fields(objective, given)}
        model = FluxViTForVideoClassification._from_config(FluxViTConfig(**fields), **args.model_options())
    model = model.with_token_budgets(_wanted_budgets(objective, model.config))
    config = model.config
    height, width = config.image_height_width
    if height != width:
        raise ValueError(f"clips must be square: give --size, the model's image_size is {config.image_size}")
    settings = {"num_frames": config.num_frames, "size": {"shortest_edge": height}, "patch_size": config.patch_size}
    if args.model_name_or_path:
        settings.update(args.hub_options(), token_plan=None)
        return model, FluxViTVideoProcessor.from_pretrained(args.model_name_or_path, **settings)
    return model, FluxViTVideoProcessor(**settings)


def _pretrained_model(args: ModelArguments, labels: list[str], changes: dict) -> FluxViTForVideoClassification:
    known = FluxViTConfig.from_pretrained(args.model_name_or_path, **args.hub_options()).id2label
    same_labels = set(known.values()) == set(labels)
    if same_labels:
        labels = [known[index] for index in range(len(known))]  # its classifier's order
    # A classifier for another number of labels does not fit and starts anew; so must one for other labels. A token plan
    # was found for the old weights.
    model = FluxViTForVideoClassification.from_pretrained(
        args.model_name_or_path,
        ignore_mismatched_sizes=True,
        token_plan=None,
        **args.hub_options(),
        **changes,
        **_label_fields(labels),
        **args.model_options(),
    )
    if not same_labels:
        logger.info(f"new classifiers: the checkpoint's {len(known)} labels are not the data's {len(labels)}")
        for classifier in model.classifiers:
            nn.init.trunc_normal_(classifier.weight, std=model.config.initializer_range)
            nn.init.zeros_(classifier.bias)
    return model


def _label_fields(labels: list[str]) -> dict[str, dict]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def _budget_fields(objective: ObjectiveArguments, given: dict) -> dict[str, Any]:
    budgets = sorted(objective.token_budgets or given.get("token_budgets", []), reverse=True)
    return {"token_budgets": budgets, "token_budget": budgets[0]} if budgets else {}


def _wanted_budgets(objective: ObjectiveArguments, config: FluxViTConfig) -> list[int]:
    if objective.token_budgets:
        return sorted(set(objective.token_budgets), reverse=True)
    if objective.objective == "single":  # the official script's choice among three: the middle one
        return [config.token_budgets[len(config.token_budgets) // 2]]
    return config.token_budgets


def add_lora(model: FluxViTForVideoClassification, args: ModelArguments) -> PeftModel:
    """Puts low-rank updates into the layers, which else are frozen, as are the embeddings; heads are trained.

    Returns:
        peft's view of the model, which itself is changed in place.
    """
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or 2 * args.lora_rank,
        lora_dropout=args.lora_dropout,
        target_modules=[f"layer.{i}.{name}" for i in range(model.config.num_hidden_layers) for name in LORA_TARGETS],
    )
    adapted = get_peft_model(model, config)
    for head in model.heads():
        head.requires_grad_(True)
    return adapted


def build_objective(
    model: FluxViTForVideoClassification, args: ModelArguments, objective: ObjectiveArguments
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
        return FluxSingle(model)
    if not objective.alignment_weight:
        model.freeze_alignment()
    return FluxMulti(model, objective.alignment_weight)


def export_model(
    directory: Path, weights: dict[str, Any], args: ModelArguments, config: FluxViTConfig, processor
) -> None:
    """Saves the model of an objective's weights, low-rank updates merged, and its processor."""
    weights = {name.removeprefix("model."): weight for name, weight in weights.items()}
    model = FluxViTForVideoClassification(config)
    if args.lora_rank:
        adapted = add_lora(model, args)
        model.load_state_dict(weights)
        adapted.save_pretrained(directory / "adapter")
        model = adapted.merge_and_unload()
    else:
        model.load_state_dict(weights)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
