"""Stages, embedding schedules, their ComfyUI time ranges, and the paper's presets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprivacy.diffusion.conditioning import (
    STAGES,
    EmbeddingSchedule,
    Span,
    percent_range,
    scheduled,
)
from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.presets import PRESETS

LEVELS = NoiseLevels.scaled_linear()


class ComfyTimes:
    """ComfyUI's rule for time ranges, written from its description: percent -> sigma, both ends inclusive."""

    def __init__(self):
        betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64).square()
        alphas = (1 - betas).cumprod(0)
        exact = ((1 - alphas) / alphas).sqrt()
        self.sigmas = exact.float()
        self.log_sigmas = exact.log().float()

    def sigma(self, time):
        """Log-linear between the integer steps, in float32 as ComfyUI computes it; time (n,) float32."""
        floor, ceil, fraction = time.floor().long(), time.ceil().long(), time.frac()
        return torch.exp((1 - fraction) * self.log_sigmas[floor] + fraction * self.log_sigmas[ceil])

    def bound(self, percent):
        if percent <= 0:
            return 999999999.9
        if percent >= 1:
            return 0.0
        return float(self.sigma(torch.tensor([(1.0 - percent) * 999.0], dtype=torch.float32)))

    def active(self, sigmas, ranges):
        """(len(ranges), n): which percent ranges hold at each float32 sigma."""
        bounds = [(self.bound(start), self.bound(end)) for start, end in ranges]
        return torch.stack([~((sigmas > start) | (sigmas < end)) for start, end in bounds])


COMFY = ComfyTimes()


@st.composite
def partitions(draw):
    """Ranges (low, high) that cut 0..999 into pieces, in any order."""
    cuts = sorted(draw(st.sets(st.integers(0, 998), max_size=15)))
    lows, highs = [0, *(c + 1 for c in cuts)], [*cuts, 999]
    return draw(st.permutations(list(zip(lows, highs, strict=True))))


def spans(ranges):
    return tuple(Span(low, high, {f"{low}": 1.0}) for low, high in ranges)


RANGES = [(span.low, span.high) for span in EmbeddingSchedule.stages(["stage"] * STAGES).spans]


def test_ten_stages_cut_the_training_steps_into_hundreds():
    assert [(100 * k, 100 * k + 99) for k in range(10)] == RANGES


@pytest.mark.parametrize(
    ("task", "switch", "strength", "steps"), [("anonymize", 400, 0.6, 50), ("hide", 600, 0.8, 100)]
)
def test_paper_presets_switch_to_the_empty_prompt(task, switch, strength, steps):
    preset = PRESETS[task]["paper"]
    schedule = preset.schedule("c", "empty")
    assert (preset.strength, preset.steps, preset.rule, preset.interval) == (strength, steps, "paper", (0, 999))
    assert [dict(schedule.mix_at(t)) for t in range(1000)] == [
        {"c" if t > switch else "empty": 1.0} for t in range(1000)
    ]


def test_paper_guidance_scales():
    assert {PRESETS["anonymize"]["paper"].scale_at(t) for t in range(1000)} == {1.0}
    hide = PRESETS["hide"]["paper"]
    assert [hide.scale_at(t) for t in range(1000)] == [1.5 if t > 600 else 2.5 for t in range(1000)]


@pytest.mark.parametrize("name", ["paper", "default"])
def test_recover_uses_msi_everywhere_and_no_guidance(name):
    preset = PRESETS["recover"][name]
    assert preset.schedule().names == {"msi"}
    assert preset.strength == 1.0
    assert all(preset.scale_at(t) == 0 for t in range(1000))


@given(partitions())
def test_any_partition_is_a_schedule(ranges):
    schedule = EmbeddingSchedule(spans(ranges))
    for low, high in ranges:
        assert schedule.mix_at(low) == schedule.mix_at(high) == {f"{low}": 1.0}


@given(partitions(), st.data())
def test_a_gap_is_named_by_its_steps(ranges, data):
    low, high = data.draw(st.sampled_from(ranges))
    rest = [r for r in ranges if r != (low, high)]
    with pytest.raises(DiffPrivacyError, match=rf"time steps {low} to {high} without"):
        EmbeddingSchedule(spans(rest))


@given(partitions(), st.data())
def test_an_overlap_is_named_by_its_steps(ranges, data):
    low = data.draw(st.integers(0, 999))
    high = data.draw(st.integers(low, 999))
    with pytest.raises(DiffPrivacyError, match=rf"time steps {low} to {high} in two ranges"):
        EmbeddingSchedule((*spans(ranges), Span(low, high, {"extra": 1.0})))


@pytest.mark.parametrize(("low", "high"), [(500, 400), (-1, 10), (0, 1000)])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(DiffPrivacyError, match=f"from time step {low} to {high}"):
        Span(low, high, {"a": 1.0})


@pytest.mark.parametrize("mix", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_shares_must_be_positive_and_sum_to_one(mix):
    with pytest.raises(DiffPrivacyError, match="time steps 3 to 9"):
        Span(3, 9, mix)


def test_several_switches():
    schedule = EmbeddingSchedule.switch(["a", "b", "c"], at=[700, 200])
    expected = ["a" if t > 700 else "b" if t > 200 else "c" for t in range(1000)]
    assert [next(iter(schedule.mix_at(t))) for t in range(1000)] == expected


@pytest.mark.parametrize("at", [[200, 700], [700], [700, 700], [700, -1], [999, 5]])
def test_switches_must_descend_and_match_the_embeddings(at):
    with pytest.raises(DiffPrivacyError, match="switch time steps"):
        EmbeddingSchedule.switch(["a", "b", "c"], at=at)


@given(st.integers(0, 990), st.integers(1, 300), st.integers(1, 40))
def test_a_blend_falls_evenly_from_one_embedding_to_the_other(low, length, pieces):
    high = min(low + length, 998)
    pieces = min(pieces, high - low)
    schedule = EmbeddingSchedule.blend("a", "b", high, low, pieces)
    shares = np.array([schedule.mix_at(t).get("a", 0.0) for t in range(1000)])
    assert (shares[high + 1 :] == 1).all()
    assert (shares[: low + 1] == 0).all()
    ramp = shares[low + 1 : high + 1]
    assert (np.diff(ramp) >= 0).all()
    assert ((ramp > 0) & (ramp < 1)).all()
    wanted = (np.arange(low + 1, high + 1) - low) / (high - low)
    assert np.abs(ramp - wanted).max() < 1.5 / pieces


@pytest.mark.parametrize(("high", "low", "pieces"), [(300, 300, 1), (200, 300, 5), (999, 300, 5), (300, 290, 11)])
def test_impossible_blends_are_refused(high, low, pieces):
    with pytest.raises(DiffPrivacyError, match=f"{pieces} pieces between the time steps {high} and {low}"):
        EmbeddingSchedule.blend("a", "b", high, low, pieces)


@given(partitions())
def test_exactly_one_comfyui_range_holds_at_every_time_step(ranges):
    active = COMFY.active(COMFY.sigmas, [percent_range(*r) for r in ranges])
    expected = torch.tensor([[low <= t <= high for t in range(1000)] for low, high in ranges])
    assert torch.equal(active, expected)


def test_exactly_one_comfyui_range_holds_at_every_sigma_between():
    random = torch.Generator().manual_seed(0)
    log_low, log_high = COMFY.log_sigmas[0], COMFY.log_sigmas[-1]
    sigmas = (log_low + (log_high - log_low) * torch.rand(100_000, generator=random)).exp()
    every_step = [(t, t) for t in range(1000)]
    for ranges, some in ((RANGES, sigmas), (every_step, sigmas[:5000])):
        percents = [percent_range(*r) for r in ranges]
        shared = torch.tensor([COMFY.bound(end) for _, end in percents])
        elsewhere = some[~torch.isin(some, shared)]
        assert len(elsewhere) > 0.999 * len(some)
        assert (COMFY.active(elsewhere, percents).sum(0) == 1).all()


@given(partitions())
def test_neighbours_share_one_float32_sigma_and_leave_no_gap(ranges):
    ranges = sorted(ranges)
    percents = [percent_range(*r) for r in ranges]
    for i in range(len(ranges) - 1):
        sigma = torch.tensor([COMFY.bound(percents[i][0])])
        beside = torch.cat([torch.nextafter(sigma, torch.zeros(1)), sigma, torch.nextafter(sigma, sigma * 2)])
        active = COMFY.active(beside, percents)
        assert active[i].tolist() == [True, True, False]
        assert active[i + 1].tolist() == [False, True, True]
        assert active.sum() == 4


def test_no_schedule_linear_in_time_lands_on_a_boundary():
    boundaries = torch.tensor([COMFY.bound(percent_range(0, t)[0]) for t in range(999)])
    assert not torch.isin(COMFY.sigmas, boundaries).any()
    for steps in range(2, 1001):
        normal = COMFY.sigma(torch.linspace(999, 0, steps))
        sgm_uniform = COMFY.sigma(torch.linspace(999, 0, steps + 1)[:-1])
        assert not torch.isin(torch.cat([normal, sgm_uniform]), boundaries).any()


def test_the_boundary_lies_where_the_nearest_time_step_changes():
    """The library (nearest time step) and ComfyUI (ranges) agree but for a thousandth of a step."""
    random = torch.Generator().manual_seed(1)
    time = 999 * torch.rand(20_000, generator=random)
    time = time[(time.frac() - 0.5).abs() > 1e-3]
    sigmas = COMFY.sigma(time)
    active = COMFY.active(sigmas, [percent_range(*r) for r in RANGES])
    stages = LEVELS.timestep(sigmas) * STAGES // 1000
    assert torch.equal(active.long().argmax(0), stages)


def test_the_whole_range_has_no_limits():
    assert percent_range(0, 999) == (0.0, 1.0)


def constant_denoiser(value, calls=None):
    def denoise(x, sigma):
        if calls is not None:
            calls.append(float(sigma))
        return torch.full_like(x, value)

    return denoise


def test_scheduled_asks_only_the_embedding_of_the_stage():
    x = torch.zeros(1, 4, 2, 3)
    early, late = [], []
    denoise = scheduled(
        {"msi": constant_denoiser(1.0, early), "empty": constant_denoiser(2.0, late)},
        PRESETS["anonymize"]["paper"].schedule(),
        LEVELS,
    )
    for t in range(1000):
        assert float(denoise(x, LEVELS.sigmas[t]).mean()) == (1.0 if t > 400 else 2.0)
    assert min(early) > max(late)
    assert len(early) == 599


def test_stages_nest_inside_a_schedule():
    """The ten stage embeddings are one denoiser, which a switch then composes with the empty prompt."""
    stages = EmbeddingSchedule(tuple(Span(*limits, {f"c{k}": 1.0}) for k, limits in enumerate(RANGES)))
    msi = scheduled({f"c{k}": constant_denoiser(float(k)) for k in range(STAGES)}, stages, LEVELS)
    whole = scheduled({"msi": msi, "empty": constant_denoiser(-1.0)}, PRESETS["hide"]["paper"].schedule(), LEVELS)
    x = torch.zeros(1, 4, 2, 2)
    values = [float(whole(x, LEVELS.sigmas[t]).mean()) for t in range(1000)]
    assert values == [float(t // 100) if t > 600 else -1.0 for t in range(1000)]


def test_a_blend_is_the_weighted_mean_of_the_predictions():
    schedule = EmbeddingSchedule((Span(0, 499, {"a": 1.0}), Span(500, 999, {"a": 0.25, "b": 0.75})))
    random = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 4, 5, 6, generator=random)
    denoise = scheduled({"a": lambda x, sigma: a, "b": lambda x, sigma: b}, schedule, LEVELS)
    torch.testing.assert_close(denoise(a, LEVELS.sigmas[700]), 0.25 * a + 0.75 * b)
    assert torch.equal(denoise(a, LEVELS.sigmas[300]), a)


def test_an_embedding_without_denoiser_is_named():
    with pytest.raises(DiffPrivacyError, match=r"uses empty, .*use only msi"):
        scheduled({"msi": constant_denoiser(0.0)}, PRESETS["hide"]["paper"].schedule(), LEVELS)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_stages_are_equally_long(count):
    schedule = EmbeddingSchedule.stages([str(k) for k in range(count)])
    assert [next(iter(schedule.mix_at(t))) for t in range(1000)] == [str(count * t // 1000) for t in range(1000)]
