"""Pictures come in as they look and go out as nothing but pixels."""

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
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.media.images import Picture, decode_picture, encode_png, read_picture, write_picture
from testing.clear_errors import assert_one_clear_error

RNG = np.random.default_rng(0)
SECRET = "Jane Doe, 12 Elm Street"


def png_chunks(data: bytes) -> list[str]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    names, at = [], 8
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += 12 + length
    return names


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def levels(picture: Picture) -> np.ndarray:
    channels = picture.rgb if picture.alpha is None else torch.cat((picture.rgb, picture.alpha[..., None]), dim=2)
    assert channels.dtype == torch.float32
    return (channels.double().numpy() * (2**picture.bit_depth - 1)).round().astype(int)


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    """Smooth in both directions and different under every rotation and reflection."""
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 255 // (width - 1), y * 255 // (height - 1), (x * 2 + y) % 128), axis=-1).astype(np.uint8)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.sampled_from([3, 4]),
    depth=st.sampled_from([8, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_png_round_trip_keeps_every_level(height, width, channels, depth, seed):
    top = 2**depth - 1
    pixels = np.random.default_rng(seed).integers(0, top, (height, width, channels), endpoint=True)
    values = torch.from_numpy(pixels.astype(np.float32)) / top
    data = encode_png(Picture(values[..., :3], values[..., 3] if channels == 4 else None, depth))
    read = decode_picture(data, "round trip")
    assert read.bit_depth == depth
    assert (read.alpha is not None) == (channels == 4)
    np.testing.assert_array_equal(levels(read), pixels)
    assert encode_png(read) == data


def test_every_16_bit_level_survives():
    ramp = torch.arange(65536, dtype=torch.float32).view(256, 256, 1).expand(-1, -1, 3) / 65535
    read = decode_picture(encode_png(Picture(ramp, bit_depth=16)), "ramp")
    assert torch.equal(read.rgb, ramp)


def test_other_decoders_see_the_same_pixels(tmp_path):
    pixels = photo()
    write_picture(tmp_path / "photo.png", Picture(torch.from_numpy(pixels).float() / 255))
    with Image.open(tmp_path / "photo.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_written_file_holds_pixels_and_nothing_else(tmp_path):
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = SECRET
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", SECRET)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "source.png"
    image.save(source, exif=exif, pnginfo=text, icc_profile=profile, dpi=(300, 300))
    assert {"eXIf", "tEXt", "iCCP", "pHYs"} <= set(png_chunks(source.read_bytes()))

    write_picture(tmp_path / "clean.png", read_picture(source))
    data = (tmp_path / "clean.png").read_bytes()
    assert set(png_chunks(data)) == {"IHDR", "IDAT", "IEND"}
    assert SECRET.encode() not in data
    np.testing.assert_array_equal(levels(decode_picture(data, "clean")), photo())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = encoded(Image.fromarray(photo()), kind, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), int)
    np.testing.assert_array_equal(levels(decode_picture(data, "photo")), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_16_bits(orientation):
    grey = photo()[..., 0].astype(np.uint16) * 257 + 3
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(Image.fromarray(grey), exif=exif)))), int
    )
    as_tiff = tiff(grey, photometric="minisblack", extratags=[(0x0112, "H", 1, orientation, False)])
    for data in (encoded(Image.fromarray(grey), exif=exif), as_tiff):
        picture = decode_picture(data, "photo")
        assert picture.bit_depth == 16
        np.testing.assert_array_equal(levels(picture), upright[..., None].repeat(3, axis=2))


def transparent_palette() -> Image.Image:
    image = Image.fromarray(photo()).quantize(8)
    image.info["transparency"] = bytes([0, 128, 255])
    return image


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(photo()), "PNG"),
        (Image.fromarray(photo()), "BMP"),
        (Image.fromarray(photo()), "TIFF"),
        (Image.fromarray(photo()).convert("L"), "PNG"),
        (Image.fromarray(photo()).convert("L"), "JPEG"),
        (Image.fromarray(photo()).convert("1"), "PNG"),
        (Image.fromarray(photo()).quantize(16), "PNG"),
        (Image.fromarray(np.dstack((photo(), photo()[..., 1]))), "PNG"),
        (Image.fromarray(np.dstack((photo(), photo()[..., 1]))), "TIFF"),
        (Image.fromarray(photo()[..., :2], mode="LA"), "PNG"),
        (transparent_palette(), "PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_kinds_of_pictures(image, kind):
    data = encoded(image, kind)
    shown = Image.open(io.BytesIO(data)).convert("RGBA")
    picture = decode_picture(data, "photo")
    np.testing.assert_array_equal(levels(picture)[..., :3], np.asarray(shown)[..., :3])
    if image.has_transparency_data:
        np.testing.assert_array_equal(levels(picture)[..., 3], np.asarray(shown)[..., 3])
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_the_colour_it_prints(kind):
    inks = {(255, 0, 0, 0): (0, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}
    for ink, colour in inks.items():
        picture = decode_picture(encoded(Image.new("CMYK", (8, 8), ink), kind), "print")
        assert np.abs(levels(picture) - colour).max() <= 2


def test_16_bit_rgb_and_alpha_from_tiff():
    pixels = RNG.integers(0, 65536, (6, 9, 4), dtype=np.uint16)
    data = tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])
    picture = decode_picture(data, "scan")
    assert picture.bit_depth == 16
    np.testing.assert_array_equal(levels(picture), pixels)


def icc_profile(gamma: float, primaries: dict[str, tuple[float, float, float]]) -> bytes:
    """A minimal ICC version 2 profile: primaries (XYZ at D50) and a gamma; grey if there are no primaries."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    description = b"test\0"
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(description)) + description + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
        **{f"{name}XYZ".encode(): b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in primaries.items()},
        **{f"{name}TRC".encode(): curve for name in (primaries or "k")},
    }
    table, body = b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(
        ">I4s4s4s4s4s12x4s", 132 + len(table + body), b"test", b"\2\x10\0\0", b"mntr", space, b"XYZ ", b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(*white)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


ADOBE_RGB = {"r": (0.60974, 0.31111, 0.01947), "g": (0.20528, 0.62567, 0.06087), "b": (0.14919, 0.06322, 0.74457)}
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def srgb_levels(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("deep", [False, True])
def test_wide_gamut_is_converted_to_srgb(deep):
    pixels = RNG.integers(60, 200, (16, 16, 3), dtype=np.uint8)
    profile = icc_profile(2.2, ADOBE_RGB)
    if deep:
        data = tiff(pixels.astype(np.uint16) * 257, photometric="rgb", iccprofile=profile)
    else:
        data = encoded(Image.fromarray(pixels), icc_profile=profile)
    linear = (pixels / 255) ** 2.2 @ np.array([ADOBE_RGB[name] for name in "rgb"]) @ np.linalg.inv(SRGB).T
    in_gamut = (linear.min(axis=-1) > 0) & (linear.max(axis=-1) < 1)
    assert in_gamut.mean() > 0.5
    read = levels(decode_picture(data, "photo"))
    assert np.abs(read - srgb_levels(linear))[in_gamut].max() < 2.5
    assert np.abs(read - pixels).max() > 10


def test_grey_profile_is_converted_to_srgb():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = encoded(Image.fromarray(grey), icc_profile=icc_profile(1.8, {}))
    read = levels(decode_picture(data, "photo"))
    assert np.abs(read - srgb_levels((grey / 255) ** 1.8)[..., None]).max() < 2.5


def deep_png(pixels: np.ndarray, profile: bytes) -> bytes:
    """A PNG of 16 bits a channel, (H,W,C) with 1 to 4 channels, written by hand: Pillow writes no grey with alpha."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">II5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (
        (b"IHDR", head),
        (b"iCCP", b"p\0\0" + zlib.compress(profile)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("kind", ["grey", "grey with alpha", "tiff", "colour with alpha"])
def test_profiles_of_16_bits_are_followed(kind):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16, 1) * 257
    alpha = grey[::-1]
    data = {
        "grey": lambda: deep_png(grey, icc_profile(1.8, {})),
        "grey with alpha": lambda: deep_png(np.dstack((grey, alpha)), icc_profile(1.8, {})),
        "tiff": lambda: tiff(grey[..., 0], photometric="minisblack", iccprofile=icc_profile(1.8, {})),
        "colour with alpha": lambda: deep_png(np.dstack((grey, grey, grey, alpha)), icc_profile(1.8, ADOBE_RGB)),
    }[kind]()
    picture = decode_picture(data, "photo")
    read = picture.rgb.numpy() * 255
    assert np.abs(read - srgb_levels((grey / 65535) ** 1.8)).max() < 2.5
    assert (picture.alpha is not None) == ("alpha" in kind)
    if picture.alpha is not None:
        assert np.abs(picture.alpha.numpy() - alpha[..., 0] / 65535).max() < 1 / 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_in_srgb_stay_16_bits(channels):
    pixels = RNG.integers(0, 65535, (8, 8, channels), endpoint=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode_picture(deep_png(pixels, profile), "photo")
    assert picture.bit_depth == 16
    expected = {1: [0, 0, 0], 2: [0, 0, 0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    np.testing.assert_array_equal(levels(picture), pixels[..., expected])


def test_srgb_profile_leaves_every_level():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(Image.fromarray(photo()), icc_profile=profile)
    np.testing.assert_array_equal(levels(decode_picture(data, "photo")), photo())


def test_damaged_profile_is_ignored():
    data = encoded(Image.fromarray(photo()), icc_profile=b"no profile at all")
    np.testing.assert_array_equal(levels(decode_picture(data, "photo")), photo())


def test_bad_files_get_one_clear_error(tmp_path):
    assert_one_clear_error(read_picture, tmp_path / "missing.jpg", "no such file")
    assert_one_clear_error(read_picture, tmp_path, "folder")

    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    assert_one_clear_error(read_picture, text, "not a picture", "JPEG", "PNG")

    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    assert_one_clear_error(read_picture, empty, "not a picture")

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


@settings(deadline=None, max_examples=200)
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


@settings(deadline=None, max_examples=400)
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
