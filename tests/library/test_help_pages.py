"""The help pages, as files: ``ID.md`` in English, and ``ID/zh.md``, which the page takes for a Chinese user."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ENGLISH, CHINESE = (
    json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")) for language in ("en", "zh")
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def both(page: Path) -> tuple[str, str]:
    return page.read_text(encoding="utf-8"), (DOCS / page.stem / "zh.md").read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each row of each table, its header first."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[row.strip("| ").split(" | ") for row in table.splitlines() if "---" not in row] for table in found]


def shown_names(node: str, kind: str) -> dict[str, str]:
    """How a Chinese user sees each of a node's inputs or outputs."""
    lists = [texts[node].get(f"{kind}s", {}) for texts in (ENGLISH, CHINESE)]
    return {entry["name"]: lists[1][key]["name"] for key, entry in lists[0].items()}


@each_page
def test_every_page_shows_a_picture(page: Path):
    """In both languages, from the same folder: the page looks for pictures beside ``ID.md``."""
    for text in both(page):
        pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
        assert pictures
        for name in pictures:
            with Image.open(DOCS / name) as picture:
                picture.load()


def test_every_node_has_a_page_in_both_languages():
    assert {page.stem for page in PAGES} == ENGLISH.keys()
    assert {page.parent.name for page in DOCS.glob("*/zh.md")} == ENGLISH.keys()


@each_page
def test_chinese_tables_name_inputs_and_outputs_as_the_node_does(page: Path):
    english, chinese = map(tables, both(page))
    assert [len(table) for table in chinese] == [len(table) for table in english]
    for table, translated in zip(english, chinese, strict=True):
        kind = table[0][0]
        if kind not in ("input", "output"):
            continue
        shown = shown_names(page.stem, kind)
        named = ["、".join(shown[name] for name in row[0].split(", ")) for row in table[1:]]
        assert [row[0] for row in translated] == [{"input": "输入", "output": "输出"}[kind], *named]
        assert {name for row in table[1:] for name in row[0].split(", ")} == shown.keys()


@each_page
def test_chinese_page_keeps_what_is_the_same_in_every_language(page: Path):
    """Headings, pictures and links, what stands as code, and figures; nodes of the pack go by their Chinese names."""
    english, chinese = both(page)
    names = {name for kind in ("input", "output") for node in ENGLISH for name in shown_names(node, kind)}
    for pattern in (r"^#+ ", r"^- ", r"\]\((.+?)\)", r"^```[^`]+^```"):
        assert re.findall(pattern, chinese, re.M) == re.findall(pattern, english, re.M)
    assert set(re.findall(r"`([^`\n]+)`", english)) - names <= set(re.findall(r"`([^`\n]+)`", chinese))
    assert set(re.findall(r"\d+(?:\.\d+)?", english)) == set(re.findall(r"\d+(?:\.\d+)?", chinese))
    for node, texts in ENGLISH.items():
        assert f"**{texts['display_name']}**" not in english or f"**{CHINESE[node]['display_name']}**" in chinese
    assert chinese.startswith(f"# {CHINESE[page.stem]['display_name']}\n")


@each_page
def test_bold_type_of_the_chinese_page_ends(page: Path):
    """In Markdown two asterisks between punctuation and a letter end nothing: a space has to follow them."""
    assert not re.search(r"[（）。，“”]\*\*\w", re.sub(r"\*\*(.+?)\*\*", r"«\1**", both(page)[1]))
