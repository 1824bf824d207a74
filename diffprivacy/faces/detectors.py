"""Face detectors: SCRFD, RetinaFace or YuNet from an ONNX file, or the YuNet that lies beside this module.

YuNet (Wu, Peng, Yu, Machine Intelligence Research 20, 2023) is libfacedetection's network; its licence is yunet.LICENSE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError
from .geometry import Face
from .tiling import Network, find_faces

if TYPE_CHECKING:
    from onnx import GraphProto

BUILT_IN = Path(__file__).with_name("yunet_n.onnx")
SCRFD_SCORES = (0.3, 0.5, 0.78)
YUNET_SCORES = (0.5, 0.73, 0.92)
"""The score from which a network reports a face, from which it counts, and that which only upright faces reach."""
MIN_SIZE = 12
"""Pixels of a face's longer side from which it is looked for by default."""
ADVICE = "choose an SCRFD, RetinaFace or YuNet file, such as det_10g.onnx from insightface's buffalo_l"


class Detector(Protocol):
    @property
    def min_score(self) -> float:
        """The score from which a face counts by default."""
        ...

    def detect(self, picture: Tensor, min_score: float | None = None, min_size: float | None = None) -> list[Face]:
        """The faces of ``picture`` (H,W,3) in [0,1], sorted from left to right; none is an empty list, not an error.

        min_score: in [0,1]; min_size: pixels of the longer side of a face's box; by default the detector's own.
        Whatever goes wrong inside, such as running out of memory, is raised.
        """
        ...


class OnnxDetector:
    """A network that finds faces in square pictures of one size, applied to a whole picture at several scales."""

    def __init__(self, network: Network, min_score: float | None = None, min_size: float = MIN_SIZE) -> None:
        self.network = network
        self._min_score = network.enough if min_score is None else min_score
        self.min_size = min_size

    @property
    def min_score(self) -> float:
        return self._min_score

    def detect(self, picture: Tensor, min_score: float | None = None, min_size: float | None = None) -> list[Face]:
        lowest = self.min_score if min_score is None else min_score
        return find_faces(picture, self.network, lowest, self.min_size if min_size is None else min_size)


@dataclass(frozen=True)
class Limited:
    """A detector with another score and size by default."""

    detector: Detector
    min_score: float
    min_size: float

    def detect(self, picture: Tensor, min_score: float | None = None, min_size: float | None = None) -> list[Face]:
        lowest = self.min_score if min_score is None else min_score
        return self.detector.detect(picture, lowest, self.min_size if min_size is None else min_size)


def load_detector(path: str | Path | None, min_score: float | None = None, min_size: float = MIN_SIZE) -> Detector:
    """The detector in an ONNX file, or the built-in one for None.

    min_score: from which a face counts, None for what suits the network. min_size: pixels of the longer side.
    Raises DiffPrivacyError for a missing file, one that is no ONNX model, and a model that is no face detector.
    """
    if path is None:
        return OnnxDetector(_load_yunet(BUILT_IN), min_score, min_size)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise DiffPrivacyError("Face detectors from files need insightface: pip install insightface") from error
    path = Path(path).absolute()
    if not path.is_file():
        raise DiffPrivacyError(f"No face detector at {path}: {ADVICE}.")
    if path.suffix != ".onnx":
        raise DiffPrivacyError(f"{path} is not named .onnx; {ADVICE}.")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError as error:
        raise DiffPrivacyError(f"{path} is no ONNX file; {ADVICE}.") from error
    if {"cls_8", "obj_8", "bbox_8", "kps_8"} <= {output.name for output in graph.output}:
        load = _load_yunet
    elif _is_scrfd(graph):
        load = _load_scrfd
    else:
        raise DiffPrivacyError(f"{path} is no face detector that gives five landmarks; {ADVICE}.")
    try:
        network = load(path)
    except Exception as error:  # A file may come from anybody, and parsers meet damage with errors of every kind.
        raise DiffPrivacyError(f"{path} is damaged, or no face detector ({type(error).__name__}); {ADVICE}.") from error
    return OnnxDetector(network, min_score, min_size)


def _is_scrfd(graph: GraphProto) -> bool:
    """Scores, boxes and landmarks at three or five scales; the sizes of dynamic outputs are not written down (0)."""
    widths = {
        output.type.tensor_type.shape.dim[-1].dim_value for output in graph.output if output.type.tensor_type.shape.dim
    }
    return len(graph.output) in (9, 15) and widths <= {0, 1, 4, 10}


def _load_scrfd(path: Path) -> Network:
    from insightface.model_zoo import get_model

    model: Any = get_model(str(path), download=False)
    side = max(model.static_input_size or (640, 640))
    model.prepare(0, det_thresh=SCRFD_SCORES[0], input_size=(side, side))

    def scan(pixels: np.ndarray) -> list[Face]:
        boxes, landmarks = model.detect(np.ascontiguousarray(pixels[..., ::-1]))
        return [
            Face((x0, y0, x1, y1), points, score)
            for (x0, y0, x1, y1, score), points in zip(boxes.tolist(), landmarks, strict=True)
        ]

    return Network(scan, side, *SCRFD_SCORES)


def _load_yunet(path: Path) -> Network:
    import cv2

    side = 640
    content = np.fromfile(path, np.uint8)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its new engine
    try:
        model = cv2.FaceDetectorYN.create("onnx", content, np.empty(0, np.uint8), (side, side), YUNET_SCORES[0])
    finally:
        cv2.utils.logging.setLogLevel(level)

    def scan(pixels: np.ndarray) -> list[Face]:
        _, found = model.detect(np.ascontiguousarray(pixels[..., ::-1]))
        return [
            Face((x, y, x + width, y + height), np.array(points, np.float32).reshape(5, 2), score)
            for x, y, width, height, *points, score in (() if found is None else found.tolist())
        ]

    return Network(scan, side, *YUNET_SCORES)
