"""The pictures of nodes on the help pages, taken in ComfyUI's own page: ``python -m tests.browser.node_pictures [NAME ...]``.

Needs a ComfyUI and a Chromium, as the page tests do. Look at the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from testing.checkpoints import write_tiny_single_file
from tests.browser.conftest import ComfyPage, open_page
from tests.comfyui.server import PACK, ComfyServer, find_comfyui

IMAGES = PACK / "web" / "docs" / "images"
QUALITY = 85
DRAW = """async ([columns, links, gap, corner, width, first]) => {
    app.graph.clear();
    app.graph.state.lastNodeId = first;  // The page keeps the values of widgets by the number of their node.
    const nodes = {};
    let [x, low, right] = [0, 0, 0];
    for (const column of columns) {
        let [y, wide] = [0, 0];
        for (const [name, type] of column) {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            node.setSize([Math.max(width, node.computeSize()[0]), node.computeSize()[1]]);
            node.pos = [x, y];
            nodes[name] = node;
            y += node.size[1] + gap;
            wide = Math.max(wide, node.size[0]);
        }
        [x, low, right] = [x + wide + gap, Math.max(low, y - gap), x + wide];
    }
    for (const [source, output, target, input] of links) {
        const [from, to] = [nodes[source], nodes[target]];
        from.connect(from.outputs.findIndex(o => o.name === output), to, to.inputs.findIndex(i => i.name.split('.').at(-1) === input));
    }
    app.canvas.deselectAll();
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = corner;
    app.canvas.setDirty(true, true);
    return [right, low];
}"""
GAP = 70
WIDTH = 250
CORNER = (420, 220)
BORDER = 20
TITLE = 56
"""A node's title and the name of its pack lie above its place."""
FILES = ("msi/person.safetensors", "insightface/buffalo_l/w600k_r50.onnx")
"""Of ComfyUI's models, for loaders to name; none is read."""


@dataclass(frozen=True)
class Scene:
    """Nodes in columns from left to right, each a type; links as (node, output, node, input).

    Types are without "DiffPrivacy"; those of ComfyUI's own nodes are in ``STOCK``.
    """

    columns: list[list[str]]
    links: list[tuple[str, str, str, str]] = field(default_factory=list)


STOCK = {
    "BasicGuider",
    "BasicScheduler",
    "CLIPTextEncode",
    "DisableNoise",
    "PreviewImage",
    "SamplerCustomAdvanced",
    "VAEEncode",
}
SCENES = {
    "combine-energies": Scene(
        [["AnonymizeEnergy", "KeepExpressionEnergy"], ["CombineEnergies"], ["EnergyGuidance"]],
        [
            ("AnonymizeEnergy", "energy", "CombineEnergies", "energy_1"),
            ("KeepExpressionEnergy", "energy", "CombineEnergies", "energy_2"),
            ("CombineEnergies", "energy", "EnergyGuidance", "energy"),
        ],
    ),
    "combine-recognizers": Scene(
        [["LoadRecognizer", "LoadDemoModel"], ["CombineRecognizers"], ["AnonymizeEnergy"]],
        [
            ("LoadRecognizer", "recognizer", "CombineRecognizers", "recognizer0"),
            ("LoadDemoModel", "guide", "CombineRecognizers", "recognizer1"),
            ("CombineRecognizers", "recognizer", "AnonymizeEnergy", "recognizer"),
        ],
    ),
    "embedding-schedule": Scene(
        [["InvertMSI", "CLIPTextEncode"], ["EmbeddingSchedule"], ["BasicGuider"]],
        [
            ("InvertMSI", "CONDITIONING", "EmbeddingSchedule", "early"),
            ("CLIPTextEncode", "CONDITIONING", "EmbeddingSchedule", "late"),
            ("EmbeddingSchedule", "CONDITIONING", "BasicGuider", "conditioning"),
        ],
    ),
    "energy-guidance": Scene(
        [["LoadDemoModel", "AnonymizeEnergy"], ["EnergyGuidance"], ["BasicGuider", "BasicScheduler"]],
        [
            ("LoadDemoModel", "MODEL", "EnergyGuidance", "model"),
            ("LoadDemoModel", "VAE", "EnergyGuidance", "vae"),
            ("LoadDemoModel", "guide", "AnonymizeEnergy", "recognizer"),
            ("AnonymizeEnergy", "energy", "EnergyGuidance", "energy"),
            ("EnergyGuidance", "MODEL", "BasicGuider", "model"),
            ("EnergyGuidance", "MODEL", "BasicScheduler", "model"),
        ],
    ),
    "invert-latent": Scene(
        [["VAEEncode", "BasicScheduler"], ["InvertLatent", "DisableNoise"], ["SamplerCustomAdvanced"]],
        [
            ("VAEEncode", "LATENT", "InvertLatent", "latent_image"),
            ("BasicScheduler", "SIGMAS", "InvertLatent", "sigmas"),
            ("InvertLatent", "noise_map", "SamplerCustomAdvanced", "latent_image"),
            ("InvertLatent", "replay_sampler", "SamplerCustomAdvanced", "sampler"),
            ("BasicScheduler", "SIGMAS", "SamplerCustomAdvanced", "sigmas"),
            ("DisableNoise", "NOISE", "SamplerCustomAdvanced", "noise"),
        ],
    ),
    "invert-msi": Scene(
        [["LoadMSI", "CropFaces"], ["InvertMSI"], ["BasicGuider"]],
        [
            ("LoadMSI", "msi", "InvertMSI", "msi"),
            ("CropFaces", "crops", "InvertMSI", "image"),
            ("InvertMSI", "CONDITIONING", "BasicGuider", "conditioning"),
        ],
    ),
    "load-demo-model": Scene(
        [["LoadDemoModel"], ["VAEEncode", "AnonymizeEnergy"]],
        [
            ("LoadDemoModel", "VAE", "VAEEncode", "vae"),
            ("LoadDemoModel", "guide", "AnonymizeEnergy", "recognizer"),
        ],
    ),
    "load-detector": Scene(
        [["LoadDetector"], ["DetectFaces"]], [("LoadDetector", "detector", "DetectFaces", "detector")]
    ),
    "load-msi": Scene([["LoadMSI"], ["InvertMSI"]], [("LoadMSI", "msi", "InvertMSI", "msi")]),
    "load-protected": Scene(
        [["LoadProtected"], ["OpenKey"]],
        [
            ("LoadProtected", "image", "OpenKey", "protected"),
            ("LoadProtected", "sealed_key", "OpenKey", "sealed_key"),
        ],
    ),
    "load-recognizer": Scene(
        [["LoadRecognizer"], ["AnonymizeEnergy"]],
        [("LoadRecognizer", "recognizer", "AnonymizeEnergy", "recognizer")],
    ),
    "save-msi": Scene([["TrainMSI"], ["SaveMSI"]], [("TrainMSI", "msi", "SaveMSI", "msi")]),
    "save-protected": Scene(
        [["PasteFaces"], ["SealKey"], ["SaveProtected"]],
        [
            ("PasteFaces", "image", "SaveProtected", "image"),
            ("PasteFaces", "image", "SealKey", "protected"),
            ("SealKey", "sealed_key", "SaveProtected", "sealed_key"),
        ],
    ),
    "seal-key": Scene(
        [["InvertLatent", "PasteFaces"], ["SealKey"], ["SaveProtected"]],
        [
            ("InvertLatent", "noise_map", "SealKey", "noise_map"),
            ("PasteFaces", "image", "SealKey", "protected"),
            ("SealKey", "sealed_key", "SaveProtected", "sealed_key"),
            ("PasteFaces", "image", "SaveProtected", "image"),
        ],
    ),
    "train-msi": Scene(
        [["CropFaces", "LoadDemoModel"], ["TrainMSI"], ["SaveMSI", "PreviewImage"]],
        [
            ("CropFaces", "crops", "TrainMSI", "images"),
            ("LoadDemoModel", "MODEL", "TrainMSI", "model"),
            ("LoadDemoModel", "CLIP", "TrainMSI", "clip"),
            ("LoadDemoModel", "VAE", "TrainMSI", "vae"),
            ("LoadDemoModel", "CLIP_VISION", "TrainMSI", "clip_vision"),
            ("TrainMSI", "msi", "SaveMSI", "msi"),
            ("TrainMSI", "loss_curve", "PreviewImage", "images"),
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--to", type=Path, default=IMAGES)
    options = parser.parse_args()
    with comfyui_to_start() as (server, _):
        Image.open(IMAGES / "example-photo.jpg").save(server.base / "input" / "protected.png")
        for file in FILES:
            (server.base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
            (server.base / "models" / file).touch()
        with server, open_page(server) as page:
            for i, name in enumerate(options.names or SCENES, start=1):
                taken(page, SCENES[name], 100 * i).save(options.to / f"{name}.jpg", quality=QUALITY)
                print(options.to / f"{name}.jpg")


@contextmanager
def comfyui_to_start() -> Iterator[tuple[ComfyServer, Path]]:
    """A ComfyUI that is not running yet, with a small checkpoint, and the folder that it lies in."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("No ComfyUI found: set COMFYUI_PATH to one.")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny.safetensors"
        write_tiny_single_file(checkpoint, "sd2")
        yield ComfyServer(comfyui, PACK, Path(folder) / "base", checkpoint), comfyui


def taken(page: ComfyPage, scene: Scene, first: int) -> Image.Image:
    """A scene as the page draws it, nothing else in sight; first: a number above those of all nodes before."""
    columns = [[(name, name if name in STOCK else f"DiffPrivacy{name}") for name in column] for column in scene.columns]
    width, height = page.evaluate(DRAW, [columns, scene.links, GAP, CORNER, WIDTH, first])
    page.page.wait_for_timeout(500)
    left, top = CORNER[0] - BORDER, CORNER[1] - TITLE
    clip = {"x": left, "y": top, "width": width + 2 * BORDER, "height": height + TITLE + BORDER}
    return Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")


if __name__ == "__main__":
    main()
