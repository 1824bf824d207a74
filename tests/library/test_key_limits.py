"""Keys that ask for too much: time, memory, faces or a model of another kind."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from pathlib import Path

import pyrage
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.media.images import encode_png
from diffprivacy.recovery import encryption, png
from diffprivacy.recovery.encryption import MAX_WORK, Decryptor, Encryptor, check_cost
from diffprivacy.recovery.key import Patch, RecoveryKey
from diffprivacy.recovery.keyed import Public, recover_keyed
from diffprivacy.recovery.opening import open_keys
from diffprivacy.recovery.replay import recover
from testing.three_faces import (
    FACES,
    IDENTITY,
    MARGIN,
    PROTECTED,
    face_at,
    lossless,
)


def scrypt_header(work: str) -> bytes:
    return f"age-encryption.org/v1\n-> scrypt {'A' * 22} {work}\n".encode() + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n"


@given(st.integers(MAX_WORK + 1, 99).map(str) | st.text("0123456789-+ ", max_size=6))
def test_no_passphrase_is_tried_beyond_the_work_limit(work):
    if re.fullmatch("[1-9][0-9]?", work) and int(work) <= MAX_WORK:
        assert check_cost(scrypt_header(work)) == 2 ** int(work)
        return
    with pytest.raises(DiffPrivacyError):
        Decryptor("secret").decrypt(scrypt_header(work))


def test_many_costly_keys_keep_no_cheap_one_from_opening(monkeypatch):
    tried: list[bytes] = []

    def opens(self: Decryptor, sealed: bytes) -> bytes:
        tried.append(sealed)
        return lossless().to_bytes() if b" 18\n" in sealed else b"nothing"

    monkeypatch.setattr(Decryptor, "decrypt", opens)
    keys, skipped = open_keys([scrypt_header("20")] * 200 + [scrypt_header("18")], Decryptor("secret"), lambda _: None)
    assert len(keys) == 1
    assert len(skipped) == 200
    assert b" 18\n" in tried[0]
    assert len(tried) == 64


def test_a_header_of_endless_recipients_is_refused():
    stanza = b"-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n"
    with pytest.raises(DiffPrivacyError, match="more recipients than are tried"):
        Decryptor(identities=[str(IDENTITY)]).decrypt(b"age-encryption.org/v1\n" + stanza * 5000 + b"--- A\n")


def test_more_keys_than_a_picture_has_are_refused(tmp_path):
    data = png.with_chunks(encode_png(PROTECTED), png.SEALED_KEY, [b"x"] * (png.MAX_KEYS + 1))
    with pytest.raises(DiffPrivacyError, match="257"):
        png.read_chunks(data, png.SEALED_KEY)
    with pytest.raises(DiffPrivacyError, match="257"):
        png.save(tmp_path / "a.png", PROTECTED, [b"x"] * (png.MAX_KEYS + 1))
    assert not list(tmp_path.iterdir())


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("trap", [pipe, endless])
def test_a_key_that_never_ends_is_refused_unopened(tmp_path, trap):
    """As an archive may hold beside an image or a video."""
    png.save(tmp_path / "a.png", PROTECTED)
    trap(tmp_path / "a.png.age")
    (tmp_path / "b.mp4").write_bytes(b"protected")
    trap(tmp_path / "b.mp4.age")
    with pytest.raises(DiffPrivacyError, match=r"a\.png\.age is a pipe or a device"):
        png.carried(tmp_path / "a.png")
    with pytest.raises(DiffPrivacyError, match=r"b\.mp4\.age is a pipe or a device"):
        Decryptor(identities=[str(IDENTITY)]).decrypt_file(tmp_path / "b.mp4.age", tmp_path / "b.mp4")


class Unread:
    """A diffusion model of which nothing is computed: what is refused is refused before."""

    image_size, downscale, latent_channels = 128, 4, 16
    fingerprints: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize("size", [130, 1, 516, 8192])
def test_keyed_mode_cuts_no_crops_that_the_model_was_not_made_for(size):
    """130 had ended in a traceback, 8192 taken 7.8 GB."""
    for faces in ((FACES[0],), tuple(FACES)):
        public = Public.from_bytes(Public(bytes(16), faces, max(8, size), MARGIN).to_bytes())
        with pytest.raises(DiffPrivacyError, match="do not go with this checkpoint"):
            recover_keyed(PROTECTED.rgb, dataclasses.replace(public, size=size), Unread(), "secret")


def test_keyed_mode_works_on_no_face_twice():
    public = Public(bytes(16), (FACES[0], face_at(91)), 64, MARGIN)
    with pytest.raises(DiffPrivacyError, match="one face"):
        recover_keyed(PROTECTED.rgb, public, Unread(), "secret")


def test_replay_does_not_go_beyond_the_model_and_the_faces():
    def key(side: int, steps: int = 3, size: int | None = None) -> RecoveryKey:
        return RecoveryKey(
            "latent",
            sigmas=torch.linspace(14, 0, steps + 1),
            noise_map=torch.zeros(1, 16, side, side),
            faces=(FACES[0],),
            size=4 * side if size is None else size,
            margin=MARGIN,
        ).bound_to(PROTECTED)

    refused: list[tuple[list[RecoveryKey], str]] = [
        ([key(1024)], "do not go with this checkpoint"),
        ([key(8, size=64)], "`noise_map` is wrong"),
        ([key(8, steps=900)], "`sigmas` is wrong"),
        ([key(8)] * 300, "300 faces"),
        ([key(8)] * 2, "one face"),
    ]
    for keys, message in refused:
        with pytest.raises(DiffPrivacyError, match=message):
            recover(PROTECTED, keys, Unread())


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_patch_that_would_decode_to_a_flood_is_refused_undecoded(kind, monkeypatch):
    file = io.BytesIO()
    Image.new("RGBA", (3000, 3000)).save(file, kind)
    monkeypatch.setattr("diffprivacy.recovery.replay.decode_picture", lambda *_: pytest.fail("it was decoded"))
    key = dataclasses.replace(lossless().only(0), patches=(Patch(0, 0, file.getvalue()),))
    with pytest.raises(DiffPrivacyError, match="reach beyond"):
        recover(PROTECTED, [key])


def test_a_passphrase_opens_on_a_machine_that_was_busy_for_a_moment(monkeypatch):
    """age refuses by its own measure of the machine's speed, which no test can make slow: the refusal is put in."""
    sealed, refusals = Encryptor("correct horse").encrypt(b"a key"), iter([True, True, False])
    decrypt = pyrage.passphrase.decrypt

    def busy(data: bytes, passphrase: str) -> bytes:
        if next(refusals):
            raise pyrage.DecryptError("Excessive work parameter for passphrase")
        return decrypt(data, passphrase)

    monkeypatch.setattr(pyrage.passphrase, "decrypt", busy)
    monkeypatch.setattr(encryption, "PAUSE", 0)
    assert Decryptor("correct horse").decrypt(sealed) == b"a key"
