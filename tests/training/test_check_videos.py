import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import video_files

from training.check_videos import check_clips, main
from training.data.reader import FrameFolder
from training.data.sources import read_clips


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four good videos in two classes, and one of each kind of bad one."""
    folder = tmp_path_factory.mktemp("videos")
    data = video_files.encode("libx264", 12, options={"g": "4"})
    for name in ("run/a.mp4", "run/b.mp4", "sit/c.mp4", "sit/d.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "run/cut.mp4").write_bytes(data[:3000])
    # Noise in the last pictures: decoders patch it up, and only looking for damage shows it.
    noisy = bytearray(data)
    start = noisy.index(b"mdat")
    for position in range(start + (len(data) - start) * 2 // 3, len(data) - 1500, 40):
        noisy[position] ^= 0x5A
    (folder / "run/noisy.mp4").write_bytes(bytes(noisy))
    (folder / "sit/empty.mp4").write_bytes(b"")
    (folder / "sit/sound.mp4").write_bytes(video_files.audio_only())
    return folder


BAD = ["run/cut.mp4", "run/noisy.mp4", "sit/empty.mp4", "sit/sound.mp4"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_clips_are_found(folder, num_workers):
    clips = read_clips(folder)
    checked = list(check_clips(clips, num_workers))
    assert [clip.name for clip, _, reason in checked if reason is not None] == BAD
    assert [frames for _, frames, reason in checked if reason is None] == [12] * 4
    reasons = {clip.name: reason for clip, _, reason in checked}
    assert "0 bytes" in reasons["sit/empty.mp4"] and "no video stream" in reasons["sit/sound.mp4"]


def test_frame_folders(tmp_path):
    clips = [FrameFolder("0", None, str(tmp_path / "0"), 0), FrameFolder("1", None, str(tmp_path / "1"), 3)]
    reasons = [reason for _, _, reason in check_clips(clips, 0)]
    assert "0 frames" in reasons[0] and "FileNotFoundError" in reasons[1]


def test_report(folder, tmp_path, capsys):
    output = tmp_path / "bad.csv"
    rows = [f"{name},x\n" for name in ("run/a.mp4", "run/cut.mp4", "run/missing.mp4")]
    (tmp_path / "list.csv").write_text("".join(["path,label\n", *rows]))
    alone = ["--data_root", str(folder), "--dataloader_num_workers", "0"]
    arguments = ["--data", str(tmp_path / "list.csv"), *alone, "--output", str(output)]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["run/cut.mp4", "run/missing.mp4"]
    assert lines[2] == "3 clips, 12 frames read, 2 bad"
    with open(output, newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == ["run/cut.mp4", "run/missing.mp4"]
    assert all(row["reason"] for row in table)
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "list.csv"]
    (tmp_path / "good.csv").write_text("run/a.mp4\nrun/b.mp4\n")
    assert main(["--data", str(tmp_path / "good.csv"), *alone]) == 0
    assert capsys.readouterr().out == "2 clips, 24 frames read, 0 bad\n"
    with pytest.raises(ValueError, match="--dataloader_num_workers.*-1"):
        main(["--data", str(tmp_path / "good.csv"), "--dataloader_num_workers", "-1"])


def test_command(folder):
    run = subprocess.run(
        [sys.executable, "-m", "training.check_videos", "--data", str(folder), "--dataloader_num_workers", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, run.stderr
    assert run.stdout.splitlines()[-1] == "8 clips, 48 frames read, 4 bad"
