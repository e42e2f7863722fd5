"""The page in a real browser: a file is chosen, and its names are read. Needs Chromium; SCREENSHOTS=DIR keeps what it
looked like.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
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

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.full,
    pytest.mark.extras,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
KEY = "0123456789abcdef"


class Browser:
    """Chromium without a window, told what to do through two pipes (its DevTools protocol)."""

    def __init__(self, profile: Path) -> None:
        from_us, to_us = os.pipe(), os.pipe()
        options = (
            "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --window-size=1100,1250 --no-first-run"
        )
        command = f"exec {CHROMIUM} {options} --user-data-dir='{profile}' about:blank 3<&{from_us[0]} 4>&{to_us[1]}"
        self.process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(from_us[0], to_us[1]), stderr=subprocess.DEVNULL
        )
        os.close(from_us[0])
        os.close(to_us[1])
        self._out, self._in = from_us[1], to_us[0]
        self._numbers, self._rest, self.session = itertools.count(1), b"", ""
        self.events: list[dict[str, Any]] = []
        target = next(each for each in self.tell("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self.session = self.tell("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {
            "id": number,
            "method": method,
            "params": parameters,
            **({"sessionId": self.session} if self.session else {}),
        }
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has gone"
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        result: dict[str, Any] = json.loads(text)
        return result

    def value(self, expression: str) -> Any:
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        until = time.monotonic() + seconds
        while not (result := self.value(expression)):
            assert time.monotonic() < until, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)
        return result

    def open(self, url: str) -> None:
        self.tell("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && !!document.getElementById('file')")

    def choose(self, file: Path) -> None:
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.tell("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screenshot(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            Path(folder, name).write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the browser had to say of the page: errors of the script, of loading, of the policy."""
        texts = [event["params"]["entry"]["text"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return texts + [
            str(event["params"]) for event in self.events if event.get("method") == "Runtime.exceptionThrown"
        ]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)


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
    save_release(folder / "release", model, {"step": 1, "frames": 4, "datasets": sets})
    (folder / "key").write_text(KEY)
    write_clip(folder)
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    return folder


def write_clip(folder: Path) -> None:
    """WebM: Chromium's own build shows it, and may lack H.264."""
    import av

    with av.open(str(folder / "clip.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(40):
            picture = np.zeros((240, 320, 3), np.uint8)
            picture[80:160, 6 * number : 6 * number + 80] = (255, 40 + 5 * number, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "cover",
        "serve",
        str(folder / "release"),
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


def asked(url: str, file: Path) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/predict?top=5&timeline=16", file.read_bytes(), {"content-type": "video/webm"}
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

    def press(key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            browser.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    browser.value("document.getElementById('scrub').focus()")
    press("Home", 36)
    browser.wait_for("document.querySelector('video').currentTime === 0")
    press("ArrowRight", 39)
    browser.wait_for("Math.abs(document.querySelector('video').currentTime - .25) < .06")
    press("ArrowRight", 39)
    browser.wait_for("Math.abs(document.querySelector('video').currentTime - .5) < .06")
    browser.wait_for("document.getElementById('scrub').ariaValueText.startsWith('0.5 seconds: ')")
    browser.wait_for("document.querySelectorAll('.lane i')[0].style.left === '12.5%'")


def test_the_names_of_a_clip(browser: Browser, folder: Path) -> None:
    with served(folder) as url:
        browser.open(f"{url}/")
        browser.screenshot("empty.png")
        browser.choose(folder / "clip.webm")
        browser.wait_for(
            "document.querySelectorAll('.guess').length === 11 && !document.getElementById('timeline').hidden"
        )
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
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.tell("Emulation.setDeviceMetricsOverride", width=390, height=1400, deviceScaleFactor=2, mobile=True)
        browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.screenshot("phone.png")
        assert browser.complaints() == []


LOOKS = {"wide": (1200, "light"), "wide_dark": (1200, "dark"), "phone": (390, "light"), "phone_dark": (390, "dark")}


def explained(url: str, file: Path, head: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/v1/explain?head={head}", file.read_bytes(), {"content-type": "video/webm"})
    with urllib.request.urlopen(request) as response:
        result: dict[str, Any] = json.load(response)
        return result


def ask_why(browser: Browser, number: int) -> None:
    browser.value(f"document.querySelectorAll('#asks button')[{number}].click()")
    browser.wait_for(f"document.querySelectorAll('#asks button')[{number}].ariaPressed === 'true'")


def test_what_an_answer_rests_on(browser: Browser, folder: Path) -> None:
    """A head is asked why: the frames come with their heat, painted as the server measured it; another head has
    another.
    """
    with served(folder) as url:
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
            browser.tell(
                "Emulation.setDeviceMetricsOverride", width=width, height=2400, deviceScaleFactor=1, mobile=width < 500
            )
            browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), name
            browser.screenshot(f"reasons_{name}.png")
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


def test_what_is_not_wanted_any_more_is_stopped(browser: Browser, folder: Path) -> None:
    """Another file ends the question about the first, whatever was asked, and its end is told nobody."""
    aborted = "window.fetched.map(each => [each.route.split('?')[0], each.signal.aborted])"
    with served(folder) as url:
        browser.open(f"{url}/")
        browser.value(HOLD)
        browser.choose(folder / "clip.webm")
        browser.wait_for("document.querySelectorAll('#asks button').length === 3")
        browser.value("window.held = true; document.querySelectorAll('#asks button')[0].click()")
        browser.wait_for("window.fetched.length === 2")
        assert browser.value(aborted)[1] == ["v1/explain", False]
        browser.choose(folder / "broken.mp4")
        browser.wait_for("window.fetched.length === 3")
        browser.value("window.held = false")
        assert browser.value(aborted)[1:] == [["v1/explain", True], ["v1/predict", False]]
        browser.choose(folder / "clip.webm")
        browser.wait_for("document.querySelectorAll('#asks button').length === 3")
        assert browser.value(aborted)[2:] == [["v1/predict", True], ["v1/predict", False]]
        assert browser.value("document.querySelectorAll('.bad').length") == 0
        assert browser.complaints() == []


def test_heat_of_any_number_of_patches(browser: Browser, folder: Path) -> None:
    """Half a million are more than a function may have arguments."""
    with served(folder) as url:
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
        browser.choose(folder / "broken.mp4")
        browser.wait_for("document.getElementById('state').textContent.includes('send the key')")
        assert browser.value("document.getElementById('ask').hidden") is False
        browser.value(f"document.getElementById('key').value = '{KEY}'; document.getElementById('ask').requestSubmit()")
        browser.wait_for("document.getElementById('state').textContent.includes('cannot be read')")
        browser.screenshot("broken.png")
        assert browser.value("document.getElementById('names').children.length") == 0
