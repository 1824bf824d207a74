"""The noise of protected images: unit Gaussian, and unrelated under every other key."""

import hashlib
import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprivacy import demo, pipeline
from diffprivacy.demo.showcase import example_photo
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.faces.detectors import load_detector
from diffprivacy.presets import Preset
from diffprivacy.regeneration import Regeneration

COUNT = 2**17


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """In standard deviations of that of unrelated noise."""
    return float((a * b).sum() / math.sqrt(a.numel()))


@settings(max_examples=20)
@given(bit=st.integers(0, 255))
def test_a_key_that_differs_in_one_bit_gives_unrelated_noise(bit):
    flipped = bytearray(32)
    flipped[bit // 8] ^= 1 << bit % 8
    one, other = NoiseKey(bytes(32)).normal((4, 64, 64)), NoiseKey(bytes(flipped)).normal((4, 64, 64))
    assert abs(correlation(one, other)) < 6


def test_seeds_count_beyond_32_bits():
    for seed in (5 + 7 * 2**32, 5 + 2**200, -5):
        assert abs(correlation(NoiseKey.from_seed(5).normal((COUNT,)), NoiseKey.from_seed(seed).normal((COUNT,)))) < 6
    assert torch.equal(NoiseKey.from_seed(5).normal((9,)), NoiseKey.from_seed(5).normal((9,)))


def test_every_label_names_a_stream_of_its_own():
    key = NoiseKey.from_seed(1)
    labels = [(), ("face", 1), ("face", 1, "variant", 0), ("face", "1"), ("face1",), ("face", 11), (1, "face")]
    streams = [key.normal((COUNT,), *of_stream) for of_stream in labels]
    streams += [key.derive("face", 1).normal((COUNT,)), torch.special.ndtri(key.uniform((COUNT,))).float()]
    for i, one in enumerate(streams):
        assert all(abs(correlation(one, other)) < 6 for other in streams[:i])


def test_it_is_unit_gaussian():
    z = NoiseKey.from_seed(2).normal((8 * COUNT,)).double()
    error = 1 / math.sqrt(len(z))
    assert abs(z.mean()) < 5 * error
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2) * error
    assert abs(z.pow(3).mean()) < 5 * math.sqrt(15) * error
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96) * error
    distances = (torch.special.ndtr(z.sort().values) - torch.arange(len(z)) / len(z)).abs()
    assert distances.max() < 2.3 * error, "Kolmogorov and Smirnov's test at 5e-5"
    assert correlation(z[1:], z[:-1]) < 5


def test_uniform_numbers_are_never_0_or_1():
    words = NoiseKey.from_seed(3)
    u = words.uniform((3, 5))
    assert u.shape == (3, 5)
    assert u.dtype == torch.float64
    for extreme in (b"\0", b"\xff"):
        words._stream = lambda length, labels, byte=extreme: byte * length
        assert 0 < float(words.uniform((1,))) < 1
        assert abs(float(words.normal((1,)))) == pytest.approx(8.2095, abs=1e-4)


def test_the_numbers_of_a_key_stay_what_they_are():
    """An interrupted video goes on with the noise it began with, also after an update."""
    key = bytes(range(32))
    stream = hashlib.shake_256(b"diff-privacy noise 1\0" + key + b'["uniform", "normal", "person", 0]').digest(48)
    words = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 48, 8)]
    expected = [NormalDist().inv_cdf(((word >> 12) + 0.5) / 2**52) for word in words]
    torch.testing.assert_close(NoiseKey(key).normal((2, 3), "person", 0), torch.tensor(expected).view(2, 3))


@pytest.fixture
def known_noise():
    """Here it is the operating system's."""


def test_fresh_keys_differ_and_hold_256_bits():
    keys = {NoiseKey().key for _ in range(64)}
    assert len(keys) == 64
    seen = [0] * 256
    for key in keys:
        for bit in range(256):
            seen[bit] |= 1 << (key[bit // 8] >> bit % 8 & 1)
    assert seen == [3] * 256, "every bit takes both values"


def test_only_the_key_decides_what_a_face_becomes(demo_model):
    """Neither torch's generators nor a seed's low half: what an attacker would have to search is the whole key."""
    photo = example_photo().rgb
    faces = load_detector(None).detect(photo)
    quick = Regeneration(Preset(strength=0.5, steps=2, switch=None))

    def made(key: NoiseKey | None, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(pipeline.protect(photo, faces, demo_model, demo.CROP, quick, key))

    high = bytearray(32)
    high[31] = 0x80
    one = made(NoiseKey(bytes(32)), 0)
    assert torch.equal(one, made(NoiseKey(bytes(32)), 1))
    assert not torch.equal(one, made(NoiseKey(bytes(high)), 0))
    assert not torch.equal(made(None, 0), made(None, 0))
