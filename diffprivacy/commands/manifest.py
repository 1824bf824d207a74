"""What an output folder holds already: ``.diffprivacy.json`` records every finished file.

An entry ties a file's content to the content of its source, the source's place, and the settings; of an image it tells
which faces were left on purpose, and which could only be covered. Names, contents and places of faces stand in it as
keyed hashes. The key is in the user's state folder, not in the output folder: from the latter alone nobody can read a
name, or test whether a name or photo is in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import DiffPrivacyError
from ..faces.geometry import Face
from ..media.atomic import PREFIX, Together, alone, sweep, write_atomically
from .requests import content_digest

NAME = ".diffprivacy.json"
FORMAT = 1
DECISIONS = ("left", "covered")
"""What an entry tells of faces that were not made new."""
CELL = 8
"""Side in pixels of the squares by which the middles of faces are recorded."""
REACH = 0.25
"""How far from there, in widths of its box, another detector may see a face's middle."""


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove the folder and those above it that were made since the beginning and hold nothing at the end."""
    new_folders = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # those that hold something stay
            for each in new_folders:
                each.rmdir()


class Manifest:
    """The record of one output folder.

    settings: digest of what the files depend on besides their sources. remake: do finished files again. guides: digests of
    the recognizers that guide.
    """

    def __init__(self, folder: Path, settings: bytes, remake: bool = False, guides: Sequence[bytes] = ()):
        self._folder = folder
        self._key = _own_key()
        self._settings = self._hash("settings", settings)
        self._remake = remake
        self.guides = [self._hash("guide", guide) for guide in guides]

    @contextmanager
    def source(self, source: Path, files: Sequence[Path]) -> Iterator[Entry]:
        """The work on a source, which becomes these files; another process that has the same files waits meanwhile."""
        folder = files[0].parent
        sweep(folder)
        lock = self._hash("lock", os.fsencode(self._place(files[0])))[:16]
        with no_empty_folders(folder), alone(folder / f"{PREFIX}{lock}.lock"):
            yield Entry(self, source, files)

    def read(self) -> dict[str, Any]:
        """This user's entries, by the hashes of the files' names; none where the record is missing or damaged."""
        return self._read_all().get(self._owner, {})

    def is_guide(self, recognizer: bytes) -> bool:
        """Whether a recognizer of this digest guided any of the folder's files, as far as this user made them."""
        mark = self._hash("guide", recognizer)
        return any(mark in entry.get("guides", []) for entry in self.read().values())

    def knows(self, file: Path) -> bool:
        """Whether the record tells what was decided for an image's faces."""
        return all(decision in self.read().get(self.name_of(file), {}) for decision in DECISIONS)

    def decision(self, file: Path, face: Face) -> str | None:
        """What was decided for a face of an image, of DECISIONS; None for one that was to be made new."""
        entry = self.read().get(self.name_of(file), {})
        x, y = face.centre
        reach = REACH * (face.box[2] - face.box[0])
        columns, rows = (range(int((v - reach) // CELL), int((v + reach) // CELL) + 1) for v in (x, y))
        marks = {self._mark(file, column, row) for column in columns for row in rows}
        return next((decision for decision in DECISIONS if marks & set(entry.get(decision, []))), None)

    def mark_of(self, file: Path, face: Face) -> str:
        """The hash of a face's place in an image."""
        x, y = face.centre
        return self._mark(file, int(x // CELL), int(y // CELL))

    def _mark(self, file: Path, column: int, row: int) -> str:
        return self._hash("face", f"{self.name_of(file)} {column} {row}".encode())

    def update(self, entries: dict[str, Any]) -> None:
        """Add entries. Other processes' and other users' are kept."""
        everybody = self._read_all()
        mine = everybody.get(self._owner, {}) | entries
        content = json.dumps({"format": FORMAT, "entries": everybody | {self._owner: mine}})
        write_atomically(self._folder / NAME, content.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While files are put in place and recorded."""
        with alone(self._folder / f"{PREFIX}manifest.lock"):
            yield

    @property
    def _owner(self) -> str:
        """What tells this user's entries from others'."""
        return self._hash("owner", b"")

    def _read_all(self) -> dict[str, Any]:
        try:
            content = json.loads((self._folder / NAME).read_bytes())
            return content["entries"] if content["format"] == FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _hash(self, what: str, data: bytes) -> str:
        return hmac.new(self._key, what.encode() + b"\0" + data, hashlib.sha256).hexdigest()[:32]

    def _place(self, file: Path) -> Path:
        """A file's real place, also where it does not exist yet."""
        return file.parent.resolve() / file.name

    def name_of(self, file: Path) -> str:
        """The hash of an output file's place in the folder."""
        return self._hash("name", os.fsencode(os.path.relpath(self._place(file), self._folder.resolve())))

    def content_of(self, file: Path) -> str:
        """The hash of a file's content."""
        return self._hash("content", content_digest(file))

    def made_of(self, source: Path) -> dict[str, str]:
        """The part of an entry that tells the source and the settings."""
        place = self._hash("source", os.fsencode(source.resolve()))
        return {"source": self.content_of(source), "place": place, "settings": self._settings}


class Entry:
    """What the record says of one source and the files that it becomes."""

    def __init__(self, manifest: Manifest, source: Path, files: Sequence[Path]):
        self._manifest = manifest
        self._made = manifest.made_of(source)
        self._files = files
        self._remake = manifest._remake

    def is_done(self) -> bool:
        """Whether all files are there as they were made from this source with these settings.

        Raises DiffPrivacyError, naming the file, where one stands in the way that was not made from this source: it
        may be another's, or no protected file at all. Only --overwrite replaces that.
        """
        if self._remake:
            return False
        known = self._manifest.read()
        # Each is looked at, so that one that stands in the way is an error before any work.
        return all([self._is_finished(file, known) for file in self._files])

    def _is_finished(self, file: Path, known: dict[str, Any]) -> bool:
        if not file.exists():
            return False
        entry = known.get(self._manifest.name_of(file))
        content = self._manifest.content_of(file)
        if entry is None or content not in entry["contents"]:
            raise _in_the_way(file, "was not made by this command")
        if self._made["place"] != entry["place"] and self._made["source"] != entry["source"]:
            raise _in_the_way(file, "was made from another file")
        agrees = all(self._made[part] == entry[part] for part in ("source", "settings"))
        beside = [file.with_name(file.stem + ending) for ending in entry["beside"]]
        return agrees and content == entry["contents"][-1] and all(self._is_finished(key, known) for key in beside)

    def finish(self, made: Together, decided: Mapping[str, Sequence[Face]] | None = None) -> None:
        """Put the files in their places and record them, at once as far as other processes can see.

        decided: the faces of an image that were not made new, by DECISIONS.
        They are recorded first, beside what stood there, so that a run that is killed in between is done again.
        """
        with self._manifest.locked():
            known = self._manifest.read()
            entries = {}
            for file, temporary in made.files.items():
                name = self._manifest.name_of(file)
                if not self._remake and file.exists():
                    self._is_finished(file, known)
                before = known.get(name, {}).get("contents", [])[-1:]
                beside = [other.name.removeprefix(file.stem) for other in made.files if _lies_beside(other, file)]
                content = self._manifest.content_of(temporary)
                entries[name] = self._made | {"contents": [*before, content], "beside": beside}
                for decision, faces in (decided or {}).items():
                    entries[name][decision] = [self._manifest.mark_of(file, face) for face in faces]
                if self._manifest.guides:
                    entries[name]["guides"] = self._manifest.guides
            self._manifest.update(entries)
            made.commit()


def _in_the_way(file: Path, why: str) -> DiffPrivacyError:
    return DiffPrivacyError(
        f"{file} is there already and {why}: choose another output folder, or replace it with --overwrite."
    )


def _lies_beside(other: Path, file: Path) -> bool:
    """Whether one of several files made together is a sealed key or original that belongs to the other."""
    return other != file and other.suffix == ".age" and file.suffix != ".age" and other.name.startswith(f"{file.stem}.")


def _own_key() -> bytes:
    """The user's key for the hashes, drawn once."""
    folder = Path(os.environ.get("DIFFPRIVACY_STATE") or _state_folder())
    file = folder / "manifest.key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(folder / f"{PREFIX}key.lock"):
            if not file.exists():
                write_atomically(file, secrets.token_bytes(32), secret=True)
            return file.read_bytes()
    except (OSError, DiffPrivacyError) as error:
        raise DiffPrivacyError(
            f"{file}, which tells finished files again, cannot be used ({error}): set DIFFPRIVACY_STATE to a folder that "
            "can be written."
        ) from error


def _state_folder() -> Path:
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "diffprivacy"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "diffprivacy"
