"""Inversion and replay give the latent back: what it costs and where it stops."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprivacy.diffusion.conditioning import scheduled
from diffprivacy.diffusion.inversion import invert_belm, invert_ddim, invert_fixed_point, sample_belm
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler
from diffprivacy.presets import PRESETS
from testing.analytic import LEVELS, Mixture, karras, rmse, simple


@pytest.mark.parametrize(
    "schedule", [simple, karras, lambda n: ddim_sigmas(LEVELS, n)], ids=["simple", "karras", "ddim"]
)
def test_exact_inversions_beat_ddim_a_thousandfold(schedule):
    mixture = Mixture()
    denoise, z0, sigmas = mixture.denoiser(), mixture.draw(4), schedule(50)
    ddim = rmse(sample_euler(denoise, invert_ddim(denoise, z0, sigmas), sigmas), z0)
    fixed = rmse(sample_euler(denoise, invert_fixed_point(denoise, z0, sigmas, iterations=5), sigmas), z0)
    belm = rmse(sample_belm(denoise, invert_belm(denoise, z0, sigmas), sigmas), z0)
    for exact in (fixed, belm):
        assert exact < 1e-5
        assert exact < ddim / 1000


@pytest.mark.parametrize("steps", [20, 50, 100])
@pytest.mark.parametrize(
    "schedule", [simple, karras, lambda n: ddim_sigmas(LEVELS, n)], ids=["simple", "karras", "ddim"]
)
def test_belm_keys_survive_storage_in_float32(schedule, steps):
    mixture = Mixture()
    denoise, z0, sigmas = mixture.denoiser(), mixture.draw(4), schedule(steps)
    upper, lower = invert_belm(denoise, z0, sigmas)
    assert 0.7 < rmse(upper / sigmas[0], torch.zeros(1)) < 1.3
    assert rmse(sample_belm(denoise, (upper, lower), sigmas), z0) < 1e-6
    assert rmse(sample_belm(denoise, (upper.float(), lower.float()), sigmas), z0) < 1e-5


def test_fixed_point_spends_evaluations_where_they_are_needed():
    """Thin components make the last step the hard one: five iterations do not solve it, the default does."""
    mixture = Mixture(thin=0.05)
    denoise, z0, sigmas = mixture.denoiser(), mixture.draw(4), ddim_sigmas(LEVELS, 50)
    mixture.evaluations = 0
    x = invert_fixed_point(denoise, z0, sigmas)
    evaluations = mixture.evaluations
    assert rmse(sample_euler(denoise, x, sigmas), z0) < 1e-6
    assert evaluations < 5 * 50
    fewer = invert_fixed_point(denoise, z0, sigmas, iterations=5)
    assert rmse(sample_euler(denoise, fewer, sigmas), z0) > 1e-5


def test_fixed_point_improves_with_each_iteration():
    mixture = Mixture()
    denoise, z0, sigmas = mixture.denoiser(), mixture.draw(2), ddim_sigmas(LEVELS, 50)
    errors = []
    for iterations in range(1, 5):
        mixture.evaluations = 0
        x = invert_fixed_point(denoise, z0, sigmas, iterations=iterations, tolerance=0)
        assert mixture.evaluations == iterations * 50
        errors.append(rmse(sample_euler(denoise, x, sigmas), z0))
    assert all(after < before / 5 for before, after in pairwise(errors))


def test_fixed_point_converges_faster_than_plain_iteration_from_ddim():
    """Against AIDI as published, one evaluation a step for the DDIM start and three plain iterations."""
    mixture = Mixture()
    denoise, z0, sigmas = mixture.denoiser(), mixture.draw(2), ddim_sigmas(LEVELS, 50)
    plain = z0
    for sigma, higher in pairwise(sigmas.flip(0)):
        level = sigma if sigma > 0 else higher
        z = plain + (higher - sigma) * (plain - denoise(plain, level)) / level
        for _ in range(3):
            z = plain + (higher - sigma) * (z - denoise(z, higher)) / higher
        plain = z
    ours = invert_fixed_point(denoise, z0, sigmas, iterations=3, tolerance=0)
    errors = [rmse(sample_euler(denoise, x, sigmas), z0) for x in (ours, plain)]
    assert errors[0] < errors[1] / 2


def test_fixed_point_stops_at_the_tolerance_and_at_the_networks_noise():
    mixture = Mixture()
    exact, z0, sigmas = mixture.denoiser(), mixture.draw(2), ddim_sigmas(LEVELS, 50)
    mixture.evaluations = 0
    invert_fixed_point(exact, z0, sigmas, tolerance=1.0)
    assert mixture.evaluations == 50

    def rough(x, sigma):
        return exact(x, sigma) + 1e-3 * sigma * torch.sin(1e4 * x.roll(1, -1))

    mixture.evaluations = 0
    x = invert_fixed_point(rough, z0, sigmas)
    assert mixture.evaluations < 0.6 * 20 * 50
    assert rmse(sample_euler(rough, x, sigmas), z0) < 1e-3


def test_both_directions_use_the_same_stage_at_the_same_sigma():
    mixture = Mixture()
    z0, sigmas = mixture.draw(1), ddim_sigmas(LEVELS, 50)
    used = {}

    def recording(name):
        def denoise(x, sigma):
            used.setdefault(float(sigma), set()).add(name)
            return mixture.denoiser()(x, sigma)

        return denoise

    denoise = scheduled(
        {"msi": recording("msi"), "empty": recording("empty")}, PRESETS["hide"]["paper"].schedule(), LEVELS
    )
    x = invert_fixed_point(denoise, z0, sigmas)
    assert sorted(used) == sorted(sigmas[:-1].tolist())
    assert rmse(sample_euler(denoise, x, sigmas), z0) < 1e-5
    states = invert_belm(denoise, z0, sigmas)
    assert rmse(sample_belm(denoise, states, sigmas), z0) < 1e-5
    assert sorted(used) == sorted(sigmas[:-1].tolist())
    assert all(len(names) == 1 for names in used.values())


@st.composite
def training_sigmas(draw):
    """Descending noise levels at training steps 1 to 150 apart, the lowest below 60, with or without a trailing 0."""
    times = [draw(st.integers(0, 59))]
    for gap in draw(st.lists(st.integers(1, 150), min_size=1, max_size=30)):
        times.append(min(times[-1] + gap, 999))
    sigmas = LEVELS.sigmas[sorted(set(times), reverse=True)]
    return torch.cat([sigmas, torch.zeros(1)]) if draw(st.booleans()) else sigmas


@settings(max_examples=40)
@given(training_sigmas())
def test_fixed_point_inverts_any_descending_schedule(sigmas):
    mixture = Mixture(shape=(4, 3, 5), components=1)
    denoise, z0 = mixture.denoiser(), mixture.draw(2)
    x = invert_fixed_point(denoise, z0, sigmas, iterations=60)
    assert rmse(sample_euler(denoise, x, sigmas), z0) < 1e-5


@pytest.mark.parametrize("invert", [invert_ddim, invert_fixed_point, invert_belm])
def test_a_schedule_may_end_above_zero(invert):
    """The network then sees the picture at that noise level, or not at all where only the step's end counts."""
    mixture = Mixture()
    z0 = mixture.draw(2)
    sigmas = torch.cat([ddim_sigmas(LEVELS, 50)[:-1], LEVELS.sigmas[:1]])
    used = []

    def denoise(x, sigma):
        used.append(float(sigma))
        return mixture.denoiser()(x, sigma)

    x = invert(denoise, z0, sigmas)
    assert min(used) == float(sigmas[-2] if invert is invert_fixed_point else sigmas[-1])
    replayed = (sample_belm if invert is invert_belm else sample_euler)(denoise, x, sigmas)
    assert rmse(replayed, z0) < (0.1 if invert is invert_ddim else 1e-5)
