"""What may be read at all: checked before anything is allocated."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import DiffPrivacyError


def check_file(path: Path, kind: str, most_bytes: int | None = None) -> None:
    """Raises DiffPrivacyError unless ``path`` is an ordinary file, reached over links or not, of at most so many bytes.

    Pipes and devices are refused unopened: opening one may wait forever, and reading one may never end.
    kind: what the file should be, such as "picture".
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise DiffPrivacyError(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DiffPrivacyError(f"{path} cannot be read: {reason}.") from error
    if stat.S_ISDIR(found.st_mode):
        raise DiffPrivacyError(f"{path} is a folder; name a {kind} in it.")
    if not stat.S_ISREG(found.st_mode):
        raise DiffPrivacyError(f"{path} is a pipe or a device; save its content as a file first.")
    if most_bytes is not None and found.st_size > most_bytes:
        raise DiffPrivacyError(
            f"{path} has {found.st_size / 1e6:.0f} MB, and a {kind} may have {most_bytes / 1e6:.0f}; make it smaller first."
        )
