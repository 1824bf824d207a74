"""Which pictures a command works on, and which files they become."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import DiffPrivacyError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def plan(inputs: Iterable[Path], output: Path, variants: int = 1) -> dict[Path, list[Path]]:
    """Every picture among the inputs, files or folders, with the PNG files it becomes in the output folder.

    Raises DiffPrivacyError for a missing input, a folder without pictures, and two inputs with one name.
    """
    targets: dict[Path, list[Path]] = {}
    owners: dict[Path, Path] = {}
    for given in inputs:
        for source in pictures_in(given):
            place = source.relative_to(given).parent if given.is_dir() else Path()
            endings = [""] if variants == 1 else [f"-{i + 1}" for i in range(variants)]
            targets[source] = [output / place / f"{source.stem}{ending}.png" for ending in endings]
            for file in targets[source]:
                if owners.setdefault(file, source) != source:
                    raise DiffPrivacyError(f"{source} and {owners[file]} would both become {file}; rename one.")
    if clash := {file.absolute() for file in owners} & {source.absolute() for source in targets}:
        raise DiffPrivacyError(f"{min(clash)} is an input and would be overwritten; choose another output folder.")
    return targets


def pictures_in(given: Path) -> list[Path]:
    """A picture itself, or all pictures in a folder and its folders; raises DiffPrivacyError when there is none."""
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not found:
            raise DiffPrivacyError(f"Folder {given} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
        return found
    if not given.exists():
        raise DiffPrivacyError(f"{given} does not exist; give a picture or a folder of pictures.")
    return [given]


def all_exist(files: Iterable[Path]) -> bool:
    """Whether a picture is finished: files appear only once they are complete."""
    return all(file.exists() for file in files)
