"""A certificate chain for signing, made on the spot."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
PURPOSES = [
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
]


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """certificate.pem, of a signer and the authority above, and key.pem, the signer's."""
    own, above = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _begun("Authority", "Authority", above).add_extension(x509.BasicConstraints(True, None), True)
    authority = authority.add_extension(_usage("key_cert_sign", "crl_sign"), True)
    signer = _begun("Studio", "Authority", own).add_extension(x509.BasicConstraints(False, None), True)
    signer = signer.add_extension(_usage("digital_signature"), True)
    signer = signer.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())
    signer = signer.add_extension(identifier, False)
    pem = serialization.Encoding.PEM
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(
        b"".join(each.sign(above, hashes.SHA256()).public_bytes(pem) for each in (signer, authority))
    )
    key.write_bytes(own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate, key


def _begun(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    names = [x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]) for name in (subject, issuer)]
    now = datetime.datetime.now(datetime.timezone.utc)
    begun = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
    begun = begun.serial_number(x509.random_serial_number()).not_valid_before(now - DAY).not_valid_after(now + 30 * DAY)
    return begun.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)


def _usage(*purposes: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{purpose: purpose in purposes for purpose in PURPOSES})
