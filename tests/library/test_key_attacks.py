"""What others can do with sealed keys: neighbours' faces, forged originals, injected chunks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from diffprivacy.cli import main
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import own_pixels, protected_mask
from diffprivacy.media.images import Picture, decode_picture, encode_png, read_picture
from diffprivacy.recovery import png
from diffprivacy.recovery.encryption import Encryptor
from diffprivacy.recovery.envelope import read_signer, read_signing_key
from diffprivacy.recovery.key import Patch, RecoveryKey
from diffprivacy.recovery.keyed import Public
from diffprivacy.recovery.replay import Replay, record, recover
from testing.key_attacks import forged_key, inject, share_replaced
from testing.three_faces import (
    CROP,
    FACES,
    IDENTITY,
    MARGIN,
    MASK,
    ORIGINAL,
    PROTECTED,
    SEAL,
    SHAPE,
    face_at,
    lossless,
    noise,
    own,
)


def test_each_pixel_belongs_to_one_face():
    masks = torch.stack([protected_mask(SHAPE, [face], MARGIN) > 0 for face in FACES])
    assert (masks.sum(0) > 1).any()
    shares = torch.stack([own(i) for i in range(3)])
    assert torch.equal(shares.any(0), MASK)
    assert shares.sum(0).max() == 1
    assert not (shares & ~masks).any()


def test_of_two_equally_deep_faces_one_owns_the_pixel():
    left, right = face_at(160, 85), face_at(200, 85)
    shares = []
    for one, other in ((left, right), (right, left)):
        mask = torch.zeros(SHAPE)
        region, inside = own_pixels(SHAPE, one, [other], MARGIN)
        mask[region] = inside.float()
        shares.append(mask)
    assert torch.equal(shares[0] + shares[1], (protected_mask(SHAPE, [left, right], MARGIN) > 0).float())


@pytest.mark.parametrize("fidelity", ["latent", "compact", "lossless"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_faces_key_is_the_same_whoever_its_neighbours_are(demo_model, fidelity, index):
    """Not a bit of it depends on what the original shows of them."""
    diffusion_model = None if fidelity == "lossless" else demo_model
    theirs = torch.stack([own(i) for i in range(3) if i != index]).any(0)
    strangers = Picture(torch.where(theirs[..., None], noise(7), ORIGINAL.rgb))
    keys = [
        record(picture, FACES, diffusion_model, CROP, fidelity, Replay("ddim", steps=2)).bound_to(PROTECTED).only(index)
        for picture in (ORIGINAL, strangers)
    ]
    assert parts(keys[0].to_bytes()) == parts(keys[1].to_bytes())


def parts(key: bytes) -> tuple[dict, bytes]:
    """The header of a key, whose metadata has no order, and all that follows."""
    length = int.from_bytes(key[:8], "little")
    return json.loads(key[8 : 8 + length]), key[8 + length :]


def test_one_key_gives_one_face_and_all_keys_give_all():
    key = lossless()
    for i, single in enumerate(key.each()):
        back = recover(PROTECTED, [single]).rgb
        assert torch.equal(back[own(i)], ORIGINAL.rgb[own(i)])
        assert torch.equal(back[~own(i)], PROTECTED.rgb[~own(i)])
    assert torch.equal(recover(PROTECTED, key.each()[::-1]).rgb, ORIGINAL.rgb)


def test_one_latent_key_changes_its_own_pixels_only(demo_model):
    diffusion_model = demo_model
    key = record(ORIGINAL, FACES[:2], diffusion_model, CROP, how=Replay("ddim", steps=2)).bound_to(PROTECTED)
    singles = [RecoveryKey.from_bytes(key.only(i).to_bytes()) for i in range(2)]
    alone = recover(PROTECTED, singles[:1], diffusion_model).rgb
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    region, inside = own_pixels(SHAPE, FACES[0], [FACES[1]], MARGIN)
    mask[region] = inside
    assert torch.equal(alone[~mask], PROTECTED.rgb[~mask])
    assert (alone[mask] != PROTECTED.rgb[mask]).any(dim=-1).float().mean() > 0.9
    both = recover(PROTECTED, singles, diffusion_model).rgb
    assert torch.equal(both[mask], alone[mask])


def test_a_forged_original_changes_nothing():
    """The attack had replaced all of the picture."""
    with pytest.raises(DiffPrivacyError, match="reach beyond their faces' masks"):
        share_replaced(PROTECTED, [forged_key(PROTECTED, FACES[1], MARGIN)])


def test_a_patch_reaches_no_pixel_beyond_its_mask():
    """Nor does one that lies within the mask's rectangle."""
    key = lossless().only(2)
    (patch,) = key.patches
    part = decode_picture(patch.file, "patch")
    whole = encode_png(Picture(part.rgb, torch.ones_like(part.alpha)))
    with pytest.raises(DiffPrivacyError, match="reach beyond"):
        recover(PROTECTED, [dataclasses.replace(key, patches=(Patch(patch.top, patch.left, whole),))])


@pytest.mark.parametrize("shift", [0.0, 3.0, 12.0])
def test_two_keys_for_one_face_are_refused(shift):
    forged = record(PROTECTED, [face_at(270 + shift)], None, CROP, "lossless").bound_to(PROTECTED)
    for version in (forged, dataclasses.replace(forged, neighbours=None)):
        with pytest.raises(DiffPrivacyError, match="Two keys are for one face"):
            recover(PROTECTED, [lossless(), version])


def test_a_face_beside_the_picture_is_refused():
    with pytest.raises(DiffPrivacyError, match="lies outside the image"):
        recover(PROTECTED, [elsewhere()])


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A protected PNG with a lossless key for each face, and the identity that opens it beside."""
    (tmp_path / "identity").write_text(str(IDENTITY))
    key = lossless()
    png.save(tmp_path / "group.png", PROTECTED, [SEAL.encrypt_key(key.only(i)) for i in range(3)])
    return tmp_path / "group.png"


def recovered(path: Path, *options: str) -> torch.Tensor | None:
    """What the command line brings back; None where it fails."""
    out = path.parent / "out"
    command = ["recover", str(path), "-o", str(out), "--overwrite", *options]
    if not any("passphrase" in option or "identity" in option for option in options):
        command += ["--identity-file", str(path.parent / "identity")]
    return read_picture(out / path.name).rgb if main(command) == 0 else None


def elsewhere() -> RecoveryKey:
    """A key whose face the picture does not have."""
    return dataclasses.replace(lossless().only(0), faces=(face_at(2000),))


STRANGER = Encryptor(recipients=[str(pyrage.x25519.Identity.generate().to_public())])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: b"junk", "no sealed key"),
        (lambda: STRANGER.encrypt(b"x"), "encrypted to other recipients"),
        (lambda: SEAL.encrypt(b"no key"), "no recovery key"),
        (lambda: SEAL.encrypt_key(dataclasses.replace(lossless(), picture="0" * 32)), "belongs to another image"),
        (lambda: SEAL.encrypt_key(forged_key(PROTECTED, FACES[0], MARGIN)), "reach beyond their faces' masks"),
        (lambda: SEAL.encrypt_key(elsewhere()), "lies outside the image"),
        (lambda: pyrage.passphrase.encrypt(b"x", "y"), "none is given"),
        (lambda: b"age-encryption.org/v1\n-> scrypt " + b"A" * 22 + b" 22\n" + b"A" * 80, "work factor is 22"),
    ],
)
def test_injected_keys_are_skipped_and_reported(published, capsys, content, reason, first):
    inject(published, png.SEALED_KEY, content(), first)
    assert torch.equal(recovered(published), ORIGINAL.rgb)
    error = capsys.readouterr().err
    assert "1 of 4 keys skipped" in error
    assert reason in error


@pytest.mark.parametrize("beside", [True, False])
def test_a_chunk_of_keyed_mode_in_a_sealed_picture_is_refused(tmp_path, capsys, beside):
    """It had switched the mode and passed a wrong face off as the original."""
    (tmp_path / "passphrase").write_text("right")
    path = tmp_path / "a.png"
    sealed = Encryptor("right").encrypt_key(lossless())
    png.save(path, PROTECTED, [sealed], beside)
    inject(path, png.KEYED, Public(bytes(16), (FACES[0],), 64, MARGIN).to_bytes())
    options = ["--passphrase-file", str(tmp_path / "passphrase")]
    assert recovered(path, *options) is None
    assert "so somebody changed it" in capsys.readouterr().err
    (tmp_path / "own.age").write_bytes(sealed)
    assert torch.equal(recovered(path, *options, "--key-file", str(tmp_path / "own.age")), ORIGINAL.rgb)


def test_two_chunks_of_keyed_mode_are_refused(tmp_path, capsys):
    (tmp_path / "passphrase").write_text("right")
    public = Public(bytes(16), (FACES[0],), 64, MARGIN).to_bytes()
    plain = encode_png(PROTECTED)
    (tmp_path / "a.png").write_bytes(png.with_chunks(plain, png.KEYED, [public, public]))
    assert recovered(tmp_path / "a.png", "--passphrase-file", str(tmp_path / "passphrase")) is None
    assert "more than once" in capsys.readouterr().err


def test_an_appended_forgery_does_not_win(published, capsys):
    forged = record(PROTECTED, [FACES[0]], None, CROP, "lossless").bound_to(PROTECTED)
    inject(published, png.SEALED_KEY, SEAL.encrypt_key(forged))
    assert recovered(published) is None
    assert "Two keys are for one face" in capsys.readouterr().err
    assert torch.equal(recovered(published, "--faces", "0,1,2"), ORIGINAL.rgb)


def signing_key(folder: Path, name: str) -> tuple[Path, str]:
    """An Ed25519 key pair as OpenSSH writes it: the private file and the public line."""
    key = Ed25519PrivateKey.generate()
    options = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    (folder / name).write_bytes(key.private_bytes(*options))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    (folder / f"{name}.pub").write_text(f"{public} me@home\n")
    return folder / name, public


def test_only_keys_of_the_signer_are_accepted(tmp_path, capsys):
    (tmp_path / "identity").write_text(str(IDENTITY))
    (mine, public), (other, _) = signing_key(tmp_path, "mine"), signing_key(tmp_path, "other")
    forged = record(PROTECTED, [FACES[0]], None, CROP, "lossless").bound_to(PROTECTED)
    by = {
        name: dataclasses.replace(SEAL, signer=read_signing_key(path))
        for name, path in (("mine", mine), ("other", other))
    }
    png.save(
        tmp_path / "a.png",
        PROTECTED,
        [by["mine"].encrypt_key(lossless()), SEAL.encrypt_key(forged), by["other"].encrypt_key(forged)],
    )
    for signer in (public, str(mine.with_suffix(".pub"))):
        assert torch.equal(recovered(tmp_path / "a.png", "--signer", signer), ORIGINAL.rgb)
        assert "2 of 3 keys skipped: The key is not the signer's: it is not signed" in capsys.readouterr().err
    png.save(tmp_path / "b.png", PROTECTED, [by["other"].encrypt_key(forged)])
    assert recovered(tmp_path / "b.png", "--signer", public) is None
    assert "somebody else signed it" in capsys.readouterr().err


def test_a_changed_key_is_not_its_signers(tmp_path):
    path, public = signing_key(tmp_path, "mine")
    data = bytearray(dataclasses.replace(lossless(), prompt="one").to_bytes(read_signing_key(path)))
    RecoveryKey.from_bytes(bytes(data), read_signer(public))
    place = data.index(b'\\"prompt\\": \\"one\\"') + 15
    data[place] = ord("O")
    with pytest.raises(DiffPrivacyError, match="or it was changed"):
        RecoveryKey.from_bytes(bytes(data), read_signer(public))


@pytest.mark.parametrize("text", ["ssh-rsa AAAA", "ssh-ed25519 nonsense", "/no/such/file", "ssh-ed25519 " + "A" * 68])
def test_what_is_no_signer_is_one_clear_error(text):
    with pytest.raises(DiffPrivacyError):
        read_signer(text)
    with pytest.raises(DiffPrivacyError):
        read_signing_key(Path(text))


# Names of key files, and marks in text files.


@pytest.mark.parametrize("count", [2, 12, 101])
def test_numbers_of_key_files_sort_as_numbers(tmp_path, count):
    png.save(tmp_path / "a.png", PROTECTED, [str(i).encode() for i in range(count)], beside=True)
    assert png.carried(tmp_path / "a.png") == [str(i).encode() for i in range(count)]


def test_key_files_of_other_pictures_are_not_taken(tmp_path):
    for name in ("a.png", "a.png.png", "a.png.copy.png"):
        png.save(tmp_path / name, PROTECTED, [name.encode()], beside=True)
    (tmp_path / "a.png.x.age").write_bytes(b"another")
    assert png.carried(tmp_path / "a.png") == [b"a.png"]
    assert png.carried(tmp_path / "a.png.png") == [b"a.png.png"]


def test_a_video_is_recovered_beside_another_of_nearly_its_name(tmp_path):
    (tmp_path / "identity").write_text(str(IDENTITY))
    for name in ("trip", "trip.part2", "trip.2"):
        (tmp_path / f"{name}.mp4").write_bytes(b"protected")
        (tmp_path / f"{name}.mov.age").write_bytes(SEAL.encrypt(name.encode()))
    out = tmp_path / "out"
    for name in ("trip", "trip.part2", "trip.2"):
        command = ["recover", str(tmp_path / f"{name}.mp4"), "-o", str(out)]
        assert main([*command, "--identity-file", str(tmp_path / "identity")]) == 0
        assert (out / f"{name}.mov").read_bytes() == name.encode()


MARKED: list[tuple[str, Callable[[str], bytes]]] = [
    ("plain", str.encode),
    ("byte order mark", lambda text: b"\xef\xbb\xbf" + text.encode()),
    ("and the line end of Windows", lambda text: b"\xef\xbb\xbf" + text.encode() + b"\r\n"),
]


@pytest.mark.parametrize(("name", "write"), MARKED)
def test_a_byte_order_mark_is_no_part_of_a_secret(tmp_path, published, name, write):
    (tmp_path / "identity").write_bytes(write(str(IDENTITY)))
    assert torch.equal(recovered(published), ORIGINAL.rgb)
    path = tmp_path / "b.png"
    png.save(path, PROTECTED, [Encryptor("päss word").encrypt_key(lossless())])
    (tmp_path / "passphrase").write_bytes(write("päss word"))
    assert torch.equal(recovered(path, "--passphrase-file", str(tmp_path / "passphrase")), ORIGINAL.rgb)


def test_text_of_another_encoding_is_refused_with_the_reason(tmp_path, published, capsys):
    (tmp_path / "identity").write_bytes(str(IDENTITY).encode("utf-16"))
    assert recovered(published) is None
    assert "no UTF-8 text; save it as UTF-8" in capsys.readouterr().err


def test_keys_of_openssh_sign(tmp_path):
    """As ssh-keygen writes them."""
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    except FileNotFoundError:
        pytest.skip("keys of OpenSSH are made with ssh-keygen: install openssh-client")
    data = lossless().to_bytes(read_signing_key(tmp_path / "key"))
    RecoveryKey.from_bytes(data, read_signer(str(tmp_path / "key.pub")))
