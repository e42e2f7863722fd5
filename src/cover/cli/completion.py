"""Shell completion: `cover --print-completion bash`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from cover.cli.command import read_path
from cover.errors import UserError, install

SHELLS = ("bash", "zsh", "tcsh")
PLACES = {"FILE", "DIR", "CATALOG", "CHECKPOINT", "RECIPE", "STUDY"}  # arguments that are completed with paths


class PrintCompletion(argparse.Action):
    """Prints the script that teaches a shell the commands and options of the parser, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        print(completion_script(parser, values))
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for `shell`, one of `SHELLS`: commands, options, choices, paths, and keys of a recipe.

    Raises `UserError` if the package shtab is missing.
    """
    try:
        import shtab
    except ImportError as missing:
        raise UserError(f"--print-completion needs shtab: {install('completion')}") from missing
    for name, command in subparsers(parser).items():
        for option in [f"--{key}" for key in _keys_of(name)]:
            if option not in command._option_string_actions:
                command.add_argument(option, metavar="VALUE")
        for action in command._actions:
            if action.type is read_path or action.metavar in PLACES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Command -> its parser."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices


def _keys_of(command: str) -> list[str]:
    """The keys that can be set as options of a command."""
    if command not in ("train", "plan"):
        return []
    from cover import config
    from cover.training.recipe import Recipe

    return list(dict.fromkeys(line.partition(":")[0] for line in config.keys(Recipe)))
