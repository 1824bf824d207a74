"""Values that several commands' options take."""

from __future__ import annotations

import argparse

from ..errors import DiffPrivacyError

SEED_WARNING = (
    "warning: --seed is for tests only: whoever guesses the number can remove the noise from the images and come close "
    "to the original faces; leave it out for images that matter"
)


OPTIONS = {"person": "--only or --except"}
"""Options for fields of another name."""


def option_at_fault(error: DiffPrivacyError) -> str:
    """The error's message, with the option at fault if there is one."""
    if error.field is None:
        return error.message
    option = OPTIONS.get(error.field, "--" + error.field.replace("_", "-"))
    return f"{option}: {error.message}"


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
