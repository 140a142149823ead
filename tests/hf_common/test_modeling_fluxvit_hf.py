"""The transformers library's own tests of a configuration and its models, run on FluxViT.

The suite comes from the library's source distribution, of the version installed.
"""

import unittest

import hf_common_tests.test_modeling_common as common
import torch
from hf_common_tests.test_configuration_common import ConfigTester
from hf_common_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.testing_utils import require_torch, torch_device

from flux_hf import FluxViTConfig, FluxViTForPreTraining, FluxViTForVideoClassification, FluxViTModel
from flux_hf.modeling_fluxvit import FluxViTPatchEmbeddings


# The mixins tell models without a loss and models with labels by name, in tables that `Auto*.register` does not extend.
common.MODEL_MAPPING_NAMES = {
    **common.MODEL_MAPPING_NAMES,
    "fluxvit": "FluxViTModel",
    "fluxvit_student": "FluxViTForPreTraining",
}
common.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES = {
    **common.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "fluxvit": "FluxViTForVideoClassification",
}


class FluxViTModelTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.num_frames = 8
        self.image_size = 28
        self.token_budget = 16
        self.num_labels = 3
        self.is_training = True
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.seq_length = self.encoder_seq_length = 1 + self.token_budget

    def get_config(self) -> FluxViTConfig:
        return FluxViTConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=48,
            num_pooling_heads=2,
            projection_dim=24,
            position_embedding_grid=[4, 2, 2],
            image_size=self.image_size,
            num_frames=self.num_frames,
            token_budgets=[24, 16, 8],
            token_budget=self.token_budget,
            layer_scale_init_value=0.5,
            num_labels=self.num_labels,
            alignment_layers=[0, 1],
            teacher_hidden_size=40,
            teacher_projection_dim=20,
        )

    def prepare_config_and_inputs(self):
        shape = [self.batch_size, self.num_frames, 3, self.image_size, self.image_size]
        labels = ids_tensor([self.batch_size], self.num_labels)
        return self.get_config(), floats_tensor(shape), labels

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values_videos, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values_videos": pixel_values_videos}

    def check_model(self, config, pixel_values_videos, labels):
        outputs = FluxViTModel(config).to(torch_device).eval()(pixel_values_videos)
        kept = (self.batch_size, self.token_budget)
        self.parent.assertEqual(outputs.keep_indices.shape, kept)
        self.parent.assertEqual(outputs.last_hidden_state.shape, (kept[0], 1 + kept[1], self.hidden_size))
        self.parent.assertEqual(outputs.pooler_output.shape, (self.batch_size, config.projection_dim))

    def check_video_classification(self, config, pixel_values_videos, labels):
        model = FluxViTForVideoClassification(config).to(torch_device).eval()
        outputs = model(pixel_values_videos, labels=labels)
        self.parent.assertEqual(outputs.logits.shape, (self.batch_size, self.num_labels))
        self.parent.assertTrue(torch.isfinite(outputs.loss))


@require_torch
class FluxViTModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (FluxViTModel, FluxViTForVideoClassification, FluxViTForPreTraining)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    # A forward uses one of the heads; the others get no gradient.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = FluxViTModelTester(self)
        self.config_tester = ConfigTester(
            self, config_class=FluxViTConfig, has_text_modality=False, hidden_size=96, num_pooling_heads=4
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="FluxViT takes pixels, no inputs_embeds")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), FluxViTPatchEmbeddings)
            self.assertTrue(model.get_output_embeddings() is None)

    def test_model(self):
        self.model_tester.check_model(*self.model_tester.prepare_config_and_inputs())

    def test_for_video_classification(self):
        self.model_tester.check_video_classification(*self.model_tester.prepare_config_and_inputs())
