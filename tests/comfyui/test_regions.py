"""Faces by boxes, masks and segments of other nodes; parts kept; faces covered: in a real ComfyUI."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

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


def test_core_boxes_masks_and_segments_of_our_own_go_in_and_out(server, astronaut):
    """A box from the core node and a mask give two faces; as boxes, mask and SEGS they give the same again."""
    graph = Graph()
    base = start(graph)
    by_mask = write_mask(server, "beside.png", BESIDE)
    first = graph.add(
        "DiffPrivacyFacesFromRegions",
        **base,
        boxes=graph.add("PrimitiveBoundingBox", **HEAD),
        mask=slot(graph.add("LoadImage", image=by_mask), 1),
    )
    out = graph.add("DiffPrivacyFacesToRegions", faces=first)
    again = graph.add(
        "DiffPrivacyFacesFromRegions", **base, boxes=out, mask=slot(out, 1), segs=slot(out, 2), faces=first
    )
    result = covered(server, graph, base["image"], again)
    assert changed(astronaut, result, HEAD) > 0.8 and changed(astronaut, result, BESIDE) > 0.8
    assert changed(astronaut, result, {"x": 0, "y": 0, "width": 120, "height": 512}) == 0


def test_a_hand_drawn_box_joins_the_detected_faces_once(server, astronaut):
    graph = Graph()
    base = start(graph)
    found = graph.add("DiffPrivacyDetectFaces", **base, select="all", without_face="error", min_score=0.5, min_size=20)
    both = graph.add(
        "DiffPrivacyFacesFromRegions", **base, faces=found, boxes=graph.add("PrimitiveBoundingBox", **BESIDE)
    )
    same = graph.add("DiffPrivacyFacesFromRegions", **base, faces=both, boxes=graph.add("PrimitiveBoundingBox", **HEAD))
    shown = graph.add("PreviewAny", source=slot(same, 1))
    assert server.run(graph)[shown[0]]["text"] == ["2"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {"boxes": {"x": 600, "y": 0, "width": 50, "height": 50}},
            ["Socket `boxes`", "outside the image of 512x512"],
        ),
        ({"mask": ("empty.png", 512, [])}, ["Socket `mask`", "empty"]),
        ({"mask": ("small.png", 256, [{"x": 10, "y": 10, "width": 50, "height": 50}])}, ["Socket `mask`", "256x256"]),
        ({}, ["connect", "boxes"]),
    ],
)
def test_bad_regions_are_one_error_that_names_the_socket(server, astronaut, inputs, words):
    graph = Graph()
    given = {}
    if "boxes" in inputs:
        given["boxes"] = graph.add("PrimitiveBoundingBox", **inputs["boxes"])
    if "mask" in inputs:
        name, size, boxes = inputs["mask"]
        given["mask"] = slot(graph.add("LoadImage", image=write_mask(server, name, *boxes, size=size)), 1)
    base = start(graph)
    faces = graph.add("DiffPrivacyFacesFromRegions", **base, **given)
    with pytest.raises(PromptError) as caught:
        server.run(covered_graph(graph, base["image"], faces))
    message = str(caught.value)
    for word in words:
        assert word.lower() in message.lower()


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
    save = graph.add("SaveImage", images=pasted, filename_prefix="kept")
    result = server.picture(server.run(graph)[save[0]]["images"][0])
    assert changed(astronaut, result, hand) == 0
    assert changed(astronaut, result, {"x": 200, "y": 98, "width": 8, "height": 6}) == 0
    assert changed(astronaut, result, {"x": 218, "y": 118, "width": 12, "height": 10}) > 0.9
