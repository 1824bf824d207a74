"""The help pages, as files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "web" / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_page_shows_a_picture(page: Path):
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", page.read_text())
    assert pictures
    for name in pictures:
        with Image.open(DOCS / name) as picture:
            picture.load()
