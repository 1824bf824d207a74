"""Files that appear complete or not at all, alone or together.

They are written under short temporary names beside their places, readable by their owner only, and renamed. Whoever
writes them holds a lock beside them, so that the next process can tell those that a killed one has left, and sweep them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DiffPrivacyError

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
        self._locks: dict[Path, tuple[Path, int]] = {}
        """Of each folder, the lock of the temporaries in it."""
        self._secret: set[Path] = set()

    def add(self, path: Path, secret: bool = False) -> Path:
        """A temporary, empty file that will take its place at ``path``. secret: only its owner may read it there too."""
        with _named(path):
            if path.parent not in self._locks:
                self._locks[path.parent] = _new_lock(path.parent)
            lock, _ = self._locks[path.parent]
            temporary = lock.with_suffix(f".{len(self.files)}.part")
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        self.files[path] = temporary
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
        for lock, descriptor in self._locks.values():
            _give_up(lock, descriptor)
        if isinstance(error, DiffPrivacyError):
            for path, temporary in self.files.items():
                error.message = error.message.replace(str(temporary), str(path))


@contextmanager
def atomic_path(path: Path, secret: bool = False) -> Iterator[Path]:
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
    """Write a file as :func:`atomic_path` does."""
    with atomic_path(path, secret) as temporary:
        temporary.write_bytes(data)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for the same path.

    The path, a file that need not exist, is there for as long as somebody is in the block.
    """
    while not _lasts(descriptor := _opened(path)):
        os.close(descriptor)  # its last owner has removed it
    try:
        yield
    finally:
        _give_up(path, descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporaries and locks that killed processes have left in a folder."""
    from filelock import lock_descriptor

    for lock in folder.glob(f"{PREFIX}*.lock"):
        with suppress(OSError):  # somebody else's, or gone by now
            descriptor, held = os.open(lock, os.O_RDWR), False
            try:
                held = lock_descriptor(descriptor, blocking=False)
            finally:
                if held:
                    _give_up(lock, descriptor)
                else:
                    os.close(descriptor)
    for temporary in folder.glob(f"{PREFIX}*.part"):
        token, *_ = temporary.name.removeprefix(PREFIX).split(".")
        if not temporary.with_name(f"{PREFIX}{token}.lock").exists():
            with suppress(OSError):
                temporary.unlink()


_swept: set[Path] = set()
"""Folders from which this process has removed what killed ones had left."""


def _new_lock(folder: Path) -> tuple[Path, int]:
    """A new file, and its open descriptor, which holds the lock; the folder is swept first."""
    if folder not in _swept:
        sweep(folder)
        _swept.add(folder)
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if _lasts(descriptor):
            return path, descriptor
        os.close(descriptor)  # swept before it was locked


def _opened(path: Path) -> int:
    """A file, and its folder, which are made where they are missing."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder was empty, and another process has removed it
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _lasts(descriptor: int) -> bool:
    """Wait for the lock on a file; whether the file is still there then."""
    from filelock import lock_descriptor

    with suppress(OSError):  # some network file systems have no locks
        lock_descriptor(descriptor)
    return os.fstat(descriptor).st_nlink > 0


def _give_up(lock: Path, descriptor: int) -> None:
    """Remove a lock that is held. Windows removes no file that is open, and others may open it once it is closed."""
    if os.name == "nt":
        os.close(descriptor)
    with suppress(OSError):
        lock.unlink()
    if os.name != "nt":
        os.close(descriptor)


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
