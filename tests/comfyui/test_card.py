"""ComfyUI's memory management as on an NVIDIA card: no crash, right gradients, nothing loaded twice.

The scenarios run in processes of their own, so that a crash of the process is a failed test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.comfyui.conftest import PACK

PROMPTS, STEPS = 3, 2
"""Guided prompts of a round of rounds.py, and steps of each and of training."""
ROUNDS = {
    **{("dynamic", memory): rounds for memory, rounds in (("half", 2), ("all", 1), ("little", 1))},
    **{("legacy", memory): 1 for memory in ("half", "all", "little")},
}
"""Rounds under each of ComfyUI's patchers, with memory on the card for all, for half and for almost nothing."""


@pytest.fixture(scope="module")
def run(inside) -> Callable[..., dict[str, Any]]:
    """Runs a script; a leak that ComfyUI warns of is a failed test."""

    def run(*arguments: object, script: str = "card.py") -> dict[str, Any]:
        ended = inside(script, PACK, *arguments)
        assert "memory leak" not in ended.errors.lower()
        return ended.found()

    return run


@pytest.fixture(scope="module")
def found(run) -> dict[str, Any]:
    scenarios = ("reloaded", "uploads", "crowded", "quantized", "loads_while_sampling", "attention")
    return run(*scenarios, "displacements", "shares", "half_precision", "no_room")


def test_a_decoder_comes_and_goes_beside_a_vae_that_comfyui_holds_in_pages(run):
    """The copy had owned the VAE's native memory a second time: the process died when either was freed."""
    found = run("prompts")["prompts"]
    assert found["dynamic"]
    assert found["left"] == []
    assert found["encoder"]
    assert found["gradient"] > 0
    assert found["pages"] > 0
    assert found["mistakes"] == []
    assert found["pages after"] == 0


@pytest.fixture(scope="module")
def rounds(run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = [f"{patcher}:{memory}:{count}" for (patcher, memory), count in ROUNDS.items()]
    return run(tmp_path_factory.mktemp("decoder"), *runs, script="rounds.py")


@pytest.mark.parametrize(("patcher", "memory"), ROUNDS)
def test_prompts_and_training_one_after_the_other(rounds, patcher: str, memory: str):
    """On a card that computes, whose memory is enough or not: every gradient is the one of plain modules, and nothing
    stays behind."""
    made = rounds[f"{patcher}, {memory}"]
    assert made["dynamic"] == (patcher == "dynamic")
    assert made["refused"] == []
    for errors, count in ((made["gradients"], PROMPTS), (made["training"], 1)):
        assert len(errors) >= ROUNDS[patcher, memory] * count * STEPS
        assert all(error < 1e-3 for error in errors)
    assert made["left"] == []
    assert made["loaded"] == 0
    assert (made["pages"], made["mistakes"]) == (0, [])


@pytest.fixture(scope="module")
def weights(run) -> dict[str, Any]:
    return run(script="weights.py")


def test_a_decoder_computes_in_the_vae_s_precision_whatever_its_file_holds(weights):
    """Under dynamic VRAM modules hold the file's precision, which ComfyUI's layers cast at each use."""
    found = weights["precisions"]
    assert found["held"] == "torch.float16"
    assert found["torch.float32"] < 1e-3
    assert found["torch.bfloat16"] < 0.1
    assert found["video"] < 1e-3


def test_weights_made_in_inference_mode_and_moved_outside_it_are_read(weights):
    """So they are with --highvram and --disable-dynamic-vram: PyTorch refused views of them."""
    found = weights["moved"]
    assert found["same"]
    assert found["word"] == 0
    assert found["gradient"] > 0


def test_no_room_for_one_image_is_an_error_that_names_the_remedy(found):
    for decoder, remedy in (
        ("VAE", "a TAESD in models/vae_approx"),
        ("TAESD if present", "a smaller image takes less"),
    ):
        assert found["no_room"][decoder].startswith(f"Out of memory with one image at a time: {remedy}")


def test_gradients_hold_after_comfyui_has_moved_the_network_off_and_on_again(found):
    assert max(found["reloaded"]["errors"]) < 1e-6


def test_a_recognizer_is_uploaded_once_and_whole(found):
    found = found["uploads"]
    assert found["calls"][0] >= found["size"]
    assert found["calls"][1:] == [0, 0]
    assert found["devices"] == ["meta"]


def test_a_private_network_is_whole_even_with_too_little_memory(found):
    found = found["crowded"]
    for vram in ("low", "none"):
        assert set(found[vram]) == {"meta"}
        assert not found[f"{vram}_casts"]


def test_quantized_weights_are_refused_with_the_remedy(found):
    found = found["quantized"]
    for kind in ("fp8", "quantized"):
        assert found[kind].startswith("DiffPrivacyError")
        assert "load the model's file in float16, bfloat16 or float32" in found[kind]


def test_nothing_is_loaded_in_the_middle_of_a_guided_step(found):
    """What is loaded there may push the running UNet off the card."""
    events = found["loads_while_sampling"]["events"]
    runs = "".join({"run": "|", "load": "L", "guide": "g"}[event] for event in events).split("|")[1:]
    assert len(runs) == 2
    for run in runs:
        assert run.lstrip("L") == "ggg"
        assert run.startswith("L")


def test_training_uses_an_attention_that_has_gradients(found):
    assert found["attention"]["gradient"] > 0


def test_inversion_in_half_precision_stops_where_its_rounding_begins(found):
    (count, error), (exact_count, exact_error) = (found["half_precision"][name] for name in ("own", "float32's"))
    assert count < 0.8 * exact_count
    assert error < 2 * exact_error + 1e-3


SECOND = 2.0 / 5.0
"""Sigma after the second step, against that before it."""


def test_a_guided_step_goes_as_far_with_every_sampler_and_guider(found):
    """CFG++, LCM and ancestral samplers went several times as far; Dual CFG multiplied the guidance."""
    for name, multiple in found["displacements"].items():
        assert multiple == pytest.approx(1, abs=0.02), name


def test_every_sampler_of_comfyui_is_measured(found):
    """Those that solve the same equation take Euler's share of a change, CFG++ and LCM all of it."""
    shares = found["shares"]
    for name in (
        "heun",
        "dpm_2",
        "lms",
        "dpm_adaptive",
        "dpmpp_2m",
        "ipndm",
        "deis",
        "res_multistep",
        "ddim",
        "uni_pc",
    ):
        assert shares[name] == 1.0, name
    for name in ("euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "lcm"):
        assert shares[name] == pytest.approx(1 - SECOND, rel=1e-3), name
    down = SECOND**2  # Of an ancestral step sigma_down = sigma_next^2 / sigma.
    for name in ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "ddpm", "seeds_2"):
        assert shares[name] == pytest.approx((1 - SECOND) / (1 - down), rel=1e-3), name
    assert not shares["numbers drawn"]


def test_a_sampler_that_takes_nothing_is_an_error_that_names_others(found):
    assert found["shares"]["error"].startswith("DiffPrivacyError: The sampler")
    assert "choose euler, dpmpp_2m or res_multistep" in found["shares"]["error"]
