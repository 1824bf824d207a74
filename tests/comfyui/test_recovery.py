"""Sealed keys in a real ComfyUI: protected, saved, loaded, opened and replayed with its stock blocks."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyrage
import pytest
from PIL import Image

from diffprivacy.cli import main
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.model import TextConditioning
from diffprivacy.diffusion.sampling import sample_euler
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.geometry import put_face
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.recovery import png
from tests.comfyui.graphs import Graph, slot
from tests.comfyui.photos import pixels, write_astronaut
from tests.comfyui.server import ComfyServer, PromptError
from tests.library.test_old_keys import IDENTITY, OLD, opened

SIZE = 128
MARGIN = 1.45


@pytest.fixture(scope="module")
def photo(server: ComfyServer) -> Path:
    path = write_astronaut(server.base / "input")
    return path.rename(path.with_name("jane-doe.png"))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An identity file and its public key."""
    key = pyrage.x25519.Identity.generate()
    path = tmp_path_factory.mktemp("identity") / "identity.txt"
    path.write_text(str(key))
    return path, str(key.to_public())


def cropped(graph: Graph) -> tuple[list, list, list]:
    """(original, crops, faces) of the photo."""
    original = graph.add("DiffPrivacyLoadProtected", image="jane-doe.png")
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    found = graph.add(
        "DiffPrivacyDetectFaces",
        **{"image": original, "detector": detector, "select": "all", "without_face": "error"},
    )
    crops = graph.add("DiffPrivacyCropFaces", image=original, faces=found, size=SIZE, margin=MARGIN, variants=1)
    return original, crops, slot(crops, 2)


def sealing(server: ComfyServer, method: str, **options) -> tuple[Graph, list]:
    """Protects the photo with faces in negative, and saves it with its key; returns the graph and the saving node."""
    graph = Graph()
    original, crops, faces = cropped(graph)
    inverted = graph.add("ImageInvert", image=crops)
    protected = graph.add("DiffPrivacyPasteFaces", image=original, crops=inverted, faces=faces)
    inputs = {"protected": protected, "faces": faces, "fidelity": "latent", "place": "inside"}
    inputs |= {"recipients": "", "passphrase": "", **options}
    if inputs["fidelity"] == "lossless":
        inputs["original"] = original
    else:
        model = graph.add("DiffPrivacyLoadDemoModel")
        early, late = (graph.add("CLIPTextEncode", clip=slot(model, 1), text=text) for text in ("a photo", ""))
        positive = graph.add(
            "DiffPrivacyEmbeddingSchedule",
            **{"early": early, "late": late, "preset": "anonymize", "switch_step": 400, "blend": 0},
        )
        sigmas = graph.add("BasicScheduler", model=model, scheduler="ddim_uniform", steps=8, denoise=1.0)
        latent = graph.add("VAEEncode", pixels=crops, vae=slot(model, 2))
        noise_map = graph.add(
            "DiffPrivacyInvertLatent",
            **{"model": model, "positive": positive, "latent_image": latent, "sigmas": sigmas},
            **{"method": method, "iterations": 40},
        )
        inputs |= {"noise_map": noise_map, "positive": positive, "sigmas": sigmas}
        round_trip = graph.add("VAEDecode", samples=latent, vae=slot(model, 2))
        ceiling = graph.add("DiffPrivacyPasteFaces", image=original, crops=round_trip, faces=faces)
        graph.add("DiffPrivacySaveProtected", image=ceiling, filename_prefix="ceiling/picture")
    key = graph.add("DiffPrivacySealKey", **inputs)
    saved = graph.add("DiffPrivacySaveProtected", image=protected, filename_prefix="keys/picture", sealed_key=key)
    return graph, saved


def opening(file: str, secret: str, replayed: bool) -> tuple[Graph, list]:
    """Brings the original of a protected picture back; returns the graph and the saving node."""
    graph = Graph()
    protected = graph.add("DiffPrivacyLoadProtected", image=file)
    opened = graph.add("DiffPrivacyOpenKey", protected=protected, sealed_key=slot(protected, 2), secret=secret)
    recovered = slot(opened, 5)
    if replayed:
        model = graph.add("DiffPrivacyLoadDemoModel")
        samples = graph.add(
            "SamplerCustomAdvanced",
            **{"noise": graph.add("DisableNoise"), "sampler": slot(opened, 3), "sigmas": slot(opened, 2)},
            guider=graph.add("BasicGuider", model=model, conditioning=slot(opened, 1)),
            latent_image=opened,
        )
        crops = graph.add("VAEDecode", samples=samples, vae=slot(model, 2))
        recovered = graph.add("DiffPrivacyPasteFaces", image=protected, crops=crops, faces=slot(opened, 4))
    return graph, graph.add("DiffPrivacySaveProtected", image=recovered, filename_prefix="back/picture")


def run(server: ComfyServer, graph: Graph, node: list) -> Path:
    """The picture that a saving node wrote."""
    reference = server.run(graph)[node[0]]["images"][0]
    return server.base / "output" / reference["subfolder"] / reference["filename"]


def published(server: ComfyServer, path: Path) -> str:
    """Copies a saved picture, with what lies beside it, to the input folder."""
    for file in [path, *png.found_beside(path)]:
        shutil.copy(file, server.base / "input" / file.name)
    return path.name


@pytest.mark.parametrize(("method", "fidelity"), [("fixed point", "latent"), ("belm", "compact")])
def test_a_replayed_key_brings_the_picture_back(server, photo, identity, method, fidelity):
    path, recipient = identity
    graph, node = sealing(server, method, fidelity=fidelity, recipients=recipient)
    saved = run(server, graph, node)
    ceiling = read_picture(max((server.base / "output" / "ceiling").glob("*.png"))).rgb
    server.free()
    graph, node = opening(published(server, saved), f"file:{path}", replayed=True)
    back, original = read_picture(run(server, graph, node)).rgb, read_picture(photo).rgb
    # The ceiling keeps the original in the soft border, where the recovery has what the autoencoder gives.
    assert psnr(back, original) > psnr(ceiling, original) - 1.5
    assert psnr(read_picture(saved).rgb, original) < psnr(back, original) - 10


def test_a_key_of_the_first_version_is_replayed_by_its_unet(server, tmp_path):
    """Such a key names no version; the same workflow replays it and newer ones."""
    picture, key, first = read_picture(OLD / "latent.png").rgb, opened("graph.key.age"), load_diffusion_model("0.1")
    write_picture(server.base / "input" / "first.png", Picture(picture))
    shutil.copy(OLD / "graph.key.age", server.base / "input" / "first.png.age")
    (tmp_path / "identity").write_text(IDENTITY)
    graph, node = opening("first.png", f"file:{tmp_path / 'identity'}", replayed=True)
    back = read_picture(run(server, graph, node)).rgb
    assert key.noise_map is not None and key.sigmas is not None
    denoiser = partial(first.denoise, conditioning=TextConditioning(key.embeddings[0].context))
    crop = first.decode(sample_euler(denoiser, key.noise_map, key.sigmas))[0].movedim(0, -1)
    put_face(picture, crop, key.faces[0], [], key.margin)
    assert psnr(back, picture) > 45


def test_a_lossless_key_brings_every_bit_back_in_the_graph_and_at_the_command_line(server, photo, identity, tmp_path):
    path, recipient = identity
    graph, node = sealing(server, "", fidelity="lossless", recipients=f"{recipient}\n", place="beside")
    saved = run(server, graph, node)
    assert png.found_beside(saved)
    graph, node = opening(published(server, saved), f"file:{path}", replayed=False)
    assert np.array_equal(pixels(run(server, graph, node)), pixels(photo))
    assert not np.array_equal(pixels(saved), pixels(photo))
    assert main(["recover", str(saved), "-o", str(tmp_path), "--identity-file", str(path)]) == 0
    assert np.array_equal(pixels(tmp_path / saved.name), pixels(photo))


def test_errors_name_what_to_do(server, photo, identity, tmp_path):
    path, recipient = identity
    graph, node = sealing(server, "", fidelity="lossless", recipients=recipient)
    saved = run(server, graph, node)
    other = tmp_path / "other.txt"
    other.write_text(str(pyrage.x25519.Identity.generate()))
    Image.open(saved).save(server.base / "input" / "anew.png")
    name = published(server, saved)
    for file, secret, message in (
        (name, f"file:{other}", "encrypted to other recipients"),
        (name, "env:NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE"),
        ("anew.png", f"file:{path}", "lost the key"),
    ):
        graph, node = opening(file, secret, replayed=False)
        with pytest.raises(PromptError, match=message):
            server.run(graph)
    graph, node = opening(name, f"file:{path}", replayed=True)
    assert node[0] not in server.run(graph)  # A lossless key has no noise map: what would sample it does not run.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipients": "nobody"}, "no public key"),
        ({}, "either to a passphrase or to public keys"),
        ({"faces": None, "passphrase": "env:HOME"}, "Crop Faces"),
    ],
)
def test_a_key_that_cannot_be_sealed_saves_no_picture(server, photo, identity, options, message):
    graph, _ = sealing(server, "", **{"fidelity": "lossless", **options})
    for node in graph.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items() if value is not None}
    before = set((server.base / "output").rglob("keys/*"))
    with pytest.raises(PromptError, match=message):
        server.run(graph)
    assert set((server.base / "output").rglob("keys/*")) == before


def test_a_secret_in_a_widget_is_refused_before_it_runs(server, photo, identity):
    graph, _ = sealing(server, "", fidelity="lossless", passphrase="hunter2 hunter2")
    with pytest.raises(PromptError, match="must be env:NAME or file:PATH"):
        server.queue(graph)
    assert "hunter2" not in json.dumps(server.get("/history")) + server.log()


def test_nothing_written_holds_the_secret_or_the_inputs_name(server, photo, tmp_path):
    """Everything of a run: history, pictures, keys, log, temporary files; the workflow names only where to look."""
    secret = "correct-horse-battery"
    (tmp_path / "passphrase.txt").write_text(secret)
    graph, node = sealing(server, "", fidelity="lossless", passphrase=f"file:{tmp_path / 'passphrase.txt'}")
    saved = run(server, graph, node)
    opened, node = opening(published(server, saved), f"file:{tmp_path / 'passphrase.txt'}", replayed=False)
    assert np.array_equal(pixels(run(server, opened, node)), pixels(photo))
    assert secret not in json.dumps(server.get("/history"))
    files = [file for file in server.base.rglob("*") if file.is_file() and "custom_nodes" not in file.parts]
    assert saved in files
    for file in files:
        assert secret.encode() not in file.read_bytes(), file
    for file in (server.base / "output").rglob("*"):
        assert file.is_dir() or b"jane-doe" not in file.read_bytes(), file


def test_what_a_key_cannot_hold_is_named(server, photo, identity):
    graph, _ = sealing(server, "ddim", recipients=identity[1])
    seal = next(node["inputs"] for node in graph.values() if node["class_type"] == "DiffPrivacySealKey")
    area = {"conditioning": seal["positive"], "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0}
    seal["positive"] = graph.add("ConditioningSetArea", **area)
    with pytest.raises(PromptError, match="carries area"):
        server.run(graph)


def refusal(server: ComfyServer, graph: Graph) -> str:
    """The message of the error that a graph ends in."""
    with pytest.raises(PromptError) as refused:
        server.run(graph)
    return json.loads(str(refused.value))["exception_message"].strip()


def test_a_secret_that_cannot_be_read_tells_nothing_of_the_disk(server, photo, identity, tmp_path):
    graph, node = sealing(server, "", fidelity="lossless", recipients=identity[1])
    name = published(server, run(server, graph, node))
    contents = {"empty": b"\n", "large": b"x" * (2**16 + 1), "binary": b"\xff\xfe\x00", "folder": None}
    for file, content in contents.items():
        (tmp_path / file).mkdir() if content is None else (tmp_path / file).write_bytes(content)
    places = [f"file:{tmp_path / file}" for file in (*contents, "missing", "empty/below", "nul\0byte")]
    places += ["file:/dev/zero", f"file:/{identity[0]}", "file:\\\\server\\share\\secret.txt", "env:NOT_SET_ANYWHERE"]
    answers = {refusal(server, opening(name, place, replayed=False)[0]).replace(place, "PLACE") for place in places}
    (answer,) = answers
    assert "cannot be read from PLACE" in answer


def test_a_changed_passphrase_is_sealed_to_and_opened_with(server, photo, tmp_path):
    """ComfyUI keeps results of nodes whose inputs are the same: the same file may hold another passphrase."""
    passphrase = tmp_path / "passphrase.txt"
    graph, node = sealing(server, "", fidelity="lossless", passphrase=f"file:{passphrase}")
    seals = []
    for secret in ("first of two", "second of two"):
        passphrase.write_text(secret)
        seals.append(published(server, run(server, graph, node)))
    opened, node = opening(seals[1], f"file:{passphrase}", replayed=False)
    assert np.array_equal(pixels(run(server, opened, node)), pixels(photo))
    passphrase.write_text("first of two")
    assert "passphrase is wrong" in refusal(server, opened)
    history = json.dumps(server.get("/history"))
    assert hashlib.sha256(b"first of two").hexdigest()[:16] not in history
    assert "of two" not in history
