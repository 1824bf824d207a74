"""Frames of a video: what is known of them, and how they turn to RGB and back."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from av.filter import Graph

_UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)


@dataclass(frozen=True)
class Video:
    """What a video file holds, and what its protected copy takes over: the whole, or a range (:func:`.files.clip`).

    stream: index of the video track; left_out: the tracks that the copy does not take over, in words.
    frames: how many, as the file says or estimated, 0 where unknown; rate: their mean number a second.
    height, width: of upright frames; bit_depth: 8 or 16 bits a channel of ``Frame.pixels``.
    time_base: seconds in a unit of ``Frame.time``; start: ``Frame.time`` of the first frame.
    sample_aspect_ratio: width of an upright pixel over its height.
    primaries, transfer, matrix: the colour space, as ITU-T H.273 numbers them.
    display_matrix: turns the stored frames upright, as in ISO/IEC 14496-12.
    first: number in the file of the first frame; stop: time before which the last one is shown, None for the file's end.
    """

    path: Path
    stream: int
    left_out: tuple[str, ...]
    frames: int
    rate: Fraction
    height: int
    width: int
    bit_depth: int
    time_base: Fraction
    start: int
    sample_aspect_ratio: Fraction
    primaries: int
    transfer: int
    matrix: int
    display_matrix: tuple[int, ...]
    first: int = 0
    stop: int | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """pixels: (H,W,3) RGB, upright, uint8 or full-range uint16; time: when it is shown, in ``Video.time_base``."""

    pixels: np.ndarray
    time: int


def to_rgb(frame: VideoFrame, video: Video) -> np.ndarray:
    """(H,W,3) RGB, upright, scaled to the video's size where a frame has another."""
    transposed = transposes(video.display_matrix)
    height, width = (video.width, video.height) if transposed else (video.height, video.width)
    rgb = frame.reformat(width=width, height=height, format=_rgb_format(video), interpolation=_resampling())
    return np.ascontiguousarray(_upright(rgb.to_ndarray(), video.display_matrix))


def to_even(frame: Frame, video: Video) -> VideoFrame:
    """Of even size, as the colour of 2 x 2 pixels is stored once: the last row and column are repeated for that."""
    from av import VideoFrame

    height, width, _ = frame.pixels.shape
    pixels = np.pad(frame.pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    even = VideoFrame.from_ndarray(pixels, format=_rgb_format(video))
    even.pts = frame.time
    even.time_base = video.time_base
    return even


def yuv_graph(video: Video) -> Graph:
    """Turns RGB to what is encoded, colour placed at the left of two pixels as usual; ``reformat`` would centre it."""
    from av import VideoFormat
    from av.filter import Graph

    graph = Graph()
    height, width = even_size(video)
    rgb = VideoFormat(_rgb_format(video))
    scale = f"flags={int(_resampling())}:out_color_matrix={video.matrix}:out_range=limited:out_chroma_loc=left"
    graph.link_nodes(
        graph.add_buffer(width=width, height=height, format=rgb, time_base=video.time_base),
        graph.add("scale", scale),
        graph.add("format", yuv_format(video)),
        graph.add("buffersink"),
    ).configure()
    return graph


def even_size(video: Video) -> tuple[int, int]:
    """Height and width of encoded frames."""
    return video.height + video.height % 2, video.width + video.width % 2


def yuv_format(video: Video) -> str:
    """FFmpeg's name of the encoded pixels."""
    return "yuv420p" if video.bit_depth == 8 else "yuv420p10le"


def display_matrix(frame: VideoFrame) -> tuple[int, ...]:
    """What turns a decoded frame upright."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return _UPRIGHT if data is None else tuple(np.frombuffer(data, np.int32).tolist())


def transposes(matrix: tuple[int, ...]) -> bool:
    """Whether rows become columns."""
    return abs(matrix[0]) < abs(matrix[1])


def _upright(pixels: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """Turned and mirrored, by quarter turns, as a display matrix says."""
    a, b, _, c, d = matrix[:5]
    right, down = (c, b) if transposes(matrix) else (a, d)
    if transposes(matrix):
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _rgb_format(video: Video) -> str:
    return "rgb24" if video.bit_depth == 8 else "rgb48le"


def _resampling() -> int:
    """How swscale turns YUV to RGB and back; with its defaults every pass makes a picture a level darker."""
    from av.video.reformatter import Interpolation

    return (
        Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    )
