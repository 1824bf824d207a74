"""Energy guidance under ComfyUI's own samplers, with the embedded model and its recognizers."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffprivacy import demo
from diffprivacy.evaluation.utility import changes, looks
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, crop_landmarks
from tests.comfyui.conftest import PACK
from tests.comfyui.graphs import Graph, saved_latent, slot
from tests.comfyui.guided import anonymized, run
from tests.comfyui.photos import pixels, write_astronaut, write_group, write_landscape
from tests.comfyui.server import PromptError
from tests.comfyui.workflows import load_prompt


@pytest.fixture(scope="module", autouse=True)
def photo(server):
    return write_astronaut(server.base / "input")


@pytest.fixture(scope="module")
def face(photo):
    (found,) = load_detector(None).detect(picture(photo))
    return found


def picture(path) -> torch.Tensor:
    return torch.from_numpy(pixels(path).astype(np.float32) / 255)


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


def test_expressions_are_kept_beside_another_energy(server, photo, face):
    """Two energies in one graph: eyes and smile change less than with that of identity alone, which still works."""
    before = looks(picture(photo), face)

    def changed(faces: list[np.ndarray]) -> float:
        after = [looks(torch.from_numpy(rgb.astype(np.float32) / 255), face) for rgb in faces]
        return float(np.mean([changes(before, each)["expression"] for each in after]))

    alone, kept = (run(server, anonymized(scale=0.05, to_step=251, expression=weight)) for weight in (0, 0.5))
    assert changed(kept) < 0.8 * changed(alone)
    assert likeness(kept, photo, face) < 0.6, "the original's is 1"


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
    server.free()
    for a, b in zip(before, run(server, anonymized()), strict=True):
        assert np.array_equal(a, b)


def test_interrupt_leaves_comfyui_usable(server):
    graph = anonymized(scale=0.3)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 500
    prompt_id = server.queue(graph)
    while "/500" not in server.log():
        time.sleep(0.2)
    server.post("/interrupt")
    with pytest.raises(PromptError, match="KSampler"):
        server.wait(prompt_id)
    assert len(run(server, anonymized())) == 2


def test_steps_the_wrong_way_round(server):
    with pytest.raises(PromptError, match="from_step"):
        run(server, anonymized(from_step=100, to_step=900))


def test_variants_workflow_makes_four_other_people(server, photo, face):
    """The example as saved, with fewer steps: four variants, none the original, no two alike."""
    prompt = load_prompt(
        PACK / "workflows" / "variants.json",
        server.get("/object_info"),
        BasicScheduler__steps=10,
    )
    variants = run(server, Graph(prompt))
    assert len(variants) == 4
    assert likeness(variants, photo, face) < 0.2
    changes = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(variants) for b in variants[:i]]
    assert min(changes) > 0.5


def write_taesd(folder: Path) -> Path:
    """A seeded TAESD decoder of SD 1.x under the names that ComfyUI's class gives its layers."""
    random = torch.Generator().manual_seed(0)
    state = {}

    def convolution(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=random) * (9 * inputs) ** -0.5
        if bias:
            state[f"{name}.bias"] = torch.zeros(outputs)

    convolution("1", 4, 64)
    for block in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        for layer in (0, 2, 4):
            convolution(f"{block}.conv.{layer}", 64, 64)
    for layer in (7, 12, 17):
        convolution(str(layer), 64, 64, bias=False)
    convolution("19", 64, 3)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "taesd_decoder.safetensors")
    return folder / "taesd_decoder.safetensors"


def stable_diffusion_guided(decoder: str) -> Graph:
    """Two steps of the tiny SD 1.x checkpoint toward somebody else."""
    graph = Graph()
    demo_model = graph.add("DiffPrivacyLoadDemoModel")
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    image = graph.add("LoadImage", image="astronaut.png")
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    faces = graph.add("DiffPrivacyDetectFaces", image=image, detector=detector, select="all", without_face="error")
    crops = graph.add("DiffPrivacyCropFaces", image=image, faces=faces, size=128, margin=1.8, variants=1)
    energy = graph.add(
        "DiffPrivacyAnonymizeEnergy",
        **{"recognizer": slot(demo_model, 4), "reference": crops, "faces": slot(crops, 2)},
        **{"identity": 1.0, "diversity": 1.0, "form": "smooth", "augmentations": 0},
    )
    model = graph.add(
        "DiffPrivacyEnergyGuidance",
        **{"model": loader, "vae": slot(loader, 2), "energy": energy, "rule": "normalized", "scale": 0.1},
        **{"from_step": 999, "to_step": 0, "every": 1, "decoder": decoder, "chunk": 0},
    )
    prompt = graph.add("CLIPTextEncode", clip=slot(loader, 1), text="")
    samples = graph.add(
        "KSampler",
        **{"model": model, "positive": prompt, "negative": prompt, "seed": 7, "steps": 2, "cfg": 1.0, "denoise": 0.6},
        **{"sampler_name": "euler", "scheduler": "normal"},
        latent_image=graph.add("VAEEncode", pixels=crops, vae=slot(loader, 2)),
    )
    graph.add("SaveLatent", samples=samples, filename_prefix="taesd")
    return graph


def guided_latent(server, decoder: str) -> torch.Tensor:
    graph = stable_diffusion_guided(decoder)
    return saved_latent(server, server.run(graph), [str(len(graph)), 0])


def test_a_taesd_in_vae_approx_is_what_the_energy_looks_through(server):
    """Its gradients are other ones; without the file, and where the VAE is asked for, nothing changes.

    The same graph again takes up a file that has come since, though ComfyUI keeps results of graphs it knows.
    """
    through_vae = guided_latent(server, "VAE")
    assert torch.equal(guided_latent(server, "TAESD if present"), through_vae)
    file = write_taesd(server.base / "models" / "vae_approx")
    through_taesd = guided_latent(server, "TAESD if present")
    assert through_taesd.isfinite().all()
    assert (through_taesd - through_vae).abs().max() > 0.01
    assert torch.equal(guided_latent(server, "VAE"), through_vae)
    file.unlink()


def energy_of(server, picture: str, reference: str) -> None:
    """Anonymize Energy for the faces in a picture; reference: the crops, the picture, or the crops twice."""
    graph = Graph()
    loader = graph.add("DiffPrivacyLoadDemoModel")
    image = graph.add("LoadImage", image=picture)
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    faces = graph.add("DiffPrivacyDetectFaces", image=image, detector=detector, select="all", without_face="error")
    crops, twice = (
        graph.add("DiffPrivacyCropFaces", image=image, faces=faces, size=128, margin=1.8, variants=count)
        for count in (1, 2)
    )
    energy = graph.add(
        "DiffPrivacyAnonymizeEnergy",
        recognizer=slot(loader, 4),
        reference={"crops": crops, "picture": image, "twice": twice}[reference],
        faces=slot(crops, 2),
        **{"identity": 1.0, "diversity": 1.0, "form": "smooth", "augmentations": 0},
    )
    graph.add("PreviewAny", source=energy)
    server.run(graph)


@pytest.mark.parametrize(
    ("picture", "reference", "message"),
    [
        ("no-face.png", "crops", "No face was found"),
        ("astronaut.png", "twice", r"Socket `reference`: 2 images for 1 faces with 1 variant\(s\) each"),
        ("group.png", "picture", r"Socket `reference`: 1 images for 6 faces"),
    ],
)
def test_a_reference_that_does_not_fit_its_faces(server, picture, reference, message):
    write_group(server.base / "input")
    write_landscape(server.base / "input")
    with pytest.raises(PromptError, match=message):
        energy_of(server, picture, reference)


@pytest.mark.parametrize(("person", "message"), [("no-face.png", "0 faces found"), ("group.png", "6 faces found")])
def test_a_person_to_look_for_is_one_face(server, person, message):
    write_group(server.base / "input")
    write_landscape(server.base / "input")
    graph = Graph()
    found = graph.add(
        "DiffPrivacyDetectFaces",
        image=graph.add("LoadImage", image="astronaut.png"),
        detector=graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)"),
        recognizer=slot(graph.add("DiffPrivacyLoadDemoModel"), 4),
        person=graph.add("LoadImage", image=person),
        **{"select": "all", "without_face": "error"},
    )
    graph.add("PreviewAny", source=slot(found, 1))
    with pytest.raises(PromptError, match=rf"Socket `person`: {message}; give an image with exactly one face"):
        server.run(graph)
