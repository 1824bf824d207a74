"""Persona books as sealed files: who is who is never written in clear, and two runs may share a book."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..diffusion.noise import NoiseKey
from ..errors import DiffPrivacyError
from ..media.atomic import PREFIX, alone, write_atomically
from ..media.limits import check_file
from ..recovery.encryption import Encryptor, decryptor, is_identity, public_keys
from .book import PersonaBook

FORMAT = "diff-privacy personas 1"
MAX_BYTES = 2**28
"""Of a sealed file: some 100 000 people."""
ARRAYS = {"templates": np.float32, "counts": np.int64, "targets": np.float32, "faces": np.float32}


class PersonaFile:
    """A book in a file that a secret opens: a passphrase, or the text of an age identity file.

    Encrypted to the passphrase, or to the identities' own public keys. Opened once as long as nobody else changes it.
    """

    def __init__(self, path: Path, secret: str):
        self.path = path
        self._secret = secret
        self._encryptor = Encryptor(recipients=public_keys(secret)) if is_identity(secret) else Encryptor(secret)
        self._lock = threading.RLock()
        self._sealed = b""
        self._book: PersonaBook | None = None

    def read(self) -> PersonaBook:
        """The book. Raises DiffPrivacyError, naming the file, where it is missing, damaged, or the secret is wrong."""
        with self._lock:
            sealed = self._bytes()
            if self._book is None or sealed != self._sealed:
                self._book, self._sealed = self._opened(sealed), sealed
            return self._book

    def write(self, book: PersonaBook) -> None:
        """Seal the book and put it in the file's place, complete or not at all."""
        with self._lock:
            sealed = self._encryptor.encrypt(to_bytes(book))
            write_atomically(self.path, sealed, secret=True)
            self._book, self._sealed = book, sealed

    @contextmanager
    def changing(self) -> Iterator[PersonaBook]:
        """The book, begun where there is none, for this process alone; it is written if it was changed."""
        with self._lock, alone(self.path.with_name(f"{PREFIX}{self.path.name}.lock")):
            is_new = not self.path.exists()
            book = PersonaBook() if is_new else self.read().copy()
            before = to_bytes(book)
            yield book
            if is_new or to_bytes(book) != before:
                self.write(book)

    def keep(self, book: PersonaBook) -> None:
        """Write a book that was read here, or begun for a file that was missing, and has grown since.

        Raises DiffPrivacyError where that would lose people: the file holds another book, or has grown meanwhile.
        """
        with self.changing() as there:
            if len(there) and (there.fingerprint != book.fingerprint or len(there) > len(book)):
                raise DiffPrivacyError(f"{self.path}, the persona file, was changed since it was loaded: run again.")
            there.take(book)

    def _bytes(self) -> bytes:
        check_file(self.path, "persona file", MAX_BYTES)
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DiffPrivacyError(f"{self.path}, the persona file, cannot be read: {error.strerror}.") from None

    def _opened(self, sealed: bytes) -> PersonaBook:
        try:
            return from_bytes(decryptor(self._secret).decrypt(sealed))
        except DiffPrivacyError as error:
            raise DiffPrivacyError(
                f"{self.path}, the persona file, does not open: {error.message} Give the secret that it was begun with, or "
                "begin another file, whose personas are others."
            ) from error


def to_bytes(book: PersonaBook) -> bytes:
    """The book as safetensors, to be sealed."""
    texts = {"format": FORMAT.encode(), "secret": book.secret.key, "recognizer": bytes.fromhex(book.recognizer)}
    arrays = {name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
    return save(
        {**arrays, "lengths": np.array(book.lengths, np.int64), **{name: getattr(book, name) for name in ARRAYS}}
    )


def from_bytes(data: bytes) -> PersonaBook:
    """What :func:`to_bytes` gave; raises DiffPrivacyError for anything else."""
    try:
        arrays = load(data)
        texts = {name: arrays.pop(name).tobytes() for name in ("format", "secret", "recognizer")}
        lengths = [int(length) for length in arrays.pop("lengths")]
        book = PersonaBook(NoiseKey(texts["secret"]), texts["recognizer"].hex(), lengths, **arrays)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise DiffPrivacyError("It holds no personas.") from None
    people, size = len(book.counts), sum(lengths)
    shapes = {"templates": (people, size), "counts": (people,), "targets": (people, size), "faces": (people, size)}
    fits = all(getattr(book, n).shape == shapes[n] and getattr(book, n).dtype == kind for n, kind in ARRAYS.items())
    if (
        texts["format"] != FORMAT.encode()
        or not fits
        or not np.isfinite(book.templates + book.targets + book.faces).all()
    ):
        raise DiffPrivacyError("It holds no personas that this version reads.")
    return book
