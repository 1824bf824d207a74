"""Content credentials (C2PA, c2pa.org): a signature with the user's own certificate, which says that a model made a part.

They name the signer, on purpose, and nothing of the original: no ingredient, no thumbnail, no file name. Nothing is
asked of a network: no time stamp, no revocation list.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DiffPrivacyError
from .disclosure import SOURCE_TYPE
from .limits import check_file

KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}
MANIFEST = {
    "claim_generator_info": [{"name": "diff-privacy", "version": __version__}],
    "assertions": [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
        }
    ],
}
SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
MAX_PEM = 2**16


@dataclass(frozen=True)
class Credentials:
    """Who signs. certificate: the chain, the signer's first, and key: of the first one; both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    def sign(self, file: Path, suffix: str) -> None:
        """Put a signed manifest into a finished file. suffix: of its kind, such as ".png"."""
        signed = file.with_name(f"{file.stem}.c2pa.part")
        try:
            os.close(os.open(signed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with file.open("rb") as source, signed.open("r+b") as target:
                self._sign(KINDS[suffix], source, target)
            signed.replace(file)
        finally:
            signed.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises DiffPrivacyError for a certificate and a key with which nothing valid can be signed."""
        from PIL import Image

        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        picture.seek(0)
        self._sign("image/png", picture, io.BytesIO())

    def _sign(self, kind: str, source: Any, target: Any) -> None:
        c2pa = _c2pa()
        try:
            info = c2pa.C2paSignerInfo(self._algorithm(), self.certificate, self.key, None)
            context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
            c2pa.Builder(MANIFEST, context).sign(c2pa.Signer.from_info(info), kind, source, target)
        except c2pa.C2paError as error:
            raise DiffPrivacyError(
                f"It cannot sign ({error}): give the PEM chain of a certificate for document signing or e-mail protection, "
                "the signer's first, and its own private key.",
                "c2pa_certificate",
            ) from error

    def _algorithm(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        algorithms = _c2pa().C2paSigningAlg
        try:
            key = load_pem_private_key(self.key, None)
        except (TypeError, ValueError):
            key = None
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ("secp256r1", "secp384r1"):
            return algorithms.ES256 if key.curve.name == "secp256r1" else algorithms.ES384
        if isinstance(key, rsa.RSAPrivateKey):
            return algorithms.PS256
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return algorithms.ED25519
        raise DiffPrivacyError(
            "It holds no private key that can sign: give a PEM file (PKCS 8, without a password) with a key of P-256, P-384, "
            "RSA or Ed25519.",
            "c2pa_key",
        )


def read_credentials(certificate: Path, key: Path) -> Credentials:
    """The credentials in two files; raises DiffPrivacyError, naming the option, for those that cannot sign."""
    pems = []
    for path in (certificate, key):
        check_file(path, "PEM file", MAX_PEM)
        pems.append(path.read_bytes())
    credentials = Credentials(*pems)
    credentials.check()
    return credentials


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise DiffPrivacyError("Content credentials need c2pa-python: run pip install 'diff-privacy[c2pa]'.") from error
    return c2pa
