"""Flow and video models in ComfyUI: guidance, schedules, inversion and replay on a small model of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.conftest import PACK

IMAGES = ("sd3", "flux", "flux2")
VIDEO = ("wan", "qwen_image", "krea2", "cosmos")
FLOW = (*IMAGES, "wan", "qwen_image", "krea2")


@pytest.fixture(scope="module")
def found(inside, flow_models: Path) -> dict[str, dict[str, Any]]:
    return inside("flow.py", PACK, flow_models, *IMAGES, *VIDEO).found()


def test_latents_have_the_dimensions_of_their_family(found):
    assert {found[name]["dimensions"] for name in IMAGES} == {4}
    assert {found[name]["dimensions"] for name in VIDEO} == {5}


@pytest.mark.parametrize("family", ["ZImage", "Lumina2", "HiDream", "Chroma"])
def test_families_of_fixed_widths_have_levels_latents_and_a_decoder(found, family):
    """They cannot be made small enough to be sampled here."""
    off, channels, dimensions, downscale, decoder = found["fixed widths"][family]
    assert off < 1e-5
    assert (channels, dimensions, downscale, decoder) == (16, 2, 8, "taef1_decoder")


@pytest.mark.parametrize("family", [*IMAGES, *VIDEO])
def test_guidance_lowers_the_energy_with_few_and_many_steps(found, family):
    for run, (plain, guided) in found[family]["energies"].items():
        assert guided < plain - 0.03, run
    plain, guided = found[family]["whole"]
    assert guided < plain - 0.03
    assert found[family]["off is the model"]


@pytest.mark.parametrize("family", [*IMAGES, *VIDEO])
def test_what_is_inverted_comes_back(found, family):
    """With a schedule of two conditionings, with and without a mask."""
    for run, error in found[family]["replayed"].items():
        assert error < 1e-3, run
    assert found[family]["changed"] > 0.1


@pytest.mark.parametrize("family", [*IMAGES, *VIDEO])
def test_a_sealed_key_holds_what_its_model_is_given(found, family):
    """Latents of five dimensions, and the guidance of Flux beside its text."""
    sealed = found[family]["sealed"]
    assert sealed["error"] < 1e-3
    if family.startswith("flux"):
        assert sealed["without guidance"] > 1e-2


@pytest.mark.parametrize("family", FLOW)
def test_time_1_keeps_nothing_and_is_an_error(found, family):
    assert found[family]["time 1"] == 1
    assert found[family]["from time 1"].startswith("DiffPrivacyError")
    assert "take 8 steps with a denoise of at most 0.89" in found[family]["from time 1"]


@pytest.mark.parametrize("family", VIDEO)
def test_frames_are_no_batch_of_faces(found, family):
    for use in ("inverted", "guided"):
        assert "The latent is a video of 2 frames" in found[family][f"video, {use}"]
        assert "Crops to Latent" in found[family][f"video, {use}"]


def test_crops_become_a_latent_each(found):
    """Stock VAE Encode makes one video of them."""
    assert found["wan"]["stock latent"][0] == 1
    assert found["wan"]["latent of crops"] == [[3, 16, 1, 8, 8], [3, 1, 1, 8, 8]]


def test_reference_latents_of_edit_models_are_warned_of(found):
    assert found["flux"]["said"] == [0, 1]
    assert "protect without them, and edit the protected image after" in found["flux"]["warning"]
