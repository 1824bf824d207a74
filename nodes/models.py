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


def find(file: str, suffix: str, what: str, *names: str) -> Path:
    """The path of a name that :func:`files` lists; raises DiffPrivacyError that says where what belongs.

    A workflow may come from anybody: of any other name, absolute, on another machine or with ``..``, the disk is not
    even asked, and the answer is the same whether such a file exists or not.
    A node whose list of files holds ``file`` must take any name in ``validate_inputs``, or ComfyUI refuses one that is
    gone before this message can.
    """
    places = folders(*names)
    if file in files(suffix, *names):
        return next(path for path in (folder / file for folder in places) if path.is_file())
    raise DiffPrivacyError(
        f"Model {file} is not there: looked in {' and '.join(map(str, places))}; put {what} there, and choose it from the list."
    )
