"""Energy guidance against DDIM in its variance-preserving form with the step of each rule spelled out, in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprivacy.diffusion.guidance import Guidance, guide, guide_denoised, guided, step_index, step_of
from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.diffusion.sampling import ancestral_step, ddim_sigmas, noise_to, sample_euler
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.presets import PRESETS

LEVELS = NoiseLevels.scaled_linear()
torch.set_num_threads(1)

BETAS = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=np.float64) ** 2
ABAR = np.cumprod(1 - BETAS)

RANDOM = torch.Generator().manual_seed(0)
MEAN = torch.randn(4, 6, 10, generator=RANDOM, dtype=torch.float64)
TARGET = torch.randn(4, 6, 10, generator=RANDOM, dtype=torch.float64)
SPREAD = 0.5


def eps(x, t):
    """The expected noise for clean latents around MEAN with standard deviation SPREAD, in x's precision."""
    signal, noise = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
    return noise * (x - signal * MEAN.to(x)) / (signal**2 * SPREAD**2 + noise**2)


def denoise(x, sigma):
    return x - sigma * eps(x / (1 + sigma**2).sqrt(), int(LEVELS.timestep(sigma)))


def energy(z0):
    """A smooth energy with a bounded, position-dependent gradient; one value a sample."""
    return (1 + (z0 - TARGET.to(z0)).square()).log().sum(dim=(1, 2, 3))


def gradient(z0, seed=0):
    with torch.enable_grad():
        z0 = z0.detach().requires_grad_(True)
        return torch.autograd.grad(energy(z0).sum(), z0)[0]


def latents(count=3):
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 4, 6, 10, generator=random)


def vp_guided_ddim(x, grid, step):
    """DDIM, eta 0, float64; ``step(x_prev, z0, noise, t, abar_prev)`` returns the guided x_prev."""
    before = [1.0, *ABAR[grid[:-1]]]
    for t, previous in reversed(list(zip(grid, before, strict=True))):
        noise = eps(x, t)
        z0 = (x - math.sqrt(1 - ABAR[t]) * noise) / math.sqrt(ABAR[t])
        x_prev = math.sqrt(previous) * z0 + math.sqrt(1 - previous) * noise
        x = step(x_prev, z0, noise, t, previous)
    return x


def start(steps, strength):
    """The grid of the paper, its start in both forms, and its sigmas."""
    z0, noise = latents()
    grid = [1 + 1000 // steps * i for i in range(int(strength * steps))]
    top = ABAR[grid[-1]]
    sigmas = ddim_sigmas(LEVELS, steps, strength)
    vp = math.sqrt(top) * z0.double() + math.sqrt(1 - top) * noise.double()
    return grid, vp, noise_to(z0, sigmas[0], noise), sigmas


def relative_error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- the published equations


@pytest.mark.parametrize("task", ["anonymize", "hide"])
def test_the_papers_rule_is_ddim_minus_the_scaled_gradient(task):
    preset = PRESETS[task]["paper"]
    scale = {"anonymize": lambda t: 1.0, "hide": lambda t: 1.5 if t > 600 else 2.5}[task]
    damping = 0.01

    def step(x_prev, z0, noise, t, previous):
        return x_prev - scale(t) * damping * gradient(z0)

    grid, vp, x, sigmas = start(preset.steps, preset.strength)
    expected = vp_guided_ddim(vp, grid, step)
    denoiser = guided(denoise, lambda z0, seed: damping * gradient(z0), sigmas, preset.guidance, LEVELS)
    result = sample_euler(denoiser, x, sigmas)
    assert relative_error(result, expected) < 1e-5
    assert relative_error(sample_euler(denoise, x, sigmas), expected) > 1e-2


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.6), (100, 0.8)])
def test_the_normalized_rule_is_mpgd(steps, strength):
    """z0 -= rho g with rho = rho0 / (rms(g) sqrt(abar_prev)); the predicted noise stays; off at t <= 100.

    rho0 is for 20 time steps: a step counts as many of them as it covers above 100.
    """
    rho0 = 0.004

    def step(x_prev, z0, noise, t, previous):
        if t <= 100:
            return x_prev
        slope = gradient(z0)
        rms = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        covered = t - max(t - 1000 // steps, 100)
        moved = z0 - rho0 * covered / 20 / (rms * math.sqrt(previous)) * slope
        return math.sqrt(previous) * moved + math.sqrt(1 - previous) * noise

    grid, vp, x, sigmas = start(steps, strength)
    expected = vp_guided_ddim(vp, grid, step)
    guidance = Guidance(rule="normalized", scale=rho0, interval=(101, 999))
    result = sample_euler(guided(denoise, gradient, sigmas, guidance, LEVELS), x, sigmas)
    assert relative_error(result, expected) < 1e-5


def test_the_normalized_rule_ignores_the_gradients_size_in_each_sample():
    z0, slope = latents()
    sizes = torch.tensor([1e-6, 1.0, 1e6])[:, None, None, None]
    sigma, lower = torch.tensor(2.0), torch.tensor(1.5)
    plain = guide_denoised(z0, slope, sigma, lower, "normalized", 0.015)
    torch.testing.assert_close(guide_denoised(z0, sizes * slope, sigma, lower, "normalized", 0.015), plain)
    x_prev = plain + (z0 - plain) * lower / sigma
    moved = (x_prev - z0) / math.sqrt(1 + 1.5**2)
    torch.testing.assert_close(moved.square().mean(dim=(1, 2, 3)).sqrt(), torch.full((3,), 0.015))


@pytest.mark.parametrize("rule", ["paper", "normalized"])
def test_a_vanishing_gradient_moves_nothing(rule):
    z0, _ = latents()
    moved = guide_denoised(z0, torch.zeros_like(z0), torch.tensor(2.0), torch.tensor(0.0), rule, 1.0)
    assert torch.equal(moved, z0)


def test_guidance_lowers_the_energy():
    _, _, x, sigmas = start(50, 0.6)
    plain = sample_euler(denoise, x, sigmas)
    energies = [
        energy(sample_euler(guided(denoise, gradient, sigmas, Guidance(scale=scale), LEVELS), x, sigmas))
        for scale in (0.002, 0.01, 0.03)
    ]
    for weaker, stronger in pairwise([energy(plain), *energies]):
        assert (stronger < weaker).all()


# --- how far it guides


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("interval", [(0, 999), (251, 999), (300, 599)])
def test_every_schedule_guides_over_the_same_time(interval, every):
    """Few steps or many, the spans of those that guide add up to the time between the first and the interval's end."""
    low, high = interval
    guidance = Guidance(interval=interval, every=every)
    for count in (4, 8, 20, 50, 100):
        times = torch.linspace(599, 0, count + 1).round().long()[:-1]
        sigmas = torch.cat([LEVELS.sigmas[times], torch.zeros(1)])
        guiding = [i for i, t in enumerate(times.tolist()) if low <= t <= high and i % every == 0]
        total = sum(guidance.spans(sigmas[i], sigmas, LEVELS) for i in guiding)
        assert total == pytest.approx((times[guiding[0]] - low + 1).item() / 20)


@pytest.mark.parametrize(("rule", "most"), [("normalized", 4), ("normalized", 1), ("paper", 4)])
def test_long_steps_take_several_gradients_on_the_way(rule, most):
    """At most ``repeats``, each from where the last one led and with views of its own; the paper's rule takes one."""
    seen = []

    def noted(z0, seed):
        seen.append((seed, z0))
        return gradient(z0)

    sigmas = torch.cat([LEVELS.sigmas[[600, 540, 300, 100]], torch.zeros(1)])
    for i, expected in enumerate([3, 4, 4]):
        seen.clear()
        guide(latents()[0], noted, sigmas[i], sigmas, Guidance(rule=rule, repeats=most), LEVELS)
        count = min(expected, most) if rule == "normalized" else 1
        assert len({seed for seed, _ in seen}) == len(seen) == count
        assert all(not torch.equal(a, b) for (_, a), (_, b) in pairwise(seen))


# --- when it guides


def counted(calls):
    def slope(z0, seed):
        calls.append(seed)
        return gradient(z0)

    return slope


@pytest.mark.parametrize("rule", ["paper", "normalized"])
@pytest.mark.parametrize(
    "off", [{"scale": 0.0}, {"scale": lambda t: 0.0}, {"interval": (500, 400)}, {"interval": (990, 999)}]
)
def test_guidance_that_is_off_costs_nothing_and_changes_no_bit(rule, off):
    _, _, x, sigmas = start(50, 0.6)
    calls = []
    denoiser = guided(denoise, counted(calls), sigmas, Guidance(rule=rule, **off), LEVELS)
    assert torch.equal(sample_euler(denoiser, x, sigmas), sample_euler(denoise, x, sigmas))
    assert calls == []


@pytest.mark.parametrize("interval", [(0, 999), (101, 999), (41, 421), (241, 241)])
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_interval_and_every_choose_the_steps(interval, every):
    sigmas = ddim_sigmas(LEVELS, 50)
    guidance = Guidance(interval=interval, every=every)
    low, high = interval
    times = list(range(981, 0, -20))
    expected = [low <= t <= high and i % every == 0 for i, t in enumerate(times)]
    assert [guidance.scale_at(sigma, sigmas, LEVELS) != 0 for sigma in sigmas[:-1]] == expected


def test_the_scale_may_follow_the_time_step():
    sigmas = ddim_sigmas(LEVELS, 100, 0.8)
    guidance = PRESETS["hide"]["paper"].guidance
    times = list(range(791, 0, -10))
    assert [guidance.scale_at(sigma, sigmas, LEVELS) for sigma in sigmas[:-1]] == [
        1.5 if t > 600 else 2.5 for t in times
    ]


def test_guide_returns_the_prediction_itself_when_off():
    """What ComfyUI's post-CFG function calls: same tensor out, no gradient."""
    z0, _ = latents()
    sigmas = ddim_sigmas(LEVELS, 50)
    calls = []
    assert guide(z0, counted(calls), sigmas[45], sigmas, Guidance(interval=(101, 999)), LEVELS) is z0
    assert guide(z0, counted(calls), sigmas[5], sigmas, Guidance(interval=(101, 999)), LEVELS) is not z0
    assert calls == [int(LEVELS.timestep(sigmas[5]))]


# --- the place in the schedule


@st.composite
def schedules(draw):
    """Descending noise levels at distinct training steps and a trailing 0."""
    times = draw(st.sets(st.integers(0, 999), min_size=2, max_size=60))
    return torch.cat([LEVELS.sigmas[sorted(times, reverse=True)], torch.zeros(1)])


@given(schedules(), st.data())
def test_a_step_goes_from_one_level_of_the_schedule_to_the_next(sigmas, data):
    i = data.draw(st.integers(0, len(sigmas) - 2))
    for wobble in (1.0, 1 + 1e-6, 1 - 1e-6):
        assert step_index(sigmas[i] * wobble, sigmas) == i
        assert step_of(sigmas[i] * wobble, sigmas) == (sigmas[i], sigmas[i + 1])


@given(schedules(), st.data())
def test_a_level_between_two_belongs_to_the_whole_step(sigmas, data):
    i = data.draw(st.integers(0, len(sigmas) - 2))
    share = data.draw(st.floats(0.1, 0.9))
    between = share * sigmas[i] + (1 - share) * sigmas[i + 1]
    assert step_of(between, sigmas) == (sigmas[i], sigmas[i + 1])
    assert step_index(between, sigmas) == i


def test_steps_outside_the_schedule():
    sigmas = torch.tensor([4.0, 2.0, 1.0])
    assert step_of(torch.tensor(9.0), sigmas) == (9, 4)
    assert step_of(torch.tensor(1.0), sigmas) == (1, 0)
    assert step_of(torch.tensor(0.5), sigmas) == (1, 0)
    assert step_of(torch.tensor(0.5, dtype=torch.float64), sigmas)[1].dtype == torch.float64


def test_an_infinite_level_has_the_limit_of_high_ones():
    z0, slope = latents().double()
    lower = torch.tensor(3.0, dtype=torch.float64)
    high, infinite = (
        guide_denoised(z0, slope, torch.tensor(s).double(), lower, "normalized", 0.1) for s in (1e12, math.inf)
    )
    torch.testing.assert_close(infinite, high)


@given(schedules(), st.floats(1e-3, 1.0), st.sampled_from(["paper", "normalized"]), st.data())
def test_one_euler_step_realizes_either_rule(sigmas, scale, rule, data):
    """The guided step minus the plain step is -scale times the (unit rms) gradient in the variance-preserving form."""
    i = data.draw(st.integers(0, len(sigmas) - 2))
    sigma, lower = sigmas[i].double(), sigmas[i + 1].double()
    x, slope = latents().double()
    z0 = denoise(x, sigma)
    moved = guide_denoised(z0, slope, sigma, lower, rule, scale)
    plain, guided_step = (z + (x - z) * lower / sigma for z in (z0, moved))
    if rule == "normalized":
        slope = slope / slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close((guided_step - plain) / (1 + lower**2).sqrt(), -scale * slope, rtol=1e-6, atol=1e-9)


# --- errors


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_the_sigma(value):
    _, _, x, sigmas = start(50, 0.6)
    denoiser = guided(denoise, lambda z0, seed: torch.full_like(z0, value), sigmas, Guidance(), LEVELS)
    with pytest.raises(DiffPrivacyError, match=f"energy's gradient holds NaN or infinity at sigma {sigmas[0]:.4g}"):
        sample_euler(denoiser, x, sigmas)


def test_unknown_settings_are_refused():
    with pytest.raises(DiffPrivacyError, match=r"rule 'mpgd' is unknown: choose paper or normalized"):
        Guidance(rule="mpgd")
    with pytest.raises(DiffPrivacyError, match="every 0-th step"):
        Guidance(every=0)


def test_an_ancestral_step_is_guided_as_far_as_eulers():
    z0, noise = latents()
    sigmas = torch.tensor([2.0, 1.2, 0.5])
    settings = Guidance(rule="normalized", scale=0.02, repeats=1)
    x = noise_to(z0, sigmas[0], noise)
    moved = []
    for ancestral in (False, True):
        plain, changed = (
            f(x, sigmas[0]) for f in (denoise, guided(denoise, gradient, sigmas, settings, LEVELS, ancestral))
        )
        end = ancestral_step(sigmas[0], sigmas[1])[0] if ancestral else sigmas[1]
        moved.append((changed - plain) * (sigmas[0] - end) / sigmas[0])
    torch.testing.assert_close(moved[0], moved[1])
