"""Prints a shell completion script for commands and options.

eval "$(intl-transfer completion bash)"      # in ~/.bashrc, or for this shell
intl-transfer completion zsh > FOLDER_OF_FPATH/_intl-transfer
"""

from __future__ import annotations

import argparse
import importlib

SHELLS = ("bash", "zsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer completion``."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(arguments: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    print(shtab.complete(whole_parser(), shell=arguments.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """All commands with all their options, in one parser."""
    from intl_transfer.cli import COMMANDS

    parser = argparse.ArgumentParser(prog="intl-transfer")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        importlib.import_module(module).add_arguments(command)
    return parser
