"""Verification and fidelity: the numbers that reports print."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.fidelity import psnr, ssim
from diffprivacy.identity.verification import accept_rate, operating_point, pair_cosines, rank1

cosines = st.lists(st.floats(-1, 1, width=16), min_size=20, max_size=60)


def test_pairs_are_all_pairs_once():
    vectors = np.eye(3)[[0, 0, 1, 2]]
    same, different = pair_cosines(vectors, ["a", "a", "a", "b"])
    assert sorted(same) == [0, 0, 1]
    assert list(different) == [0, 0, 0]


@given(same=cosines, different=cosines, far=st.sampled_from([0.05, 0.1, 0.5]))
def test_operating_point_is_the_best_within_the_rate(same, different, far):
    point = operating_point(same, different, far)
    assert accept_rate(different, point.threshold) <= far
    assert point.tar == pytest.approx(accept_rate(same, point.threshold))
    for lower in (score for score in {*same, *different} if score < point.threshold):
        assert accept_rate(different, lower) > far or accept_rate(same, lower) <= point.tar


def test_rates_finer_than_the_pairs_are_refused():
    with pytest.raises(DiffPrivacyError, match="at least 1000 pairs of different people, got 500"):
        operating_point([0.5], [0.0] * 500, 1e-3)


def test_rank1_counts_nearest_people():
    gallery = np.array([[1, 0], [0, 1]])
    probes = np.array([[0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]])
    assert rank1(probes, ["a", "a", "b"], gallery, ["a", "b"]) == pytest.approx(2 / 3)


def test_psnr_of_a_constant_offset():
    original = torch.full((20, 30, 3), 0.4)
    assert psnr(original + 0.1, original) == pytest.approx(20, abs=1e-4)
    assert psnr(original, original) == float("inf")


def test_ssim_falls_with_noise_and_ignores_nothing_else():
    random = torch.Generator().manual_seed(0)
    original = torch.rand(40, 40, 3, generator=random)
    noise = torch.randn(40, 40, 3, generator=random)
    assert ssim(original, original) == pytest.approx(1)
    assert 1 > ssim(original + 0.05 * noise, original) > ssim(original + 0.2 * noise, original) > 0


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_of_different_sizes_are_refused(measure):
    with pytest.raises(DiffPrivacyError, match="images of one size"):
        measure(torch.zeros(20, 20, 3), torch.zeros(20, 21, 3))
