"""Errors meant for the person at the graph or at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DiffPrivacyError(Exception):
    """Something the user can fix; the message names the thing and the remedy.

    field: the input at fault, by the library's name. A graph shows it as a socket, the command line as an option.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return self.message if self.field is None else f"{self.field}: {self.message}"


class NoFaceError(DiffPrivacyError):
    """An image in which no face was found, so that nothing in it would be protected."""


class UsageError(DiffPrivacyError):
    """A command that cannot be done as it was given."""


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Errors raised within are this field's."""
    try:
        yield
    except DiffPrivacyError as error:
        error.field = field
        raise
