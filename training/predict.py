# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels every clip of a folder, a csv, or a list of files.

    accelerate launch -m training.predict --model_name_or_path CHECKPOINT clips/ --token_budget 1024 \\
        --output predictions.csv

A folder is searched with all its sub-folders. A clip that cannot be read gets a row with the error; the others are
done all the same, and the exit status is 1. Frames and size are chosen as the pipeline does: those given, else the
token plan's for the budget, else the checkpoint's own.

Labels are written as they come, into a file beside the output that ends in `.partial`; it takes the output's name when
it is whole, and until then an older output stays. A run that is killed or fails loses no label it has written: the same
command goes on behind them. With another model, other flags or other clips it begins anew. Delete the `.partial` file
to have all clips labelled again.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

import flux_hf

from .arguments import CheckpointArguments, LoaderArguments, ViewArguments, flag, parse_command
from .data.reader import Clip
from .data.sources import spread
from .inference.command import SOURCES, find_clips, load_checkpoint, model_predictor
from .inference.points import resolve_point
from .inference.prediction import Predictions
from .inference.unfinished import Done, UnfinishedCsv, identity_of


@dataclass
class PredictArguments(CheckpointArguments, LoaderArguments, ViewArguments):
    output: str | None = flag(None, "csv with the columns name,rank,label,score,error (required)")
    top_k: int = flag(1, "labels a clip, a row each")
    token_budget: int | None = flag(None, "tokens encoded of a view; the model's if not given")
    num_frames: int | None = flag(None, "frames of a view")
    size: int | None = flag(None, "side of a view in pixels")


def parse_arguments(arguments: list[str] | None = None) -> PredictArguments:
    """The flags. Raises ValueError where the csv could not be written in the end."""
    args = parse_command(PredictArguments, __doc__, arguments, sources=SOURCES)
    if args.output is None:
        raise ValueError("--output must be given")
    if os.path.isdir(args.output):
        raise ValueError(f"--output must be a file, {args.output!r} is a folder")
    return args


def prediction_rows(clips: Sequence[Clip], predictions: Predictions, config: Any, top_k: int) -> Iterator[list]:
    """Rows of the csv: `top_k` a clip, best first, or one with the error."""
    reasons = dict(predictions.failures)
    values, indices = predictions.scores[0].sort(dim=-1, descending=True, stable=True)
    for clip, scores, order in zip(clips, values[:, :top_k].tolist(), indices[:, :top_k].tolist(), strict=True):
        if clip.name in reasons:
            yield [clip.name, "", "", "", reasons[clip.name]]
            continue
        for rank, (score, index) in enumerate(zip(scores, order, strict=True), start=1):
            yield [clip.name, rank, config.id2label[index], score, ""]


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = Accelerator()
    model, processor = load_checkpoint(args, accelerator)
    point = resolve_point(model.config, processor, args.num_frames, args.size, args.token_budget)
    clips = spread(find_clips(args.sources), args.max_eval_samples)
    done, top_k = Done(), min(args.top_k, model.config.num_labels)
    if accelerator.is_main_process:
        settings = [flux_hf.__version__, str(point), args.num_clips, args.num_crops, top_k, accelerator.mixed_precision]
        settings += [model.config.to_json_string(), processor.to_json_string()]
        unfinished = UnfinishedCsv(Path(args.output), identity_of(model, clips, settings))
        done = unfinished.resume(clips, top_k)
        if done.clips:
            print(f"going on after {done.clips} of {len(clips)} clips, which a run that was cut short has labelled")
    [done] = broadcast_object_list([done])
    rest, start, failed = clips[done.clips :], 0, done.failed
    predict = model_predictor(model, processor, accelerator, args, args.dataloader_num_workers)
    for predictions in predict.successive(rest, [point]) if rest else ():
        stop = start + predictions.scores.shape[1]
        if accelerator.is_main_process:
            unfinished.append(prediction_rows(rest[start:stop], predictions, model.config, top_k))
        start, failed = stop, failed + len(predictions.failures)
    if accelerator.is_main_process:
        unfinished.finish()
        print(f"{len(clips) - failed} of {len(clips)} clips labelled at {point}: {args.output}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
