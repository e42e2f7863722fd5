"""Declaration of a command, the arguments that several commands share, and the output of results."""

from __future__ import annotations

import argparse
import os
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cover.errors import UserError

DAY_S = 86_400  # seconds; the longest time that an option accepts, because system calls have an upper limit
Argument = Callable[[ArgumentParser], object]
Function = Callable[[Namespace], int]


class Command(NamedTuple):  # not a dataclass: that import takes a tenth of the time of `cover --help`
    """One command. `run` takes the parsed arguments and returns the exit code."""

    name: str
    help: str
    example: str
    arguments: tuple[Argument, ...]
    run: Function
    # Whether fields of a recipe or a study may be set, as in `--optimizer.lr 3e-4`. `args.overrides` holds them.
    overrides: bool
    computes: bool  # whether the command runs a network
    goes_on: bool  # whether the same command continues an interrupted one


def command(
    name: str,
    help: str,
    example: str,
    *arguments: Argument,
    overrides: bool = False,
    computes: bool = False,
    goes_on: bool = False,
) -> Callable[[Function], Command]:
    """Decorator that declares a function as a command: its name, one line of help, an example and its arguments."""
    return lambda run: Command(name, help, example, arguments, run, overrides, computes, goes_on)


def read_path(text: str) -> Path:
    """The type of an argument that is a path. Refuses an empty text."""
    if not text.strip():  # as from an unset variable of a shell; Path("") would be the current folder
        raise argparse.ArgumentTypeError("empty; name a file or a folder")
    return Path(text)


def argument(*names: str, **settings: Any) -> Argument:
    """An argument. The parameters are those of `ArgumentParser.add_argument`. An empty path is refused."""
    if settings.get("type") is Path:
        settings["type"] = read_path
    return lambda parser: parser.add_argument(*names, **settings)


# --- arguments of several commands ------------------------------------------------------------------------------------


def whole(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """A function that reads a whole number from `lowest` to `highest` (both included)."""

    def number(text: str) -> int:  # argparse puts the name of this function into its message
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
        if highest is not None and int(text) > highest:
            raise argparse.ArgumentTypeError(f"{text} is above {highest}")
        return int(text)

    return number


def json_option(contents: str) -> Argument:
    """The option `--json FILE`. `contents` says what the file holds."""
    return argument("--json", metavar="FILE", help=f"{contents} (- for stdout)")


def check_json_target(args: Namespace) -> None:
    """Raises `UserError` if the value of `--json` names a folder, or a file in a folder that cannot be written."""
    target = getattr(args, "json", None)
    if not target or target == "-":
        return
    path = Path(target)
    if path.is_dir():
        raise UserError(f"--json: {target}: is a folder; name a file in it")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not os.access(folder, os.W_OK):
        raise UserError(f"--json: {target}: cannot be written: {folder} cannot be written to")


def workers_option(read: Callable[[str], int] = int) -> Argument:
    """The option `--workers N`. `count_workers` returns its value."""
    return argument(
        "--workers", type=read, default=-1, metavar="N", help="processes that read files (default: one per core)"
    )


WORKERS = workers_option()
DEVICE = argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
CATALOG = argument(
    "--catalog", type=Path, default=Path("catalog.yaml"), help="the data sets' catalog (default: catalog.yaml)"
)
NAMES = argument("names", metavar="NAME", nargs="*", help="only these data sets (default: all)")
ENGINE = argument(
    "--engine",
    choices=["pool", "ray"],
    default="pool",
    help="pool: processes on this machine; ray: a Ray cluster (default: pool)",
)
COMPUTE_ENGINES = ["eager", "compiled", "onnx", "onnx-int8"]  # those of `cover.inference.engines`
ONE_HEAD = argument(
    "--head",
    action="append",
    help="only this head (may be repeated; default: the one that cover fit or cover add made, else all)",
)
DECODER = argument(
    "--decoder",
    default="pyav",
    choices=["pyav", "torchcodec", "torchcodec_cuda"],
    help="library that decodes videos (default: pyav)",
)


def checkpoint(*names: str, **settings: Any) -> Argument:
    """An argument that takes a checkpoint, as in `cover.model.release.find_release`."""
    help = settings.pop("help", "folder of a run, a checkpoint or a release, a known start or a Hub id (owner/name)")
    return argument(*names, metavar="CHECKPOINT", help=help, **settings)


def count_workers(args: Namespace) -> int:
    """The value of `--workers`; by default one process per core, at most 16."""
    from cover.machine import default_workers

    return default_workers() if args.workers < 0 else int(args.workers)


def read_pairs(option: str, texts: list[str], form: str) -> dict[str, str]:
    """The `name: value` pairs of a repeated option such as `--source NAME=CHECKPOINT`. `form` is the expected form.

    Raises `UserError` if a text has another form or if a name is given twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f'{option} "{text}": write {form}')
        if name in pairs:
            raise UserError(f'{option} "{text}": {name} is given twice')
        pairs[name] = value
    return pairs


# --- results ----------------------------------------------------------------------------------------------------------


def give(results: Any, target: str | None, show: Callable[[], object]) -> None:
    """Write `results` as JSON to `target`, the value of `--json`. Call `show`, unless stdout holds the JSON."""
    from cover.console import write_json

    if target:
        write_json(results, target)
    if target != "-":
        show()


def say_next(*words: object) -> None:
    """Print on stderr the `cover` command that usually comes next."""
    from cover.console import say

    say(f"next: {shlex.join(['cover', *map(str, words)])}")
