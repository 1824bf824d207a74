"""``diffprivacy recover``: the originals of protected images and videos, for those who can decrypt their keys."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import demo
from ..backends.diffusers import DiffusersModel
from ..errors import DiffPrivacyError, UsageError
from ..faces.selection import parse_selection
from ..media.atomic import Together
from ..media.images import Picture, encode_png, read_picture
from ..progress import sampling_progress
from ..recovery import png, replay
from ..recovery.envelope import read_signer
from ..recovery.key import RecoveryKey
from ..recovery.keyed import Public, recover_keyed
from ..recovery.opening import open_keys
from .batch import Batch, Outcome, StopBatch
from .inputs import Names, folder_of, is_video, plan
from .manifest import Manifest
from .model import load_checkpoint
from .options import (
    add_checkpoint_options,
    add_json_option,
    add_passphrase_options,
    model_request,
    passphrase_request,
)
from .requests import RecoverRequest, digest
from .sealing import Secrets

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "recover",
        help="recover the original faces",
        description="Recover the original faces. A key proves nothing about who made it: anyone can encrypt one to your public "
        "key and put it into an image. --signer accepts only keys signed by somebody you know.",
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="PROTECTED", help="protected image or video, or folder of them")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the recovered files")
    add(
        "--identity-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="age identity or SSH private key",
    )
    add_passphrase_options(parser)
    add(
        "--key-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="sealed key of a single image (default: the one inside it, or NAME.png.age beside it), or sealed video",
    )
    add(
        "--faces",
        default="all",
        metavar="WHICH",
        help="all (default), largest, or numbers of the keys' faces, starting at 0, such as 0,2",
    )
    add(
        "--signer",
        metavar="PUBLIC",
        help="accept only keys signed with this Ed25519 key: a line 'ssh-ed25519 AAAA...', or its file",
    )
    add(
        "--accept-changed",
        action="store_true",
        help="recover even if the image was changed, for example by JPEG",
    )
    add_checkpoint_options(parser)
    add("--overwrite", action="store_true", help="redo finished files, and replace any file in the way")
    add_json_option(parser)
    parser.set_defaults(run=lambda options: recover(_request(options)))


def _request(options: argparse.Namespace) -> RecoverRequest:
    return RecoverRequest(
        inputs=tuple(options.inputs),
        output=options.output,
        identity_files=tuple(options.identity_file),
        passphrase=passphrase_request(options),
        key_files=tuple(options.key_file),
        faces=options.faces,
        signer=options.signer,
        accept_changed=options.accept_changed,
        model=model_request(options),
        overwrite=options.overwrite,
        as_json=options.as_json,
    )


def recover(request: RecoverRequest) -> int:
    """Recover all inputs; returns the exit code."""
    found = plan(request.inputs, request.output, names=Names(_recovered_video))
    if request.key_files and len(found.targets) > 1:
        raise UsageError("--key-file belongs to one image; name a single one.")
    batch = Batch("recovered", found, request.as_json)
    manifest = Manifest(folder_of(request.output), digest(request), request.overwrite)
    use = _Resources(request)
    for source, (file,) in batch.sources():
        with batch.input(source), manifest.source(source, [file]) as entry:
            if entry.is_done():
                batch.is_done_already(source)
                continue
            with Together() as made:
                if is_video(source):
                    if use.signer is not None:
                        raise DiffPrivacyError(
                            "The sealed original of a video carries no signature; leave --signer out."
                        )
                    use.secrets.decrypt_file(_sealed_video(source, request), made.add(file))
                else:
                    made.write(file, encode_png(_recover_picture(source, request, use)))
                entry.finish(made)
            batch.finished(source, Outcome([str(file)]))
    return batch.finish()


class _Resources:
    """Secrets, and the checkpoint, which is loaded by the first key that needs it."""

    def __init__(self, request: RecoverRequest):
        self._request = request
        self._loaded: dict[demo.Version, DiffusersModel] = {}
        self.secrets = Secrets(request)
        self.signer = None if request.signer is None else read_signer(request.signer)

    def diffusion_model(self, recorded: str) -> DiffusersModel:
        """The checkpoint asked for, or the version of the demo model that has the fingerprint recorded."""
        version = demo.NEWEST if self._request.model.checkpoint else demo.version_of(recorded)
        if version not in self._loaded:
            self._loaded[version] = self._load(version)
        return self._loaded[version]

    def _load(self, version: demo.Version) -> DiffusersModel:
        try:
            return load_checkpoint(self._request.model, version)
        except Exception as error:
            raise StopBatch(error) from error


def _recover_picture(source: Path, request: RecoverRequest, use: _Resources) -> Picture:
    picture = read_picture(source)
    if not request.key_files and (keyed := _public(source)):
        if use.signer is not None:
            raise DiffPrivacyError("An image in keyed mode carries no signature; leave --signer out.")
        print("keyed mode (experimental): a wrong passphrase gives another face, not an error", file=sys.stderr)
        rgb = recover_keyed(picture.rgb, keyed, use.diffusion_model(keyed.checkpoint), use.secrets.asked())
        return dataclasses.replace(picture, rgb=rgb)
    keys = _keys(source, picture, request, use.secrets, use.signer)
    replay.check_places(picture.rgb.shape, keys)
    replayed = [key.fingerprints.get("checkpoint", "") for key in keys if not key.patches]
    diffusion_model = use.diffusion_model(replayed[0]) if replayed else None
    with sampling_progress(source.name) as progress:
        return replay.recover(picture, keys, diffusion_model, request.accept_changed, progress)


def _sealed_video(source: Path, request: RecoverRequest) -> Path:
    """The sealed original of a protected video: the file given, or the one beside it; raises where it is not there."""
    if request.key_files:
        return request.key_files[0]
    found = _sealed_beside(source)
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "nothing"
        raise DiffPrivacyError(
            f"The sealed original should lie beside it, such as {source.stem}.mp4.age, and {there} does; "
            "name it with --key-file."
        )
    return found[0]


def _sealed_beside(source: Path) -> list[Path]:
    """The files NAME.mp4.age, or of another video format, beside a protected video NAME.mp4."""
    name = re.compile(re.escape(source.stem) + r"\.[^.]+\.age")
    found = sorted(path for path in source.parent.iterdir() if name.fullmatch(path.name))
    return [path for path in found if is_video(Path(path.stem))]


def _recovered_video(source: Path) -> str:
    """The name of an original, whose container need not be the protected video's."""
    return next((path.stem for path in _sealed_beside(source)), source.name)


def _public(source: Path) -> Public | None:
    """What a picture in keyed mode carries openly; None for other pictures. Raises where a sealed key is there as well."""
    if not (found := png.read_file_chunks(source, png.KEYED)):
        return None
    if len(found) > 1:
        raise DiffPrivacyError("The image is one of keyed mode more than once, so somebody changed it.")
    png.carried(source)
    return Public.from_bytes(found[0])


def _keys(
    source: Path, picture: Picture, request: RecoverRequest, secrets: Secrets, signer: Ed25519PublicKey | None
) -> list[RecoveryKey]:
    """The keys of the chosen faces, one for each face; those that don't open are reported and left out."""
    sealed = _sealed(source, request.key_files)
    keys, skipped = open_keys(
        sealed,
        secrets.decryptor(sealed),
        lambda key: replay.check_key(picture, key, request.accept_changed),
        signer,
    )
    if skipped:
        print(f"{source}: {len(skipped)} of {len(sealed)} keys skipped: {skipped[0]}", file=sys.stderr)
    faces = [face for key in keys for face in key.each()]
    numbers = parse_selection(request.faces)
    if numbers == "all":
        return faces
    if numbers == "largest":
        return [max(faces, key=lambda key: key.faces[0].area)]
    if unknown := sorted(numbers - set(range(len(faces)))):
        raise DiffPrivacyError(f"There is no face {unknown[0]}; the keys hold 0 to {len(faces) - 1}.", "faces")
    return [faces[number] for number in sorted(numbers)]


def _sealed(source: Path, key_files: Sequence[Path]) -> list[bytes]:
    """The sealed keys of a picture: from the files given, from inside it, or from beside it."""
    if key_files:
        return [png.read_sealed(path) for path in key_files]
    if sealed := png.carried(source):
        return sealed
    raise DiffPrivacyError(f"{png.NO_KEY} If you have the key as a file, name it with --key-file.")
