"""Time stages, and which conditioning holds at which time step (arXiv 2309.05330)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from torch import Tensor

from ..errors import DiffPrivacyError
from .model import Denoiser, DiffusionModel, Levels

TRAINING_STEPS = 1000
LAST = TRAINING_STEPS - 1
STAGES = 10


@dataclass(frozen=True)
class Span:
    """The time steps ``low`` to ``high``, both inclusive, and the share of each named embedding there.

    mix: name -> share; shares are positive and sum to 1.
    """

    low: int
    high: int
    mix: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= LAST:
            raise DiffPrivacyError(
                f"The embedding schedule has a range from time step {self.low} to {self.high}: "
                f"give the lower one first, both from 0 to {LAST}."
            )
        if min(self.mix.values(), default=0) <= 0 or abs(sum(self.mix.values()) - 1) > 1e-6:
            raise DiffPrivacyError(
                f"The embedding shares at time steps {self.low} to {self.high} are {dict(self.mix)}: "
                "make them positive with the sum 1."
            )


@dataclass(frozen=True)
class EmbeddingSchedule:
    """Which conditioning holds at which training time step: a partition of 0..999 into spans.

    Raises DiffPrivacyError that names the time steps when the spans leave a gap or overlap.
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        covered = [0] * TRAINING_STEPS
        for span in self.spans:
            for t in range(span.low, span.high + 1):
                covered[t] += 1
        for count, run in groupby(range(TRAINING_STEPS), key=covered.__getitem__):
            if count != 1:
                steps = list(run)
                fault = "without an embedding: extend a range" if count == 0 else "in two ranges: shorten one"
                raise DiffPrivacyError(
                    f"The embedding schedule leaves the time steps {steps[0]} to {steps[-1]} {fault}."
                )

    @classmethod
    def constant(cls, name: str) -> EmbeddingSchedule:
        """One embedding at every time step."""
        return cls((Span(0, LAST, {name: 1.0}),))

    @classmethod
    def switch(cls, names: Sequence[str], at: Sequence[int]) -> EmbeddingSchedule:
        """Embeddings one after the other in sampling order: names[i] holds while at[i-1] >= t > at[i].

        Raises DiffPrivacyError when ``at`` does not descend within 0..998 or is not one shorter than ``names``.
        """
        bounds = [LAST, *at, -1]
        if len(names) != len(at) + 1 or any(high <= low for high, low in pairwise(bounds)):
            raise DiffPrivacyError(
                f"The switch time steps {list(at)} do not separate {len(names)} embeddings: "
                f"give {len(names) - 1} of them, descending, each from 0 to {LAST - 1}."
            )
        ranges = zip(names, pairwise(bounds), strict=True)
        return cls(tuple(Span(low + 1, high, {name: 1.0}) for name, (high, low) in ranges))

    @classmethod
    def stages(cls, names: Sequence[str]) -> EmbeddingSchedule:
        """One embedding for each of equally long stages: names[k] holds at floor(len(names) t / 1000) = k."""
        count = len(names)
        bounds = [-(-k * TRAINING_STEPS // count) for k in range(count + 1)]
        spans = zip(names, pairwise(bounds), strict=True)
        return cls(tuple(Span(low, after - 1, {name: 1.0}) for name, (low, after) in spans))

    @classmethod
    def blend(cls, first: str, then: str, high: int, low: int, pieces: int = 10) -> EmbeddingSchedule:
        """``first`` while t > high, ``then`` while t <= low, and between them a ramp of ``pieces`` equal spans.

        Raises DiffPrivacyError unless 999 > high > low >= 0 and the ramp has at least ``pieces`` time steps.
        """
        if not (LAST > high > low >= 0 and 1 <= pieces <= high - low):
            raise DiffPrivacyError(
                f"A blend in {pieces} pieces between the time steps {high} and {low} is impossible: "
                f"choose {LAST} > high > low >= 0 with at least one time step a piece."
            )
        edges = [high - round(i * (high - low) / pieces) for i in range(pieces + 1)]
        ramp = (
            Span(b + 1, a, {first: 1 - (i + 1) / (pieces + 1), then: (i + 1) / (pieces + 1)})
            for i, (a, b) in enumerate(pairwise(edges))
        )
        return cls((Span(high + 1, LAST, {first: 1.0}), *ramp, Span(0, low, {then: 1.0})))

    @property
    def names(self) -> set[str]:
        """Names of all embeddings that hold somewhere."""
        return {name for span in self.spans for name in span.mix}

    def mix_at(self, timestep: int) -> Mapping[str, float]:
        """Share of each embedding at a training time step in 0..999."""
        return next(span.mix for span in self.spans if span.low <= timestep <= span.high)


def percent_range(low: int, high: int) -> tuple[float, float]:
    """ComfyUI's (start_percent, end_percent) for the time steps low..high, both inclusive.

    ComfyUI keeps a conditioning while sigma(start) >= sigma >= sigma(end), with sigma(p) taken at the fractional
    time step 999 (1 - p). Neighbours share one boundary, so no schedule, device or rounding can open a gap between
    them (where ComfyUI would predict zeros). Both hold at the boundary's own float32 sigma, which therefore lies
    1/4096 of a step beside the middle between two time steps: no sigma of a schedule that is linear in time
    (`simple`, `ddim_uniform`, `beta`, and `normal` or `sgm_uniform` up to 1000 steps) falls there.
    """

    def boundary(above: int) -> float:
        return 1 - (above + 0.5 + 1 / 4096) / LAST

    return (0.0 if high == LAST else boundary(high)), (1.0 if low == 0 else boundary(low - 1))


def scheduled(denoisers: Mapping[str, Denoiser], schedule: EmbeddingSchedule, noise_levels: Levels) -> Denoiser:
    """A denoiser that uses, at each sigma, the named denoisers that the schedule holds at the nearest time step.

    Blends are weighted means of the predictions, as ComfyUI forms them from conditionings with strengths.
    Raises DiffPrivacyError when the schedule names an embedding that ``denoisers`` lacks.
    """
    if missing := schedule.names - denoisers.keys():
        raise DiffPrivacyError(
            f"The embedding schedule uses {', '.join(sorted(missing))}, which nobody supplies: "
            f"use only {', '.join(sorted(denoisers))}."
        )

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        mix = schedule.mix_at(int(noise_levels.timestep(sigma)))
        (first, share), *others = mix.items()
        denoised = share * denoisers[first](x, sigma)
        for name, share in others:
            denoised = denoised + share * denoisers[name](x, sigma)
        return denoised

    return denoise


def stage_denoiser(diffusion_model: DiffusionModel, prompt: str = "", pseudo_words: Tensor | None = None) -> Denoiser:
    """The diffusion model under a prompt, whose ``*`` stands for another pseudo-word in every stage.

    pseudo_words: (S,D), row k for stage k of S; None for a prompt without ``*``.
    """
    if pseudo_words is None:
        conditioning = diffusion_model.text_conditioning(prompt)
        return lambda x, sigma: diffusion_model.denoise(x, sigma, conditioning)

    def under(conditioning: Any) -> Denoiser:
        return lambda x, sigma: diffusion_model.denoise(x, sigma, conditioning)

    denoisers = {
        f"stage {k}": under(diffusion_model.text_conditioning(prompt, word[None]))
        for k, word in enumerate(pseudo_words)
    }
    return scheduled(denoisers, EmbeddingSchedule.stages(list(denoisers)), diffusion_model.noise_levels)
