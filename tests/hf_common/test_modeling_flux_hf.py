"""The transformers library's own tests of a configuration and its models, run on Flux around each encoder.

The suite comes from the library's source distribution, of the version installed. One encoder is run by default: what is
composite is the same for all.
"""

import unittest

import hf_common_tests.test_modeling_common as common
import pytest
import torch
from hf_common_tests.test_configuration_common import ConfigTester
from hf_common_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers import VideoMAEConfig, VivitConfig, VJEPA2Config
from transformers.testing_utils import require_torch, torch_device

from flux_hf import FluxConfig, FluxForVideoClassification, FluxModel


# The mixins tell base models and models with labels by name, in tables that `Auto*.register` does not extend.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "flux_video": "FluxModel"}
common.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES = {
    **common.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "flux_video": "FluxForVideoClassification",
}


class FluxModelTester:
    batch_size = 3
    num_frames = 8
    image_size = 32
    token_budget = 16
    num_labels = 3
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, parent, backbone_config, num_class_tokens):
        self.parent = parent
        self.backbone_config = backbone_config
        self.seq_length = self.encoder_seq_length = num_class_tokens + self.token_budget

    def get_config(self) -> FluxConfig:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        backbone_config = self.backbone_config(**{name: getattr(self, name) for name in sizes})
        budgets = {"token_budgets": [32, 16, 8], "token_budget": self.token_budget}
        return FluxConfig(backbone_config=backbone_config, **budgets, num_labels=self.num_labels)

    def prepare_config_and_inputs(self):
        shape = [self.batch_size, self.num_frames, 3, self.image_size, self.image_size]
        return self.get_config(), floats_tensor(shape), ids_tensor([self.batch_size], self.num_labels)

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values_videos, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values_videos": pixel_values_videos}


class FluxModelTests(ModelTesterMixin):
    all_model_classes = (FluxModel, FluxForVideoClassification)
    _is_composite = True
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    backbone_config = None
    num_class_tokens = 0

    def setUp(self):
        self.model_tester = FluxModelTester(self, self.backbone_config, self.num_class_tokens)
        self.config_tester = ConfigTester(self, config_class=FluxConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="Flux takes pixels, no inputs_embeds")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv3d)
            self.assertTrue(model.get_output_embeddings() is None)

    def test_model(self):
        config, pixel_values_videos, labels = self.model_tester.prepare_config_and_inputs()
        outputs = FluxForVideoClassification(config).to(torch_device).eval()(pixel_values_videos, labels=labels)
        tester = self.model_tester
        self.assertEqual(outputs.keep_indices.shape, (tester.batch_size, tester.token_budget))
        self.assertEqual(outputs.last_hidden_state.shape, (tester.batch_size, tester.seq_length, tester.hidden_size))
        self.assertEqual(outputs.logits.shape, (tester.batch_size, tester.num_labels))
        self.assertTrue(torch.isfinite(outputs.loss))


@pytest.mark.slow
@require_torch
class FluxVideoMAETest(FluxModelTests, unittest.TestCase):
    @staticmethod
    def backbone_config(**sizes) -> VideoMAEConfig:
        return VideoMAEConfig(
            **sizes,
            intermediate_size=48,
            num_frames=8,
            image_size=32,
            patch_size=8,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=24,
        )


@require_torch
class FluxVivitTest(FluxModelTests, unittest.TestCase):
    num_class_tokens = 1

    @staticmethod
    def backbone_config(**sizes) -> VivitConfig:
        return VivitConfig(**sizes, intermediate_size=48, num_frames=8, image_size=32, tubelet_size=[2, 8, 8])


@pytest.mark.slow
@require_torch
class FluxVJEPA2Test(FluxModelTests, unittest.TestCase):
    @staticmethod
    def backbone_config(**sizes) -> VJEPA2Config:
        return VJEPA2Config(
            **sizes,
            mlp_ratio=1.5,
            frames_per_clip=8,
            crop_size=32,
            patch_size=8,
            num_pooler_layers=1,
            pred_hidden_size=16,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )


del FluxModelTests
