"""``diffprivacy recover``: the originals of protected pictures, for those who can open their keys."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import sys
from pathlib import Path
from typing import Any

from ..backends.diffusers import DiffusersBackbone
from ..errors import DiffPrivacyError
from ..media.images import Picture, read_picture, write_picture
from ..recovery import png
from ..recovery import replay as recovery
from ..recovery.key import RecoveryKey
from ..recovery.keyed import Public, recover_keyed
from .inputs import all_exist, is_video, plan
from .model import add_checkpoint_options, load_checkpoint
from .options import option_at_fault
from .sealing import Secrets, add_passphrase_options


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("recover", help="bring the original faces back")
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="PROTECTED", help="protected picture or video, or folder of them")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the recovered files")
    add("--identity-file", action="append", type=Path, metavar="FILE", help="age identity or SSH private key")
    add_passphrase_options(parser)
    add(
        "--key-file",
        action="append",
        type=Path,
        metavar="FILE",
        help="sealed key of a single picture (default: inside it, or NAME.png.age beside it), or sealed video",
    )
    add("--faces", default="all", metavar="WHICH", help="all (default), or numbers of the key's faces such as 0,2")
    add(
        "--accept-changed",
        action="store_true",
        help="recover into a picture that was changed since, such as by JPEG",
    )
    add_checkpoint_options(parser)
    add("--overwrite", action="store_true", help="do finished pictures again")
    parser.set_defaults(run=recover)


def recover(options: argparse.Namespace) -> int:
    """Recover all inputs; returns the exit code."""
    targets = plan(options.inputs, options.output, video_name=_recovered_video)
    if options.key_file and len(targets) > 1:
        raise DiffPrivacyError("--key-file belongs to one picture; name a single one.")
    todo = {source: files for source, files in targets.items() if options.overwrite or not all_exist(files)}
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} already done (--overwrite does them again)")
    secrets = Secrets(options)
    backbone = None
    failed = 0
    for source, (file,) in todo.items():
        try:
            if is_video(source):
                sealed = _sealed_video(source, options)
                file.parent.mkdir(parents=True, exist_ok=True)
                secrets.open_file(sealed, file)
                print(file)
                continue
            picture = read_picture(source)
            keyed = None if options.key_file else _public(source)
            keys = [] if keyed else _keys(source, options, secrets)
            for key in keys:
                recovery.check_picture(picture, key, options.accept_changed)
            if backbone is None and not (keys and all(key.patches for key in keys)):
                backbone = load_checkpoint(options)
            if keyed and backbone is not None:
                print("keyed: a wrong passphrase gives another face, not an error", file=sys.stderr)
                rgb = recover_keyed(picture.rgb, keyed, backbone, secrets.asked())
                recovered = dataclasses.replace(picture, rgb=rgb)
            else:
                recovered = _recover(source, picture, keys, backbone, options)
        except DiffPrivacyError as error:
            print(f"error: {source}: {option_at_fault(error)}", file=sys.stderr)
            failed += 1
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_picture(file, recovered)
        print(file)
    return 1 if failed else 0


def _sealed_video(source: Path, options: argparse.Namespace) -> Path:
    """The sealed original of a protected video: the file given, or the one beside it; raises where it is not there."""
    if options.key_file:
        return options.key_file[0]
    found = _sealed_beside(source)
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "nothing"
        raise DiffPrivacyError(
            f"The sealed original should lie beside it, such as {source.stem}.mp4.age, and {there} does; "
            "name it with --key-file."
        )
    return found[0]


def _sealed_beside(source: Path) -> list[Path]:
    beside = sorted(source.parent.glob(f"{glob.escape(source.stem)}.*.age"))
    return [path for path in beside if is_video(Path(path.stem))]


def _recovered_video(source: Path) -> str:
    """The name of an original, whose container need not be the protected video's."""
    return next((path.stem for path in _sealed_beside(source)), source.name)


def _recover(
    source: Path,
    picture: Picture,
    keys: list[RecoveryKey],
    backbone: DiffusersBackbone | None,
    options: argparse.Namespace,
) -> Picture:
    from tqdm import tqdm

    with tqdm(desc=source.name, unit="step", disable=None, leave=False) as bar:

        def progress(step: dict[str, Any]) -> None:
            bar.total = step["steps"]
            bar.update(1)

        return recovery.recover(picture, keys, backbone, options.accept_changed, progress)


def _public(source: Path) -> Public | None:
    """What a picture in keyed mode carries openly; None for other pictures."""
    found = png.read_file_chunks(source, png.KEYED)
    return Public.from_bytes(found[0]) if found else None


def _keys(source: Path, options: argparse.Namespace, secrets: Secrets) -> list[RecoveryKey]:
    """The keys of the chosen faces, opened, one for each face."""
    keys = [RecoveryKey.from_bytes(secrets.open(sealed)) for sealed in _sealed(source, options.key_file)]
    faces = [face for key in keys for face in key.each()]
    if options.faces == "all":
        return faces
    try:
        return [faces[int(number)] for number in options.faces.split(",")]
    except (ValueError, IndexError):
        raise DiffPrivacyError(f"--faces {options.faces}: give numbers from 0 to {len(faces) - 1}, or all.") from None


def _sealed(source: Path, key_files: list[Path] | None) -> list[bytes]:
    """The sealed keys of a picture: from the files given, from inside it, or from beside it."""
    if key_files:
        return [png.read_sealed(path) for path in key_files]
    if sealed := png.carried(source):
        return sealed
    raise DiffPrivacyError(f"{png.NO_KEY} If you have the key as a file, name it with --key-file.")
