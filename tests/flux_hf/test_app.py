"""The page's functions without a browser: choices, results, pictures, examples, links and visitors' files."""

import hashlib
import os
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from app_parts import count_coloured, save_checkpoint, serving, write_coloured
from video_files import audio_only, encode, read_barcode

from flux_hf import VideoDecodeError, decode_video
from flux_hf.app import links
from flux_hf.app.choices import (
    Choice,
    Limits,
    check_choice,
    check_file,
    check_memory,
    cost_of,
    default_choice,
    describe_cost,
    parse_budgets,
    planned_choice,
    suggested_budgets,
)
from flux_hf.app.classify import classify_file, compare_budgets, label_windows, load
from flux_hf.app.examples import MOVES, NUM_FRAMES, SIDE, example_frames, write_example
from flux_hf.app.pictures import (
    comparison_picture,
    comparison_rows,
    kept_picture,
    timeline_html,
    timeline_rows,
    write_kept_video,
)
from flux_hf.app.recordings import mend_recording, whole_length
from flux_hf.app.sessions import Sessions
from flux_hf.visualization import GAP


LIMITS = Limits()
CHOICE = Choice(num_frames=8, size=56, token_budget=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("app") / "model")


@pytest.fixture(scope="module")
def classify(checkpoint):
    return load(checkpoint, "cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(encode("libx264", 50, size=(160, 96)))
    return str(path)


# Choices -------------------------------------------------------------------------------------------------------------


def test_the_cost_is_what_the_model_counts(classify):
    model, choice = classify.model, Choice(8, 56, 32, num_clips=2, num_crops=3)
    cost = cost_of(model, choice)
    assert (cost.kept_tokens, cost.tokens) == (32, 8 * 16)
    assert cost.gflops == pytest.approx(6 * model.flops(8, 56, 32) / 1e9)
    assert cost.dense_gflops > cost.gflops
    line = describe_cost(model, choice)
    assert "**32** of 128 tokens (25%)" in line and "6 views" in line and f"{cost.gflops:.3g} GFLOPs" in line
    assert cost_of(model, Choice(8, 56, 1000)).kept_tokens == 128


def test_the_default_choice_is_the_pipelines_and_the_plan_sets_the_clip(classify):
    assert default_choice(classify) == Choice(8, 56, 64)
    assert planned_choice(classify.model.config, Choice(8, 56, 32)) == Choice(4, 56, 32)
    assert planned_choice(classify.model.config, CHOICE) == Choice(4, 56, 32)
    assert planned_choice(classify.model.config, Choice(8, 56, 33)) == Choice(8, 56, 33)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(66, 56, 32), "num_frames must be a multiple of 1 up to 64, got 66"),
        (Choice(8, 57, 32), "size must be a multiple of 14 up to 448, got 57"),
        (Choice(8, 462, 32), "size must be a multiple of 14 up to 448, got 462"),
        (Choice(8, 56, 0), "token_budget must be a whole number"),
        (Choice(8, 56, 32, num_clips=5), "views must be"),
        (Choice(8, 56, 32, num_crops=2), "views must be"),
        (Choice(64, 448, 65536), "at most 8192 tokens can be kept"),
    ],
)
def test_choices_beyond_the_limits_are_refused(classify, choice, words):
    with pytest.raises(ValueError, match=words):
        check_choice(classify.model, choice, LIMITS)


def test_budgets_are_read_from_text():
    assert parse_budgets(" 72, 144 36 72") == [144, 72, 36]
    assert suggested_budgets([144, 72, 36]) == [144, 72, 36, 18]
    for text, words in (("12, x", "'x'"), ("0", "'0'"), ("-3", "'-3'"), ("", "got 0"), ("1 2 3 4 5 6 7", "got 7")):
        with pytest.raises(ValueError, match=words):
            parse_budgets(text)


def test_files_beyond_the_limits_are_refused(clip, tmp_path):
    facts = check_file(clip, LIMITS)
    assert (facts.width, facts.height, facts.seconds) == (160, 96, pytest.approx(2.0, abs=0.05))
    assert "2.0 s, 160x96, 25 frames a second" in str(facts)
    for limits, words in (
        (Limits(file_megabytes=0.001), "MB, at most 0.001"),
        (Limits(seconds=1), "lasts 2 s, at most 1"),
        (Limits(megapixels=0.01), "160x96, at most 0.01 megapixels"),
    ):
        with pytest.raises(ValueError, match=words):
            check_file(clip, limits)
    with pytest.raises(ValueError, match="8 frames of 160x96"):
        check_memory(facts, 8, Limits(decoded_gigabytes=0.0003))
    (tmp_path / "sound.mp4").write_bytes(audio_only())
    with pytest.raises(VideoDecodeError, match="no video stream"):
        check_file(tmp_path / "sound.mp4", LIMITS)


# Results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [CHOICE, Choice(4, 56, 40, num_clips=2, num_crops=3)])
def test_scores_are_the_pipelines(classify, clip, choice):
    result = classify_file(classify, clip, choice, LIMITS)
    expected = classify(clip, **vars(choice))
    assert list(result.labels) == [each["label"] for each in expected]
    assert list(result.labels.values()) == pytest.approx([each["score"] for each in expected], abs=1e-6)
    assert result.milliseconds > 0 and len(result.keep_indices) == choice.token_budget


def test_budgets_keep_different_patches_and_the_picture_has_as_many(classify, tmp_path):
    path = write_coloured(tmp_path / "red.mkv")
    told: list[tuple[float, str]] = []
    results = compare_budgets(
        classify, path, CHOICE, [96, 32, 7], LIMITS, tell=lambda share, what: told.append((share, what))
    )
    pictures = [kept_picture(result) for result in results]
    assert [count_coloured(picture, 168, 42, 8) for picture in pictures] == [96, 32, 7]
    assert set(results[2].keep_indices.tolist()) < set(results[0].keep_indices.tolist())
    assert [share for share, _ in told] == pytest.approx([0, 0, 1 / 3, 2 / 3])
    rows = comparison_rows(results)
    assert [row[:3] for row in rows] == [[str(n), "8x56", f"{n} of 128"] for n in (96, 32, 7)]
    assert comparison_picture(results).height > comparison_picture(results[:1]).height
    [planned] = compare_budgets(classify, path, CHOICE, [32], LIMITS, planned=True)
    assert planned.choice == Choice(4, 56, 32)


def test_the_kept_patches_play_as_long_as_the_clip(classify, clip, tmp_path):
    result = classify_file(classify, clip, CHOICE, LIMITS)
    write_kept_video(tmp_path / "kept.mp4", result)
    frames, metadata = decode_video(str(tmp_path / "kept.mp4"))
    assert len(frames) == 8 and metadata.duration == pytest.approx(2.0, abs=0.1)
    picture = np.asarray(kept_picture(result)).astype(int)
    side = result.frames.shape[-1]
    assert abs(frames[1].numpy() - picture[:side, side + GAP : 2 * side + GAP]).mean() < 6


def test_windows_are_the_pipelines_and_labels_are_escaped(classify, clip):
    windows = list(label_windows(classify, clip, CHOICE, 1.0, 0.5, LIMITS))
    options = {"token_budget": 32, "num_frames": 8, "size": 56, "top_k": 5, "batch_size": 4}
    assert windows == classify(clip, window=1.0, stride=0.5, **options)
    assert [row[:2] for row in timeline_rows(windows)] == [[0.0, 1.0], [0.5, 1.5], [1.0, 2.0]]
    drawn = timeline_html(windows)
    assert drawn.count("<rect") == 3 and "<b>" not in drawn and "&lt;b&gt;class" in drawn
    assert timeline_html([]) == ""
    for window, stride, words in ((0, 1, "above 0"), (1, -1, "above 0"), (1, 0.001, "more than 1000 windows")):
        with pytest.raises(ValueError, match=words):
            list(label_windows(classify, clip, CHOICE, window, stride, LIMITS))


@pytest.mark.parametrize("move", MOVES)
def test_examples_are_videos_in_which_one_thing_moves(move, tmp_path):
    write_example(tmp_path / "clip.mp4", move, seed=1)
    write_example(tmp_path / "again.mp4", move, seed=1)
    frames, again = (decode_video(str(tmp_path / f"{name}.mp4"))[0] for name in ("clip", "again"))
    assert frames.shape == (NUM_FRAMES, SIDE, SIDE, 3) and frames.equal(again)
    drawn = example_frames(move, np.random.default_rng(1))
    assert np.array_equal(drawn, example_frames(move, np.random.default_rng(1)))
    assert not np.array_equal(drawn, example_frames(move, np.random.default_rng(2)))
    moved = (abs(drawn[12].astype(int) - drawn[0]).max(-1) > 40).mean()
    assert 0.03 < moved < 0.25
    with pytest.raises(ValueError, match="'flies'"):
        example_frames("flies", np.random.default_rng(1))


CLUSTER = b"\x1f\x43\xb6\x75"


def test_a_recording_that_is_cut_is_ended_behind_its_last_whole_frame(tmp_path):
    data = encode("libvpx", 40, container="webm", container_options={"live": "1", "cluster_time_limit": "300"})
    parts = data.split(CLUSTER)  # browsers do not know a cluster's size
    data = CLUSTER.join([parts[0], *(b"\x01" + b"\xff" * 7 + part[9 - part[0].bit_length() :] for part in parts[1:])])
    assert len(parts) > 3 and whole_length(data) == len(data)
    path = tmp_path / "sample.webm"
    for cut in (len(data) - 1, len(data) * 2 // 3, data.rindex(CLUSTER) + 1, len(data) // 3):
        path.write_bytes(data[:cut])
        assert mend_recording(path) and path.stat().st_size < cut
        frames, _ = decode_video(str(path))
        assert 0 < len(frames) < 40 and [read_barcode(frame) for frame in frames] == list(range(len(frames)))
        assert not mend_recording(path)
    for other in (encode("libvpx", 20, container="webm"), encode("libx264", 20), b"", b"\x1a"):
        assert whole_length(other) is None and whole_length(other[: len(other) // 2]) is None


# Links ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def site():
    with serving() as server:
        yield server


def test_links_are_fetched_within_size_and_followed_a_few_times(site, tmp_path):
    site.pages |= {
        "/clip%20a.mp4?x=1": (200, {}, b"v" * 1000),
        "/there": (302, {"Location": "/clip%20a.mp4?x=1"}, b""),
        "/round": (302, {"Location": "/round"}, b""),
        "/short": (200, {"Content-Length": 2000}, b"v" * 1000),
        "/unsaid": (200, {"Content-Length": None}, b"v" * 3000),
    }
    target = tmp_path / "clip"
    for path in ("/there", "/clip a.mp4?x=1"):
        links.fetch(site.url + path, target, 1000, allow_private=True)
        assert target.read_bytes() == b"v" * 1000
        target.unlink()
    for path, most, words in (
        ("/there", 999, "more than 0.000999 MB"),
        ("/unsaid", 2999, "more than"),
        ("/round", 1000, "more than 5 times"),
        ("/short", 3000, "broke off after 1000"),
        ("/none", 1000, "answers 404"),
    ):
        with pytest.raises(ValueError, match=words):
            links.fetch(site.url + path, target, most, allow_private=True)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="does not answer"):
        links.fetch("http://127.0.0.1:1/", target, 1000, allow_private=True)


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://0.0.0.0:{port}/",
        "http://2130706433:{port}/",
        "http://127.1:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[64:ff9b::7f00:1]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://user@127.0.0.1:{port}/",
        "http://does-not-exist.invalid/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/clip.mp4",
        "http:///clip.mp4",
        "http://[::1/clip.mp4",
        "clip.mp4",
        "http://127.0.0.1:99999/",
    ],
)
def test_links_into_private_networks_are_refused_unasked(site, link, tmp_path):
    with pytest.raises(ValueError, match="private network|only http|user name|not known|no link"):
        links.fetch(link.format(port=site.server_port), tmp_path / "clip", 1000)
    assert site.asked == [] and not list(tmp_path.iterdir())


def test_a_redirect_is_checked_as_the_link_was(site, tmp_path, monkeypatch):
    """The first host counts as public, as an outside site would; where it leads does not."""
    site.pages["/"] = (302, {"Location": f"http://localhost:{site.server_port}/secret"}, b"")
    site.pages["/secret"] = (200, {}, b"secret")
    ask = links._ask
    monkeypatch.setattr(links, "_ask", lambda link, private, until: ask(link, private or "127.0.0.1" in link, until))
    with pytest.raises(ValueError, match="'localhost' is in a private network"):
        links.fetch(f"{site.url}/", tmp_path / "clip", 1000)
    assert site.asked == ["/"]


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_a_site_that_drips_is_left_in_time(begin, tmp_path, monkeypatch):
    """Each byte comes well before the socket's own time is over, until whoever asks hangs up."""
    monkeypatch.setattr(links, "TOTAL_SECONDS", 1.0)

    def drip() -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(begin)
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=drip, daemon=True)
        server.start()
        with pytest.raises(ValueError, match="takes longer than 1 s"):
            links.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", tmp_path / "clip", 10**6, allow_private=True)
        server.join()
    assert not list(tmp_path.iterdir())


def test_public_addresses_and_endings():
    assert links.public_addresses("8.8.8.8", 80) == ["8.8.8.8"]
    assert links.file_suffix("https://a.org/x/Clip.MP4?y=.exe") == ".mp4"
    assert links.file_suffix("https://a.org/x/clip.m%2Fp") == links.file_suffix("https://a.org/") == ""


# Visitors' files -----------------------------------------------------------------------------------------------------


def upload(root, content: bytes, name: str = "clip.mp4"):
    """As Gradio stores an upload."""
    folder = root / hashlib.sha256(content).hexdigest()
    folder.mkdir(exist_ok=True)
    temporary = root / f"tmp{os.urandom(4).hex()}"
    temporary.write_bytes(content)
    os.replace(temporary, folder / name)
    return folder / name


def files_in(root) -> list:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_session_takes_its_own_files_and_nobody_elses(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    sessions = Sessions(root)
    mine = sessions.take("a", upload(root, b"one"))
    assert mine.read_bytes() == b"one" and sessions.take("a", mine) == mine
    drawn = sessions.new_file("a", "kept.png")
    drawn.write_bytes(b"picture")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    for path in (mine, drawn, tmp_path / "secret.mp4", root / "link.mp4", "/etc/passwd", "", f"{root}/../secret.mp4"):
        with pytest.raises(ValueError, match="choose it again"):
            sessions.take("b", path)
    with pytest.raises(ValueError, match="session"):
        sessions.take(None, mine)
    again = sessions.new_file("a", "kept.png")
    assert again != drawn and not drawn.exists()


def test_nothing_is_left_of_a_session(tmp_path):
    sessions = Sessions(tmp_path)
    first, same = upload(tmp_path, b"one"), b"one"
    sessions.take("a", first)
    sessions.take("b", upload(tmp_path, same))  # two visitors send the same file
    theirs = sessions.take("b", first)
    sessions.close("a")
    assert theirs.read_bytes() == same
    sessions.take("b", upload(tmp_path, b"two", "two.mp4"))  # a new clip takes the place of the old one
    assert {path.read_bytes() for path in files_in(tmp_path)} == {b"two"}
    sessions.close("b")
    sessions.close("b")
    assert files_in(tmp_path) == []


def test_an_upload_sent_again_meanwhile_stays(tmp_path):
    sessions = Sessions(tmp_path)
    sessions.take("a", upload(tmp_path, b"one"))
    path = upload(tmp_path, b"one")
    sessions.close("a")
    assert sessions.take("b", path).read_bytes() == b"one"


def test_sessions_without_use_are_ended(tmp_path):
    sessions = Sessions(tmp_path, keep_seconds=0.2)
    sessions.start_sweeping()
    sessions.take("a", upload(tmp_path, b"one"))
    for _ in range(100):
        if not files_in(tmp_path):
            break
        threading.Event().wait(0.05)
    assert files_in(tmp_path) == []
    sessions.take("b", upload(tmp_path, b"two"))
    sessions.stop()
    assert files_in(tmp_path) == []
