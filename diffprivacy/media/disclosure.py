"""The mark that a model made a part of an image or video: IPTC's digital source type as XMP, and nothing else.

It names no person, tool or time. Where it stands in each format: XMP specification, part 3. The term:
http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
XMP = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>""".encode()

_PNG_HEAD = 33
"""Bytes of a PNG's signature and header chunk."""
_PNG_TEXT = b"XML:com.adobe.xmp" + bytes(5)
"""Keyword of an iTXt chunk, not compressed, without language and translation."""
_JPEG_START = b"\xff\xd8"
_JPEG_NAMESPACE = b"http://ns.adobe.com/xap/1.0/\0"
_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10
_MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def disclose(data: bytes) -> bytes:
    """An encoded PNG, JPEG or WebP without XMP, with the mark added."""
    if data.startswith(b"\x89PNG"):
        content = b"iTXt" + _PNG_TEXT + XMP
        chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
        return data[:_PNG_HEAD] + chunk + data[_PNG_HEAD:]
    if data.startswith(_JPEG_START):
        content = _JPEG_NAMESPACE + XMP
        # After JFIF's own segment, which comes first by its specification.
        end = 4 + struct.unpack_from(">H", data, 4)[0] if data[2:4] == b"\xff\xe0" else 2
        return data[:end] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[end:]
    return _disclose_webp(data)


def disclose_video(path: Path) -> None:
    """Append the mark to an MP4 file, as a box that players skip."""
    with path.open("ab") as file:
        file.write(struct.pack(">I", 8 + len(_MP4_XMP) + len(XMP)) + b"uuid" + _MP4_XMP + XMP)


def _disclose_webp(data: bytes) -> bytes:
    """The file in WebP's extended form, whose first chunk announces what follows."""
    from PIL import Image

    if data[12:16] == b"VP8X":
        head, body = bytearray(data[12:30]), data[30:]
    else:
        image = Image.open(io.BytesIO(data))
        sides = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
        head = bytearray(b"VP8X" + struct.pack("<II", 10, _WEBP_ALPHA if image.mode == "RGBA" else 0) + sides)
        body = data[12:]
    head[8] |= _WEBP_XMP
    xmp = b"XMP " + struct.pack("<I", len(XMP)) + XMP + bytes(len(XMP) % 2)
    content = b"WEBP" + head + body + xmp
    return b"RIFF" + struct.pack("<I", len(content)) + content
