"""Faces by boxes, masks, segments and meshes of other nodes; parts kept; faces covered: in a real ComfyUI."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file

from diffprivacy.faces.geometry import ARCFACE_TEMPLATE
from diffprivacy.faces.regions import MESH_POINTS
from tests.comfyui.graphs import Graph, slot
from tests.comfyui.server import ComfyServer, PromptError

HEAD = {"x": 180, "y": 60, "width": 90, "height": 125}
BESIDE = {"x": 380, "y": 300, "width": 80, "height": 110}


@pytest.fixture(scope="module")
def astronaut(server: ComfyServer) -> np.ndarray:
    photo = skimage.data.astronaut()
    Image.fromarray(photo).save(server.base / "input" / "regions.png")
    return photo


def write_mask(server: ComfyServer, name: str, *boxes: dict, size: int = 512) -> str:
    """An image whose alpha LoadImage turns into a mask: transparent is 1."""
    rgba = np.full((size, size, 4), 255, np.uint8)
    for box in boxes:
        rgba[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"], 3] = 0
    Image.fromarray(rgba).save(server.base / "input" / name)
    return name


def start(graph: Graph) -> dict:
    return {
        "image": graph.add("LoadImage", image="regions.png"),
        "detector": graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)"),
    }


def covered(server: ComfyServer, graph: Graph, image: list, faces: list) -> np.ndarray:
    """Run the graph and see where Cover Faces changed the image."""
    node = graph.add("DiffPrivacyCoverFaces", image=image, faces=faces)
    save = graph.add("SaveImage", images=node, filename_prefix="regions")
    return server.picture(server.run(graph)[save[0]]["images"][0])


def changed(before: np.ndarray, after: np.ndarray, box: dict) -> float:
    rows, columns = slice(box["y"], box["y"] + box["height"]), slice(box["x"], box["x"] + box["width"])
    return float((before[rows, columns] != after[rows, columns]).any(axis=-1).mean())


def drawn(graph: Graph, *boxes: dict) -> list:
    """What the core node gives for boxes that somebody drew on its canvas."""
    canvas = {"width": 512, "height": 512, "editor_state": {"__value__": boxes}}
    return slot(graph.add("CreateBoundingBoxes", **canvas), 1)


def test_core_boxes_masks_and_segments_of_our_own_go_in_and_out(server, astronaut):
    """A box drawn in the core node and a mask give two faces; as boxes, mask and SEGS they give the same again."""
    graph = Graph()
    base = start(graph)
    by_mask = write_mask(server, "beside.png", BESIDE)
    first = graph.add(
        "DiffPrivacyFacesFromRegions",
        **base,
        boxes=drawn(graph, HEAD),
        mask=slot(graph.add("LoadImage", image=by_mask), 1),
    )
    out = graph.add("DiffPrivacyFacesToRegions", faces=first)
    again = graph.add(
        "DiffPrivacyFacesFromRegions", **base, boxes=out, mask=slot(out, 1), segs=slot(out, 2), faces=first
    )
    result = covered(server, graph, base["image"], again)
    assert changed(astronaut, result, HEAD) > 0.8 and changed(astronaut, result, BESIDE) > 0.8
    assert changed(astronaut, result, {"x": 0, "y": 0, "width": 120, "height": 512}) == 0


def test_segments_of_other_nodes_go_in_and_ours_go_out_to_them(server, astronaut):
    """A hand-made segment and a detected face; a node that filters segments leaves one of the two on either side."""
    graph = Graph()
    base = start(graph)
    found = graph.add("DiffPrivacyDetectFaces", **base, select="all", without_face="error")
    made = graph.add(
        "TestMakeSegs", image=base["image"], box=graph.add("PrimitiveBoundingBox", **BESIDE), width=0, height=0
    )
    both = graph.add("DiffPrivacyFacesFromRegions", **base, faces=found, segs=made)
    out = slot(graph.add("DiffPrivacyFacesToRegions", faces=both), 2)
    for side, there, elsewhere in (("left", HEAD, BESIDE), ("right", BESIDE, HEAD)):
        one = Graph(graph)
        kept = one.add("TestFilterSegs", segs=out, side=side)
        result = covered(server, one, base["image"], one.add("DiffPrivacyFacesFromRegions", **base, segs=kept))
        assert changed(astronaut, result, there) > 0.8 and changed(astronaut, result, elsewhere) == 0


def write_landmarker(comfyui: Path, path: Path) -> None:
    """A MediaPipe model for the core nodes that sees one mesh in the middle of any image.

    All weights are zero, so that what the networks give are the biases of their last layers.
    """
    source = comfyui / "comfy_extras" / "mediapipe" / "face_landmarker.py"
    spec = importlib.util.spec_from_file_location("face_landmarker", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.FaceLandmarker()
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    random = np.random.default_rng(0)
    points = random.uniform(40, 150, (478, 2)).astype(np.float32)
    for place, vertices in zip(ARCFACE_TEMPLATE + 40, MESH_POINTS, strict=True):
        points[list(vertices)] = place
    mesh = np.concatenate((points, random.uniform(-9, 9, (478, 1)).astype(np.float32)), axis=1)
    state["mesh.head_landmarks.bias"] = torch.from_numpy(mesh.ravel())
    state["detector.cls_16.bias"][0], state["detector.cls_16.bias"][1] = 3, -9
    state["detector.cls_8.bias"][:] = -9
    box = torch.tensor([60.0, 60.0, 60.0, 60.0, 45.0, 50.0, 75.0, 50.0] + [60.0] * 8)
    state["detector.reg_16.bias"] = box.repeat(2)
    parts = ("face_oval", "left_eye", "right_eye", "left_eyebrow", "right_eyebrow", "lips", "irises", "nose")
    save_file(
        {name.replace("detector.", "detector_short."): value.contiguous() for name, value in state.items()}
        | {f"topology.{part}": torch.tensor([[0, 1]], dtype=torch.int32) for part in parts}
        | {
            "canonical_vertices": torch.from_numpy(mesh[:468] / 20).contiguous(),
            "procrustes_indices": torch.tensor([4, 6, 10, 33, 263]),
            "procrustes_weights": torch.full((5,), 0.2),
        },
        path,
    )


@pytest.fixture(scope="module")
def landmarker(server: ComfyServer, comfyui: Path) -> None:
    folder = server.base / "models" / "detection"
    folder.mkdir(parents=True, exist_ok=True)
    write_landmarker(comfyui, folder / "mesh.safetensors")


def meshes(graph: Graph, image: list) -> list:
    """The core node's; its second output says them as boxes."""
    return graph.add(
        "MediaPipeFaceLandmarker",
        face_detection_model=graph.add("LoadMediaPipeFaceLandmarker", model_name="mesh.safetensors"),
        image=image,
        detector_variant="short",
        num_faces=1,
        min_confidence=0.5,
        missing_frame_fallback="empty",
    )


def test_meshes_of_the_core_landmarker_are_faces(server, astronaut, landmarker):
    """Where the core node sees its mesh, which it also says as a box, a face is covered."""
    graph = Graph()
    base = start(graph)
    seen = meshes(graph, base["image"])
    faces = graph.add("DiffPrivacyFacesFromRegions", **base, landmarks=seen)
    count = graph.add("PreviewAny", source=slot(faces, 1))
    theirs = graph.add("PreviewAny", source=slot(seen, 1))
    ours = graph.add("PreviewAny", source=graph.add("DiffPrivacyFacesToRegions", faces=faces))
    save = graph.add(
        "SaveImage",
        images=graph.add("DiffPrivacyCoverFaces", image=base["image"], faces=faces),
        filename_prefix="mesh",
    )
    outputs = server.run(graph)
    assert outputs[count[0]]["text"] == ["1"]
    ((box,),), ((given,),) = (ast.literal_eval(outputs[node[0]]["text"][0]) for node in (theirs, ours))
    assert all(abs(given[name] - box[name]) <= 1 for name in ("x", "y", "width", "height"))
    result = server.picture(outputs[save[0]]["images"][0])
    assert changed(astronaut, result, given) > 0.5


def test_boxes_drawn_once_join_the_detected_faces_of_every_frame_once(server, astronaut):
    """Two frames; the boxes are the detected face's and another's, and faces of both kinds are joined."""
    graph = Graph()
    base = two_frames(graph, start(graph))
    found = graph.add("DiffPrivacyDetectFaces", **base, select="all", without_face="error", min_score=0.5, min_size=20)
    both = graph.add("DiffPrivacyFacesFromRegions", **base, boxes=drawn(graph, BESIDE, HEAD))
    ways = [
        graph.add("DiffPrivacyFacesFromRegions", **base, faces=found, boxes=drawn(graph, BESIDE, HEAD)),
        graph.add("DiffPrivacyFacesFromRegions", **base, faces=found, more_faces=both),
    ]
    shown = [graph.add("PreviewAny", source=slot(way, 1)) for way in ways]
    outputs = server.run(graph)
    assert [outputs[node[0]]["text"] for node in shown] == [["4"], ["4"]]


def mask_from(server: ComfyServer, graph: Graph, *boxes: dict, size: int = 512) -> list:
    name = write_mask(server, f"mask-{len(boxes)}-{size}.png", *boxes, size=size)
    return slot(graph.add("LoadImage", image=name), 1)


def two_frames(graph: Graph, base: dict) -> dict:
    return base | {"image": graph.add("RepeatImageBatch", image=base["image"], amount=2)}


def boxes_of_three_frames(graph: Graph, base: dict) -> list:
    box = graph.add("PrimitiveBoundingBox", **HEAD)
    three = base | {"image": graph.add("RepeatImageBatch", image=base["image"], amount=3)}
    faces = graph.add("DiffPrivacyFacesFromRegions", **three, boxes=box)
    return graph.add("DiffPrivacyFacesToRegions", faces=faces)


def segs_of_another_image(graph: Graph, base: dict) -> list:
    box = graph.add("PrimitiveBoundingBox", **HEAD)
    return graph.add("TestMakeSegs", image=base["image"], box=box, width=256, height=256)


CORNER = {"x": 10, "y": 10, "width": 50, "height": 50}
BAD = {
    "box outside": (
        lambda _, graph, base: {"boxes": graph.add("PrimitiveBoundingBox", x=600, y=0, width=50, height=50)},
        ["Socket `boxes`", "outside the image of 512x512"],
    ),
    "no boxes": (
        lambda _, graph, base: {"boxes": graph.add("TestMakeBoxes", boxes="[[10, 20, 30, 40]]")},
        ["Socket `boxes`", "no bounding boxes, which have x, y, width and height"],
    ),
    "nothing drawn": (lambda _, graph, base: {"boxes": drawn(graph)}, ["Socket `boxes`", "There is no box in it"]),
    "empty mask": (lambda server, graph, _: {"mask": mask_from(server, graph)}, ["Socket `mask`", "empty"]),
    "mask of another size": (
        lambda server, graph, _: {"mask": mask_from(server, graph, CORNER, size=256)},
        ["Socket `mask`", "256x256"],
    ),
    "boxes of more frames": (
        lambda _, graph, base: {"boxes": boxes_of_three_frames(graph, base)},
        ["Socket `boxes`", "Boxes for 3 images, but `image` holds 1"],
    ),
    "segments of another image": (
        lambda _, graph, base: {"segs": segs_of_another_image(graph, base)},
        ["Socket `segs`", "an image of 256x256, but `image` is 512x512"],
    ),
    "meshes of more frames": (
        lambda _, graph, base: {"landmarks": meshes(graph, two_frames(graph, base)["image"])},
        ["Socket `landmarks`", "Landmarks of 2 images", "holds 1"],
    ),
    "nothing": (lambda *_: {}, ["connect", "boxes"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_regions_are_one_error_that_names_the_socket(server, astronaut, landmarker, kind):
    graph = Graph()
    base = start(graph)
    give, words = BAD[kind]
    refused(
        server,
        covered_graph(
            graph, base["image"], graph.add("DiffPrivacyFacesFromRegions", **base, **give(server, graph, base))
        ),
        words,
    )


@pytest.mark.parametrize("node", ["DiffPrivacyCropFaces", "DiffPrivacyPasteFaces"])
def test_a_mask_to_keep_of_another_size_is_one_error_that_names_the_socket(server, astronaut, node):
    graph = Graph()
    base = start(graph)
    mask = mask_from(server, graph, CORNER, size=256)
    keep = {
        name: {"keep_mask": mask} if name == node else {} for name in ("DiffPrivacyCropFaces", "DiffPrivacyPasteFaces")
    }
    faces = graph.add("DiffPrivacyFacesFromRegions", **base, boxes=graph.add("PrimitiveBoundingBox", **HEAD))
    crops = graph.add(
        "DiffPrivacyCropFaces",
        image=base["image"],
        faces=faces,
        size=64,
        margin=1.8,
        variants=1,
        **keep["DiffPrivacyCropFaces"],
    )
    pasted = graph.add(
        "DiffPrivacyPasteFaces", image=base["image"], crops=crops, faces=slot(crops, 2), **keep["DiffPrivacyPasteFaces"]
    )
    graph.add("SaveImage", images=pasted, filename_prefix="no")
    refused(server, graph, ["Socket `keep_mask`", "1 masks of 256x256", "512x512"])


def pasted(graph: Graph, kind: str, **options: object) -> list:
    """Two faces in two images, of which the last crop is missing or flat."""
    base = two_frames(graph, start(graph))
    image = base["image"]
    faces = graph.add("DiffPrivacyFacesFromRegions", **base, boxes=graph.add("PrimitiveBoundingBox", **HEAD))
    crops = graph.add("DiffPrivacyCropFaces", image=image, faces=faces, size=64, margin=1.8, variants=1)
    new = graph.add("ImageInvert", image=graph.add("ImageFromBatch", image=crops, batch_index=0, length=1))
    if kind == "flat":
        flat = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0)
        new = graph.add("ImageBatch", image1=new, image2=flat)
    return graph.add("DiffPrivacyPasteFaces", image=image, crops=new, faces=slot(crops, 2), **options)


@pytest.mark.parametrize(
    ("kind", "words"), [("missing", "1 crops for 2 (2 faces"), ("flat", "Crop 1 holds no image, as its sampler")]
)
def test_a_face_without_a_new_one_is_an_error_or_covered_and_named(server, astronaut, kind, words):
    graph = Graph()
    graph.add("SaveImage", images=pasted(graph, kind), filename_prefix="no")
    refused(server, graph, ["Socket `crops`", words])
    graph = Graph()
    node = pasted(graph, kind, if_impossible="cover")
    shown = graph.add("PreviewAny", source=slot(node, 2))
    save = graph.add("SaveImage", images=node, filename_prefix="covered")
    outputs = server.run(graph)
    assert outputs[shown[0]]["text"] == ["1 covered: image 2, face 0"]
    inside = (slice(100, 150), slice(210, 240))
    new, flat = (server.picture(image)[inside].astype(float) for image in outputs[save[0]]["images"])
    assert new.std(axis=(0, 1)).min() > 3 and flat.std(axis=(0, 1)).max() < 1
    assert 60 < flat.mean() < 220, "its skin's colour"


def refused(server: ComfyServer, graph: Graph, words: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        server.run(graph)
    for word in words:
        assert word.lower() in str(caught.value).lower()


def covered_graph(graph: Graph, image: list, faces: list) -> Graph:
    graph.add("SaveImage", images=graph.add("DiffPrivacyCoverFaces", image=image, faces=faces), filename_prefix="no")
    return graph


def test_what_is_kept_keeps_its_bits_and_the_crops_mask_leaves_it_out(server, astronaut):
    """A flat crop in the face's place: a hand's mask, and the eyes, are as they were."""
    graph = Graph()
    base = start(graph)
    hand = {"x": 200, "y": 140, "width": 60, "height": 60}
    faces = graph.add("DiffPrivacyFacesFromRegions", **base, boxes=graph.add("PrimitiveBoundingBox", **HEAD))
    crops = graph.add(
        "DiffPrivacyCropFaces",
        image=base["image"],
        faces=faces,
        size=128,
        margin=1.8,
        variants=1,
        keep_mask=slot(graph.add("LoadImage", image=write_mask(server, "hand.png", hand)), 1),
        keep="eyes",
    )
    inverted = graph.add("ImageInvert", image=crops)
    pasted = graph.add("DiffPrivacyPasteFaces", image=base["image"], crops=inverted, faces=slot(crops, 2))
    black = graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0)
    dark = graph.add("ImageBlend", image1=crops, image2=black, blend_factor=0.3, blend_mode="normal")
    darker, matched = (
        graph.add("DiffPrivacyPasteFaces", image=base["image"], crops=dark, faces=slot(crops, 2), match_colors=match)
        for match in (False, True)
    )
    saves = [graph.add("SaveImage", images=images, filename_prefix="kept") for images in (pasted, darker, matched)]
    outputs = server.run(graph)
    result, *of_dark = (server.picture(outputs[save[0]]["images"][0]) for save in saves)
    hair = (slice(60, 80), slice(200, 250))
    steps = [abs(image[hair].mean() - astronaut[hair].mean()) for image in of_dark]
    assert steps[1] < 0.3 * steps[0]
    assert all(changed(astronaut, image, hand) == 0 for image in of_dark)
    assert changed(astronaut, result, hand) == 0
    assert changed(astronaut, result, {"x": 200, "y": 98, "width": 8, "height": 6}) == 0
    assert changed(astronaut, result, {"x": 218, "y": 118, "width": 12, "height": 10}) > 0.9


@pytest.mark.parametrize("frames", [1, 2])
def test_each_face_has_the_prompt_of_its_number(server, astronaut, frames):
    """Two faces drawn at once under two prompts are what each is where both have its prompt, by the stock node.

    In two frames through which they are followed the numbers are people's.
    """
    graph = Graph()
    base = start(graph)
    demo = graph.add("DiffPrivacyLoadDemoModel")
    base = two_frames(graph, base) if frames == 2 else base
    faces = graph.add("DiffPrivacyFacesFromRegions", **base, boxes=drawn(graph, HEAD, BESIDE))
    if frames == 2:
        faces = graph.add("DiffPrivacyFollowFaces", image=base["image"], faces=faces, frame_rate=25.0)
    crops = graph.add("DiffPrivacyCropFaces", image=base["image"], faces=faces, size=64, margin=1.45, variants=1)
    first, second = "a photo of a face", "a black and white photo"
    clip = slot(demo, 1)
    conditionings = [
        graph.add("DiffPrivacyPromptFaces", clip=clip, faces=slot(crops, 2), prompts=f"0: {first}; 1: {second}"),
        *(graph.add("CLIPTextEncode", clip=clip, text=text) for text in (first, second)),
    ]
    latents = graph.add("VAEEncode", pixels=crops, vae=slot(demo, 2))
    common = {"model": demo, "latent_image": latents, "negative": graph.add("CLIPTextEncode", clip=clip, text="")}
    settings = {"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    saves = []
    for positive in conditionings:
        drawn_faces = graph.add("KSampler", **common, **settings, positive=positive)
        images = graph.add("VAEDecode", samples=drawn_faces, vae=slot(demo, 2))
        saves.append(graph.add("SaveImage", images=images, filename_prefix="prompts"))
    outputs = server.run(graph)
    both, *alone = ([server.picture(image).astype(int) for image in outputs[save[0]]["images"]] for save in saves)
    assert len(both) == 2 * frames
    for row, image in enumerate(both):
        own, other = alone[row % 2], alone[1 - row % 2]
        assert np.abs(image - own[row]).max() <= 1 and np.abs(image - other[row]).mean() > 3
