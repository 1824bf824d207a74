"""Sealing recovery keys while protecting, and the secrets that open them."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import DiffPrivacyError, UsageError
from ..media.atomic import Together
from ..media.images import decode_picture
from ..recovery import png
from ..recovery.encryption import (
    Decryptor,
    Encryptor,
    begins_with_passphrase,
    needs_passphrase,
    read_head,
    read_secret,
    read_secret_file,
)
from ..recovery.envelope import read_signing_key
from ..recovery.key import RecoveryKey
from .requests import PassphraseRequest, ProtectRequest, RecoverRequest, SealRequest


def load_encryptor(request: ProtectRequest) -> Encryptor | None:
    """The encryptor that is asked for, None for none; raises DiffPrivacyError for options that do not fit together."""
    sealing = request.sealing
    apart = request.task != "anonymize" or request.variants > 1 or sealing.recipients or sealing.sign_with
    if sealing.keyed and apart:
        raise UsageError("--keyed goes with anonymize, one variant and a passphrase, and stores no key to sign.")
    given = {
        "--prompt": request.prompt,
        "--keep": request.keep,
        "--match-colors": request.match_colors,
        "--msi": request.msi,
        "--if-impossible": request.if_impossible,
    }
    if sealing.keyed and (unheeded := [option for option, value in given.items() if value]):
        raise UsageError(f"--keyed takes no {' or '.join(unheeded)}; leave it out.")
    if sealing.keyed and request.output_format != "png":
        raise UsageError("--keyed stores what recovery needs in the PNG; leave --output-format out.")
    signer = None if sealing.sign_with is None else read_signing_key(sealing.sign_with)
    if sealing.recipients:
        if _given_passphrase(sealing.passphrase) or sealing.ask_passphrase:
            raise UsageError("A key is encrypted either to a passphrase or to public keys (--seal-to); choose one.")
        return Encryptor(recipients=sealing.recipients, signer=signer)
    if sealing.ask_passphrase:
        return Encryptor(passphrase=_new_passphrase(), signer=signer)
    if (passphrase := _given_passphrase(sealing.passphrase)) is not None:
        return Encryptor(passphrase=passphrase, signer=signer)
    if sealing.keyed or sealing.beside or sealing.per_face or sealing.fidelity != "latent" or signer:
        raise UsageError("The options of the recovery key need --seal-to, --passphrase-file or --passphrase-env.")
    return None


class Secrets:
    """What ``recover`` opens keys with; asks at the terminal for a passphrase that no option names."""

    def __init__(self, request: RecoverRequest):
        self.identities = [read_secret_file(path, "identity") for path in request.identity_files]
        self.passphrase = _given_passphrase(request.passphrase)

    def decryptor(self, sealed: Sequence[bytes]) -> Decryptor:
        """For the sealed keys of a picture; asks for a passphrase where one of them needs it and no identity is given."""
        if self.passphrase is None and not self.identities and any(map(begins_with_passphrase, sealed)):
            self.asked()
        return Decryptor(self.passphrase, self.identities)

    def decrypt_file(self, sealed: Path, target: Path) -> None:
        """Write the file that a sealed one holds; raises DiffPrivacyError when nothing opens it."""
        passphrase = self.asked() if needs_passphrase(read_head(sealed)) else None
        Decryptor(passphrase, self.identities).decrypt_file(sealed, target)

    def asked(self) -> str:
        """The passphrase that an option names, or typed at the terminal once."""
        self.passphrase = self.passphrase or ask_passphrase()
        return self.passphrase


def ask_passphrase(prompt: str = "Passphrase: ") -> str:
    """Typed at the terminal, unseen; raises DiffPrivacyError where there is none."""
    if not sys.stdin.isatty():
        raise DiffPrivacyError("A passphrase is needed: name its place with --passphrase-file or --passphrase-env.")
    return getpass.getpass(prompt)


def write_sealed(
    files: Together, file: Path, data: bytes, key: RecoveryKey, encryptor: Encryptor, sealing: SealRequest
) -> str:
    """Add a protected picture, given as its file, with its sealed key, inside or beside it; returns what to say of it.

    JPEG and WebP take the key beside them.
    """
    bound = key.bound_to(decode_picture(data, file.name))
    keys = [bound.only(i) for i in range(len(bound.faces))] if sealing.per_face else [bound]
    sealed = [encryptor.encrypt_key(key) for key in keys]
    is_beside = sealing.beside or file.suffix != ".png"
    png.add(files, file, data, sealed, is_beside)
    size = sum(map(len, sealed)) / 1000
    place = "beside" if is_beside else "inside"
    return f"{file} (sealed {key.fidelity} key {place}, {size:.1f} kB)"


def _given_passphrase(place: PassphraseRequest) -> str | None:
    if place.file and place.env:
        raise UsageError("Give --passphrase-file or --passphrase-env, not both.")
    if place.file:
        return read_secret_file(place.file, "passphrase")
    if place.env:
        return read_secret(f"env:{place.env}", "passphrase")
    return None


def _new_passphrase() -> str:
    passphrase = ask_passphrase("Passphrase for the recovery keys: ")
    if not passphrase or passphrase != ask_passphrase("Repeat passphrase: "):
        raise DiffPrivacyError("The two passphrases differ, or are empty.")
    return passphrase
