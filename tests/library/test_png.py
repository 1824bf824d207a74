"""Keys inside PNG files: other programs still read the picture, damage is noticed, nothing crashes the reader."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.media.images import Picture, decode_picture, encode_png, read_picture
from diffprivacy.recovery import png
from diffprivacy.recovery.encryption import MAX_SEALED

PICTURE = Picture(torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(1)))
FILE = encode_png(PICTURE)


def test_type_is_ancillary_private_and_safe_to_copy():
    for kind in (png.SEALED_KEY, png.KEYED):
        assert [chr(letter).isupper() for letter in kind] == [False, False, True, False]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_contents_come_back_in_order(contents):
    data = png.with_chunks(FILE, png.SEALED_KEY, contents)
    assert png.read_chunks(data, png.SEALED_KEY) == contents
    assert png.read_chunks(data, png.KEYED) == []


def test_other_programs_see_the_same_picture():
    data = png.with_chunks(FILE, png.SEALED_KEY, [b"a key", b"another"])
    plain, carrying = (np.asarray(Image.open(io.BytesIO(content))) for content in (FILE, data))
    assert np.array_equal(plain, carrying)
    assert torch.equal(decode_picture(data, "x").rgb, decode_picture(FILE, "x").rgb)


def test_a_picture_saved_anew_lost_its_key(tmp_path):
    png.save(tmp_path / "a.png", PICTURE, [b"a key"])
    assert png.carried(tmp_path / "a.png") == [b"a key"]
    Image.open(tmp_path / "a.png").save(tmp_path / "anew.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "anew.jpg")
    assert png.carried(tmp_path / "anew.png") == png.carried(tmp_path / "anew.jpg") == []


def test_keys_lie_beside_under_the_pictures_name(tmp_path):
    png.save(tmp_path / "[a].png", PICTURE, [b"one"], beside=True)
    png.save(tmp_path / "b.png", PICTURE, [b"one", b"two"], beside=True)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("[a].png", "[a].png.age"),
        *("b.png", "b.png.0.age", "b.png.1.age"),
    }
    assert png.carried(tmp_path / "[a].png") == [b"one"]
    assert png.carried(tmp_path / "b.png") == [b"one", b"two"]
    assert (tmp_path / "b.png").read_bytes() == FILE


@pytest.mark.parametrize("beside", [True, False])
def test_losing_power_loses_no_key(tmp_path, monkeypatch, beside):
    """Whichever file operation is the last one: a picture that is there has its key, and half files have other names."""
    import os

    done, limit = 0, 0
    replace = os.replace

    def stopping(operation):
        def step(*arguments, **options):
            nonlocal done
            done += 1
            if done > limit:
                raise KeyboardInterrupt
            return operation(*arguments, **options)

        return step

    monkeypatch.setattr(os, "fsync", stopping(os.fsync))
    monkeypatch.setattr("pathlib.Path.replace", stopping(replace))
    for limit in range(20):
        done = 0
        path = tmp_path / f"{limit}.png"
        try:
            png.save(path, PICTURE, [b"a key"], beside)
        except KeyboardInterrupt:
            if path.exists():
                assert torch.equal(read_picture(path).rgb, decode_picture(FILE, "x").rgb)
                assert png.carried(path) == [b"a key"]
        else:
            break
    assert limit > 1, "interrupted at several moments, before it went through"
    assert png.carried(path) == [b"a key"]


@given(st.data())
@settings(max_examples=300)
def test_damage_is_noticed(data):
    carrying = bytearray(png.with_chunks(FILE, png.SEALED_KEY, [b"a sealed key"]))
    if data.draw(st.booleans()):
        carrying[data.draw(st.integers(0, len(carrying) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del carrying[data.draw(st.integers(0, len(carrying) - 1)) :]
    with pytest.raises(DiffPrivacyError, match="PNG"):
        png.read_chunks(bytes(carrying), png.SEALED_KEY)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_documented_error(content, signed):
    with pytest.raises(DiffPrivacyError):
        png.read_chunks(png.SIGNATURE + content if signed else content, png.SEALED_KEY)


def test_endless_and_huge_files_are_refused():
    empty = struct.pack(">I4sI", 0, b"teST", zlib.crc32(b"teST"))
    with pytest.raises(DiffPrivacyError, match="more than"):
        png.read_chunks(png.SIGNATURE + empty * (png.MAX_CHUNKS + 1), png.SEALED_KEY)
    with pytest.raises(DiffPrivacyError, match="are not read"):
        png.read_chunks(png.with_chunks(FILE, png.SEALED_KEY, [bytes(MAX_SEALED + 1)]), png.SEALED_KEY)
