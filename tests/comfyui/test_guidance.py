"""Energy guidance under ComfyUI's own samplers, with the embedded model and its recognizers."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from diffprivacy import demo
from diffprivacy.detectors import load_detector
from diffprivacy.faces import crop_face, crop_landmarks
from tests.comfyui.conftest import PACK
from tests.comfyui.graphs import Graph, slot
from tests.comfyui.photos import pixels, write_astronaut
from tests.comfyui.server import PromptError
from tests.comfyui.workflows import load_prompt

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def photo(server):
    return write_astronaut(server.base / "input")


@pytest.fixture(scope="module")
def face(photo):
    (found,) = load_detector(None).detect(picture(photo))
    return found


def picture(path) -> torch.Tensor:
    return torch.from_numpy(pixels(path).astype(np.float32) / 255)


def anonymized(sampler: str = "euler", scheduler: str = "normal", custom: bool = False, **guidance) -> Graph:
    """One demo crop redrawn; guidance are the inputs of Energy Guidance, none for the plain model."""
    graph = Graph()
    loader = graph.add("DiffPrivacyLoadDemoModel")
    image = graph.add("LoadImage", image="astronaut.png")
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    faces = graph.add("DiffPrivacyDetectFaces", image=image, detector=detector, select="all", without_face="error")
    crops = graph.add(
        "DiffPrivacyCropFaces", image=image, faces=faces, size=demo.IMAGE_SIZE, margin=demo.MARGIN, variants=2
    )
    model, clip, vae, guide = loader, slot(loader, 1), slot(loader, 2), slot(loader, 4)
    if guidance:
        energy = graph.add(
            "DiffPrivacyAnonymizeEnergy",
            **{"recognizer": guide, "reference": crops, "faces": slot(crops, 2), "identity": 1.0, "diversity": 1.0},
            **{"form": "smooth", "augmentations": 0},
        )
        settings = {"rule": "normalized", "scale": 0.1, "from_step": 999, "to_step": 0, "every": 1}
        settings |= {"decoder": "VAE", "chunk": 0} | guidance
        model = graph.add("DiffPrivacyEnergyGuidance", model=model, vae=vae, energy=energy, **settings)
    prompt = graph.add("CLIPTextEncode", clip=clip, text="")
    latent = graph.add("VAEEncode", pixels=crops, vae=vae)
    if custom:
        samples = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=7),
            guider=graph.add("BasicGuider", model=model, conditioning=prompt),
            sampler=graph.add("KSamplerSelect", sampler_name=sampler),
            sigmas=graph.add("BasicScheduler", model=model, scheduler=scheduler, steps=STEPS, denoise=0.6),
            latent_image=latent,
        )
    else:
        samples = graph.add(
            "KSampler",
            **{"model": model, "positive": prompt, "negative": prompt, "latent_image": latent, "seed": 7},
            **{"steps": STEPS, "cfg": 1.0, "sampler_name": sampler, "scheduler": scheduler, "denoise": 0.6},
        )
    pasted = graph.add(
        "DiffPrivacyPasteFaces",
        image=image,
        crops=graph.add("VAEDecode", samples=samples, vae=vae),
        faces=slot(crops, 2),
    )
    graph.add("DiffPrivacySaveProtected", image=pasted, filename_prefix="guided")
    return graph


def run(server, graph: Graph) -> list[np.ndarray]:
    (node,) = (name for name, entry in graph.items() if entry["class_type"] == "DiffPrivacySaveProtected")
    return [server.picture(reference) for reference in server.run(graph)[node]["images"]]


def likeness(protected: list[np.ndarray], photo, face) -> float:
    """Mean cosine of the guide between the original face and the protected ones."""
    guide = demo.load_recognizer("guide")
    landmarks = crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN)[None]

    def embed(rgb: torch.Tensor):
        crop = crop_face(rgb, face, demo.IMAGE_SIZE, demo.MARGIN)
        return guide.reference(crop.movedim(-1, 0)[None], landmarks)

    original = embed(picture(photo))
    others = [embed(torch.from_numpy(rgb.astype(np.float32) / 255)) for rgb in protected]
    return float(np.mean([guide.cosine(original, other).item() for other in others]))


@pytest.mark.parametrize(
    ("sampler", "scheduler", "custom"),
    [("euler", "normal", False), ("dpmpp_2m", "karras", False), ("euler", "ddim_uniform", True)],
)
def test_guidance_takes_the_face_away_under_any_sampler(server, photo, face, sampler, scheduler, custom):
    plain = likeness(run(server, anonymized(sampler, scheduler, custom)), photo, face)
    guided = likeness(run(server, anonymized(sampler, scheduler, custom, scale=0.2)), photo, face)
    assert guided < plain - 0.1


def test_scale_zero_is_the_plain_model_bit_for_bit(server):
    for plain, off in zip(run(server, anonymized()), run(server, anonymized(scale=0.0)), strict=True):
        assert np.array_equal(plain, off)


def test_an_interval_that_no_step_meets_is_the_plain_model(server):
    for plain, off in zip(run(server, anonymized()), run(server, anonymized(from_step=5, to_step=4)), strict=True):
        assert np.array_equal(plain, off)


def test_chunks_change_nothing_but_memory(server):
    """At a gentle scale: the stronger the guidance, the more it amplifies the order of rounding."""
    whole, chunked = (run(server, anonymized(scale=0.015, chunk=chunk)) for chunk in (0, 1))
    for a, b in zip(whole, chunked, strict=True):
        difference = np.abs(a.astype(int) - b.astype(int))
        assert difference.max() <= 8
        assert difference.mean() < 0.1


def test_plain_graphs_give_the_same_before_and_after_guidance(server):
    before = run(server, anonymized())
    run(server, anonymized(scale=0.2))
    server.post("/free", {"unload_models": True, "free_memory": True})
    for a, b in zip(before, run(server, anonymized()), strict=True):
        assert np.array_equal(a, b)


def test_interrupt_leaves_comfyui_usable(server):
    graph = anonymized(scale=0.3)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 500
    prompt_id = server.queue(graph)
    deadline = time.monotonic() + 120
    while "/500" not in server.log() and time.monotonic() < deadline:
        time.sleep(0.2)
    server.post("/interrupt")
    with pytest.raises(PromptError, match="KSampler"):
        server.wait(prompt_id, seconds=60)
    assert len(run(server, anonymized())) == 2


def test_steps_the_wrong_way_round(server):
    with pytest.raises(PromptError, match="from_step"):
        run(server, anonymized(from_step=100, to_step=900))


def test_variants_workflow_makes_four_other_people(server, photo, face):
    """The example as saved, with fewer steps: four variants, none the original, no two alike."""
    prompt = load_prompt(
        PACK / "workflows" / "variants.json",
        server.get("/object_info"),
        KSampler__steps=10,
    )
    variants = run(server, Graph(prompt))
    assert len(variants) == 4
    assert likeness(variants, photo, face) < 0.2
    changes = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(variants) for b in variants[:i]]
    assert min(changes) > 0.5
