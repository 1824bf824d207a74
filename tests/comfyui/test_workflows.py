"""Every workflow that people open: as saved on the demo model, and on a checkpoint in its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyrage
import pytest
import torch
import torch.nn.functional as F

from diffprivacy import demo
from diffprivacy.demo import showcase
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import MARGIN, crop_face, crop_landmarks, protected_mask
from diffprivacy.faces.keeping import kept_parts
from diffprivacy.personas.book import PersonaBook
from diffprivacy.personas.files import PersonaFile
from tests.comfyui.conftest import PACK
from tests.comfyui.photos import write_astronaut
from tests.comfyui.server import ComfyServer, PromptError
from tests.comfyui.workflows import ON_DEMO_MODEL, changed, load_prompt, to_prompt, with_known_noise

WORKFLOWS = ON_DEMO_MODEL
BLOCKS = sorted((PACK / "subgraphs").glob("*.json"))
KEPT = {"keep-the-eyes", "keep-a-hand"}  # What a recognizer sees of the person in them is measured, not promised.
MATCHED = {"hide-identity", "hide-and-recover", "Hide Identity"}  # What machines still take for the same person.

DEMO = "DiffPrivacyLoadDemoModel"
SOURCES = {
    "IMAGE": ("DiffPrivacyExamplePhoto", 0),
    "MODEL": (DEMO, 0),
    "CLIP": (DEMO, 1),
    "VAE": (DEMO, 2),
    "FACE_RECOGNIZER": (DEMO, 4),
}

RECOVERY_SOURCES = SOURCES | {
    "IMAGE": ("DiffPrivacyLoadProtected", 0),
    "SEALED_KEY": ("DiffPrivacyLoadProtected", 2),
}
PROTECTING = [file for file in WORKFLOWS if "DiffPrivacySaveProtected" in file.read_text()]

OLD = Path(__file__).parent / "old"
BEFORE = [file for file in PROTECTING if (OLD / "0.1" / file.name).exists()]
"""Those that an earlier version had, too."""

every_protecting = pytest.mark.parametrize("file", PROTECTING, ids=lambda file: file.stem)
every_old = pytest.mark.parametrize("file", BEFORE, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def object_info(server: ComfyServer) -> dict:
    return server.get("/object_info")


def of_type(prompt: dict, kind: str) -> list[str]:
    return [name for name, node in prompt.items() if node["class_type"] == kind]


def pictures(server: ComfyServer, outputs: dict, node: str) -> list[np.ndarray]:
    return [server.picture(reference) for reference in outputs[node]["images"]]


def faces_in(picture: np.ndarray) -> list:
    """The faces from left to right."""
    found = load_detector(None).detect(torch.from_numpy(picture.astype(np.float32) / 255))
    return sorted(found, key=lambda face: face.box[0])


def check_protected(
    original: np.ndarray, protected: np.ndarray, chosen: list, margin: float, elsewhere: int = 0
) -> None:
    """The chosen faces are others, every pixel outside them is the same.

    elsewhere: by how many pixels faces may lie elsewhere than they are found in the whole image.
    """
    reach = F.max_pool2d(protected_mask(original.shape[:2], chosen, margin)[None], 2 * elsewhere + 1, 1, elsewhere)[0]
    outside = reach.numpy() == 0
    assert np.array_equal(protected[outside], original[outside])
    for face in chosen:
        inside = protected_mask(original.shape[:2], [face], margin).numpy() == 1
        assert np.abs(protected.astype(int) - original)[inside].mean() > 8


def check_kept(prompt: dict, crop: str, original: np.ndarray, protected: np.ndarray, found: list) -> None:
    """What Crop Faces is told to keep is as it was."""
    if parts := prompt[crop]["inputs"]["keep"]:
        kept = kept_parts(original.shape[:2], found, parts.split(",")).numpy() == 1
        assert kept.any() and np.array_equal(protected[kept], original[kept])


def likeness(original: np.ndarray, protected: np.ndarray, face) -> float:
    """Cosine between a face in two versions of a picture, for the recognizer that guided."""
    guide = demo.load_recognizer("guide")
    landmarks = crop_landmarks(face, 224, margin=2.0)[None]
    a, b = (
        guide.reference(
            crop_face(torch.from_numpy(rgb.astype(np.float32) / 255), face, 224, margin=2.0).movedim(-1, 0)[None],
            landmarks,
        )
        for rgb in (original, protected)
    )
    return guide.cosine(a, b).item()


def quick(prompt: dict, steps: int) -> dict:
    """The prompt with few steps, and energies without augmentations; inversion in very few is an approximation."""
    for node in prompt.values():
        small = {"augmentations": 0, "steps": steps, "batch": 2} | ({"iterations": 4} if steps < 8 else {})
        node["inputs"] |= {name: value for name, value in small.items() if name in node["inputs"]}
    return prompt


def run_and_check(server: ComfyServer, prompt: dict) -> list[float]:
    """Runs a prompt, compares what goes into Paste Faces with what was saved; returns the chosen faces' likeness."""
    (save,) = of_type(prompt, "DiffPrivacySaveProtected")
    paste = prompt[save]["inputs"]["image"][0]
    covers = prompt[paste]["class_type"] == "DiffPrivacyCoverFaces"
    if covers:
        paste = prompt[paste]["inputs"]["image"][0]
    (crop,) = of_type(prompt, "DiffPrivacyCropFaces")
    original = prompt[paste]["inputs"]["image"]
    prompt = {
        **prompt,
        "original": {
            "class_type": "DiffPrivacySaveProtected",
            "inputs": {"image": original, "filename_prefix": "original"},
        },
    }
    hand = prompt[crop]["inputs"].get("keep_mask") or prompt[paste]["inputs"].get("keep_mask")
    if hand is not None:
        prompt["hand"] = {"class_type": "MaskToImage", "inputs": {"mask": hand}}
        prompt["kept"] = {"class_type": "SaveImage", "inputs": {"images": ["hand", 0], "filename_prefix": "kept"}}
    outputs = server.run(prompt)
    held = None if hand is None else pictures(server, outputs, "kept")[0].min(axis=-1) == 255
    originals, saved = pictures(server, outputs, "original"), pictures(server, outputs, save)
    variants = prompt[crop]["inputs"]["variants"]
    assert len(saved) == variants * len(originals)
    selects = [prompt[detect]["inputs"]["select"] for detect in of_type(prompt, "DiffPrivacyDetectFaces")]
    elsewhere = 6 if of_type(prompt, "DiffPrivacyFacesFromRegions") else 0
    found_in = [faces_in(original) for original in originals]
    cosines = []
    for i, protected in enumerate(saved):
        original, found = originals[i // variants], found_in[i // variants]
        chosen = found if selects[0] in ("all", "largest") else [found[int(n)] for n in ",".join(selects).split(",")]
        margin = prompt[crop]["inputs"]["margin"]
        check_protected(original, protected, chosen, max(margin, MARGIN) if covers else margin, elsewhere)
        check_kept(prompt, crop, original, protected, found)
        if held is not None:
            assert held.any() and np.array_equal(protected[held], original[held])
        cosines += [likeness(original, protected, face) for face in chosen]
    return cosines


def on_checkpoint(prompt: dict) -> dict:
    """The prompt with MODEL, CLIP and VAE of Load Checkpoint in place of the demo model's."""
    (demo,) = of_type(prompt, DEMO)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == demo and value[1] < 3:
                node["inputs"][name] = ["checkpoint", value[1]]
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny.safetensors"}}
    return {**prompt, "checkpoint": loader}


@every_protecting
def test_runs_on_the_demo_model(server, object_info, file):
    prompt = with_known_noise(quick(load_prompt(file, object_info), steps=10))
    cosines = run_and_check(server, with_known_personas(server, prompt))
    check_likeness(file, cosines)


def with_known_personas(server: ComfyServer, prompt: dict) -> dict:
    """The prompt with a file whose personas follow from a seed in place of one that is begun with a fresh secret."""
    for name in of_type(prompt, "DiffPrivacyLoadPersonas"):
        identity = pyrage.x25519.Identity.generate()
        file = server.base / "models" / "personas" / "known.age"
        file.parent.mkdir(exist_ok=True)
        PersonaFile(file, str(identity)).write(PersonaBook(NoiseKey.from_seed(1)))
        prompt[name]["inputs"] |= {"name": file.stem, "secret": identity_file(server, "personas", identity)}
    return prompt


def check_likeness(file: Path, cosines: list[float]) -> None:
    """Hidden faces are accepted at the guide's threshold; the others are strangers."""
    (threshold, *_) = demo.load_recognizer("guide").thresholds
    if file.stem in KEPT:
        return
    assert (min(cosines) > threshold.cosine) if file.stem in MATCHED else (max(cosines) < 0.2)


@every_old
def test_runs_on_a_checkpoint_by_changing_it_alone(server, object_info, file):
    prompt = on_checkpoint(load_prompt(file, object_info, DiffPrivacyCropFaces__size=64))
    run_and_check(server, quick(prompt, steps=2))


def test_hide_and_recover_brings_the_face_back(server, object_info):
    prompt = with_known_noise(quick(load_prompt(PACK / "workflows/hide-and-recover.json", object_info), steps=8))
    (save,), (preview,) = of_type(prompt, "DiffPrivacySaveProtected"), of_type(prompt, "PreviewImage")
    outputs = server.run(prompt)
    (protected,), (recovered,) = pictures(server, outputs, save), pictures(server, outputs, preview)
    photo = example_photo()
    (face,) = faces_in(photo)
    inside = protected_mask(photo.shape[:2], [face], demo.MARGIN).numpy() == 1
    assert difference(recovered, photo)[inside].mean() < 0.5 * difference(protected, photo)[inside].mean()
    assert likeness(photo, recovered, face) > 0.5


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b)


def example_photo() -> np.ndarray:
    return (showcase.example_photo().rgb.numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("on", ["demo model", "checkpoint"])
def test_a_key_sealed_to_two_people_brings_the_original_back_to_each(server, object_info, on):
    """One recipient opens it with the workflow, the other with the block Recover Face, a stranger does not."""
    seal = load_prompt(PACK / "workflows" / "seal-a-recovery-key.json", object_info)
    block = json.loads((PACK / "subgraphs" / "Recover Face.json").read_text())
    ways = {
        "PreviewImage": load_prompt(PACK / "workflows" / "recover.json", object_info),
        "DiffPrivacySaveProtected": to_prompt(wired(block, RECOVERY_SOURCES), object_info),
    }
    if on == "checkpoint":
        seal, ways = on_checkpoint(seal), {kind: on_checkpoint(way) for kind, way in ways.items()}
        changed(seal, DiffPrivacyCropFaces__size=64, DiffPrivacyInvertLatent__method="belm")  # It need not converge.
    owners = [pyrage.x25519.Identity.generate() for _ in ways]
    quick(seal, steps=10)
    changed(seal, DiffPrivacySealKey__recipients="\n".join(str(o.to_public()) for o in owners))
    (save,), (encode,) = of_type(seal, "DiffPrivacySaveProtected"), of_type(seal, "VAEEncode")
    outputs = server.run(seal | vae_round_trip(seal, encode))
    (reference,), (ceiling,) = outputs[save]["images"], pictures(server, outputs, "ceiling")
    (server.base / "input" / "protected.png").write_bytes(server.file(reference))
    (face,) = faces_in(example_photo())
    inside = protected_mask(ceiling.shape[:2], [face], demo.MARGIN).numpy() == 1
    change = difference(server.picture(reference), ceiling)[inside].mean()
    for i, (owner, (kind, way)) in enumerate(zip(owners, ways.items(), strict=True)):
        changed(way, DiffPrivacyOpenKey__secret=identity_file(server, f"owner-{i}", owner))
        changed(way, DiffPrivacyLoadProtected__image="protected.png")
        (shown,) = of_type(way, kind)
        (recovered,) = pictures(server, server.run(way), shown)
        assert difference(recovered, ceiling)[inside].mean() < 0.3 * change
        changed(way, DiffPrivacyOpenKey__secret=identity_file(server, "stranger", pyrage.x25519.Identity.generate()))
        with pytest.raises(PromptError, match="DiffPrivacyOpenKey"):
            server.run(way)


def vae_round_trip(prompt: dict, encode: str) -> dict:
    """Nodes that save the original crops as the VAE gives them back: the best that a latent key can do."""
    (paste,) = of_type(prompt, "DiffPrivacyPasteFaces")
    decoded = {"samples": [encode, 0], "vae": prompt[encode]["inputs"]["vae"]}
    pasted = prompt[paste]["inputs"] | {"crops": ["decoded", 0]}
    return {
        "decoded": {"class_type": "VAEDecode", "inputs": decoded},
        "pasted": {"class_type": "DiffPrivacyPasteFaces", "inputs": pasted},
        "ceiling": {
            "class_type": "DiffPrivacySaveProtected",
            "inputs": {"image": ["pasted", 0], "filename_prefix": "ceiling"},
        },
    }


def identity_file(server: ComfyServer, name: str, identity) -> str:
    """What the widget `secret` takes for an identity in a file."""
    path = server.base / f"{name}.txt"
    path.write_text(str(identity))
    return f"file:{path}"


@pytest.mark.parametrize("on", ["demo model", "checkpoint"])
def test_msi_is_trained_saved_and_drawn_with(server, object_info, on):
    prompt = quick(load_prompt(PACK / "workflows" / "train-msi.json", object_info), steps=2)
    if on == "checkpoint":
        prompt = on_checkpoint(changed(prompt, DiffPrivacyCropFaces__size=64))
    shown = [
        pictures(server, outputs, node) for outputs in [server.run(prompt)] for node in of_type(prompt, "PreviewImage")
    ]
    curve, faces = sorted(shown, key=len)
    assert len(curve) == 1 and curve[0].std() > 1
    assert len(faces) == 2 and min(face.std() for face in faces) > 1
    assert list((server.base / "models" / "msi").glob("*.safetensors"))


def wired(block: dict, makers: dict[str, tuple[str, int]] = SOURCES) -> dict:
    """A workflow of one block, its sockets fed by what makes their type, its first output saved."""
    (node,) = block["nodes"]
    numbers = {kind: 100 + i for i, kind in enumerate({kind for kind, _ in makers.values()})}
    links = []
    for slot, socket in enumerate(node["inputs"]):
        if "widget" not in socket:
            kind, output = makers[socket["type"]]
            socket["link"] = len(links) + 1
            links.append([socket["link"], numbers[kind], output, node["id"], slot, socket["type"]])
    links.append([len(links) + 1, node["id"], 0, 200, 0, "IMAGE"])
    values = {"DiffPrivacyLoadProtected": ["example.png"]}
    sources = [
        {"id": number, "type": kind, "mode": 0, "widgets_values": values.get(kind, [])}
        for kind, number in numbers.items()
    ]
    image = {"name": "image", "type": "IMAGE", "link": len(links)}
    save = {"id": 200, "type": "DiffPrivacySaveProtected", "mode": 0, "inputs": [image], "widgets_values": ["block"]}
    return {**block, "nodes": [node, *sources, save], "links": links}


@pytest.mark.parametrize("name", ["Anonymize Face", "Hide Identity"])
def test_blocks_run(server, object_info, name):
    file = PACK / "subgraphs" / f"{name}.json"
    prompt = to_prompt(wired(json.loads(file.read_text())), object_info)
    changed(prompt, DiffPrivacyCropFaces__size=demo.IMAGE_SIZE, DiffPrivacyCropFaces__margin=demo.MARGIN)
    cosines = run_and_check(server, with_known_noise(quick(prompt, steps=10)))
    check_likeness(file, cosines)


def test_blocks_are_served(server):
    served = server.get("/global_subgraphs")
    mine = {entry["name"]: key for key, entry in served.items() if entry["source"] == "custom_node"}
    assert mine.keys() == {file.stem for file in BLOCKS}
    for file in BLOCKS:
        assert json.loads(server.get(f"/global_subgraphs/{mine[file.stem]}")["data"]) == json.loads(file.read_text())


@pytest.mark.parametrize("file", BLOCKS, ids=lambda file: file.stem)
def test_a_block_carries_its_values_outside_and_inside(object_info, file):
    """Older pages take a widget's value from inside the block, newer ones from outside."""
    block = json.loads(file.read_text())
    (node,), (definition,) = block["nodes"], block["definitions"]["subgraphs"]
    inside = {inner["id"]: inner for inner in definition["nodes"]}
    for link in definition["links"]:
        if link["origin_id"] == -10 and "widget" in (socket := node["inputs"][link["origin_slot"]]):
            inner = inside[link["target_id"]]
            name = inner["inputs"][link["target_slot"]]["name"]
            assert inner["widgets_values_named"][name] == node["widgets_values_named"][socket["name"]]


def test_the_same_new_face_in_every_frame(server, object_info):
    """With one noise for all crops the two frames' faces are alike, with a noise for each they are not."""
    prompt = load_prompt(PACK / "workflows" / "same-face-in-every-frame.json", object_info)
    prompt = quick(prompt, steps=8)
    (decode,) = of_type(prompt, "VAEDecode")
    prompt["crops"] = {
        "class_type": "DiffPrivacySaveProtected",
        "inputs": {"image": [decode, 0], "filename_prefix": "c"},
    }

    def distance(behavior: str) -> float:
        changed(prompt, LatentBatchSeedBehavior__seed_behavior=behavior)
        first, second = pictures(server, server.run(prompt), "crops")
        return float(np.abs(first.astype(int) - second)[32:96, 32:96].mean())

    assert distance("fixed") < 0.7 * distance("random")


def test_a_workflow_saved_by_an_older_version_still_runs(server, object_info):
    photo = write_astronaut(server.base / "input")
    prompt = load_prompt(
        OLD / "anonymize.json",
        object_info,
        LoadImage__image=photo.name,
        CheckpointLoaderSimple__ckpt_name="tiny.safetensors",
        DiffPrivacyCropFaces__size=64,
    )
    run_and_check(server, quick(prompt, steps=2))


@pytest.mark.parametrize("name", [*(file.stem for file in BEFORE), "Anonymize Face", "Hide Identity"])
def test_a_workflow_of_the_version_before_still_runs(server, object_info, name):
    workflow = json.loads((OLD / "0.1" / f"{name}.json").read_text())
    if "subgraphs" in workflow.get("definitions", {}):
        workflow = wired(workflow)
    prompt = to_prompt(workflow, object_info)
    changed(prompt, DiffPrivacyCropFaces__size=demo.IMAGE_SIZE, DiffPrivacyCropFaces__margin=demo.MARGIN)
    run_and_check(server, quick(prompt, steps=2))
