"""Where ComfyUI's users keep ONNX files of detectors and recognizers."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..diffprivacy.errors import DiffPrivacyError


def onnx_folders(*names: str) -> list[Path]:
    """The folders models/<name>, and those that extra model paths add for the name."""
    folders = []
    for name in names:
        folders.append(Path(folder_paths.models_dir) / name)
        if name in folder_paths.folder_names_and_paths:
            folders.extend(Path(folder) for folder in folder_paths.get_folder_paths(name))
    return list(dict.fromkeys(folders))


def onnx_files(*names: str) -> list[str]:
    """All .onnx files in the folders, as sorted relative names such as models/buffalo_l/det_10g.onnx."""
    found = {file.relative_to(folder).as_posix() for folder in onnx_folders(*names) for file in folder.rglob("*.onnx")}
    return sorted(found)


def find_onnx(file: str, what: str, *names: str) -> Path:
    """The path of a relative name; raises DiffPrivacyError that lists where it was looked for, and what belongs there."""
    places = [folder / file for folder in onnx_folders(*names)]
    for path in places:
        if path.is_file():
            return path
    raise DiffPrivacyError(f"Model {file} is not there: looked for {' and '.join(map(str, places))}; put {what} there.")
