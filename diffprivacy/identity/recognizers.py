"""Differentiable face recognizers: ONNX files as torch modules, and ensembles of them.

ArcFace (arXiv 1801.07698) and its kin map an aligned face to a vector; the cosine between two vectors says
whether the faces are one person.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DiffPrivacyError
from ..faces.alignment import align
from .feeding import Channels, find_feeding
from .strangers import ASSUMED, Strangers
from .thresholds import Threshold, read_strangers, read_thresholds

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ValueInfoProto

log = logging.getLogger(__name__)

MAX_SIDE = 1024
"""Largest crops of a recognizer, in pixels."""
Embeddings = tuple[Tensor, ...]
"""Unit vectors (B,D) of B faces, one tensor for each network."""


class FaceMatcher(nn.Module):
    """What energies and reports see: one network or several, each with its weight (the weights add up to 1).

    strangers: what each network sees in two different people.
    thresholds: those measured for it, none for several networks together.
    """

    weights: tuple[float, ...]
    strangers: tuple[Strangers, ...] = (ASSUMED,)
    thresholds: tuple[Threshold, ...] = ()

    def embed(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        """Embeddings of images (B,3,H,W) in [0,1] with the five points (B,5,2) in pixels; differentiable.

        mirrored adds each face's mirror image, the usual fusion when comparing photos.
        """
        raise NotImplementedError

    def reference(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        """embed() as constants for later use under autograd, whatever mode this is called in."""
        with torch.inference_mode(False), torch.no_grad():
            return self.embed(images.clone(), landmarks.clone(), mirrored)

    def cosine(self, a: Embeddings, b: Embeddings) -> Tensor:
        """Weighted mean over the networks of the cosines between rows of a and b; shapes broadcast to (B,)."""
        return weighted_sum(self.weights, [(x * y).sum(dim=-1) for x, y in zip(a, b, strict=True)])


class Recognizer(FaceMatcher):
    """A network on aligned crops of input_size pixels, and how it wants its pixels.

    network maps (B,3,s,s) to (B,D); it is fed scale * x + offset, x in [0,1], RGB or BGR as channels says. feeding: why,
    in words.
    points: (5,2), where its crops show the five points, if not at ArcFace's places.
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: int = 112,
        scale: float = 2.0,
        offset: float = -1.0,
        channels: Channels = "RGB",
        thresholds: Sequence[Threshold] = (),
        name: str = "recognizer",
        points: Tensor | None = None,
        strangers: Strangers = ASSUMED,
        feeding: str = "",
    ):
        super().__init__()
        self.points = points
        self.network = network.eval().requires_grad_(False)
        self.input_size = input_size
        self.scale = scale
        self.offset = offset
        self.channels = channels
        self.feeding = feeding
        self.thresholds = tuple(thresholds)
        self.name = name
        self.weights = (1.0,)
        self.strangers = (strangers,)

    def forward(self, crops: Tensor) -> Tensor:
        """Unit vectors (B,D) of aligned crops (B,3,s,s) in [0,1]: computed in the weights' type, returned in the crops'.

        They are on the weights' device, wherever the crops are.
        """
        x = crops if self.channels == "RGB" else crops.flip(1)
        x = (x * self.scale + self.offset).to(next(self.network.parameters()))
        return F.normalize(self.network(x).to(crops.dtype))

    def embed(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        crops = align(images, landmarks, self.input_size, self.points)
        embedding = self(crops)
        return (F.normalize(embedding + self(crops.flip(3))) if mirrored else embedding,)

    def threshold(self, far: float) -> Threshold:
        """The threshold measured at this false accept rate.

        Raises DiffPrivacyError when none is kept beside the model.
        """
        for threshold in self.thresholds:
            if threshold.far == far:
                return threshold
        raise DiffPrivacyError(
            f"{self.name} has no threshold at FAR {far:g} in {Path(self.name).stem}.thresholds.json beside it: "
            "measure one with `diffprivacy evaluate ORIGINALS PROTECTED --recognizer FILE --clean PHOTOS --keep-thresholds`."
        )


class Ensemble(FaceMatcher):
    """Several recognizers, each with its own alignment and embedding; weights are relative."""

    def __init__(self, members: Sequence[tuple[FaceMatcher, float]]):
        super().__init__()
        total = sum(weight for _, weight in members)
        if not members or min(weight for _, weight in members) < 0 or total <= 0:
            raise DiffPrivacyError(
                "An ensemble needs at least one recognizer, and weights of zero or more, not all zero."
            )
        self.members = nn.ModuleList(member for member, _ in members)
        self.weights = tuple(weight / total * w for member, weight in members for w in member.weights)
        self.strangers = tuple(kind for member, _ in members for kind in member.strangers)

    def embed(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        members = cast("Iterable[FaceMatcher]", self.members)
        return tuple(e for member in members for e in member.embed(images, landmarks, mirrored))


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of weight * value over the networks."""
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(dim=0)


class _OneByOne(nn.Module):
    """A network exported for a batch of one, applied picture by picture."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(picture[None]) for picture in x])


def load_recognizer(path: str | Path, channels: Channels | None = None) -> Recognizer:
    """A recognizer from an ONNX file that maps (N,3,s,s) to one vector a face, such as insightface's ArcFace models.

    The input's size is read from the graph, and the range of its values too where the graph begins with plain
    arithmetic; else it is found by experiment, and so is the order of channels where it is not stated, see
    :mod:`.feeding`. Insightface's models, and most others, take RGB; ports of AdaFace take BGR. Thresholds are read from
    <name>.thresholds.json beside the file.
    The weights are ordinary tensors, fit for autograd, even when this is called in torch.inference_mode.

    Raises DiffPrivacyError for a missing file, a file that is no ONNX model, a model that is no recognizer, and, unless
    channels are stated, one that tells nobody apart.
    """
    try:
        return _read_recognizer(path, channels)
    except DiffPrivacyError:
        raise
    except Exception as error:  # A file may come from anybody, and parsers meet damage with errors of every kind.
        raise DiffPrivacyError(
            f"{path} is damaged, or no face recognizer ({type(error).__name__}); choose one such as w600k_r50.onnx."
        ) from error


def _read_recognizer(path: str | Path, channels: Channels | None) -> Recognizer:
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx2torch import convert
    except ImportError as error:
        raise DiffPrivacyError("Face recognizers need onnx2torch: pip install onnx2torch") from error

    path = Path(path).absolute()
    if not path.is_file():
        raise DiffPrivacyError(
            f"No face recognizer at {path}: put an ArcFace ONNX file there, such as w600k_r50.onnx "
            "from insightface's buffalo_l."
        )
    try:
        graph = (model := onnx.load(path)).graph
    except DecodeError as error:
        raise DiffPrivacyError(f"{path} is no ONNX file; choose a face recognizer such as w600k_r50.onnx.") from error

    no_recognizer = DiffPrivacyError(
        f"{path} is no face recognizer, which maps one (N,3,s,s) image to one vector; choose one such as w600k_r50.onnx."
    )
    constants = _constants(graph)
    source = _picture_input(graph, constants)
    if source is None:
        raise no_recognizer
    batch, _, size, _ = _shape(source)
    known = _take_normalisation(graph, source, constants)
    try:
        with torch.inference_mode(False), torch.no_grad():
            network = _OneByOne(convert(model)) if batch == 1 else convert(model)
            output = network.eval()(torch.zeros(2, 3, size, size))
    except (NotImplementedError, RuntimeError) as error:
        raise DiffPrivacyError(f"{path} cannot be run by torch ({error}); choose another face recognizer.") from error
    # Embeddings have lengths such as 128 or 512; class scores (1000), landmarks (212, 3309), age and gender (3) do not.
    if output.ndim != 2 or len(output) != 2 or output.shape[1] % 32:
        raise no_recognizer
    fed = find_feeding(network, size, known, channels, str(path))
    log.info("%s is fed %s", path, fed.reason)
    return Recognizer(
        network,
        *(size, fed.scale, fed.offset, fed.channels),
        thresholds=read_thresholds(path),
        name=path.name,
        strangers=read_strangers(path),
        feeding=fed.reason,
    )


def _constants(graph: GraphProto) -> dict[str, np.ndarray]:
    from onnx.numpy_helper import to_array

    values = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = to_array(node.attribute[0].t)
    return values


def _shape(value: ValueInfoProto) -> list[int]:
    """Sizes of a graph's input, 0 where they are left open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _picture_input(graph: GraphProto, constants: dict[str, np.ndarray]) -> ValueInfoProto | None:
    """The graph's input if it takes one square colour picture, and gives one output."""
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        return None
    shape = _shape(inputs[0])
    return inputs[0] if len(shape) == 4 and shape[1] == 3 and 0 < shape[2] == shape[3] <= MAX_SIDE else None


def _take_normalisation(
    graph: GraphProto, source: ValueInfoProto, constants: dict[str, np.ndarray]
) -> tuple[float, float] | None:
    """Cut the leading arithmetic on the input out of the graph; return it as scale and offset on pictures in [0,1].

    ArcFace models trained with MXNet subtract and multiply first and take 0..255; those exported from PyTorch begin
    with a convolution, and None is returned. Outside the graph the arithmetic stays in float32 when the network does not.
    """
    arithmetic: dict[str, Callable[[float, float, float], tuple[float, float]]] = {
        "Sub": lambda scale, offset, c: (scale, offset - c),
        "Add": lambda scale, offset, c: (scale, offset + c),
        "Mul": lambda scale, offset, c: (scale * c, offset * c),
        "Div": lambda scale, offset, c: (scale / c, offset / c),
    }
    affine: tuple[float, float] | None = None
    while True:
        users = [node for node in graph.node if source.name in node.input]
        if len(users) != 1 or users[0].op_type not in arithmetic or users[0].input[0] != source.name:
            break
        constant = constants.get(users[0].input[1])
        if constant is None or constant.size != 1:
            break
        affine = arithmetic[users[0].op_type](*(affine or (1.0, 0.0)), float(constant.item()))
        source.name = users[0].output[0]
        graph.node.remove(users[0])
    if affine is None:
        return None
    scale, offset = affine
    takes_bytes = scale < 0.1 or -offset / scale > 1
    return (255 * scale if takes_bytes else scale), offset
