"""Privacy Report in a graph, with the embedded model's judge."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.comfyui.graphs import Graph
from tests.comfyui.server import PromptError


@pytest.fixture(scope="module", autouse=True)
def photos(server):
    """The astronaut, and the same picture with her face in grey."""
    original = skimage.data.astronaut()
    erased = original.copy()
    erased[60:190, 160:290] = 128
    Image.fromarray(original).save(server.base / "input" / "astronaut.png")
    Image.fromarray(erased).save(server.base / "input" / "erased.png")
    Image.fromarray(original[:400]).save(server.base / "input" / "cut.png")


def report(protected: str, recovered: str | None = None, detector: bool = False, gate: bool = False) -> Graph:
    graph = Graph()
    loader = graph.add("DiffPrivacyLoadDemoModel")
    found = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    image = graph.add("LoadImage", image="astronaut.png")
    faces = graph.add("DiffPrivacyDetectFaces", image=image, detector=found, select="all", without_face="error")
    inputs = {"original": image, "faces": faces, "judge": [loader[0], 5]}
    inputs["protected"] = graph.add("LoadImage", image=protected)
    if recovered:
        inputs["recovered"] = graph.add("LoadImage", image=recovered)
    if detector:
        inputs["detector"] = found
    node = graph.add("DiffPrivacyReport", **inputs, **({"gate": True} if gate else {}))
    if gate:
        graph.add("PreviewImage", images=[node[0], 4])
    for output, name in ((1, "plot"), (5, "roc"), (6, "histogram")):
        graph.add("SaveImage", images=[node[0], output], filename_prefix=name)
    for index in (2, 3):
        graph.add("PreviewAny", source=[node[0], index])
    return graph


def results(server, graph: Graph) -> tuple[str, list[np.ndarray], float, float]:
    outputs = server.run(graph)
    plots = [
        server.picture(outputs[name]["images"][0])
        for name, entry in graph.items()
        if entry["class_type"] == "SaveImage"
    ]
    (text,) = (outputs[name]["text"][0] for name in graph if graph[name]["class_type"] == "DiffPrivacyReport")
    numbers = [float(outputs[name]["text"][0]) for name, entry in graph.items() if entry["class_type"] == "PreviewAny"]
    return text, plots, *numbers


def test_an_erased_face_is_nobody_and_a_recovered_one_is_herself(server):
    text, plots, cosine, fidelity = results(server, report("erased.png", "astronaut.png", detector=True, gate=True))
    lines = text.splitlines()
    assert (
        lines[0]
        == "|  | judge: cosine (others), TAR, nearest, farthest, link | found | NME | PSNR | SSIM | structure similarity |"
    )
    assert "0.0 %" in lines[2].split("|")[2]
    assert lines[2].split("|")[3].strip() == "0.0 %"
    assert lines[3].startswith("| recovered | 1.00 (–), 100.0 %, –, –, – | 100.0 % | 0.000 | inf dB | 1.000 | 1.000 |")
    pose = next(line for line in lines if line.startswith("| head pose |")).split(" | ")
    assert pose[:3] == ["| head pose", "°", "–"] and pose[3] == "0.0" and float(pose[4].strip(" |")) < 2
    assert cosine < 0.4
    assert fidelity == float("inf")
    assert "| recovered | judge | 100.0 % (0.0 to 100.0) | – | – | – |" in lines
    assert len(plots) == 3 and all(plot.std() > 10 for plot in plots)


def test_without_a_detector_nothing_is_said_of_finding(server):
    text, _, cosine, fidelity = results(server, report("erased.png"))
    line = text.splitlines()[2]
    assert line.split("|")[3:5] == [" – ", " – "]
    assert cosine < 0.4
    assert 5 < fidelity < 20


def test_the_gate_stops_a_face_that_is_still_recognized(server):
    with pytest.raises(PromptError, match=r"Socket `protected`: The gate stops: .* image 0, face 0 \(cosine 1.00\)"):
        server.run(report("astronaut.png", gate=True))


def test_pictures_of_another_size_are_refused(server):
    with pytest.raises(PromptError, match=r"Socket `protected`: The original is 512x512 pixels and .* 512x400"):
        server.run(report("cut.png"))
