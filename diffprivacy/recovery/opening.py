"""Opening the sealed keys of a picture, of which anybody may have added some: those that do not open are skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import DiffPrivacyError
from .encryption import Decryptor, check_cost
from .key import RecoveryKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_TOTAL_WORK = 2**26
"""Sum of scrypt's N over the keys of one picture that a passphrase is tried on: 256 of age's usual 2^18."""


def open_keys(
    sealed: Sequence[bytes],
    decryptor: Decryptor,
    check: Callable[[RecoveryKey], None],
    signer: Ed25519PublicKey | None = None,
) -> tuple[list[RecoveryKey], list[str]]:
    """The keys that open and pass a check, in their order, and for each of the others why it was skipped.

    check: raises DiffPrivacyError for a key that does not belong to the picture. signer: who must have signed them; without
    one a key proves nothing about who made it.

    Raises DiffPrivacyError with all reasons where no key is left.
    """
    opened: dict[int, RecoveryKey] = {}
    skipped: dict[int, DiffPrivacyError] = {}
    costs: dict[int, int] = {}
    for i, data in enumerate(sealed):
        try:
            costs[i] = check_cost(data)
        except DiffPrivacyError as error:
            skipped[i] = error
    work = 0
    for i in sorted(costs, key=lambda i: costs[i]):  # Expensive ones last, so that they keep no cheap one from opening.
        work += costs[i]
        try:
            if work > MAX_TOTAL_WORK:
                raise DiffPrivacyError("The image has more keys under passphrases than are tried at once.")
            key = RecoveryKey.from_bytes(decryptor.decrypt(sealed[i]), signer)
            check(key)
            opened[i] = key
        except DiffPrivacyError as error:
            skipped[i] = error
    if not opened and skipped:
        raise DiffPrivacyError(" ".join(dict.fromkeys(str(skipped[i]) for i in sorted(skipped))))
    return [opened[i] for i in sorted(opened)], [str(skipped[i]) for i in sorted(skipped)]
