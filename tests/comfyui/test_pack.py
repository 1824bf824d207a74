"""The pack in a real ComfyUI: every block registers, a saved workflow protects real photos."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.faces.preview import CHOSEN, COVER
from diffprivacy.media.disclosure import SOURCE_TYPE
from tests.comfyui.conftest import PACK
from tests.comfyui.photos import pixels, write_astronaut, write_group, write_landscape
from tests.comfyui.server import ComfyServer, PromptError
from tests.comfyui.workflows import load_prompt

WORKFLOW = Path(__file__).parent / "old" / "anonymize.json"
SMALL = {
    "CheckpointLoaderSimple__ckpt_name": "tiny.safetensors",
    "DiffPrivacyCropFaces__size": 128,
    "KSampler__steps": 3,
}


@pytest.fixture(scope="module")
def object_info(server: ComfyServer) -> dict:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def photos(server: ComfyServer) -> dict[str, Path]:
    folder = server.base / "input"
    return {"astronaut": write_astronaut(folder), "group": write_group(folder), "no-face": write_landscape(folder)}


def saved(outputs: dict, prompt: dict) -> dict:
    """The output reference of the only Save Protected Picture in a prompt."""
    (node,) = (name for name, node in prompt.items() if node["class_type"] == "DiffPrivacySaveProtected")
    (reference,) = outputs[node]["images"]
    return reference


def node_ids() -> set[str]:
    return {
        match for file in (PACK / "nodes").glob("*.py") for match in re.findall(r'node_id="(\w+)"', file.read_text())
    }


def test_every_block_registers_without_a_warning(server, object_info):
    assert node_ids() <= object_info.keys()
    log = server.log().split("To see the GUI go to")[0]
    assert not [
        line for line in log.splitlines() if "diff-privacy" in line and re.search("warn|error|fail", line, re.I)
    ]


def test_every_block_has_a_help_page_and_tooltips_in_plain_english(object_info):
    for name in node_ids():
        assert (PACK / "web" / "docs" / f"{name}.md").is_file(), f"no help page for {name}"
        assert object_info[name]["description"]


@pytest.mark.parametrize(("photo", "faces"), [("astronaut", 1), ("group", 6)])
def test_workflow_changes_the_faces_and_nothing_else(server, object_info, photos, photo, faces):
    prompt = load_prompt(WORKFLOW, object_info, LoadImage__image=photos[photo].name, **SMALL)
    protected = server.picture(saved(server.run(prompt), prompt)).astype(int)
    original = pixels(photos[photo]).astype(int)
    found = load_detector(None).detect(torch.from_numpy(original).float() / 255)
    assert len(found) == faces
    assert np.array_equal(protected[outside(original, found)], original[outside(original, found)])
    for face in found:
        inside = protected_mask(original.shape, [face]).numpy() == 1
        assert np.abs(protected - original)[inside].mean() > 10


def outside(picture: np.ndarray, faces: list) -> np.ndarray:
    return protected_mask(picture.shape, faces).numpy() == 0


def test_workflow_runs_twice_with_new_noise(server, object_info, photos):
    first, second = (
        load_prompt(WORKFLOW, object_info, LoadImage__image=photos["astronaut"].name, KSampler__seed=seed, **SMALL)
        for seed in (1, 2)
    )
    pictures = [server.picture(saved(server.run(prompt), prompt)) for prompt in (first, second)]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("disclosure", [True, False])
def test_saved_picture_holds_nothing_but_the_picture_and_the_mark(server, object_info, photos, disclosure):
    settings = {"LoadImage__image": photos["astronaut"].name, "DiffPrivacySaveProtected__disclosure": disclosure}
    prompt = load_prompt(WORKFLOW, object_info, **settings, **SMALL)
    content = server.file(saved(server.run(prompt), prompt))
    assert chunks(content) == {b"IHDR", b"IDAT", b"IEND"} | ({b"iTXt"} if disclosure else set())
    assert (SOURCE_TYPE.encode() in content) == disclosure
    assert b"astronaut" not in content


def chunks(png: bytes) -> set[bytes]:
    kinds, position = set(), 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        kinds.add(png[position + 4 : position + 8])
        position += 12 + length
    return kinds


def test_batch_with_differing_numbers_of_faces(server, object_info, photos):
    """The astronaut beside a picture without a face: one is protected, the other stays as it is."""
    prompt = load_prompt(
        WORKFLOW,
        object_info,
        LoadImage__image=photos["astronaut"].name,
        DiffPrivacyDetectFaces__without_face="keep unchanged",
        **SMALL,
    )
    second = {"class_type": "LoadImage", "inputs": {"image": photos["no-face"].name}}
    loader = next(name for name, node in prompt.items() if node["class_type"] == "LoadImage")
    batch = {"class_type": "ImageBatch", "inputs": {"image1": [loader, 0], "image2": ["second", 0]}}
    for node in prompt.values():
        node["inputs"] = {key: ["batch", 0] if value == [loader, 0] else value for key, value in node["inputs"].items()}
    prompt.update(second=second, batch=batch)
    outputs = server.run(prompt)
    (node,) = (name for name, entry in prompt.items() if entry["class_type"] == "DiffPrivacySaveProtected")
    astronaut, landscape = (server.picture(reference) for reference in outputs[node]["images"])
    original = pixels(photos["astronaut"])
    assert not np.array_equal(astronaut, original)
    prompt["without"] = {"class_type": "SaveImage", "inputs": {"images": ["batch", 0], "filename_prefix": "batch"}}
    plain = server.run(prompt)["without"]["images"]
    # ComfyUI's own Save Image rounds down where ours rounds to the nearest level.
    assert np.abs(landscape.astype(int) - server.picture(plain[1]).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LoadImage__image": "no-face.png"}, "No face was found"),
        ({"DiffPrivacyDetectFaces__select": "5"}, "5"),
        ({"DiffPrivacyDetectFaces__select": "everyone"}, "everyone"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(server, object_info, photos, changes, message):
    prompt = load_prompt(WORKFLOW, object_info, **{"LoadImage__image": "astronaut.png", **SMALL, **changes})
    before = set((server.base / "output").rglob("*"))
    with pytest.raises(PromptError, match=message):
        server.run(prompt)
    assert set((server.base / "output").rglob("*")) == before


def test_missing_crop_is_an_error(server, object_info, photos):
    """A graph that loses a crop on the way must not let its face through."""
    prompt = load_prompt(WORKFLOW, object_info, LoadImage__image="group.png", **SMALL)
    paste = next(node for node in prompt.values() if node["class_type"] == "DiffPrivacyPasteFaces")
    prompt["lost"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": paste["inputs"]["crops"], "batch_index": 0, "length": 5},
    }
    paste["inputs"]["crops"] = ["lost", 0]
    with pytest.raises(PromptError, match="unprotected"):
        server.run(prompt)


def test_previews_that_comfyui_serves_hold_no_face(server, object_info, photos):
    prompt = load_prompt(WORKFLOW, object_info, LoadImage__image="group.png", **SMALL)
    (detect,) = (name for name, node in prompt.items() if node["class_type"] == "DiffPrivacyDetectFaces")
    (loader,) = (name for name, node in prompt.items() if node["class_type"] == "LoadImage")
    prompt = {name: prompt[name] for name in (detect, loader, prompt[detect]["inputs"]["detector"][0])}
    follow = {"image": [loader, 0], "faces": [detect, 0], "frame_rate": 25.0}
    prompt["follow"] = {"class_type": "DiffPrivacyFollowFaces", "inputs": follow}
    prompt["people"] = {"class_type": "PreviewAny", "inputs": {"source": ["follow", 1]}}
    outputs = server.run(prompt)
    original = pixels(photos["group"])
    for node in (detect, "follow"):
        (reference,) = outputs[node]["images"]
        assert reference["type"] == "temp"
        shown = server.picture(reference)
        assert shown.shape == original.shape
        for face in load_detector(None).detect(torch.from_numpy(original.astype(np.float32) / 255)):
            (x0, x1), (y0, y1) = (
                (int(low) + 1, int(high))
                for low, high in zip(*np.quantile(face.landmarks, (0, 1), axis=0), strict=True)
            )
            pixels_there = shown[y0:y1, x0:x1].reshape(-1, 3).astype(float) - COVER
            number = np.subtract(CHOSEN, COVER)
            mixed = (pixels_there @ number / (number @ number))[:, None] * number
            assert np.abs(pixels_there - mixed).max() < 2, "a number on one colour, and what lies between the two"


def test_this_comfyui_is_as_new_as_the_pack_requires(comfyui):
    """What these tests show holds for a release that pyproject.toml admits."""
    (running,) = re.findall(r'__version__ = "(\d+)\.(\d+)', (comfyui / "comfyui_version.py").read_text())
    (required,) = re.findall(r'requires-comfyui = ">=(\d+)\.(\d+)', (PACK / "pyproject.toml").read_text())
    assert tuple(map(int, running)) >= tuple(map(int, required))
