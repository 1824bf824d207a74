"""Personas in a real ComfyUI: the same new face in every run, from a sealed file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffprivacy.demo import load_recognizer
from diffprivacy.personas.files import PersonaFile
from tests.comfyui.graphs import Graph, demo_crops, slot
from tests.comfyui.photos import write_astronaut
from tests.comfyui.server import ComfyServer, PromptError


@pytest.fixture(scope="module")
def secret(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the passphrase."""
    write_astronaut(server.base / "input")
    file = tmp_path_factory.mktemp("secret") / "passphrase.txt"
    file.write_text("correct-horse-battery")
    return file


def face(server: ComfyServer, name: str, secret: Path) -> np.ndarray:
    """The new face of the photo."""
    graph = Graph()
    loader, image, crops = demo_crops(graph, 1)
    personas = graph.add("DiffPrivacyLoadPersonas", name=name, secret=f"file:{secret}")
    assigned = graph.add(
        "DiffPrivacyAssignPersonas",
        **{"personas": personas, "image": image, "reference": crops, "faces": slot(crops, 2)},
        recognizer=slot(loader, 4),
    )
    guided = graph.add(
        "DiffPrivacyEnergyGuidance",
        **{"model": loader, "vae": slot(loader, 2), "energy": slot(assigned, 2), "rule": "normalized", "scale": 0.03},
        **{"from_step": 999, "to_step": 251, "every": 1, "decoder": "VAE", "chunk": 0},
    )
    empty = graph.add("CLIPTextEncode", clip=slot(loader, 1), text="")
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=slot(assigned, 1),
        guider=graph.add("BasicGuider", model=guided, conditioning=empty),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.add("BasicScheduler", model=loader, scheduler="ddim_uniform", steps=2, denoise=0.9),
        latent_image=graph.add("VAEEncode", pixels=crops, vae=slot(loader, 2)),
    )
    new = graph.add("VAEDecode", samples=sampled, vae=slot(loader, 2))
    graph.add("DiffPrivacySavePersonas", personas=assigned)
    shown = graph.add("PreviewImage", images=new)
    outputs = server.run(graph)
    return server.picture(outputs[shown[0]]["images"][0])


def test_a_person_gets_one_face_in_every_run_until_another_file_is_taken(server, secret):
    """And at the command line, whose file it is too."""
    first = face(server, "album", secret)
    file = server.base / "models" / "personas" / "album.age"
    sealed = file.read_bytes()
    assert np.array_equal(face(server, "album", secret), first) and file.read_bytes() == sealed
    assert np.abs(face(server, "other", secret).astype(float) - first).mean() > 2
    book = PersonaFile(file, secret.read_text()).read()
    book.use(load_recognizer("guide"))
    assert len(book) == 1 and not (file.stat().st_mode & 0o077)
    secret.write_text("wrong")
    with pytest.raises(PromptError, match=r"album\.age, the persona file, does not open: The passphrase is wrong"):
        face(server, "album", secret)
    assert "correct-horse" not in json.dumps(server.get("/history")) + server.log()


def test_a_file_elsewhere_and_a_secret_in_a_widget_are_refused(server, secret):
    with pytest.raises(PromptError, match="Socket `name`: Give a name of letters"):
        face(server, "../album", secret)
    graph = Graph()
    graph.add("DiffPrivacySavePersonas", personas=graph.add("DiffPrivacyLoadPersonas", name="album", secret="hunter2"))
    with pytest.raises(PromptError, match="must be env:NAME or file:PATH"):
        server.queue(graph)
