"""A checkpoint that keeps what moved more than a threshold: its features, and what cannot be done with it, at once."""

import datasets
import numpy as np
import pytest
import torch
from evaluation_parts import save_checkpoint, tiny_model, tiny_processor
from training_runs import flags, write_data

from flux_hf import FluxViTForVideoClassification, FluxViTVideoProcessor, scatter_to_grid
from flux_hf.token_selection import frame_difference_scores
from training import extract_features, finetune, finetune_with_trainer, pretrain, probe
from training.study.motion_clips import MOTIONS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips, and a model for which they differ in what moves."""
    folder = write_data(tmp_path_factory.mktemp("clips"), 6, 6)
    videos = sorted((folder / "val").glob("*.mp4"))
    pixels = tiny_processor()([str(path) for path in videos], num_frames=4, size=28, return_tensors="pt")
    with torch.no_grad():
        scores = frame_difference_scores(tiny_model().embed(pixels["pixel_values_videos"])[0])
    labels = {"id2label": dict(enumerate(MOTIONS)), "label2id": None}
    selection = {"token_selection": "threshold", "token_threshold": scores.quantile(0.7).item()}
    save_checkpoint(folder / "model", num_frames=4, image_size=28, **labels, **selection)
    return folder


@pytest.mark.parametrize(("kind", "shape"), [("pooled", None), ("time", (4,)), ("tokens", (4, 2, 2))])
@torch.no_grad()
def test_features_are_those_of_each_clip_alone(data, tmp_path, kind, shape):
    words = f"{data / 'val'} --model_name_or_path {data / 'model'} --output_dir {tmp_path} --features {kind}"
    words += " --token_budget 7 --per_device_eval_batch_size 4 --dataloader_num_workers 0 --dtype float32"
    extract_features.main(words.split())
    model = FluxViTForVideoClassification.from_pretrained(data / "model").eval()
    processor = FluxViTVideoProcessor.from_pretrained(data / "model")
    numbers = set()
    for row in datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train"):
        alone = model.fluxvit(**processor(row["video"], return_tensors="pt"), token_budget=7)
        numbers.add(alone.keep_indices.shape[1])
        wanted = alone.pooler_output[0]
        if shape is not None:
            states = alone.last_hidden_state[:, 1:]
            volume, _ = scatter_to_grid(states, alone.keep_indices, (4, 2, 2), fill=torch.nan)
            wanted = volume[0] if kind == "tokens" else volume[0].flatten(1, 2).nanmean(1)
            assert wanted.shape[:-1] == shape
        np.testing.assert_allclose(np.array(row["vector"]), wanted.numpy(), atol=1e-5)
    assert len(numbers) > 1


def test_what_needs_one_number_of_tokens_says_so_at_once(data, tmp_path):
    own, out = data / "model", tmp_path / "out"
    trained = {"config_name": None, "model_name_or_path": own}
    source = f"--model_name_or_path {own} --data {data}/train.csv --validation_data {data}/val.csv --output_dir {out}"
    taught = {"teacher": own, "teacher_tokens": 8, "student_budgets": [8, 4], "aligned_layers": 2}
    save_checkpoint(tmp_path / "teacher")
    student = {**trained, **taught, "teacher": tmp_path / "teacher"}
    for what, main, words in (
        ("training", finetune.main, flags(data, out, **trained)),
        ("training", finetune_with_trainer.main, [*source.split(), "--use_cpu", "--report_to", "none"]),
        ("a probe", probe.main, source.split()),
        ("a teacher", pretrain.main, flags(data, out, **taught)),
        ("training", pretrain.main, flags(data, out, **student)),
    ):
        with pytest.raises(ValueError, match=f"{what} needs one number .*, and the checkpoint's .* is 'threshold'"):
            main(words)
        assert not list(out.glob("**/*.safetensors"))
