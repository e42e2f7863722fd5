"""The command line, `cover COMMAND ...`: the list of commands, the parser and the exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from cover import __version__
from cover.cli import data_commands, hub_commands, study_commands, train_commands, use_commands
from cover.cli.command import Command, check_json_target
from cover.cli.completion import SHELLS, PrintCompletion, subparsers
from cover.errors import UserError, similar
from cover.machine import reuse_memory
from cover.safe_text import printable
from cover.streams import standard_streams

T = TypeVar("T")
# The help lists them in this order.
COMMANDS = (
    data_commands.sandbox,
    data_commands.index,
    data_commands.overlap,
    data_commands.labels,
    data_commands.prepare,
    study_commands.fit,
    train_commands.train,
    study_commands.add,
    train_commands.plan,
    train_commands.describe,
    train_commands.starts,
    use_commands.evaluate,
    study_commands.report,
    study_commands.transfer,
    study_commands.study,
    use_commands.predict,
    use_commands.filter_,
    use_commands.explain,
    use_commands.serve,
    use_commands.import_weights,
    use_commands.export,
    hub_commands.push,
    hub_commands.pull,
    data_commands.doctor,
    study_commands.demo,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: done, but some input could not be used. 2: wrong use or configuration, or results that stdout cannot
    take. 129, 130 or 143: interrupted. 141: the reader of stdout has ended. `arguments` are the words after `cover`; by
    default those of this process.
    """
    name, goes_on = "cover", ""
    with standard_streams():
        try:
            command, args = _flushed(lambda: _parse(arguments))
            name, goes_on = f"cover {command.name}", "; the same command goes on from here" * command.goes_on
            check_json_target(args)  # before work that may take hours
            if command.computes:
                reuse_memory()
            return _flushed(lambda: command.run(args))
        except UserError as error:
            print(printable(f"{name}: {error}"), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{name}: interrupted{goes_on}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 141
        except SystemExit as end:
            if isinstance(end.code, int) and end.code > 128 and goes_on:
                print(f"{name}: interrupted{goes_on}", file=sys.stderr)
            raise


def _flushed(run: Callable[[], T]) -> T:
    """The result of `run`, after all that it printed is written, also if it ends the command without an error."""
    try:
        result = run()
    except SystemExit as end:
        if not end.code:
            sys.stdout.flush()
        raise
    sys.stdout.flush()
    return result


def _parse(arguments: Sequence[str] | None) -> tuple[Command, argparse.Namespace]:
    parser = _parser()
    first = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    if first and not first.startswith("-") and first not in subparsers(parser):  # argparse would list every command
        parser.error(f"unknown command {first}{similar(first, subparsers(parser))} (see cover --help)")
    args, rest = parser.parse_known_args(arguments)
    if args.command is None:
        parser.print_help()
        parser.exit()
    command = next(command for command in COMMANDS if command.name == args.command)
    if hasattr(args, "names"):  # argparse ends a list of names at the first option; names may also follow options
        args.names = [*args.names, *filter(_is_name, rest)]
        rest = [word for word in rest if not _is_name(word)]
    if rest and not command.overrides:
        hint = similar(rest[0].partition("=")[0], subparsers(parser)[command.name]._option_string_actions)
        parser.error(f"{command.name}: unknown argument {rest[0]}{hint} (see cover {command.name} --help)")
    args.overrides = rest
    return command, args


def _is_name(word: str) -> bool:
    return word == "-" or not word.startswith("-")


def help_texts() -> dict[str, str]:
    """Command -> what its `--help` prints: for the reference of commands."""
    return {name: parser.format_help() for name, parser in subparsers(_parser()).items()}


class _OneLineParser(argparse.ArgumentParser):
    """argparse that reports wrong use in one line."""

    def error(self, message: str) -> NoReturn:
        print(printable(f"{self.prog}: {message}"), file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="cover", description="Co-train one video transformer on several video and image data sets."
    )
    parser.add_argument("--version", action="version", version=f"cover {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        action=PrintCompletion,
        help='print a completion script; in bash: eval "$(cover --print-completion bash)"',
    )
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        subparser = parsers.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for add_argument in command.arguments:
            add_argument(subparser)
    return parser
