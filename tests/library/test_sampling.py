"""Sampling and inversion against DDIM in its published variance-preserving form, and as exact inverses."""

import math

import numpy as np
import pytest
import torch

from diffprivacy.diffusion.conditioning import scheduled
from diffprivacy.diffusion.inversion import invert_belm, invert_ddim, invert_fixed_point, sample_belm
from diffprivacy.diffusion.sampling import (
    check_latent,
    ddim_sigmas,
    ddim_timesteps,
    noise_to,
    sample_ancestral,
    sample_euler,
    strength_sigmas,
    strength_steps,
)
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.presets import PRESETS
from testing.analytic import (
    ABAR,
    LEVELS,
    Mixture,
    karras,
    paper_grid,
    relative_error,
    simple,
    vp_ddim_invert,
    vp_ddim_sample,
)

PAPER = pytest.mark.parametrize(("steps", "strength"), [(50, 0.6), (100, 0.8)])
PREDICTION = pytest.mark.parametrize("prediction", ["eps", "v"])
ALL = [sample_euler, invert_ddim, invert_fixed_point, invert_belm]
EVERY = pytest.mark.parametrize("method", ALL, ids=lambda f: f.__name__)


# --- the published equations


def test_ancestral_sampling_is_ddpm():
    """DDIM with eta 1 (arXiv 2010.02502, eq. 12 and 16) in the variance-preserving form."""
    mixture, grid = Mixture(), paper_grid(20, 0.6)
    z0, noise = mixture.draw(2), torch.randn(2, 4, 8, 8, generator=mixture.random)
    fresh = torch.randn(len(grid), 2, 4, 8, 8, generator=mixture.random)
    x = math.sqrt(ABAR[grid[-1]]) * z0.double() + math.sqrt(1 - ABAR[grid[-1]]) * noise.double()
    steps = list(zip(grid, [1.0, *ABAR[grid[:-1]]], strict=True))[::-1]
    for i, (t, previous) in enumerate(steps):
        epsilon = mixture.eps(x, t)
        clean = (x - math.sqrt(1 - ABAR[t]) * epsilon) / math.sqrt(ABAR[t])
        spread = math.sqrt((1 - previous) / (1 - ABAR[t]) * (1 - ABAR[t] / previous))
        x = math.sqrt(previous) * clean + math.sqrt(max(1 - previous - spread**2, 0)) * epsilon + spread * fresh[i]
    sigmas = ddim_sigmas(LEVELS, 20, 0.6)
    result = sample_ancestral(mixture.denoiser("eps"), noise_to(z0, sigmas[0], noise), sigmas, lambda i: fresh[i])
    assert relative_error(result, x) < 1e-5


@PAPER
@PREDICTION
@pytest.mark.parametrize("final", ["clean", "first step"])
def test_euler_is_the_papers_ddim(steps, strength, prediction, final):
    mixture = Mixture()
    z0, noise = mixture.draw(2), torch.randn(2, 4, 8, 8, generator=mixture.random)
    grid = paper_grid(steps, strength)
    end = 1.0 if final == "clean" else float(ABAR[0])
    start = math.sqrt(ABAR[grid[-1]]) * z0.double() + math.sqrt(1 - ABAR[grid[-1]]) * noise.double()
    expected = vp_ddim_sample(mixture.eps, start, grid, end)

    sigmas = ddim_sigmas(LEVELS, steps, strength, end=math.sqrt(1 / end - 1))
    result = sample_euler(mixture.denoiser(prediction), noise_to(z0, sigmas[0], noise), sigmas)
    assert len(sigmas) == len(grid) + 1
    assert relative_error(result / (1 + sigmas[-1] ** 2).sqrt(), expected) < 1e-5


@PAPER
@PREDICTION
def test_ddim_inversion_is_the_papers(steps, strength, prediction):
    mixture = Mixture()
    z0 = mixture.draw(2)
    grid = paper_grid(steps, strength)
    expected = vp_ddim_invert(mixture.eps, z0.double(), grid)
    sigmas = ddim_sigmas(LEVELS, steps, strength)
    result = invert_ddim(mixture.denoiser(prediction), z0, sigmas)
    assert relative_error(result / (1 + sigmas[0] ** 2).sqrt(), expected) < 1e-5


@PAPER
@PREDICTION
def test_fixed_point_inverts_the_papers_ddim(steps, strength, prediction):
    """The noise map, sampled by the independent float64 DDIM, returns the latent."""
    mixture = Mixture()
    z0 = mixture.draw(2)
    sigmas = ddim_sigmas(LEVELS, steps, strength)
    x = invert_fixed_point(mixture.denoiser(prediction), z0, sigmas)
    start = x.double() / math.sqrt(1 + float(sigmas[0]) ** 2)
    assert relative_error(vp_ddim_sample(mixture.eps, start, paper_grid(steps, strength)), z0) < 1e-5


@pytest.mark.parametrize("task", ["anonymize", "hide"])
def test_the_papers_embedding_schedule(task):
    preset = PRESETS[task]["paper"]
    switch = {"anonymize": 400, "hide": 600}[task]
    msi, empty = Mixture(seed=1), Mixture(seed=2)
    z0, noise = msi.draw(2), torch.randn(2, 4, 8, 8, generator=msi.random)
    grid = paper_grid(preset.steps, preset.strength)
    start = math.sqrt(ABAR[grid[-1]]) * z0.double() + math.sqrt(1 - ABAR[grid[-1]]) * noise.double()
    expected = vp_ddim_sample(lambda x, t: (msi if t > switch else empty).eps(x, t), start, grid)

    denoise = scheduled({"msi": msi.denoiser(), "empty": empty.denoiser()}, preset.schedule(), LEVELS)
    sigmas = ddim_sigmas(LEVELS, preset.steps, preset.strength)
    result = sample_euler(denoise, noise_to(z0, sigmas[0], noise), sigmas)
    assert relative_error(result, expected) < 1e-5


# --- batches, shapes, precision


@EVERY
@pytest.mark.parametrize("shape", [(4, 6, 10), (16, 5, 3)])
def test_samples_of_a_batch_are_independent_and_need_not_be_square(method, shape):
    mixture = Mixture(shape)
    z0, sigmas = mixture.draw(3), ddim_sigmas(LEVELS, 20)
    if method is invert_fixed_point:
        run = lambda x: method(mixture.denoiser(), x, sigmas, iterations=4, tolerance=0)  # noqa: E731
    else:
        run = lambda x: method(mixture.denoiser(), x, sigmas)  # noqa: E731
    together, alone = run(z0), run(z0[1:2])
    if method is invert_belm:
        together, alone = together[0], alone[0]
    assert together.shape == z0.shape
    torch.testing.assert_close(together[1:2], alone.to(together), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given_dtype", "returned"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("method", [sample_euler, invert_ddim, invert_fixed_point])
def test_states_are_float32_at_least(method, given_dtype, returned):
    mixture = Mixture()
    z0, sigmas = mixture.draw(1).to(given_dtype), ddim_sigmas(LEVELS, 20)
    result = method(mixture.denoiser(), z0, sigmas)
    assert result.dtype == returned
    torch.testing.assert_close(result.float(), method(mixture.denoiser(), z0.float(), sigmas), rtol=1e-4, atol=1e-4)


def test_belm_states_are_float64_and_its_latent_float32():
    mixture = Mixture()
    sigmas = ddim_sigmas(LEVELS, 20)
    states = invert_belm(mixture.denoiser(), mixture.draw(1).half(), sigmas)
    assert [s.dtype for s in states] == [torch.float64] * 2
    assert sample_belm(mixture.denoiser(), states, sigmas).dtype == torch.float32


# --- recurrence


# --- schedules


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 100, 200])
def test_ddim_grid_is_that_of_latent_diffusion_and_of_comfyui(steps):
    grid = list(range(1, 1000, 1000 // steps))
    assert ddim_timesteps(steps).tolist() == grid
    expected = [math.sqrt((1 - ABAR[t]) / ABAR[t]) for t in reversed(grid)] + [0.0]
    np.testing.assert_allclose(ddim_sigmas(LEVELS, steps), expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [30, 70, 999])
def test_ddim_grid_has_as_many_steps_as_asked(steps):
    grid = ddim_timesteps(steps)
    assert len(grid) == steps
    assert 1 <= int(grid.min()) < int(grid.max()) <= 999


@pytest.mark.parametrize(("steps", "strength", "kept"), [(50, 0.6, 30), (100, 0.8, 80), (100, 0.29, 29), (50, 1.0, 50)])
def test_strength_keeps_the_last_steps(steps, strength, kept):
    sigmas = karras(steps)
    assert strength_steps(steps, strength) == kept
    assert torch.equal(strength_sigmas(sigmas, strength), sigmas[steps - kept :])


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.6), (100, 0.8), (50, 1.0), (20, 0.25)])
def test_basic_scheduler_gives_the_same_sigmas_for_the_kept_steps(steps, strength):
    """BasicScheduler(steps, denoise): int(steps / denoise) steps in all, of which the last ``steps`` run."""
    kept = strength_steps(steps, strength)
    total = int(kept / strength)
    assert torch.equal(ddim_sigmas(LEVELS, total)[-(kept + 1) :], ddim_sigmas(LEVELS, steps, strength))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, 0.01])
def test_a_strength_without_steps_is_refused(strength):
    with pytest.raises(DiffPrivacyError, match=f"strength {strength} of 20 steps"):
        strength_sigmas(simple(20), strength)


@pytest.mark.parametrize("steps", [0, 1000])
def test_impossible_ddim_grids_are_refused(steps):
    with pytest.raises(DiffPrivacyError, match=f"{steps} steps"):
        ddim_timesteps(steps)


def test_noise_to_is_the_forward_process():
    random = torch.Generator().manual_seed(4)
    z0, noise = torch.randn(2, 3, 4, 6, 5, generator=random, dtype=torch.float64)
    sigma = float(LEVELS.sigmas[581])
    expected = math.sqrt(ABAR[581]) * z0 + math.sqrt(1 - ABAR[581]) * noise
    torch.testing.assert_close(noise_to(z0, sigma, noise) / math.sqrt(1 + sigma**2), expected, rtol=1e-5, atol=1e-5)


# --- progress, interruption, errors


class Interrupted(BaseException):
    pass


def run(method, denoise, x, sigmas, callback=None):
    if method is sample_belm:
        return method(denoise, (x, x), sigmas, callback)
    return method(denoise, x, sigmas, callback)


EVERY_WAY = pytest.mark.parametrize("method", [*ALL, sample_belm], ids=lambda f: f.__name__)


@EVERY_WAY
def test_progress_counts_every_step(method):
    mixture = Mixture()
    x, sigmas = mixture.draw(1), ddim_sigmas(LEVELS, 20)
    reports = []
    run(method, mixture.denoiser(), x, sigmas, reports.append)
    seen = [report["i"] for report in reports]
    assert sorted(set(seen)) == list(range(19 if method is sample_belm else 20))
    assert seen == sorted(seen)
    for report in reports:
        assert report.keys() == {"i", "x", "sigma", "denoised", "steps"}
        assert report["steps"] == 20
        assert report["x"].shape == report["denoised"].shape == x.shape
        expected = mixture.denoiser()(report["x"].float(), report["sigma"].float())
        torch.testing.assert_close(report["denoised"].float(), expected)


@EVERY_WAY
def test_what_the_callback_raises_ends_the_run(method):
    mixture = Mixture()
    calls = []

    def callback(report):
        calls.append(report["i"])
        if report["i"] == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(method, mixture.denoiser(), mixture.draw(1), ddim_sigmas(LEVELS, 20), callback)
    assert calls[-1] == 3
    assert calls.count(3) == 1


@EVERY_WAY
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_from_the_network_names_step_and_sigma(method, value):
    mixture = Mixture()
    sigmas = ddim_sigmas(LEVELS, 20)
    faulty = float(sigmas[7])

    def denoise(x, sigma):
        denoised = mixture.denoiser()(x, sigma)
        if float(sigma) == faulty:
            denoised[0, 0, 0, 0] = value
        return denoised

    with pytest.raises(DiffPrivacyError, match=rf"NaN or infinity in step \d+ of 20 at sigma {faulty:.4g}"):
        run(method, denoise, mixture.draw(1), sigmas)


@EVERY_WAY
@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 2.0, 3.0], "2 follows 1 at position 1"),
        ([3.0, 2.0, 2.0, 0.0], "2 follows 2 at position 2"),
        ([1.0], "at least two"),
        ([], "at least two"),
        ([2.0, 1.0, -1.0], "negative"),
        ([math.inf, 1.0, 0.0], "infinity"),
        ([2.0, math.nan, 0.0], "NaN"),
    ],
)
def test_sigmas_that_do_not_descend_are_refused(method, sigmas, message):
    mixture = Mixture()
    with pytest.raises(DiffPrivacyError, match=f"sigmas.*{message}"):
        run(method, mixture.denoiser(), mixture.draw(1), torch.tensor(sigmas))


@EVERY_WAY
@pytest.mark.parametrize("x", [torch.zeros(4, 8, 8), torch.zeros(1, 4, 2, 8, 8)])
def test_what_is_not_a_latent_batch_is_refused(method, x):
    with pytest.raises(DiffPrivacyError, match=r"latent has the shape|is a video of 2 frames"):
        run(method, Mixture().denoiser(), x, ddim_sigmas(LEVELS, 20))


@EVERY_WAY
def test_a_latent_with_nan_is_refused(method):
    x = torch.zeros(1, 4, 8, 8)
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(DiffPrivacyError, match="latent holds NaN"):
        run(method, Mixture().denoiser(), x, ddim_sigmas(LEVELS, 20))


@EVERY_WAY
def test_a_prediction_of_another_shape_is_refused(method):
    with pytest.raises(DiffPrivacyError, match=r"\(1, 4, 4, 4\).*\(1, 4, 8, 8\).*another model"):
        run(method, lambda x, sigma: x[..., ::2, ::2], torch.zeros(1, 4, 8, 8), ddim_sigmas(LEVELS, 20))


def test_a_latent_of_another_model_is_named_by_its_channels():
    check_latent(torch.zeros(2, 4, 6, 8), channels=4)
    with pytest.raises(DiffPrivacyError, match="16 channels and the model takes 4"):
        check_latent(torch.zeros(2, 16, 6, 8), channels=4)


def test_belm_needs_two_steps():
    mixture = Mixture()
    sigmas = torch.tensor([1.0, 0.0])
    with pytest.raises(DiffPrivacyError, match="single step"):
        invert_belm(mixture.denoiser(), mixture.draw(1), sigmas)
    with pytest.raises(DiffPrivacyError, match="single step"):
        sample_belm(mixture.denoiser(), (mixture.draw(1), mixture.draw(1)), sigmas)


def test_belm_says_when_it_overflows():
    """A network that pushes away from the picture drives the state beyond what a network can be shown."""
    with pytest.raises(DiffPrivacyError, match=r"BELM overflowed at sigma .*fixed_point"):
        invert_belm(lambda x, sigma: -1e38 * x.sign(), torch.ones(1, 4, 2, 2), ddim_sigmas(LEVELS, 50))
