"""Sealing: who can open, who cannot, and that the age command line reads and writes the same files."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.recovery.encryption import (
    MAX_SEALED,
    MAX_WITH_PASSPHRASE,
    Decryptor,
    Encryptor,
    check_source,
    decryptor,
    needs_passphrase,
    read_secret,
    read_secret_file,
)
from testing.cheap_passphrase import PYRAGES

IDENTITY = """# created: 2026-11-21T15:25:20Z
# public key: age15pxdgahfy067enjhvwedyzly8jjpmpl9czn7l7kdjls3xcsv5u9qfdewnc
AGE-SECRET-KEY-1L7ZM2GXYUZ4LFCM7VV9HEHUCW9PTW6ZSLWL5278QHTZJKDEH4THQL8SHR6"""
RECIPIENT = "age15pxdgahfy067enjhvwedyzly8jjpmpl9czn7l7kdjls3xcsv5u9qfdewnc"
BY_AGE = base64.b64decode(
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBpQjQxdFVBc0k0OGlMMHRYbGZkaVJOQlpsWDNjUnduc1hkcGlpdFdBMFdnCjhyTHp0ZUFC"
    "eE5mSVBrZnZVWkE1MjJFVjNrTEVaS3lwNTZSTm1kNlhjeGMKLS0tIFh6STNMZVFOeVBBekR5MERzQUY2enNSMGVjSHZNWFllZ3Y3aDk0dDBGWjAK"
    "Ljz+kwTLoUf49gwKBWpItkVoP3aERoy31uYDkBq7NXY55RBBBvKbLAyLIo8XJwelhk+Cugt9wiumn1oj2Ww="
)
"""Written by age 1.1.1 with the recipient above."""
DATA = b"sealed by the age command line"
DECRYPTOR = Decryptor(identities=[IDENTITY])


@pytest.fixture(scope="module")
def ssh_keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An Ed25519 key as OpenSSH writes it: (private, public)."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("sealing to SSH keys is tested with keys that OpenSSH made: install openssh-client")
    file = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    return read_secret_file(file), file.with_suffix(".pub").read_text().strip()


def test_files_of_the_age_command_line_open():
    assert DECRYPTOR.decrypt(BY_AGE) == DATA


@pytest.mark.skipif(
    shutil.which("age") is None, reason="whether others can open our keys is asked of the age program: install age"
)
def test_the_age_command_line_opens_ours(tmp_path):
    (tmp_path / "identity.txt").write_text(IDENTITY)
    (tmp_path / "key.age").write_bytes(Encryptor(recipients=[RECIPIENT]).encrypt(DATA))
    command = ["age", "--decrypt", "-i", tmp_path / "identity.txt", tmp_path / "key.age"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == DATA


def test_passphrase(monkeypatch):
    monkeypatch.setattr(pyrage.passphrase, "encrypt", PYRAGES)
    sealed = Encryptor(passphrase="correct horse").encrypt(DATA)
    assert needs_passphrase(sealed)
    assert decryptor("correct horse").decrypt(sealed) == DATA
    with pytest.raises(DiffPrivacyError, match="encrypted to a passphrase, and none is given"):
        DECRYPTOR.decrypt(sealed)


def test_a_wrong_passphrase_is_an_error():
    with pytest.raises(DiffPrivacyError, match=r"^The passphrase is wrong\.$"):
        decryptor("correct horsf").decrypt(Encryptor(passphrase="correct horse").encrypt(DATA))


def test_each_of_several_recipients_opens_and_nobody_else(ssh_keys):
    other = pyrage.x25519.Identity.generate()
    private, public = ssh_keys
    sealed = Encryptor(recipients=[RECIPIENT, str(other.to_public()), public]).encrypt(DATA)
    for text in (IDENTITY, str(other), private):
        assert decryptor(text).decrypt(sealed) == DATA
    with pytest.raises(DiffPrivacyError, match="No matching identity"):
        decryptor(str(pyrage.x25519.Identity.generate())).decrypt(sealed)
    with pytest.raises(DiffPrivacyError, match="encrypted to public keys: give the file of an identity"):
        decryptor("a passphrase").decrypt(sealed)


def test_sealing_twice_shares_nothing_but_the_format():
    encryptor = Encryptor(recipients=[RECIPIENT])
    first, second = (set(encryptor.encrypt(DATA).split()) for _ in range(2))
    assert first & second <= {b"age-encryption.org/v1", b"->", b"X25519", b"---"}


@given(st.data())
@settings(max_examples=150)
def test_a_changed_seal_never_opens(data):
    sealed = bytearray(BY_AGE)
    kind = data.draw(st.sampled_from(["flip", "cut", "append"]))
    if kind == "flip":
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    else:
        sealed += data.draw(st.binary(min_size=1, max_size=20))
    with pytest.raises(DiffPrivacyError):
        DECRYPTOR.decrypt(bytes(sealed))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_a_documented_error(content, with_header):
    with pytest.raises(DiffPrivacyError):
        DECRYPTOR.decrypt(b"age-encryption.org/v1\n" + content if with_header else content)


def test_too_large_seals_are_not_read():
    with pytest.raises(DiffPrivacyError, match="are not read"):
        DECRYPTOR.decrypt(b"age-encryption.org/v1\n" + bytes(MAX_SEALED))


@pytest.mark.parametrize("recipient", ["age1nonsense", "ssh-ed25519 AAAA", "", "hello"])
def test_wrong_recipients_are_named(recipient):
    with pytest.raises(DiffPrivacyError, match="is no public key"):
        Encryptor(recipients=[recipient])


def test_a_secret_key_as_recipient_is_not_repeated():
    secret = IDENTITY.splitlines()[-1]
    with pytest.raises(DiffPrivacyError, match="is a secret key") as caught:
        Encryptor(recipients=[secret])
    assert secret[:20] not in str(caught.value)


def test_a_seal_needs_one_kind_of_lock():
    for arguments in ({}, {"passphrase": "a", "recipients": [RECIPIENT]}):
        with pytest.raises(DiffPrivacyError, match="either to a passphrase or to public keys"):
            Encryptor(**arguments)


def test_secrets_do_not_show():
    assert "hunter2" not in repr(Encryptor(passphrase="hunter2")) + repr(Decryptor("hunter2", ["hunter2"]))


def test_secrets_come_from_files_and_the_environment(tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("correct horse\r\n")
    monkeypatch.setenv("A_SECRET", "battery staple")
    assert read_secret(f"file:{tmp_path / 'secret.txt'}") == "correct horse"
    assert read_secret("env:A_SECRET") == "battery staple"


@pytest.mark.parametrize("value", ["hunter2", "env:", "file:", "env:hunter2 hunter2", "ENV:hunter2", ""])
def test_a_secret_itself_is_refused_and_not_repeated(value):
    for check in (check_source, read_secret):
        with pytest.raises(DiffPrivacyError, match="must be env:NAME or file:PATH") as caught:
            check(value)
        assert "hunter2" not in str(caught.value)


def test_missing_secrets_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    for source in ("env:EMPTY", "env:NOT_THERE"):
        with pytest.raises(DiffPrivacyError, match=source.removeprefix("env:")):
            read_secret(source)
    for name, content in (("empty", b"\n"), ("binary", b"\xff\xfe"), ("large", b"x" * 10**5)):
        (tmp_path / name).write_bytes(content)
    for name in ("empty", "binary", "large", "absent", "."):
        with pytest.raises(DiffPrivacyError, match=name.replace(".", "file")):
            read_secret(f"file:{tmp_path / name}")


@pytest.mark.parametrize("encryptor", [Encryptor(recipients=[RECIPIENT]), Encryptor(passphrase="correct horse")])
def test_whole_files_are_sealed_and_opened(tmp_path, encryptor):
    content = bytes(range(256)) * 1000
    (tmp_path / "original").write_bytes(content)
    encryptor.encrypt_file(tmp_path / "original", tmp_path / "sealed.age")
    assert content[:256] not in (tmp_path / "sealed.age").read_bytes()
    secret = DECRYPTOR if encryptor.passphrase is None else Decryptor(passphrase="correct horse")
    secret.decrypt_file(tmp_path / "sealed.age", tmp_path / "opened")
    assert (tmp_path / "opened").read_bytes() == content
    assert secret.decrypt((tmp_path / "sealed.age").read_bytes()) == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-50], "damaged"),
        (lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], "damaged"),
        (lambda data: b"no age file", "no sealed key"),
    ],
)
def test_a_damaged_file_leaves_what_was_there(tmp_path, change, message):
    (tmp_path / "original").write_bytes(bytes(1000))
    Encryptor(recipients=[RECIPIENT]).encrypt_file(tmp_path / "original", tmp_path / "sealed.age")
    (tmp_path / "sealed.age").write_bytes(change((tmp_path / "sealed.age").read_bytes()))
    (tmp_path / "opened").write_bytes(b"older")
    with pytest.raises(DiffPrivacyError, match=message):
        DECRYPTOR.decrypt_file(tmp_path / "sealed.age", tmp_path / "opened")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["opened", "original", "sealed.age"]
    assert (tmp_path / "opened").read_bytes() == b"older"


def test_large_files_are_not_sealed_to_a_passphrase(tmp_path):
    """That would take their size in memory, twice; the file here has holes instead of content."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_WITH_PASSPHRASE + 1)
    with pytest.raises(DiffPrivacyError, match="use --seal-to"):
        Encryptor(passphrase="correct horse").encrypt_file(tmp_path / "large", tmp_path / "sealed.age")
    assert not (tmp_path / "sealed.age").exists()
