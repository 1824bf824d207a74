"""Which images and videos a command works on, and which files they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError
from ..video.files import SUFFIXES as VIDEO_SUFFIXES

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
OWN = ".diffprivacy"
"""What this program's own files in an output folder begin with."""
UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl", ".gif", ".jp2", ".psd"), "save it as PNG or JPEG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), "develop it to PNG or JPEG"),
    **dict.fromkeys((".flv", ".vob", ".rm", ".rmvb", ".asf", ".ogv", ".mxf", ".f4v"), "convert it to MP4"),
}
"""Images and videos that are not read, and what helps."""


@dataclass
class Plan:
    """What becomes what.

    targets: of every source, the files that it becomes. refused: images and videos that cannot be done, and why.
    skipped: files that are neither, and why.
    """

    targets: dict[Path, list[Path]] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """Of the files that inputs become.

    video: the file that a video becomes; None: videos are no inputs. picture_format: png, jpg, webp, or same for the
    input's where it is one of them.
    """

    video: Callable[[Path], str] | None = None
    picture_format: str = "png"

    def ending(self, source: Path) -> str:
        """Of an image."""
        if self.picture_format != "same":
            return f".{self.picture_format}"
        return {".jpg": ".jpg", ".jpeg": ".jpg", ".webp": ".webp"}.get(source.suffix.lower(), ".png")


def plan(
    inputs: Sequence[Path],
    output: Path,
    variants: int = 1,
    names: Names | None = None,
) -> Plan:
    """:func:`layout`, without what cannot or must not be written.

    Raises UsageError as well for an output that cannot be a folder, or is an input.
    """
    found = layout(inputs, output, variants, names)
    if not _names_file(output):
        _check_folder(output, inputs)
    _refuse_clashes(found)
    return found


def layout(
    inputs: Sequence[Path],
    output: Path,
    variants: int = 1,
    names: Names | None = None,
) -> Plan:
    """Every image among the inputs, files or folders, with the files that it becomes in the output folder.

    Folders keep their structure; where several are given, each becomes a folder of its name. One input may also become
    an ``output`` that is a file by its ending. Two images that differ in their endings alone keep them:
    ``a.jpg`` becomes ``a.jpg.png``.
    names: of the files; by default images become PNG, and videos are no inputs.

    Raises UsageError for a missing input, and a folder without anything to do.
    """
    names = names or Names()
    found = Plan()
    sources: dict[Path, Path] = {}
    """Of every source, its place in the output."""
    several = sum(given.is_dir() for given in inputs) > 1
    for given in inputs:
        before = len(sources) + len(found.refused)
        for source in _files_in(given, output, found, names.video is not None):
            place = source.relative_to(given).parent if given.is_dir() else Path()
            sources[source] = Path(given.resolve().name) / place if several and given.is_dir() else place
        if given.is_dir() and before == len(sources) + len(found.refused):
            kinds, suffixes = _kinds(names.video is not None)
            raise UsageError(f"Folder {given} holds no {kinds} ({', '.join(sorted(suffixes))}).")
    if _names_file(output):
        if len(sources) != 1 or inputs[0].is_dir():
            raise UsageError(f"{output} is the name of one file, and there is more to do; choose a folder.")
        found.targets = {source: _as_named(source, output, variants, names) for source in sources}
        return found
    for source, place in sources.items():
        found.targets[source] = [output / place / name for name in _names(source, variants, names)]
    _tell_apart(found, variants, names)
    return found


def folder_of(output: Path) -> Path:
    """The output folder, also where the output is a file."""
    return output.parent if _names_file(output) else output


def is_video(source: Path) -> bool:
    """By the file's name."""
    return source.suffix.lower() in VIDEO_SUFFIXES


def pictures_in(given: Path) -> list[Path]:
    """An image itself, or all images in a folder and its folders; raises UsageError when there is none."""
    found = list(_files_in(given, None, Plan(), False))
    if not found:
        raise UsageError(f"Folder {given} holds no image ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    return found


def _files_in(given: Path, output: Path | None, found: Plan, videos: bool) -> Iterator[Path]:
    """The images and videos in a folder, or the file itself; what is left out is noted."""
    if not given.exists():
        kinds, _ = _kinds(videos)
        raise UsageError(f"{given} does not exist; give an {kinds} or a folder of them.")
    if not given.is_dir():
        if given.is_file():
            yield given
        else:
            found.refused[given] = "this is no ordinary file."
        return
    _, suffixes = _kinds(videos)
    own = None if output is None else output.resolve()

    def unread(error: OSError) -> None:
        found.refused[Path(error.filename)] = f"this folder cannot be read: {error.strerror}."

    for folder, folders, names in os.walk(given, onerror=unread):
        here = Path(folder)
        for name in sorted(folders):
            if (here / name).is_symlink():
                found.skipped[here / name] = "a link to a folder is not followed; name it as an input."
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != own)
        for name in sorted(names):
            file, suffix = here / name, Path(name).suffix.lower()
            if name.startswith(OWN):
                continue
            if name.startswith("."):
                found.skipped[file] = "hidden files are left out."
            elif suffix in suffixes and file.is_file():
                yield file
            elif suffix in suffixes:
                found.refused[file] = "this is no ordinary file, or a link that leads nowhere."
            elif suffix in UNREAD:
                found.refused[file] = f"files of this kind are not read: {UNREAD[suffix]} first."
            elif suffix != ".age":
                found.skipped[file] = "this is neither an image nor a video by its name."


def _kinds(videos: bool) -> tuple[str, set[str]]:
    return ("image or video", PICTURE_SUFFIXES | VIDEO_SUFFIXES) if videos else ("image", PICTURE_SUFFIXES)


def _names(source: Path, variants: int, names: Names, stem: str | None = None) -> list[str]:
    if names.video is not None and is_video(source):
        return [names.video(source)]
    endings = [""] if variants == 1 else [f"-{i + 1}" for i in range(variants)]
    return [f"{source.stem if stem is None else stem}{ending}{names.ending(source)}" for ending in endings]


def _names_file(output: Path) -> bool:
    return output.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES and not output.is_dir()


def _as_named(source: Path, output: Path, variants: int, names: Names) -> list[Path]:
    """One input written to the file that ``output`` is."""
    files = _names(source, variants, names, output.stem)
    suffix = Path(files[0]).suffix
    if output.suffix != suffix:
        raise UsageError(f"{output}: {source.name} becomes a {suffix} file; choose such a name, or a folder.")
    return [output] if len(files) == 1 else [output.with_name(name) for name in files]


def _check_folder(output: Path, inputs: Iterable[Path]) -> None:
    """Raises UsageError unless the output is, or can become, a folder that can be written, other than the inputs."""
    nearest = next(parent for parent in (output, *output.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise UsageError(
            f"{nearest} is a file; choose a folder for the output, or one input and a name such as out.png."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{nearest} cannot be written to; choose another folder for the output.")
    if equal := [given for given in inputs if given.is_dir() and given.resolve() == output.resolve()]:
        raise UsageError(f"{equal[0]} is input and output; choose another folder for the output.")


def _tell_apart(found: Plan, variants: int, names: Names) -> None:
    """Give images that would become one file, as they differ in their endings alone, names with those endings."""
    owners: dict[Path, list[Path]] = {}
    for source, files in found.targets.items():
        owners.setdefault(files[0], []).append(source)
    for file, sources in owners.items():
        pictures = [source for source in sources if not is_video(source)]
        if len({source.name for source in pictures}) > 1:
            for source in pictures:
                files = _names(source, variants, names, source.name)
                found.targets[source] = [file.with_name(name) for name in files]


def _refuse_clashes(found: Plan) -> None:
    """Leave out what would become a file that is another's, or an input itself, by whatever name."""
    owners: dict[Path, Path] = {}
    given = {_identity(source): source for source in found.targets}
    for source, files in list(found.targets.items()):
        for file in files:
            owner = owners.setdefault(file.parent.resolve() / file.name, source)
            victim = given.get(_identity(file))
            if owner != source:
                found.refused[source] = (
                    f"it would become {file}, as {owner} does; rename one, or choose another folder."
                )
            elif victim is not None:
                found.refused[source] = (
                    f"its output {file} is the input {victim}; choose another folder for the output."
                )
        if source in found.refused:
            del found.targets[source]


def _identity(file: Path) -> tuple[int, int] | Path:
    """What all names of a file have in common."""
    try:
        status = file.stat()
    except OSError:
        return file.parent.resolve() / file.name
    return status.st_dev, status.st_ino


def all_exist(files: Iterable[Path]) -> bool:
    """Whether all files are there."""
    return all(file.exists() for file in files)
