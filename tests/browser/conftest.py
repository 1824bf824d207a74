"""ComfyUI's real page in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testing.videos import write_source
from tests.comfyui.server import ComfyServer, find_comfyui

HERE = Path(__file__).parent
NOT_RUN = pytest.StashKey[tuple[int, str]]()
LONG = 1_800_000  # Milliseconds: a busy machine is slow, a hanging one should not stop the run for ever.


def find_browser() -> str | None:
    """$CHROMIUM_PATH, or the Chromium on the PATH."""
    named = os.environ.get("CHROMIUM_PATH")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [name for name, found in {"ComfyUI": find_comfyui(), "Chromium": find_browser()}.items() if not found]
    if not missing:
        return
    mine = [item for item in items if HERE in item.path.parents]
    items[:] = [item for item in items if item not in mine]
    config.hook.pytest_deselected(items=mine)
    config.stash[NOT_RUN] = (len(mine), " and no ".join(missing))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    count, missing = config.stash.get(NOT_RUN, (0, ""))
    if count:
        terminalreporter.write_line(
            f"{count} browser tests did not run: no {missing} found; set COMFYUI_PATH and CHROMIUM_PATH, "
            "or install a chromium package."
        )


@pytest.fixture(scope="session")
def page(server: ComfyServer, comfyui: Path) -> Iterator[ComfyPage]:
    shutil.copy(comfyui / "input" / "example.png", server.base / "input")
    write_source(server.base / "input" / "example.mp4", [np.zeros((16, 16, 3), np.uint8)] * 2)
    with open_page(server) as opened:
        yield opened


@contextmanager
def open_page(server: ComfyServer) -> Iterator[ComfyPage]:
    """The page of a running ComfyUI."""
    from playwright.sync_api import sync_playwright

    # Without it the page opens the template browser for the first visitor.
    setting = urllib.request.Request(f"{server.url}/settings/Comfy.TutorialCompleted", b"true", method="POST")
    urllib.request.urlopen(setting).close()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield ComfyPage(browser.new_page(viewport={"width": 1920, "height": 1080}), server)
        browser.close()


class ComfyPage:
    """The page, with what tests do in it."""

    def __init__(self, page: Any, server: ComfyServer):
        self.page, self.server = page, server
        self.errors: list[str] = []
        page.set_default_timeout(LONG)
        page.goto(server.url)
        page.wait_for_function("window.app?.graph?.nodes.length && window.app.canvas")
        page.wait_for_load_state("networkidle")
        page.on("console", self._note_error)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.evaluate(
            "() => { window.progress = []; app.api.addEventListener('progress', e => progress.push(e.detail)); }"
        )

    def _note_error(self, message: Any) -> None:
        # For models that are missing the page asks the network, which its own policy forbids.
        if message.type == "error" and "Content Security Policy" not in message.text:
            self.errors.append(message.text)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def open(self, workflow: dict) -> None:
        """Load a workflow as the page does for a dropped file."""
        self.errors.clear()
        self.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.evaluate("() => app.canvas.ds.reset()")

    def prompt(self) -> dict[str, dict]:
        """What the page would send for Run."""
        sent = self.evaluate("async () => (await app.graphToPrompt()).output")
        return {name: {"class_type": node["class_type"], "inputs": node["inputs"]} for name, node in sent.items()}

    def set_widget(self, kind: str, name: str, value: Any) -> None:
        self.evaluate(
            """([kind, name, value]) => app.graph.nodes.filter(node => node.type === kind)
            .forEach(node => { node.widgets.find(widget => widget.name === name).value = value; })""",
            [kind, name, value],
        )

    def click_run(self) -> str:
        """Click Run; the id of the prompt."""
        self.evaluate("() => { progress.length = 0; }")
        with self.page.expect_response(lambda response: response.url.endswith("/api/prompt")) as sent:
            self.page.get_by_test_id("queue-button").click()
        answer = json.loads(sent.value.body())
        assert not answer.get("node_errors"), answer
        return answer["prompt_id"]

    def shown_pictures(self, kind: str) -> list[list[int]]:
        """Width and height of each picture that the node of a type shows, once it is in view and they are loaded."""
        self.evaluate("kind => app.canvas.centerOnNode(app.graph.nodes.find(node => node.type === kind))", kind)
        script = """kind => {
            const pictures = app.graph.nodes.find(node => node.type === kind).imgs ?? [];
            return pictures.length && pictures.every(p => p.complete && p.naturalWidth)
                && pictures.map(p => [p.naturalWidth, p.naturalHeight]);
        }"""
        return self.page.wait_for_function(script, arg=kind).json_value()

    def offered_models(self) -> list[str]:
        """Files that the open workflow names, this ComfyUI lacks, and the page offers to download."""
        if not self.page.get_by_test_id("missing-model-download").count():
            self.page.get_by_role("button", name="View details").click()
        self.page.get_by_test_id("missing-model-download").first.wait_for()
        labels = [
            button.get_attribute("aria-label") for button in self.page.get_by_test_id("missing-model-download").all()
        ]
        return sorted(label.removeprefix("Download ") for label in labels)

    def complaints(self) -> list[str]:
        """Texts of open dialogs and error messages."""
        return self.evaluate(
            """() => [...document.querySelectorAll('[role=dialog], [data-testid=error-overlay], .p-toast-message-error')]
            .filter(element => element.offsetParent).map(element => element.innerText)"""
        )
