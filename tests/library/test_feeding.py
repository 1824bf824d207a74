"""How recognizers are fed when their graphs begin with something else than plain arithmetic: found by experiment."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.commands.options import recognizer_file
from diffprivacy.commands.requests import RecognizerFile
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.identity import recognizers
from diffprivacy.identity.feeding import find_feeding
from diffprivacy.identity.recognizers import load_recognizer
from testing.onnx_files import write_onnx

ARITHMETIC = (
    helper.make_node("Sub", ["in", "mean"], ["centred"]),
    helper.make_node("Mul", ["centred", "scale"], ["x"]),
)
BEGINNINGS = {
    "nothing": (),
    "Gather": (helper.make_node("Gather", ["data", "order"], ["in"], axis=1), *ARITHMETIC),
    "Transpose": (
        helper.make_node("Transpose", ["data"], ["rows"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["rows"], ["in"], perm=[0, 3, 1, 2]),
        *ARITHMETIC,
    ),
    "Cast": (
        helper.make_node("Cast", ["data"], ["in"], to=TensorProto.FLOAT),
        *ARITHMETIC,
    ),
    "BatchNormalization": (
        helper.make_node("BatchNormalization", ["data", "ones", "zeros", "means", "variances"], ["x"], epsilon=1e-5),
    ),
}
CONSTANTS = {
    "mean": np.float32([127.5]),
    "scale": np.float32([1 / 128]),
    "order": np.int64([2, 1, 0]),
    "ones": np.ones(3, np.float32),
    "zeros": np.zeros(3, np.float32),
    "means": np.full(3, 127.5, np.float32),
    "variances": np.full(3, 128.0**2, np.float32),
}

CROPS = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))


def begin_with(source: Path, target: Path, beginning: str) -> Path:
    """A recognizer that begins with Sub and Mul, rewritten to begin with something else."""
    model = onnx.load(source)
    graph = model.graph
    (data,) = (value.name for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer})
    first, second = graph.node[:2]
    assert (first.op_type, second.op_type) == ("Sub", "Mul")
    rest = [node for node in graph.node if node not in (first, second)]
    nodes = BEGINNINGS[beginning]
    new = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [data if name == "data" else name for name in copy.input]
        new.append(copy)
    for node in rest:
        node.input[:] = [(("x" if nodes else data) if name == second.output[0] else name) for name in node.input]
    used = {name for node in new for name in node.input}
    graph.ClearField("node")
    graph.node.extend([*new, *rest])
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in CONSTANTS.items() if k in used)
    onnx.save(model, target)
    return target


@pytest.fixture(autouse=True)
def found_anew(monkeypatch: pytest.MonkeyPatch):
    """Nothing is known from an earlier load."""
    monkeypatch.setattr(recognizers, "find_feeding", find_feeding)


@pytest.fixture(scope="module")
def source(data_dir) -> Path:
    return data_dir / "recognizers" / "mobilefacenet_ms1m.onnx"


@pytest.fixture(scope="module")
def expected(source) -> dict[str, torch.Tensor]:
    """Embeddings of CROPS as the file has them, by the order of their channels."""
    plain = load_recognizer(source)
    return {"RGB": plain(CROPS), "BGR": plain(CROPS.flip(1))}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_range_is_found_whatever_a_graph_begins_with(source, expected, tmp_path, beginning, caplog):
    with caplog.at_level(logging.WARNING):
        found = load_recognizer(begin_with(source, tmp_path / "other.onnx", beginning))
    assert not caplog.records
    assert found.scale == (2 if beginning == "nothing" else 255)
    assert "by experiment" in found.feeding
    order = "BGR" if beginning == "Gather" else "RGB"
    assert (found(CROPS) * expected[order]).sum(dim=1).min() > 0.999


@pytest.mark.parametrize("name", ["mobilefacenet_ms1m", "mobileface_v2"])
def test_what_a_graph_says_tells_people_apart(data_dir, name, caplog):
    with caplog.at_level(logging.WARNING):
        found = load_recognizer(data_dir / "recognizers" / f"{name}.onnx")
    assert not caplog.records
    assert (found.scale, found.channels) == (pytest.approx(255 / 128), "RGB") and "the graph says" in found.feeding


@pytest.mark.parametrize(("scale", "words"), [(1.0, "-1 to 1"), (127.5, "0 to 255")])
def test_the_embedded_recognizer_is_fed_right_in_either_range(scale, words):
    guide = demo.load_recognizer("guide")

    class InOtherRange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return guide.network(x if scale == 1 else x / scale - 1)

    fed = find_feeding(InOtherRange(), guide.input_size, None, "RGB", "guide.onnx")
    assert fed.reason.startswith(f"{words}, RGB: by experiment")


def test_the_order_of_channels_is_found_where_one_is_clearly_better():
    guide = demo.load_recognizer("guide")

    class OfBGR(nn.Module):
        """Sees faces whose last channel is red; all others are one to it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            blind = x[:, 0].mean(dim=(1, 2)) > x[:, 2].mean(dim=(1, 2))
            return torch.where(blind[:, None], 1.0, guide.network(x.flip(1)))

    assert find_feeding(OfBGR(), guide.input_size, None, None, "adaface.onnx").channels == "BGR"
    assert find_feeding(guide.network, guide.input_size, None, None, "arcface.onnx").channels == "RGB"


def test_a_network_that_tells_nobody_apart_is_refused_unless_the_channels_are_stated(tmp_path, caplog, capsys):
    file = write_onnx(tmp_path / "any.onnx", size=112)
    with pytest.raises(DiffPrivacyError, match=r"any\.onnx tells nobody apart.*FILE:RGB"):
        load_recognizer(file)
    command = ["anonymize", str(file), "-o", str(tmp_path / "out"), "--recognizer"]
    assert main([*command, str(file)]) == 1
    assert "any.onnx tells nobody apart" in capsys.readouterr().err
    with caplog.at_level(logging.WARNING):
        known = load_recognizer(file, "BGR")
    assert "any.onnx tells nobody apart" in caplog.text and "It is used" in caplog.text
    assert (known.scale, known.offset, known.channels) == (2, -1, "BGR")
    assert recognizer_file(f"{file}:RGB") == RecognizerFile(file, "RGB")
