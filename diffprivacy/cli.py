"""The command line: ``python -m diffprivacy`` or ``diffprivacy``.

Exit codes: 0 all done, 1 some input failed, 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__, jobs
from .errors import DiffPrivacyError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except DiffPrivacyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: finished pictures are complete; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="diffprivacy", description="Protects the faces in pictures.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    anonymize = commands.add_parser("anonymize", help="make every face somebody else")
    _add_job_options(anonymize)
    anonymize.set_defaults(run=jobs.anonymize)

    demo = commands.add_parser("demo", help="see what it does, on one photo, with nothing to download")
    demo.add_argument("photo", nargs="?", type=Path, metavar="PHOTO", help="default: a public-domain portrait")
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), metavar="OUT", help="folder to write to"
    )
    demo.add_argument("--seed", type=int, metavar="N", help="fix the noise")
    demo.set_defaults(run=jobs.demonstrate)

    doctor = commands.add_parser("doctor", help="say what is installed and what is missing")
    doctor.set_defaults(run=jobs.doctor)
    return parser


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="picture, or folder of pictures")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the PNG files")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE|DIR",
        help="SD 1.x .safetensors, or a diffusers folder (default: demo model)",
    )
    add("--detector", default="builtin", metavar="FILE", help="detector as ONNX, or builtin (default)")
    add(
        "--recognizer",
        action="append",
        type=Path,
        metavar="FILE",
        help="recognizer as ONNX to lead the faces away from; several make an ensemble",
    )
    add("--faces", default="all", metavar="WHICH", help="all (default), largest, or numbers from the left such as 0,2")
    add(
        "--without-face",
        choices=["error", "copy"],
        default="error",
        help="for a picture in which no face is found (default: error, nothing is written)",
    )
    add("--preset", choices=["default", "paper"], default="default", help="what measured best, or the paper's settings")
    add("--strength", type=float, metavar="S", help="how far a face is redrawn, above 0 and up to 1 (default 0.6)")
    add("--steps", type=_positive, metavar="N", help="steps of the whole schedule, of which the strength's share runs")
    add("--variants", type=_positive, default=1, metavar="N", help="different faces to make of each (default 1)")
    add(
        "--size",
        type=_positive,
        metavar="PIXELS",
        help="side of the face crops (default: what the checkpoint was made for)",
    )
    add("--seed", type=int, metavar="N", help="fix the noise, for tests (default: drawn from the operating system)")
    add("--device", metavar="NAME", help="cuda, mps or cpu (default: the first of them that is there)")
    add("--overwrite", action="store_true", help="do finished pictures again")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
