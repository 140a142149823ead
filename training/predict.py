# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels every clip of a folder, a csv, or a list of files, or every window of long videos.

    accelerate launch -m training.predict --model_name_or_path CHECKPOINT clips/ --token_budget 1024 \\
        --output predictions.csv
    accelerate launch -m training.predict --model_name_or_path CHECKPOINT hours.mp4 --window 2 --stride 1 \\
        --output timeline.csv --plot timeline.png

A folder is searched with all its sub-folders. A clip that cannot be read gets a row with the error, behind its windows
before the damage; the others are done all the same, and the exit status is 1. Frames and size are chosen as the
pipeline does: those given, else the token plan's for the budget, else the checkpoint's own. With --token_budget auto
each clip, or window, is encoded at as few tokens as it needs (training.optimize_tokens --auto), and a column
token_budget says how many these were.

Labels are written as they come, --clips_per_shard clips at a time, into a folder beside the output that ends in
`.partial`; all together take the output's name, and until then an older output stays. A run that is killed or fails
loses the shards it was at and no other: the same command makes those that are missing. With another model, other flags
or other clips it begins anew. Delete the `.partial` folder to have all clips labelled again.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

import flux_hf

from .arguments import PartArguments, flag, parse_command
from .data.sources import spread
from .inference.command import SOURCES, find_clips, start_accelerator
from .inference.labels import LabelShards, Scores, ScoreSource, identity_of
from .inference.measures import SAME_BITS
from .inference.parts import make_units
from .inference.timeline import draw_timeline
from .inference.units import go_through_parts


# Flags that the rows, or how they lie in files, depend on.
OF_ROWS = "token_budget top_k window stride num_clips num_crops per_device_eval_batch_size clips_per_shard"


@dataclass
class PredictArguments(PartArguments):
    output: str | None = flag(
        None,
        "csv: name, with --window start and end, rank, label, score, of --token_budget auto "
        "token_budget, error (required)",
    )
    top_k: int = flag(1, "labels a clip, a row each")
    plot: str | None = flag(None, "with --window, png of the best labels over time, a strip a video")
    clips_per_shard: int = flag(16, "clips of a shard, which one worker does, and which is written whole")


def parse_arguments(arguments: list[str] | None = None) -> PredictArguments:
    """The flags. Raises ValueError where the csv could not be written in the end."""
    args = parse_command(PredictArguments, __doc__, arguments, sources=SOURCES)
    if args.output is None:
        raise ValueError("--output must be given")
    for name in ("output", "plot"):
        if getattr(args, name) is not None and os.path.isdir(getattr(args, name)):
            raise ValueError(f"--{name} must be a file, {getattr(args, name)!r} is a folder")
    args.check_parts()
    if args.plot is not None and args.window is None:
        raise ValueError(f"--plot {args.plot} is of labels over time: give --window too")
    return args


def facts_of(args: PredictArguments, accelerator: Accelerator, scores: Scores) -> list:
    """What rows depend on beside weights and clips."""
    return [
        *(getattr(args, name) for name in OF_ROWS.split()),
        *(flux_hf.__version__, str(scores.point), accelerator.mixed_precision),
        *(scores.model.config.to_json_string(), scores.processor.to_json_string()),
    ]


def describe_choices(scores: Scores, chosen: Counter[str]) -> str:
    """How often each budget was chosen, and what that cost."""
    ladder = scores.ladder
    shares = [chosen[str(budget)] / chosen.total() for budget in ladder.token_budgets]
    words = [f"{100 * share:.1f} % at {n} tokens" for share, n in zip(shares, ladder.token_budgets, strict=True)]
    gflops = ladder.mean_flops(scores.model, shares) / 1e9
    return f"{', '.join(words)}: {gflops:.4g} GFLOPs a view on average, all passes tried included"


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    os.environ.setdefault(*SAME_BITS)
    accelerator = start_accelerator()
    num_views = args.num_clips * args.num_crops
    source = ScoreSource(args.checkpoint(), args.num_frames, args.size, args.token_budget, num_views)
    scores = source(accelerator)
    clips = spread(find_clips(args.sources), args.max_eval_samples)
    identity = identity_of(scores.model, clips, facts_of(args, accelerator, scores))
    names = scores.model.config.id2label
    kinds = {"of_windows": args.window is not None, "with_budgets": scores.ladder is not None}
    shards = LabelShards(Path(args.output), identity, names, args.top_k, **kinds)
    go_through_parts(clips, source, scores, shards, args, accelerator)
    failed = 0
    if accelerator.is_main_process:
        failed = shards.finish(len(make_units(clips, args.clips_per_shard)))
        print(f"{len(clips) - failed} of {len(clips)} clips labelled at {scores.point}: {args.output}")
        if shards.chosen:
            print(describe_choices(scores, shards.chosen))
        if args.plot is not None:
            draw_timeline(Path(args.output), Path(args.plot))
    [failed] = broadcast_object_list([failed])
    accelerator.end_training()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
