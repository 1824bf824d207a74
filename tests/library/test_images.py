"""Pictures come in as they look and go out as nothing but pixels."""

import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from diffprivacy.media.images import Picture, decode_picture, encode_png, read_picture, write_picture
from testing.image_files import ADOBE_RGB, deep_png, encoded, icc_profile, photo, tiff, transparent_palette

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


def levels(picture: Picture) -> np.ndarray:
    channels = picture.rgb if picture.alpha is None else torch.cat((picture.rgb, picture.alpha[..., None]), dim=2)
    assert channels.dtype == torch.float32
    return (channels.double().numpy() * (2**picture.bit_depth - 1)).round().astype(int)


@settings(max_examples=30)
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
