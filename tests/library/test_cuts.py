"""Cuts are told from flashes, strobes and fades."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from diffprivacy.video.cuts import CutFinder

RATE = 25


@pytest.fixture(scope="module")
def scene() -> Tensor:
    return torch.from_numpy(skimage.data.astronaut()[:288, :384]).float() / 255


@pytest.fixture(scope="module")
def other() -> Tensor:
    return torch.from_numpy(skimage.data.coffee()[:288, :384]).float() / 255


def found(frames: Sequence[Tensor], rate: float = RATE) -> CutFinder:
    finder = CutFinder()
    for i, frame in enumerate(frames):
        finder.add(frame, i / rate)
    return finder


def pan(scene: Tensor, count: int) -> list[Tensor]:
    return [scene[:, 2 * i : 2 * i + 320] for i in range(count)]


def test_a_cut_is_a_cut(scene, other):
    for shots in ([20, 20], [3, 30]):
        finder = found(pan(scene, shots[0]) + pan(other, shots[1]))
        assert finder.cuts == {shots[0]}
        assert finder.jumps == [shots[0]]


def test_there_and_back_again_after_a_while_are_two_cuts(scene, other):
    frames = pan(scene, 15) + pan(other, 20) + pan(scene, 15)
    assert found(frames).cuts == {15, 35}


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("flash", ["white", "black", "glaring", "bright"])
def test_a_flash_is_no_cut(scene, flash, length):
    frames = pan(scene, 30)
    look = {
        "white": lambda frame: torch.ones_like(frame),
        "black": lambda frame: torch.zeros_like(frame),
        "glaring": lambda frame: (6 * frame).clamp(max=1),
        "bright": lambda frame: frame * 0.6 + 0.4,
    }[flash]
    frames[10 : 10 + length] = [look(frame) for frame in frames[10 : 10 + length]]
    finder = found(frames)
    assert finder.cuts == set()
    assert finder.jumps == [10, 10 + length]


def test_a_strobe_is_no_cut(scene):
    frames = [frame if i % 2 or not 5 <= i < 45 else torch.zeros_like(frame) for i, frame in enumerate(pan(scene, 32))]
    finder = found(frames)
    assert finder.cuts == set()
    assert len(finder.jumps) > 20


@pytest.mark.parametrize("down", [[0.6, 0.3, 0.1], [0.8, 0.6, 0.4, 0.2, 0.05], [0.45]])
def test_a_light_that_fades_is_no_cut(scene, down):
    frames = pan(scene, 30)
    for i, light in enumerate([*down, *[down[-1]] * 14, *down[::-1]]):
        frames[5 + i] = frames[5 + i] * light
    assert found(frames).cuts == set()


def test_a_cut_to_another_scene_in_another_light_is_a_cut(scene, other):
    assert found([frame * 0.4 for frame in pan(scene, 20)] + pan(other, 20)).cuts == {20}


def test_time_and_not_frames_tells_a_flash_from_a_shot(scene, other):
    """Five frames of something else: a fifth of a second, or a shot of five seconds."""
    frames = pan(scene, 10) + pan(other, 5) + pan(scene, 10)
    assert found(frames, rate=25).cuts == set()
    assert found(frames, rate=1).cuts == {10, 15}


def test_a_camera_that_moves_gives_no_cut(scene):
    finder = found(pan(scene, 32))
    assert finder.cuts == set()
    assert finder.jumps == []


def test_memory_does_not_grow_with_the_film(scene):
    finder = found([scene[:, : 200 + i % 3] for i in range(200)])
    kept = sum(value.numel() for _, value in finder._recent)
    assert kept <= 14 * np.prod((3, 18, 32))
