"""Gradients on a device that has room for a few latents only."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffprivacy.diffusion.out_of_memory import halving, in_parts


def device_with_room_for(room: int, asked: list[int]) -> Callable[[int], Callable[..., Tensor]]:
    """The gradient of half the squared norm, by parts of a size."""

    def gradient_of(size: int) -> Callable[..., Tensor]:
        def gradient(z0: Tensor, seed: int) -> Tensor:
            asked.append(size)
            if size > room:
                raise torch.OutOfMemoryError("no room")
            return torch.cat([part.clone() for part in z0.split(size)])

        return gradient

    return gradient_of


def test_fewer_latents_are_taken_at_once_until_they_fit_and_that_is_said(caplog: pytest.LogCaptureFixture):
    asked: list[int] = []
    gradient = halving(device_with_room_for(2, asked))
    z0 = torch.arange(8.0).view(8, 1, 1, 1)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(gradient(z0, 0), z0)
    assert asked == [8, 4, 2]
    assert "2 image(s) at once" in caplog.messages[-1]
    assert torch.equal(gradient(z0, 1), z0)
    assert asked == [8, 4, 2, 2]  # What fitted is where the next step begins.


def test_a_chunk_that_was_asked_for_is_where_it_begins():
    asked: list[int] = []
    halving(device_with_room_for(8, asked), 4)(torch.zeros(8, 1, 1, 1), 0)
    assert asked == [4]


def test_no_room_for_one_is_an_error():
    """In words of ours, its type PyTorch's: ComfyUI unloads its models at that."""
    with pytest.raises(torch.OutOfMemoryError, match=r"one image at a time: a smaller image takes less\.$"):
        halving(device_with_room_for(0, []))(torch.zeros(3, 1, 1, 1), 0)


def test_the_network_too_is_given_fewer_pictures_until_they_fit():
    asked: list[int] = []

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("no room")
        return x * sigma

    denoise = in_parts(network, 16)
    x = torch.arange(9.0).view(9, 1, 1, 1)
    assert torch.equal(denoise(x, torch.tensor(2.0)), 2 * x)
    assert asked == [9, 4, 2, 2, 2, 2, 1]
    asked.clear()
    denoise(x, torch.tensor(2.0))
    assert asked == [2, 2, 2, 2, 1]
