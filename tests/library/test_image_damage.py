"""Bad image files, and what stops on the way: one clear error, no memory taken, and no half file."""

import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.media.images import Picture, decode_picture, encode_png, levels, read_picture, write_picture
from testing.clear_errors import assert_one_clear_error
from testing.image_files import deep_png, encoded, icc_profile, photo, tiff, transparent_palette

RNG = np.random.default_rng(0)


def test_bad_files_get_one_clear_error(tmp_path):
    assert_one_clear_error(read_picture, tmp_path / "missing.jpg", "no such file")
    assert_one_clear_error(read_picture, tmp_path, "folder")

    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    assert_one_clear_error(read_picture, text, "not an image", "JPEG", "PNG")

    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    assert_one_clear_error(read_picture, empty, "not an image")

    truncated = tmp_path / "truncated.png"
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    truncated.write_bytes(encoded(noise)[:5000])
    assert_one_clear_error(read_picture, truncated, "truncated")

    header = struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    good = encoded(Image.fromarray(photo()))
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb.write_bytes(good[:16] + header + crc + good[33:])
    assert_one_clear_error(read_picture, bomb, "too large")

    floats = tmp_path / "floats.tif"
    floats.write_bytes(tiff(RNG.random((8, 8), dtype=np.float32)))
    assert_one_clear_error(read_picture, floats, "mode F", "16 bits")


def test_pictures_that_would_take_too_much_memory_are_refused_by_their_head(tmp_path):
    """Black pixels: a thousandth of their size as a file."""
    rows = zlib.compress(bytes(20_000 * 4 * 2 + 1) * 100)
    head = struct.pack(">II5B", 20_000, 8_000, 16, 6, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )
    (tmp_path / "deep.png").write_bytes(data)
    assert_one_clear_error(read_picture, tmp_path / "deep.png", "20000x8000 pixels take 1280 MB", "make it smaller")

    blank = encoded(Image.new("RGB", (8, 8)), "BMP")
    (tmp_path / "wide.bmp").write_bytes(blank[:18] + struct.pack("<ii", 14_000, 16_000) + blank[26:])
    assert_one_clear_error(read_picture, tmp_path / "wide.bmp", "too large")


@pytest.mark.parametrize("name", [b"IDAT", b"teXt", b"IEND"])
def test_a_chunk_that_claims_two_gigabytes_takes_none(name):
    """After the picture itself, where Pillow does not look any more."""
    data = encode_png(Picture(torch.rand(4, 4, 3), bit_depth=16))
    long = data[:-12] + struct.pack(">I4s", 2**31 - 8, name) + b"abc"
    tracemalloc.start()
    with pytest.raises(DiffPrivacyError, match="long is damaged"):
        decode_picture(long, "long")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_pipes_devices_and_long_files_are_refused_unread(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert_one_clear_error(read_picture, tmp_path / "pipe.png", "a pipe or a device")
    assert_one_clear_error(read_picture, tmp_path / "endless.png", "a pipe or a device")
    assert_one_clear_error(read_picture, tmp_path / "loop.png", "cannot be read")
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(2**31)
    assert_one_clear_error(read_picture, tmp_path / "long.png", "2147 MB", "make it smaller")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "photo.png")
    assert read_picture(tmp_path / "link.png").rgb.shape == (24, 40, 3)


SAMPLES = {
    "grey png with a profile": deep_png(RNG.integers(0, 65535, (9, 9, 2)), icc_profile(1.8, {})),
    "cmyk jpeg": encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG"),
    "palette png": encoded(transparent_palette()),
    "deflated tiff": tiff(photo().astype(np.uint16) * 257, photometric="rgb", compression="zlib"),
    "rotated webp": encoded(Image.fromarray(photo()), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "png": encoded(Image.fromarray(photo())),
    "16-bit png": encode_png(Picture(torch.from_numpy(photo()).float() / 255, bit_depth=16)),
    "jpeg": encoded(Image.fromarray(photo()), "JPEG"),
    "webp": encoded(Image.fromarray(photo()), "WEBP"),
    "tiff": encoded(Image.fromarray(photo()), "TIFF", compression="tiff_lzw"),
    "bmp": encoded(Image.fromarray(photo()), "BMP"),
}


@settings(max_examples=200)
@given(kind=st.sampled_from(sorted(SAMPLES)), data=st.data())
def test_a_cut_file_is_an_error_or_complete(kind, data):
    whole = SAMPLES[kind]
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        picture = decode_picture(cut, "cut")
    except DiffPrivacyError as error:
        assert "cut" in str(error)
    else:
        assert torch.equal(picture.rgb, decode_picture(whole, "whole").rgb)


def with_checksums(data: bytes) -> bytes:
    """The same chunks of a PNG, each with the checksum of what it holds."""
    made, at = data[:8], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        content = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + content + struct.pack(">I", zlib.crc32(content))
        at += 12 + length
    return made + data[at:]


@settings(max_examples=400)
@given(kind=st.sampled_from(sorted(SAMPLES)), data=st.data())
def test_a_damaged_file_is_an_error_or_a_picture(kind, data):
    """Bytes changed, put in, taken out, and repeated; PNG's checksums made right, so that what they guard is read."""
    damaged = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        length = data.draw(st.integers(1, 16))
        new = data.draw(st.binary(min_size=1, max_size=8) | st.just(bytes(damaged[at : at + length])))
        damaged[at : at + data.draw(st.sampled_from([0, 1, len(new), length]))] = new
    if "png" in kind:
        damaged = with_checksums(bytes(damaged))
    try:
        picture = decode_picture(bytes(damaged), "damaged")
    except DiffPrivacyError as error:
        assert "damaged" in str(error)
    else:
        assert picture.rgb.shape[2] == 3


def test_a_name_that_is_not_png_is_refused(tmp_path):
    with pytest.raises(DiffPrivacyError, match=r"out\.jpg.*\.png"):
        write_picture(tmp_path / "out.jpg", Picture(torch.zeros(2, 2, 3)))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_a_clear_error(tmp_path):
    path = tmp_path / "missing" / "out.png"
    with pytest.raises(DiffPrivacyError, match="cannot be written") as caught:
        write_picture(path, Picture(torch.zeros(2, 2, 3)))
    assert str(path) in str(caught.value)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    write_picture(path, Picture(torch.zeros(2, 2, 3)))
    before = path.read_bytes()

    def disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(DiffPrivacyError, match="No space left"):
        write_picture(path, Picture(torch.ones(2, 2, 3)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_animations_and_pages_are_refused(kind, options):
    """Only one would be protected, and the others lost."""
    first, second = (Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 200))
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    with pytest.raises(DiffPrivacyError, match=r"photo holds 2 frames or pages"):
        decode_picture(data, "photo")


def test_a_thumbnail_is_no_page():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(photo(), photometric="rgb")
        writer.write(np.zeros((4, 4, 3), np.uint8), photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(levels(decode_picture(file.getvalue(), "photo").rgb, 8), photo())


@pytest.mark.parametrize("tag", [256, 257, 258, 259, 262, 273, 277, 278, 279])
@pytest.mark.parametrize("pages", [1, 2])
def test_a_tiff_whose_last_page_lacks_a_tag_is_an_error_or_a_picture(tag, pages):
    """Pillow raises other errors for these than for files that end too early."""
    more = [Image.fromarray(photo())] * (pages - 1)
    whole = encoded(Image.fromarray(photo()), "TIFF", save_all=True, append_images=more)
    entry = max(whole.rfind(struct.pack("<HH", tag, kind)) for kind in (3, 4))
    broken = whole[:entry] + struct.pack("<H", 60000 + tag) + whole[entry + 2 :]
    try:
        decode_picture(broken, "broken.tiff")
    except DiffPrivacyError as error:
        assert "broken.tiff" in str(error)
