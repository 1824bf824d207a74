"""What a release must hold, checked: ``python -m testing.release`` prints its notes, or what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from diffprivacy import __version__

from . import sbom
from .wheel import ROOT, build_wheel

MOST_BYTES = 20_000_000
"""Of a file in the repository; the embedded UNet has 18 MB."""


def notes(version: str) -> str:
    """The changelog's section of a version, without its heading; empty where there is none."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def problems() -> list[str]:
    """What stands in the way of a release, one line each."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    wrong = [f"{path} has more than {MOST_BYTES:,} bytes" for path in files if path.stat().st_size > MOST_BYTES]
    if not notes(__version__):
        wrong.append(f"CHANGELOG.md has no section [{__version__}]")
    if sbom.FILE.read_text() != sbom.text():
        wrong.append("the bill of materials is old: run python -m testing.sbom")
    wrong += [
        f"{name}: its licence's text {text} is missing"
        for name, (_, text, _) in sbom.SHIPPED.items()
        if not (ROOT / text).is_file()
    ]
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        if f"-{__version__}-" not in wheel.name:
            wrong.append(f"{wheel.name} is not version {__version__}")
        inside = set(zipfile.ZipFile(wheel).namelist())
    texts = {text for _, text, _ in sbom.SHIPPED.values()} - {"LICENSE"}
    wrong += [f"the wheel lacks {text}" for text in sorted(texts - inside)]
    return wrong


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or notes(__version__))
    sys.exit(bool(found))
