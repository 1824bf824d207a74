"""Secrets that a workflow names by their place, ``env:NAME`` or ``file:PATH``, and never holds.

A workflow may come from anybody. Whatever fails, the answer is the same, so that it tells nothing of the disk, and no
other machine is asked for a file.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.recovery import encryption

OTHER_MACHINES = ("\\\\", "//", "\\/", "/\\")
"""How paths of files on other machines begin."""
_PROCESS_KEY = secrets.token_bytes(32)


def fault(source: str) -> bool | str:
    """What is wrong with the form of a secret's place, without repeating it; True if nothing."""
    try:
        if source:
            encryption.check_source(source)
    except DiffPrivacyError as error:
        return str(error)
    return True


def read(source: str, what: str = "secret") -> str:
    """The secret at a place; raises DiffPrivacyError, which is the same for every reason."""
    encryption.check_source(source, what)
    kind, _, name = source.partition(":")
    try:
        if kind == "file" and (name.startswith(OTHER_MACHINES) or not Path(name).is_file()):
            raise DiffPrivacyError("no regular file of this machine")
        return encryption.read_secret(source, what)
    except (DiffPrivacyError, OSError, ValueError):
        raise DiffPrivacyError(
            f"The {what} cannot be read from {source}: it must be text of up to {encryption.MAX_SECRET // 1024} KiB in a "
            "file on this machine, or in an environment variable that was set when ComfyUI started."
        ) from None


def fingerprint(source: str) -> str:
    """Changes with the secret at a place, so that ComfyUI runs a node again.

    ComfyUI saves it with the prompt. It tells nothing of the secret, nor whether there is one: it is a hash under a key
    that this process alone has.
    """
    try:
        found = "1" + read(source)
    except DiffPrivacyError:
        found = "0"
    return digest(f"{source}\0{found}".encode())


def digest(data: bytes) -> str:
    """A hash under a key that this process alone has."""
    return hashlib.blake2b(data, key=_PROCESS_KEY, digest_size=16).hexdigest()
