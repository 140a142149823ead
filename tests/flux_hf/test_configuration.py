import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from flux_hf import FluxViTConfig
from flux_hf.checkpoint_files import SOURCE_FILES


def test_default_is_small():
    assert FluxViTConfig().to_dict() == FluxViTConfig.small().to_dict()


@pytest.mark.parametrize(
    ("size", "width", "layers", "heads", "mlp"),
    [
        ("S", 384, 12, 6, 1536),
        ("B", 768, 12, 12, 3072),
        ("L", 1024, 24, 16, 4096),
        ("1B", 1408, 40, 16, 6144),
        ("6B", 3200, 48, 25, 12800),
    ],
)
def test_internvideo2_sizes(size, width, layers, heads, mlp):
    config = FluxViTConfig.internvideo2(size)
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert found == (width, layers, heads, mlp)
    assert not config.use_dual_patch_norm
    assert not config.use_glpe
    assert config.token_budgets == [2048]


def test_overrides_and_unknown_size():
    config = FluxViTConfig.base(num_labels=5, token_budget=None)
    assert (config.hidden_size, config.num_labels, config.token_budget) == (768, 5, None)
    with pytest.raises(ValueError, match="2B"):
        FluxViTConfig.internvideo2("2B")


def test_round_trip_keeps_every_field(tmp_path):
    config = FluxViTConfig.small(
        token_plan={1024: [16, 196], 512: [8, 224]}, image_size=(224, 308), token_budgets=(100, 50), num_labels=4
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, FluxViTConfig)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.token_plan == {1024: [16, 196], 512: [8, 224]}
    assert again.image_height_width == (224, 308)


def test_save_writes_the_hub_files_and_names_all_auto_classes(tmp_path):
    FluxViTConfig().save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", *SOURCE_FILES}  # which these are is frozen in test_hub_code.py
    auto_map = FluxViTConfig.from_pretrained(tmp_path).auto_map
    classes = "AutoConfig AutoModel AutoModelForPreTraining AutoModelForVideoClassification AutoVideoProcessor"
    assert set(auto_map) == set(classes.split())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("num_attention_heads", 7),
        ("num_pooling_heads", 5),
        ("num_hidden_layers", 0),
        ("intermediate_size", -1),
        ("hidden_act", "gelu_cubic"),
        ("patch_size", 0),
        ("image_size", 225),
        ("image_size", [224, 225]),
        ("image_size", [224, 224, 224]),
        ("image_size", [224]),
        ("num_labels", 0),
        ("layer_scale_init_value", float("nan")),
        ("token_plan", {1024: 12}),
        ("token_plan", {1024.5: [12, 224]}),
        ("num_frames", 0),
        ("position_embedding_grid", [24, 18]),
        ("position_embedding_grid", [24, 18, 0]),
        ("drop_path_rate", 1.0),
        ("attention_dropout", -0.1),
        ("classifier_dropout", 1.5),
        ("rms_norm_eps", 0.0),
        ("layer_norm_eps", -1e-5),
        ("initializer_range", 0.0),
        ("projection_dim", 0),
        ("token_budgets", []),
        ("token_budgets", [1024, 2048]),
        ("token_budgets", [1024, 1024]),
        ("token_budgets", [1024, 0]),
        ("token_budget", 0),
        ("token_selection", "best"),
        ("token_threshold", -1.0),
        ("token_threshold", float("nan")),
        ("num_token_groups", 0),
        ("token_plan", {1024: [16]}),
        ("token_plan", {1024: [16, 225]}),
        ("token_plan", {"many": [16, 224]}),
    ],
)
def test_values_that_cannot_work_name_field_and_value(field, value):
    with pytest.raises(ValueError) as caught:
        FluxViTConfig(**{field: value})
    shown = next(iter(value)) if isinstance(value, dict) else value
    assert field in str(caught.value)
    assert str(shown) in str(caught.value)


def test_unknown_problem_type():
    # transformers 5.17 checks it itself, with an error that is no ValueError
    with pytest.raises(
        (ValueError, StrictDataclassFieldValidationError), match="(?s)problem_type.*multi_label"
    ) as caught:
        FluxViTConfig(problem_type="multi_label")
    assert "single_label_classification" in str(caught.value)


def test_frames_must_be_whole_tubelets():
    with pytest.raises(ValueError, match="num_frames.*tubelet_size=2"):
        FluxViTConfig(num_frames=9, tubelet_size=2)


def test_a_push_uploads_the_source_files(tmp_path):
    config = FluxViTConfig()
    config.save_pretrained(tmp_path)
    # transformers uploads what is newer than these times, or not among them
    assert set(config._get_files_timestamps(tmp_path)) == {"config.json"}
