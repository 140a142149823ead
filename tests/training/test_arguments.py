from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin

from training.arguments import parse_arguments
from training.data.sampling import SAMPLING_PRESETS
from training.engine.optim import scaled_learning_rate
from training.pretrain_arguments import parse_pretraining
from training.probe import ProbeArguments


TRAINING = Path(__file__).parents[2] / "training"
PRETRAINING = TRAINING / "recipes" / "pretrain.yaml"
PRETRAINING_RECIPES = sorted((TRAINING / "recipes").glob("pretrain*.yaml"))
RECIPES = sorted({*(TRAINING / "recipes").glob("*.yaml")} - {*PRETRAINING_RECIPES})
CONFIGS = sorted((TRAINING / "accelerate_configs").glob("*.yaml"))
REQUIRED = ["--model_name_or_path", "m", "--data", "t", "--output_dir", "o"]
# Scripts of users hold these: none may go or change its name unnoticed.
FLAGS = """
    model_name_or_path revision cache_dir attn_implementation config_name num_frames size drop_path_rate
    gradient_checkpointing torch_compile new_classifiers classifier_dropout freeze_layers lora_rank lora_alpha
    lora_dropout objective token_budgets alignment_weight mixup cutmix mixup_prob mixup_switch_prob class_weights
    label_smoothing data split data_root dataset_name dataset_config_name video_column label_column frame_template
    multi_label validation_data validation_split dataloader_num_workers streaming shuffle_buffer_size split_stream
    max_train_samples frame_cache frame_cache_short_side frame_cache_max_frames max_failed_share sampling frames
    sizes token_window independent_shapes class_balanced sampling_rule augmentation augment_on_device num_sample
    horizontal_flip per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_train_steps
    learning_rate min_learning_rate warmup_learning_rate no_scale_lr num_warmup_epochs num_warmup_steps
    weight_decay layer_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm ema_decay allow_tf32 num_clips
    num_crops per_device_eval_batch_size max_eval_samples output_dir overwrite_output_dir resume_from_checkpoint
    checkpointing_steps checkpoints_total_limit eval_steps load_best_model_at_end logging_steps report_to run_name
    seed push_to_hub hub_model_id hub_license hub_private_repo hub_token
"""
PROBE_FLAGS = """
    data split data_root dataset_name dataset_config_name video_column label_column frame_template multi_label
    validation_data validation_split dataloader_num_workers model_name_or_path revision cache_dir attn_implementation
    output_dir token_budgets num_frames size probes pooling neighbors shots draws folds group_column learning_rates
    weight_decays num_train_epochs num_warmup_epochs train_batch_size probe_heads per_device_eval_batch_size
    max_eval_samples dtype clips_per_shard seed
"""


def test_the_flags_are_frozen():
    assert list(parse_arguments(REQUIRED).flat()) == FLAGS.split()
    assert [field.name for field in fields(ProbeArguments)] == PROBE_FLAGS.split()


def test_the_command_line_wins_over_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 5e-4\ntoken_budgets: [512, 256]\nno_scale_lr: true\nmixup: 0.5\n")
    args = parse_arguments(["--recipe", str(recipe), "--mixup", "0.1", *REQUIRED])
    assert (args.optimization.learning_rate, args.optimization.no_scale_lr) == (5e-4, True)
    assert (args.objective.token_budgets, args.objective.mixup) == ([512, 256], 0.1)
    assert args.optimization.weight_decay == 0.05


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_it_rests_on(path):
    parse_arguments(["--recipe", str(path), *REQUIRED])
    opening = path.read_text().split("\n\n")[0]
    assert opening.startswith("#")
    assert ("accelerate launch" in opening and "Result:" in opening) or "training.study" in opening


@pytest.mark.parametrize("path", PRETRAINING_RECIPES, ids=lambda path: path.stem)
def test_every_pretraining_recipe_parses_and_says_what_it_rests_on(path):
    parse_pretraining(["--recipe", str(path), "--teacher", "t", "--config_name", "c", *REQUIRED[2:]])
    opening = path.read_text().split("\n\n")[0]
    assert opening.startswith("#") and "accelerate launch" in opening and "Result:" in opening


def test_the_pretraining_recipe_has_the_published_values():
    args = parse_pretraining(["--recipe", str(PRETRAINING), "--teacher", "t", "--config_name", "c", *REQUIRED[2:]])
    how = args.optimization
    assert 8 * how.per_device_train_batch_size * how.gradient_accumulation_steps == 2048
    assert (how.learning_rate, how.num_train_epochs, how.num_warmup_epochs) == (1e-3, 100, 20)
    assert (how.adam_beta1, how.adam_beta2, how.weight_decay) == (0.9, 0.98, 0.05)
    assert (args.teacher.teacher_tokens, args.distillation.student_budgets) == (2048, [2048, 1536, 1024])
    assert (args.model.drop_path_rate, args.augmentation.augmentation) == (0.05, "pretraining")


@pytest.mark.parametrize(
    ("recipe", "clips_a_step", "base_rate", "epochs"),
    [("k400", 512, 2e-4, 5), ("k710", 1024, 2e-4, 35), ("coin", 512, 5e-4, 40), ("ssv2", 256, 5e-4, 30)],
)
def test_recipes_have_the_published_values_on_eight_processes(recipe, clips_a_step, base_rate, epochs):
    args = parse_arguments(["--recipe", str(TRAINING / f"recipes/{recipe}.yaml"), *REQUIRED])
    optimization, mixing, num_sample = args.optimization, args.objective, args.augmentation.num_sample
    assert 8 * optimization.per_device_train_batch_size * optimization.gradient_accumulation_steps == clips_a_step
    assert (optimization.learning_rate, optimization.num_train_epochs, num_sample) == (base_rate, epochs, 2)
    assert (optimization.layer_decay, optimization.weight_decay, args.model.drop_path_rate) == (0.75, 0.05, 0.1)
    assert (mixing.mixup, mixing.cutmix, mixing.label_smoothing, optimization.max_grad_norm) == (0.8, 1.0, 0.0, None)
    assert (args.augmentation.horizontal_flip == 0) == (recipe == "ssv2")
    assert args.sampling.sampling in SAMPLING_PRESETS and mixing.token_budgets == [3072, 2048, 1024]
    if recipe == "k400":
        assert scaled_learning_rate(optimization.learning_rate, clips_a_step, num_sample) == pytest.approx(8e-4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_launch_configurations_are_understood_by_accelerate(path):
    config = load_config_from_file(str(path))
    given = yaml.safe_load(path.read_text())
    assert config.distributed_type.value == given["distributed_type"]
    assert config.num_processes == given["num_processes"] and config.mixed_precision == "bf16"
    if "deepspeed_config" in given:
        settings = given["deepspeed_config"]
        plugin = DeepSpeedPlugin(zero_stage=settings["zero_stage"], gradient_accumulation_steps=2)
        assert plugin.deepspeed_config["zero_optimization"]["stage"] == settings["zero_stage"]


def test_fsdp_wraps_the_modules_that_the_model_names():
    from flux_hf import FluxViTForVideoClassification

    config = yaml.safe_load((TRAINING / "accelerate_configs/fsdp2.yaml").read_text())["fsdp_config"]
    assert config["fsdp_transformer_layer_cls_to_wrap"].split(",") == FluxViTForVideoClassification._no_split_modules


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_frames", "0"], "--num_frames.*0"),
        (["--max_train_steps", "0"], "--max_train_steps.*0"),
        (["--token_budgets", "8", "0"], "--token_budgets.*0"),
        (["--max_failed_share", "1.5"], "--max_failed_share.*1.5"),
        (["--lora_rank", "-1"], "--lora_rank.*-1"),
        (["--learning_rate", "0"], "--learning_rate.*0"),
        (["--config_name", "c"], "'m' and 'c'"),
        (["--dataset_name", "d"], "'t' and 'd'"),
        (["--sampling", "custom", "--frames", "4"], r"custom.*\['frames'\]"),
        (["--sizes", "28"], "--sizes.*paper"),
        (["--checkpointing_steps", "often"], "checkpointing_steps.*often"),
        (["--objective", "single", "--token_budgets", "8", "4"], r"single.*\[8, 4\]"),
        (["--sampling", "custom", "--frames", "4", "--sizes", "28", "--token_window", "9", "3"], r"\[9, 3\]"),
        (["--streaming"], "--dataset_name"),
    ],
)
def test_bad_flags_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*REQUIRED, *words])


def test_bad_recipes_are_named(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learnig_rate: 1.0\n")
    with pytest.raises(ValueError, match="learnig_rate"):
        parse_arguments(["--recipe", str(recipe), *REQUIRED])
    recipe.write_text("- a\n")
    with pytest.raises(ValueError, match="list"):
        parse_arguments(["--recipe", str(recipe), *REQUIRED])
    with pytest.raises(ValueError, match="output_dir"):
        parse_arguments(REQUIRED[:-2])
