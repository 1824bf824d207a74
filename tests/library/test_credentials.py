"""Content credentials: others read who signed and that a model was used, and nothing of the original."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import c2pa
import numpy as np
import pytest
import torch

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.media.credentials import KINDS, read_credentials
from diffprivacy.media.disclosure import SOURCE_TYPE, disclose, disclose_video
from diffprivacy.media.images import Picture, encode_picture, read_picture
from diffprivacy.recovery import png
from testing.certificates import write_certificate
from testing.folders import anonymize, photo
from testing.videos import picture, pixels, write_source


def manifest(path: Path) -> dict:
    """The only manifest of a file, which its reader finds valid."""
    with path.open("rb") as file, c2pa.Reader(KINDS[path.suffix], file) as reader:
        content = json.loads(reader.json())
    assert content["validation_state"] == "Valid"
    (only,) = content["manifests"].values()
    return only


def check_what_is_said(path: Path) -> None:
    said = manifest(path)
    assert said["signature_info"]["issuer"] == "Studio" and "time" not in said["signature_info"]
    assert [a["data"] for a in said["assertions"]] == [
        {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]}
    ]
    assert not said.keys() & {"thumbnail", "ingredients", "title"}


@pytest.mark.usefixtures("models_loaded_once", "short_keys")
def test_a_protected_photo_is_signed_and_says_nothing_of_the_original(tmp_path, monkeypatch):
    """And nothing is asked of a network, and a key that travels inside stays."""
    certificate, key = write_certificate(tmp_path)
    (tmp_path / "passphrase.txt").write_text("correct horse")
    source, out = photo(tmp_path / "jane-doe.jpg"), tmp_path / "out.png"
    monkeypatch.setattr(socket, "socket", None)
    signing = ["--c2pa-certificate", certificate, "--c2pa-key", key, "--unguided"]
    assert anonymize(source, out, *signing, "--passphrase-file", tmp_path / "passphrase.txt") == 0
    read_picture(out)
    assert len(png.carried(out)) == 1
    check_what_is_said(out)
    assert b"jane" not in out.read_bytes()
    if shutil.which("exiftool"):
        (tags,) = json.loads(subprocess.run(["exiftool", "-j", out], check=True, capture_output=True).stdout)
        assert tags["JUMDLabel"] == "c2pa" and SOURCE_TYPE in json.dumps(tags)
        assert not [tag for tag in tags if "Thumbnail" in tag or "Ingredient" in tag]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_formats_are_signed_beside_the_mark(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(disclose(encode_picture(Picture(torch.rand(16, 24, 3)), suffix)))
    before = read_picture(path).rgb
    read_credentials(*write_certificate(tmp_path)).sign(path, suffix)
    check_what_is_said(path)
    assert torch.equal(read_picture(path).rgb, before)


def test_a_film_is_signed_and_plays_as_before(tmp_path):
    film = write_source(tmp_path / "film.mp4", [picture(i) for i in range(3)], sound=("aac",))
    before = pixels(film)
    disclose_video(film)
    read_credentials(*write_certificate(tmp_path)).sign(film, ".mp4")
    assert manifest(film)["signature_info"]["issuer"] == "Studio"
    assert np.array_equal(pixels(film), before)


def test_what_cannot_sign_is_said_before_the_work(tmp_path, capsys):
    certificate, key = write_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = write_certificate(tmp_path / "other")
    with pytest.raises(DiffPrivacyError, match=r"It cannot sign .*: give the PEM chain of a certificate"):
        read_credentials(other, key)
    with pytest.raises(DiffPrivacyError, match="It holds no private key that can sign"):
        read_credentials(certificate, certificate)
    source = photo(tmp_path / "a.png")
    for options, message in (
        (["--c2pa-key", key], "--c2pa-certificate and --c2pa-key go together"),
        (["--c2pa-certificate", certificate, "--c2pa-key", tmp_path / "none.pem"], "none.pem: there is no such file"),
    ):
        assert anonymize(source, tmp_path / "out", *options) != 0
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
