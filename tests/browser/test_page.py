"""Workflows, blocks and help pages in the real page."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

from tests.browser.conftest import ComfyPage
from tests.comfyui.conftest import PACK
from tests.comfyui.server import PromptError
from tests.comfyui.workflows import FAMILIES, ON_DEMO_MODEL, to_prompt

BLOCKS = sorted((PACK / "subgraphs").glob("*.json"))
OLD = sorted((PACK / "tests" / "comfyui" / "old").rglob("*.json"))
HELP_PAGES = sorted((PACK / "web" / "docs").glob("*.md"))


def assert_same(sent: dict, saved: dict, object_info: dict) -> None:
    """The page sends what the file says, and the defaults of widgets that are younger than the file."""
    assert sent.keys() == saved.keys()
    for key, node in saved.items():
        inputs = sent[key]["inputs"]
        known = object_info[node["class_type"]]["input"]
        optional = known.get("optional", {}) | known.get("required", {})
        assert sent[key]["class_type"] == node["class_type"]
        assert {name: inputs[name] for name in node["inputs"]} == node["inputs"]
        for name in inputs.keys() - node["inputs"].keys():
            kind, *options = optional[name]
            choices = kind if isinstance(kind, list) else (options[0] if options else {}).get("options", [None])
            assert inputs[name] == (options[0] if options else {}).get("default", choices[0]), name


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.get("/object_info")


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def workflow(name: str) -> dict:
    return read(PACK / "workflows" / f"{name}.json")


@pytest.mark.parametrize("file", [*ON_DEMO_MODEL, *FAMILIES, *OLD], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_opens_without_a_complaint_and_sends_what_was_saved(page: ComfyPage, object_info, file):
    page.open(read(file))
    page.page.wait_for_load_state("networkidle")
    sent = page.prompt()
    assert not page.errors
    if file in ON_DEMO_MODEL:  # Others name checkpoints that this ComfyUI does not have.
        assert not page.complaints()
    if file in FAMILIES:
        assert page.offered_models() == sorted(
            model["name"] for node in read(file)["nodes"] for model in node["properties"].get("models", [])
        )
    assert_same(sent, to_prompt(read(file), object_info), object_info)


@pytest.mark.parametrize("file", BLOCKS, ids=lambda file: file.stem)
def test_block_opens_as_one_node(page: ComfyPage, object_info, file):
    page.open(read(file))
    assert not page.errors
    assert not page.complaints()
    assert page.evaluate("() => app.graph.nodes.map(node => node.title)") == [file.stem]
    assert_same(page.prompt(), to_prompt(read(file), object_info), object_info)


def test_a_missing_node_would_be_complained_about(page: ComfyPage):
    broken = workflow("anonymize")
    next(node for node in broken["nodes"] if node["type"] == "DiffPrivacySaveProtected")["type"] = "NoSuchNode"
    page.open(broken)
    page.page.get_by_test_id("error-overlay").wait_for()
    assert page.complaints()


def test_blocks_are_in_the_node_library(page: ComfyPage):
    """Under their category."""
    page.page.get_by_role("button", name="Node Library").click()
    for file in BLOCKS:
        assert read(file)["definitions"]["subgraphs"][0]["category"] == "Diff-Privacy"
        page.page.get_by_placeholder("Search...").first.fill(file.stem)
        page.page.get_by_text(file.stem, exact=True).wait_for()
    page.page.get_by_role("button", name="Node Library").click()


@pytest.mark.parametrize(("name", "saved"), [("anonymize", 1), ("same-face-in-every-frame", 2)])
def test_a_click_on_run_shows_numbered_faces_progress_and_the_pictures(page: ComfyPage, name, saved):
    page.open(workflow(name))
    page.set_widget("BasicScheduler", "steps", 5)
    page.server.wait(page.click_run())
    assert page.shown_pictures("DiffPrivacySaveProtected") == [[512, 512]] * saved
    assert page.shown_pictures("DiffPrivacyDetectFaces") == [[512, 512]] * saved
    steps = [event["value"] for event in page.evaluate("() => progress") if event["max"] > 1]
    assert steps[-1] == 5 and steps == sorted(steps)
    assert not page.errors
    assert not page.complaints()


def test_interrupt_stops_the_run_and_the_next_one_works(page: ComfyPage):
    page.open(workflow("anonymize"))
    page.set_widget("BasicScheduler", "steps", 500)
    prompt = page.click_run()
    page.page.wait_for_function("() => progress.some(event => event.max > 100)")
    page.page.get_by_role("button", name="Cancel current run").click()
    with pytest.raises(PromptError, match="SamplerCustomAdvanced"):
        page.server.wait(prompt)
    page.set_widget("BasicScheduler", "steps", 2)
    page.server.wait(page.click_run())
    assert page.shown_pictures("DiffPrivacySaveProtected") == [[512, 512]]


def test_shift_drag_moves_the_wires_to_a_checkpoint_as_the_notes_say(page: ComfyPage, object_info):
    page.open(workflow("anonymize"))
    page.evaluate("() => { app.graph.nodes.find(n => n.type === 'CheckpointLoaderSimple').mode = 0; }")
    page.set_widget("CheckpointLoaderSimple", "ckpt_name", "tiny.safetensors")
    for slot in range(3):
        ends = page.evaluate(
            """slot => ['DiffPrivacyLoadDemoModel', 'CheckpointLoaderSimple'].map(kind => {
                const node = app.graph.nodes.find(n => n.type === kind);
                const [x, y] = app.canvas.ds.convertOffsetToCanvas(node.getConnectionPos(false, slot));
                const box = app.canvas.canvas.getBoundingClientRect();
                return [x + box.left, y + box.top];
            })""",
            slot,
        )
        page.page.mouse.move(*ends[0])
        page.page.keyboard.down("Shift")
        page.page.mouse.down()
        page.page.mouse.move(*ends[1], steps=8)
        page.page.mouse.up()
        page.page.keyboard.up("Shift")
    sent = page.prompt()
    (checkpoint,) = (name for name, node in sent.items() if node["class_type"] == "CheckpointLoaderSimple")
    used = {tuple(value) for node in sent.values() for value in node["inputs"].values() if isinstance(value, list)}
    assert {slot for name, slot in used if name == checkpoint} == {0, 1, 2}
    (demo,) = (name for name, node in sent.items() if node["class_type"] == "DiffPrivacyLoadDemoModel")
    assert {slot for name, slot in used if name == demo} == {4}


@pytest.mark.parametrize("file", HELP_PAGES, ids=lambda file: file.stem)
def test_help_panel_shows_the_page_of_the_node(page: ComfyPage, file):
    page.evaluate(
        """kind => {
            app.graph.clear();
            const node = LiteGraph.createNode(kind);
            app.graph.add(node);
            node.pos = [400, 300];
            app.canvas.ds.reset();
            app.canvas.selectNode(node);
        }""",
        file.stem,
    )
    page.page.get_by_test_id("info-button").click()
    text = file.read_text()
    (title,) = re.findall(r"^# (.+)$", text, re.M)
    panel = page.page.locator(".node-help-content")
    panel.get_by_role("heading", name=title, exact=True, level=1).wait_for()
    rows = len(re.findall(r"^\|(?!---)", text, re.M))
    assert panel.locator("tr").count() == rows
    for picture in panel.locator("img").all():
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0


def test_template_browser_lists_every_workflow_with_its_thumbnail(page: ComfyPage):
    templates = page.server.get("/workflow_templates")
    (names,) = (names for pack, names in templates.items() if pack == "diff-privacy")
    assert sorted(names) == sorted(file.stem for file in (PACK / "workflows").glob("*.json"))
    for name in names:
        url = f"{page.server.url}/api/workflow_templates/diff-privacy/{name}.jpg"
        with urllib.request.urlopen(url) as response:
            assert response.headers["Content-Type"] == "image/jpeg"
