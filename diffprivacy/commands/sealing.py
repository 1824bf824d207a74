"""Sealing recovery keys while protecting, and the secrets that open them."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from ..errors import DiffPrivacyError
from ..media.images import Picture
from ..recovery import png
from ..recovery.encryption import Opener, Seal, needs_passphrase, read_head, read_secret, read_secret_file
from ..recovery.key import FIDELITIES, RecoveryKey


def add_seal_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`load_seal` and :func:`write_sealed` read."""
    group = parser.add_argument_group("recovery key (without one the original cannot be brought back)")
    add = group.add_argument
    add(
        "--seal-to",
        action="append",
        metavar="RECIPIENT",
        help="public key that may open the recovery key: age1... or an SSH public key; several may",
    )
    add_passphrase_options(group)
    add("--ask-passphrase", action="store_true", help="seal to a passphrase typed at the terminal")
    add(
        "--fidelity",
        choices=FIDELITIES,
        default="latent",
        help="latent (default): as good as the autoencoder; lossless: every bit, larger; compact: a quarter of latent",
    )
    add("--key-beside", action="store_true", help="write the sealed key to NAME.png.age instead of into the PNG")
    add("--key-per-face", action="store_true", help="a sealed key for each face, so that they can be released singly")
    add(
        "--keyed",
        action="store_true",
        help="store no key: the picture and the passphrase bring the faces back, roughly (anonymize only, not guided)",
    )


def add_passphrase_options(parser: argparse._ActionsContainer) -> None:
    """Where a passphrase comes from; never from the command line itself, which others can read."""
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="file that holds the passphrase")
    parser.add_argument("--passphrase-env", metavar="NAME", help="environment variable that holds the passphrase")


def load_seal(options: argparse.Namespace) -> Seal | None:
    """The seal that the options ask for, None for none; raises DiffPrivacyError for options that do not fit together."""
    if options.keyed and (options.task != "anonymize" or options.variants > 1 or options.seal_to):
        raise DiffPrivacyError("--keyed goes with anonymize, one variant and a passphrase.")
    if options.seal_to:
        if _given_passphrase(options) or options.ask_passphrase:
            raise DiffPrivacyError("A key is sealed either to a passphrase or to public keys (--seal-to); choose one.")
        return Seal(recipients=options.seal_to)
    if options.ask_passphrase:
        return Seal(passphrase=_new_passphrase())
    if (passphrase := _given_passphrase(options)) is not None:
        return Seal(passphrase=passphrase)
    if options.keyed or options.key_beside or options.key_per_face or options.fidelity != "latent":
        raise DiffPrivacyError("The options of the recovery key need --seal-to, --passphrase-file or --passphrase-env.")
    return None


class Secrets:
    """What ``recover`` opens keys with; asks at the terminal for a passphrase that no option names."""

    def __init__(self, options: argparse.Namespace):
        self.identities = [read_secret_file(path, "identity") for path in options.identity_file or []]
        self.passphrase = _given_passphrase(options)

    def open(self, sealed: bytes) -> bytes:
        """What a sealed key holds; raises DiffPrivacyError when nothing opens it."""
        passphrase = self.asked() if needs_passphrase(sealed) else None
        return Opener(passphrase, self.identities).open(sealed)

    def open_file(self, sealed: Path, target: Path) -> None:
        """Write the file that a sealed one holds; raises DiffPrivacyError when nothing opens it."""
        passphrase = self.asked() if needs_passphrase(read_head(sealed)) else None
        Opener(passphrase, self.identities).open_file(sealed, target)

    def asked(self) -> str:
        """The passphrase that an option names, or typed at the terminal once."""
        self.passphrase = self.passphrase or ask_passphrase()
        return self.passphrase


def ask_passphrase(prompt: str = "Passphrase: ") -> str:
    """Typed at the terminal, unseen; raises DiffPrivacyError where there is none."""
    if not sys.stdin.isatty():
        raise DiffPrivacyError("A passphrase is needed: name its place with --passphrase-file or --passphrase-env.")
    return getpass.getpass(prompt)


def write_sealed(file: Path, picture: Picture, key: RecoveryKey, seal: Seal, options: argparse.Namespace) -> None:
    """Write a protected picture with its sealed key inside or beside it."""
    bound = key.bound_to(picture)
    keys = [bound.only(i) for i in range(len(bound.faces))] if options.key_per_face else [bound]
    sealed = [seal.close(key.to_bytes()) for key in keys]
    png.save(file, picture, sealed, options.key_beside)
    size = sum(map(len, sealed)) / 1000
    place = "beside" if options.key_beside else "inside"
    print(f"{file} (sealed {key.fidelity} key {place}, {size:.1f} kB)")


def _given_passphrase(options: argparse.Namespace) -> str | None:
    if options.passphrase_file and options.passphrase_env:
        raise DiffPrivacyError("Give --passphrase-file or --passphrase-env, not both.")
    if options.passphrase_file:
        return read_secret_file(options.passphrase_file, "passphrase")
    if options.passphrase_env:
        return read_secret(f"env:{options.passphrase_env}", "passphrase")
    return None


def _new_passphrase() -> str:
    passphrase = ask_passphrase("Passphrase for the recovery keys: ")
    if not passphrase or passphrase != ask_passphrase("Once more: "):
        raise DiffPrivacyError("The two passphrases differ, or are empty.")
    return passphrase
