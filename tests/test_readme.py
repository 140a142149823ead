"""The README's Python blocks, run in order as a reader would, on a checkpoint of their size and a real clip."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor
from video_files import encode

from flux_hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTVideoProcessor
from training.extract_features import main as extract_features


REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
ROOMS = ("flux_hf", "training", "training/study", "conversion")
READMES = [README, *(REPOSITORY / f"{room}/README.md" for room in ROOMS)]


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def check_shape_comments(block: str, names: dict) -> int:
    """Compares each `expression  # (1, 2, 3)` with the shape of what stands there; returns how many there were."""
    found = re.findall(r"^(\S+) +# (\([\d, ]+\))", block, flags=re.MULTILINE)
    for expression, shape in found:
        value = eval(expression, names)
        assert str(tuple(value.shape)) == shape, f"{expression} is {tuple(value.shape)}, the README says {shape}"
    return len(found)


def test_python_blocks_do_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = FluxViTConfig.small(num_labels=400, token_budget=512)  # a default that takes less time
    FluxViTForVideoClassification(config).save_pretrained("fluxvit-s-k400")
    FluxViTVideoProcessor(num_frames=12).save_pretrained("fluxvit-s-k400")
    videomae = VideoMAEConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, num_labels=400)
    VideoMAEForVideoClassification(videomae).save_pretrained("videomae-base-k400")
    VideoMAEImageProcessor().save_pretrained("videomae-base-k400")
    Path("clip.mp4").write_bytes(encode("libx264", 40, size=(320, 240)))
    Path("folder_of_videos").mkdir()
    for name, first in (("other", 300), ("same", 0), ("third", 900)):
        Path(f"folder_of_videos/{name}.mp4").write_bytes(encode("libx264", 40, size=(320, 240), first=first))
    [words] = [words for words in shell_commands() if "folder_of_videos" in words and "fluxvit-s-k400" in words]
    extract_features([*words[1:], "--dataloader_num_workers", "0"])
    names: dict = {}
    checked = 0
    blocks = python_blocks()
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        checked += check_shape_comments(block, names)
    assert checked >= 6
    nearest = [line for line in capsys.readouterr().out.splitlines() if line.startswith("folder_of_videos")]
    assert len(nearest) == 3 and nearest[0].endswith("same.mp4")


def shell_commands() -> list[list[str]]:
    """The words of each command of ours in the READMEs' shell blocks, from the module on."""
    blocks = [
        block for path in READMES for block in re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("-m") + 1 :] for line in words if "-m" in line]


@pytest.mark.parametrize("command", shell_commands(), ids=" ".join)
def test_shell_commands_have_the_flags_they_use(command, capsys):
    module, *words = command
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("training.study.__main__" if module == "training.study" else module).main(["--help"])
    assert stopped.value.code == 0
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    used = {word for word in words if word.startswith("--")}
    assert used <= known


def test_every_command_is_shown():
    commands = {path.stem for path in (REPOSITORY / "training").glob("*.py") if "__main__" in path.read_text()}
    shown = {command[0].rpartition(".")[2] for command in shell_commands()}
    assert commands - {"finetune_with_trainer"} <= shown


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_the_top_readme_is_short_and_complete():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert not re.findall(r"^[A-Z]+_[A-Z]+$|@@", text, flags=re.MULTILINE)


def test_budget_table_is_what_flops_returns():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", README.read_text(), flags=re.MULTILINE)
    assert [int(budget) for budget, _, _ in rows] == [3072, 2048, 1024, 512]
    for column, size in ((1, "small"), (2, "base")):
        with torch.device("meta"):
            model = FluxViTForVideoClassification(getattr(FluxViTConfig, size)(num_labels=400))
        for row in rows:
            assert f"{model.flops(12, 224, int(row[0])) / 1e9:.1f}" == row[column]
