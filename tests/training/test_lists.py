"""Lists of clips and recipes as people write them: read right, or refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from flux_hf import VideoDecodeError
from training.arguments import parse_arguments, read_recipe
from training.data.frame_cache import cache_clips
from training.data.sources import read_clips
from training.inference.command import find_clips
from training.study.motion_clips import write_video


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4", "c,d.mp4", "e f.mp4"):
        (tmp_path / "v").mkdir(exist_ok=True)
        (tmp_path / "v" / name).touch()
    return tmp_path


def read(folder, text, name="list.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return [(os.path.basename(clip.path), clip.label) for clip in read_clips(folder / name)]


AB = [("a.mp4", "x"), ("b.mp4", "y")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\nv/a.mp4,x\nv/b.mp4,y\n", AB),
        ("\ufeffpath,label\nv/a.mp4,x\nv/b.mp4,y\n", AB),
        ("\ufeffv/a.mp4,x\nv/b.mp4,y\n", AB),
        ("path,label\r\nv/a.mp4,x\r\nv/b.mp4,y\r\n", AB),
        ("path,label\rv/a.mp4,x\rv/b.mp4,y\r", AB),
        ("path;label\nv/a.mp4;x\nv/b.mp4;y\n", AB),
        ("v/a.mp4;x\nv/b.mp4;y\n", AB),
        ("Path,Label\nv/a.mp4,x\nv/b.mp4,y\n", AB),
        ("PATH , LABEL\nv/a.mp4 , x\nv/b.mp4 , y\n", AB),
        (",path,label\n0,v/a.mp4,x\n1,v/b.mp4,y\n", AB),
        ("v/a.mp4\tx, then y\nv/b.mp4\ty\n", [("a.mp4", "x, then y"), ("b.mp4", "y")]),
        ("v/c,d.mp4\tx\nv/b.mp4\ty\n", [("c,d.mp4", "x"), ("b.mp4", "y")]),
        ("v/c,d.mp4 0\nv/e f.mp4 1\n", [("c,d.mp4", "0"), ("e f.mp4", "1")]),
        ("v/a.mp4,class 1\nv/b.mp4,class 2\n", [("a.mp4", "class 1"), ("b.mp4", "class 2")]),
        ('path,label\n"v/c,d.mp4",x\nv/b.mp4,y\n', [("c,d.mp4", "x"), ("b.mp4", "y")]),
    ],
)
def test_lists_as_people_write_them(folder, text, expected):
    assert read(folder, text) == expected


@pytest.mark.parametrize("text", ['path\n"v/c,d.mp4"\nv/e f.mp4\n', "path\nv/c,d.mp4\nv/e f.mp4\n"])
def test_lists_of_names_alone(folder, text):
    (folder / "list.csv").write_text(text)
    clips = read_clips(folder / "list.csv", labelled=False)
    assert [os.path.basename(clip.path) for clip in clips] == ["c,d.mp4", "e f.mp4"]


def test_columns_of_another_case_are_found_by_name(folder):
    text = "Split,LABEL,Path\ntest,x,v/a.mp4\ntrain,y,v/b.mp4\n"
    (folder / "list.csv").write_text(text)
    [clip] = read_clips(folder / "list.csv", split="train")
    assert clip.label == "y"


def test_another_encoding_is_refused_by_line(folder):
    with pytest.raises(ValueError, match=r"list.csv line 3 is not in the encoding UTF-8"):
        read(folder, "path,label\nv/b.mp4,y\nv/a.mp4,été\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"list.csv line 1 is not in the encoding UTF-8"):
        read(folder, "path,label\nv/a.mp4,x\n", encoding="utf-16")


def test_a_bar_is_part_of_a_label_unless_asked_for(folder):
    assert read(folder, "path,label\nv/a.mp4,open|close\n") == [("a.mp4", "open|close")]
    assert read_clips(folder / "list.csv", multi_label=True)[0].label == ("open", "close")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_every_ending_and_linked_folders(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for name in ("a.gif", "b.MTS", "c.m2ts", "d.vob"):
        (tmp_path / "elsewhere" / "deep" / name).touch()
    (tmp_path / "set" / "class").mkdir(parents=True)
    (tmp_path / "set" / "class" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "set")  # no end, if followed without care
    (tmp_path / "set" / "class" / "folder.mp4").mkdir()
    assert [Path(clip.path).name for clip in read_clips(tmp_path / "set")] == ["a.gif", "b.MTS", "c.m2ts", "d.vob"]
    assert len(find_clips([str(tmp_path / "set")])) == 4


def test_two_classes_may_link_to_one_folder(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.mp4").touch()
    for label in ("run", "sit"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "more").symlink_to(tmp_path / "shared")
    assert [clip.name for clip in read_clips(tmp_path / "set")] == ["run/more/a.mp4", "sit/more/a.mp4"]


def test_a_video_beside_the_class_folders_is_an_error(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.mp4").touch()
    (tmp_path / "lost.mp4").touch()
    with pytest.raises(ValueError, match="'lost.mp4' lies beside them"):
        read_clips(tmp_path)


# --- recipes ---------------------------------------------------------------------------------------------------------

REQUIRED = ["--model_name_or_path", "m", "--data", "t", "--output_dir", "o"]


def test_parts_of_a_video_are_clips(tmp_path):
    """20 frames at 10 a second, each a grey level of its own; the parts in words, in a frame cache, and decoded."""
    levels = np.arange(20, dtype=np.uint8) * 10 + 20
    write_video(tmp_path / "a.mp4", np.broadcast_to(levels[:, None, None, None], (20, 32, 32, 3)).copy(), 10)
    rows = ["a.mp4,x,0.5,0.8", "a.mp4,x,,0.25", "a.mp4,y,1.75,", "a.mp4,y,,", "a.mp4,z,1.9,99", "a.mp4,z,0.41,0.42"]
    (tmp_path / "list.csv").write_text("path,label,start,end\n" + "\n".join(rows) + "\n")
    clips = read_clips(tmp_path / "list.csv")
    wanted = [[5, 6, 7], [0, 1, 2], [18, 19], list(range(20)), [19], [5]]
    assert [clip.name for clip in clips][:2] == ["a.mp4", "a.mp4#2"]
    for listed in (clips, cache_clips(clips, tmp_path / "cache")):
        for clip, frames in zip(listed, wanted, strict=True):
            seen = clip.read(np.arange)[:, 0].float().mean((1, 2)).numpy()
            assert seen == pytest.approx(levels[frames], abs=4), clip
    parts = [torch.cat(list(clip.chunks(sampler, 2))) for clip in clips[:1] for sampler in (None, lambda total: [0, 2])]
    assert [len(part) for part in parts] == [3, 2]
    (tmp_path / "late.csv").write_text("path,start\na.mp4,2.5\n")
    with pytest.raises(VideoDecodeError, match=r"it ends after 2\.000 s, before the start at 2\.5 s"):
        read_clips(tmp_path / "late.csv", labelled=False)[0].read(np.arange)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,start,end\na.mp4,x,2,1\n", "line 2: end must be after start, got '2' and 1.0"),
        ("path,label,start\na.mp4,x,soon\n", "line 2: start must be seconds of at least 0, got 'soon'"),
        ("path,label,end\na.mp4,x,-1\n", "line 2: end must be seconds of at least 0, got '-1'"),
        ("path,total_frames,label,end\na,9,x,1\n", "folders of frames .* have no columns start and end"),
    ],
)
def test_times_that_are_none_are_refused(folder, text, message):
    with pytest.raises(ValueError, match=message):
        read(folder, text)


def test_values_of_natural_types(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "\ufeffcheckpointing_steps: 500\neval_steps: no\ntoken_budgets: 2048\nlearning_rate: 2e-4\n"
        "seed: 7\nmixup: 1\nstreaming: false\nmax_train_steps: null\nrun_name: 2026\n",
        encoding="utf-8",
    )
    args = parse_arguments(["--recipe", str(recipe), *REQUIRED])
    assert (args.run.checkpointing_steps, args.run.eval_steps, args.run.run_name) == ("500", "no", "2026")
    assert args.objective.token_budgets == [2048] and args.optimization.learning_rate == 2e-4
    assert args.run.seed == 7 and args.objective.mixup == 1.0 and args.optimization.max_train_steps is None


@pytest.mark.parametrize(
    "text",
    [
        *("seed: x", "seed: 1.5", "seed: [1, 2]", "learning_rate: fast", "token_budgets: [a]", "streaming: 1"),
        *("seed: no", "learning_rate: true"),  # YAML's booleans are numbers to Python
    ],
)
def test_values_of_another_type_are_refused(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    name = text.split(":")[0]
    with pytest.raises(ValueError, match=f"{name} in a recipe must be of type"):
        read_recipe(str(tmp_path / "recipe.yaml"))
