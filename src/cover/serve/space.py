"""A folder for a Space of the Hub: a container that serves the page of a model, with everything that it needs.

It has the release, the package of this version and the versions of the packages that are installed here, so that the
Space computes what this machine computes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import cover
from cover.errors import UserError, install
from cover.hub import CARD
from cover.inference.export.graph import write_then_rename
from cover.model.release import CONFIG, WEIGHTS, find_release, load_release
from cover.model.text import TEXT_FILES, has_text

PORT = 7860  # the one that a Space shows
SITE = "https://huggingface.co"  # shows a Space in a frame
MODEL, PACKAGE = "model", "cover"  # subfolders of the release and of this package
FOLDERS = (MODEL, PACKAGE)
LONGEST_NOTE = 60  # characters of a short description
EXTRAS = ("serve", "text")
DOCKERFILE = """# A Space of the Hub: the page of a model. It also runs anywhere else:
#   docker build -t page . && docker run --rm -p {port}:{port} page

FROM python:{python}-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home user
WORKDIR /app

# PyTorch first: its default build would bring CUDA.
RUN pip install --no-cache-dir torch=={torch} --index-url https://download.pytorch.org/whl/cpu
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

COPY --chown=user . .
USER user
EXPOSE {port}
CMD {command}
"""


def export_space(checkpoint: str | Path, out: Path, name: str = "") -> None:
    """Write the folder of a Space for a checkpoint into the new folder `out`. `name`: its title.

    Raises `UserError` if there is no release, if it has nothing to predict with, or if `out` is there already.
    """
    folder = find_release(checkpoint)
    heads = load_release(folder).default_heads  # also checks that the weights are not damaged
    if not heads and not has_text(folder):
        raise UserError(f"{folder}: has no head, so its page would have nothing to show; train or fit one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    if out.is_dir():
        out.rmdir()
    with write_then_rename(out) as beside:
        beside.mkdir()
        copy_release(folder, beside / MODEL)
        shutil.copytree(
            Path(cover.__file__).parent, beside / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        title = name or _title(checkpoint)
        note = ", ".join(head.name for head in heads) or "any class names"
        (beside / "requirements.txt").write_text(_requirements(has_text(folder)), encoding="utf-8")
        (beside / "Dockerfile").write_text(_dockerfile(), encoding="utf-8")
        (beside / CARD).write_text(_front_matter(title, note), encoding="utf-8")


def copy_release(folder: Path, out: Path) -> None:
    """Copy the files of a release, and nothing else that lies beside them, into the new folder `out`."""
    out.mkdir()
    for file in (WEIGHTS, CONFIG, CARD, *TEXT_FILES):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, out / file)


def serve_command() -> list[str]:
    """The command that a Space runs, in its folder."""
    words = ["python", "-m", "cover", "serve", MODEL, "--page", "--host", "0.0.0.0", "--port", str(PORT)]
    return [*words, "--frame", SITE]


def _title(checkpoint: str | Path) -> str:
    return Path(checkpoint).resolve().name if Path(checkpoint).exists() else str(checkpoint).rpartition("/")[2]


def _dockerfile() -> str:
    torch = metadata.version("torch").partition("+")[0]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return DOCKERFILE.format(port=PORT, python=python, torch=torch, command=json.dumps(serve_command()))


def _requirements(text: bool) -> str:
    """The packages that this one needs for serving, in the versions that are installed here."""
    extras = EXTRAS if text else EXTRAS[:1]
    lines = []
    for requirement in metadata.requires("cover-video") or []:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        if name == "torch" or (extra and extra[1] not in extras):
            continue
        try:
            lines.append(f"{name}=={metadata.version(name).partition('+')[0]}\n")
        except metadata.PackageNotFoundError:
            command = install(extra[1] if extra else "serve")
            raise UserError(f"a Space needs {name}, whose version here it takes: {command}") from None
    return "".join(sorted(set(lines), key=str.casefold))


def _front_matter(title: str, note: str) -> str:
    """The README.md of a Space: its settings, and what it is."""
    import yaml

    short = f"Classes of videos and images: {note}"
    settings = {
        "title": title,
        "emoji": "🎬",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "docker",
        "app_port": PORT,
        "pinned": False,
        "short_description": short if len(short) <= LONGEST_NOTE else "Classes of videos and images",
        "tags": ["video-classification", "cover"],
    }
    head = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{head}---\n\n# {title}\n\nThe page of a video and image model: drop a file or use the camera, and see"
        f" its classes.\nThe model is in `{MODEL}/`, its card is `{MODEL}/{CARD}`.\n"
    )
