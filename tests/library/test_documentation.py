"""The documentation: links resolve, commands are commands, reference pages are what the code says."""

from __future__ import annotations

import re
import shlex
from itertools import chain
from pathlib import Path

import pytest

from diffprivacy.cli import parser
from testing.reference import FOLDER, PAGES, ROOT, blocks

DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "web" / "docs").glob("*.md"),
    ]
)


def heading_anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_resolves(document: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in heading_anchors(path), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_is_one(document: Path):
    """As the parser takes it; they are run in test_readme and test_documented_commands."""
    for line in chain.from_iterable(blocks(document)):
        if line.startswith("diffprivacy "):
            parser().parse_args(shlex.split(line)[1:])
        if line.startswith("python -m "):
            module = line.split()[2]
            assert (ROOT / (module.replace(".", "/") + ".py")).exists() or (ROOT / module / "__main__.py").exists(), (
                line
            )
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


@pytest.mark.parametrize("name", PAGES)
def test_reference_pages_are_what_the_code_says(name: str):
    """``python -m testing.reference`` writes them."""
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name]()


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 6000


def test_pages_named_in_the_readme_are_all_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT).as_posix() in readme, page
