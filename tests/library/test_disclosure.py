"""The mark that a model made a part: other programs read it, it says nothing else, and the pixels stay."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from diffprivacy.media.disclosure import SOURCE_TYPE, disclose, disclose_video
from diffprivacy.media.images import Picture, decode_picture, encode_picture
from diffprivacy.recovery import png
from testing.videos import picture, pixels, write_source

RGB = torch.rand(21, 34, 3, generator=torch.Generator().manual_seed(1))
ALPHA = torch.linspace(0, 1, 34).repeat(21, 1)
KINDS = {
    "rgb.png": Picture(RGB),
    "rgba.png": Picture(RGB, ALPHA),
    "deep.png": Picture(RGB, bit_depth=16),
    "rgb.jpg": Picture(RGB),
    "rgb.webp": Picture(RGB),
    "rgba.webp": Picture(RGB, ALPHA),
}
needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="whether others read our mark is asked of exiftool: install exiftool"
)


def encoded(name: str) -> bytes:
    return encode_picture(KINDS[name], Path(name).suffix)


def tags(path: Path) -> dict[str, str]:
    """What exiftool reads of a file, without what it knows from the file system and the pixels' format."""
    command = ["exiftool", "-j", "-G0", "-a", "-n", str(path)]
    (read,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    formats = ("SourceFile", "ExifTool", "File", "PNG", "JFIF", "RIFF", "Composite", "QuickTime")
    return {name: value for name, value in read.items() if not name.startswith(formats)}


@pytest.mark.parametrize("name", KINDS)
def test_the_pixels_stay_and_other_programs_find_the_mark(name):
    before, after = encoded(name), disclose(encoded(name))
    plain, marked = decode_picture(before, name), decode_picture(after, name)
    assert torch.equal(plain.rgb, marked.rgb) and plain.bit_depth == marked.bit_depth
    assert (plain.alpha is None) == (marked.alpha is None)
    if plain.alpha is not None and marked.alpha is not None:
        assert torch.equal(plain.alpha, marked.alpha)
    image = Image.open(io.BytesIO(after))
    image.load()
    (description,) = ElementTree.fromstring(image.info["xmp"]).findall(".//{*}Description")
    assert sorted(description.attrib.values()) == ["", SOURCE_TYPE]


@needs_exiftool
@pytest.mark.parametrize("name", KINDS)
def test_exiftool_reads_the_mark_and_nothing_else(tmp_path, name):
    data = disclose(encoded(name))
    if name.endswith(".png"):
        data = png.with_chunks(data, png.SEALED_KEY, [b"a key"])
    (tmp_path / name).write_bytes(data)
    assert tags(tmp_path / name) == {"XMP:DigitalSourceType": SOURCE_TYPE}


@needs_exiftool
def test_exiftool_reads_the_mark_of_an_mp4_and_players_skip_it(tmp_path):
    path = write_source(tmp_path / "clip.mp4", [picture(number) for number in range(3)])
    before, frames = tags(path), pixels(path)
    disclose_video(path)
    assert tags(path) == before | {"XMP:DigitalSourceType": SOURCE_TYPE}
    assert np.array_equal(frames, pixels(path))
