"""Files that appear complete or not at all, alone or together.

They are written under short temporary names beside their places, readable by their owner only, and renamed. A process
holds a lock on its temporaries, so that the next one can tell those that a killed process has left, and sweep them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DiffPrivacyError

try:
    import fcntl
except ImportError:  # Windows, which does not remove files that are open
    fcntl = None

PREFIX = ".diffprivacy-"
"""Of the names of temporaries and locks."""
_UMASK = os.umask(0o077)
os.umask(_UMASK)


class Together:
    """Files that take their places together: all at :meth:`commit`, or none if the ``with`` block ends before.

    Errors of the file system, and errors that name a temporary, become DiffPrivacyError that name the place.
    """

    def __init__(self) -> None:
        self.files: dict[Path, Path] = {}
        """The temporary of each place."""
        self.afterwards: list[Callable[[], object]] = []
        """Called once the files are in their places."""
        self._locks: list[int] = []
        self._secret: set[Path] = set()

    def add(self, path: Path, secret: bool = False) -> Path:
        """A temporary, empty file that will take its place at ``path``. secret: only its owner may read it there too."""
        with _named(path):
            temporary, descriptor = _new_locked(path.parent)
        self.files[path] = temporary
        self._locks.append(descriptor)
        if secret:
            self._secret.add(path)
        return temporary

    def write(self, path: Path, data: bytes, secret: bool = False) -> None:
        """Add a file that holds the data."""
        temporary = self.add(path, secret)
        with _named(path):
            temporary.write_bytes(data)

    def commit(self) -> None:
        """Put all files in their places, the first added first."""
        for path, temporary in self.files.items():
            with _named(path):
                if path.is_dir():
                    raise DiffPrivacyError(f"{path} is a folder; choose another name.")
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                if path not in self._secret:
                    temporary.chmod(0o666 & ~_UMASK)
        placed = []
        try:
            for path, temporary in self.files.items():
                with _named(path):
                    temporary.replace(path)
                placed.append(path)
                _sync_folder(path.parent)
        except BaseException:
            for path in placed:
                path.unlink(missing_ok=True)
            raise
        for call in self.afterwards:
            call()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for temporary in self.files.values():
            temporary.unlink(missing_ok=True)
        for descriptor in self._locks:
            os.close(descriptor)
        if isinstance(error, DiffPrivacyError):
            for path, temporary in self.files.items():
                error.message = error.message.replace(str(temporary), str(path))


@contextmanager
def appearing(path: Path, secret: bool = False) -> Iterator[Path]:
    """A temporary name for a file that takes its place at ``path`` once the block has written it.

    If the block fails, what stood at ``path`` before is still there, and nothing else. A ``path`` that is a temporary
    itself is written directly. Raises DiffPrivacyError where the file cannot be written.
    """
    if path.name.startswith(PREFIX):
        with _named(path):
            yield path
        return
    with Together() as files:
        temporary = files.add(path, secret)
        with _named(path):
            yield temporary
        files.commit()


def write_atomically(path: Path, data: bytes, secret: bool = False) -> None:
    """Write a file as :func:`appearing` does."""
    with appearing(path, secret) as temporary:
        temporary.write_bytes(data)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for the same path.

    The path, a file that need not exist, is there for as long as somebody is in the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _wait_for(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporaries and locks that killed processes have left in a folder."""
    if fcntl is None or not folder.is_dir():
        return
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


_swept: set[Path] = set()
"""Folders from which this process has removed what killed ones had left."""


def _new_locked(folder: Path) -> tuple[Path, int]:
    """A new file and its open descriptor, which holds the lock where there are locks; the folder is swept first."""
    if folder not in _swept:
        sweep(folder)
        _swept.add(folder)
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}.part"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if fcntl is None:
            os.close(descriptor)
            return path, os.open(os.devnull, os.O_RDONLY)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # swept before it was locked


def _wait_for(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is None:
            return descriptor
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # its last owner has removed it


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file system as one that names the path."""
    try:
        yield
    except OSError as error:
        raise DiffPrivacyError(f"{path} cannot be written: {error.strerror or error}.") from error


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, so that files written one after the other survive a power cut in that order."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
