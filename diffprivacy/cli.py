"""The command line: ``python -m diffprivacy`` or ``diffprivacy``.

Exit codes: 0 all done, 1 some input failed, 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys

from . import __version__
from .commands import COMMANDS
from .commands.options import option_at_fault
from .errors import DiffPrivacyError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except DiffPrivacyError as error:
        print(f"error: {option_at_fault(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is finished is complete; the same command goes on from here", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(prog="diffprivacy", description="Protects the faces in images and videos.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return top
