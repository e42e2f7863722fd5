"""Every block of code on every page is executed by a test, or says what it would need; every link leads somewhere.

A block that no test can execute is marked by a comment on the line before it, as `<!-- needs: data -->`. With `-s` the
counts are printed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from cover import config
from cover.cli import help_texts, main
from cover.experiments.study.study_file import Study
from cover.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}

# Executed by the tests below.
HERE = (
    "README",
    "backbones",
    "baselines",
    "caching",
    "cotraining",
    "importing",
    "own_loop",
    "protocols",
    "quick_start",
    "reading",
    "transfer",
    "troubleshooting",
)
# Page -> the test that executes its blocks, and the kinds of them that it does execute.
ELSEWHERE = {
    "ablations": ("tests/test_ablations_page.py", "bash"),
    "adding_a_format": ("tests/datasets/formats/test_own_format.py", "python yaml"),
    "adding_a_head": ("tests/experiments/test_adding_pages.py", "sh yaml"),
    "csv": ("tests/datasets/formats/test_lists.py", "csv yaml"),
    "exporting": ("tests/inference/test_exporting_page.py", "sh python"),
    "explaining": ("tests/inference/test_explaining_page.py", "sh python"),
    "filter": ("tests/inference/test_web_filter.py", "sh yaml"),
    "hub": ("tests/cli/test_hub_page.py", "sh yaml"),
    "indexing": ("tests/datasets/test_indexing_page.py", "sh"),
    "logs": ("tests/training/test_logging.py", "sh python"),
    "many_machines": ("tests/training/test_distributed.py", "sh"),
    "own_data": ("tests/experiments/test_adding_pages.py", "sh yaml"),
    "planning": ("tests/planning/test_estimate.py", "sh text"),
    "predicting": ("tests/inference/test_predicting_page.py", "sh python"),
    "preparing": ("tests/datasets/test_prepare.py", "sh"),
    "sandbox": ("tests/synthetic/test_sandbox_page.py", "sh"),
    "serving": ("tests/serve/test_serving_page.py", "sh python"),
    "starts": ("tests/model/starts/test_starts_page.py", "sh yaml python"),
    "studies": ("tests/experiments/study/test_studies_page.py", "sh yaml python"),
}
NAME = "cover-video"
NEEDS = ("cluster", "data", "gpu", "network")
PACKAGES = ("lightning", "transformers")  # marks of blocks that are executed where the package is installed
FENCE = re.compile(r"^```(\S*)\s*$")
MARK = re.compile(r"^<!-- needs: (\w+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: the number of its first line, the word behind the fence, what it needs (None: nothing)."""

    page: str
    line: int
    kind: str
    text: str
    needs: str | None

    @property
    def place(self) -> str:
        return f"{self.page}.md, line {self.line}"


def commands_of(page: str) -> Iterator[Block]:
    """Commands of `cover` that are indented, without a fence, those directly below each other as one block."""
    lines = PAGES[page].read_text(encoding="utf-8").splitlines()
    begun = 0
    for number, line in enumerate([*lines, ""]):
        if line.startswith("    "):
            continue
        text = "\n".join(each.strip() for each in lines[begun:number])
        if re.search(r"^cover [a-z]", text, re.MULTILINE):
            mark = MARK.match(lines[begun - 1])
            yield Block(page, begun + 1, "sh", text + "\n", mark[1] if mark else None)
        begun = number + 1


def blocks_of(page: str) -> Iterator[Block]:
    lines = PAGES[page].read_text(encoding="utf-8").splitlines()
    begun: tuple[int, str] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and begun is None:
            begun = number, fence[1]
        elif fence and begun:
            first, kind = begun
            mark = MARK.match(lines[first - 1]) if first else None
            yield Block(page, first + 2, kind, "\n".join(lines[first + 1 : number]) + "\n", mark[1] if mark else None)
            begun = None
    assert begun is None, f"{page}.md, line {(begun or (0,))[0] + 1}: the block has no end"


# --- what there is ----------------------------------------------------------------------------------------------------


def test_every_block_is_executed_or_marked() -> None:
    results: Counter[str] = Counter()
    neither = []
    for block in (block for page in PAGES for block in blocks_of(page)):
        if block.needs is not None and block.needs not in PACKAGES:
            assert block.needs in NEEDS, f"{block.place}: {block.needs} is none of {', '.join(NEEDS)}"
            results["marked"] += 1
        elif block.page in HERE or block.kind in ELSEWHERE.get(block.page, ("", ""))[1].split():
            results["executed"] += 1
        else:
            neither.append(f"{block.place}: {block.kind or 'no word'} behind the fence")
    print(
        f"\nblocks of the pages: {results['executed']} executed, {results['marked']} "
        f"marked as needing {', '.join(NEEDS)}"
    )
    assert not neither, "\n".join(neither)
    assert results["executed"] >= 90
    assert results["marked"] <= 11, "a mark is for what no test can have; there are more of them than there were"


def test_the_tests_that_are_named_are_there() -> None:
    for page, (file, _) in ELSEWHERE.items():
        assert page in PAGES
        assert page in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not name {page}"


@pytest.mark.parametrize("page", PAGES)
def test_marks_stand_directly_before_a_block(page: str) -> None:
    marks = [line for line in PAGES[page].read_text(encoding="utf-8").splitlines() if MARK.match(line)]
    assert len(marks) == sum(block.needs is not None for block in (*blocks_of(page), *commands_of(page)))


# --- the blocks that are executed here --------------------------------------------------------------------------------


@dataclass
class Reader:
    """Someone who types a page from top to bottom. `told`: what the last block printed."""

    capfd: pytest.CaptureFixture[str]
    names: dict[str, Any]
    told: str = ""

    def type(self, block: Block) -> None:
        if block.kind == "text":
            shown = [line.split() for line in self.told.splitlines()]
            for line in filter(None, block.text.splitlines()):
                assert line.split() in shown, f"{block.place}: {line}"
            return
        self.capfd.readouterr()
        {"sh": self.commands, "yaml": self.file, "python": self.program}[block.kind](block)
        self.told = self.capfd.readouterr().out

    def commands(self, block: Block) -> None:
        for line in block.text.splitlines():
            name, *words = shlex.split(line, comments=True)
            if name == "torchrun":
                continue  # by the test of many_machines
            assert name == "cover", f"{block.place}: {line}"
            if words[0] == "sandbox" or (words[0] == "index" and words[1].startswith("sandbox/")):
                continue  # they are there, and shared by all tests
            # Where files are broken on purpose, 1 says so.
            less = ["--no-baselines"] if words[0] == "evaluate" and block.page != "baselines" else []
            assert main([*words, *quicker(words), *less]) <= (words[0] == "index"), (
                f"{block.place}: {line}\n{self.capfd.readouterr().err}"
            )

    def file(self, block: Block) -> None:
        first, _, _ = block.text.partition("\n")
        assert re.fullmatch(r"# \w+\.yaml", first), f"{block.place}: a file begins with its name, as # mine.yaml"
        Path(first[2:]).write_text(block.text, encoding="utf-8")

    def program(self, block: Block) -> None:
        exec(compile("\n" * (block.line - 1) + block.text, PAGES[block.page], "exec"), self.names)


def quicker(words: list[str]) -> list[str]:
    """What a command is given so that it takes a moment and leaves what tests share as it is."""
    if words[0] == "overlap" and words[1].startswith("sandbox/"):
        return ["--out", "leaks", "--workers", "0"]
    less = {
        "train": ["--steps", "2"],
        "add": ["--epochs", "1"],
        "fit": ["--heads", "linear"],
        "transfer": ["--jobs", "1", "--seeds", "1", "--epochs", "1"],
    }
    few = less.get(words[0], [])
    return few if words[0] in ("transfer", "import-weights", "describe", "explain") else [*few, "--workers", "0"]


def link_sandbox(sandbox: Path, trained: Path) -> None:
    Path("sandbox").symlink_to(sandbox.parent)


def bring_recipes(sandbox: Path, trained: Path) -> None:
    link_sandbox(sandbox, trained)
    shutil.copytree(ROOT / "recipes", "recipes")


def bring_clips(sandbox: Path, trained: Path) -> None:
    """A folder for each class, made of training clips of other sets."""
    link_sandbox(sandbox, trained)
    for number, clip in enumerate(sorted((sandbox.parent / "moments_like/training").rglob("*.mp4"))[:10]):
        target = Path("clips") / ("serve", "smash")[number % 2] / f"{number:03}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)


def bring_run(sandbox: Path, trained: Path) -> None:
    link_sandbox(sandbox, trained)
    Path("runs").mkdir()
    Path("runs/cotrain").symlink_to(trained)


def bring_own_sets(sandbox: Path, trained: Path) -> None:
    """The README's catalog, its data sets generated ones and a folder of clips, and a file to predict. No run, and no
    sandbox.
    """
    bring_clips(sandbox, trained)
    Path("sandbox").unlink()
    (block,) = (block for block in blocks_of("README") if block.needs == "data")
    entries, generated = yaml.safe_load(block.text), yaml.safe_load(sandbox.read_text(encoding="utf-8"))
    for name, entry in entries.items():
        if entry["format"] == "folder":
            entry["root"] = "clips"
        else:  # where its lists lie: the one of the test split is empty
            output = generated[entry["format"]]
            entries[name] = {
                **entry,
                "root": str(sandbox.parent / output["root"]),
                "annotations": output["annotations"],
            }
    Path("catalog.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    bring_clip(sandbox, trained)


def bring_clip(sandbox: Path, trained: Path) -> None:
    shutil.copy(next((sandbox.parent / "kinetics_like/val").glob("*.mp4")), "clip.mp4")


BRING: dict[str, Callable[[Path, Path], None]] = {
    "README": bring_own_sets,
    "baselines": bring_run,
    "caching": bring_recipes,
    "cotraining": bring_clips,
    "protocols": bring_run,
    "quick_start": bring_recipes,
    "reading": bring_clip,
    "troubleshooting": bring_recipes,
}


@pytest.mark.parametrize("page", HERE)
def test_page(
    page: str,
    sandbox: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    BRING.get(page, link_sandbox)(sandbox, trained)
    reader = Reader(capfd, {})
    blocks = [*blocks_of(page), *(commands_of(page) if page == "README" else ())]
    for block in sorted(blocks, key=lambda block: block.line):
        if block.needs is None or (block.needs in PACKAGES and find_spec(block.needs)):
            reader.type(block)


def test_the_loop_of_ones_own_is_forty_lines() -> None:
    program = next(block.text for block in blocks_of("own_loop") if block.kind == "python")
    assert len([line for line in program.splitlines() if line and not line.startswith("#")]) <= 40


# --- links ------------------------------------------------------------------------------------------------------------


def prose_of(page: Path) -> str:
    """A page without what stands in code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`x`", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))


def code_of(text: str) -> str:
    """What stands in code on a page: blocks, indented lines and spans, each on a line of its own."""
    blocks = re.findall(r"^```\S*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest)]
    return "\n".join([*blocks, *re.findall(r"^ {4}(.*)$", rest, re.MULTILINE), *spans])


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> list[str]:
    text = prose_of(page)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links_of(PAGES[page]):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = PAGES[page].parent / file if file else PAGES[page]
        assert target.is_file(), f"{page}.md: {link}"
        assert not anchor or anchor in anchors_of(target), f"{page}.md: {link}: no such heading"


def test_the_index_lists_every_page_once() -> None:
    listed = re.findall(r"^- \[.+?\]\((\w+)\.\w+\): ", PAGES["index"].read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted([*(PAGES.keys() - {"README", "index"}), "api", "commands"])


def test_commands_and_options_on_the_pages_exist() -> None:
    """Also those within sentences, which no test executes. The reference of commands has the rest."""
    texts = help_texts()
    keys = {f"--{line.partition(':')[0]}" for schema in (Recipe, Study) for line in config.keys(schema)}
    count = 0
    for path in PAGES.values():
        for name, words in re.findall(
            r"^cover ([a-z][\w-]+)(.*)$", code_of(path.read_text(encoding="utf-8")), re.MULTILINE
        ):
            assert name in texts, f"{path.name}: cover {name}"
            known = {*re.findall(r"--[\w-]+", texts[name]), *keys}
            for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", words):
                count += 1
                is_known = option in known or any(key.startswith(f"{option}.") for key in keys)
                assert is_known or option.startswith("--model."), f"{path.name}: cover {name} {option}"
    assert count > 100


def test_no_page_knows_a_machine_s_paths() -> None:
    for path in PAGES.values():
        assert not re.search(r"/(home|root|work|tmp)/", path.read_text(encoding="utf-8")), path.name


def test_the_version_of_torch_is_the_one_that_is_tested() -> None:
    (tested,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    lines = {
        version
        for path in [*PAGES.values(), ROOT / "Dockerfile"]
        for version in re.findall(r"\btorch==([\d.]+)", path.read_text(encoding="utf-8"))
    }
    assert lines == {tested}


def test_the_versions_are_for_the_oldest_python_too() -> None:
    """Of those that are installed here; the project says `>=3.11`, and distributions still bring 3.11.2."""
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    here = [
        item for name, version in pins.items() for item in metadata.distributions(name=name) if item.version == version
    ]
    assert len(here) >= 30
    refused = [
        item.name for item in here if not SpecifierSet(item.metadata["Requires-Python"] or "").contains("3.11.0")
    ]
    assert not refused, "choose versions that Python 3.11.0 takes"


def test_hints_name_an_extra_and_no_index() -> None:
    """The package is on no index: what brings an extra is an install from its own folder."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sources = [path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in [*PAGES.values(), *sources]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(rf"{NAME}\\?\[[a-z{{]", text), path
        for line in re.findall(r"pip install [^\n]*?'\.\[\w+\]'", text):
            assert line.startswith("pip install -c constraints.txt -e '.["), f"{path}: {line}"
        assert {
            *re.findall(r"-e '\.\[(\w+)\]'", text),
            *re.findall(r"\binstall\([\"'](\w+)[\"']\)", text),
        } <= extras.keys(), path


@pytest.mark.full
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs pip install -c constraints.txt -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path / "site")]
    built = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert built.returncode == 0, built.stderr
    assert {path.stem for path in (tmp_path / "site").glob("*.html")} >= {*PAGES.keys(), "api", "commands"} - {"README"}
    commands = (tmp_path / "site/commands.html").read_text(encoding="utf-8")
    for shown in ("usage: cover predict", "--engine", "checkpoints.minutes", "fold_dev"):
        assert shown in commands
