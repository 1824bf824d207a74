"""Which pictures and videos a command works on, and which files they become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from pathlib import Path

from ..errors import DiffPrivacyError
from ..video.files import SUFFIXES as VIDEO_SUFFIXES

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def plan(
    inputs: Iterable[Path], output: Path, variants: int = 1, video_name: Callable[[Path], str] | None = None
) -> dict[Path, list[Path]]:
    """Every picture among the inputs, files or folders, with the PNG files it becomes in the output folder.

    video_name: the file that a video becomes there; without it videos are no inputs.
    Raises DiffPrivacyError for a missing input, a folder without anything to do, and two inputs with one name.
    """
    suffixes = PICTURE_SUFFIXES if video_name is None else PICTURE_SUFFIXES | VIDEO_SUFFIXES
    targets: dict[Path, list[Path]] = {}
    owners: dict[Path, Path] = {}
    for given in inputs:
        for source in _files_in(given, suffixes):
            place = source.relative_to(given).parent if given.is_dir() else Path()
            endings = [""] if variants == 1 else [f"-{i + 1}" for i in range(variants)]
            names = [f"{source.stem}{ending}.png" for ending in endings]
            if video_name is not None and is_video(source):
                names = [video_name(source)]
            targets[source] = [output / place / name for name in names]
            for file in targets[source]:
                if owners.setdefault(file, source) != source:
                    raise DiffPrivacyError(f"{source} and {owners[file]} would both become {file}; rename one.")
    if clash := {file.absolute() for file in owners} & {source.absolute() for source in targets}:
        raise DiffPrivacyError(f"{min(clash)} is an input and would be overwritten; choose another output folder.")
    return targets


def is_video(source: Path) -> bool:
    """By the file's name."""
    return source.suffix.lower() in VIDEO_SUFFIXES


def pictures_in(given: Path) -> list[Path]:
    """A picture itself, or all pictures in a folder and its folders; raises DiffPrivacyError when there is none."""
    return _files_in(given, PICTURE_SUFFIXES)


def _files_in(given: Path, suffixes: Set[str]) -> list[Path]:
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        if not found:
            raise DiffPrivacyError(f"Folder {given} holds no {_kinds(suffixes)} ({', '.join(sorted(suffixes))}).")
        return found
    if not given.exists():
        raise DiffPrivacyError(f"{given} does not exist; give a {_kinds(suffixes)} or a folder of them.")
    return [given]


def _kinds(suffixes: Set[str]) -> str:
    return "picture or video" if suffixes & VIDEO_SUFFIXES else "picture"


def all_exist(files: Iterable[Path]) -> bool:
    """Whether a picture is finished: files appear only once they are complete."""
    return all(file.exists() for file in files)
