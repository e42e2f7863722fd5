"""The page in a real browser: a file is chosen, and its names are read. Needs Chromium; SCREENSHOTS=DIR keeps what it
looked like.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe import find_axe, findings
from browser import CHROMIUM, Browser
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from cover.inference.predictor import Predictor
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.model.text import TextConfig, TextNetwork, save_text

pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)
pytestmark = [
    pytest.mark.full,
    pytest.mark.extras,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
KEY = "0123456789abcdef"
AXE = find_axe()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose class names are as odd as names get, and a clip."""
    folder = tmp_path_factory.mktemp("page")
    odd = (
        "<img src=x onerror=alert(1)>",
        "Pushing something from left to right " * 3,
        "läuft & springt",
        "x",
        "y",
        "z",
    )
    heads = (Head("ssv2", odd), Head("kinetics", tuple("abcdefg")), Head("a head of a long name", ("only",)))
    sets = {head.name: {"sampling": "segments", "views": "1x3"} for head in heads}
    model = CoVeR(TimeSformerConfig(width=32, depth=2, attention_heads=2, patch=8, size=32), heads)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    facts = {"step": 1, "frames": 4, "datasets": sets}
    save_release(folder / "release", model, facts)
    save_release(folder / "own", model, {**facts, "default_head": "kinetics"})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    save_release(folder / "second", model, {"step": 2000, "frames": 4, "datasets": sets})
    (folder / "key").write_text(KEY)
    write_clip(folder / "clip.webm", 5)
    write_clip(folder / "second.webm", -5)
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    return folder


def write_clip(path: Path, brighter: int) -> None:
    """WebM: Chromium's own build shows it, and may lack H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(40):
            picture = np.zeros((240, 320, 3), np.uint8)
            picture[80:160, 6 * number : 6 * number + 80] = (255, (40 + brighter * number) % 256, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def served(folder: Path, *options: str, releases: tuple[str, ...] = ("release",)) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "cover",
        "serve",
        *(str(folder / release) for release in releases),
        "--port",
        "0",
        "--page",
        "--workers",
        "1",
    ]
    command += ["--spool", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The server of most tests, with one model."""
    with served(folder) as url:
        yield url


def asked(url: str, file: Path, model: str = "") -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/predict?top=5&timeline=16&model={model}", file.read_bytes(), {"content-type": "video/webm"}
    )
    with urllib.request.urlopen(request) as response:
        result: dict[str, Any] = json.load(response)
        return result


def assert_segments(browser: Browser, wanted: dict[str, Any]) -> None:
    """Every segment is a button at its time in the lane of its head."""
    shown = browser.value(
        "[...document.querySelectorAll('.lane')].map(lane => [...lane.querySelectorAll('button')].map(b => "
        "[b.textContent, parseFloat(b.style.left), parseFloat(b.style.width)]))"
    )
    seconds = wanted["seconds"]
    assert len(shown) == len(wanted["segments"]) == 3
    assert sum(map(len, shown)) >= 1  # the head with a single class is sure of it all the time
    for lane, segments in zip(shown, wanted["segments"].values(), strict=True):
        assert [name for name, *_ in lane] == [each["name"] for each in segments]
        for (_, left, width), each in zip(lane, segments, strict=True):
            assert left == pytest.approx(100 * each["start"] / seconds, abs=0.01)
            assert width == pytest.approx(100 * (each["end"] - each["start"]) / seconds, abs=0.01)


def walk_by_keyboard(browser: Browser) -> None:
    """The arrows move by a part of the video, Home goes to its beginning, and what is there is said."""

    browser.value("document.getElementById('scrub').focus()")
    browser.press("Home", 36)
    browser.wait_for("document.querySelector('video').currentTime === 0")
    browser.press("ArrowRight", 39)
    browser.wait_for("Math.abs(document.querySelector('video').currentTime - .25) < .06")
    browser.press("ArrowRight", 39)
    browser.wait_for("Math.abs(document.querySelector('video').currentTime - .5) < .06")
    browser.wait_for("document.getElementById('scrub').ariaValueText.startsWith('0.5 seconds: ')")
    browser.wait_for("document.querySelectorAll('.lane i')[0].style.left === '12.5%'")


def assert_accessible(browser: Browser) -> None:
    """axe-core, where it is installed, finds nothing serious on the page as it is now."""
    if AXE is not None:
        assert findings(browser.value, AXE) == []


def test_the_names_of_a_clip(browser: Browser, folder: Path, url: str) -> None:
    browser.open(f"{url}/")
    browser.screenshot("empty.png")
    browser.choose(folder / "clip.webm")
    browser.wait_for("document.querySelectorAll('.guess').length === 11 && !document.getElementById('timeline').hidden")
    wanted = asked(url, folder / "clip.webm")
    shown = browser.value(
        "[...document.querySelectorAll('#names section')].map(s => [s.querySelector('h2').textContent, "
        "...[...s.querySelectorAll('.guess > span:first-child')].map(e => e.textContent)])"
    )
    assert shown == [[head, *(guess["name"] for guess in guesses)] for head, guesses in wanted["heads"].items()]
    assert_segments(browser, wanted)
    bars = browser.value("[...document.querySelectorAll('progress')].map(bar => bar.value)")
    assert bars == pytest.approx(
        [guess["probability"] for guesses in wanted["heads"].values() for guess in guesses], abs=1e-6
    )
    cells = browser.value("[...document.querySelectorAll('#timeline tr')].map(row => row.cells.length)")
    assert cells == [17, 17, 17, 17]
    assert browser.wait_for("document.querySelector('video').videoWidth") == 320
    browser.wait_for("document.querySelectorAll('#parts .now').length === 4")  # it plays, and the part is marked
    browser.value("document.querySelectorAll('#parts button')[12].click()")
    browser.wait_for("document.querySelector('video').currentTime >= 3")
    walk_by_keyboard(browser)
    browser.screenshot("clip.png")
    assert_accessible(browser)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    browser.tell("Emulation.setDeviceMetricsOverride", width=390, height=1400, deviceScaleFactor=2, mobile=True)
    browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    browser.screenshot("phone.png")
    assert browser.complaints() == []


LOOKS = {"wide": (1200, "light"), "wide_dark": (1200, "dark"), "phone": (390, "light"), "phone_dark": (390, "dark")}


def explained(url: str, file: Path, head: str, model: str = "") -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/explain?head={head}&model={model}", file.read_bytes(), {"content-type": "video/webm"}
    )
    with urllib.request.urlopen(request) as response:
        result: dict[str, Any] = json.load(response)
        return result


def ask_why(browser: Browser, number: int) -> None:
    browser.value(f"document.querySelectorAll('#asks button')[{number}].click()")
    browser.wait_for(f"document.querySelectorAll('#asks button')[{number}].ariaPressed === 'true'")


def test_what_an_answer_rests_on(browser: Browser, folder: Path, url: str) -> None:
    """A head is asked why: the frames come with their heat, painted as the server measured it; another head has
    another.
    """
    browser.open(f"{url}/")
    browser.choose(folder / "clip.webm")
    browser.wait_for("document.querySelectorAll('#asks button').length === 3")
    ask_why(browser, 1)
    wanted = explained(url, folder / "clip.webm", "kinetics")
    bars = browser.value("[...document.querySelectorAll('#heat progress')].map(bar => bar.value)")
    assert bars == pytest.approx([frame["weight"] for frame in wanted["frames"]], abs=1e-5)
    browser.wait_for("[...document.querySelectorAll('#heat img')].every(image => image.naturalWidth === 32)")
    opacities = browser.value(
        "[...document.querySelectorAll('#heat canvas')].map(canvas => "
        "[...canvas.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 3))"
    )
    heat = np.array([frame["heat"] for frame in wanted["frames"]]).reshape(4, 16)
    np.testing.assert_allclose(opacities, 255 * 0.85 * np.sqrt(heat / heat.max()), atol=2)
    for name, (width, scheme) in LOOKS.items():
        browser.look(width, scheme, f"reasons_{name}")
    ask_why(browser, 0)
    assert browser.value("[...document.querySelectorAll('#heat progress')].map(bar => bar.value)") != bars
    browser.choose(folder / "broken.mp4")
    browser.wait_for("document.getElementById('state').textContent.includes('cannot be read')")
    assert browser.value("document.getElementById('reasons').hidden") is True
    assert [text for text in browser.complaints() if "422" not in text] == []


HOLD = """window.fetched = []; const real = window.fetch;
window.fetch = (route, told) => new Promise((resolve, reject) => {
  window.fetched.push({ route, signal: told.signal });
  told.signal.addEventListener("abort", () => reject(told.signal.reason));
  if (!window.held) real(route, told).then(resolve, reject);
}); 0"""


def test_what_is_not_wanted_any_more_is_stopped(browser: Browser, folder: Path, url: str) -> None:
    """Another file ends the question about the first, removal ends all, and neither is an error on the page."""
    aborted = "window.fetched.map(each => [each.route.split('?')[0], each.signal.aborted])"
    browser.open(f"{url}/")
    browser.value(HOLD)
    browser.choose(folder / "clip.webm")
    browser.wait_for("document.querySelectorAll('#asks button').length === 3")
    browser.value("window.held = true; document.querySelectorAll('#asks button')[0].click()")
    browser.wait_for("window.fetched.length === 2")
    assert browser.value(aborted)[1] == ["v1/explain", False]
    browser.choose(folder / "broken.mp4")
    browser.wait_for("window.fetched.length === 3")
    assert browser.value(aborted)[1:] == [["v1/explain", True], ["v1/predict", False]]
    browser.value("document.getElementById('clear').click(); window.held = false")
    assert browser.value(aborted)[2:] == [["v1/predict", True]]
    assert browser.value("document.getElementById('files').hidden && document.getElementById('shown').hidden")
    browser.choose(folder / "clip.webm")
    browser.wait_for("document.querySelectorAll('#asks button').length === 3")
    assert browser.value("document.querySelectorAll('.bad').length") == 0
    assert browser.complaints() == []


def test_several_files(browser: Browser, folder: Path, url: str) -> None:
    """Each has its result in the list and stays there; a file that cannot be read does not hold up the others."""
    texts = "[...document.querySelectorAll('#queue button')].map(button => button.lastChild.textContent)"
    browser.open(f"{url}/")
    assert "3 heads" in browser.value("document.getElementById('models').textContent")
    browser.choose(folder / "clip.webm", folder / "broken.mp4", folder / "second.webm")
    browser.wait_for(f"{texts}.every(text => !/waiting|predicting/.test(text))")
    best = [
        ", ".join(guesses[0]["name"] for guesses in asked(url, folder / name)["heads"].values())
        for name in ("clip.webm", "second.webm")
    ]
    shown = browser.value(texts)
    assert [shown[0], shown[2]] == best
    assert "cannot be read" in shown[1]
    browser.wait_for("document.querySelectorAll('.guess').length === 11")  # of the first, which was chosen
    browser.value("document.querySelectorAll('#queue button')[2].focus()")
    browser.press("Enter", 13, "\r")
    browser.wait_for("document.getElementById('state').textContent.startsWith('second.webm')")
    names = browser.value(
        "[...document.querySelectorAll('#names section')].map(s => s.querySelector('.guess span').textContent)"
    )
    assert ", ".join(names) == best[1]
    assert browser.value("document.activeElement.getAttribute('aria-current')") == "true"
    for name, (width, scheme) in LOOKS.items():
        browser.look(width, scheme, f"files_{name}")
        assert_accessible(browser)
    assert [text for text in browser.complaints() if "422" not in text] == []


def test_two_models_side_by_side(browser: Browser, folder: Path) -> None:
    with served(folder, releases=("release", "second")) as url:
        browser.open(f"{url}/")
        browser.choose(folder / "clip.webm")
        browser.wait_for("document.querySelectorAll('.guess').length === 22")
        shown = browser.value(
            "[...document.querySelectorAll('.pair > div')].map(half => [half.querySelector('h3').textContent, "
            "half.querySelector('.guess span').textContent])"
        )
        wanted = [asked(url, folder / "clip.webm", model)["heads"] for model in ("release", "second")]
        assert shown == [
            [model, heads[head][0]["name"]]
            for head in wanted[0]
            for model, heads in zip(("release", "second"), wanted, strict=True)
        ]
        verdicts = browser.value("[...document.querySelectorAll('.differ')].map(each => each.textContent)")
        for verdict, head in zip(verdicts, wanted[0], strict=True):
            same = wanted[0][head][0]["name"] == wanted[1][head][0]["name"]
            assert verdict.startswith("They agree" if same else "They differ")
        assert browser.value("document.querySelectorAll('.lane').length") == 6
        ask_why(browser, 4)
        bars = browser.value("[...document.querySelectorAll('#heat progress')].map(bar => bar.value)")
        wanted_frames = explained(url, folder / "clip.webm", "kinetics", "second")["frames"]
        assert bars == pytest.approx([frame["weight"] for frame in wanted_frames], abs=1e-5)
        for name, (width, scheme) in LOOKS.items():
            browser.look(width, scheme, f"models_{name}", 3200)
            assert_accessible(browser)
        assert browser.complaints() == []


def test_class_names_that_are_typed(browser: Browser, folder: Path) -> None:
    """The field is there for a model with a text network; without names its heads answer, here a hint."""
    words = ["<pad>", "<unk>", "cat", "dog", "horse"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "words.json"))
    network = TextNetwork(TextConfig("clip", 16, 1, 2, 24, len(words), 16, 12, 32, True, "gelu_quick", 1e-5))
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*network.parameters(), *model.parameters()):
            parameter.normal_(0, 0.4, generator=generator)
    save_release(folder / "text", model, {"step": 0, "frames": 4})
    save_text(folder / "text", network, folder / "words.json")
    with served(folder, releases=("text",)) as url:
        browser.open(f"{url}/")
        browser.choose(folder / "clip.webm")
        browser.wait_for("document.getElementById('state').textContent.includes('name the classes')")
        browser.value("document.getElementById('classes').focus()")
        for line in ("cat", "dog", "a horse"):
            browser.tell("Input.insertText", text=line + "\n")
        browser.value("document.getElementById('prompt').focus()")
        browser.tell("Input.insertText", text="one {}")
        browser.press("Enter", 13, "\r")
        browser.wait_for("document.querySelectorAll('.guess').length === 3")
        shown = browser.value(
            "[...document.querySelectorAll('.guess > span:first-child')].map(each => each.textContent)"
        )
        classes = ("cat", "dog", "a horse")
        wanted = Predictor.load(folder / "text", classes=classes, prompt="one {}")(folder / "clip.webm")
        assert shown == [name for name, _ in wanted.top(3)]
        assert browser.value("document.getElementById('reasons').hidden") is True
        for name, (width, scheme) in LOOKS.items():
            browser.look(width, scheme, f"typed_{name}", 1900)
            assert_accessible(browser)
        assert [text for text in browser.complaints() if "422" not in text] == []


def test_the_camera(tmp_path: Path, folder: Path, url: str) -> None:
    """A made camera plays a file; the page predicts short clips of it until it is stopped."""
    write_camera(tmp_path / "camera.y4m")
    browser = Browser(
        tmp_path / "profile",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture='{tmp_path / 'camera.y4m'}'",
    )
    try:
        browser.open(f"{url}/")
        browser.value(HOLD)
        browser.value("document.getElementById('camera').focus()")
        browser.press("Enter", 13, "\r")
        browser.wait_for("document.querySelectorAll('#now .guess').length === 7", 60)
        browser.wait_for("document.querySelectorAll('#past li').length >= 3", 60)
        assert browser.value("document.querySelector('#live video').videoWidth") == 320
        assert browser.value("document.getElementById('said').textContent")
        assert " behind" in browser.value("document.getElementById('state').textContent")
        for name, (width, scheme) in LOOKS.items():
            browser.look(width, scheme, f"live_{name}", 1200)
            assert_accessible(browser)
        browser.value("document.getElementById('camera').click()")
        count = browser.value("window.fetched.length")
        assert browser.value("document.getElementById('camera').textContent") == "Use the camera"
        time.sleep(1.5)
        assert browser.value("window.fetched.length") == count
        assert browser.complaints() == []
    finally:
        browser.close()


def write_camera(path: Path) -> None:
    """A moving square as the raw frames that Chromium plays in place of a camera."""
    height, width = 240, 320
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode())
        for number in range(20):
            luma = np.full((height, width), 60, np.uint8)
            luma[80:160, 10 * number : 10 * number + 80] = 220
            file.write(b"FRAME\n" + luma.tobytes() + np.full(height * width // 2, 128, np.uint8).tobytes())


def test_heads_that_answer_where_they_are_asked(browser: Browser, folder: Path) -> None:
    """A box asks the heads that do not answer by default."""
    with served(folder, releases=("own",)) as url:
        browser.open(f"{url}/")
        browser.choose(folder / "clip.webm")
        browser.wait_for("document.querySelectorAll('#names h2').length === 1")
        heads = "[...document.querySelectorAll('#names h2')].map(each => each.textContent)"
        assert browser.value(heads) == ["kinetics"]
        browser.value("document.querySelector('#models input').click()")
        browser.wait_for(f"{heads}.length === 3")
        assert_accessible(browser)
        browser.screenshot("heads.png")


def test_keyboard_alone(browser: Browser, folder: Path, url: str) -> None:
    """Tab goes through everything that can be used, in the order of the page, and shows where it is."""
    browser.open(f"{url}/")
    browser.choose(folder / "clip.webm")
    browser.wait_for("document.querySelectorAll('#asks button').length === 3")
    browser.value("document.activeElement.blur(); scrollTo(0, 0)")
    visited = []
    for _ in range(40):
        browser.press("Tab", 9)
        visited.append(
            browser.value("(e => e.id || e.tagName + ' ' + e.textContent.slice(0, 12))(document.activeElement)")
        )
        if visited[-1].startswith("BUTTON a head of a"):  # the last question
            break
    wanted = ["file", "camera", "clear", "scrub"]
    assert [each for each in visited if each in wanted] == wanted
    assert any(each.startswith("BUTTON kinetics") for each in visited)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.value(outline) != "none"


def test_heat_of_any_number_of_patches(browser: Browser, folder: Path, url: str) -> None:
    """Half a million are more than a function may have arguments."""
    browser.open(f"{url}/")
    heat = "Array.from({ length: 512 }, () => Array(512).fill(2e-6))"
    frames = f"Array.from({{ length: 2 }}, () => ({{ time: 0, weight: .5, picture: '', heat: {heat} }}))"
    shown = browser.value(
        f"heatOf({{ media: 'video', head: 'a', name: 'b', probability: 1, frames: {frames} }}).length"
    )
    assert shown == 3


def test_a_file_that_cannot_be_read_and_a_key(browser: Browser, folder: Path) -> None:
    with served(folder, "--key-file", str(folder / "key")) as url:
        browser.open(f"{url}/")
        page = browser.value("document.documentElement.outerHTML")
        assert "kinetics" not in page
        assert "<title>release" not in page
        browser.choose(folder / "broken.mp4")
        browser.wait_for("document.getElementById('state').textContent.includes('needs its key')")
        assert browser.value("document.getElementById('ask').hidden") is False
        give = "document.getElementById('key').value = '{}'; document.getElementById('ask').requestSubmit()"
        browser.value(give.format("wrong"))
        browser.wait_for("document.getElementById('state').textContent.includes('not the key')")
        browser.screenshot("key.png")
        browser.value(give.format(KEY))
        browser.wait_for("document.getElementById('models').textContent.includes('kinetics')")
        assert browser.value("document.getElementById('ask').hidden") is True
        browser.wait_for("document.getElementById('state').textContent.includes('cannot be read')")
        browser.screenshot("broken.png")
        assert browser.value("document.getElementById('names').children.length") == 0
