"""Sealing recovery keys in the age format (age-encryption.org/v1), which the ``age`` command line reads and writes.

A key is encrypted to a passphrase, or to public keys: ``age1...`` or SSH. A machine that has only public keys protects
pictures and cannot open them again. Secrets come from files, environment variables or the terminal; no message
holds one.

An SSH recipient leaves a tag of its public key in the sealed file: it links all files encrypted to that key, and anybody
can compare it with published keys. ``age1...`` recipients leave none. What a sealed key proves is who can open it, not
who made it; see :mod:`diffprivacy.recovery.envelope` for signatures.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffPrivacyError
from ..media.atomic import atomic_path, write_atomically
from ..media.limits import check_file
from .key import MAX_BYTES, RecoveryKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HEADER = b"age-encryption.org/v1\n"
MAX_SEALED = MAX_BYTES + 2**20
MAX_SECRET = 2**16
BYTE_ORDER_MARK = "\ufeff"
"""What some editors put first in a text file; no part of a secret."""
DAMAGED = "The sealed key is damaged: somebody or something changed or cut it."
MAX_WITH_PASSPHRASE = 2**30
"""Bytes of a file encrypted to a passphrase, which is done in memory."""
MAX_RECIPIENTS = 2**18
"""Bytes of a sealed file in which its recipients are named; each of them costs a try to open."""
MAX_WORK = 20
"""Largest log2 of scrypt's N that a passphrase is tried with: 1 GiB of memory. Files of age have 18."""
TRIES = 20
PAUSE = 0.5
"""How often a passphrase is tried again on a machine too busy for it, and the seconds between."""
_END_OF_RECIPIENTS = b"\n--- "
_SCRYPT = re.compile(re.escape(HEADER) + rb"-> scrypt [A-Za-z0-9+/]{22} ([1-9][0-9]?)\n")


@dataclass(frozen=True)
class Encryptor:
    """Whom a key is encrypted to: a passphrase, or one or more recipients (``age1...`` or an SSH public key).

    signer: the protector's, who signs each key before it is sealed.
    """

    passphrase: str | None = field(default=None, repr=False)
    recipients: Sequence[str] = ()
    signer: Ed25519PrivateKey | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.passphrase is None) == (not self.recipients):
            raise DiffPrivacyError("A key is encrypted either to a passphrase or to public keys: give one of the two.")
        for recipient in self.recipients:
            _recipient(recipient)

    def encrypt(self, data: bytes) -> bytes:
        """The data sealed; every call gives other bytes."""
        pyrage = _pyrage()
        if self.passphrase is not None:
            return pyrage.passphrase.encrypt(data, self.passphrase)
        return pyrage.encrypt(data, [_recipient(recipient) for recipient in self.recipients])

    def encrypt_key(self, key: RecoveryKey) -> bytes:
        """A recovery key signed, padded and sealed."""
        return self.encrypt(key.to_bytes(self.signer))

    def encrypt_file(self, source: Path, target: Path) -> None:
        """Seal a file of any size; the sealed one appears complete or not at all.

        Raises DiffPrivacyError if it cannot be written, and for a large file under a passphrase: see ``check_file``.
        """
        self.check_file(source)
        if self.passphrase is not None:
            write_atomically(target, self.encrypt(source.read_bytes()))
            return
        with atomic_path(target) as temporary:
            _pyrage().encrypt_file(
                str(source), str(temporary), [_recipient(recipient) for recipient in self.recipients]
            )

    def check_file(self, source: Path) -> None:
        """Raises DiffPrivacyError for a file that is too large for a passphrase, under which it is held in memory, and
        where a signature is asked for: only keys carry one."""
        if self.signer is not None:
            raise DiffPrivacyError("The sealed original of a video carries no signature: encrypt it without one.")
        if self.passphrase is not None and source.stat().st_size > MAX_WITH_PASSPHRASE:
            raise DiffPrivacyError(
                f"Files of more than {MAX_WITH_PASSPHRASE // 2**20} MiB are encrypted to public keys only: use --seal-to."
            )


@dataclass(frozen=True)
class Decryptor:
    """What opens sealed keys: a passphrase, or identities, the text of ``AGE-SECRET-KEY-1...`` or SSH key files."""

    passphrase: str | None = field(default=None, repr=False)
    identities: Sequence[str] = field(default=(), repr=False)

    def decrypt(self, sealed: bytes) -> bytes:
        """The data in a seal. Raises DiffPrivacyError, which says whether the secret is wrong or the seal damaged."""
        pyrage = _pyrage()
        check_cost(sealed)
        with _refusals(sealed):
            if needs_passphrase(sealed):
                return _open_with_passphrase(sealed, self._passphrase())
            return pyrage.decrypt(sealed, self._identities())

    def decrypt_file(self, sealed: Path, target: Path) -> None:
        """What :meth:`Encryptor.encrypt_file` sealed; ``target`` appears complete or not at all. Raises as :meth:`decrypt`."""
        pyrage = _pyrage()
        head = read_head(sealed)
        check_cost(head)
        if needs_passphrase(head) and sealed.stat().st_size > MAX_WITH_PASSPHRASE + 2**20:
            raise DiffPrivacyError(
                f"{sealed} is too large for a passphrase: more than {MAX_WITH_PASSPHRASE >> 20} MiB."
            )
        with atomic_path(target) as temporary, _refusals(head):
            if needs_passphrase(head):
                temporary.write_bytes(_open_with_passphrase(sealed.read_bytes(), self._passphrase()))
            else:
                pyrage.decrypt_file(str(sealed), str(temporary), self._identities())

    def _passphrase(self) -> str:
        if self.passphrase is None:
            raise DiffPrivacyError("The key is encrypted to a passphrase, and none is given.")
        return self.passphrase

    def _identities(self) -> list[Any]:
        if not self.identities:
            raise DiffPrivacyError("The key is encrypted to public keys: give the file of an identity that opens it.")
        return [identity for text in self.identities for identity in _identities(text)]


def _open_with_passphrase(sealed: bytes, passphrase: str) -> bytes:
    """age measures what the machine can do at each call, and refuses 16 times as much: a busy moment is tried again."""
    pyrage = _pyrage()
    for _ in range(TRIES):
        try:
            return pyrage.passphrase.decrypt(sealed, passphrase)
        except pyrage.DecryptError as error:
            if "Excessive work" not in str(error):
                raise
            time.sleep(PAUSE)
    return pyrage.passphrase.decrypt(sealed, passphrase)


@contextmanager
def _refusals(sealed: bytes) -> Iterator[None]:
    """Errors of age in words: the secret is wrong, or the seal damaged."""
    pyrage = _pyrage()
    try:
        yield
    except pyrage.DecryptError as error:
        if needs_passphrase(sealed) and "Decryption failed" in str(error):
            raise DiffPrivacyError("The passphrase is wrong.") from None
        if "Excessive work" in str(error):
            raise DiffPrivacyError(
                "The sealed key's work factor is more than this machine can try now: stop other programs and try again."
            ) from None
        if not needs_passphrase(sealed) and "No matching keys" in str(error):
            raise DiffPrivacyError("No matching identity: the key is encrypted to other recipients.") from None
        raise DiffPrivacyError(DAMAGED) from None
    except OSError as error:
        if error.errno is None:  # not of the system: age met something unexpected on the way through a file
            raise DiffPrivacyError(DAMAGED) from None
        raise


def read_head(sealed: Path) -> bytes:
    """The beginning of a sealed file, which tells what opens it; raises DiffPrivacyError that names the file."""
    check_file(sealed, "sealed file")
    try:
        with sealed.open("rb") as file:
            return file.read(MAX_RECIPIENTS)
    except OSError as error:
        raise DiffPrivacyError(f"{sealed}, the key file, cannot be read: {error.strerror}.") from None


def needs_passphrase(sealed: bytes) -> bool:
    """Whether a sealed key opens with a passphrase; raises DiffPrivacyError for what is no sealed key."""
    if len(sealed) > MAX_SEALED:
        raise DiffPrivacyError(f"The sealed key has {len(sealed)} bytes; more than {MAX_SEALED} are not read.")
    if not sealed.startswith(HEADER):
        raise DiffPrivacyError("This is no sealed key: it does not begin as an age file does.")
    return begins_with_passphrase(sealed)


def begins_with_passphrase(sealed: bytes) -> bool:
    """Whether bytes begin as those of a file encrypted to a passphrase do."""
    return sealed.startswith(HEADER + b"-> scrypt ")


def check_cost(sealed: bytes) -> int:
    """What it costs to try a secret on a sealed key, in scrypt's N, 0 for public keys.

    Raises DiffPrivacyError for what is no sealed key, and for one that costs more than any that age writes.
    """
    if not needs_passphrase(sealed):
        if sealed.find(_END_OF_RECIPIENTS, 0, MAX_RECIPIENTS) < 0:
            raise DiffPrivacyError("The sealed key is damaged, or names more recipients than are tried.")
        return 0
    if (found := _SCRYPT.match(sealed)) is None:
        raise DiffPrivacyError(DAMAGED)
    if (work := int(found[1])) > MAX_WORK:
        raise DiffPrivacyError(
            f"The sealed key's work factor is {work}, and no more than {MAX_WORK} (1 GiB of memory) is tried."
        )
    return 2**work


def check_source(source: str, what: str = "secret") -> None:
    """Raises DiffPrivacyError, which repeats nothing that could be a secret, unless it is env:NAME or file:PATH."""
    kind, _, name = source.partition(":")
    if not (kind == "env" and name.isidentifier()) and not (kind == "file" and name):
        raise DiffPrivacyError(
            f"The {what} must be env:NAME or file:PATH, the place where it is found, never the {what} itself: "
            "a value is saved with the workflow, in the history and in images."
        )


def read_secret(source: str, what: str = "secret") -> str:
    """The text that ``env:NAME`` or ``file:PATH`` names, without the line end.

    Raises DiffPrivacyError for any other value, and where nothing is found.
    """
    check_source(source, what)
    kind, _, name = source.partition(":")
    if kind == "file":
        return read_secret_file(Path(name), what)
    secret = os.environ.get(name, "").removeprefix(BYTE_ORDER_MARK)
    if not secret.strip():
        raise DiffPrivacyError(
            f"The {what} is to come from the environment variable {name}, which is not set or empty."
        )
    return secret


def read_secret_file(path: Path, what: str = "secret") -> str:
    """The text of a small file, without a byte order mark and the line end; raises DiffPrivacyError that names the file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET + 1)
        if len(content) > MAX_SECRET:
            raise DiffPrivacyError(f"{path} is too large for a {what}.")
        secret = content.decode().removeprefix(BYTE_ORDER_MARK).rstrip("\r\n")
    except OSError as error:
        raise DiffPrivacyError(f"{path}, the file of the {what}, cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DiffPrivacyError(f"{path}, the file of the {what}, is no UTF-8 text; save it as UTF-8.") from None
    if not secret.strip():
        raise DiffPrivacyError(f"{path}, the file of the {what}, is empty.")
    return secret


def decryptor(secret: str) -> Decryptor:
    """For a secret of either kind: identities where the text holds any, else a passphrase."""
    return Decryptor(identities=[secret]) if is_identity(secret) else Decryptor(passphrase=secret)


def is_identity(secret: str) -> bool:
    """Whether a text is that of an identity file, age's or SSH's."""
    return "AGE-SECRET-KEY-1" in secret or secret.startswith("-----BEGIN ")


def public_keys(identities: str) -> list[str]:
    """The public keys of the text of an identity file; raises DiffPrivacyError for SSH's, of which only ssh-keygen tells it."""
    if identities.startswith("-----BEGIN "):
        raise DiffPrivacyError(
            "An SSH key cannot be used here: give an age identity file (age-keygen) or a passphrase."
        )
    return [str(identity.to_public()) for identity in _identities(identities)]


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError as error:
        raise DiffPrivacyError("Sealed keys need the package pyrage: run pip install pyrage.") from error
    return pyrage


def _recipient(text: str) -> Any:
    pyrage = _pyrage()
    try:
        if text.startswith("age1"):
            return pyrage.x25519.Recipient.from_str(text)
        return pyrage.ssh.Recipient.from_str(text)
    except pyrage.RecipientError:
        pass
    if is_identity(text):
        raise DiffPrivacyError("This recipient is a secret key: give the public one, and take a new pair of keys.")
    raise DiffPrivacyError(f"{text[:20]}... is no public key: give age1..., or a line such as ssh-ed25519 AAAA....")


def _identities(text: str) -> list[Any]:
    pyrage = _pyrage()
    try:
        if text.startswith("-----BEGIN "):
            return [pyrage.ssh.Identity.from_buffer((text + "\n").encode())]
        lines = [line.strip() for line in text.splitlines()]
        return [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except pyrage.IdentityError:
        raise DiffPrivacyError(
            "The identity is none that can be used: give a file with a line AGE-SECRET-KEY-1..., or an SSH private key "
            "(Ed25519 or RSA) without a passphrase."
        ) from None
