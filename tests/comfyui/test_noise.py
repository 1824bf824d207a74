"""Private Noise: unit Gaussian, fresh at every run, and in nothing that ComfyUI keeps."""

from __future__ import annotations

import json
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.comfyui.conftest import PACK
from tests.comfyui.server import ComfyServer
from tests.comfyui.workflows import load_prompt

WORKFLOWS = sorted([*(PACK / "workflows").glob("*.json"), *(PACK / "subgraphs").glob("*.json")])


@pytest.fixture(scope="module")
def noises(inside, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    outputs = tmp_path_factory.mktemp("noise") / "outputs.safetensors"
    inside("probe_noise.py", outputs)
    return load_file(outputs)


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations of that of unrelated noise."""
    return abs(float((a.double() * b.double()).sum()) / math.sqrt(a.numel()))


def test_every_call_gives_other_noise(noises):
    assert correlation(noises["once"], noises["again"]) < 6
    assert correlation(noises["once"][0], noises["once"][1]) < 6


def test_rows_of_one_index_get_the_same(noises):
    first, other, same = noises["rows"]
    assert torch.equal(first, same)
    assert correlation(first, other) < 6


def test_a_tracks_frames_share_their_aims(noises):
    """Each variant has one of its own, which is the same in every frame: else the new face would change on the way."""
    first, other, again = noises["tracks"].split(2)
    assert torch.equal(first, again)
    rows = torch.cat([first, other]).flatten(1)
    assert len(rows.unique(dim=0)) == 4


def test_latents_of_videos_and_of_several_parts(noises):
    assert noises["video"].shape == (2, 16, 5, 12, 8)
    assert noises["video"].dtype == torch.float16
    assert noises["nested 0"].shape == (2, 8, 3, 6, 4)
    assert noises["nested 1"].shape == (2, 8, 30, 16)
    assert correlation(noises["nested 0"].flatten()[:1000], noises["nested 1"].flatten()[:1000]) < 6


def test_it_is_unit_gaussian(noises):
    for z in (noises["once"].double(), noises["video"].double()):
        error = 1 / math.sqrt(z.numel())
        assert abs(float(z.mean())) < 5 * error
        assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2) * error
        assert abs(float(z.pow(4).mean()) - 3) < 5 * math.sqrt(96) * error


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_no_workflow_that_protects_holds_a_seed(file):
    """But for the training's, which draws nothing that is published."""
    content = json.loads(file.read_text())
    nodes = content["nodes"] + [
        node for block in content.get("definitions", {}).get("subgraphs", []) for node in block["nodes"]
    ]
    widgets = {
        (node["type"], name) for node in nodes for name in node.get("widgets_values_named", {}) if "seed" in name
    }
    assert widgets <= {("DiffPrivacyTrainMSI", "seed"), ("LatentBatchSeedBehavior", "seed_behavior")}


def test_a_prompt_saved_with_its_result_gives_another_result(server: ComfyServer):
    """Whoever gets hold of an image of stock Save Image, which carries the prompt, cannot make the noise again."""
    prompt = load_prompt(PACK / "workflows" / "anonymize.json", server.get("/object_info"))
    for node in prompt.values():
        small = {"augmentations": 0, "steps": 2}
        node["inputs"] |= {name: value for name, value in small.items() if name in node["inputs"]}
    (decode,) = (name for name, node in prompt.items() if node["class_type"] == "VAEDecode")
    prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": [decode, 0], "filename_prefix": "with-prompt"}}
    (reference,) = server.run(prompt)["save"]["images"]
    with Image.open(BytesIO(server.file(reference))) as image:
        first, carried = np.asarray(image).astype(int), json.loads(image.info["prompt"])
    (node,) = (node for node in carried.values() if node["class_type"] == "DiffPrivacyPrivateNoise")
    assert node["inputs"] == {}
    server.free()
    (again,) = server.run(carried)["save"]["images"]
    assert np.abs(server.picture(again).astype(int) - first).mean() > 2
    (fresh,) = server.run(prompt)["save"]["images"]
    assert not np.array_equal(server.picture(fresh), server.picture(again))
