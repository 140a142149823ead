# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""From an mp4 to a label: FluxViT-S in our pipeline beside VideoMAE of S width in the stock one.

    PYTHONPATH=. python tests/benchmarks/clip_to_label.py [--threads 1 2] [--budgets 1024 2048] [--rounds 5]
        [--device cuda --dtype bfloat16]

Two files, written here: 3 s of 320x240 and 10 s of 1920x1080, h264 at 30 frames a second. FluxViT reads 16 frames of
224 pixels, from the whole clip; VideoMAE 16 of 224, 1568 tokens, once from the whole clip (`frame_sampling_rate`) and
once the first 16 of the file, the stock pipeline's default. Random weights, one clip a call, rounds interleaved,
medians; "decoding" is all of `preprocess`.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from transformers import (
    VideoClassificationPipeline,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    pipeline,
)

from flux_hf import (
    FluxViTConfig,
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
)


FILES = {"3 s of 320x240": (320, 240, 90), "10 s of 1920x1080": (1920, 1080, 300)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--budgets", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the models; a CPU reads files")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args()


def write_clip(path: Path, width: int, height: int, frames: int) -> None:
    """A textured picture that drifts."""
    texture = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = texture.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * index, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def build(options: argparse.Namespace, num_frames: int) -> dict[str, tuple[VideoClassificationPipeline, dict]]:
    """Pipelines by name, with what their calls are given for a file of so many frames."""
    torch.manual_seed(0)
    config = FluxViTConfig.small(num_labels=400, num_hidden_layers=options.layers)
    ours = FluxViTForVideoClassification._from_config(config, attn_implementation="sdpa").eval()
    place = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    classify = pipeline(
        "video-classification",
        model=ours.to(place["dtype"]),
        **place,
        video_processor=FluxViTVideoProcessor(),
        pipeline_class=FluxViTVideoClassificationPipeline,
    )
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 400}
    videomae = VideoMAEForVideoClassification._from_config(
        VideoMAEConfig(**sizes, num_hidden_layers=options.layers), attn_implementation="sdpa"
    ).eval()
    stock = pipeline(
        "video-classification",
        model=videomae.to(place["dtype"]),
        image_processor=VideoMAEImageProcessor(),
        **place,
    )
    return {
        **{f"ours, {n} tokens": (classify, {"token_budget": n, "num_frames": 16}) for n in options.budgets},
        "VideoMAE, whole clip": (stock, {"frame_sampling_rate": num_frames // 16}),
        "VideoMAE, first frames": (stock, {}),
    }


def measure(pipelines: dict, path: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of decoding and of the whole call, round by round; the first warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        for name, (classify, given) in pipelines.items():
            start = time.perf_counter()
            before, inside, after = classify._sanitize_parameters(**given)
            clip = classify.preprocess(str(path), **before)
            decoded = time.perf_counter() - start
            classify.postprocess(classify.forward(clip, **inside), **after)
            if number:
                times[name].append((decoded, time.perf_counter() - start))
    return times


def main() -> None:
    options = parse_arguments()
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}, {options.dtype}\n")
    print("| file | threads | way | clips/s | of VideoMAE, whole clip | decoding, ms | model, ms |")
    print("|---|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for title in options.files:
            shape = FILES[title]
            path = Path(folder) / "clip.mp4"
            write_clip(path, *shape)
            pipelines = build(options, shape[2])
            for threads in options.threads:
                torch.set_num_threads(threads)
                times = measure(pipelines, path, options.rounds)
                peer = times["VideoMAE, whole clip"]
                for name, of_way in times.items():
                    decoding, whole = (statistics.median(of) for of in zip(*of_way, strict=True))
                    ratio = statistics.median(p[1] / o[1] for p, o in zip(peer, of_way, strict=True))
                    cells = [title, str(threads), name, f"{1 / whole:.2f}", f"{ratio:.2f}", f"{decoding * 1e3:.0f}"]
                    print(f"| {' | '.join(cells)} | {(whole - decoding) * 1e3:.0f} |", flush=True)


if __name__ == "__main__":
    main()
