"""The page's texts in other languages keep up with the blocks."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from tests.comfyui.conftest import PACK
from tests.comfyui.server import ComfyServer


@pytest.fixture(scope="module")
def english(server: ComfyServer) -> dict:
    """What locales/en/nodeDefs.json has to say, from the blocks' own schemas."""
    info = server.get("/object_info")
    return {name: texts(info[name]) for name in sorted(info) if name.startswith("DiffPrivacy")}


def texts(info: dict) -> dict:
    specs = {
        name: spec for section in ("required", "optional") for name, spec in info["input"].get(section, {}).items()
    }
    tooltips = info.get("output_tooltips") or [None] * len(info["output_name"])
    inputs = {name: named(name, spec[1].get("tooltip") if len(spec) > 1 else None) for name, spec in specs.items()}
    outputs = {str(i): named(*pair) for i, pair in enumerate(zip(info["output_name"], tooltips, strict=True))}
    lists = {"inputs": inputs, "outputs": outputs}
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        **{name: entries for name, entries in lists.items() if entries},
    }


def named(name: str, tooltip: str | None) -> dict:
    return {"name": name} | ({"tooltip": tooltip} if tooltip else {})


def read(language: str, file: str = "nodeDefs") -> dict:
    return json.loads((PACK / "locales" / language / f"{file}.json").read_text(encoding="utf-8"))


def flat(value: dict, path: str = "") -> dict[str, str]:
    return {
        key: text
        for name, item in value.items()
        for key, text in (flat(item, f"{path}/{name}") if isinstance(item, dict) else {f"{path}/{name}": item}).items()
    }


def test_english_is_what_the_blocks_say(english):
    assert flat(read("en")) == flat(english)


def test_chinese_has_a_text_for_each_english_one(english):
    assert flat(read("zh")).keys() == flat(english).keys()


def test_chinese_is_chinese(english):
    """Every description and tooltip is translated, and names env:, file: and the option values as the English does."""
    for key, text in flat(read("zh")).items():
        if key.endswith(("/description", "/tooltip", "/display_name")):
            assert re.search(r"[\u4e00-\u9fff]", text), f"{key}: {text}"
            for literal in re.findall(r"env:|file:|models/[\w/]+", flat(english)[key]):
                assert literal in text, f"{key} lacks {literal}"


def test_comfyui_serves_both(server):
    translations = server.get("/i18n")
    for language in ("en", "zh"):
        for name, entry in read(language).items():
            assert translations[language]["nodeDefs"][name] == entry
        assert read(language, "main").items() <= translations[language].items()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_category_has_a_name(server, language):
    """But for ComfyUI's own categories: a name given here would change theirs."""
    nodes = [node for name, node in server.get("/object_info").items() if name.startswith("DiffPrivacy")]
    used = {part for node in nodes for part in node["category"].split("/")}
    assert read(language, "main")["nodeCategories"].keys() == used - {"conditioning", "guidance", "noise"}


def test_chinese_help_is_served_where_the_page_looks_for_it(server):
    """That is ``docs/ID/LANGUAGE.md`` of a pack, and ``docs/ID.md`` only where that is missing."""
    for name in read("zh"):
        with urllib.request.urlopen(f"{server.url}/extensions/diff-privacy/docs/{name}/zh.md") as answer:
            assert answer.read() == (PACK / "web" / "docs" / name / "zh.md").read_bytes()


@pytest.mark.parametrize("alias", ["face privacy", "anonymize", "deidentify", "blur face alternative"])
def test_search_finds_blocks_by_what_people_type(server, alias):
    info = server.get("/object_info")
    found = [name for name, node in info.items() if alias in (node.get("search_aliases") or [])]
    assert any(name.startswith("DiffPrivacy") for name in found)
