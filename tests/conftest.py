"""What all tests share: no network, and the markers of the transformers library's own test suite."""

import os


# Read at import time by huggingface_hub, so set before anything imports it. Tests that talk to a server of their own
# do so from processes they start.
os.environ["HF_HUB_OFFLINE"] = "1"

TRANSFORMERS_MARKERS = (
    "is_pipeline_test is_staging_test accelerate_tests not_device_test torch_compile_test torch_export_test "
    "flash_attn_test flash_attn_3_test flash_attn_4_test all_flash_attn_test bitsandbytes generate is_training_test "
    "is_tensor_parallel_test is_expert_parallel_test is_fsdp_test"
)


def pytest_configure(config):
    for name in TRANSFORMERS_MARKERS.split():
        config.addinivalue_line("markers", f"{name}: marker of the transformers library's test suite")
