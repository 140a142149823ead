# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The same model under `transformers.Trainer`, for those whose scripts are built on it: one clip shape, one budget.

    python -m training.finetune_with_trainer --model_name_or_path CHECKPOINT --data train.csv \
        --validation_data val.csv --output_dir out --token_budget 1024 --num_train_epochs 5

Takes every flag of `TrainingArguments`. Flux's own training (several budgets, clip shapes drawn anew at each step) is
`training.finetune`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments

from flux_hf.loading import load_classifier, load_processor
from flux_hf.protocol import check_exact_budgets

from .arguments import HeldOutArguments, check_source, flag
from .classification import held_out_source
from .data.augment import ClipAugment
from .data.augment_config import AUGMENT_PRESETS
from .data.dataset import ClipDataset
from .data.sampling import ClipRequest
from .data.sources import label_names
from .data.targets import ClassTargets
from .inference.command import list_clips
from .model import take_labels


@dataclass
class ScriptArguments(HeldOutArguments):
    model_name_or_path: str | None = flag(None, "checkpoint to start from (required)")
    token_budget: int | None = flag(None, "tokens to train at; else the model's default")
    augmentation: str = flag("light", "preset of the clips' augmentation", list(AUGMENT_PRESETS))


class TrainerClips(Dataset):
    """Clips of one shape by plain index, as Trainer asks for them: `pixel_values_videos` (T, 3, S, S), `labels` ()."""

    def __init__(self, clips: ClipDataset, num_frames: int, size: int):
        self.clips, self.num_frames, self.size = clips, num_frames, size
        self.times_read = [0] * len(clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        # Trainer tells a data set no epoch: each reading of a clip is augmented in another way. Loader workers, which
        # begin anew at each epoch, are told apart by their seeds.
        worker = torch.utils.data.get_worker_info()
        epoch = self.times_read[index] + (0 if worker is None else worker.seed % 2**31)
        request = ClipRequest(index, self.num_frames, self.size, epoch)
        self.times_read[index] += 1
        sample = self.clips[request]
        return {"pixel_values_videos": sample["pixel_values_videos"][0], "labels": sample["labels"][0]}


def top1(prediction: EvalPrediction) -> dict[str, float]:
    return {"top1": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments), description=__doc__.split("\n")[0])
    script, training = parser.parse_args_into_dataclasses(arguments)
    if script.model_name_or_path is None:
        raise ValueError("--model_name_or_path must be given")
    check_source(script)
    train = list_clips(script)
    changes = {} if script.token_budget is None else {"token_budget": script.token_budget}
    # float32, whatever the checkpoint's dtype: `--bf16` computes in bfloat16 and keeps these weights
    model = load_classifier(script.model_name_or_path, dtype=torch.float32, **changes)
    check_exact_budgets(model, "training")
    targets = ClassTargets(take_labels(model, label_names(train)))
    processor = load_processor(script.model_name_or_path, model.config)
    shape = (model.config.num_frames, model.config.image_height_width[0])

    def dataset(clips, preset: str, rule: str | None) -> TrainerClips:
        # all of it in the data set: Trainer gives the model what that gives, float32, with four times the memory
        own_values = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
        augment = ClipAugment(replace(AUGMENT_PRESETS[preset], **own_values))
        return TrainerClips(ClipDataset(clips, targets, augment, training.seed, sampling_rule=rule), *shape)

    held_out = None
    if script.validation_data or script.validation_split:
        held_out = dataset(list_clips(held_out_source(script)), "none", "center")
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=dataset(train, script.augmentation, None),
        eval_dataset=held_out,
        processing_class=processor,
        compute_metrics=top1,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()
    metrics = trainer.evaluate() if held_out else {}
    trainer.save_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    main()
