"""Whole videos in a graph: streamed as the command line streams them, on the graph's model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffprivacy import demo
from diffprivacy.demo import showcase
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.faces.keeping import kept_parts
from diffprivacy.faces.regions import box_of, upright_face
from diffprivacy.media.images import values
from diffprivacy.video.sound import unsigned_aac
from testing.videos import av, pixels, psnr, sound_packets, write_source
from tests.comfyui.conftest import PACK
from tests.comfyui.graphs import Graph, slot
from tests.comfyui.server import ComfyServer, PromptError
from tests.comfyui.test_frames import astronaut
from tests.comfyui.workflows import changed, load_prompt

BOX = {"x": 20, "y": 190, "width": 50, "height": 60}
QUICK = {"size": demo.IMAGE_SIZE, "margin": demo.MARGIN, "steps": 2, "strength": 0.5}


def protected(graph: Graph, video: list, **options: object) -> list:
    loader = graph.add("DiffPrivacyLoadDemoModel")
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    inputs = {"task": "hide", "faces": "all", "without_face": "error", "if_impossible": "cover", "prompt": ""}
    inputs |= {"sound": True, "disclosure": True, "filename_prefix": "protected/video", **QUICK, **options}
    if "boxes" in inputs:
        inputs["boxes"] = graph.add("TestMakeBoxes", boxes=json.dumps(inputs["boxes"]))
    networks = {"model": loader, "clip": slot(loader, 1), "vae": slot(loader, 2), "recognizer": slot(loader, 4)}
    return graph.add("DiffPrivacyProtectVideo", video=video, detector=detector, **networks, **inputs)


def made(server: ComfyServer, graph: Graph, node: list) -> tuple[Path, str]:
    """The file, and the report."""
    (shown, _) = graph.add("PreviewAny", source=slot(node, 1))
    outputs = server.run(graph)
    (reference,) = outputs[node[0]]["images"]
    assert not list((server.base / "temp").glob("tmp*"))
    return server.base / "output" / reference["subfolder"] / reference["filename"], outputs[shown]["text"][0]


def test_every_frame_has_a_new_face_and_the_sound_is_kept(server: ComfyServer):
    source = write_source(server.base / "input" / "clip.mp4", list(astronaut(4)), sound=("aac",))
    graph = Graph()
    file, report = made(server, graph, protected(graph, graph.add("LoadVideo", file=source.name)))
    assert report == "4 frames, 1 person, 0 faces carried over"
    before, after = pixels(source), pixels(file)
    assert len(after) == 4
    for original, frame in zip(before, after, strict=True):
        (face,) = load_detector(None).detect(values(original))
        mask = protected_mask(original.shape, [face], demo.MARGIN).numpy()
        assert np.abs(original.astype(int) - frame)[mask == 1].mean() > 5
        assert psnr(original[mask == 0], frame[mask == 0]) > 35
    assert [data for _, data in sound_packets(file)] == [unsigned_aac(data) for _, data in sound_packets(source)]
    with av.open(str(file)) as container:
        assert "prompt" not in container.metadata


def test_the_workflow_protects_its_example(server: ComfyServer):
    prompt = load_prompt(PACK / "workflows" / "protect-video.json", server.get("/object_info"))
    changed(prompt, RepeatImageBatch__amount=2, DiffPrivacyProtectVideo__steps=2, DiffPrivacyProtectVideo__task="hide")
    outputs = server.run(prompt)
    nodes = {node["class_type"]: outputs.get(name) for name, node in prompt.items()}
    assert nodes["PreviewAny"]["text"] == ["2 frames, 1 person, 0 faces carried over"]
    (reference,) = nodes["DiffPrivacyProtectVideo"]["images"]
    original = (showcase.example_photo().rgb.numpy() * 255).round().astype(np.uint8)
    mask = protected_mask(original.shape, load_detector(None).detect(values(original)), demo.MARGIN).numpy()
    frames = pixels(server.base / "output" / reference["subfolder"] / reference["filename"])
    assert len(frames) == 2
    for frame in frames:
        assert np.abs(original.astype(int) - frame)[mask == 1].mean() > 5
        assert psnr(original[mask == 0], frame[mask == 0]) > 30


def test_a_person_who_would_stay_recognized_is_covered(server: ComfyServer):
    source = write_source(server.base / "input" / "weak.mp4", list(astronaut(2)))
    graph = Graph()
    weak = {"task": "anonymize", "steps": 10, "strength": 0.1}
    file, report = made(server, graph, protected(graph, graph.add("LoadVideo", file=source.name), **weak))
    assert "covered: person 0 from 0:00.0 to 0:00.1" in report
    for original, frame in zip(pixels(source), pixels(file), strict=True):
        (face,) = load_detector(None).detect(values(original))
        inside = frame[protected_mask(original.shape, [face], demo.MARGIN).numpy() == 1]
        assert inside.astype(float).std(axis=0).max() < 3


def test_a_trimmed_video_is_protected_as_trimmed(server: ComfyServer):
    wall = [np.full((64, 64, 3), 100 + i, np.uint8) for i in range(8)]
    source = write_source(server.base / "input" / "wall.mp4", wall)
    graph = Graph()
    whole = graph.add("LoadVideo", file=source.name)
    part = graph.add("Video Slice", video=whole, start_time=0.08, duration=0.12, strict_duration=False)
    file, report = made(server, graph, protected(graph, part, without_face="keep unchanged"))
    assert (
        report
        == "3 frames, 0 people, 0 faces carried over\nno face was detected from 0:00.0 to 0:00.1; review these times"
    )
    assert all(psnr(*pair) > 35 for pair in zip(pixels(file), pixels(source)[2:5], strict=True))


def test_a_face_that_is_missed_is_given_and_parts_of_faces_stay(server: ComfyServer):
    source = write_source(server.base / "input" / "given.mp4", list(astronaut(2)), options={"crf": "1"})
    graph = Graph()
    options = {"boxes": BOX, "min_score": 0.5, "min_size": 30, "keep": "eyes", "match_colors": True}
    file, report = made(server, graph, protected(graph, graph.add("LoadVideo", file=source.name), **options))
    assert report == (
        "2 frames, 2 people, 0 faces carried over\nin 2 of 2 boxes no face is found; there one is assumed that looks "
        "straight ahead and fills the box"
    )
    for original, frame in zip(pixels(source), pixels(file), strict=True):
        faces = [*load_detector(None).detect(values(original)), upright_face(box_of(BOX))]
        eyes = kept_parts(original.shape, faces[:1], ["eyes"]).numpy() == 1
        assert psnr(original[eyes], frame[eyes]) > 30
        for face in faces:
            new = (protected_mask(original.shape, [face], demo.MARGIN).numpy() == 1) & ~eyes
            assert np.abs(original.astype(int) - frame)[new].mean() > 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wall.mp4", {}, "Socket `video`: No face was found in any frame"),
        ("noise.mp4", {}, "noise.mp4 is not a video that can be read"),
        ("clip.mp4", {"faces": "1"}, "Socket `faces`: There is no person 1; the video has 1"),
        ("clip.mp4", {"boxes": [[BOX], *[[]] * 4]}, "Socket `boxes`: Boxes for 5 frames, but the video has"),
        ("clip.mp4", {"boxes": BOX | {"x": 900}}, "Socket `boxes`: The box at x 900"),
        ("clip.mp4", {"keep": "ears"}, "Socket `keep`: 'ears' is none of eyes"),
        ("clip.mp4", {"keep": "eyes,nose,mouth,contour"}, "Socket `keep`: the video: "),
        ("clip.mp4", {"size": 100}, "The crop size 100 is no multiple of 8"),
    ],
)
def test_bad_input_is_one_error_and_leaves_no_file(server: ComfyServer, name, options, message):
    (server.base / "input" / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    if not (server.base / "input" / name).exists():
        frames = list(astronaut(2)) if name == "clip.mp4" else [np.full((64, 64, 3), 100, np.uint8)] * 2
        write_source(server.base / "input" / name, frames)
    graph = Graph()
    protected(graph, graph.add("LoadVideo", file=name), filename_prefix="bad/video", **options)
    with pytest.raises(PromptError) as error:
        server.run(graph)
    assert message in str(error.value)
    assert not list((server.base / "output").glob("bad/*"))
