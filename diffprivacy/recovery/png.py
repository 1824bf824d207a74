"""Sealed keys that travel with a picture: in private chunks of the PNG (its specification, section 5), or beside it.

Their type is ancillary, private and safe to copy: viewers ignore them, and editors may carry them over.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DiffPrivacyError
from ..media.atomic import Together
from ..media.images import Picture, encode_png
from ..media.limits import check_file
from .encryption import MAX_SEALED

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SEALED_KEY = b"dpKy"
KEYED = b"dpKd"
"""What recovery in keyed mode needs besides the secret, see :mod:`diffprivacy.recovery.keyed`."""
NO_KEY = (
    "it carries no recovery key, neither inside nor beside it. Another program saved it anew and lost the key, or it was "
    "protected without one."
)
MAX_CHUNKS = 2**16
MAX_KEYS = 256
_END = b"IEND"


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk; raises DiffPrivacyError where the file is no PNG, damaged or cut off."""
    if not data.startswith(SIGNATURE):
        raise DiffPrivacyError("This is no PNG file.")
    place = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if place + 12 > len(data):
            raise DiffPrivacyError("The PNG file is cut off.")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise DiffPrivacyError("The PNG file is cut off.")
        content = data[place + 8 : end - 4]
        if struct.unpack_from(">I", data, end - 4)[0] != zlib.crc32(content, zlib.crc32(kind)):
            raise DiffPrivacyError(
                f"The PNG file is damaged: its chunk {kind.decode('latin-1')!r} has a wrong checksum."
            )
        yield kind, content
        if kind == _END:
            return
        place = end
    raise DiffPrivacyError(f"The PNG file has more than {MAX_CHUNKS} chunks.")


def with_chunks(data: bytes, kind: bytes, contents: Sequence[bytes]) -> bytes:
    """A PNG file with chunks added before its end."""
    body = memoryview(data)[: len(data) - 12]
    return b"".join([body, *(_chunk(kind, content) for content in contents), _chunk(_END, b"")])


def read_chunks(data: bytes, kind: bytes) -> list[bytes]:
    """The contents of all chunks of a type. Raises DiffPrivacyError as :func:`chunks`, and for too large ones."""
    found = [content for name, content in chunks(data) if name == kind]
    _check_count(len(found))
    if sum(map(len, found)) > MAX_SEALED:
        raise DiffPrivacyError(f"The PNG file carries more than {MAX_SEALED} bytes of keys, which are not read.")
    return found


def _check_count(keys: int) -> None:
    if keys > MAX_KEYS:
        raise DiffPrivacyError(
            f"An image has {MAX_KEYS} sealed keys at most, not {keys}: make one key for all its faces."
        )


def save(path: Path, picture: Picture, sealed: Sequence[bytes] = (), beside: bool = False) -> None:
    """Write a picture with its sealed keys inside or beside it: all files appear complete, or none does."""
    with Together() as files:
        add(files, path, encode_png(picture), sealed, beside)
        files.commit()


def add(
    files: Together,
    path: Path,
    data: bytes,
    sealed: Sequence[bytes] = (),
    beside: bool = False,
    kind: bytes = SEALED_KEY,
) -> None:
    """As :func:`save`, to files that appear together, the keys before the picture, whose file is given.

    Only a PNG takes keys inside.
    """
    _check_count(len(sealed))
    if beside:
        for file, content in zip(names_beside(path, len(sealed)), sealed, strict=True):
            files.write(file, content)
    elif sealed:
        data = with_chunks(data, kind, sealed)
    files.write(path, data)


def names_beside(picture: Path, count: int) -> list[Path]:
    """Names of sealed keys beside a picture: NAME.png.age, or NAME.png.0.age and so on for several."""
    endings = [".age"] if count == 1 else [f".{i}.age" for i in range(count)]
    return [picture.with_name(picture.name + ending) for ending in endings]


def found_beside(picture: Path) -> list[Path]:
    """The sealed keys that lie beside a picture under the names of :func:`names_beside`, in their numbers' order."""
    name = re.compile(re.escape(picture.name) + r"(?:\.(\d+))?\.age", re.ASCII)
    found = {path: match for path in picture.parent.iterdir() if (match := name.fullmatch(path.name))}
    return sorted(found, key=lambda path: int(found[path][1] or -1))


def carried(picture: Path) -> list[bytes]:
    """The sealed keys inside a picture file, or else beside it.

    Raises DiffPrivacyError for a damaged PNG, for too many keys, and where the file is one of keyed mode as well: one of
    the two was put there by somebody else.
    """
    sealed = read_file_chunks(picture, SEALED_KEY)
    if not sealed:
        beside = found_beside(picture)
        _check_count(len(beside))
        sealed = [read_sealed(path) for path in beside]
    if sealed and read_file_chunks(picture, KEYED):
        raise DiffPrivacyError(
            "The image has a sealed key and carries what belongs to keyed mode as well, so somebody changed it: "
            "name the key's file to recover with it."
        )
    return sealed


def read_sealed(path: Path) -> bytes:
    """A sealed key's file; raises DiffPrivacyError, naming it, where it cannot be read."""
    check_file(path, "sealed key")
    try:
        with path.open("rb") as file:
            return file.read(MAX_SEALED + 1)
    except OSError as error:
        raise DiffPrivacyError(f"{path}, the key file, cannot be read: {error.strerror}.") from None


def read_file_chunks(picture: Path, kind: bytes) -> list[bytes]:
    """As :func:`read_chunks`, of a file; none of one that is no PNG."""
    data = picture.read_bytes()
    return read_chunks(data, kind) if data.startswith(SIGNATURE) else []


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
