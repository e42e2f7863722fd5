"""What of a checkpoint is exported, and where to?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cover.errors import UserError, nearest
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, release_folder


@dataclass(frozen=True)
class Choice:
    """A model in evaluation mode, the folder that it came from, and those of its heads that are wanted."""

    folder: Path
    model: CoVeR
    heads: tuple[Head, ...]


def choose(checkpoint: str | Path, names: Sequence[str]) -> Choice:
    """The heads called `names`, or all, of a run, a checkpoint, a release folder or a Hub id. Raises `UserError`."""
    folder = release_folder(checkpoint)
    model = load_release(folder)
    known = {each.name: each for each in model.head_list}
    if not known:
        raise UserError(f"{folder}: has no head, and what is exported is a classifier")
    for name in names:
        if name not in known:
            raise UserError(f'{folder}: has no head "{name}"{nearest(name, known)}')
    return Choice(folder, model, tuple(known[name] for name in dict.fromkeys(names or known)))


def check_file(out: Path, ending: str) -> None:
    """Raises `UserError` where `out` is there already, or is not named as its format wants."""
    if out.suffix != ending:
        better = out / f"model{ending}" if out.is_dir() else out.with_suffix(ending)
        raise UserError(f"{out}: name it {ending}, as in --out {better}")
    for path in (out, data_of(out)):
        if path.exists():
            raise UserError(f"{path}: is there already; choose a new file with --out")


def data_of(out: Path) -> Path:
    """Where the weights lie that are too large for their file."""
    return out.with_name(f"{out.name}.data")


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """Yields a path of the same name in a folder of its own; what has been written there is moved into place when it is whole.

    What is called as `out` is moved last: who finds it finds all that belongs to it. Raises `UserError` where there is something by now.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
            made = sorted(Path(folder).iterdir(), key=lambda path: path.name == out.name)
            for path in made:
                _check_free(out.parent / path.name)
            for path in made:
                _place(path, out.parent / path.name)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out}: has come meanwhile, and is left as it is; choose another name with --out")


def _place(made: Path, out: Path) -> None:
    if not made.is_dir():
        try:
            os.link(made, out)  # unlike a rename, never onto a file
            return
        except FileExistsError:
            _check_free(out)
        except OSError:  # of a file system that has no links
            _check_free(out)
    made.rename(out)
