"""The pictures of the workflows, made by running them: ``python -m tests.browser.workflow_pictures [NAME ...]``.

Thumbnails beside the workflows; for those that docs/images shows, what the page shows after Run; and the help pages' pictures
of new faces. Left out are workflows on other models than the embedded one, in App mode, and those that need files of yours.
Needs a ComfyUI and a Chromium, as the page tests do. Look at the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

from tests.browser.conftest import ComfyPage, open_page
from tests.browser.node_pictures import IMAGES, QUALITY, comfyui_to_start
from tests.comfyui.server import PACK

DOCS = PACK / "docs" / "images"
SIDE = 400
HELP_SIDE = 200
FACE = (90, 0, 330, 240)
"""The astronaut's head, in pixels of the photo."""
CLOSE = (150, 20, 310, 180)
VIEWPORT = {"width": 2400, "height": 1000}
SHOT = (1800, 750)
SETTINGS = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
"""Of the page: every text is written out, however small, and nothing lies over the graph."""
FIT = """() => {
    const boxes = app.graph.groups.map(group => group.boundingRect ?? group._bounding);
    const left = Math.min(...boxes.map(b => b[0])), right = Math.max(...boxes.map(b => b[0] + b[2]));
    const top = Math.min(...boxes.map(b => b[1])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const [x, y, width, height] = [80, 70, 2290, 900];
    const scale = Math.min(width / (right - left), height / (bottom - top));
    app.canvas.deselectAll();
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [x / scale - left, (y + (height - scale * (bottom - top)) / 2) / scale - top];
    app.canvas.setDirty(true, true);
}"""

Shown = dict[str, list[Image.Image]]
"""The pictures that nodes of a type gave."""


def original() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut())


def tile(picture: Image.Image, box: tuple[int, int, int, int] | None = None, side: int = SIDE) -> Image.Image:
    return picture.convert("RGB").crop(box).resize((side, side), Image.Resampling.LANCZOS)


def row(*tiles: Image.Image) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(each) for each in tiles], axis=1))


def beside(tiles: list[Image.Image]) -> Image.Image:
    """Tiles in a row, with white between them."""
    gap = Image.new("RGB", (6, tiles[0].height), "white")
    return row(*[each for one in tiles for each in (gap, one)][1:])


def saved(shown: Shown) -> list[Image.Image]:
    return shown["DiffPrivacySaveProtected"]


def before_and_after(shown: Shown) -> Image.Image:
    return row(tile(original(), FACE), tile(saved(shown)[-1], FACE))


def whole(shown: Shown) -> Image.Image:
    return saved(shown)[-1].convert("RGB").resize((2 * SIDE, SIDE), Image.Resampling.LANCZOS)


def detected_and_after(shown: Shown) -> Image.Image:
    return row(tile(shown["DiffPrivacyDetectFaces"][-1]), tile(saved(shown)[-1]))


def variants(shown: Shown) -> Image.Image:
    four = [tile(picture, FACE, SIDE // 2) for picture in saved(shown)]
    grid = np.concatenate([np.asarray(row(*four[:2])), np.asarray(row(*four[2:]))])
    return row(tile(original(), FACE), Image.fromarray(grid))


def and_back(shown: Shown) -> Image.Image:
    return row(tile(original(), FACE), tile(saved(shown)[-1], FACE), tile(shown["PreviewImage"][-1], FACE))


def frames(shown: Shown) -> Image.Image:
    return row(*(tile(picture, CLOSE) for picture in saved(shown)[:2]))


def described(shown: Shown) -> Image.Image:
    return row(tile(original(), FACE), tile(shown["PreviewImage"][-1]))


def judged(shown: Shown) -> Image.Image:
    plot = Image.new("RGB", (SIDE, SIDE), "white")
    drawn = shown["PreviewImage"][-1].convert("RGB")
    drawn.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    plot.paste(drawn, (0, (SIDE - drawn.height) // 2))
    return row(tile(saved(shown)[-1], FACE), plot)


THUMBNAILS: dict[str, Callable[[Shown], Image.Image]] = {
    "anonymize": before_and_after,
    "group-photo": whole,
    "cover-a-face": whole,
    "add-a-missed-face": detected_and_after,
    "keep-a-hand": before_and_after,
    "keep-the-eyes": before_and_after,
    "prompt-each-face": whole,
    "segs": whole,
    "variants": variants,
    "hide-identity": before_and_after,
    "hide-and-recover": and_back,
    "seal-a-recovery-key": before_and_after,
    "same-face-in-every-frame": frames,
    "train-msi": described,
    "report": judged,
}


def of_energy(shown: Shown) -> list[Image.Image]:
    return [original(), *saved(shown)[:3]]


def one_new(shown: Shown) -> list[Image.Image]:
    return [original(), saved(shown)[-1]]


def recovered(shown: Shown) -> list[Image.Image]:
    return [original(), saved(shown)[-1], shown["PreviewImage"][-1]]


HELP: dict[str, tuple[str, Callable[[Shown], list[Image.Image]]]] = {
    "anonymize": ("paste-faces", one_new),
    "variants": ("anonymize-energy", of_energy),
    "hide-identity": ("hide-energy", one_new),
    "hide-and-recover": ("open-key", recovered),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--to", type=Path, help="folder for the pictures instead of their places")
    options = parser.parse_args()
    with comfyui_to_start() as (server, comfyui):
        Image.open(comfyui / "input" / "example.png").save(server.base / "input" / "example.png")
        with server, open_page(server) as page:
            page.page.set_viewport_size(VIEWPORT)
            for setting, value in SETTINGS.items():
                page.evaluate("([id, value]) => app.extensionManager.setting.set(id, value)", [setting, value])
            for name in options.names or THUMBNAILS:
                outputs = run(page, name)
                made = {PACK / "workflows" / f"{name}.jpg": THUMBNAILS[name](outputs)}
                if (shot := DOCS / f"workflow-{name}.jpg").exists():
                    made[shot] = picture(page)
                if name in HELP:
                    help_name, chosen = HELP[name]
                    made[IMAGES / f"{help_name}.jpg"] = beside(
                        [tile(each, FACE, HELP_SIDE) for each in chosen(outputs)]
                    )
                for path, image in made.items():
                    image.save(options.to / path.name if options.to else path, quality=QUALITY)
                print(name, flush=True)


def run(page: ComfyPage, name: str) -> Shown:
    """Open a workflow in the page, run it, and take what its nodes show."""
    workflow: dict[str, Any] = json.loads((PACK / "workflows" / f"{name}.json").read_text())
    page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, name])
    kinds = {name: node["class_type"] for name, node in page.prompt().items()}
    outputs = page.server.wait(page.click_run())["outputs"]
    shown: Shown = {}
    for name, output in outputs.items():
        pictures = [Image.fromarray(page.server.picture(reference)) for reference in output.get("images", [])]
        shown.setdefault(kinds[name], []).extend(pictures)
    return shown


def picture(page: ComfyPage) -> Image.Image:
    """The page with the whole graph in view."""
    page.evaluate(FIT)
    page.page.wait_for_timeout(8000)  # Until the page no longer says that the job is done.
    return Image.open(io.BytesIO(page.page.screenshot())).convert("RGB").resize(SHOT, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
