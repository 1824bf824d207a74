"""Errors meant for the person at the graph or at the command line."""


class DiffPrivacyError(Exception):
    """Something the user can mend; the message names the file, field or socket, and the remedy."""


class NoFaceError(DiffPrivacyError):
    """A picture in which no face was found, so that nothing in it would be protected."""
