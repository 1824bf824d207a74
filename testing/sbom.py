"""What the pack ships and needs, with licences, as CycloneDX 1.6 (https://cyclonedx.org).

python -m testing.sbom     writes diffprivacy/sbom.cdx.json
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "diffprivacy" / "sbom.cdx.json"
OWN = ("Apache-2.0", "LICENSE", "https://github.com/diff-privacy/diff-privacy")
"""SPDX identifier, file of the licence's text, and origin of what was made for this pack."""
SHIPPED = {
    "backends/clip_merges.txt.gz": ("MIT", "diffprivacy/backends/clip.LICENSE", "https://github.com/openai/CLIP"),
    "demo/weights/autoencoder.safetensors": OWN,
    "demo/weights/dlib.safetensors": (
        "CC0-1.0",
        "diffprivacy/demo/MODEL_CARD.md",
        "https://github.com/davisking/dlib-models",
    ),
    "demo/portraits.webp": (
        "CC-PDM-1.0",
        "diffprivacy/demo/PORTRAITS.md",
        "https://github.com/voteview/member_photos",
    ),
    "demo/weights/image_encoder.safetensors": OWN,
    "demo/weights/mobileface.safetensors": (
        "MIT",
        "diffprivacy/demo/weights/MOBILEFACE_LICENSE.md",
        "https://github.com/becauseofAI/MobileFace",
    ),
    "demo/weights/msi.safetensors": OWN,
    "demo/weights/text_encoder.safetensors": OWN,
    "demo/weights/unet-0.1.safetensors": OWN,
    "demo/weights/unet.safetensors": OWN,
    "faces/facemesh.safetensors": (
        "Apache-2.0",
        "diffprivacy/faces/facemesh.LICENSE",
        "https://github.com/google-ai-edge/mediapipe",
    ),
    "faces/yunet_n.onnx": (
        "Apache-2.0",
        "diffprivacy/faces/yunet.LICENSE",
        "https://github.com/ShiqiYu/libfacedetection.train",
    ),
    "identity/faces.webp": (
        "CC-PDM-1.0",
        "diffprivacy/identity/FACES.md",
        "https://github.com/voteview/member_photos",
    ),
    "personas/faces.webp": (
        "CC-PDM-1.0",
        "diffprivacy/personas/FACES.md",
        "https://github.com/voteview/member_photos",
    ),
}
"""Every binary file of the package: its licence, the file with its text, and where it comes from."""


def binaries() -> set[str]:
    """The files of the package that are no text."""
    return {
        str(path.relative_to(FILE.parent))
        for path in FILE.parent.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and b"\0" in path.read_bytes()
    }


def bill() -> dict[str, Any]:
    """The bill of materials."""
    section = (ROOT / "pyproject.toml").read_text().split("\n[project]\n")[1].split("\n[")[0]
    project = dict(re.findall(r'^(name|version|license) = "(.*)"$', section, re.MULTILINE))
    shipped = [
        {
            "type": "data" if name.endswith((".gz", ".webp")) else "machine-learning-model",
            "name": name,
            "licenses": [{"license": {"id": licence}}],
            "externalReferences": [{"type": "website", "url": origin}],
            "properties": [{"name": "diffprivacy:licence-text", "value": text}],
        }
        for name, (licence, text, origin) in SHIPPED.items()
    ]
    needed = [
        {"type": "library", "name": name, "properties": [{"name": "diffprivacy:versions", "value": versions}]}
        for name, versions in re.findall(
            r"^([A-Za-z0-9_.-]+)(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE
        )
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": project["name"],
                "version": project["version"],
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": shipped + needed,
    }


def text() -> str:
    """The bill as it is kept."""
    return json.dumps(bill(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
