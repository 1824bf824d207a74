"""Keyed mode: the transform is exact and a rotation, secrets decide it, and the demo model brings a face back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprivacy import demo
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, protected_mask
from diffprivacy.media.images import levels
from diffprivacy.recovery import keyed
from diffprivacy.recovery.keyed import Public, anonymize_keyed, recover_keyed, rotate

NOISE = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(32, 32)
MASK[5:29, 7:27] = 1.0


@given(st.binary(min_size=1, max_size=32))
@settings(max_examples=30)
def test_rotation_is_undone_by_its_seed(seed):
    turned = rotate(NOISE, MASK, seed)
    assert torch.allclose(rotate(turned, MASK, seed, back=True), NOISE, atol=1e-5)
    assert torch.equal(turned[..., MASK == 0], NOISE[..., MASK == 0])
    assert torch.allclose(turned.square().sum(), NOISE.square().sum(), rtol=1e-5)


def test_rotation_keeps_gaussian_noise_gaussian_and_hides_its_values():
    """Nothing of the original map is left to see: neither values, nor their magnitudes, nor their places."""
    before, after = (x[0][:, MASK > 0].flatten() for x in (NOISE, rotate(NOISE, MASK, b"secret")))
    assert abs(float(after.mean())) < 0.1
    assert abs(float(after.std()) - 1) < 0.05
    assert abs(float((after**4).mean()) - 3) < 0.6
    for change in (lambda x: x, torch.abs):
        correlation = torch.corrcoef(torch.stack([change(before), change(after)]))[0, 1]
        assert abs(float(correlation)) < 4 / len(before) ** 0.5
    assert len(np.intersect1d(before.abs().numpy(), after.abs().numpy())) == 0


def test_a_seed_that_differs_in_one_bit_turns_elsewhere():
    first, second = rotate(NOISE, MASK, b"\x00"), rotate(NOISE, MASK, b"\x01")
    correlation = torch.corrcoef(torch.stack([x[0][:, MASK > 0].flatten() for x in (first, second)]))[0, 1]
    assert abs(float(correlation)) < 0.1


def test_rotation_is_the_same_forever():
    """Pictures of today must come back with the libraries of tomorrow."""
    turned = rotate(torch.arange(16.0).view(1, 1, 4, 4), torch.ones(4, 4), b"seed")
    assert turned.flatten()[:3].tolist() == pytest.approx([-2.4966006, -10.8104057, 2.9448845], abs=1e-5)


def test_public_part_comes_back():
    faces = load_detector(None).detect(torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255))
    public = Public(bytes(range(16)), tuple(faces), 128, 1.45)
    found = Public.from_bytes(public.to_bytes())
    assert (found.salt, found.size, found.margin) == (public.salt, 128, 1.45)
    assert np.array_equal(found.faces[0].landmarks, faces[0].landmarks)


VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=40) | st.lists(st.integers(), max_size=3)
FIELDS = st.fixed_dictionaries({name: VALUES for name in ("version", "salt", "size", "margin", "faces")})


@given(st.binary(max_size=100) | FIELDS.map(json.dumps).map(str.encode))
def test_a_damaged_public_part_is_a_documented_error(data):
    with pytest.raises(DiffPrivacyError):
        Public.from_bytes(data)


def test_the_secret_brings_the_face_back_and_another_one_does_not(demo_model, monkeypatch):
    """Through 8-bit pixels. Fewer steps and a cheap derivation than in use; the shipped values are the benchmark's."""
    monkeypatch.setattr(keyed, "STEPS", 8)
    monkeypatch.setitem(keyed.SCRYPT, "n", 2**10)
    original = torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255)
    faces = load_detector(None).detect(original)
    protected, public = anonymize_keyed(original, faces, demo_model, demo.CROP, "right")
    protected = torch.from_numpy(levels(protected, 8) / 255).float()
    public = Public.from_bytes(public.to_bytes())
    right, wrong = (recover_keyed(protected, public, demo_model, secret) for secret in ("right", "righu"))
    mask = protected_mask(original.shape, faces, demo.MARGIN)
    for picture in (protected, right, wrong):
        assert np.array_equal(levels(picture, 8)[mask == 0], levels(original, 8)[mask == 0])
    quality = [
        psnr(*(crop_face(rgb, faces[0], demo.IMAGE_SIZE, 1.0) for rgb in (picture, original)))
        for picture in (protected, right, wrong)
    ]
    assert quality[1] > max(quality[0], quality[2]) + 3
