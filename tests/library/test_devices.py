"""Another device than the CPU: no operation mixes tensors of the two. Nothing is computed, so that any machine can tell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import skimage.data
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffprivacy import demo, pipeline
from diffprivacy.demo.host import load_backbone
from diffprivacy.detectors import load_detector

OTHER = torch.device("cuda", 0)


class Ones(TorchDispatchMode):
    """Every number that is read from a tensor without data is 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def another_device() -> Iterator[None]:
    """Tensors on a GPU that has no data and need not be there; mixing them with the CPU's raises.

    Gradients are not computed either: they go back the way that the values came.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        Ones(),
        patch("torch.autograd.grad", lambda y, x, slope: (torch.zeros_like(x) + slope.sum(),)),
        patch("diffprivacy.sampling.check_sigmas"),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield


def test_mixing_devices_is_noticed():
    with another_device(), pytest.raises(RuntimeError, match="two different devices"):
        torch.ones(2, 3, device=OTHER) @ torch.ones(3, 4)


@pytest.mark.parametrize("task", ["anonymize", "hide"])
def test_protecting_a_picture(task):
    picture = torch.from_numpy(skimage.data.astronaut()).float() / 255
    faces = load_detector(None).detect(picture)
    words = torch.zeros(10, sum(demo.load_msi().text_encoder.widths)) if task == "hide" else None
    backbone, recognizer = load_backbone(), demo.load_recognizer("guide")
    with another_device():
        new = list(
            getattr(pipeline, task)(
                picture,
                faces,
                backbone.to(OTHER),
                size=demo.IMAGE_SIZE,
                recognizer=recognizer.to(OTHER),
                variants=2,
                pseudo_words=None if words is None else [words],
            )
        )
    assert [(version.shape, version.device.type) for version in new] == [(picture.shape, "cpu")] * 2
