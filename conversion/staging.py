# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What is pushed of a checkpoint folder, verified: it loads, fits and runs, also where flux_hf is not installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import get_token
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from conversion.checkpoint_reader import model_files
from conversion.convert_to_hf import check_values
from conversion.model_card import CARD_NAME, MARK, CardFacts, is_classifier, make_card, parse_card
from conversion.report import read_object
from conversion.saving import REPORT_NAME
from flux_hf import FluxViTVideoProcessor
from flux_hf.checkpoint_files import AUTO_MAP, FLUX_AUTO_MAP, save_source_files
from flux_hf.loading import CLASSIFIERS, ENCODERS


WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIG_NAME = "config.json"
PROCESSOR_NAME = "video_preprocessor_config.json"
SETTINGS = (CONFIG_NAME, PROCESSOR_NAME, REPORT_NAME)
# Variables that would lead the fresh process to a cache that is not empty, or keep it from the Hub.
NOT_PASSED_ON = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS)_.*(CACHE|OFFLINE)")
CLIP_SCRIPT = Path(__file__).with_name("clip_logits.py")


class PushError(ValueError):
    """The checkpoint is not, or not verifiably, on the Hub; the message says why and what to do."""


def verify_checkpoint(checkpoint: Path) -> torch.nn.Module:
    """The model of a folder, strictly loaded.

    Raises:
        ValueError: the folder is no checkpoint of ours, its conversion was not verified, its weights do not fit the
            config or are not finite.
    """
    if not (checkpoint / CONFIG_NAME).is_file():
        raise PushError(f"{checkpoint} is not a checkpoint folder: it has no {CONFIG_NAME}")
    if not (checkpoint / PROCESSOR_NAME).is_file():
        raise PushError(f"{checkpoint} has no video processor: save one there with FluxViTVideoProcessor")
    for name in (CONFIG_NAME, PROCESSOR_NAME):
        if read_object(checkpoint / name).get("auto_map") not in (AUTO_MAP, FLUX_AUTO_MAP):
            raise PushError(f"{checkpoint / name} names other source files than flux_hf's: load it and save it again")
    model_type = read_object(checkpoint / CONFIG_NAME).get("model_type")
    if model_type not in CLASSIFIERS:
        raise PushError(f"{checkpoint / 'config.json'} is of model type {model_type!r}, not one of {list(CLASSIFIERS)}")
    weight_files(checkpoint)
    report = checkpoint / REPORT_NAME
    if report.is_file() and read_object(report).get("verified") is not True:
        raise PushError(f"{report} says that the conversion was not verified: convert the checkpoint again")
    config = CLASSIFIERS[model_type].config_class.from_pretrained(checkpoint)
    model_class = (CLASSIFIERS if is_classifier(config) else ENCODERS)[model_type]
    try:
        model, loading = model_class.from_pretrained(checkpoint, output_loading_info=True, use_safetensors=True)
    except (SafetensorError, RuntimeError) as error:  # not whole, or of other shapes
        raise PushError(f"the weights of {checkpoint} cannot be loaded: {error}") from error
    problems = [f"{kind}: {', '.join(map(str, sorted(keys)))}" for kind, keys in loading.items() if keys]
    if problems:
        raise PushError(f"the weights of {checkpoint} do not fit its config; {'; '.join(problems)}")
    check_values(model.state_dict())
    FluxViTVideoProcessor.from_pretrained(checkpoint)
    return model.eval()


def stage(checkpoint: Path, staging: Path, model: torch.nn.Module, max_shard_size: str | None) -> None:
    """Puts what is pushed, but the card, into the folder `staging`: weights, settings, source files, license texts.

    The source files are this flux_hf's, which the weights were just loaded with, whatever lies in the folder.
    """
    staging.mkdir()
    save_source_files(staging)
    names = [name for name in SETTINGS if (checkpoint / name).is_file()]
    names += [path.name for pattern in ("LICENSE*", "NOTICE*") for path in checkpoint.glob(pattern) if path.is_file()]
    for name in names:
        shutil.copyfile(checkpoint / name, staging / name)
    if max_shard_size is None:
        for path in weight_files(checkpoint):
            _link(path, staging / path.name)
        return
    with tempfile.TemporaryDirectory(dir=staging.parent) as shards:
        model.save_pretrained(shards, max_shard_size=max_shard_size)
        for path in weight_files(Path(shards)):
            shutil.move(path, staging / path.name)


def weight_files(checkpoint: Path) -> list[Path]:
    """The file of the weights, or the index and the shards it names. Raises ValueError where there are none."""
    files = model_files(checkpoint)
    if not files or files[0].suffix != ".safetensors":
        raise PushError(f"{checkpoint} has no {WEIGHTS}: only safetensors are pushed")
    return files if files == [checkpoint / WEIGHTS] else [checkpoint / WEIGHTS_INDEX, *files]


def _link(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where the system allows none."""
    try:
        target.symlink_to(source.absolute())
    except OSError:
        shutil.copyfile(source, target)


def write_card(checkpoint: Path, staging: Path, config: PreTrainedConfig, facts: CardFacts, overwrite: bool) -> bool:
    """Puts the card into `staging`: the folder's own, or one made from the checkpoint.

    Returns:
        Whether it was made.

    Raises:
        ValueError: the folder's own cannot be read, states no license or not what `facts` do; or none can be made.
    """
    own = checkpoint / CARD_NAME
    text = own.read_text(encoding="utf-8") if own.is_file() else MARK
    made = overwrite or MARK in text
    if made:
        text = str(make_card(checkpoint, config, facts))
    else:
        data = parse_card(text, str(own)).data.to_dict()
        given = {name: value for name, value in vars(facts).items() if value and name != "repo_id"}
        unsaid = [f"--{name}" for name, value in given.items() if data.get(name) != value]
        if unsaid:
            raise PushError(
                f"{own} is kept as it is and does not say {', '.join(unsaid)}: --overwrite_card makes another"
            )
    (staging / CARD_NAME).write_text(text, encoding="utf-8")
    return made


def run_alone(source: str, revision: str | None = None, token: str | None = None) -> list[float]:
    """The output for a fixed clip in a new process without flux_hf and with an empty cache.

    Raises:
        PushError: the process failed; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="flux-hf-") as home:
        environment = {name: value for name, value in os.environ.items() if not NOT_PASSED_ON.fullmatch(name)}
        environment |= {"HF_HOME": home, "HF_HUB_OFFLINE": "0" if revision else "1", "PYTHONWARNINGS": "ignore"}
        if revision and (token := token or get_token()):
            environment["HF_TOKEN"] = token  # a private repository; HF_HOME is where it would be looked up
        command = [sys.executable, str(CLIP_SCRIPT), source, *([revision] if revision else [])]
        finished = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    if finished.returncode != 0:
        where = f"{source} at {revision}" if revision else "the checkpoint"
        reason = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PushError(f"{where} could not be loaded and run in a process without flux_hf: {reason}")
    return json.loads(finished.stdout.splitlines()[-1])
