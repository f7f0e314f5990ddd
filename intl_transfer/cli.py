"""Transfer and detection benchmarks for the self-supervised method INTL.

Each subcommand is a module with ``HELP`` (one line), ``add_arguments(parser)`` and
``run(arguments) -> int``. Modules are imported only when their command is called, so that
``intl-transfer --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from intl_transfer import __version__
from intl_transfer.boundary import Boundary
from intl_transfer.command_line import parse
from intl_transfer.errors import did_you_mean

# command: (module, one line of help)
COMMANDS = {
    "doctor": ("intl_transfer.doctor", "check what works on this machine and what is missing"),
    "data": ("intl_transfer.data.command", "generate a data set"),
    "convert": (
        "intl_transfer.conversion.command",
        "convert a checkpoint to Detectron2, with verification",
    ),
    "evaluate": ("intl_transfer.evaluation.command", "evaluate a backbone by classification"),
    "figure": ("intl_transfer.analysis.command", "draw a figure of the paper, or of your runs"),
    "check": ("intl_transfer.results.check", "validate run directories"),
    "import": (
        "intl_transfer.results.importers.command",
        "import logs and results of other programs",
    ),
    "collect": ("intl_transfer.results.command", "collect run directories into a results table"),
    "archive": ("intl_transfer.results.archive", "copy the records of runs, for publication"),
    "completion": ("intl_transfer.completion", "print a completion script for bash or zsh"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments after the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The exit status: 0 for success, 1 for a negative result (a failed check), 2 for wrong use.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="intl-transfer",
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:11s} {text}" for name, (_, text) in COMMANDS.items())
        + "\n\n`intl-transfer COMMAND --help` describes its options.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not arguments:
        # As in git: the list of commands, and an error status.
        parser.print_help()
        return 2
    parsed = parser.parse_args(arguments)
    if parsed.command not in COMMANDS:
        hint = did_you_mean(parsed.command, COMMANDS)
        parser.error(f"no command '{parsed.command}'.{hint} Known: {', '.join(COMMANDS)}.")
    module_name, text = COMMANDS[parsed.command]
    module = importlib.import_module(module_name)
    command_parser = argparse.ArgumentParser(
        prog=f"intl-transfer {parsed.command}",
        description=module.__doc__ or text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command_parser)
    options = parse(command_parser, parsed.rest)
    with Boundary("the same command continues") as boundary:
        boundary.status = int(module.run(options))
    return boundary.status


if __name__ == "__main__":
    sys.exit(main())
