"""Workflows of other families of models: what they name is what people have, and each runs on a small model of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyrage
import pytest

from tests.comfyui.server import ComfyServer
from tests.comfyui.test_workflows import example_photo, identity_file, of_type, pictures, quick, run_and_check
from tests.comfyui.workflows import FAMILIES, MUTED, NOTES, changed, to_prompt

FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
SMALL = {
    "z-image-turbo": ("flux", "tae16.safetensors", 768, 768),
    "qwen-image": ("qwen_image", "wan_vae.safetensors", 3584, 0),
    "flux2-klein": ("flux2", "taef2", 768, 0),
    "protect-then-edit": ("flux2", "taef2", 768, 0),
}
"""Model, VAE, and the widths of its text. Z-Image's own network cannot be small: Flux.1 has its latents and its decoder."""

every_family = pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
every_protecting = pytest.mark.parametrize("file", FAMILIES[:-1], ids=lambda file: file.stem)
EDIT = FAMILIES[-1]


@pytest.fixture(scope="module")
def small_models(server: ComfyServer, flow_models: Path, single_files: dict[str, Path]) -> Iterator[ComfyServer]:
    """The server, with small models in its folders."""
    links = [server.base / "models" / file.relative_to(flow_models) for file in flow_models.glob("*/*.safetensors")]
    for link in links:
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(flow_models / link.relative_to(server.base / "models"))
    sdxl = server.base / "models" / "checkpoints" / "sdxl.safetensors"
    sdxl.symlink_to(single_files["sdxl"])
    yield server
    for file in (*links, sdxl):
        file.unlink()
    server.free()


def on_small_model(file: Path, object_info: dict) -> dict:
    """The workflow's prompt with a small model's files in its loaders, on small crops in few steps, its key awake."""
    workflow = json.loads(file.read_text())
    for node in workflow["nodes"]:
        if node["type"] == "DiffPrivacySealKey":
            node["mode"] = 0
    prompt = quick(changed(to_prompt(workflow, object_info), DiffPrivacyCropFaces__size=64), steps=2)
    if file.stem not in SMALL:
        (loader,) = of_type(prompt, "CheckpointLoaderSimple")
        prompt[loader] = {"class_type": "LoadThinCheckpoint", "inputs": {"ckpt_name": "sdxl.safetensors"}}
        return prompt
    model, vae, width, pooled = SMALL[file.stem]
    changed(prompt, UNETLoader__unet_name=f"{model}.safetensors", VAELoader__vae_name=vae)
    (clip,) = of_type(prompt, "CLIPLoader")
    del prompt[clip]
    for name in of_type(prompt, "CLIPTextEncode"):
        inputs = {"text": prompt[name]["inputs"]["text"], "width": width, "pooled": pooled}
        prompt[name] = {"class_type": "TextOfWidth", "inputs": inputs}
    return prompt


@pytest.fixture(scope="module")
def object_info(small_models: ComfyServer) -> dict:
    return small_models.get("/object_info")


@every_protecting
def test_runs_on_a_small_model_of_its_family_and_its_key_holds_the_original(small_models, object_info, file):
    owner = pyrage.x25519.Identity.generate()
    prompt = on_small_model(file, object_info)
    changed(prompt, DiffPrivacySealKey__recipients=str(owner.to_public()))
    changed(prompt, DiffPrivacySaveProtected__filename_prefix=file.stem)
    run_and_check(small_models, prompt)
    (saved,) = (small_models.base / "output").glob(f"{file.stem}*.png")
    shutil.copy(saved, small_models.base / "input" / "protected.png")
    secret = identity_file(small_models, "owner", owner)
    load = {"class_type": "DiffPrivacyLoadProtected", "inputs": {"image": "protected.png"}}
    inputs = {"protected": ["load", 0], "sealed_key": ["load", 2], "secret": secret}
    outputs = object_info["DiffPrivacyOpenKey"]["output_name"]
    shown = {"image": ["open", outputs.index("original")], "filename_prefix": "opened"}
    opening = {
        "load": load,
        "open": {"class_type": "DiffPrivacyOpenKey", "inputs": inputs},
        "save": {"class_type": "DiffPrivacySaveProtected", "inputs": shown},
    }
    (original,) = pictures(small_models, small_models.run(opening), "save")
    assert np.array_equal(original, example_photo())


def test_the_edit_sees_nothing_but_the_protected_image(small_models, object_info):
    prompt = on_small_model(EDIT, object_info)
    changed(prompt, ImageScaleToTotalPixels__megapixels=0.01)
    (paste,), (scaled,) = of_type(prompt, "DiffPrivacyPasteFaces"), of_type(prompt, "ImageScaleToTotalPixels")
    (reference,) = of_type(prompt, "ReferenceLatent")
    (protected,) = (name for name in of_type(prompt, "DiffPrivacySaveProtected") if wire(prompt, name) == [paste, 0])
    (edited,) = set(of_type(prompt, "DiffPrivacySaveProtected")) - {protected}
    above = ancestors({**prompt, paste: {"inputs": {}}}, edited)
    assert {paste, reference} <= above
    assert not above & {
        name for name in prompt if prompt[name]["class_type"] in ("DiffPrivacyExamplePhoto", "LoadImage")
    }
    (encoded,) = (prompt[reference]["inputs"]["latent"][0],)
    assert (prompt[encoded]["class_type"], wire(prompt, encoded, "pixels")) == ("VAEEncode", [scaled, 0])
    assert wire(prompt, scaled) == [paste, 0]

    log = len(small_models.log())
    outputs = small_models.run(prompt)
    (before,), (after,) = (pictures(small_models, outputs, name) for name in (protected, edited))
    original = example_photo()
    assert before.shape == original.shape and np.abs(before.astype(int) - original).max() > 8
    assert after.std() > 1
    assert "reference latents" not in small_models.log()[log:]  # Guidance saw none of them.


def wire(prompt: dict, name: str, socket: str = "image") -> list:
    return prompt[name]["inputs"][socket]


def ancestors(prompt: dict, name: str) -> set[str]:
    """The nodes on which a node depends."""
    direct = {value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)}
    return direct.union(*(ancestors(prompt, node) for node in direct))


@every_family
def test_loaders_name_files_that_the_page_can_offer(object_info, file):
    nodes = json.loads(file.read_text())["nodes"]
    assert any(node["type"] in NOTES for node in nodes)
    loaders = [node for node in nodes if node["type"] in FOLDERS]
    assert loaders
    for loader in loaders:
        assert loader["mode"] != MUTED
        (model,) = loader["properties"]["models"]
        assert model["name"] == loader["widgets_values"][0]
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
        assert model["directory"] == FOLDERS[loader["type"]]
        if loader["type"] == "CLIPLoader":
            assert loader["widgets_values_named"]["type"] in object_info["CLIPLoader"]["input"]["required"]["type"][0]
