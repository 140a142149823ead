"""Run by torchrun on two gloo processes: the batches that `training.finetune` would stream, read by two workers each.

Usage: stream_epochs.py FILE, json of name -> flags, in whose place it writes name -> which clips (their labels) each
process was given in each of two epochs.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from tiny import tiny_config

from flux_hf import FluxViTVideoProcessor
from training.arguments import parse_arguments
from training.batches import build_augmentation, build_batches
from training.classification import read_data
from training.data.targets import ClassTargets


def read_epochs(words: list[str], accelerator: Accelerator) -> list[list[list[int]]]:
    args = parse_arguments(words)
    data, config = read_data(args.data, None), tiny_config()
    targets = ClassTargets({name: index for index, name in enumerate(data.labels)})
    augment = build_augmentation(args.augmentation, FluxViTVideoProcessor(num_frames=4, size=28))
    batches = build_batches(args, config, data.training, targets, augment, accelerator)
    epochs = []
    for epoch in range(2):
        batches.order.set_epoch(epoch)
        epochs.append([label for batch in batches.loader for label in batch["labels"].tolist()])
    return gather_object([epochs])


def main(file: Path) -> None:
    accelerator = Accelerator(cpu=True)
    seen = {name: read_epochs(words, accelerator) for name, words in json.loads(file.read_text()).items()}
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        file.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
