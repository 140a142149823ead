"""The search finds the clip that the labels were made with, and the plan reaches processor and pipeline."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_parts import direct_scores, save_checkpoint, tiny_model, tiny_processor, write_clips
from transformers import pipeline

from flux_hf import (
    FluxViTConfig,
    FluxViTForVideoClassification,
    FluxViTVideoClassificationPipeline,
    FluxViTVideoProcessor,
)
from training.inference.points import EvalPoint
from training.inference.search import best_point, candidates, make_grid
from training.optimize_tokens import main, parse_arguments, write_plan


def write_data(folder: Path, hidden: EvalPoint) -> Path:
    """Clips labelled with what the model says of them at the point `hidden`."""
    model, processor = tiny_model(), tiny_processor()
    paths = write_clips(folder)
    best = [int(direct_scores(model, processor, path, hidden).argmax()) for path in paths]
    rows = [f"{path.relative_to(folder)},class {index}" for path, index in zip(paths, best, strict=True)]
    (folder / "val.csv").write_text("\n".join(["path,label", *rows, ""]))
    return folder / "val.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("clips"), EvalPoint(8, 28, 16))


def flags(checkpoint: Path, data: Path, *more: str) -> list[str]:
    fixed = ["--model_name_or_path", str(checkpoint), "--data", str(data), "--dataloader_num_workers", "0"]
    return [*fixed, *more]


GRID = ["--frames", "2", "4", "8", "--sizes", "28", "42"]


def test_the_search_finds_the_hidden_clip_and_writes_it(data, tmp_path, capsys):
    checkpoint = save_checkpoint(tmp_path / "model", token_plan={64: [12, 28], 16: [4, 28]})
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    main(flags(checkpoint, data, *GRID, "--token_budgets", "16", "100"))

    report = json.loads((checkpoint / "token_plan_search.json").read_text())
    at_16, at_100 = sorted(report["budgets"], key=lambda entry: entry["token_budget"])
    assert (at_16["best"]["num_frames"], at_16["best"]["size"], at_16["best"]["accuracy"]) == (8, 28, 1.0)
    measured = {(point["num_frames"], point["size"]): point["accuracy"] for point in at_16["points"]}
    assert set(measured) == {(2, 42), (4, 28), (4, 42), (8, 28), (8, 42)}
    left_out = [(point["num_frames"], point["size"], point["accuracy"]) for point in at_16["too_few_tokens"]]
    assert left_out == [(2, 28, None)]
    # of 100 tokens no pair has enough, so none is left out
    assert len(at_100["points"]) == 6 and at_100["too_few_tokens"] == []
    labels = [line.split(",")[1] for line in data.read_text().splitlines()[1:]]
    for (num_frames, size), accuracy in [*measured.items(), ((4, 28), at_16["direct"]["accuracy"])]:
        point = EvalPoint(num_frames, size, 16)
        paths = [data.parent / line.split(",")[0] for line in data.read_text().splitlines()[1:]]
        said = [int(direct_scores(tiny_model(), tiny_processor(), path, point).argmax()) for path in paths]
        hits = [f"class {index}" == label for index, label in zip(said, labels, strict=True)]
        assert accuracy == pytest.approx(sum(hits) / len(hits))

    best_100 = [at_100["best"]["num_frames"], at_100["best"]["size"]]
    plan = {100: best_100, 64: [12, 28], 16: [8, 28]}  # 64 was not searched
    assert report["token_plan"] == {str(budget): clip for budget, clip in plan.items()}
    assert FluxViTConfig.from_pretrained(checkpoint).token_plan == plan
    assert FluxViTVideoProcessor.from_pretrained(checkpoint).token_plan == plan
    after = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"config.json", "video_preprocessor_config.json", "token_plan_search.json"}
    old, new = (json.loads(files["config.json"]) for files in (before, after))
    assert {**old, "token_plan": None} == {**new, "token_plan": None}
    printed = capsys.readouterr().out
    assert "100.00*" in printed and "- has fewer than 16 tokens" in printed


def test_the_plan_reaches_pipeline_and_processor(data, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "model")
    main(flags(checkpoint, data, *GRID, "--token_budgets", "16"))
    classify = pipeline(
        "video-classification", model=str(checkpoint), pipeline_class=FluxViTVideoClassificationPipeline, device="cpu"
    )
    processor = FluxViTVideoProcessor.from_pretrained(checkpoint)
    for line in data.read_text().splitlines()[1:]:
        name, label = line.split(",")
        assert classify(str(data.parent / name), token_budget=16)[0]["label"] == label
        assert processor(str(data.parent / name), token_budget=16, return_tensors="pt")[
            "pixel_values_videos"
        ].shape == (1, 8, 3, 28, 28)
    # and it stays when both are saved again
    classify.save_pretrained(tmp_path / "again")
    assert FluxViTConfig.from_pretrained(tmp_path / "again").token_plan == {16: [8, 28]}
    assert FluxViTVideoProcessor.from_pretrained(tmp_path / "again").token_plan == {16: [8, 28]}


def test_a_copy_of_the_checkpoint(data, tmp_path):
    checkpoint, copy = save_checkpoint(tmp_path / "model"), tmp_path / "copy"
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    main(flags(checkpoint, data, *GRID, "--token_budgets", "16", "--output_dir", str(copy)))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert {path.name for path in copy.iterdir()} == {*before, "token_plan_search.json"}
    model = FluxViTForVideoClassification.from_pretrained(copy)
    assert model.config.token_plan == {16: [8, 28]}
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_failed_clips_do_not_count(data, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "val.csv").write_text(data.read_text() + f"{tmp_path / 'broken.mp4'},class 0\n")
    checkpoint = save_checkpoint(tmp_path / "model")
    main(flags(checkpoint, tmp_path / "val.csv", "--data_root", str(data.parent), *GRID, "--token_budgets", "16"))
    report = json.loads((checkpoint / "token_plan_search.json").read_text())
    assert report["budgets"][0]["best"]["accuracy"] == 1.0
    assert (report["clips"], report["clips_counted"], len(report["failures"])) == (7, 6, 1)


# --- the parts -------------------------------------------------------------------------------------------------------


def test_candidates_spend_the_budget():
    config = tiny_model().config
    grid = [EvalPoint(2, 28, 16), EvalPoint(4, 28, 16), EvalPoint(8, 28, 16)]  # 8, 16, 32 tokens
    assert candidates(grid, config) == (grid[1:], grid[:1])
    few = [EvalPoint(2, 28, 33), EvalPoint(8, 28, 33)]
    assert candidates(few, config) == (few, [])


def test_equal_points_go_to_fewer_dense_tokens_then_fewer_frames():
    config = tiny_model().config
    small, wide, long, large = (EvalPoint(*pair, 16) for pair in ((4, 28), (4, 42), (9, 28), (8, 42)))
    assert best_point({large: 0.7, small: 0.7, wide: 0.7}, config) == small
    assert best_point({long: 0.7, wide: 0.7}, config) == wide  # 36 tokens each
    assert best_point({small: 0.7, large: 0.71}, config) == large


def test_the_grid_respects_tubelets_and_patches():
    paper = make_grid(FluxViTConfig())
    assert paper == [(frames, size) for frames in (4, 6, 8, 10, 12, 16, 20, 24) for size in (168, 196, 224, 252)]
    other = make_grid(FluxViTConfig(tubelet_size=4, patch_size=16))
    assert other == [(frames, size) for frames in (4, 8, 12, 16, 20, 24) for size in (192, 224, 256, 288)]
    assert make_grid(FluxViTConfig(), [6, 2, 6], [28]) == [(2, 28), (6, 28)]
    with pytest.raises(ValueError, match="3x28.*tubelet_size=2"):
        make_grid(FluxViTConfig(tubelet_size=2), [3], [28])
    with pytest.raises(ValueError, match="2x30.*patch_size=14"):
        make_grid(FluxViTConfig(), [2], [30])
    with pytest.raises(ValueError, match="tubelet_size=7"):
        make_grid(FluxViTConfig(tubelet_size=7, num_frames=7, token_budget=None), None, [28])


def test_a_plan_is_written_where_the_processor_is_read_from(tmp_path):
    """Newer checkpoints may keep the processor's settings inside processor_config.json, which is read first."""
    checkpoint = save_checkpoint(tmp_path)
    settings = json.loads((checkpoint / "video_preprocessor_config.json").read_text())
    (checkpoint / "processor_config.json").write_text(json.dumps({"video_processor": settings, "other": 1}))
    write_plan(checkpoint, {16: [8, 42]})
    assert FluxViTVideoProcessor.from_pretrained(checkpoint).token_plan == {16: [8, 42]}
    assert json.loads((checkpoint / "processor_config.json").read_text())["other"] == 1
    for name in ("processor_config.json", "video_preprocessor_config.json"):
        (checkpoint / name).unlink()
    with pytest.raises(ValueError, match="video_preprocessor_config.json"):
        write_plan(checkpoint, {4: [8, 42]})
    with pytest.raises(ValueError, match="token_plan"):
        write_plan(checkpoint, {4: [8, 43]})
    assert FluxViTConfig.from_pretrained(checkpoint).token_plan == {16: [8, 42]}


def test_places_a_plan_cannot_be_written_to(data, tmp_path):
    with pytest.raises(ValueError, match="some/hub-id.*--output_dir"):
        parse_arguments(flags(Path("some/hub-id"), data))
    with pytest.raises(ValueError, match="holds files"):
        parse_arguments(flags(Path("some/hub-id"), data, "--output_dir", str(data.parent)))


def test_a_threshold_is_not_searched_with(data, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "model", token_selection="threshold", token_threshold=1.0)
    with pytest.raises(ValueError, match="a search needs one number of tokens .* token_selection is 'threshold'"):
        main(flags(checkpoint, data, *GRID, "--token_budgets", "16"))
