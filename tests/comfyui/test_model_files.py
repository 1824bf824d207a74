"""Recognizers, detectors and MSI modules from files: several together, wrong ones, and ones that are not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.comfyui.graphs import Graph
from tests.comfyui.guided import anonymized, run
from tests.comfyui.photos import write_astronaut
from tests.comfyui.server import PromptError


@pytest.fixture(scope="module", autouse=True)
def photo(server):
    return write_astronaut(server.base / "input")


def write_recognizer(path: Path, side: int, length: int, seed: int) -> None:
    """A seeded ONNX file from (1,3,side,side) to a vector."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    kernel = random.normal(size=(8, 3, 4, 4)) / 7
    linear = random.normal(size=(8 * (side // 4) ** 2, length)) / 20
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in (("kernel", kernel), ("linear", linear))]
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["maps"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("Gemm", ["flat", "linear"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, length])
    graph = helper.make_graph(nodes, "recognizer", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


def test_recognizers_of_differing_sizes_guide_together(server):
    """Two of one kind guide as one of them does; two of different sizes, or one that takes BGR, as neither does.

    By a list that grows, and by the files of older workflows.
    """
    folder = server.base / "models" / "insightface"
    folder.mkdir(exist_ok=True)
    write_recognizer(folder / "small.onnx", 64, 32, 0)
    write_recognizer(folder / "large.onnx", 112, 96, 1)

    def guided_by(*others: str, **files: str) -> np.ndarray:
        graph = anonymized(scale=0.1)
        recognizer = graph.add("DiffPrivacyLoadRecognizer", **{"channels": "RGB"} | files)
        if others:
            more = [graph.add("DiffPrivacyLoadRecognizer", channels="RGB", file=file) for file in others]
            grown = {f"recognizers.recognizer{i}": one for i, one in enumerate([recognizer, *more])}
            recognizer = graph.add("DiffPrivacyCombineRecognizers", **grown)
        for node in graph.values():
            if node["class_type"] == "DiffPrivacyAnonymizeEnergy":
                node["inputs"]["recognizer"] = recognizer
            if node["class_type"] == "KSampler":
                node["inputs"]["steps"] = 2
        return np.stack(run(server, graph)).astype(int)

    small, large = guided_by(file="small.onnx"), guided_by(file="large.onnx")
    assert np.abs(guided_by(file="small.onnx", channels="BGR") - small).max() > 5
    twice = guided_by(file="small.onnx", second_file="small.onnx")
    both = guided_by(file="small.onnx", second_file="none", third_file="large.onnx")
    assert np.abs(twice - small).max() <= 1
    assert np.array_equal(guided_by("large.onnx", file="small.onnx"), both)
    assert min(np.abs(both - small).max(), np.abs(both - large).max(), np.abs(small - large).max()) > 5


def write_averaging_model(path: Path) -> None:
    """An ONNX file that runs, and gives the mean colour of a picture."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "mean", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"file": "mean.onnx"}, "insightface/mean.onnx is no face recognizer"),
        ({"file": "text.onnx"}, "insightface/text.onnx is no ONNX file"),
        ({"file": "one.onnx"}, "insightface/one.onnx tells nobody apart, however it is fed"),
        ({"file": "gone.onnx"}, "gone.onnx is not there: looked in .*/insightface; put an ArcFace ONNX"),
        (
            {"file": "one.onnx", "third_file": "gone.onnx", "channels": "RGB"},
            "gone.onnx is not there: looked in .*/insightface",
        ),
    ],
)
def test_what_is_no_recognizer_is_named_with_its_path(server, files, message):
    folder = server.base / "models" / "insightface"
    folder.mkdir(exist_ok=True)
    write_averaging_model(folder / "mean.onnx")
    (folder / "text.onnx").write_text("hello")
    write_recognizer(folder / "one.onnx", 64, 32, 0)
    graph = Graph()
    graph.add("PreviewAny", source=graph.add("DiffPrivacyLoadRecognizer", **files))
    with pytest.raises(PromptError, match=message):
        server.run(graph)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("DiffPrivacyLoadDetector", "looked in .*/insightface and .*/detection; put a detector"),
        ("DiffPrivacyLoadMSI", "looked in .*/msi; put what Save MSI"),
    ],
)
def test_a_file_that_is_gone_is_named_with_its_path(server, block, message):
    graph = Graph()
    graph.add("PreviewAny", source=graph.add(block, file="gone.file"))
    with pytest.raises(PromptError, match=message):
        server.run(graph)


@pytest.mark.parametrize(
    ("block", "ending"),
    [("DiffPrivacyLoadRecognizer", "onnx"), ("DiffPrivacyLoadDetector", "onnx"), ("DiffPrivacyLoadMSI", "safetensors")],
)
def test_a_model_elsewhere_is_answered_as_one_that_does_not_exist(server, block, ending):
    """A workflow of somebody else must not tell which files there are, nor make this machine ask another for one."""
    folder = server.base / "models" / "insightface"
    (folder / "below").mkdir(parents=True, exist_ok=True)
    write_recognizer(folder / "below" / "inside.onnx", 64, 32, 0)
    for outside in (server.base / f"outside.{ending}", server.base / "models" / f"outside.{ending}"):
        outside.write_bytes((folder / "below" / "inside.onnx").read_bytes())
    names = [str(server.base / f"outside.{ending}"), f"../outside.{ending}", f"below/../../outside.{ending}"]
    names += [f"../missing.{ending}", f"/missing.{ending}", f"missing.{ending}", "", "."]
    names += ["below/../below/inside.onnx", str(folder / "below" / "inside.onnx"), "../../../../etc/hostname"]
    names += [f"//server/share/outside.{ending}", f"\\\\server\\share\\outside.{ending}"]
    answers = set()
    for name in names:
        graph = Graph()
        graph.add("PreviewAny", source=graph.add(block, file=name))
        with pytest.raises(PromptError) as refused:
            server.run(graph)
        message = json.loads(str(refused.value))["exception_message"].strip()
        assert message.startswith(f"Model {name} is not there: looked in ")
        answers.add(message.removeprefix(f"Model {name} "))
    assert len(answers) == 1
