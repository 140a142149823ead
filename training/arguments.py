# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The flags of every command, in groups and named as in the Hugging Face example scripts; recipes that preset them."""

from argparse import RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from flux_hf.auto_budgets import AUTO, as_budgets

from .data.augment_config import AUGMENT_PRESETS
from .data.reader import FRAME_TEMPLATE
from .data.sampling import SAMPLING_PRESETS, SAMPLING_RULES


ENGINES = ["accelerate", "ray"]


def flag(default: Any, help: str, choices: list | None = None) -> Any:
    """A field of a group of flags."""
    metadata = {"help": help} if choices is None else {"help": help, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# What every command that needs it shares ------------------------------------------------------------------------------


@dataclass
class CheckpointArguments:
    model_name_or_path: str | None = flag(None, "checkpoint: a folder or a Hub id")
    revision: str = flag("main", "revision of the Hub checkpoint")
    cache_dir: str | None = flag(None, "where Hub downloads are kept")
    attn_implementation: str | None = flag(None, "eager, sdpa, flash_attention_2, ...; by default the library's choice")

    def hub_options(self) -> dict[str, Any]:
        """Of `from_pretrained`."""
        return {"revision": self.revision, "cache_dir": self.cache_dir}

    def model_options(self) -> dict[str, Any]:
        """Of a model's construction."""
        return {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}


@dataclass
class SourceArguments:
    data: str | None = flag(None, "csv (path,label), folder per class, or saved `datasets` set")
    split: str | None = flag(None, "rows of this split of --data (column split), or split of the data set")
    data_root: str | None = flag(None, "folder that the csv's paths are relative to; the csv's own if not given")
    dataset_name: str | None = flag(None, "in place of --data, Hub id or folder for `datasets.load_dataset`")
    dataset_config_name: str | None = flag(None, "configuration of a `datasets` set")
    video_column: str | None = flag(None, "column of a `datasets` set's videos; its only Video column if not given")
    label_column: str | None = flag(None, "column of the labels; label, or labels, if not given")
    frame_template: str = flag(FRAME_TEMPLATE, "names of the frames in folders of frames")
    multi_label: bool = flag(False, "several labels a clip ('a|b' in a csv)")

    def set_options(self) -> dict[str, Any]:
        """Of `read_clips` and `open_stream`: which part and which columns of a set."""
        names = ("split", "dataset_config_name", "video_column", "label_column")
        return {"hub": self.dataset_name is not None, **{name: getattr(self, name) for name in names}}


@dataclass
class HeldOutArguments(SourceArguments):
    validation_data: str | None = flag(None, "as --data, for validation")
    validation_split: str | None = flag(None, "likewise for validation; alone, a split of --data")


@dataclass
class LoaderArguments:
    dataloader_num_workers: int = flag(2, "decoding processes of each process")


@dataclass
class ViewArguments:
    num_clips: int = flag(1, "temporal views of a clip in evaluation (published: 4, SSv2 2)")
    num_crops: int = flag(1, "spatial views of each of them (published: 3)")
    per_device_eval_batch_size: int = flag(8, "views in a forward pass of evaluation")
    max_eval_samples: int | None = flag(None, "evaluate only so many clips, evenly spread over the list")


@dataclass
class InferenceArguments(CheckpointArguments, SourceArguments, LoaderArguments, ViewArguments):
    """Of a command that measures a checkpoint on labelled clips."""


@dataclass
class PartArguments(CheckpointArguments, LoaderArguments, ViewArguments):
    """Of a command that goes through many clips, or windows of long videos, shard by shard."""

    window: float | None = flag(None, "seconds of a window; whole clips if not given")
    stride: float | None = flag(None, "seconds from a window to the next; one behind the other if not given")
    token_budget: int | str | None = flag(
        None, "tokens encoded of a view; the model's if not given. Of `predict` also auto: what a clip needs"
    )
    num_frames: int | None = flag(None, "frames of a view")
    size: int | None = flag(None, "side of a view in pixels")
    clips_per_shard: int = flag(64, "clips of a shard, which one worker does, and which is written whole")
    engine: str = flag("accelerate", "who does the shards: the processes of `accelerate launch`, or Ray", ENGINES)
    ray_address: str | None = flag(None, "of a running Ray cluster; one on this machine alone if not given")
    ray_actors: int | None = flag(None, "models on the cluster; one a GPU, or half its CPUs, if not given")

    def __post_init__(self):
        if self.token_budget is not None:
            [self.token_budget] = as_budgets("--token_budget", [self.token_budget])

    def checkpoint(self) -> CheckpointArguments:
        """Its flags of the checkpoint alone."""
        return CheckpointArguments(**{group.name: getattr(self, group.name) for group in fields(CheckpointArguments)})

    def check_parts(self) -> None:
        """Raises ValueError for flags that do not go together, ImportError for --engine ray without Ray."""
        if self.stride is not None and self.window is None:
            raise ValueError(f"--stride {self.stride} is for windows: give --window too")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{name} must be finite and above 0, got {value}")
        if self.window is not None and self.num_clips != 1:
            raise ValueError(f"--num_clips {self.num_clips} is for whole clips, --window shows each window once")
        for name in ("ray_address", "ray_actors"):
            if getattr(self, name) is not None and self.engine != "ray":
                raise ValueError(f"--{name} {getattr(self, name)} is for --engine ray")
        if self.engine == "ray" and find_spec("ray") is None:
            raise ImportError("--engine ray needs Ray Data: pip install '.[ray]'")


# Of fine-tuning ------------------------------------------------------------------------------------------------------


@dataclass
class TrainedModelArguments(CheckpointArguments):
    config_name: str | None = flag(None, "json file of config fields, for a model from scratch")
    num_frames: int | None = flag(None, "frames of the default clip (validation, saved checkpoint)")
    size: int | None = flag(None, "side of the default clip, in pixels")
    drop_path_rate: float | None = flag(None, "stochastic depth; the model's own if not given")
    gradient_checkpointing: bool = flag(False, "recompute layers in the backward pass, to save memory")
    torch_compile: bool = flag(False, "compile the encoder's layers")


@dataclass
class ModelArguments(TrainedModelArguments):
    new_classifiers: bool = flag(False, "start the classifiers anew, whatever the checkpoint's labels are")
    classifier_dropout: float | None = flag(None, "dropout before the classifier; the model's own if not given")
    freeze_layers: int = flag(0, "1 freezes the embeddings, n + 1 also the first n layers")
    lora_rank: int = flag(0, "trains low-rank updates (peft) of the layers' linear maps, and the heads; 0 trains all")
    lora_alpha: float | None = flag(None, "scale of the low-rank updates; twice the rank if not given")
    lora_dropout: float = flag(0.0, "dropout on the way into the low-rank updates")


@dataclass
class ObjectiveArguments:
    objective: str = flag("multi", "Flux-Multi trains every budget at once, Flux-Single one", ["multi", "single"])
    token_budgets: list[int] | None = flag(
        None, "budgets to train, one head each; the model's own if not given. One for --objective single"
    )
    alignment_weight: float = flag(1.0, "weight of the alignment of smaller budgets to the largest")
    mixup: float = flag(0.0, "alpha of mixup; 0.8 as published")
    cutmix: float = flag(0.0, "alpha of cutmix; 1.0 as published")
    mixup_prob: float = flag(1.0, "probability that a batch is mixed")
    mixup_switch_prob: float = flag(0.5, "probability of cutmix where both are on")
    class_weights: bool = flag(False, "weigh the loss of each class by how rare it is: clips / (classes x its clips)")
    label_smoothing: float = flag(0.0, "0.1 in the released code, 0 in the paper")


@dataclass
class DataArguments(LoaderArguments, HeldOutArguments):
    streaming: bool = flag(False, "stream --dataset_name instead of downloading it")
    shuffle_buffer_size: int = flag(256, "clips of a stream, with their contents, that each loader worker draws from")
    split_stream: bool = flag(False, "each loader worker reads a part of the stream, not all: batches depend on them")
    max_train_samples: int | None = flag(None, "use only so many clips; of a stream, so many an epoch")
    frame_cache: str | None = flag(None, "folder where each clip's frames are kept once decoded")
    frame_cache_short_side: int | None = flag(None, "short side, in pixels, of the kept frames")
    frame_cache_max_frames: int | None = flag(None, "most frames kept of a clip, evenly spread")
    max_failed_share: float = flag(0.2, "training stops when more than this share of the clips cannot be decoded")


@dataclass
class SamplingArguments:
    sampling: str = flag(
        "paper",
        "what (frames, size) are drawn from: a preset, one 'fixed' pair (the default clip), or 'custom'",
        [*SAMPLING_PRESETS, "fixed", "custom"],
    )
    frames: list[int] | None = flag(None, "numbers of frames, for --sampling custom")
    sizes: list[int] | None = flag(None, "sizes in pixels, for --sampling custom")
    token_window: list[int] | None = flag(None, "lowest and highest dense token count, for --sampling custom")
    independent_shapes: bool = flag(False, "each process draws its own pair at a step, as the official code does")
    class_balanced: bool = flag(False, "draw the clips of an epoch so that all classes are equally likely")
    sampling_rule: str | None = flag(
        None, "how training frames are drawn; by the kind of data if not given", [None, *SAMPLING_RULES]
    )


@dataclass
class AugmentationArguments:
    augmentation: str = flag("paper", "preset of the clips' augmentation", list(AUGMENT_PRESETS))
    augment_on_device: bool = flag(False, "crop in the workers, all other augmentation on the training device")
    num_sample: int = flag(1, "augmented copies of each decoded clip (repeated augmentation)")
    horizontal_flip: float | None = flag(None, "probability; the preset's if not given")


@dataclass
class OptimizationArguments:
    per_device_train_batch_size: int = flag(8, "clips of a process's batch, before --num_sample")
    gradient_accumulation_steps: int = flag(1, "batches of an optimiser step")
    num_train_epochs: int = flag(10, "epochs")
    max_train_steps: int | None = flag(None, "optimiser steps; overrides --num_train_epochs")
    learning_rate: float = flag(2e-4, "base value: multiplied by clips a step (copies included) / 256")
    min_learning_rate: float = flag(1e-6, "what the cosine ends at; scaled likewise")
    warmup_learning_rate: float = flag(1e-6, "what warm-up begins at; scaled likewise")
    no_scale_lr: bool = flag(False, "take the learning rates as they are")
    num_warmup_epochs: float = flag(1.0, "epochs of linear warm-up")
    num_warmup_steps: int | None = flag(None, "optimiser steps of warm-up; overrides --num_warmup_epochs")
    weight_decay: float = flag(0.05, "of matrices other than the position table")
    layer_decay: float = flag(0.75, "factor of the learning rate from a layer to the one below")
    adam_beta1: float = flag(0.9, "AdamW")
    adam_beta2: float = flag(0.999, "AdamW")
    adam_epsilon: float = flag(1e-8, "AdamW")
    max_grad_norm: float | None = flag(None, "clip the gradient's norm; not clipped if not given, as published")
    ema_decay: float | None = flag(None, "keep a moving average of the weights, and evaluate and export it")
    allow_tf32: bool = flag(False, "TF32 matrix products on GPUs that have it")


@dataclass
class RunArguments:
    output_dir: str | None = flag(None, "where checkpoints and the final model go (required)")
    overwrite_output_dir: bool = flag(False, "delete what --output_dir holds")
    resume_from_checkpoint: str | None = flag(None, "'latest', or a checkpoint's folder")
    checkpointing_steps: str = flag("epoch", "a number of optimiser steps, 'epoch', or 'no'")
    checkpoints_total_limit: int | None = flag(None, "keep so many checkpoints, and the best one")
    eval_steps: str = flag("epoch", "a number of optimiser steps, 'epoch', or 'no' (only at the end)")
    load_best_model_at_end: bool = flag(False, "export the best checkpoint instead of the last")
    logging_steps: int = flag(10, "optimiser steps between two log lines")
    report_to: str | None = flag(None, "tracker: tensorboard, wandb, ..., 'all' or 'none'")
    run_name: str = flag("flux-hf", "the tracker's project")
    seed: int = flag(0, "of everything that is drawn")


@dataclass
class HubArguments:
    push_to_hub: bool = flag(False, "push the final model, verified, in one commit with its card and code")
    hub_model_id: str | None = flag(None, "repository; the name of --output_dir if not given")
    hub_license: str | None = flag(None, "license of the pushed model, such as apache-2.0; never guessed")
    hub_private_repo: bool = flag(False, "create the repository as private")
    hub_token: str | None = flag(None, "token; the stored one if not given")


@dataclass(frozen=True)
class TrainingCommandArguments:
    """Every flag of a command that trains, in groups; a function takes those it needs. Never changed once parsed."""

    def flat(self) -> dict[str, Any]:
        """Flag -> value; the recipe's flags are among them."""
        return {name: value for group in groups_of(type(self)) for name, value in asdict(getattr(self, group)).items()}


def groups_of(kind: type[TrainingCommandArguments]) -> dict[str, type]:
    """The groups of a command's flags."""
    return {field.name: field.type for field in fields(kind) if field.name != "recipe"}


@dataclass(frozen=True)
class FinetuneArguments(TrainingCommandArguments):
    """Of `training.finetune`."""

    model: ModelArguments
    objective: ObjectiveArguments
    data: DataArguments
    sampling: SamplingArguments
    augmentation: AugmentationArguments
    optimization: OptimizationArguments
    views: ViewArguments
    run: RunArguments
    hub: HubArguments
    recipe: str | None = None


# Reading them --------------------------------------------------------------------------------------------------------


def parse_command(group: type, description: str, arguments: list[str] | None = None, **positional: str) -> Any:
    """The flags of a command, in one group, and as attributes its positional lists (name -> help), if it has some.

    Raises:
        ValueError: naming a flag whose value cannot work.
    """
    parser = HfArgumentParser(group, description=description, formatter_class=RawDescriptionHelpFormatter)
    for name, text in positional.items():
        parser.add_argument(name, nargs="+", help=text)
    args, *lists = parser.parse_args_into_dataclasses(arguments)
    vars(args).update(*map(vars, lists))
    check_values(vars(args))
    if isinstance(args, SourceArguments):
        check_source(args)
    return args


def read_recipe(path: str, kind: type[TrainingCommandArguments] = FinetuneArguments) -> dict:
    """A YAML file of flags, each of the type that its flag has, whatever YAML takes it for.

    Raises:
        ValueError: it is no mapping, names a flag that does not exist, or gives one a value of another type.
    """
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    if not isinstance(recipe, dict):
        raise ValueError(f"a recipe must map flags to values, got {type(recipe).__name__} in {path}")
    flags = [flag for group in groups_of(kind).values() for flag in fields(group)]
    types = {flag.name: flag.type for flag in flags}
    optional = {flag.name for flag in flags if flag.default is None}
    unknown = sorted(set(recipe) - set(types))
    if unknown:
        raise ValueError(f"unknown flags in the recipe {path}: {unknown}")
    return {
        name: None if value is None and name in optional else _typed(name, types[name], value)
        for name, value in recipe.items()
    }


def _typed(name: str, kind: Any, value: Any) -> Any:
    """A recipe's value as the flag's type has it: `no` as a word, 2e-4 as a number, one value as a list."""
    if isinstance(kind, UnionType):
        [kind] = [other for other in get_args(kind) if other is not type(None)]
    if get_origin(kind) is list:
        return [_typed(name, get_args(kind)[0], item) for item in (value if isinstance(value, list) else [value])]
    if kind is str and isinstance(value, (str, int, float)):
        return ("yes" if value else "no") if isinstance(value, bool) else str(value)
    fits = isinstance(value, (int, float, str)) and isinstance(value, bool) == (kind is bool)
    try:
        if fits and (kind is not int or float(value).is_integer()):
            return kind(value)
    except ValueError:
        pass
    raise ValueError(f"{name} in a recipe must be of type {kind.__name__}, got {value!r}")


def parse_arguments(arguments: list[str] | None = None) -> FinetuneArguments:
    """The flags of `training.finetune`, as `parse_training`."""
    args = parse_training(FinetuneArguments, "Fine-tunes FluxViT for video classification.", arguments)
    check_arguments(args)
    return args


def parse_training(
    kind: type[TrainingCommandArguments], description: str, arguments: list[str] | None
) -> TrainingCommandArguments:
    """The flags of the command line over those of `--recipe FILE` over the defaults.

    Raises:
        ValueError: naming a flag whose value cannot work.
    """
    parser = HfArgumentParser(list(groups_of(kind).values()), description=description)
    parser.add_argument("--recipe", help="YAML file of flags; the command line overrides it")
    recipe = parser.parse_known_args(arguments)[0].recipe
    if recipe:
        parser.set_defaults(**read_recipe(recipe, kind))
    *groups, _ = parser.parse_args_into_dataclasses(arguments)
    args = kind(*groups, recipe=recipe)
    check_values(args.flat())
    return args


_COUNTS = (
    "num_frames size max_train_samples max_eval_samples frame_cache_short_side frame_cache_max_frames num_sample "
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs "
    "max_train_steps checkpoints_total_limit num_clips num_crops logging_steps token_budgets frames sizes top_k "
    "token_budget teacher_tokens student_budgets aligned_layers cached_epochs clips_per_shard neighbors "
    "shots draws folds train_batch_size probe_heads ray_actors"
)
_SHARES = "max_failed_share mixup_prob mixup_switch_prob horizontal_flip label_smoothing lora_dropout drop_path_rate"
_NOT_NEGATIVE = (
    "alignment_weight freeze_layers lora_rank mixup cutmix min_learning_rate warmup_learning_rate num_warmup_epochs "
    "num_warmup_steps weight_decay dataloader_num_workers seed shuffle_buffer_size teacher_layers budget_weights "
    "layer_weight pooled_weight weight_decays"
)


def check_values(flags: dict[str, Any]) -> None:
    """Raises ValueError, naming flag and value, where a number is out of the range that its flag has everywhere."""
    for names, allowed, holds in (
        (_COUNTS, "at least 1", lambda value: value >= 1),
        (_SHARES, "in [0, 1]", lambda value: 0 <= value <= 1),
        (_NOT_NEGATIVE, "at least 0", lambda value: value >= 0),
        ("learning_rate learning_rates", "above 0", lambda value: value > 0),
    ):
        for name in names.split():
            value = flags.get(name)
            for item in value if isinstance(value, list) else [value]:
                if item not in (None, AUTO) and not holds(item):
                    raise ValueError(f"--{name} must be {allowed}, got {item}")


def check_source(source: SourceArguments) -> None:
    """Raises ValueError unless one source of clips is given."""
    if (source.data is None) == (source.dataset_name is None):
        raise ValueError(f"give one of --data and --dataset_name, got {source.data!r} and {source.dataset_name!r}")


def check_arguments(args: FinetuneArguments) -> None:
    """Raises ValueError, naming flag and value, where flags cannot work together whatever model and data are."""
    data, objective = args.data, args.objective
    check_start(args.model)
    check_run(args)
    for name, group in (("class_balanced", args.sampling), ("class_weights", objective)):
        if data.streaming and getattr(group, name):
            raise ValueError(f"--{name} must know all labels: not with --streaming")
    if args.hub.push_to_hub and args.hub.hub_license is None:
        raise ValueError("--push_to_hub needs --hub_license: the license of a model is never guessed")
    if objective.objective == "single" and objective.token_budgets is not None and len(objective.token_budgets) != 1:
        raise ValueError(f"--objective single trains one of --token_budgets, got {objective.token_budgets}")


def check_start(model: TrainedModelArguments) -> None:
    """Raises ValueError unless a model is given in one way."""
    if (model.model_name_or_path is None) == (model.config_name is None):
        given = f"{model.model_name_or_path!r} and {model.config_name!r}"
        raise ValueError(f"give one of --model_name_or_path and --config_name, got {given}")


def check_run(args: TrainingCommandArguments) -> None:
    """Raises ValueError where a command that trains lacks something, or flags that all of them have cannot work."""
    data = args.data
    if args.run.output_dir is None:
        raise ValueError("--output_dir must be given")
    check_source(data)
    if data.streaming and data.dataset_name is None:
        raise ValueError("--streaming needs --dataset_name")
    if data.streaming and data.max_train_samples is None:
        raise ValueError("--streaming needs --max_train_samples: the clips of an epoch, for a stream has no length")
    _check_sampling(args.sampling)
    for name in ("checkpointing_steps", "eval_steps"):
        value = getattr(args.run, name)
        if value not in ("epoch", "no") and not (value.isdigit() and int(value) > 0):
            raise ValueError(f"--{name} must be a number of steps, 'epoch' or 'no', got {value!r}")


def _check_sampling(sampling: SamplingArguments) -> None:
    custom = [name for name in ("frames", "sizes", "token_window") if getattr(sampling, name) is not None]
    if sampling.sampling == "custom" and len(custom) < 3:
        raise ValueError(f"--sampling custom needs --frames, --sizes and --token_window, got only {custom}")
    if sampling.sampling != "custom" and custom:
        raise ValueError(f"--{custom[0]} is for --sampling custom, got --sampling {sampling.sampling}")
    window = sampling.token_window
    if window is not None and (len(window) != 2 or window[0] > window[1]):
        raise ValueError(f"--token_window must be two rising numbers, got {window}")
