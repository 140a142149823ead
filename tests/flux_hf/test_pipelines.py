"""Both pipelines on real video files: the stock one unchanged, and ours with budgets, views and batches."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from flux_models import fluxvit_config
from PIL import Image
from transformers import pipeline
from video_files import encode

from flux_hf import (
    FluxViTConfig,
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
    VideoDecodeError,
    decode_video,
    iter_windows,
)


DATA = Path(os.environ.get("FLUX_HF_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    folder, paths = tmp_path_factory.mktemp("clips"), []
    for index, frames in enumerate((20, 31, 9, 25, 12)):
        path = folder / f"clip{index}.mp4"
        path.write_bytes(encode("libx264", frames, size=(160, 96), first=index * 40))
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def model() -> FluxViTForVideoClassification:
    torch.manual_seed(0)
    return FluxViTForVideoClassification(fluxvit_config()).eval()


@pytest.fixture(scope="module")
def processor() -> FluxViTVideoProcessor:
    return FluxViTVideoProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, num_frames=8)


@pytest.fixture(scope="module")
def classify(model, processor) -> FluxViTVideoClassificationPipeline:
    return FluxViTVideoClassificationPipeline(model=model, video_processor=processor, device="cpu")


def expected_scores(model, processor, video, token_budget=None, **views) -> dict[str, float]:
    with torch.no_grad():
        inputs = processor(video, do_sample_frames=True, return_tensors="pt", **{"num_frames": 8, **views})
        scores = model(**inputs, token_budget=token_budget).logits.softmax(-1).mean(0)
    return {model.config.id2label[index]: score for index, score in enumerate(scores.tolist())}


def assert_scores(result, expected, top_k=5):
    assert len(result) == top_k
    assert [entry["score"] for entry in result] == sorted((entry["score"] for entry in result), reverse=True)
    for entry in result:
        assert entry["score"] == pytest.approx(expected[entry["label"]], abs=1e-5)
    assert result[0]["score"] == pytest.approx(max(expected.values()), abs=1e-5)


def test_through_the_pipeline_function(model, processor, clips, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ours = pipeline(
        "video-classification", model=str(tmp_path), pipeline_class=FluxViTVideoClassificationPipeline, device="cpu"
    )
    assert_scores(ours(clips[0], token_budget=40), expected_scores(model, processor, clips[0], 40))
    stock = pipeline("video-classification", model=str(tmp_path), device="cpu")
    assert_scores(stock(clips[0]), expected_scores(model, processor, clips[0]))
    assert_scores(stock(clips[1], num_frames=4, top_k=2), expected_scores(model, processor, clips[1], num_frames=4), 2)


def test_a_saved_pipeline_loads_again(classify, clips, tmp_path):
    classify.save_pretrained(tmp_path)
    again = pipeline("video-classification", model=str(tmp_path), device="cpu")
    assert_scores(again(clips[0]), {entry["label"]: entry["score"] for entry in classify(clips[0])})


@pytest.mark.parametrize(
    "views",
    [{}, {"num_frames": 4}, {"size": 70}, {"num_clips": 2}, {"num_crops": 3}, {"num_clips": 2, "num_crops": 3}],
)
@pytest.mark.parametrize("token_budget", [None, 20, 10**6])
def test_budget_and_views(classify, model, processor, clips, views, token_budget):
    result = classify(clips[0], token_budget=token_budget, **views)
    assert_scores(result, expected_scores(model, processor, clips[0], token_budget, **views))


@pytest.fixture(scope="module")
def planned(model, processor) -> FluxViTVideoClassificationPipeline:
    config = FluxViTConfig.from_dict({**model.config.to_dict(), "token_plan": {40: [4, 84], 20: [12, 42]}})
    with_plan = FluxViTForVideoClassification(config).eval()
    with_plan.load_state_dict(model.state_dict())
    return FluxViTVideoClassificationPipeline(model=with_plan, video_processor=processor, device="cpu")


@pytest.mark.parametrize(
    ("call", "clip"),
    [
        ({"token_budget": 40}, {"num_frames": 4, "size": 84}),
        ({"token_budget": 20}, {"num_frames": 12, "size": 42}),
        ({"token_budget": np.int64(20)}, {"num_frames": 12, "size": 42}),
        ({"token_budget": 30}, {}),
        ({}, {}),
        ({"token_budget": 40, "num_frames": 6}, {"num_frames": 6}),
        ({"token_budget": 40, "size": 70}, {"size": 70}),
    ],
)
def test_the_plan_gives_the_clip_of_a_budget(planned, model, processor, clips, call, clip):
    budget = call.get("token_budget")
    assert_scores(planned(clips[0], **call), expected_scores(model, processor, clips[0], budget, **clip))


def test_the_plan_and_arguments_given_when_the_pipeline_was_made(planned, model, processor, clips):
    parts = {"model": planned.model, "video_processor": processor, "device": "cpu"}
    fixed_clip = FluxViTVideoClassificationPipeline(**parts, num_frames=6)
    assert_scores(fixed_clip(clips[0], token_budget=40), expected_scores(model, processor, clips[0], 40, num_frames=6))
    fixed_budget = FluxViTVideoClassificationPipeline(**parts, token_budget=20)
    views = {"num_frames": 12, "size": 42}
    assert_scores(fixed_budget(clips[0]), expected_scores(model, processor, clips[0], 20, **views))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_keep_order_and_scores(classify, model, processor, clips, batch_size):
    results = classify(clips, batch_size=batch_size, token_budget=30, num_clips=2, top_k=3)
    assert len(results) == len(clips)
    assert classify(clips[0], token_budget=np.int64(30), num_frames=np.int32(8)) == classify(clips[0], token_budget=30)
    for clip, result in zip(clips, results, strict=True):
        assert_scores(result, expected_scores(model, processor, clip, 30, num_clips=2), 3)


@pytest.fixture(scope="module")
def mixed_clips(clips, tmp_path_factory) -> list[str]:
    """Wide, tall and square ones, as the files come."""
    folder, paths = tmp_path_factory.mktemp("mixed"), []
    for index, size in enumerate(((96, 160), (128, 128))):
        paths.append(str(folder / f"clip{index}.mp4"))
        Path(paths[-1]).write_bytes(encode("libx264", 10, size=size, first=index * 50))
    return [clips[0], paths[0], clips[1], paths[1], clips[2]]


@pytest.fixture
def shown(model):
    """Shapes of what the model is given, a list where it is one, call by call; and the batches of its first layer."""
    seen = {"inputs": [], "layers": []}

    def look(_, args, kwargs):
        pixels = kwargs["pixel_values_videos"]
        shapes = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else [tuple(clip.shape) for clip in pixels]
        seen["inputs"].append(shapes)

    hooks = [
        model.register_forward_pre_hook(look, with_kwargs=True),
        model.fluxvit.encoder.layer[0].register_forward_pre_hook(lambda _, args: seen["layers"].append(len(args[0]))),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def classify_whole(model) -> FluxViTVideoClassificationPipeline:
    processor = FluxViTVideoProcessor(size={"shortest_edge": 56}, num_frames=8, keep_aspect_ratio=True)
    return FluxViTVideoClassificationPipeline(model=model, video_processor=processor, device="cpu")


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (4, [4, 1]), (9, [5])])
def test_batches_of_clips_whose_shapes_differ(classify_whole, model, mixed_clips, shown, batch_size, batches):
    results = classify_whole(mixed_clips, batch_size=batch_size)
    assert shown["layers"] == batches
    for video, result in zip(mixed_clips, results, strict=True):
        assert_scores(result, expected_scores(model, classify_whole.video_processor, video))


def test_views_of_clips_whose_shapes_differ(classify_whole, model, mixed_clips, shown):
    results = classify_whole(mixed_clips, batch_size=3, num_clips=2, num_frames=5, token_budget=60)
    wide, tall, square = (2, 5, 3, 56, 98), (2, 5, 3, 98, 56), (2, 5, 3, 56, 56)
    assert shown["inputs"] == [[wide, tall, wide], [square, wide]] and shown["layers"] == [6, 4]
    shown["inputs"].clear()
    classify_whole(mixed_clips[::2], batch_size=3, num_clips=2, num_frames=5, token_budget=60)
    assert shown["inputs"] == [(6, *wide[1:])]  # one tensor where it can be
    for video, result in zip(mixed_clips, results, strict=True):
        views = {"num_clips": 2, "num_frames": 5}
        assert_scores(result, expected_scores(model, classify_whole.video_processor, video, 60, **views))


@pytest.mark.parametrize("token_budget", [130, 10**6])
def test_a_batch_ends_where_fewer_tokens_are_kept(classify_whole, model, mixed_clips, shown, token_budget):
    """Of 8 frames the square clip has 128 tokens, the others 224."""
    results = classify_whole(mixed_clips, batch_size=9, token_budget=token_budget)
    assert shown["layers"] == [3, 1, 1]
    for video, result in zip(mixed_clips, results, strict=True):
        assert_scores(result, expected_scores(model, classify_whole.video_processor, video, token_budget))


def test_every_kind_of_input(classify, model, processor, clips):
    expected = expected_scores(model, processor, clips[0])
    frames, _ = decode_video(clips[0], None)
    array = np.asarray(frames)
    videos = {
        "path": Path(clips[0]),
        "bytes": Path(clips[0]).read_bytes(),
        "array": array,
        "tensor": torch.as_tensor(array),
        "images": [Image.fromarray(frame) for frame in _channels_last(array)],
        "tuple of images": tuple(Image.fromarray(frame) for frame in _channels_last(array)),
    }
    for video in videos.values():
        assert_scores(classify(video), expected)
    with open(clips[0], "rb") as stream:
        assert_scores(classify(stream), expected)
    for result in classify([videos["array"], videos["path"], videos["images"]]):
        assert_scores(result, expected)
    for result in classify(np.stack([array, array])):
        assert_scores(result, expected)


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_grey_and_palette_images_are_frames_of_one_video(classify, model, processor, count):
    generator = np.random.default_rng(0)
    grey = [Image.fromarray(generator.integers(0, 256, (80, 100), dtype=np.uint8)) for _ in range(count)]
    expected = expected_scores(model, processor, [frame.convert("RGB") for frame in grey])
    for frames in (grey, tuple(grey), [frame.convert("P") for frame in grey]):
        assert_scores(classify(frames), expected)
        assert_scores(classify([frames, frames])[1], expected)


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array if array.shape[-1] == 3 else array.transpose(0, 2, 3, 1)


def test_generators_stream(classify, clips):
    asked = []

    def source():
        for index in range(100):
            asked.append(index)
            yield clips[index % len(clips)]

    results = classify(source(), batch_size=2)
    assert len(next(iter(results))) == 5
    assert len(asked) < 12  # a few clips ahead, not all of them


def test_no_videos(classify):
    assert classify([]) == []


def test_multi_label_scores_are_sigmoids(model, processor, clips):
    config = FluxViTConfig.from_dict({**model.config.to_dict(), "problem_type": "multi_label_classification"})
    multi = FluxViTForVideoClassification(config).eval()
    multi.load_state_dict(model.state_dict())
    classify = FluxViTVideoClassificationPipeline(model=multi, video_processor=processor, device="cpu")
    with torch.no_grad():
        logits = multi(**processor(clips[0], num_clips=2, return_tensors="pt")).logits
    result = classify(clips[0], num_clips=2, top_k=100)
    assert len(result) == 7
    assert result[0]["score"] == pytest.approx(logits.sigmoid().mean(0).max().item(), abs=1e-5)
    raw = classify(clips[0], num_clips=2, function_to_apply="none")
    assert raw[0]["score"] == pytest.approx(logits.mean(0).max().item(), abs=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"token_budget": 0},
        {"token_budget": -1},
        {"token_budget": 2.5},
        {"num_frames": 0},
        {"num_clips": 0},
        {"num_crops": -2},
        {"top_k": 0},
        {"function_to_apply": "argmax"},
    ],
)
def test_errors_name_the_value(classify, clips, arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError) as caught:
        classify(clips[0], **arguments)
    assert name in str(caught.value)
    assert str(value) in str(caught.value)


def test_a_bad_clip_in_a_batch_is_named(classify, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    with pytest.raises(VideoDecodeError, match=r"broken\.mp4"):
        classify([clips[0], str(broken), clips[1]], batch_size=2)
    assert len(classify(clips[0])) == 5  # and the pipeline goes on


def real_clips(pattern: str) -> list[Path]:
    return sorted(DATA.glob(pattern))


@pytest.fixture(scope="module")
def small_model() -> FluxViTForVideoClassification:
    torch.manual_seed(0)
    return FluxViTForVideoClassification(FluxViTConfig.small(num_labels=400)).eval()


@pytest.mark.skipif(not DATA.is_dir(), reason="the real clips are not beside this checkout")
@pytest.mark.parametrize("token_budget", [2048, 512])
def test_some_real_clips_at_full_size(small_model, token_budget):
    videos = [str(real_clips(f"{name}/**/*.*4")[0]) for name in ("handwash12", "surveillance_fight")]
    videos += [str(path) for path in real_clips("ut_interaction/**/*.avi")[:1]]
    classify = FluxViTVideoClassificationPipeline(
        model=small_model, video_processor=FluxViTVideoProcessor(num_frames=12), device="cpu"
    )
    results = classify(videos, token_budget=token_budget)
    assert [len(result) for result in results] == [5] * len(videos)
    assert all(0 < entry["score"] < 1 for result in results for entry in result)


def test_windows_are_labelled_as_each_alone(classify, model, processor, clips):
    """Whatever the batch; 31 frames at 25 a second are windows of 0.4 s, and a shorter last one."""
    windows = list(iter_windows(clips[1], 0.4, 0.4, 8))
    assert len(windows) == 4
    for options in ({}, {"batch_size": 3}, {"batch_size": 9}):
        found = classify(clips[1], window=0.4, token_budget=32, top_k=2, **options)
        assert [(label["start"], label["end"]) for label in found] == [(w.start, w.end) for w in windows]
        for label, window in zip(found, windows, strict=True):
            with torch.no_grad():
                inputs = processor(window.frames, do_sample_frames=False, return_tensors="pt")
                scores = model(**inputs, token_budget=32).logits.softmax(-1)[0]
            expected = {model.config.id2label[index]: score for index, score in enumerate(scores.tolist())}
            assert_scores(label["labels"], expected, top_k=2)


def test_windows_of_several_videos_and_views(classify, model, clips):
    found = classify(clips[:2], window=0.4, stride=0.2, num_crops=3, num_frames=4, size=42)
    assert [len(of_video) for of_video in found] == [3, 6]
    assert classify(iter(clips[:2]), window=0.4, stride=0.2, num_crops=3, num_frames=4, size=42) == found
    with open(clips[0], "rb") as file:
        assert classify(file, window=0.4, stride=0.2, num_crops=3, num_frames=4, size=42) == found[0]
    shown = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shown.append(tuple(kwargs["pixel_values_videos"].shape)), with_kwargs=True
    )
    classify(clips[0], window=0.4, num_crops=3, num_frames=4, size=42)
    hook.remove()
    assert shown == [(3, 4, 3, 42, 42)] * 2


def test_windows_before_the_damage_are_labelled(classify, tmp_path):
    data = encode("libx264", 75, container="matroska", options={"g": "5"})
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    labels, windows = [], classify.iter_windows(str(tmp_path / "cut.mkv"), 0.2, batch_size=4)
    with pytest.raises(VideoDecodeError, match=r"cut\.mkv"):
        for found in windows:
            labels.append(found)
    whole = classify(data, window=0.2)
    assert 4 <= len(labels) < len(whole)
    for one, other in zip(labels, whole, strict=False):
        assert (one["start"], one["end"]) == (other["start"], other["end"])
        assert one["labels"][0]["score"] == pytest.approx(other["labels"][0]["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 1.0}, "stride=1.0 is for windows: give window too"),
        ({"window": 0.0}, "must be finite and above 0, got 0.0"),
        ({"window": 1.0, "num_clips": 2}, r"\['num_clips'\] cannot be given with window"),
        ({"window": 1.0, "batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_not_for_windows_is_refused(classify, clips, options, message):
    with pytest.raises(ValueError, match=message):
        classify(clips[0], **options)
