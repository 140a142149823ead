# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Prints what a checkpoint makes of a fixed clip, loaded as by someone who does not have flux_hf.

    python conversion/clip_logits.py CHECKPOINT_OR_REPO_ID [REVISION]

A process of its own, in which flux_hf cannot be imported: processor and model come through the Auto classes and the
checkpoint's own source files. Run twice, before and after a push, it prints the same line.
"""

import json
import sys


class Absent:
    """An import hook that hides flux_hf, wherever it is installed."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        if name.split(".")[0] == "flux_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def clip_output(source: str, revision: str | None = None) -> list[float]:
    """Logits of a clip of random pixels; of a checkpoint without classifier, the pooled feature.

    Raises:
        ValueError: they are not finite.
    """
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

    remote = {"trust_remote_code": True, "revision": revision or "main"}
    config = AutoConfig.from_pretrained(source, **remote)
    classifies = config.architectures[0].endswith("ForVideoClassification")
    model_class = AutoModelForVideoClassification if classifies else AutoModel
    model = model_class.from_pretrained(source, **remote).eval()
    processor = AutoVideoProcessor.from_pretrained(source, **remote)
    height, width = config.image_height_width
    frames = np.random.default_rng(0).integers(0, 256, (config.num_frames, height, width, 3), dtype=np.uint8)
    inputs = processor(frames, num_frames=config.num_frames, do_sample_frames=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(inputs["pixel_values_videos"].to(model.dtype))
    output = (outputs.logits if classifies else outputs.pooler_output).flatten().float()
    if not torch.isfinite(output).all():
        raise ValueError(f"{source} gives NaN or infinite values for a clip")
    return output.tolist()


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent)
    # a float32 survives this as it is: json writes and reads every digit that matters
    print(json.dumps(clip_output(*sys.argv[1:3])))
