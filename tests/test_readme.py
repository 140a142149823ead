"""The README's Python blocks, run in order as a reader would, on a checkpoint of their size and a real clip."""

import re
from pathlib import Path

import torch
from video_files import encode

from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTVideoProcessor


README = Path(__file__).parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def check_shape_comments(block: str, names: dict) -> int:
    """Compares each `expression  # (1, 2, 3)` with the shape of what stands there; returns how many there were."""
    found = re.findall(r"^(\S+) +# (\([\d, ]+\))", block, flags=re.MULTILINE)
    for expression, shape in found:
        value = eval(expression, names)
        assert str(tuple(value.shape)) == shape, f"{expression} is {tuple(value.shape)}, the README says {shape}"
    return len(found)


def test_python_blocks_do_what_their_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    FluxViTForVideoClassification(FluxViTConfig.small(num_labels=400)).save_pretrained("fluxvit-s-k400")
    FluxViTVideoProcessor(num_frames=12).save_pretrained("fluxvit-s-k400")
    Path("clip.mp4").write_bytes(encode("libx264", 40, size=(320, 240)))
    names: dict = {}
    checked = 0
    blocks = python_blocks()
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        checked += check_shape_comments(block, names)
    assert checked >= 6


def test_no_placeholder_is_left():
    assert not re.findall(r"^[A-Z]+_[A-Z]+$", README.read_text(), flags=re.MULTILINE)


def test_budget_table_is_what_flops_returns():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", README.read_text(), flags=re.MULTILINE)
    assert [int(budget) for budget, _, _ in rows] == [3072, 2048, 1024, 512]
    for column, size in ((1, "small"), (2, "base")):
        with torch.device("meta"):
            model = FluxViTForVideoClassification(getattr(FluxViTConfig, size)(num_labels=400))
        for row in rows:
            assert f"{model.flops(12, 224, int(row[0])) / 1e9:.1f}" == row[column]
