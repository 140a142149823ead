# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes the model card (README.md) of a checkpoint folder, and prints it.

    python -m conversion.model_card CHECKPOINT USER/NAME --license LICENSE [--metrics metrics.json]

The card says what the folder says: the config's sizes and budgets, `conversion_report.json`'s source,
`training_arguments.json`'s recipe, and the accuracies that `training.evaluate` measured. It invents nothing, least of
all a license.
"""

import argparse
import math
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from conversion.report import read_object
from conversion.saving import REPORT_NAME
from flux_hf.loading import CLASSIFIERS, ENCODERS


CARD_NAME = "README.md"
# A card with this line is ours to write anew; one without is its author's.
MARK = "<!-- Written by flux-hf from the files of the checkpoint; without this line it is kept as it is. -->"
METRIC_TYPES = {
    "top1": ("accuracy", "top-1"),
    "top5": ("accuracy", "top-5"),
    "mean_average_precision": ("mean_average_precision", "mAP"),
}
POINT_FIELDS = ("num_frames", "size", "token_budget", "kept_tokens", "gflops_per_view", "clips_counted")
# Of `training_arguments.json`, what makes the model and tells nothing of the machine it was trained on.
RECIPE_FIELDS = (
    "objective alignment_weight token_budgets sampling frames sizes token_window independent_shapes class_balanced "
    "class_weights augmentation "
    "horizontal_flip num_sample mixup cutmix label_smoothing drop_path_rate classifier_dropout freeze_layers lora_rank "
    "per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_train_steps learning_rate "
    "min_learning_rate no_scale_lr num_warmup_epochs num_warmup_steps weight_decay layer_decay max_grad_norm ema_decay "
    "seed"
)
LIMITATIONS = """\
The classes are those of the training data: a video of anything else gets one of them all the same. Tokens are kept
where the picture moves, so what distinguishes two classes without moving may not be seen at small budgets, and heads
were trained at the budgets named above: another budget uses the head of the nearest. Nobody has examined the model for
bias between groups of people, and it is not meant for decisions about persons."""
# How a card's first sentence begins.
KINDS = {"fluxvit": "FluxViT samples", "flux_video": "Flux around {0.backbone_config.model_type} samples"}
CITATION = """\
```bibtex
@inproceedings{wang2025flexible,
  title = {Make Your Training Flexible: Towards Deployment-Efficient Video Models},
  author = {Wang, Chenting and Li, Kunchang and Jiang, Tianxiang and Zeng, Xiangyu and Wang, Yi and Wang, Limin},
  booktitle = {ICCV},
  year = {2025}
}
```"""


@dataclass
class CardFacts:
    """What a card says that the checkpoint folder does not.

    Args:
        repo_id: Where the model will be, for the usage snippet.
        license: Identifier, such as apache-2.0; None takes what the folder's README.md states.
        license_name: With license "other", what it is called.
        license_link: With license "other", where it can be read.
        datasets: Hub ids of the training data.
        base_model: Hub id of the model it was fine-tuned from.
        metrics: `metrics.json` of `training.evaluate`.
        eval_dataset: Hub id or name of the data the metrics were measured on; the data's file name if not given.
    """

    repo_id: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    metrics: str | os.PathLike | None = None
    eval_dataset: str | None = None


def parse_card(text: str, name: str) -> ModelCard:
    """A card whose metadata can be read, and are the same when written and read again.

    Raises:
        ValueError: they cannot, or state no license; `name` says whose card it is.
    """
    if not re.match(r"\ufeff?\s*---\r?\n", text):
        raise ValueError(f"{name} has no metadata block: its first line must be '---'")
    try:
        card = ModelCard(text)
        again = ModelCard(str(card))
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{name} has metadata that cannot be read: {error}") from error
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError(f"{name} has metadata that change when they are written again")
    if not card.data.get("license"):
        raise ValueError(f"{name} states no license: add one to its metadata")
    return card


def stated_license(checkpoint: Path) -> dict[str, Any]:
    """The license fields that the folder's own card states; empty if it states none."""
    path = checkpoint / CARD_NAME
    if not path.is_file():
        return {}
    data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    return {name: data[name] for name in ("license", "license_name", "license_link") if data.get(name)}


def license_fields(checkpoint: Path, facts: CardFacts) -> dict[str, Any]:
    """The card's license.

    Raises:
        ValueError: nobody stated one, it is no identifier, or "other" without name and link.
    """
    given = {name: getattr(facts, name) for name in ("license", "license_name", "license_link")}
    given = {name: value for name, value in given.items() if value}
    if "license" not in given:
        given = stated_license(checkpoint) | given
    if "license" not in given:
        raise ValueError("the checkpoint states no license: say which with --license (apache-2.0, cc-by-nc-4.0, ...)")
    if isinstance(given["license"], str) and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", given["license"]):
        raise ValueError(f"--license must be an identifier such as apache-2.0 or other, got {given['license']!r}")
    if given["license"] == "other" and len(given) < 3:
        raise ValueError("--license other needs --license_name and --license_link")
    return given


def read_metrics(path: str | os.PathLike, model: PreTrainedModel) -> dict[str, Any]:
    """`metrics.json` of `training.evaluate`, measured on a model of this size.

    Raises:
        ValueError: it is not such a file, or its points cost other than this model's.
    """
    metrics = read_object(Path(path))
    points = metrics.get("points")
    if not isinstance(points, list) or not points or not {"data", "views"} <= metrics.keys():
        raise ValueError(f"{path} is not a metrics.json of training.evaluate: it has no points, data or views")
    for point in points:
        missing = [name for name in POINT_FIELDS if name not in point]
        if missing or not METRIC_TYPES.keys() & point.keys():
            raise ValueError(f"{path}: a point lacks {missing or list(METRIC_TYPES)}")
        cost = model.flops(point["num_frames"], point["size"], point["token_budget"]) / 1e9
        if not math.isclose(cost, point["gflops_per_view"], rel_tol=1e-3):
            raise ValueError(
                f"{path} was measured on another model: {point['gflops_per_view']:.4g} GFLOPs at "
                f"{point['num_frames']}x{point['size']}@{point['token_budget']}, this one has {cost:.4g}"
            )
    # a point without a budget was measured at the model's default one
    known = [{**point, "token_budget": point["token_budget"] or point["kept_tokens"]} for point in points]
    return {**metrics, "points": sorted(known, key=lambda point: -point["gflops_per_view"])}


def eval_results(metrics: dict[str, Any], facts: CardFacts) -> list[EvalResult]:
    """A result for each measured number: fractions, as `training.evaluate` writes them."""
    name = facts.eval_dataset or Path(metrics["data"]).stem
    views = metrics["views"]
    results = []
    for point in metrics["points"]:
        arguments = {name: point[name] for name in ("num_frames", "size", "token_budget")} | views
        for key, (metric_type, title) in METRIC_TYPES.items():
            if key not in point:
                continue
            result = EvalResult(
                task_type="video-classification",
                dataset_type=name,
                dataset_name=name,
                dataset_split=metrics.get("split"),
                metric_type=metric_type,
                metric_name=f"{title}, {point['token_budget']} tokens of {point['num_frames']}x{point['size']}",
                metric_value=point[key],
                metric_args=arguments,
            )
            results.append(result)
    return results


def make_card(checkpoint: Path, config: PreTrainedConfig, facts: CardFacts) -> ModelCard:
    """The card of a checkpoint folder.

    Raises:
        ValueError: no license is known, or the metrics are not this model's.
    """
    classifies = is_classifier(config)
    with torch.device("meta"):
        model = CLASSIFIERS[config.model_type](config)  # what counts the operations
    if facts.metrics is not None and not classifies:
        raise ValueError("--metrics are accuracies, and the checkpoint has no classifier")
    metrics = None if facts.metrics is None else read_metrics(facts.metrics, model)
    results = [] if metrics is None else eval_results(metrics, facts)
    metric_types = sorted({result.metric_type for result in results})
    data = ModelCardData(
        **license_fields(checkpoint, facts),
        library_name="transformers",
        pipeline_tag="video-classification" if classifies else "feature-extraction",
        tags=[config.model_type, "video", "token-selection", "custom_code", "arxiv:2503.14237"],
        datasets=facts.datasets or None,
        base_model=facts.base_model,
        metrics=metric_types or None,
        model_name=facts.repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    sections = [
        MARK,
        introduction(config, facts, classifies),
        "## Token budgets\n\n" + budget_table(config, model, metrics),
        "## Use\n\n" + usage(config, facts.repo_id, classifies),
        "## Training\n\n" + training_section(checkpoint, facts),
        "## Limitations\n\n" + LIMITATIONS,
        "## Origin\n\n" + origin_section(checkpoint),
        "## Citation\n\n" + CITATION,
    ]
    return parse_card(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n", "the card")


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a saved checkpoint has classifiers. Raises ValueError where its class is none of ours."""
    names = config.architectures or []
    classifier, encoder = (kind[config.model_type].__name__ for kind in (CLASSIFIERS, ENCODERS))
    if names not in ([classifier], [encoder]):
        raise ValueError(f"config.json must name {classifier} or {encoder}, got {names}")
    return names == [classifier]


def introduction(config: PreTrainedConfig, facts: CardFacts, classifies: bool) -> str:
    what = f"Classifies videos into {config.num_labels} classes" if classifies else "Extracts features of videos"
    return (
        f"# {facts.repo_id.split('/')[-1]}\n\n"
        f"{what}. {KINDS[config.model_type].format(config)} a video densely and encodes only the `token_budget` most "
        f"informative patches, so one checkpoint serves several compute budgets. {config.num_hidden_layers} layers of "
        f"width {config.hidden_size}, trained budgets {', '.join(map(str, config.token_budgets))}. Method: *Make Your "
        "Training Flexible: Towards Deployment-Efficient Video Models*, ICCV 2025, [arXiv 2503.14237](https://arxiv.org/abs/2503.14237)."
    )


def budget_table(config: PreTrainedConfig, model: PreTrainedModel, metrics: dict | None) -> str:
    """What each budget costs, and how well it does where that was measured."""
    if metrics is None:
        side = config.image_height_width[0]
        clips = {budget: (config.num_frames, side) for budget in config.token_budgets} | (config.token_plan or {})
        points = [
            {"num_frames": clip[0], "size": clip[1], "token_budget": budget}
            for budget, clip in sorted(clips.items(), reverse=True)
        ]
    else:
        points = metrics["points"]
    measured = [name for name in METRIC_TYPES if metrics is not None and name in points[0]]
    header = ["token_budget", "frames x size", "GFLOPs a view", *(METRIC_TYPES[name][1] for name in measured)]
    rows = [header, ["---:"] * len(header)]
    for point in points:
        gflops = model.flops(point["num_frames"], point["size"], point["token_budget"]) / 1e9
        cells = [str(point["token_budget"]), f"{point['num_frames']} x {point['size']}", f"{gflops:.4g}"]
        rows.append(cells + [f"{100 * point[name]:.2f} %" for name in measured])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if metrics is None:
        return f"{table}\n\nGFLOPs are multiply-adds. No accuracy has been measured for this card."
    views = metrics["views"]
    counted = points[0]["clips_counted"]
    return (
        f"{table}\n\nGFLOPs are multiply-adds. Measured on {counted} clips with flux-hf's `training.evaluate`: mean of "
        f"{views['num_clips']} x {views['num_crops']} views (temporal x spatial)."
    )


def usage(config: PreTrainedConfig, repo_id: str, classifies: bool) -> str:
    simple, auto_class = "", "AutoModel"
    class_token = "" if config.model_type == "flux_video" and config.backbone_config.model_type != "vivit" else "1 + "
    results = (
        f"outputs.pooler_output  # (1, {config.projection_dim})\n"
        f"outputs.last_hidden_state  # (1, {class_token}tokens, {config.hidden_size})"
    )
    if classifies:
        auto_class, results = "AutoModelForVideoClassification", f"outputs.logits  # (1, {config.num_labels})"
        simple = f"""\
```python
from transformers import pipeline

classify = pipeline("video-classification", model="{repo_id}", trust_remote_code=True)
classify("clip.mp4", top_k=5)
```

With a budget of your own:

"""
    return f"""\
{simple}```python
import torch
from transformers import {auto_class}, AutoVideoProcessor

processor = AutoVideoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{repo_id}", trust_remote_code=True).eval()
with torch.no_grad():
    outputs = model(**processor("clip.mp4", return_tensors="pt"), token_budget={config.token_budgets[-1]})
{results}
```

`trust_remote_code=True` runs the source files beside the weights; where the package flux_hf is imported it is not
needed."""


def training_section(checkpoint: Path, facts: CardFacts) -> str:
    """The recipe of a model of `training.finetune`; else where to look."""
    path = checkpoint / "training_arguments.json"
    if not path.is_file():
        if not (checkpoint / REPORT_NAME).is_file():
            return "Not recorded in the checkpoint."
        if read_object(checkpoint / REPORT_NAME).get("new"):
            return "Untrained: the start of a training, initialised from a checkpoint of another model (see Origin)."
        return "Not trained here: weights converted from a checkpoint (see Origin), whose authors say how."
    recipe = read_object(path)
    given = {name: recipe.get(name) for name in RECIPE_FIELDS.split()}
    used = {name: value for name, value in given.items() if value is not None and value is not False}
    lines = ["Fine-tuned with flux-hf's `training.finetune`:", "", "| flag | value |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(value)} |" for name, value in used.items()]
    results = checkpoint / "all_results.json"
    if results.is_file():
        lines += ["", f"{read_object(results)['train_steps']} optimiser steps."]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def origin_section(checkpoint: Path) -> str:
    """Where the weights come from, and what was verified."""
    path = checkpoint / REPORT_NAME
    if not path.is_file():
        return (
            "No conversion: the checkpoint was loaded strictly before it was uploaded, all its weights are finite, and "
            "it gave finite outputs for a clip in a process without flux_hf."
        )
    report = read_object(path)
    verb = "Initialised" if report.get("new") else "Converted"
    return (
        f"{verb} from `{report['source']}`, SHA-256 `{report['source_sha256']}`; the weights written were loaded again "
        f"and compared bit by bit. `{REPORT_NAME}` says what became of every key."
    )


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that become `CardFacts`."""
    parser.add_argument("--license", help="of the weights, such as apache-2.0; required unless README.md states one")
    parser.add_argument("--license_name", help="with --license other")
    parser.add_argument("--license_link", help="with --license other: a URL, or LICENSE")
    parser.add_argument("--datasets", nargs="+", default=[], metavar="ID", help="Hub ids of the training data")
    parser.add_argument("--base_model", metavar="ID", help="Hub id of the model it was fine-tuned from")
    parser.add_argument("--metrics", metavar="FILE", help="metrics.json of training.evaluate")
    parser.add_argument("--eval_dataset", metavar="ID", help="what --metrics were measured on; its file name if absent")


def card_facts(options: argparse.Namespace, repo_id: str) -> CardFacts:
    names = [name for name in CardFacts.__dataclass_fields__ if name != "repo_id"]  # the flags' names are theirs
    return CardFacts(repo_id, **{name: getattr(options, name) for name in names})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conversion.model_card", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("repo_id", metavar="USER/NAME")
    add_card_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        config = AutoConfig.from_pretrained(options.checkpoint)
        print(make_card(options.checkpoint, config, card_facts(options, options.repo_id)), end="")
    except (ValueError, OSError) as error:
        print(f"no card: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
