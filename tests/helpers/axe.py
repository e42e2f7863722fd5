"""axe-core, the checker of accessibility, in a browser that a test drives. It is used where it is found.

It is not among the dependencies: `npm install axe-core` in the folder of the repository, or AXE names axe.min.js.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MISSING = "axe-core is not installed: npm install axe-core, or set AXE to the path of axe.min.js"
RUN = """axe.run(document, { resultTypes: ["violations"] }).then(found => found.violations
  .filter(each => each.impact === "serious" || each.impact === "critical")
  .map(each => [each.id, each.impact, ...each.nodes.slice(0, 5).map(
    node => node.html.slice(0, 200) + " " + node.any.map(one => one.message).join(" "))]))"""


def find_axe() -> Path | None:
    """The path of axe.min.js; None if it is not installed."""
    places = [Path(os.environ["AXE"])] if os.environ.get("AXE") else []
    places.append(ROOT / "node_modules/axe-core/axe.min.js")
    if shutil.which("npm"):
        found = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=False)
        places.append(Path(found.stdout.strip()) / "axe-core/axe.min.js")
    return next((place for place in places if place.is_file()), None)


def findings(value: Callable[[str], Any], axe: Path) -> list[Any]:
    """The serious and critical findings on the page. `value(expression)`: evaluates JavaScript in the browser.

    The script is evaluated by the browser's tool for developers, so the page's own policy does not matter.
    """
    if not value("!!window.axe"):
        value(axe.read_text(encoding="utf-8") + "\n;0")
    result: list[Any] = value(RUN)
    return result
