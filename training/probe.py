# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen evaluation: fits probes on an encoder's features, which are made once for each clip and token budget.

    accelerate launch -m training.probe --model_name_or_path CHECKPOINT --data train.csv --validation_data test.csv \\
        --output_dir probed --token_budgets 2048 1024 512 --probes linear knn attentive --shots 1 5
    python -m training.probe --model_name_or_path CHECKPOINT --data clips.csv --group_column person --folds 5 \\
        --output_dir probed

Linear: logistic regression; knn: the nearest by cosine; attentive: V-JEPA's pooler on the kept tokens, of one block or,
with attentive4, of four, for a grid of rates and decays at once. All that is chosen is chosen on training clips. The
model is whatever has token budgets, or an image encoder, read frame by frame. Writes table.md, results.csv,
predictions.csv and metrics.json; the features stay in OUTPUT_DIR/features, where the same command after a kill, or one
with other probes, finds them.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

import flux_hf
from flux_hf.checkpoint_files import replacing_folder, write_csv, write_json, write_text

from .arguments import CheckpointArguments, HeldOutArguments, LoaderArguments, flag, parse_command
from .batches import held_out_source
from .data.reader import Clip
from .data.sources import label_names, spread
from .data.targets import ClassTargets, encode_labels
from .digests import clips_digest, identities, weights_digest
from .inference.command import describe_command, list_clips, start_accelerator
from .inference.features import FeatureShards
from .inference.measures import SAME_BITS
from .probing.attentive import AttentiveTraining, heads_of
from .probing.features import Encoder, load_probed, make_features, open_shards, read_features
from .probing.probes import ATTENTIVE, PROBES, ProbeSettings
from .probing.protocol import PREDICTION_COLUMNS, Protocol, run_protocol
from .probing.report import RESULT_COLUMNS, ProbeResult, markdown_table, result_rows
from .probing.samples import Samples


# Flags that a result must tell to be repeated.
OF_RESULTS = (
    "validation_data validation_split folds group_column probes pooling neighbors shots draws learning_rates "
    "weight_decays num_train_epochs num_warmup_epochs train_batch_size probe_heads dtype seed"
)


@dataclass
class ProbeArguments(CheckpointArguments, LoaderArguments, HeldOutArguments):
    output_dir: str | None = flag(None, "where results and features go (required)")
    token_budgets: list[int] | None = flag(None, "the model's own if not given; an image encoder keeps all its tokens")
    num_frames: int | None = flag(None, "frames of a clip; the model's default if not given, of an image encoder 8")
    size: int | None = flag(None, "side of a clip in pixels; the model's default if not given")
    probes: list[str] = flag(["linear", "knn", "attentive"], "which to fit, on all training clips", list(PROBES))
    pooling: str = flag("pooled", "vector of linear and knn: the model's own, or the tokens' mean", ["pooled", "mean"])
    neighbors: int = flag(5, "of knn; of few shots at most these")
    shots: list[int] | None = flag(None, "also linear and knn on so many clips of each class")
    draws: int = flag(5, "of these clips")
    folds: int | None = flag(None, "in place of validation clips: parts of --data that take turns at being tested")
    group_column: str | None = flag(None, "column of groups, such as persons, that are never parted")
    learning_rates: list[float] = flag([5e-3, 3e-3, 1e-3, 3e-4, 1e-4], "of the attentive probes, each with each of")
    weight_decays: list[float] = flag([0.01, 0.1, 0.4, 0.8], "these; the best is chosen on held out training clips")
    num_train_epochs: int = flag(20, "epochs of attentive probes")
    num_warmup_epochs: float = flag(1.0, "epochs of linear warm-up, before the cosine")
    train_batch_size: int = flag(32, "clips of a batch of attentive probes")
    probe_heads: int | None = flag(None, "attention heads; if not given, up to 16, of 32 and more")
    per_device_eval_batch_size: int = flag(8, "clips that the encoder is shown at once")
    max_eval_samples: int | None = flag(None, "take only so many clips of each list, evenly spread over it")
    dtype: str = flag("float16", "of the features in the files", ["float16", "float32"])
    clips_per_shard: int = flag(64, "clips of a file")
    seed: int = flag(0, "of folds within the training clips, draws, and attentive probes")

    @property
    def protocol(self) -> Protocol:
        """Which probes on which clips."""
        return Protocol(self.probes, self.shots or (), self.draws, self.folds)

    @property
    def has_tokens(self) -> bool:
        """Whether the features hold tokens."""
        return self.pooling == "mean" or any(name in ATTENTIVE for name in self.probes)


def parse_arguments(arguments: list[str] | None = None) -> ProbeArguments:
    """The flags. Raises ValueError for some that do not go together, or that are missing."""
    args = parse_command(ProbeArguments, __doc__, arguments)
    if args.output_dir is None or args.model_name_or_path is None:
        raise ValueError("--model_name_or_path and --output_dir must be given")
    has_test = args.validation_data is not None or args.validation_split is not None
    if has_test == (args.folds is not None):
        given = f"{args.validation_data!r}, {args.validation_split!r} and {args.folds}"
        raise ValueError(f"give --validation_data or --validation_split, or --folds, got {given}")
    if args.folds is not None and args.group_column is None:
        raise ValueError(f"--folds {args.folds} parts groups: give --group_column")
    if args.num_warmup_epochs > args.num_train_epochs:
        raise ValueError(
            f"--num_warmup_epochs must be at most --num_train_epochs {args.num_train_epochs}, got "
            f"{args.num_warmup_epochs}"
        )
    if args.shots and not set(args.probes) - set(ATTENTIVE):
        raise ValueError(f"--shots {args.shots} is for linear and knn, got --probes {args.probes}")
    if args.multi_label:
        raise ValueError("--multi_label: probes give each clip one label")
    return args


def settings_of(args: ProbeArguments, device: torch.device) -> ProbeSettings:
    """How the flags fit probes."""
    how = AttentiveTraining(
        args.num_train_epochs, args.num_warmup_epochs, args.train_batch_size, args.probe_heads, args.seed
    )
    rates = list(itertools.product(args.learning_rates, args.weight_decays))
    return ProbeSettings(args.neighbors, rates, how, device, args.seed)


# A list's clips, and what is known of them.
Listed = tuple[Sequence[Clip], Samples]


def read_parts(args: ProbeArguments) -> tuple[dict[str, Listed], list[str]]:
    """The lists "train" and, unless there are folds, "test", without features; and the classes.

    Raises:
        ValueError: as `read_clips`; a label that no training clip has, or clips of both lists.
    """
    lists = {"train": spread(list_clips(args), args.max_eval_samples)}
    if args.folds is None:
        lists["test"] = spread(list_clips(held_out_source(args)), args.max_eval_samples)
        known = set(identities(lists["train"]))
        shared = [
            clip.name for clip, told in zip(lists["test"], identities(lists["test"]), strict=True) if told in known
        ]
        if shared:
            raise ValueError(f"{len(shared)} clips are to be trained on and tested, the first {shared[0]!r}")
    classes = label_names(lists["train"])
    targets = ClassTargets({name: index for index, name in enumerate(classes)})
    parts = {}
    for part, clips in lists.items():
        names, labels = np.array([clip.name for clip in clips]), encode_labels(clips, targets).numpy()
        parts[part] = clips, Samples(names, labels)
    if args.group_column is not None:
        clips, samples = parts["train"]
        of_groups = spread(list_clips(replace(args, label_column=args.group_column)), args.max_eval_samples)
        parts["train"] = clips, replace(samples, groups=np.array([clip.label for clip in of_groups]))
    return parts, classes


def store_features(
    args: ProbeArguments, parts: dict[str, Listed], encoder: Encoder, accelerator: Accelerator
) -> dict[str, list[FeatureShards]]:
    """Makes the features of all lists as far as they are missing (collective). Returns the shards of each point.

    Raises:
        ValueError: the folder holds features that were made otherwise.
    """
    origin = {
        "mixed_precision": accelerator.mixed_precision,
        "per_device_eval_batch_size": args.per_device_eval_batch_size,
        "clips_per_shard": args.clips_per_shard,
        "flux_hf": flux_hf.__version__,
        "model": weights_digest(encoder.model),
        "config": encoder.model.config.to_json_string(),
        "processor": encoder.processor.to_json_string(),
    }
    stored = {}
    for part, (clips, _) in parts.items():
        directory, of_part = Path(args.output_dir) / "features" / part, {**origin, "clips": clips_digest(clips)}
        stored[part] = [
            open_shards(directory, encoder, point, args.has_tokens, of_part, args.dtype) for point in encoder.points
        ]
        loading = (args.clips_per_shard, args.per_device_eval_batch_size, args.dataloader_num_workers)
        make_features(clips, encoder, stored[part], *loading, accelerator)
    return stored


def probe(
    args: ProbeArguments,
    parts: dict[str, Listed],
    classes: Sequence[str],
    encoder: Encoder,
    shards: dict[str, list[FeatureShards]],
    settings: ProbeSettings,
) -> tuple[list[ProbeResult], list[tuple]]:
    """The results of all points, and the rows of predictions.csv, from features that are made."""
    results, rows = [], []
    for index, point in enumerate(encoder.points):
        widths, known = encoder.widths(point), {}
        for part, (clips, samples) in parts.items():
            read, vectors, tokens = read_features(shards[part][index], clips, args.clips_per_shard, widths)
            if args.pooling == "mean":
                vectors = tokens.float().mean(1).numpy()
            known[part] = replace(samples.at(read), vectors=vectors, tokens=tokens)
        found, predicted = run_protocol(
            args.protocol, known["train"], known.get("test"), classes, settings, str(point), widths.tokens
        )
        results += found
        rows += predicted
    return results, rows


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    os.environ.setdefault(*SAME_BITS)
    accelerator = start_accelerator()
    parts, classes = read_parts(args)
    settings = settings_of(args, accelerator.device)
    listed = {part: samples for part, (_, samples) in parts.items()}
    args.protocol.check(listed["train"], listed.get("test"), classes, settings.neighbors)
    encoder = load_probed(args, accelerator, args.num_frames, args.size, args.token_budgets)
    heads_of(encoder.widths(encoder.points[0]).hidden, args.probe_heads)  # or an error, before the features are made
    shards = store_features(args, parts, encoder, accelerator)
    if accelerator.is_main_process:
        results, rows = probe(args, parts, classes, encoder, shards, settings)
        failures = [
            {"part": part, "name": name, "reason": reason}
            for part, of_part in shards.items()
            for name, reason in of_part[0].failures()
        ]
        run = describe_command(args, args, args.max_eval_samples, accelerator)
        run |= {name: getattr(args, name) for name in OF_RESULTS.split()}
        run |= {"clips": {part: len(clips) for part, (clips, _) in parts.items()}, "failures": failures}
        table = markdown_table(results)
        with replacing_folder(args.output_dir) as folder:
            write_csv(folder / "predictions.csv", PREDICTION_COLUMNS, rows)
            write_csv(folder / "results.csv", RESULT_COLUMNS, result_rows(results))
            write_text(folder / "table.md", table)
            write_json(folder / "metrics.json", {**run, "results": [result.to_dict() for result in results]})
        print(table + (f"{len(failures)} clips could not be read\n" if failures else ""), end="")
    accelerator.end_training()


if __name__ == "__main__":
    main()
