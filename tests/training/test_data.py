import csv
import functools
import io
import json
import os
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import video_files
from torch.utils.data import DataLoader

from flux_hf.video_decoding import VideoDecodeError, decode_video, sample_frame_indices
from training.data.clip_table import are_pictures
from training.data.dataset import ClipDataset, collate
from training.data.failures import FailureLog, TooManyFailedClips
from training.data.frame_cache import cache_clips
from training.data.reader import DatasetRow, FrameFolder, Picture, VideoFile, iter_frames
from training.data.sampling import ClipRequest, ClipShape, pick_frames
from training.data.sources import label_names, open_stream, read_clips, stream_label_names
from training.data.streaming import StreamingClips
from training.data.targets import ClassTargets


NUM_CLIPS = 20
FRAMES_APART = 32  # clip i shows the numbers from 32 i on, so every picture tells its clip and its place in it
LABELS = ("jump", "run", "sit")
SIZE = 96


def num_frames(clip: int) -> int:
    return 9 + clip % 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty numbered videos, the list of them, and the first four as folders of pictures."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    rows = []
    for clip in range(NUM_CLIPS):
        name = f"videos/clip {clip:02}.mp4"
        first = clip * FRAMES_APART
        (folder / name).write_bytes(video_files.encode("libx264", num_frames(clip), first=first, options={"g": "5"}))
        rows.append((name, LABELS[clip % 3], "train" if clip < 15 else "test"))
    write_csv(folder / "clips.csv", [("path", "label", "split"), *rows])
    for clip in range(4):
        frames = folder / "frames" / str(clip)
        frames.mkdir(parents=True)
        for index in range(num_frames(clip)):
            picture = PIL.Image.fromarray(video_files.barcode_frame(clip * FRAMES_APART + index))
            picture.save(frames / f"img_{index + 1:05}.jpg", quality=95)
    write_csv(folder / "frames.csv", [(str(clip), num_frames(clip), LABELS[clip % 3]) for clip in range(4)])
    return folder


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def numbers(frames) -> list[int]:
    """The number each picture of (T, 3, H, W) shows, values 0 to 255."""
    return [video_files.read_barcode(frame.permute(1, 2, 0).numpy()) for frame in frames]


def frame_by_frame(frames, size, generator):
    """Leaves the pictures as they are, but for a brightness that the generator draws."""
    assert size == SIZE
    return {"pixel_values_videos": frames.float() + 4 * torch.rand((), generator=generator)}


def requests(indices, epoch=0, frames=4):
    return [ClipRequest(index, frames, SIZE, epoch) for index in indices]


def targets(names=LABELS, multi_label=False):
    return ClassTargets({name: index for index, name in enumerate(names)}, multi_label)


# Sources -------------------------------------------------------------------------------------------------------------


def test_csv_with_header_and_split(folder):
    clips = read_clips(folder / "clips.csv")
    assert [clip.name for clip in clips] == [f"videos/clip {i:02}.mp4" for i in range(NUM_CLIPS)]
    assert clips[4] == VideoFile("videos/clip 04.mp4", "run", str(folder / "videos/clip 04.mp4"))
    assert [clip.name for clip in read_clips(folder / "clips.csv", split="test")] == [c.name for c in clips[15:]]
    assert label_names(clips) == list(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "clip 00.mp4,run\nclip 01.mp4,jump\n",
        "clip 00.mp4\trun\nclip 01.mp4\tjump\n",
        "clip 00.mp4 run\n\nclip 01.mp4 jump\n",
        "path label\nclip 00.mp4 run\nclip 01.mp4 jump\n",
        "\ufeffgroup, label, path\r\n1, run, clip 00.mp4\r\n2, jump, clip 01.mp4\r\n",
    ],
    ids=["comma", "tab", "space", "space, header", "byte order mark, order, other columns"],
)
def test_forms_of_a_file(folder, tmp_path, text):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    clips = read_clips(tmp_path / "list.txt", root=folder / "videos")
    assert [(clip.path, clip.label) for clip in clips] == [
        (str(folder / "videos" / "clip 00.mp4"), "run"),
        (str(folder / "videos" / "clip 01.mp4"), "jump"),
    ]


def test_labels_of_a_file(folder, tmp_path):
    path = str(folder / "videos" / "clip 00.mp4")
    write_csv(tmp_path / "a.csv", [(path, "run| jump"), (path, "sit"), (path, "10"), (path, "9")])
    clips = read_clips(tmp_path / "a.csv", multi_label=True)
    assert [clip.label for clip in clips] == [("run", "jump"), "sit", "10", "9"]
    assert [clip.name for clip in clips] == [path, f"{path}#2", f"{path}#3", f"{path}#4"]
    assert label_names(clips) == ["10", "9", "jump", "run", "sit"]
    assert label_names(clips[2:]) == ["9", "10"]
    assert read_clips(tmp_path / "a.csv")[0].label == "run| jump"
    write_csv(tmp_path / "b.csv", [("path",), (path,)])
    assert read_clips(tmp_path / "b.csv", labelled=False)[0].label is None


def test_folder_with_a_sub_folder_a_class(folder, tmp_path):
    for split, name, clip in (("train", "run", 0), ("train", "sit", 1), ("test", "sit", 2)):
        (tmp_path / split / name / "more").mkdir(parents=True)
        shutil.copy(folder / f"videos/clip {clip:02}.mp4", tmp_path / split / name / "more" / f"{clip}.MP4")
        (tmp_path / split / name / "notes.txt").write_text("no video")
        (tmp_path / split / name / ".half.mp4").write_text("a download that is not complete")
    clips = read_clips(tmp_path / "train")
    assert [(clip.name, clip.label) for clip in clips] == [("run/more/0.MP4", "run"), ("sit/more/1.MP4", "sit")]
    assert read_clips(tmp_path, split="train") == clips
    with pytest.raises(ValueError, match="splits.*'test', 'train'.*choose one"):
        read_clips(tmp_path)
    with pytest.raises(ValueError, match="no sub-folder 'validation'"):
        read_clips(tmp_path, split="validation")


def test_frame_folders(folder, tmp_path):
    clips = read_clips(folder / "frames.csv", root=folder / "frames")
    assert clips[1] == FrameFolder("1", "run", str(folder / "frames/1"), 10, "img_{:05}.jpg")
    assert numbers(clips[1].read(lambda total: np.array([total - 1, 0, 0]))) == [41, 32, 32]
    (tmp_path / "spaces.txt").write_text("0 9 jump\n1 10 run\n")
    assert read_clips(tmp_path / "spaces.txt", root=folder / "frames") == clips[:2]
    write_csv(tmp_path / "header.csv", [("label", "name", "total_frames"), ("jump", "0", "9")])
    named = read_clips(tmp_path / "header.csv", root=folder / "frames", frame_template="img_{:05d}.jpg")
    assert numbers(named[0].read(np.arange)) == list(range(9))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("path,label\n", {}, "no rows"),
        ("path,group\nx.mp4,1\n", {}, r"must have the columns \['path', 'label'\], got \['path', 'group'\]"),
        ("video,label\nx.mp4,run\n", {}, "must have a column path"),
        ("x.mp4,run\n", {"split": "train"}, r"must have the columns \['path', 'label', 'split'\]"),
        ("path,label,split\nx.mp4,run,train\n", {"split": "test"}, r"no row of the split 'test', only of \['train'\]"),
        ("path,label\nx.mp4,\n", {}, "line 2 has an empty label"),
        ("path,label\n,run\n", {}, "line 2 has an empty path"),
        ("path,label\nx.mp4\n", {}, "line 2 must have 2 columns"),
        ("a,b,c,d\n", {}, "4 columns and no header"),
        ("0,many,run\n", {}, "total_frames must be a number of frames, got 'many'"),
        ("x.mp4,run|\n", {"multi_label": True}, "empty label"),
    ],
)
def test_malformed_files(tmp_path, text, options, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_clips(tmp_path / "list.csv", **options)


def test_sources_that_are_not_there(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="none of 20 clips .* is the root right"):
        read_clips(folder / "clips.csv", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        read_clips(tmp_path / "train.csv")
    with pytest.raises(FileNotFoundError, match="'someone/some_videos' is neither"):
        read_clips("someone/some_videos")
    with pytest.raises(ValueError, match="one sub-folder of videos"):
        read_clips(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=".csv, .txt or .tsv"):
        read_clips(tmp_path / "list.json")


# datasets ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_set(folder, tmp_path_factory):
    """The twenty videos, contents inside, saved by `datasets` in the splits train and test."""
    files = sorted((folder / "videos").iterdir())
    features = datasets.Features({"clip": datasets.Video(), "label": datasets.ClassLabel(names=["sit", "run", "jump"])})
    splits = {}
    for split, part in (("train", files[:15]), ("test", files[15:])):
        rows = {
            "clip": [{"bytes": file.read_bytes(), "path": file.name} for file in part],
            "label": [LABELS[int(file.stem[-2:]) % 3] for file in part],
        }
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    path = tmp_path_factory.mktemp("saved") / "set"
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


def test_saved_set(folder, saved_set):
    clips = read_clips(saved_set, split="train")
    files = read_clips(folder / "clips.csv", split="train")
    assert [(clip.name, clip.label) for clip in clips] == [(Path(file.name).name, file.label) for file in files]
    assert isinstance(clips[3], DatasetRow)
    assert torch.equal(clips[3].read(np.arange), files[3].read(np.arange))
    assert read_clips(saved_set / "test")[0].label == LABELS[0]
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\]: choose one"):
        read_clips(saved_set)
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\], got 'dev'"):
        read_clips(saved_set, split="dev")


def test_kinds_of_columns(folder):
    paths = [str(folder / f"videos/clip {clip:02}.mp4") for clip in range(3)]
    several = datasets.List(datasets.ClassLabel(names=list(LABELS)))
    features = datasets.Features({"video": datasets.Video(), "labels": several, "id": datasets.Value("int64")})
    rows = {"video": paths, "labels": [["run", "sit"], [], ["jump"]], "id": [7, 8, 7]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    clips = read_clips(dataset)
    assert [clip.label for clip in clips] == [("run", "sit"), (), ("jump",)]
    assert [clip.name for clip in clips] == paths
    assert numbers(clips[1].read(lambda total: np.array([total - 1]))) == [FRAMES_APART + num_frames(1) - 1]
    assert [clip.label for clip in read_clips(dataset, label_column="id")] == ["7", "8", "7"]
    # rows chosen and shuffled keep their videos, and paths as plain text will do
    plain = datasets.Dataset.from_dict({"video": paths, "label": list(LABELS)})
    picked = read_clips(plain.select([2, 0]), video_column="video")
    assert [clip.name for clip in picked] == [paths[2], paths[0]]
    assert numbers(picked[0].read(lambda total: np.array([0]))) == [2 * FRAMES_APART]
    with pytest.raises(ValueError, match="must have a column label"):
        read_clips(dataset.remove_columns("labels"))
    with pytest.raises(ValueError, match="must have one Video column"):
        read_clips(dataset.remove_columns("video"))
    with pytest.raises(ValueError, match="has no column 'clip'"):
        read_clips(dataset, video_column="clip")
    unknown = datasets.Dataset.from_dict(
        {"video": paths[:2], "label": [1, -1]},
        features=datasets.Features({"video": datasets.Video(), "label": datasets.ClassLabel(names=list(LABELS))}),
    )
    with pytest.raises(ValueError, match="row 1 .* has no label"):
        read_clips(unknown)
    assert [clip.label for clip in read_clips(unknown, labelled=False)] == ["run", None]


def test_folder_that_load_dataset_reads(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "set"
    (source / "train").mkdir(parents=True)
    for clip in range(3):
        shutil.copy(folder / f"videos/clip {clip:02}.mp4", source / "train" / f"{clip}.mp4")
    rows = [("file_name", "label"), *((f"{clip}.mp4", LABELS[clip]) for clip in range(3))]
    write_csv(source / "train" / "metadata.csv", rows)
    clips = read_clips(source, split="train")
    assert [(Path(clip.name).name, clip.label) for clip in clips] == [(f"{i}.mp4", LABELS[i]) for i in range(3)]
    assert numbers(clips[2].read(lambda total: np.array([1]))) == [2 * FRAMES_APART + 1]
    stream = open_stream(source, split="train")
    rows = list(stream)
    assert [row["label"] for row in rows] == list(LABELS) and stream_label_names(stream) is None
    assert [Path(row["video"]["path"]).name for row in rows] == ["0.mp4", "1.mp4", "2.mp4"]


def test_paths_that_are_no_files(folder, tmp_path):
    archive = tmp_path / "videos.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.write(folder / "videos/clip 02.mp4", "clip.mp4")
    paths = [f"zip://{name}::{archive}" for name in ("clip.mp4", "none.mp4")]
    clips = read_clips(datasets.Dataset.from_dict({"video": paths, "label": ["run", "sit"]}), video_column="video")
    assert numbers(clips[0].read(lambda total: np.array([3]))) == [2 * FRAMES_APART + 3]
    with pytest.raises(FileNotFoundError, match="none.mp4"):
        clips[1].read(np.arange)
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(VideoDecodeError, match="cannot be fetched"):
        clips[0].read(np.arange)


# Reading -------------------------------------------------------------------------------------------------------------


def test_a_video_gives_the_frames_asked_for(folder):
    clip = read_clips(folder / "clips.csv")[2]
    totals = []

    def sampler(total):
        totals.append(total)
        return np.array([7, 0, 7, 3])

    frames = clip.read(sampler)
    assert totals == [num_frames(2)]
    assert numbers(frames) == [2 * FRAMES_APART + index for index in (7, 0, 7, 3)]
    assert frames.dtype == torch.uint8
    expected, _ = decode_video(clip.path, [7, 0, 7, 3])
    assert torch.equal(frames, expected.permute(0, 3, 1, 2))


def test_windows_are_of_whole_videos(folder, tmp_path):
    """What has no times of its own says so: parts, folders of frames, pictures, cached frames."""
    [whole] = read_clips(folder / "clips.csv", split="train")[:1]
    [window] = whole.windows(9.0, 9.0, 4)
    assert window.frames.shape[0] == 4 and window.indices.tolist() == [1, 3, 5, 7]
    write_csv(tmp_path / "part.csv", [("path", "label", "start", "end"), ("videos/clip 01.mp4", "run", "0.1", "")])
    parts = read_clips(tmp_path / "part.csv", root=folder)
    others = [parts[0], read_clips(folder / "frames.csv", root=folder / "frames")[0], cache_clips([whole], tmp_path)[0]]
    for clip in others:
        with pytest.raises(VideoDecodeError, match="no windows: give the video itself"):
            list(clip.windows(1.0, 1.0, 4))


def test_pictures_of_a_list_are_clips_of_one_frame(folder, tmp_path):
    """Turned as the camera says, and read as often as asked; a damaged one is said to be."""
    shutil.copy(folder / "videos/clip 01.mp4", tmp_path / "b.mp4")
    turned = PIL.Image.fromarray(video_files.barcode_frame(5)[:, :64])
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    turned.save(tmp_path / "a.PNG", exif=exif)
    (tmp_path / "c.jpg").write_bytes(b"nothing")
    write_csv(tmp_path / "list.csv", [("path", "label"), ("a.PNG", "run"), ("b.mp4", "sit"), ("c.jpg", "sit")])
    clips = read_clips(tmp_path / "list.csv")
    assert are_pictures(clips).tolist() == [clip.is_picture for clip in clips] == [True, False, True]
    assert clips[0] == Picture("a.PNG", "run", str(tmp_path / "a.PNG"))
    frames = clips[0].read(lambda total: np.zeros(3, dtype=int) if total == 1 else None)
    wanted = np.rot90(np.asarray(turned), -1)
    assert (frames.permute(0, 2, 3, 1).numpy() == wanted).all() and len(frames) == 3
    assert torch.cat(list(iter_frames(clips[0]))).shape[0] == 1
    with pytest.raises(VideoDecodeError, match="c.jpg"):
        clips[2].read(np.arange)
    cached = cache_clips(clips, tmp_path / "cache")
    assert are_pictures(cached).tolist() == [True, False, True]
    assert torch.equal(cached[0].read(np.arange), frames[:1])
    sample = ClipDataset(clips, ClassTargets({"run": 0, "sit": 1}), lambda frames, size, generator: frames)[
        ClipRequest(0, 1, SIZE, 0)
    ]
    assert torch.equal(sample["pixel_values_videos"], frames[None, :1])


def test_damaged_frame_folders(folder, tmp_path):
    shutil.copytree(folder / "frames/0", tmp_path / "0")
    clip = FrameFolder("0", "run", str(tmp_path / "0"), num_frames(0))
    picture = tmp_path / "0/img_00003.jpg"
    picture.write_bytes(picture.read_bytes()[:600])
    with pytest.raises(VideoDecodeError, match="img_00003.jpg"):
        clip.read(np.arange)
    assert numbers(clip.read(lambda total: np.array([3]))) == [3]
    picture.unlink()
    with pytest.raises(FileNotFoundError, match="img_00003.jpg"):
        clip.read(np.arange)
    PIL.Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(VideoDecodeError, match="several sizes"):
        clip.read(np.arange)
    with pytest.raises(VideoDecodeError, match="number of frames is 0"):
        FrameFolder("0", "run", str(tmp_path / "0"), 0).read(np.arange)


def test_reading_in_parts(folder):
    clip = read_clips(folder / "clips.csv")[3]
    everything = clip.read(np.arange)
    for size in (1, 4, 6, num_frames(3), 100):
        parts = list(iter_frames(clip, chunk_frames=size))
        assert max(map(len, parts)) <= size and torch.equal(torch.cat(parts), everything)
    spread = torch.cat(list(iter_frames(clip, max_frames=5, chunk_frames=2)))
    assert numbers(spread) == [3 * FRAMES_APART + index for index in (0, 3, 6, 8, 11)]


# Which frames --------------------------------------------------------------------------------------------------------


def ranges(total, frames, rule):
    picks = np.array([pick_frames(total, frames, rule, np.random.default_rng(seed)) for seed in range(2000)])
    assert picks.dtype == np.int64 and (np.diff(picks, axis=1) >= 0).all()
    return [tuple(map(int, pair)) for pair in zip(picks.min(0), picks.max(0), strict=True)]


def test_kinetics_rule():
    # seg = 299/8 = 37.375; 4 seg = 149.5 rounds to the even 150
    bounds = [0, 37, 75, 112, 150, 187, 224, 262, 299]
    assert ranges(300, 8, "kinetics") == list(zip(bounds, bounds[1:], strict=False))
    # shorter than the clip: seg = 0.5, and halves round to even
    assert ranges(5, 8, "kinetics") == [(0, 0), (0, 1), (1, 2), (2, 2), (2, 2), (2, 3), (3, 4), (4, 4)]
    assert ranges(1, 4, "kinetics") == [(0, 0)] * 4
    counts = np.bincount([pick_frames(5, 2, "kinetics", np.random.default_rng(seed))[1] for seed in range(3000)])
    assert counts[:2].tolist() == [0, 0] and min(counts[2:]) > 900  # uniform among 2, 3, 4


def test_ssv2_rule():
    assert ranges(26, 8, "ssv2") == [(3 * i, 3 * i + 2) for i in range(8)]
    assert ranges(8, 8, "ssv2") == [(i, i) for i in range(8)]
    assert pick_frames(5, 8, "ssv2", np.random.default_rng(0)).tolist() == [0, 0, 1, 1, 2, 3, 3, 4]
    assert pick_frames(1, 3, "ssv2", np.random.default_rng(0)).tolist() == [0, 0, 0]


def test_center_rule_and_errors():
    picks = pick_frames(300, 8, "center", np.random.default_rng(0))
    assert picks.tolist() == sample_frame_indices(300, 8)[0].tolist() == [18, 55, 93, 130, 168, 205, 242, 280]
    for arguments in ((10, 4, "dense"), (0, 4, "kinetics"), (10, 0, "ssv2")):
        with pytest.raises(ValueError, match=str(arguments[2] if arguments[2] == "dense" else 0)):
            pick_frames(*arguments, np.random.default_rng(0))


# By index ------------------------------------------------------------------------------------------------------------


def load(dataset, batches, num_workers=0):
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers)
    return list(loader)


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("pixel_values_videos", "labels", "seeds"))


def test_batches_depend_on_neither_workers_nor_order(folder):
    dataset = ClipDataset(read_clips(folder / "clips.csv"), targets(), frame_by_frame, seed=3)
    batches = [requests(range(start, start + 4), epoch=1) for start in range(0, NUM_CLIPS, 4)]
    alone = load(dataset, batches)
    for other in (load(dataset, batches, 2), load(dataset, batches[::-1], 1)[::-1]):
        assert all(same(one, two) for one, two in zip(alone, other, strict=True))
    videos = torch.cat([batch["pixel_values_videos"] for batch in alone])
    assert videos.shape == (NUM_CLIPS, 4, 3, 96, 160) and videos.dtype == torch.float32
    for clip, video in enumerate(videos):
        rng = np.random.default_rng([3, 1, clip, 0, 2])
        expected = pick_frames(num_frames(clip), 4, "kinetics", rng) + clip * FRAMES_APART
        assert numbers(video) == expected.tolist()
    assert torch.cat([batch["labels"] for batch in alone]).tolist() == [clip % 3 for clip in range(NUM_CLIPS)]
    assert not any(batch["failures"] for batch in alone)
    # another epoch and another seed: other frames, other augmentation
    others = [load(dataset, [requests(range(NUM_CLIPS), epoch=2)])[0]]
    changed = ClipDataset(read_clips(folder / "clips.csv"), targets(), frame_by_frame, seed=4)
    others.append(load(changed, [requests(range(NUM_CLIPS), epoch=1)])[0])
    for other in others:
        assert not set(other["seeds"].tolist()) & set(torch.cat([b["seeds"] for b in alone]).tolist())
        assert list(map(numbers, other["pixel_values_videos"])) != list(map(numbers, videos))


def test_repeated_augmentation_and_rules(folder):
    clips = read_clips(folder / "frames.csv", root=folder / "frames")
    dataset = ClipDataset(clips, targets(), frame_by_frame, num_sample=3)
    batch = load(dataset, [requests([2, 1])])[0]
    assert batch["pixel_values_videos"].shape == (6, 4, 3, 96, 160)
    assert batch["labels"].tolist() == [2, 2, 2, 1, 1, 1]
    assert len(set(batch["seeds"].tolist())) == 6
    shown = [numbers(video) for video in batch["pixel_values_videos"]]
    assert shown[0] == shown[1] == shown[2] and shown[3] == shown[4] == shown[5]
    assert len({round(video.mean().item(), 4) for video in batch["pixel_values_videos"]}) == 6
    # folders of frames take the ssv2 rule, where frame 0 of 11 // 4 = 2 is 0 or 1 and the last at most 7
    expected = pick_frames(11, 4, "ssv2", np.random.default_rng([0, 0, 2, 0, 2])) + 2 * FRAMES_APART
    assert shown[0] == expected.tolist()
    center = ClipDataset(clips, targets(), frame_by_frame, sampling_rule="center")
    video = load(center, [requests([2])])[0]["pixel_values_videos"][0]
    assert numbers(video) == (sample_frame_indices(11, 4)[0] + 2 * FRAMES_APART).tolist()


def test_webdataset_tars(folder, tmp_path):
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train-000.tar", "w") as tar:
        for index in range(4):
            content = (folder / f"videos/clip {index:02}.mp4").read_bytes()
            for ending, body in (("mp4", content), ("cls", str(index % 2).encode())):
                entry = tarfile.TarInfo(f"{index:04}.{ending}")
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
    clips = read_clips(tmp_path / "set", split="train")
    assert [clip.label for clip in clips] == ["0", "1", "0", "1"]
    assert len(clips[2].read(lambda total: np.arange(3))) == 3


def test_the_only_column_of_classes_is_the_label(folder):
    paths = [str(folder / f"videos/clip {clip:02}.mp4") for clip in range(2)]
    features = datasets.Features({"clip": datasets.Video(), "action": datasets.ClassLabel(names=["x", "y"])})
    dataset = datasets.Dataset.from_dict({"clip": paths, "action": [1, 0]}, features=features)
    assert [clip.label for clip in read_clips(dataset)] == ["y", "x"]


def test_multi_label(folder, tmp_path):
    paths = [str(folder / f"videos/clip {clip:02}.mp4") for clip in range(2)]
    write_csv(tmp_path / "list.csv", [(paths[0], "sit|jump"), (paths[1], "run")])
    clips = read_clips(tmp_path / "list.csv", multi_label=True)
    batch = load(ClipDataset(clips, targets(multi_label=True), frame_by_frame, num_sample=2), [requests([0, 1])])[0]
    assert batch["labels"].tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert batch["labels"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"has the labels \['sit', 'jump'\]: one is needed"):
        ClipDataset(clips, targets(), frame_by_frame)


def test_arguments_of_the_data_set(folder):
    clips = read_clips(folder / "clips.csv")
    with pytest.raises(ValueError, match=r"labels must be some of \['jump', 'run'\], got \['sit'\] of clip .*02.mp4"):
        ClipDataset(clips, targets(LABELS[:2]), frame_by_frame)
    with pytest.raises(ValueError, match="clip x has no label"):
        ClipDataset([VideoFile("x", None, "x.mp4")], targets(), frame_by_frame)
    with pytest.raises(ValueError, match="at least one clip"):
        ClipDataset([], targets(), frame_by_frame)
    for option in ({"sampling_rule": "dense"}, {"num_sample": 0}, {"seed": -1}):
        name, value = next(iter(option.items()))
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            ClipDataset(clips, targets(), frame_by_frame, **option)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(folder, tmp_path):
    """The twenty videos, of which clips 4 (cut off) and 11 (missing) are bad."""
    shutil.copytree(folder / "videos", tmp_path / "videos")
    shutil.copy(folder / "clips.csv", tmp_path)
    bad = tmp_path / "videos/clip 04.mp4"
    bad.write_bytes(bad.read_bytes()[:2000])
    (tmp_path / "videos/clip 11.mp4").unlink()
    return tmp_path / "clips.csv"


def test_bad_clips_are_replaced_and_no_good_one_is_lost(damaged):
    dataset = ClipDataset(read_clips(damaged), targets(), frame_by_frame, seed=1)
    batches = [requests(range(start, start + 5)) for start in range(0, NUM_CLIPS, 5)]
    runs = [load(dataset, batches, num_workers) for num_workers in (0, 2)]
    assert all(same(one, two) and one["failures"] == two["failures"] for one, two in zip(*runs, strict=True))
    videos = torch.cat([batch["pixel_values_videos"] for batch in runs[0]])
    labels = torch.cat([batch["labels"] for batch in runs[0]])
    shown = [{number // FRAMES_APART for number in numbers(video)} for video in videos]
    for place, clips in enumerate(shown):
        if place in (4, 11):
            assert len(clips) == 1 and clips.isdisjoint({4, 11})
        else:
            assert clips == {place}
        assert labels[place] == min(clips) % 3  # the label is that of the clip that is shown
    failures = dict(failure for batch in runs[0] for failure in batch["failures"])
    assert set(failures) == {"videos/clip 04.mp4", "videos/clip 11.mp4"}
    assert "cannot decode" in failures["videos/clip 04.mp4"] and "videos/clip 04.mp4" in failures["videos/clip 04.mp4"]
    assert "FileNotFoundError" in failures["videos/clip 11.mp4"]


def test_a_bad_replacement_is_replaced_too(damaged):
    # Only clip 0 of three is good, so both others end there, whichever is tried first.
    clips = [read_clips(damaged)[index] for index in (0, 4, 11)]
    batch = load(ClipDataset(clips, targets(), frame_by_frame), [requests([0, 1, 2])])[0]
    assert all(number < FRAMES_APART for video in batch["pixel_values_videos"] for number in numbers(video))
    assert batch["labels"].tolist() == [0, 0, 0]
    assert {name for name, _ in batch["failures"]} == {clip.name for clip in clips[1:]}
    # none is good
    lost = ClipDataset(clips[1:], targets(), frame_by_frame)
    for num_workers in (0, 1):
        with pytest.raises(TooManyFailedClips, match="(?s)2 clips in a row.*clip 11.mp4: FileNotFound"):
            load(lost, [requests([1])], num_workers)


def test_failure_log(caplog):
    log = FailureLog(0.1, 20)
    log.add([("a.mp4", "cannot decode /data/a.mp4: cut off"), ("b.mp4", "missing")])
    log.add([("a.mp4", "cannot decode /data/a.mp4: cut off")])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "/data/a.mp4" in caplog.messages[0]
    state = json.loads(json.dumps(log.state_dict()))
    resumed = FailureLog(0.1, 20)
    resumed.load_state_dict(state)
    resumed.add([("b.mp4", "missing")])
    assert len(caplog.records) == 2
    with pytest.raises(TooManyFailedClips, match="(?s)3 of 20 clips.*0.1.*a.mp4: cannot decode.*b.mp4: missing.*c.mp4"):
        resumed.add([("c.mp4", "empty")])
    with pytest.raises(TooManyFailedClips):
        FailureLog(0, 20).add([("a.mp4", "cut off")])
    for share, count in ((1.5, 20), (-0.1, 20), (0.1, 0)):
        with pytest.raises(ValueError, match="max_failed_share|num_clips"):
            FailureLog(share, count)


# Streams -------------------------------------------------------------------------------------------------------------


def shape_of(epoch, step):
    return ClipShape(2 + (epoch + step) % 3, SIZE)


def stream(source, split="train", batch_size=2, num_batches=7, **options):
    options = {"seed": 5, "buffer_size": 8, **options}
    opened = open_stream(source, split=split) if isinstance(source, Path) else open_stream(source)
    return StreamingClips(opened, shape_of, batch_size, num_batches, targets(), frame_by_frame, **options)


def run_stream(clips, epoch=0, skip=0, num_workers=0):
    clips.set_epoch(epoch, skip)
    batches = list(DataLoader(clips, batch_size=None, num_workers=num_workers))
    assert len(batches) == len(clips)
    return batches


def shown_clips(batches):
    return [numbers(video)[0] // FRAMES_APART for batch in batches for video in batch["pixel_values_videos"]]


def all_same(some, others):
    return len(some) == len(others) and all(map(same, some, others))


def test_stream(saved_set):
    opened = open_stream(saved_set, split="train")
    assert isinstance(opened, datasets.IterableDataset) and opened.column_names == ["video", "label"]
    assert stream_label_names(opened) == ["sit", "run", "jump"]
    clips = stream(saved_set)
    first = run_stream(clips)
    assert [batch["pixel_values_videos"].shape[:2] for batch in first] == [(2, 2 + step % 3) for step in range(7)]
    seen = shown_clips(first)
    assert len(set(seen)) == 14 and set(seen) <= set(range(15)) and seen != sorted(seen)
    assert torch.cat([batch["labels"] for batch in first]).tolist() == [clip % 3 for clip in seen]
    assert all_same(first, run_stream(clips, num_workers=2))
    second = run_stream(clips, epoch=1)
    assert shown_clips(second) != seen and len(set(shown_clips(second))) == 14
    # resumed: what is left of the same epoch
    for num_workers in (0, 2):
        assert all_same(run_stream(clips, epoch=1, skip=3, num_workers=num_workers), second[3:])
    in_order = run_stream(stream(saved_set, buffer_size=0, num_batches=2))
    assert shown_clips(in_order) == [0, 1, 2, 3]


def test_stream_on_several_processes_and_over_its_end(saved_set):
    seen = [shown_clips(run_stream(stream(saved_set, rank=rank, world_size=3, num_batches=2))) for rank in range(3)]
    assert len({clip for part in seen for clip in part}) == 12
    # 5 clips a process, 10 asked for: twice all of them, shared out anew
    twice = [shown_clips(run_stream(stream(saved_set, rank=rank, world_size=3, num_batches=5))) for rank in range(3)]
    assert [part[:4] for part in twice] == seen
    for lap in (slice(0, 5), slice(5, 10)):
        assert sorted(clip for part in twice for clip in part[lap]) == list(range(15))
    assert twice[0][:5] != twice[0][5:]


def test_stream_with_a_share_for_each_worker(saved_set):
    clips = stream(saved_set, split_workers=True, num_batches=5)
    whole = run_stream(clips, num_workers=2)
    assert [batch["pixel_values_videos"].shape[1] for batch in whole] == [2, 3, 4, 2, 3]
    assert len(set(shown_clips(whole))) == 10
    for skip in (1, 2, 3):
        assert all_same(run_stream(clips, skip=skip, num_workers=2), whole[skip:])


def test_workers_that_outlive_an_epoch_see_the_next(saved_set):
    clips = stream(saved_set, num_batches=3)
    loader = DataLoader(clips, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch, skip in ((0, 0), (1, 1)):
        clips.set_epoch(epoch, skip)
        epochs.append(list(loader))
    assert [len(batches) for batches in epochs] == [3, 2]
    assert all_same(epochs[1], run_stream(stream(saved_set, num_batches=3), epoch=1, skip=1))


def test_bad_clips_of_a_stream(damaged):
    clips = read_clips(damaged)[3:6]
    features = datasets.Features({"video": datasets.Video(), "label": datasets.Value("string")})
    rows = {"video": [clip.path for clip in clips], "label": [clip.label for clip in clips]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    for num_workers in (0, 2):
        batches = run_stream(stream(dataset, batch_size=1, num_batches=3, buffer_size=0), num_workers=num_workers)
        assert shown_clips(batches) == [3, 5, 5]  # the next one stands in, and still comes in its place
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 2, 2]
        ((name, reason),) = batches[1]["failures"]
        assert name == clips[1].path and "cannot decode" in reason
        assert not batches[0]["failures"] and not batches[2]["failures"]
    with pytest.raises(TooManyFailedClips, match="20 clips in a row"):
        run_stream(stream(dataset.select([1]), batch_size=1, num_batches=1))
    with pytest.raises(ValueError, match=r"got \['sit'\]"):
        clips = StreamingClips(open_stream(dataset), shape_of, 3, 1, targets(("jump", "run")), frame_by_frame)
        list(clips)


def test_contents_without_a_path_are_named_by_a_hash(damaged):
    features = datasets.Features({"video": datasets.Video(), "label": datasets.Value("string")})
    contents = [clip.read_bytes() for clip in (damaged.parent / "videos" / f"clip {i:02}.mp4" for i in (4, 5))]
    rows = {"video": [{"bytes": content, "path": None} for content in contents], "label": ["run", "sit"]}
    batch = run_stream(stream(datasets.Dataset.from_dict(rows, features=features), num_batches=1, buffer_size=0))[0]
    (name,) = {name for name, _ in batch["failures"]}
    assert name.startswith("<") and len(name) == 14
    assert shown_clips([batch]) == [5, 5]


def test_arguments_of_a_stream(saved_set, folder):
    opened = open_stream(saved_set, split="train")
    make = functools.partial(StreamingClips, opened, shape_of)
    for values, message in (
        ({"rank": 2, "world_size": 2}, "rank must lie in"),
        ({"sampling_rule": "dense"}, "sampling_rule"),
        ({"buffer_size": -1}, "buffer_size"),
        ({"num_batches": 0}, "num_batches"),
    ):
        options = {"batch_size": 2, "num_batches": 2, "targets": targets(), "augment": frame_by_frame, **values}
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="skip_batches"):
        stream(saved_set).set_epoch(0, 8)
    with pytest.raises(ValueError, match="splits"):
        open_stream(saved_set)
    untyped = datasets.IterableDataset.from_generator(lambda: iter([{"video": "a.mp4", "label": "run"}]))
    with pytest.raises(ValueError, match="columns of the data set are not known"):
        open_stream(untyped)


# Cache ---------------------------------------------------------------------------------------------------------------


def files_of(cache):
    return sorted(path for path in Path(cache).rglob("*") if path.is_file())


def test_cached_clips_equal_the_files(folder, saved_set, tmp_path):
    frames = read_clips(folder / "frames.csv", root=folder / "frames")
    clips = [*read_clips(folder / "clips.csv")[:3], frames[0], read_clips(saved_set, split="train")[3]]
    cached = cache_clips(clips, tmp_path / "cache")
    assert len(files_of(tmp_path / "cache")) == 5
    for clip, copy in zip(clips, cached, strict=True):
        assert (copy.name, copy.label, copy.sampling_rule) == (clip.name, clip.label, clip.sampling_rule)
        for sampler in (np.arange, lambda total: np.array([total - 1, 2, 2, 0])):
            assert torch.equal(copy.read(sampler), clip.read(sampler))
    batch, other = (
        load(ClipDataset(some, targets(), frame_by_frame), [requests(range(5))], workers)[0]
        for some, workers in ((clips, 0), (cached, 2))
    )
    assert same(batch, other)
    with pytest.raises(ValueError, match=r"within \[0, 9\)"):
        cached[0].read(lambda total: np.array([-1]))


def test_cache_settings(folder, tmp_path):
    clips = read_clips(folder / "clips.csv")[:2]
    small = cache_clips(clips, tmp_path, short_side=48, max_frames=5)
    frames = small[1].read(np.arange)
    assert frames.shape == (5, 3, 48, 80)
    assert numbers(frames) == [FRAMES_APART + index for index in (0, 2, 4, 7, 9)]  # halves round to even
    large = cache_clips(clips, tmp_path, short_side=300)
    assert torch.equal(large[0].read(np.arange), clips[0].read(np.arange))  # never enlarged
    assert len(files_of(tmp_path)) == 4
    for option in ({"short_side": 0}, {"max_frames": 0}, {"num_workers": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}.* 0"):
            cache_clips(clips, tmp_path, **option)


def test_a_long_clip_is_cached_in_parts(tmp_path):
    (tmp_path / "long.mp4").write_bytes(video_files.encode("libx264", 300, size=(64, 48)))
    clip = VideoFile("long", "run", str(tmp_path / "long.mp4"))
    cached = cache_clips([clip], tmp_path / "cache")[0]
    assert torch.equal(cached.read(np.arange), clip.read(np.arange))


def test_what_is_cached_is_not_decoded_again(folder, tmp_path):
    path = tmp_path / "clip.mp4"
    shutil.copy(folder / "videos/clip 03.mp4", path)
    clip = VideoFile("clip", "run", str(path))
    before = cache_clips([clip], tmp_path / "cache")[0].read(np.arange)
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(cache_clips([clip], tmp_path / "cache")[0].read(np.arange), before)
    # A file that has changed is: here to one that cannot be, and back to another clip.
    os.utime(path)
    with pytest.raises(VideoDecodeError):
        cache_clips([clip], tmp_path / "cache")[0].read(np.arange)
    shutil.copy(folder / "videos/clip 05.mp4", path)
    after = cache_clips([clip], tmp_path / "cache")[0].read(np.arange)
    assert numbers(after)[0] == 5 * FRAMES_APART


def test_failures_stay_failures(damaged, tmp_path):
    clips = read_clips(damaged)
    cached = cache_clips(clips, tmp_path / "cache", short_side=48)
    assert [clip.name for clip in cached] == [clip.name for clip in clips]
    for index, reason in ((4, "cannot decode"), (11, "FileNotFoundError")):
        assert cached[index].label == clips[index].label
        with pytest.raises(VideoDecodeError, match=reason):
            cached[index].read(np.arange)
    assert len(files_of(tmp_path / "cache")) == NUM_CLIPS - 2  # nothing half written is left behind
    sample = ClipDataset(cached, targets(), frame_by_frame)[ClipRequest(4, 4, SIZE, 0)]
    assert [name for name, _ in sample["failures"]] == ["videos/clip 04.mp4"]
    # a file of the cache that is damaged is a failure too, and one of writing is none of the clips'
    Path(cached[0].path).write_bytes(b"")
    with pytest.raises(VideoDecodeError, match="damaged file of the cache"):
        cached[0].read(np.arange)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        cache_clips(clips[:1], tmp_path / "file" / "cache")


def test_several_may_fill_one_cache(folder, tmp_path):
    clips = read_clips(folder / "clips.csv")[:4]
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: cache_clips(clips, tmp_path), range(3)))
    assert runs[0] == runs[1] == runs[2] and len(files_of(tmp_path)) == 4
    assert all(torch.equal(one.read(np.arange), two.read(np.arange)) for one, two in zip(runs[0], clips, strict=True))
