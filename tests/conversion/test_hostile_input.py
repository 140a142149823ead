"""Checkpoints and files from anywhere: refused with a reason, run nothing, reach nothing, leave nothing behind."""

import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion import convert_to_hf, convert_to_official, init_from_internvideo2
from conversion.checkpoint_reader import read_checkpoint


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
CHECKPOINT = GOLDEN / "internvideo2_tiny_checkpoint.pth"
FLAGS = ["--num_attention_heads", "3", "--num_pooling_heads", "4", "--position_frames", "8"]
COMMANDS = {"convert_to_hf": convert_to_hf.main, "init_from_internvideo2": init_from_internvideo2.main}
HUGE = 10**15


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return torch.load(CHECKPOINT, weights_only=True)["module"]


@pytest.fixture(params=COMMANDS)
def refused(request, tmp_path, capsys):
    """Runs a command on a source and checks that it refuses, says why, and leaves everything as it was."""

    def run(source: Path, reason: str, *flags: str) -> None:
        before = contents(tmp_path)
        assert COMMANDS[request.param]([str(source), str(tmp_path / "out"), *FLAGS, *flags]) == 1
        message = capsys.readouterr().err
        assert message.startswith("not ") and reason in message, message
        assert "weights_only" not in message, message  # torch's advice to read the file carelessly
        assert contents(tmp_path) == before

    return run


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_size for path in folder.rglob("*")}


class Trap:
    """Unpickled without care, this makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def in_a_file(content: dict, folder: Path) -> Path:
    torch.save(content, folder / "c.pth")
    return folder / "c.pth"


def in_the_old_format(content: dict, folder: Path) -> Path:
    torch.save(content, folder / "c.pt", _use_new_zipfile_serialization=False)
    return folder / "c.pt"


def as_a_plain_pickle(content: dict, folder: Path) -> Path:
    (folder / "c.bin").write_bytes(pickle.dumps({"hook": content["hook"]}, protocol=2))
    return folder / "c.bin"


def in_a_deepspeed_folder(content: dict, folder: Path) -> Path:
    (folder / "run" / "step").mkdir(parents=True)
    torch.save(content, folder / "run" / "step" / "mp_rank_00_model_states.pt")
    (folder / "run" / "latest").write_text("step")
    return folder / "run"


def in_a_shard(content: dict, folder: Path) -> Path:
    (folder / "model").mkdir()
    torch.save(content, folder / "model" / "shard.bin")
    index = {"weight_map": dict.fromkeys(content["module"], "shard.bin")}
    (folder / "model" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder / "model"


WRITERS = [in_a_file, in_the_old_format, as_a_plain_pickle, in_a_deepspeed_folder, in_a_shard]


@pytest.mark.parametrize("writer", WRITERS)
def test_code_in_a_pickle_is_not_run(weights, tmp_path, refused, writer):
    trap = tmp_path / "trap"
    source = writer({"module": weights, "hook": Trap(trap)}, tmp_path)
    refused(source, "it asks for posix.mkdir")
    assert not trap.exists()
    # It was a trap: read without care, the same file springs it.
    file = source if source.is_file() else next(path for path in source.rglob("*") if path.suffix in (".pt", ".bin"))
    with open(file, "rb") as stream:
        pickle.load(stream) if writer is as_a_plain_pickle else torch.load(stream, weights_only=False)
    assert trap.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # such files are old
def test_a_scripted_module_is_not_loaded(tmp_path, refused):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "c.pth is ")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_truncated_files(weights, tmp_path, refused, share, suffix):
    file = tmp_path / f"c{suffix}"
    if suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=suffix == ".pth")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    refused(file, f"c{suffix} is ")


def test_a_safetensors_header_that_claims_more_than_there_is(tmp_path, refused):
    for shape, end in (([HUGE], 4 * HUGE), ([HUGE], 64), ([2**62, 4], 64)):
        header = json.dumps({"cls_token": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
        refused(tmp_path / "c.safetensors", "is not a whole safetensors file")
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", HUGE) + b"{}")
    refused(tmp_path / "c.safetensors", "is not a whole safetensors file")


def rewrite(archive: Path, edit, compression: int = zipfile.ZIP_STORED) -> None:
    """Edits the pickle inside a .pth file."""
    with zipfile.ZipFile(archive) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(archive, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, edit(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_pickle_that_claims_more_than_there_is(tmp_path, refused, everywhere):
    torch.save({"cls_token": torch.zeros(99)}, tmp_path / "c.pth")
    (short,), huge = [b"K\x63"], pickle.dumps(HUGE, 2)[2:-1]

    def edit(content: bytes) -> bytes:
        assert content.count(short) == 2  # of the storage, then of the tensor
        return content.replace(short, huge) if everywhere else huge.join(content.rsplit(short, 1))

    rewrite(tmp_path / "c.pth", edit)
    refused(tmp_path / "c.pth", "c.pth is damaged")


def test_few_numbers_that_pose_as_many(weights, tmp_path, refused):
    expanded = torch.zeros(1).expand(HUGE)
    refused(in_a_file({"module": {**weights, "cls_token": expanded}}, tmp_path), "its tensors claim 40000000005")
    one = torch.zeros(2000)
    many = {f"blocks.{layer}.norm1.weight": one for layer in range(256)}
    refused(in_a_file({"module": many}, tmp_path), f"its tensors claim {256 * 4 * 2000}")


def test_an_archive_that_unpacks_to_more_than_its_size(tmp_path, refused):
    torch.save({"cls_token": torch.zeros(10**6)}, tmp_path / "c.pth")
    rewrite(tmp_path / "c.pth", lambda content: content, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "c.pth").stat().st_size < 10**5
    refused(tmp_path / "c.pth", "is compressed: it would unpack to 4000")


def test_what_is_no_plain_array_of_floating_point_numbers(weights, tmp_path, refused):
    def with_bias(tensor: torch.Tensor) -> Path:
        return in_a_file({"module": {**weights, "head.bias": tensor}}, tmp_path)

    refused(with_bias(torch.zeros(7, device="meta")), "head.bias is not a plain array: torch.strided on meta")
    refused(with_bias(torch.zeros(7).to_sparse()), "head.bias is not a plain array: torch.sparse_coo on cpu")
    refused(with_bias(torch.zeros(7, 0)), "head.bias is empty, of shape (7, 0)")
    refused(with_bias(torch.zeros(7, dtype=torch.int64)), "no dtype for weights: head.bias (torch.int64)")
    refused(with_bias(torch.zeros(7, dtype=torch.complex64)), "no dtype for weights: head.bias (torch.complex64)")
    refused(with_bias(torch.zeros(7).to(torch.float8_e4m3fn)), "no dtype for weights: head.bias (torch.float8_e4m3fn)")
    for value in ("nan", "inf", "-inf"):
        refused(with_bias(torch.full((7,), float(value))), "NaN or infinite values in 1 keys: head.bias")
    refused(in_a_file({"module": [weights]}, tmp_path), "holds no tensors")
    refused(in_a_file([weights], tmp_path), "holds a list, not a dict of tensors")


def test_names_and_shapes_that_stand_for_an_absurd_model(weights, tmp_path, refused):
    def refuse(reason: str, changed: dict[str, torch.Tensor]) -> None:
        refused(in_a_file({"module": {**weights, **changed}}, tmp_path), reason)

    one = torch.zeros(1)
    refuse("blocks.999999999 is there, but of those below it only 3 are", {"blocks.999999999.norm1.weight": one})
    refuse(f"clip_projector.{HUGE} is there", {f"clip_projector.{HUGE}.norm1_q.weight": one})
    layers = {f"blocks.{layer}.norm1.weight": torch.zeros(1) for layer in range(3, 300)}
    refuse("at most 256 are believed", layers)
    wide = torch.zeros(10**5, 1, 1, 1, 1)
    refuse("cls_token must be of shape (1, 1, 100000), got (1, 1, 48)", {"patch_embed.proj.weight": wide})
    refuse("pos_embed must be of shape (1, any, 48), got (1, 100000, 1)", {"pos_embed": torch.zeros(1, 10**5, 1)})
    refuse("fc1.weight must be of shape (any, 48)", {"blocks.0.mlp.fc1.weight": torch.zeros(10**5, 1)})
    refuse("the classifier must be of shape (any, 32), got (100000, 1)", {"head.weight": torch.zeros(10**5, 1)})
    refuse("must be of shape (any, 48), got (10,)", {"clip_projector.cross_attn.proj.weight": torch.zeros(10)})
    refuse("must be (width, channels, t, p, p), got (48,)", {"patch_embed.proj.weight": torch.zeros(48)})
    refuse("pos_embed must be of shape (1, any, 48), got ()", {"pos_embed": torch.zeros(())})


def test_a_forged_projection_does_not_become_decoders_larger_than_memory(weights, tmp_path, capsys):
    # A width that the file holds once would be squared in the alignment decoders, which are new.
    width = 10_000
    wide = {
        "clip_projector.cross_attn.proj.weight": torch.zeros(width, 48),
        "clip_projector.cross_attn.proj.bias": torch.zeros(width),
        "fc_norm.weight": torch.zeros(width),
        "fc_norm.bias": torch.zeros(width),
        "head.weight": torch.zeros(7, width),
    }
    source = in_a_file({"module": {**weights, **wide}}, tmp_path)
    assert init_from_internvideo2.main([str(source), str(tmp_path / "out"), *FLAGS]) == 1
    assert "output is 10000 wide: at most 8192 is believed" in capsys.readouterr().err
    assert contents(tmp_path).keys() == {"c.pth"}


OUTSIDE = ["../outside", "..", ".", "", "/", "{absolute}", "inside/deeper", "..\\outside", "a\0b", "x" * 10_000]


@pytest.fixture
def between(weights, tmp_path) -> Path:
    """A folder beside a whole checkpoint that it must not reach."""
    for name in ("outside", "run", "run/inside/deeper"):
        (tmp_path / name).mkdir(parents=True)
    for folder in ("outside", "run/inside/deeper", "."):
        torch.save({"module": weights}, tmp_path / folder / "mp_rank_00_model_states.pt")
        save_file(weights, tmp_path / folder / "model.safetensors")
    return tmp_path / "run"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_deepspeed_tag_reaches_nothing_but_a_subfolder(between, refused, name):
    (between / "latest").write_text(name.replace("{absolute}", str(between.parent / "outside")))
    refused(between, "which is not a folder beside it")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_reaches_nothing_but_files_beside_it(between, refused, name):
    name = (name + "/model.safetensors").replace("{absolute}", str(between.parent / "outside"))
    index = {"weight_map": {"cls_token": "model.safetensors", "pos_embed": name}}
    (between / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(between, "names files outside its folder")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": ["a"]}', "has no weight_map"),
        (b'{"weight_map": {"cls_token": 3}}', "has no weight_map"),
        (b'{"weight_map": {"cls_token": "absent.safetensors"}}', "'absent.safetensors', which is not there"),
        (b'{"weight_map": {"cls_token": "inside"}}', "'inside', which is not there"),
    ],
)
def test_indices_that_are_none(between, refused, content, reason):
    (between / "model.safetensors.index.json").write_bytes(content)
    refused(between, reason)


def test_a_tag_that_is_no_text(between, refused):
    (between / "latest").write_bytes(b"\xff\xfe\xff")
    refused(between, "is not text in UTF-8")


@pytest.mark.parametrize("name", ["../outside", "{absolute}", "c/../../outside", "c/data/../../../outside"])
def test_names_inside_an_archive_are_no_paths(weights, tmp_path, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    torch.save({"module": weights}, folder / "c.pth")
    with zipfile.ZipFile(folder / "c.pth", "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(name.replace("{absolute}", str(tmp_path / "outside")), "reached")
    before = contents(tmp_path)
    if name.startswith("c/"):
        assert read_checkpoint(folder / "c.pth").keys() == weights.keys()
    else:
        with pytest.raises(ValueError, match="c.pth is damaged"):
            read_checkpoint(folder / "c.pth")
    assert contents(tmp_path) == before


def test_a_storage_that_is_a_path(tmp_path, refused):
    """The pickle names its storages; a name that climbs out of the archive finds nothing."""
    torch.save({"cls_token": torch.zeros(16)}, tmp_path / "c.pth")
    (tmp_path / "secret").write_bytes(bytes(64))

    def edit(content: bytes) -> bytes:
        assert b"X\x01\x00\x00\x000" in content
        name = b"../../secret"
        return content.replace(b"X\x01\x00\x00\x000", b"X" + struct.pack("<I", len(name)) + name)

    rewrite(tmp_path / "c.pth", edit)
    refused(tmp_path / "c.pth", "c.pth is damaged")


LABEL_NAMES = ["../../etc/passwd", "/absolute", "..", "a\\b", "$(touch x)", "{0}", "<b>"]


@pytest.mark.parametrize("command", COMMANDS)
def test_label_names_are_text_whatever_they_look_like(tmp_path, command):
    (tmp_path / "labels.json").write_text(json.dumps(LABEL_NAMES))
    flags = [*FLAGS, "--labels", str(tmp_path / "labels.json")]
    assert COMMANDS[command]([str(CHECKPOINT), str(tmp_path / "out"), *flags]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == LABEL_NAMES
    assert {path.name for path in tmp_path.iterdir()} == {"labels.json", "out"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"[]", "expected class names"),
        (b'[["a"]]', "expected class names"),
        (b'"abcdefg"', "expected class names"),
        (b"7", "expected class names"),
        (b'{"../0": "a"}', "the ids must be 0 to 0"),
        (b'{"\xc2\xb2": "a"}', "the ids must be 0 to 0"),
        (b'["a", "b"]', "2 labels were given, but the classifier has 7"),
    ],
)
def test_label_files_that_are_none(tmp_path, refused, content, reason):
    (tmp_path / "labels.json").write_bytes(content)
    refused(CHECKPOINT, reason, "--labels", str(tmp_path / "labels.json"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[", "expected row numbers"),
        (b"[" * 100_000, "expected row numbers"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"", "expected row numbers"),
        (b"[0, true]", "expected row numbers"),
        (b"[0.5]", "expected row numbers"),
        (b"../0", "expected row numbers"),
        (b"[" + b"9" * 5000 + b"]", "expected row numbers"),
        (str(10**30).encode(), "are not among the 7"),
        (b"-1", "are not among the 7"),
    ],
)
def test_label_maps_that_are_none(tmp_path, refused, content, reason):
    (tmp_path / "rows").write_bytes(content)
    refused(CHECKPOINT, reason, "--label_map", str(tmp_path / "rows"))


def test_more_labels_than_anyone_has(refused):
    refused(CHECKPOINT, "are not among the 7", "--num_labels", "100000")


@pytest.mark.parametrize("seed", range(20))
def test_a_pickle_with_bytes_changed_at_random(weights, tmp_path, seed):
    torch.save(weights, tmp_path / "c.pth")
    generator = torch.Generator().manual_seed(seed)

    def edit(content: bytes) -> bytes:
        damaged = bytearray(content)
        for place in torch.randint(len(content), (30,), generator=generator):
            damaged[place] = int(torch.randint(256, (), generator=generator))
        return bytes(damaged)

    rewrite(tmp_path / "c.pth", edit)
    with pytest.raises(ValueError, match="c.pth is damaged"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.fixture
def full_disk():
    """Files end at 100 kB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_leaves_the_old_folder(tmp_path, capsys, full_disk, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"mine")
    assert COMMANDS[command]([str(CHECKPOINT), str(tmp_path / "out"), *FLAGS]) == 1
    assert "the weights could not be written" in capsys.readouterr().err
    assert contents(tmp_path) == {"out": (tmp_path / "out").lstat().st_size, "out/model.safetensors": 4}


def test_a_full_disk_leaves_the_old_file(tmp_path, capsys, request):
    assert convert_to_hf.main([str(CHECKPOINT), str(tmp_path / "here"), *FLAGS]) == 0
    (tmp_path / "official.pth").write_bytes(b"mine")
    before = contents(tmp_path)
    request.getfixturevalue("full_disk")
    assert convert_to_official.main([str(tmp_path / "here"), str(tmp_path / "official.pth")]) == 1
    assert "official.pth could not be written" in capsys.readouterr().err
    assert contents(tmp_path) == before
