"""Plain VideoMAE, ViViT and V-JEPA 2 folders, and Flux ones, through both pipelines on a real video file."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from flux_models import LABELS, NAMES, library_model
from transformers import (
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    VivitImageProcessor,
    VivitVideoProcessor,
    VJEPA2VideoProcessor,
    pipeline,
)
from video_files import encode

from flux_hf import (
    FluxForVideoClassification,
    FluxViTVideoClassificationPipeline,
    decode_video,
    load_classifier,
    load_processor,
    sample_frame_indices,
)


SMALL = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS = {
    "videomae": VideoMAEVideoProcessor(**{**SMALL, "size": {"shortest_edge": 32}}),
    "videomae, own values": VideoMAEVideoProcessor(**SMALL, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]),
    "videomae, images": VideoMAEImageProcessor(**SMALL),
    "vivit": VivitVideoProcessor(**SMALL),
    "vivit, images": VivitImageProcessor(**SMALL, image_mean=[0.1, 0.2, 0.3]),
    "vivit, images without offset": VivitImageProcessor(**SMALL, offset=False, rescale_factor=1 / 255),
    "vjepa2": VJEPA2VideoProcessor(crop_size=32),
}
ANY_KIND = pytest.mark.parametrize("kind", PROCESSORS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints as the library saves them."""
    made = {}
    for kind, processor in PROCESSORS.items():
        made[kind] = tmp_path_factory.mktemp("plain") / kind.replace(", ", "-").replace(" ", "-")
        library_model(kind.split(",")[0]).save_pretrained(made[kind])
        processor.save_pretrained(made[kind])
    return made


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    folder, paths = tmp_path_factory.mktemp("clips"), []
    for index, (frames, size) in enumerate(((20, (160, 96)), (31, (98, 142)))):
        paths.append(str(folder / f"clip{index}.mp4"))
        Path(paths[-1]).write_bytes(encode("libx264", frames, size=size, first=index * 40))
    return paths


def library_values(kind: str, video: str) -> torch.Tensor:
    """What the library's processor makes of the frames that ours samples: (1, T, 3, H, W)."""
    frames, metadata = decode_video(video, None)
    chosen = np.asarray(frames)[sample_frame_indices(metadata.total_num_frames, 8, 1)[0]]
    chosen = chosen if chosen.shape[-1] == 3 else chosen.transpose(0, 2, 3, 1)
    values = PROCESSORS[kind](list(chosen), return_tensors="pt")
    values = next(iter(values.values()))
    return values if values.ndim == 5 else values[None]


def pixel_width(kind: str) -> torch.Tensor:
    """One level of 255 in a checkpoint's values, of each channel."""
    settings = PROCESSORS[kind].to_dict()
    return (settings["rescale_factor"] / torch.tensor(settings["image_std"])).view(3, 1, 1)


def assert_values(kind: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    levels = ((ours - theirs) / pixel_width(kind)).abs()
    # ViViT's image processor resizes with Pillow, which rounds now and then to the next of 255 levels.
    assert float(levels.max()) < (1.01 if "vivit, images" in kind else 0.01)
    assert float((levels > 0.01).float().mean()) < 0.01


def make_pipeline(folder, **options) -> FluxViTVideoClassificationPipeline:
    ours = {"pipeline_class": FluxViTVideoClassificationPipeline, "device": "cpu"}
    return pipeline("video-classification", model=str(folder), **ours, **options)


def assert_scores(result: list[dict], logits: torch.Tensor) -> None:
    expected = dict(zip(LABELS.values(), logits.softmax(-1)[0].tolist(), strict=True))
    assert len(result) == 5
    for entry in result:
        assert entry["score"] == pytest.approx(expected[entry["label"]], abs=1e-5)


@ANY_KIND
@torch.no_grad()
def test_a_plain_folder_is_wrapped_and_its_processor_followed(kind, folders, clips, caplog):
    name, logger = kind.split(",")[0], logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        classify = make_pipeline(folders[kind])
    finally:
        logger.removeHandler(caplog.handler)
    assert f"is a plain {name}: Flux goes around it, with token budgets [64, 32, 16]" in caplog.text
    assert type(classify.model) is FluxForVideoClassification and not classify.model.training
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for clip in clips:
        ours, theirs = classify.preprocess(clip)["pixel_values_videos"], library_values(kind, clip)
        assert ours.shape == theirs.shape == (1, 8, 3, 32, 32) and theirs.std() > 0.1
        assert_values(kind, ours, theirs)
        whole, few = classify(clip), classify(clip, token_budget=20)
        assert_scores(whole, library_model(name)(ours).logits)
        assert_scores(few, classify.model(ours, token_budget=20).logits)
        assert few != whole


@ANY_KIND
@torch.no_grad()
def test_a_plain_folder_without_the_pipeline(kind, folders, clips):
    model = load_classifier(folders[kind]).eval()
    processor = load_processor(folders[kind], model.config)
    ours, theirs = processor(clips[0], return_tensors="pt")["pixel_values_videos"], library_values(kind, clips[0])
    assert_values(kind, ours, theirs)
    expected = library_model(kind.split(",")[0])(theirs).logits
    torch.testing.assert_close(model(ours).logits, expected, atol=2e-3, rtol=2e-3)
    larger = load_processor(folders[kind], load_classifier(folders[kind], image_size=48, num_frames=4).config)
    assert larger(clips[0], return_tensors="pt")["pixel_values_videos"].shape == (1, 4, 3, 48, 48)
    assert load_processor(folders[kind], model.config, num_frames=6).num_frames == 6


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_without_a_processor_get_the_librarys_default(name, tmp_path, clips):
    library_model(name).save_pretrained(tmp_path)
    model = load_classifier(tmp_path)
    processor = load_processor(tmp_path, model.config)
    values = processor(clips[0], return_tensors="pt")["pixel_values_videos"]
    assert values.shape == (1, 8, 3, 32, 32)
    default = {"videomae": VideoMAEVideoProcessor, "vivit": VivitVideoProcessor, "vjepa2": VJEPA2VideoProcessor}[name]
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    theirs = next(iter(default(do_resize=False, do_center_crop=False)(white, return_tensors="pt").values()))
    ours = processor(white, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(ours, theirs.view_as(ours), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_flux_folder_through_both_pipelines(name, folders, clips, tmp_path, caplog):
    first = make_pipeline(folders[name])
    first.model.config.token_budget, first.model.config.token_plan = 20, {30: [4, 48]}
    first.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    caplog.clear()
    logger.addHandler(caplog.handler)
    try:
        ours = make_pipeline(tmp_path)
        stock = pipeline("video-classification", model=str(tmp_path), device="cpu")
    finally:
        logger.removeHandler(caplog.handler)
    assert "Flux goes around" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    values = first.preprocess(clips[0])["pixel_values_videos"]
    assert torch.equal(ours.preprocess(clips[0])["pixel_values_videos"], values)
    expected = first.model(values, token_budget=20).logits
    assert_scores(ours(clips[0]), expected)
    assert_scores(stock(clips[0], top_k=5), expected)
    assert_scores(ours(clips[0], token_budget=64), library_model(name)(values).logits)
    planned = first.preprocess(clips[0], token_budget=30)["pixel_values_videos"]
    assert planned.shape == (1, 4, 3, 48, 48)
    assert_scores(ours(clips[0], token_budget=30), first.model(planned, token_budget=30).logits)
    views = ours(clips, num_clips=2, num_crops=3, token_budget=20, batch_size=2)
    assert [len(result) for result in views] == [5, 5]


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_different_shapes_are_one_batch(name, folders, clips, tmp_path):
    tall = tmp_path / "tall.mp4"
    tall.write_bytes(encode("libx264", 12, size=(96, 160)))
    classify, videos = make_pipeline(folders[name]), [*clips, str(tall), clips[0]]
    classify.video_processor.keep_aspect_ratio, classify.video_processor.patch_size = True, 8
    assert len({classify.preprocess(video)["pixel_values_videos"].shape for video in videos}) == 3
    batches, flux = [], classify.model.flux
    first = flux.taken_apart.layers(flux.backbone)[0]
    hook = first.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    together = classify(videos, batch_size=4, token_budget=20, num_clips=2)
    hook.remove()
    assert batches == [8]
    for result, video in zip(together, videos, strict=True):
        values = classify.preprocess(video, num_clips=2)["pixel_values_videos"]
        with torch.no_grad():
            scores = classify.model(values, token_budget=20).logits.softmax(-1).mean(0)
        for entry in result:
            assert entry["score"] == pytest.approx(scores[int(entry["label"].split()[1])].item(), abs=1e-5)


def test_a_processor_that_gives_other_values_is_refused(folders):
    model = load_classifier(folders["videomae"])
    with pytest.raises(ValueError, match="must rescale and normalise"):
        FluxViTVideoClassificationPipeline(
            library_model("videomae"), video_processor=VideoMAEVideoProcessor(do_rescale=False), device="cpu"
        )
    assert model.config.num_labels == 5


def test_encoders_that_cannot_drop_tokens_are_refused(tmp_path):
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    TimesformerForVideoClassification(TimesformerConfig(**sizes, num_frames=2, image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'timesformer': its divided attention"):
        load_classifier(tmp_path)
