"""The command line: `cover COMMAND …`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cover import __version__
from cover.cli import data, study, train, use
from cover.cli.command import Command
from cover.errors import UserError
from cover.machine import reuse_memory

# In the order of the help.
COMMANDS = (
    data.sandbox, data.index, data.overlap, data.prepare,
    train.train, study.add, train.plan, train.describe,
    use.evaluate, study.transfer, study.study, use.predict, use.explain, use.serve, use.import_weights, use.export,
    data.doctor, study.demo,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 done but not all input was usable, 2 wrong use, 130/143 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be valid text
    command, args = _parse(arguments)
    if command.computes:
        reuse_memory()
    try:
        return command.run(args)
    except UserError as error:
        print(f"cover {command.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cover {command.name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parse(arguments: Sequence[str] | None) -> tuple[Command, argparse.Namespace]:
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    command = next(command for command in COMMANDS if command.name == args.command)
    if hasattr(args, "names"):  # argparse ends a list of names at the first option; words after it are names too
        args.names = [*args.names, *filter(_is_name, rest)]
        rest = [word for word in rest if not _is_name(word)]
    if rest and not command.overrides:
        parser.error(f"{command.name}: unknown argument {rest[0]} (see cover {command.name} --help)")
    args.overrides = rest
    return command, args


def _is_name(word: str) -> bool:
    return word == "-" or not word.startswith("-")


class _OneLineParser(argparse.ArgumentParser):
    """argparse with one line for wrong use."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="cover", description="Co-train one video transformer on several video and image data sets.")
    parser.add_argument("--version", action="version", version=f"cover {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = parsers.add_parser(
            command.name, help=command.help, description=command.help, epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        for add_argument in command.arguments:
            add_argument(own)
    return parser
