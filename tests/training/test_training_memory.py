"""The benchmark that computes what a training step takes: its figures are those of a real step."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from tiny import tiny_config

from training.arguments import parse_arguments
from training.data.sampling import ClipShape
from training.pretrain_arguments import parse_pretraining


REPOSITORY = Path(__file__).parents[2]
FOR_CPUS = {REPOSITORY / "training" / "recipes" / "pretrain_small.yaml"}
RECIPES = sorted({*(REPOSITORY / "training" / "recipes").glob("*.yaml")} - FOR_CPUS)


def load_benchmark():
    path = REPOSITORY / "tests" / "benchmarks" / "training_memory.py"
    spec = importlib.util.spec_from_file_location("training_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_computed_step_takes_what_a_real_one_does(bf16, checkpointing):
    memory = load_benchmark()
    args = parse_arguments(["--data", "d", "--config_name", "c", "--output_dir", "o"])
    config = tiny_config(num_hidden_layers=4, image_size=112)
    what = (args, ClipShape(8, 112), 6, bf16, checkpointing)
    computed = memory.computed(config, *what)
    with memory.LiveStorages() as real:
        memory.take_step(memory.blank(config), *what, "cpu")
    assert computed == pytest.approx(real.peak, rel=0.02)
    more = memory.computed(config, args, ClipShape(8, 112), 12, bf16, checkpointing)
    assert 1.5 * computed < more < 2.05 * computed


def launch_lines(recipe: Path) -> list[list[str]]:
    """The words of each `accelerate launch` in the comments of a recipe."""
    comments = "\n".join(line[1:] for line in recipe.read_text().splitlines() if line.startswith("#"))
    joined = re.sub(r"\\\n", " ", comments)
    return [line.split() for line in joined.splitlines() if line.split()[:2] == ["accelerate", "launch"]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_says_how_it_is_launched_on_one_gpu_and_on_eight(recipe):
    """All lines train the clips a step that the recipe names, in bfloat16, under flags that there are."""
    clips_a_step = int(re.search(r"(\d+) clips a step: 8 processes", re.sub(r"\n# ", " ", recipe.read_text()))[1])
    seen = set()
    for words in launch_lines(recipe):
        launch, (module, *flags) = words[: words.index("-m")], words[words.index("-m") + 1 :]
        parse = {"training.finetune": parse_arguments, "training.pretrain": parse_pretraining}[module]
        config = yaml.safe_load((REPOSITORY / launch[launch.index("--config_file") + 1]).read_text())
        args = parse([flag for flag in flags if flag not in "[]"]).optimization
        per_process = args.per_device_train_batch_size * args.gradient_accumulation_steps
        assert config["num_processes"] * per_process == clips_a_step and config["mixed_precision"] == "bf16"
        seen.add(config["num_processes"])
    assert seen == {1, 8}
