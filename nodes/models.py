"""Where ComfyUI's users keep files of detectors, recognizers and MSI modules."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..diffprivacy.errors import DiffPrivacyError


def folders(*names: str) -> list[Path]:
    """The folders models/<name>, and those that extra model paths add for the name."""
    places = []
    for name in names:
        places.append(Path(folder_paths.models_dir) / name)
        if name in folder_paths.folder_names_and_paths:
            places.extend(Path(folder) for folder in folder_paths.get_folder_paths(name))
    return list(dict.fromkeys(places))


def files(suffix: str, *names: str) -> list[str]:
    """All files with the suffix in the folders, as sorted relative names such as models/buffalo_l/det_10g.onnx."""
    found = (file.relative_to(folder) for folder in folders(*names) for file in folder.rglob(f"*{suffix}"))
    return sorted({file.as_posix() for file in found})


def find(file: str, what: str, *names: str) -> Path:
    """The path of a relative name; raises DiffPrivacyError that lists where it was looked for, and what belongs there.

    A node whose list of files holds ``file`` must take any name in ``validate_inputs``, or ComfyUI refuses one that is
    gone before this message can.
    """
    places = [folder / file for folder in folders(*names)]
    for path in places:
        if path.is_file():
            return path
    raise DiffPrivacyError(f"Model {file} is not there: looked for {' and '.join(map(str, places))}; put {what} there.")
