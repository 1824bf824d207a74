"""Files that age opens with a passphrase, at a cost that tests can bear.

From the specification of age (https://age-encryption.org/v1), with scrypt at N = 2^10; pyrage takes seconds for each file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

import pyrage
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PYRAGES = pyrage.passphrase.encrypt
LOG_N = 10
CHUNK = 2**16


def encrypt(data: bytes, passphrase: str) -> bytes:
    """Stands for ``pyrage.passphrase.encrypt``."""
    file_key, salt, nonce = (os.urandom(16) for _ in range(3))
    salted = b"age-encryption.org/v1/scrypt" + salt
    wrapping = hashlib.scrypt(passphrase.encode(), salt=salted, n=2**LOG_N, r=8, p=1, dklen=32)
    wrapped = ChaCha20Poly1305(wrapping).encrypt(bytes(12), file_key, None)
    header = b"age-encryption.org/v1\n-> scrypt %b %d\n%b\n---" % (_base64(salt), LOG_N, _base64(wrapped))
    mac = hmac.digest(_derived(file_key, b"", b"header"), header, "sha256")
    payload = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
    starts = range(0, max(len(data), 1), CHUNK)
    chunks = (
        payload.encrypt(i.to_bytes(11, "big") + bytes([start == starts[-1]]), data[start : start + CHUNK], None)
        for i, start in enumerate(starts)
    )
    return header + b" " + _base64(mac) + b"\n" + nonce + b"".join(chunks)


def _derived(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(key)


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")
