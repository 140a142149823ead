"""The page as visitors see it: the command, a real browser, and requests that no browser would send.

Needs the extra `browser` and a Chromium, which `make slow-test` installs. `FLUX_HF_SCREENSHOT=FILE.png` keeps the
picture of the page; `FLUX_HF_APP_MODEL` is then whose page it is.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from app_parts import count_coloured, save_checkpoint, serving, write_coloured
from PIL import Image
from video_files import encode


pytestmark = pytest.mark.slow
reason = "opening the page needs the extra `browser`: pip install 'flux-hf[browser]'"
gradio_client = pytest.importorskip("gradio_client", reason=reason)
sync_api = pytest.importorskip("playwright.sync_api", reason=reason)

REPOSITORY = Path(__file__).parents[2]
# Notes every address that the server's process looks up or connects to.
AUDIT = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        with open(os.environ["AUDIT_FILE"], "a") as file:
            file.write(f"{event} {host}\\n")

sys.addaudithook(note)
"""
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WAIT = 120_000


class Page:
    """A server of its own process, and where it keeps files."""

    def __init__(self, url: str, folder: Path, process: subprocess.Popen):
        self.url, self.folder, self.process = url, folder, process

    def files(self) -> list[Path]:
        return [path for path in (self.folder / "tmp").rglob("*") if path.is_file()]

    def hosts(self) -> set[str]:
        return {line.split()[1] for line in (self.folder / "audit").read_text().splitlines()}


@contextmanager
def page_of(model: Path | str, folder: Path, *flags: str):
    (folder / "tmp").mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(AUDIT)
    (folder / "audit").touch()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}",
        "AUDIT_FILE": str(folder / "audit"),
        "TMPDIR": str(folder / "tmp"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "flux_hf.app", "--model", str(model), *flags]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert " at http://" in said, said
        yield Page(said.split(" at ")[1].split()[0], folder, process)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert not list((folder / "tmp").glob("flux-hf-app-*"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("app") / "model")


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with page_of(checkpoint, tmp_path_factory.mktemp("server")) as page:
        yield page


@pytest.fixture(scope="module")
def browser():
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", *FAKE_CAMERA]
        running = playwright.chromium.launch(executable_path=own, args=options)
        yield running
        running.close()


class Visitor:
    """A browser of its own with the page open."""

    def __init__(self, browser, url: str, **options):
        self.context = browser.new_context(permissions=["camera", "microphone"], **options)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#classify", timeout=WAIT)
        self.page.wait_for_timeout(500)

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#clip input[type=file]", path)

    def facts(self) -> str:
        return self.wait_for_words(" s, ", "#facts")

    def set_budget(self, budget: int) -> None:
        self.page.fill("#budget input[type=number]", str(budget))
        self.page.press("#budget input[type=number]", "Enter")
        self.wait_for_words(f"{budget} of", "#cost")

    def classify(self, budget: int) -> Image.Image:
        """Presses the button and reads the picture that comes."""
        before = self.page.evaluate("document.querySelector('#kept img')?.src")
        self.page.click("#classify")
        self.page.wait_for_function(
            "before => { if (document.querySelector('.toast-body')) return true;"
            " const picture = document.querySelector('#kept img');"
            " return picture && picture.src !== before && picture.complete }",
            arg=before,
            timeout=WAIT,
        )
        assert not self.page.locator(".toast-body").count(), self.page.inner_text(".toast-wrap")
        assert f"{budget} of" in self.page.inner_text("#about")
        return Image.open(io.BytesIO(self.page.request.get(self.page.get_attribute("#kept img", "src")).body()))

    def wait_for_words(self, words: str, selector: str = ".toast-wrap") -> str:
        """What the page says there, by default of what is wrong, once it has these words."""
        condition = f"words => document.querySelector('{selector}')?.innerText.includes(words)"
        try:
            self.page.wait_for_function(condition, arg=words, timeout=WAIT)
        except sync_api.TimeoutError:
            assert words in self.page.inner_text("body")
        return self.page.inner_text(selector)

    def reload(self) -> None:
        """As another visitor."""
        self.page.reload()
        self.page.wait_for_selector("#classify", timeout=WAIT)
        self.page.wait_for_timeout(500)

    def fetch(self, link: str) -> None:
        self.page.fill("#link input, #link textarea", link)
        self.page.click("#fetch")

    def hosts(self) -> set[str]:
        return {url.split("/")[2] for url in self.asked if url.startswith(("http", "ws"))}

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser, server):
    visitors = []

    def enter(url: str | None = None, **options) -> Visitor:
        visitors.append(Visitor(browser, url or server.url, **options))
        return visitors[-1]

    yield enter
    for visitor in visitors:
        visitor.close()


def wait_until_empty(server: Page) -> None:
    """Sessions end within seconds of their page's end."""
    for _ in range(200):
        if not server.files():
            return
        time.sleep(0.1)
    assert server.files() == []


# What visitors see ---------------------------------------------------------------------------------------------------


def test_two_budgets_keep_different_patches_and_nobody_else_is_asked(server, visit, tmp_path):
    visitor = visit()
    assert visitor.page.inner_text("#cost").startswith("64 of 128 tokens (50%)")
    visitor.upload(write_coloured(tmp_path / "red.mkv"))
    assert "2.0 s, 96x96, 10 frames a second" in visitor.facts()
    pictures = []
    for budget in (96, 20):
        visitor.set_budget(budget)
        pictures.append(visitor.classify(budget))
        assert count_coloured(pictures[-1], 168, 42, 8) == budget
        assert "<b>class" in visitor.page.inner_text("#labels")
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[1].tobytes()
    video = visitor.page.request.get(visitor.page.get_attribute("#kept-video video", "src"))
    assert video.status == 200 and video.headers["content-type"] == "video/mp4"
    assert visitor.hosts() == {server.url.split("/")[2]}
    assert server.hosts() <= {"127.0.0.1", "localhost", "::1"}
    visitor.close()
    wait_until_empty(server)


def test_the_plan_sets_frames_for_its_budget(visit):
    visitor = visit()
    visitor.set_budget(32)
    visitor.page.wait_for_function("document.querySelector('#cost').innerText.startsWith('32 of 64 ')", timeout=WAIT)


def test_a_damaged_file_is_told(server, visit, tmp_path):
    visitor = visit()
    data = encode("libx264", 60, size=(160, 96))
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    visitor.upload(tmp_path / "cut.mp4")
    visitor.wait_for_words("This file cannot be read: ", "#facts")
    visitor.page.click("#classify")
    visitor.wait_for_words("This file cannot be read: ")
    visitor.reload()
    (tmp_path / "text.mp4").write_text("no video at all")
    visitor.upload(tmp_path / "text.mp4")
    visitor.wait_for_words("This file cannot be read: Invalid data", "#facts")
    visitor.reload()
    start = data.index(b"mdat") + len(data) // 3
    (tmp_path / "torn.mp4").write_bytes(data[:start] + bytes(200) + data[start + 200 :])
    visitor.upload(tmp_path / "torn.mp4")
    visitor.facts()
    visitor.page.click("#classify")
    words = visitor.wait_for_words("This file cannot be read: damaged at")
    assert str(server.folder) not in words and "session-" not in words


def test_two_visitors_at_once_get_their_own(server, visit, tmp_path):
    visitors = [visit(), visit()]
    for channel, visitor in enumerate(visitors):
        visitor.upload(write_coloured(tmp_path / f"clip{channel}.mkv", channel))
        visitor.facts()
        visitor.set_budget((96, 20)[channel])
    for visitor in visitors:
        visitor.page.click("#classify")
    for channel, visitor in enumerate(visitors):
        visitor.page.wait_for_selector("#kept img", timeout=WAIT)
        picture = visitor.classify((96, 20)[channel])
        assert count_coloured(picture, 168, 42, 8) == (96, 20)[channel]
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
        strongest = colours[(colours.max(1) - colours.min(1)).argmax()]
        assert strongest.argmax() == channel
    theirs = visitors[0].page.get_attribute("#kept img", "src")
    visitors[0].close()
    for _ in range(100):
        if visitors[1].page.request.get(theirs).status == 403:
            break
        time.sleep(0.1)
    assert visitors[1].page.request.get(theirs).status == 403  # gone with its visitor
    assert visitors[1].classify(20)
    visitors[1].close()
    wait_until_empty(server)


def test_two_visitors_may_send_the_same_file(server, visit, tmp_path):
    path = write_coloured(tmp_path / "red.mkv")
    first, second = visit(), visit()
    for visitor in (first, second):
        visitor.upload(path)
        visitor.facts()
    first.close()
    time.sleep(2)
    assert count_coloured(second.classify(64), 168, 42, 8) == 64
    second.close()
    wait_until_empty(server)


def test_a_recording_is_classified(visit):
    visitor = visit()
    visitor.page.click("#clip [aria-label='Capture from camera']")
    visitor.page.click("#clip >> text=Click to Access Webcam")
    record = visitor.page.locator("#clip [aria-label='start recording']")
    record.click(timeout=WAIT)
    visitor.page.wait_for_timeout(8000)  # a busy machine has few pictures of it
    record.click()
    assert "640x480" in visitor.facts()
    visitor.classify(64)


def test_budgets_side_by_side_and_labels_over_time(server, visit, tmp_path):
    model = os.environ.get("FLUX_HF_APP_MODEL")
    with page_of(model, tmp_path / "own") if model else contextmanager(lambda: (yield server))() as page:
        visitor = visit(page.url, viewport={"width": 1280, "height": 860})
        visitor.page.click("#example-0")
        visitor.facts()
        visitor.page.get_by_role("tab", name="Labels over time").click()
        visitor.page.fill("#window input", "1")
        visitor.page.fill("#stride input", "0.25")
        visitor.page.click("#follow")
        visitor.page.wait_for_function("document.querySelectorAll('#timeline rect').length == 5", timeout=WAIT)
        visitor.page.get_by_role("tab", name="Budgets side by side").click()
        visitor.page.click("#compare")
        visitor.page.wait_for_selector("#compared img", timeout=WAIT)
        first = 144 if model else 96
        visitor.wait_for_words(f"{first} of", "#table")
        if not model:  # the trained budgets and half the smallest; one has a planned clip
            words = visitor.page.inner_text("#table")
            assert all(kept in words for kept in ("96 of 128", "64 of 128", "32 of 64", "16 of 128", "4x56"))
        visitor.page.wait_for_timeout(1500)
        picture = Path(os.environ.get("FLUX_HF_SCREENSHOT", tmp_path / "page.png"))
        visitor.page.screenshot(path=picture)
        Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)
        assert 10_000 < picture.stat().st_size < 300_000
        visitor.close()
        wait_until_empty(page)


def test_links_and_limits(visit, checkpoint, server, tmp_path):
    visitor = visit()
    with serving() as site:
        site.pages["/clip.mkv"] = (200, {}, write_coloured(tmp_path / "red.mkv").read_bytes())
        visitor.fetch(f"{site.url}/clip.mkv")
        visitor.wait_for_words("private network")
        assert site.asked == []
        flags = ("--links", "any", "--max_seconds", "2.5", "--max_file_mb", "1")
        with page_of(checkpoint, tmp_path / "own", *flags) as page:
            other = visit(page.url)
            other.fetch(f"{site.url}/clip.mkv")
            other.facts()
            assert count_coloured(other.classify(64), 168, 42, 8) == 64
            site.pages["/large.mp4"] = (200, {}, bytes(1_000_001))
            other.fetch(f"{site.url}/large.mp4")
            other.wait_for_words("more than 1 MB")
            assert count_coloured(other.classify(64), 168, 42, 8) == 64  # the clip before is still there
            other.reload()
            (tmp_path / "long.mp4").write_bytes(encode("libx264", 75))
            other.upload(tmp_path / "long.mp4")
            other.wait_for_words("lasts 3 s, at most 2.5", "#facts")
            other.reload()
            (tmp_path / "large.mp4").write_bytes(bytes(1_000_001))
            other.upload(tmp_path / "large.mp4")
            other.wait_for_words("exceed the maximum allowed size")
            other.close()
            wait_until_empty(page)


# Requests that no browser sends --------------------------------------------------------------------------------------


def status(url: str) -> int:
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def ask(server: Page, name: str, path, session: str, *values) -> str:
    """The raw answer to a call, a file named by its path."""
    data = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}, *values]
    body = json.dumps({"data": data, "session_hash": session}).encode()
    address = f"{server.url}gradio_api/call/{name}"
    with urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{address}/{event}", timeout=60) as answer:
        return answer.read().decode()


def send(server: Page, path: Path) -> str:
    """Uploads a file; its path there."""
    border = "flux-hf-border"
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{border}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
    with urlopen(Request(f"{server.url}gradio_api/upload", body, kind), timeout=60) as answer:
        return json.load(answer)[0]


CHOICES = (64, 8, 56, 1, 1)


def test_one_visitors_files_are_out_of_anothers_reach(server, tmp_path):
    clip = write_coloured(tmp_path / "red.mkv")
    taken = ask(server, "take", send(server, clip), "mine")
    path = re.search(r'"path": ?"([^"]+)"', taken)[1]
    assert "session-" in path and "96x96" in taken
    drawn = ask(server, "classify", path, "mine", *CHOICES)
    assert "event: complete" in drawn and "<b>class" in drawn
    picture = re.search(r'"path": ?"([^"]+kept-[^"]+)"', drawn)[1]
    secret = tmp_path / "secret.mkv"
    shutil.copyfile(clip, secret)
    for wrong in (path, picture, secret, REPOSITORY / "README.md", "/etc/passwd", f"{path}/../../../../audit"):
        for name, values in (("take", ()), ("classify", CHOICES)):
            refused = ask(server, name, wrong, "other", *values)
            assert "event: error" in refused and "class 1" not in refused
    for wrong in (secret, "/etc/passwd", server.folder / "audit", Path(path).parent, f"{path}/../../../../audit"):
        assert status(f"{server.url}gradio_api/file={wrong}") == 403
    assert status(f"{server.url}gradio_api/file={path}") == 200
    assert "event: complete" in ask(server, "classify", path, "mine", *CHOICES)


def test_the_server_fetches_nothing_but_links(server, tmp_path):
    with serving() as site:
        site.pages["/clip.mkv"] = (200, {}, write_coloured(tmp_path / "red.mkv").read_bytes())
        address = f"{site.url}/clip.mkv"
        for route in (f"file={address}", f"file/{address}", f"FILE={address}", f"proxy={address}"):
            assert status(f"{server.url}gradio_api/{route}") in (403, 404)
        assert status(f"{server.url}gradio_api/deep_link?session_hash=mine") == 403
        assert "event: error" in ask(server, "take", address, "mine")
        assert "event: error" in ask(server, "classify", address, "mine", *CHOICES)
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}\n#EXT-X-ENDLIST\n"
        for name in ("list.m3u8", "list.mp4"):
            (tmp_path / name).write_text(playlist)
            assert "cannot be read" in ask(server, "take", send(server, tmp_path / name), "mine")
        assert site.asked == []


def test_the_library_for_calls_is_answered(server, tmp_path):
    client = gradio_client.Client(server.url, verbose=False, download_files=False)
    clip = gradio_client.handle_file(str(write_coloured(tmp_path / "red.mkv")))
    labels, *_, about = client.predict(clip, *CHOICES, api_name="/classify")
    assert labels["label"].startswith("<b>class") and about.startswith("64 of 128 patches kept")
    client.close()


def test_headers_keep_browsers_to_this_host(server):
    with urlopen(server.url, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_command_says_what_it_cannot_load(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    command = [sys.executable, "-m", "flux_hf.app", "--model", str(tmp_path)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 1 and f"{tmp_path} cannot be loaded" in finished.stderr
