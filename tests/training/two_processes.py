"""Run by torchrun on two gloo processes: the classifier, a step of which uses one head, in loops of other people.

Usage: two_processes.py KIND FOLDER, KIND one of "loop", "trainer", "checkpointing".
"""

import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from tiny import tiny_config
from transformers import Trainer, TrainingArguments

from flux_hf import FluxViTForVideoClassification


def clips(number: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    videos = torch.randn(number, 4, 3, 28, 28, generator=generator)
    return [{"pixel_values_videos": video, "labels": torch.tensor(i % 3)} for i, video in enumerate(videos)]


def loop(model: FluxViTForVideoClassification) -> int:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = torch.utils.data.DataLoader(clips(), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    return len(loader)


def trainer(model: FluxViTForVideoClassification, folder: str, **options) -> int:
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, **options}
    arguments = TrainingArguments(output_dir=folder, save_strategy="no", disable_tqdm=True, **settings)
    return Trainer(model=model, args=arguments, train_dataset=clips()).train().global_step


def main(kind: str, folder: str) -> None:
    torch.manual_seed(0)
    model = FluxViTForVideoClassification(tiny_config()).eval()  # as `from_pretrained` leaves it
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    if kind == "loop":
        steps = loop(model)
    elif kind == "trainer":
        steps = trainer(model, folder)
    else:
        steps = trainer(
            model,
            folder,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            ddp_find_unused_parameters=False,
        )
    if torch.equal(model.classifiers[1].weight, start["classifiers.1.weight"]):
        raise SystemExit("the head that was used did not learn")
    print(f"finished {steps}", flush=True)
    dist.destroy_process_group()  # else its threads may still run when the process ends, which aborts it


if __name__ == "__main__":
    main(*sys.argv[1:])
