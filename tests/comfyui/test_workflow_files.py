"""What the files of workflows and blocks hold, read without running them."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from tests.comfyui.conftest import PACK
from tests.comfyui.workflows import FAMILIES, MUTED, NOTES, ON_DEMO_MODEL

BLOCKS = sorted((PACK / "subgraphs").glob("*.json"))
SECRET_OR_PATH = re.compile(r"AGE-SECRET-KEY|passphrase=|(?:^|[\s\"':])(?:/(?:home|root|tmp|work|Users|mnt)/|[A-Z]:\\)")

every_workflow = pytest.mark.parametrize("file", ON_DEMO_MODEL, ids=lambda file: file.stem)
every_file = pytest.mark.parametrize("file", [*ON_DEMO_MODEL, *FAMILIES, *BLOCKS], ids=lambda file: file.stem)


@pytest.mark.parametrize("file", [*ON_DEMO_MODEL, *FAMILIES], ids=lambda file: file.stem)
def test_thumbnail_is_a_small_jpeg(file):
    thumbnail = file.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 200_000
    assert Image.open(thumbnail).format == "JPEG"


@every_workflow
def test_notes_and_loaders_tell_what_to_do(file):
    nodes = json.loads(file.read_text())["nodes"]
    assert any(node["type"] in NOTES for node in nodes)
    (loader,) = (node for node in nodes if node["type"] == "CheckpointLoaderSimple")
    assert loader["mode"] == MUTED
    (model,) = loader["properties"]["models"]
    assert model["name"] == loader["widgets_values"][0]
    assert model["url"].startswith("https://") and model["url"].endswith(model["name"])
    assert model["directory"] == "checkpoints"


@every_file
def test_no_widget_holds_a_secret_or_a_path(file):
    for text in strings(json.loads(file.read_text())):
        assert not SECRET_OR_PATH.search(text), text


def test_the_search_for_secrets_finds_them():
    for text in ("AGE-SECRET-KEY-1QQ", "file:/home/me/key", "/tmp/x", "C:\\Users\\me", "see /root/photo.png"):
        assert SECRET_OR_PATH.search(text), text


def strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []
