# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""The library's own tests of a video processor, run on FluxViT's. Needs the suite of the installed version."""

import unittest

import pytest

import flux_hf  # noqa: F401  registers FluxViT with the Auto classes
from flux_hf.video_processing_fluxvit import FluxViTVideoProcessor


common = pytest.importorskip("hf_common_tests.test_video_processing_common")


class FluxViTVideoProcessingTester:
    batch_size = 5
    num_frames = 8
    num_channels = 3
    min_resolution = 30
    max_resolution = 80
    crop_size = {"height": 18, "width": 18}

    def prepare_video_processor_dict(self):
        return {
            "do_resize": True,
            "size": {"shortest_edge": 20},
            "do_center_crop": True,
            "crop_size": self.crop_size,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_convert_rgb": True,
        }

    def expected_output_video_shape(self, videos):
        return self.num_frames, self.num_channels, self.crop_size["height"], self.crop_size["width"]

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return common.prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class FluxViTVideoProcessingTest(common.VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = FluxViTVideoProcessor
    input_name = "pixel_values_videos"
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        self.video_processor_tester = FluxViTVideoProcessingTester()

    @property
    def video_processor_dict(self):
        return self.video_processor_tester.prepare_video_processor_dict()
