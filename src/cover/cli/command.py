"""What a command is made of: its declaration, the options that several commands have, and how results are given out."""

from __future__ import annotations

import argparse
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cover.errors import UserError

DAY_S = 86_400  # the longest time that an option takes: what the system can wait for has its bounds too
Argument = Callable[[ArgumentParser], object]
Function = Callable[[Namespace], int]


class Command(NamedTuple):  # the import of dataclasses would be a tenth of the time that `cover --help` takes
    """One word of `cover WORD`. `run` returns the exit code."""

    name: str
    help: str
    example: str
    arguments: tuple[Argument, ...]
    run: Function
    # whether keys of a recipe or a study may follow, as `--optimizer.lr 3e-4`; they are in `args.overrides`
    overrides: bool
    computes: bool  # whether it runs a network


def command(
    name: str, help: str, example: str, *arguments: Argument, overrides: bool = False, computes: bool = False
) -> Callable[[Function], Command]:
    """Declares the function below it as a command: `name`, one line of `help`, an example of its use, and its
    arguments.
    """
    return lambda run: Command(name, help, example, arguments, run, overrides, computes)


def argument(*names: str, **settings: Any) -> Argument:
    """An argument, described as for `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


# --- arguments of several commands ------------------------------------------------------------------------------------


def whole(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Reads a whole number that is not below `lowest` nor above `highest`."""

    def number(text: str) -> int:  # argparse names this function in its message
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
        if highest is not None and int(text) > highest:
            raise argparse.ArgumentTypeError(f"{text} is above {highest}")
        return int(text)

    return number


def json_option(contents: str) -> Argument:
    """`--json FILE`, which holds `contents`."""
    return argument("--json", metavar="FILE", help=f"{contents} (- for stdout)")


def workers_option(read: Callable[[str], int] = int) -> Argument:
    """`--workers N`; `count_workers` gives the number."""
    return argument("--workers", type=read, default=-1, metavar="N", help="reading processes (default: one per core)")


WORKERS = workers_option()
DEVICE = argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
CATALOG = argument("--catalog", type=Path, default=Path("catalog.yaml"), help="default: catalog.yaml")
NAMES = argument("names", metavar="NAME", nargs="*", help="only these data sets")
ENGINE = argument(
    "--engine", choices=["pool", "ray"], default="pool", help="processes of this machine, or a Ray cluster"
)
ONE_HEAD = argument("--head", action="append", help="only this head (may be given again)")
DECODER = argument(
    "--decoder", default="pyav", choices=["pyav", "torchcodec", "torchcodec_cuda"], help="of videos (default: pyav)"
)


def checkpoint(*names: str, **settings: Any) -> Argument:
    """A checkpoint on this machine."""
    return argument(
        *names, metavar="CHECKPOINT", type=Path, **{"help": "a run, a checkpoint or a release folder", **settings}
    )


def checkpoint_or_hub() -> Argument:
    """A checkpoint on this machine or the Hub."""
    return argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a checkpoint, a release folder or a Hub id (owner/name)"
    )


def count_workers(args: Namespace) -> int:
    """The number of reading processes that is asked for, or one per core."""
    from cover.machine import default_workers

    return default_workers() if args.workers < 0 else int(args.workers)


def read_pairs(option: str, texts: list[str], form: str) -> dict[str, str]:
    """The name -> value of an option that may be given again.

    Raises `UserError` where a text is not of `form`, or a name is given twice.
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
    """Write `results` as JSON to `target` (the value of `--json`), and `show` them on stdout unless the JSON is there."""
    from cover.console import write_json

    if target:
        write_json(results, target)
    if target != "-":
        show()


def say_next(*words: object) -> None:
    """Say on stderr which command comes next."""
    from cover.console import say

    say(f"next: {shlex.join(['cover', *map(str, words)])}")
