"""Values that several commands' options take."""

from __future__ import annotations

import argparse

SEED_WARNING = (
    "warning: --seed is for tests only: whoever guesses the number can remove the noise from the images and come close "
    "to the original faces; leave it out for images that matter"
)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
