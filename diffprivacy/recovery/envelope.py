"""What is sealed around a key: a signature, and zeros up to one of a few lengths.

The length of a sealed file is public. Padded, it tells which of six lengths a key has, and no longer its fidelity and
the number of its faces; how many keys a picture carries is seen as before.

Anybody can seal a key to a public recipient, so a key proves nothing about who made it. A protector may sign keys with
Ed25519 (RFC 8032); whoever recovers then accepts only keys that a public key vouches for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffPrivacyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LENGTHS = tuple(kib * 2**10 for kib in (96, 384, 1536, 6144, 24576, 65536))
SIGNATURE_BYTES = 64
CONTEXT = b"diffprivacy recovery key\0"
"""Signed with the key, so that a signature made for anything else does not fit."""
MAX_FILE = 2**16


def wrap(key: bytes, signer: Ed25519PrivateKey | None = None) -> bytes:
    """A key's bytes, their signature (zeros without a signer), and zeros up to the next of ``LENGTHS``.

    Raises DiffPrivacyError for a key that is longer than the last of them.
    """
    signature = bytes(SIGNATURE_BYTES) if signer is None else signer.sign(CONTEXT + key)
    size = len(key) + len(signature)
    if size > LENGTHS[-1]:
        raise DiffPrivacyError(
            f"The recovery key has {size / 2**20:.1f} MiB and may have {LENGTHS[-1] >> 20}: "
            "protect fewer faces at once, or choose the fidelity latent."
        )
    return (key + signature).ljust(next(length for length in LENGTHS if size <= length), b"\0")


def check_rest(rest: bytes) -> None:
    """Raises DiffPrivacyError unless :func:`wrap` could have put ``rest`` after a key, or nothing was, as in version 1."""
    if rest and (len(rest) < SIGNATURE_BYTES or rest.count(0, SIGNATURE_BYTES) != len(rest) - SIGNATURE_BYTES):
        raise DiffPrivacyError("The recovery key is damaged: what follows its tensors is no padding.")


def verify(key: bytes, rest: bytes, signer: Ed25519PublicKey) -> None:
    """Raises DiffPrivacyError unless ``rest``, what follows a key's bytes, holds the signer's signature of them."""
    from cryptography.exceptions import InvalidSignature

    if not any(rest[:SIGNATURE_BYTES]):
        raise DiffPrivacyError("The key is not the signer's: it is not signed.")
    try:
        signer.verify(rest[:SIGNATURE_BYTES], CONTEXT + key)
    except InvalidSignature:
        raise DiffPrivacyError("The key is not the signer's: somebody else signed it, or it was changed.") from None


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key in a file of OpenSSH (as ``ssh-keygen -t ed25519`` writes it) or PEM, without a passphrase.

    Raises DiffPrivacyError, naming the file, for anything else.
    """
    ed25519, serialization, unsupported = _cryptography()
    data = _read(path)
    load = serialization.load_ssh_private_key if b"BEGIN OPENSSH" in data else serialization.load_pem_private_key
    try:
        key = load(data, None)
    except (ValueError, TypeError, unsupported) as error:
        raise DiffPrivacyError(
            f"{path} is no Ed25519 private key without a passphrase; make one with ssh-keygen -t ed25519 -N ''."
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise DiffPrivacyError(f"{path} holds another kind of key than Ed25519; make one with ssh-keygen -t ed25519.")
    return key


def read_signer(text: str) -> Ed25519PublicKey:
    """The Ed25519 public key in a line ``ssh-ed25519 AAAA...``, or in a file that holds it or a PEM.

    Raises DiffPrivacyError for anything else.
    """
    ed25519, serialization, unsupported = _cryptography()
    data = text.encode() if text.startswith("ssh-") else _read(Path(text))
    load = serialization.load_ssh_public_key if data.startswith(b"ssh-") else serialization.load_pem_public_key
    try:
        key = load(data)
    except (ValueError, TypeError, unsupported) as error:
        raise DiffPrivacyError(
            f"{text[:40]} is no public key: give a line ssh-ed25519 AAAA..., or its file."
        ) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise DiffPrivacyError(f"{text[:40]} is another kind of public key than Ed25519.")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise DiffPrivacyError(f"{path}, the file of the signature's key, cannot be read: {error.strerror}.") from None
    if len(data) > MAX_FILE:
        raise DiffPrivacyError(f"{path} is too large for a key that signs.")
    return data.removeprefix(b"\xef\xbb\xbf").strip() + b"\n"


def _cryptography() -> tuple[Any, Any, type[Exception]]:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise DiffPrivacyError("Signed keys need the package cryptography: run pip install cryptography.") from error
    return ed25519, serialization, UnsupportedAlgorithm
