"""The command line: ``python -m diffprivacy`` or ``diffprivacy``.

Exit codes: 0 all done, 1 some input failed, 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator

from . import __version__
from .commands import COMMANDS
from .commands.batch import StopBatch, reason
from .commands.terminal import Lasting
from .errors import UsageError
from .progress import begin_bars

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    with contextlib.redirect_stdout(Lasting(sys.stdout)), contextlib.redirect_stderr(Lasting(sys.stderr)):
        options = parser().parse_args(arguments)
        begin_bars()
        with _shown() if options.verbose else contextlib.nullcontext():
            return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("Interrupted. Finished files are kept; run the same command again to resume.", file=sys.stderr)
        return 130
    except Exception as error:
        log.debug("the run ended", exc_info=True)
        cause = error.args[0] if isinstance(error, StopBatch) else error
        print(f"error: {reason(cause)}", file=sys.stderr)
        return 2 if isinstance(cause, UsageError) else 1


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show what the library logs."""
    library, handler = logging.getLogger(__package__), logging.StreamHandler(sys.stderr)
    before = library.level
    library.addHandler(handler)
    library.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(before)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="diffprivacy", description="Anonymize faces in images and videos, hide identities, and recover originals."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    for each in commands.choices.values():
        each.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="say what was decided for each face, and where an unexpected error came from",
        )
    return top
