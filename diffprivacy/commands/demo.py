"""``diffprivacy demo``: all three jobs on one photo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..demo import showcase
from .options import SEED_WARNING


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("demo", help="run all three jobs on one photo with the embedded model")
    parser.add_argument("photo", nargs="?", type=Path, metavar="PHOTO", help="default: a public-domain portrait")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), metavar="OUT", help="folder to write to"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="fix the noise, for tests only")
    parser.set_defaults(run=demonstrate)


def demonstrate(options: argparse.Namespace) -> int:
    """Run the showcase; returns the exit code."""
    if options.seed is not None:
        print(SEED_WARNING, file=sys.stderr)
    showcase.run(options.photo, options.output, options.seed)
    return 0
