"""axe-core finds nothing serious on reports, wide and on a phone, light and dark. Needs Chromium and axe-core."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe import MISSING, find_axe, findings
from browser import CHROMIUM, Browser

from cover.experiments.run_report import write_run_report
from cover.experiments.study.study_report import write_study_report

AXE = find_axe()
KEPT = [  # studies of data, not those of networks, whose reports have the same parts
    path
    for path in sorted((Path(__file__).parents[2] / "studies").glob("*/results.json"))
    if '"curves"' in path.read_text(encoding="utf-8")
]
LOOKS = {"wide": (1200, "light"), "wide_dark": (1200, "dark"), "phone": (390, "light"), "phone_dark": (390, "dark")}
pytestmark = [
    pytest.mark.full,
    pytest.mark.extras,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(AXE is None, reason=MISSING),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def check(browser: Browser, report: Path, name: str) -> None:
    assert AXE
    browser.open(report.as_uri())
    for look, (width, scheme) in LOOKS.items():
        browser.look(width, scheme, f"{name}_{look}")
        assert findings(browser.value, AXE) == [], (name, look)


@pytest.mark.parametrize("results", KEPT, ids=lambda path: path.parent.name)
def test_kept_studies(browser: Browser, results: Path, tmp_path: Path) -> None:
    """Their reports as they would be written now."""
    summary = json.loads(results.read_text(encoding="utf-8"))
    write_study_report(summary, tmp_path / "report.html", tmp_path / "report.md")
    check(browser, tmp_path / "report.html", results.parent.name)


def test_a_run(browser: Browser, trained: Path) -> None:
    check(browser, write_run_report(trained), "run")
