"""Chromium for tests, driven through the pipes of its DevTools protocol. SCREENSHOTS=DIR keeps what it showed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Chromium without a window, told what to do through two pipes (its DevTools protocol)."""

    def __init__(self, profile: Path, *more: str) -> None:
        from_us, to_us = os.pipe(), os.pipe()
        options = (
            "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --window-size=1100,1250 --no-first-run"
        )
        options = " ".join([options, *more])
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
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def choose(self, *files: Path) -> None:
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.tell("DOM.setFileInputFiles", files=list(map(str, files)), nodeId=node)

    def screenshot(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            Path(folder, name).write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))

    def look(self, width: int, scheme: str, name: str, height: int = 2400) -> None:
        """Show the page as on a screen of this width, light or dark; nothing may stick out."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert self.value("document.documentElement.scrollWidth <= innerWidth"), name
        self.screenshot(f"{name}.png")

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release a key."""
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

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
