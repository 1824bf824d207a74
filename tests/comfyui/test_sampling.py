"""Inversion and embedding schedules in a real ComfyUI, replayed with its stock samplers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from diffprivacy.backends.single_file import UNET_PREFIX, part
from tests.comfyui.graphs import Graph, saved_latent, slot, write_controlnet, write_latent, write_lora
from tests.comfyui.server import ComfyServer, PromptError

STEPS = 10


@pytest.fixture(scope="module")
def latent(server: ComfyServer) -> Tensor:
    """Two non-square latents as a VAE makes them: unscaled, of about the usual variance."""
    samples = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(5)) * 4
    write_latent(server, "original.latent", samples)
    return samples


@pytest.fixture(scope="module", autouse=True)
def extras(server: ComfyServer, tiny_checkpoint: Path) -> None:
    for folder in ("loras", "controlnet"):
        (server.base / "models" / folder).mkdir(exist_ok=True)
    write_lora(server.base / "models" / "loras" / "tiny-lora.safetensors")
    unet = part(load_file(tiny_checkpoint), UNET_PREFIX)
    write_controlnet(server.base / "models" / "controlnet" / "tiny-controlnet.safetensors", unet)
    stripes = np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    Image.fromarray(stripes).save(server.base / "input" / "stripes.png")


def base(method: str, scheduler: str = "normal", lora: bool = False, v_prediction: bool = False) -> tuple:
    """A graph up to the inversion: (graph, model, positive, sigmas, inversion)."""
    graph = Graph()
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    model = loader
    if lora:
        model = graph.add("LoraLoaderModelOnly", model=model, lora_name="tiny-lora.safetensors", strength_model=1.0)
    if v_prediction:
        model = graph.add("ModelSamplingDiscrete", model=model, sampling="v_prediction", zsnr=False)
    positive = graph.add("CLIPTextEncode", clip=slot(loader, 1), text="a photo of a face")
    sigmas = graph.add("BasicScheduler", model=model, scheduler=scheduler, steps=STEPS, denoise=1.0)
    latent = graph.add("LoadLatent", latent="original.latent")
    inverted = graph.add(
        "DiffPrivacyInvertLatent",
        **{"model": model, "positive": positive, "latent_image": latent, "sigmas": sigmas},
        **{"method": method, "iterations": 40},
    )
    return graph, model, positive, sigmas, inverted


def replay(graph: Graph, model: list, positive: list, sigmas: list, noise_map: list, sampler: list) -> list:
    """Stock nodes back down; returns the SaveLatent node."""
    guider = graph.add("BasicGuider", model=model, conditioning=positive)
    samples = graph.add(
        "SamplerCustomAdvanced",
        **{"noise": graph.add("DisableNoise"), "guider": guider, "sampler": sampler},
        **{"sigmas": sigmas, "latent_image": noise_map},
    )
    return graph.add("SaveLatent", samples=samples, filename_prefix="latents/replayed")


def round_trip(server: ComfyServer, original: Tensor, *parts, sampler: str = "euler") -> float:
    """Relative RMSE of invert and replay; sampler "replay" takes the block's own."""
    graph, model, positive, sigmas, inverted = parts
    chosen = slot(inverted, 1) if sampler == "replay" else graph.add("KSamplerSelect", sampler_name=sampler)
    saved = replay(graph, model, positive, sigmas, inverted, chosen)
    return error(saved_latent(server, server.run(graph), saved), original)


def error(found: Tensor, original: Tensor) -> float:
    return float((found - original).square().mean().sqrt() / original.square().mean().sqrt())


def test_fixed_point_replays_with_stock_euler_also_after_the_model_was_unloaded(server, latent):
    """At once, and from the noise map in a file by a second prompt, everything being freed."""
    graph, model, positive, sigmas, inverted = base("fixed point")
    noise_map = graph.add("SaveLatent", samples=inverted, filename_prefix="latents/noise")
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    saved = replay(graph, model, positive, sigmas, inverted, euler)
    outputs = server.run(graph)
    assert error(saved_latent(server, outputs, saved), latent) < 1e-4
    write_latent(server, "noise.latent", saved_latent(server, outputs, noise_map))
    server.free()
    graph, model, positive, sigmas, inverted = base("fixed point")
    del graph[inverted[0]]
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    saved = replay(graph, model, positive, sigmas, graph.add("LoadLatent", latent="noise.latent"), euler)
    assert error(saved_latent(server, server.run(graph), saved), latent) < 1e-4


def test_belm_replays_with_its_own_sampler(server, latent):
    assert round_trip(server, latent, *base("belm"), sampler="replay") < 1e-4


def test_ddim_is_approximate(server, latent):
    assert round_trip(server, latent, *base("ddim")) > 1e-3


def test_lora_applies_in_both_directions(server, latent):
    graph, model, positive, sigmas, inverted = base("belm", lora=True)
    plain = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    assert round_trip(server, latent, graph, model, positive, sigmas, inverted, sampler="replay") < 1e-4
    assert round_trip(server, latent, graph, plain, positive, sigmas, inverted, sampler="replay") > 1e-3


def test_v_prediction(server, latent):
    assert round_trip(server, latent, *base("belm", v_prediction=True), sampler="replay") < 1e-4


def test_controlnet_conditioning(server, latent):
    graph, model, positive, sigmas, inverted = base("belm")
    controlled = graph.add(
        "ControlNetApplyAdvanced",
        **{"positive": positive, "negative": positive, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
        control_net=graph.add("ControlNetLoader", control_net_name="tiny-controlnet.safetensors"),
        image=graph.add("LoadImage", image="stripes.png"),
    )
    graph[inverted[0]]["inputs"]["positive"] = controlled
    assert round_trip(server, latent, graph, model, controlled, sigmas, inverted, sampler="replay") < 1e-4
    assert round_trip(server, latent, graph, model, positive, sigmas, inverted, sampler="replay") > 1e-3


def test_noise_mask_leaves_the_outside_alone(server, latent):
    """And another schedule is inverted as well."""
    graph, model, positive, sigmas, inverted = base("fixed point", "karras")
    mask = graph.add("SolidMask", value=0.0, width=48, height=64)
    square = graph.add("SolidMask", value=1.0, width=24, height=32)
    mask = graph.add("MaskComposite", destination=mask, source=square, x=0, y=0, operation="add")
    original = graph[inverted[0]]["inputs"]["latent_image"]
    masked = graph.add("SetLatentNoiseMask", samples=original, mask=mask)
    graph[inverted[0]]["inputs"]["latent_image"] = masked
    noise_map = graph.add("SaveLatent", samples=inverted, filename_prefix="latents/noise")
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    saved = replay(graph, model, positive, sigmas, inverted, euler)
    outputs = server.run(graph)
    noise = saved_latent(server, outputs, noise_map)
    assert error(noise[..., 4:, :], latent[..., 4:, :]) < 1e-6
    assert error(noise[..., :4, :3], latent[..., :4, :3]) > 0.5
    assert error(saved_latent(server, outputs, saved), latent) < 1e-4


def test_embedding_schedule_holds_in_both_directions(server, latent):
    """A switch in the middle: inverted and replayed with the schedule exact, with either prompt alone not."""
    graph, model, early, sigmas, inverted = base("belm")
    clip = graph[early[0]]["inputs"]["clip"]
    late = graph.add("CLIPTextEncode", clip=clip, text="")
    schedule = graph.add(
        "DiffPrivacyEmbeddingSchedule",
        **{"early": early, "late": late, "preset": "anonymize", "switch_step": 0, "blend": 0},
    )
    graph[inverted[0]]["inputs"]["positive"] = schedule
    assert round_trip(server, latent, graph, model, schedule, sigmas, inverted, sampler="replay") < 1e-4
    assert round_trip(server, latent, graph, model, late, sigmas, inverted, sampler="replay") > 1e-3


def sampled(server: ComfyServer, text: str, schedule: dict | None = None, late: str = "") -> Tensor:
    """KSampler from seeded noise with one prompt, or with a schedule of two."""
    graph = Graph()
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    positive = graph.add("CLIPTextEncode", clip=slot(loader, 1), text=text)
    if schedule is not None:
        other = graph.add("CLIPTextEncode", clip=slot(loader, 1), text=late)
        positive = graph.add("DiffPrivacyEmbeddingSchedule", early=positive, late=other, **schedule)
    samples = graph.add(
        "KSampler",
        **{"model": loader, "positive": positive, "negative": positive, "seed": 1, "steps": STEPS, "cfg": 1.0},
        **{"sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0},
        latent_image=graph.add("EmptyLatentImage", width=48, height=64, batch_size=1),
    )
    saved = graph.add("SaveLatent", samples=samples, filename_prefix="latents/sampled")
    return saved_latent(server, server.run(graph), saved)


@pytest.fixture(scope="module")
def of_one_prompt(server) -> Tensor:
    return sampled(server, "a face")


def test_schedule_with_one_prompt_is_the_prompt(server, of_one_prompt):
    for schedule in (
        {"preset": "hide", "switch_step": 0, "blend": 0},
        {"preset": "recover", "switch_step": 0, "blend": 0},
        {"preset": "custom", "switch_step": 500, "blend": 200},
    ):
        assert error(sampled(server, "a face", schedule, late="a face"), of_one_prompt) < 1e-6


def test_recover_never_switches_and_anonymize_does(server, of_one_prompt):
    recover = {"preset": "recover", "switch_step": 0, "blend": 0}
    anonymize = {"preset": "anonymize", "switch_step": 0, "blend": 0}
    assert torch.equal(sampled(server, "a face", recover, late="a dog"), of_one_prompt)
    assert error(sampled(server, "a face", anonymize, late="a dog"), of_one_prompt) > 1e-4


def test_schedule_over_a_gap_is_an_error(server):
    graph = Graph()
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    prompt = graph.add("CLIPTextEncode", clip=slot(loader, 1), text="")
    half = graph.add("ConditioningSetTimestepRange", conditioning=prompt, start=0.0, end=0.3)
    schedule = graph.add(
        "DiffPrivacyEmbeddingSchedule",
        **{"early": half, "late": prompt, "preset": "anonymize", "switch_step": 0, "blend": 0},
    )
    sigmas = graph.add("BasicScheduler", model=loader, scheduler="normal", steps=STEPS, denoise=1.0)
    original = graph.add("LoadLatent", latent="original.latent")
    inverted = graph.add(
        "DiffPrivacyInvertLatent",
        **{"model": loader, "positive": schedule, "latent_image": original, "sigmas": sigmas},
        **{"method": "ddim", "iterations": 1},
    )
    graph.add("SaveLatent", samples=inverted, filename_prefix="latents/gap")
    with pytest.raises(PromptError, match=r"Socket `early`.*401 to 699"):
        server.run(graph)


def test_latent_of_another_model(server, latent):
    write_latent(server, "flux.latent", torch.randn(1, 16, 8, 8))
    graph, *_, inverted = base("ddim")
    graph[inverted[0]]["inputs"]["latent_image"] = graph.add("LoadLatent", latent="flux.latent")
    graph.add("SaveLatent", samples=inverted, filename_prefix="latents/none")
    with pytest.raises(PromptError, match=r"Socket `latent_image`.*16 channels"):
        server.run(graph)


def test_sigmas_that_do_not_descend(server, latent):
    graph, _, _, sigmas, inverted = base("ddim")
    graph[inverted[0]]["inputs"]["sigmas"] = graph.add("FlipSigmas", sigmas=sigmas)
    graph.add("SaveLatent", samples=inverted, filename_prefix="latents/none")
    with pytest.raises(PromptError, match=r"Socket `sigmas`.*descend"):
        server.run(graph)
