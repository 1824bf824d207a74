"""The three jobs in App mode: no graph is seen, a photo goes in, Run is pressed, the result is there to save."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import LONG, ComfyPage
from tests.comfyui.conftest import PACK
from tests.comfyui.photos import write_astronaut

APPS = sorted((PACK / "workflows").glob("*.app.json"))
LOADERS = {"DiffPrivacyExamplePhoto", "DiffPrivacyLoadProtected"}


@pytest.fixture
def tab(page: ComfyPage) -> Iterator:
    """A page of its own, as what is opened as an app stays one."""
    new = page.page.context.browser.new_page(viewport={"width": 1400, "height": 900})
    new.set_default_timeout(LONG)
    new.goto(page.server.url)
    new.wait_for_function("window.app?.graph?.nodes.length && window.app.canvas")
    yield new
    new.close()


def shape(graph: dict) -> tuple[set, set]:
    """Types with their values, and links by types; photo loaders count as one, what is muted as nothing."""
    kinds = {node["id"]: "photo" if node["type"] in LOADERS else node["type"] for node in graph["nodes"]}
    nodes = {
        (kinds[node["id"]], json.dumps(node.get("widgets_values")))
        for node in graph["nodes"]
        if node.get("mode") != 2 and kinds[node["id"]] not in ("photo", "MarkdownNote")
    }
    return nodes, {(kinds[a], i, kinds[b], j) for _, a, i, b, j, _ in graph["links"]}


@pytest.mark.parametrize("file", APPS, ids=lambda file: file.stem)
def test_an_app_is_the_workflow_of_its_name_with_a_photo_to_choose(file):
    app = json.loads(file.read_text())
    graph = json.loads(file.with_name(file.name.replace(".app", "")).read_text())
    assert shape(app) == shape(graph)
    nodes = {str(node["id"]): node for node in app["nodes"]}
    assert app["extra"]["linearMode"] is True
    chosen = app["extra"]["linearData"]
    assert [nodes[key]["type"] for key, name in chosen["inputs"] if name == "image"] == ["DiffPrivacyLoadProtected"]
    assert {nodes[key]["type"] for key in chosen["outputs"]} <= {"DiffPrivacySaveProtected", "PreviewImage"}


def test_a_photo_is_uploaded_run_and_saved(page: ComfyPage, tab, tmp_path):
    photo, saved = write_astronaut(tmp_path), page.server.base / "output" / "protected"
    there = set(saved.glob("*.png"))
    tab.evaluate("app_ => app.loadGraphData(app_)", json.loads((PACK / "workflows" / "anonymize.app.json").read_text()))
    tab.get_by_role("button", name="Skip").click()
    assert tab.get_by_test_id("builder-widget-label").all_inner_texts() == ["Photo", "Strength"]
    tab.get_by_label("Upload").set_input_files(photo)
    tab.get_by_test_id("node-widget").get_by_text("astronaut.png").wait_for()
    tab.evaluate("() => { app.graph.nodes.find(n => n.type === 'BasicScheduler').widgets[1].value = 5 }")
    with tab.expect_response(lambda response: response.url.endswith("/api/prompt")) as sent:
        tab.get_by_test_id("linear-run-button").get_by_role("button", name="Run").click()
    page.server.wait(json.loads(sent.value.body())["prompt_id"])
    shown = tab.get_by_test_id("linear-outputs").locator("img").first
    shown.wait_for()
    tab.wait_for_function("image => image.complete && image.naturalWidth", arg=shown.element_handle())
    (made,) = set(saved.glob("*.png")) - there
    before, after = (np.asarray(Image.open(file).convert("RGB"), int) for file in (photo, made))
    assert before.shape == after.shape
    assert (before != after).any() and np.array_equal(before[400:], after[400:])
