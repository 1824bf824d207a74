"""The settings of each task: those of the paper (arXiv 2309.05330) and those that measured best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .diffusion.conditioning import LAST, EmbeddingSchedule
from .diffusion.guidance import Guidance


@dataclass(frozen=True)
class Preset:
    """Settings of one task.

    strength: share of the ``steps`` sampling steps that run, in (0, 1].
    switch: the MSI embeddings hold while t > switch, the empty prompt after; None: MSI in every stage.
    rule, interval, scale: guidance; ``scale_after`` replaces ``scale`` once t <= switch.
    form: the energies that guide, those that end where recognizers see a stranger or those of the paper.
    ancestral: whether every step draws new noise; see :func:`.diffusion.sampling.sample_ancestral`.
    """

    strength: float
    steps: int
    switch: int | None
    scale: float = 0.0
    scale_after: float = 0.0
    rule: str = "paper"
    interval: tuple[int, int] = (0, LAST)
    form: Literal["stranger", "paper"] = "paper"
    ancestral: bool = False

    def schedule(self, msi: str = "msi", after: str = "empty") -> EmbeddingSchedule:
        """The embedding schedule over two named conditionings."""
        if self.switch is None:
            return EmbeddingSchedule.constant(msi)
        return EmbeddingSchedule.switch([msi, after], at=[self.switch])

    def scale_at(self, timestep: int) -> float:
        """Guidance scale at a training time step."""
        return self.scale if self.switch is None or timestep > self.switch else self.scale_after

    @property
    def guidance(self) -> Guidance:
        """The guidance settings."""
        return Guidance(rule=self.rule, scale=self.scale_at, interval=self.interval)


GUIDED = (251, LAST)
"""Time steps of guidance: below them the network can no longer clean up what guidance leaves behind."""

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "anonymize": {
        "paper": Preset(strength=0.6, steps=50, switch=400, scale=1.0, scale_after=1.0),
        "default": Preset(
            strength=0.8,
            steps=50,
            switch=400,
            scale=0.03,
            scale_after=0.03,
            rule="normalized",
            interval=GUIDED,
            form="stranger",
            ancestral=True,
        ),
    },
    "hide": {
        "paper": Preset(strength=0.8, steps=100, switch=600, scale=1.5, scale_after=2.5),
        "default": Preset(
            strength=0.7,
            steps=50,
            switch=600,
            scale=0.04,
            scale_after=0.04,
            rule="normalized",
            interval=GUIDED,
            form="stranger",
            ancestral=True,
        ),
    },
    "recover": {
        "paper": Preset(strength=1.0, steps=100, switch=None),
        "default": Preset(strength=1.0, steps=50, switch=None),
    },
}
"""Task -> "paper" (its published settings) or "default" -> settings."""

PERSONAS: Mapping[str, Mapping[str, Preset]] = {
    task: {"default": replace(PRESETS[task]["default"], strength=0.8, scale=0.035, scale_after=0.035)}
    for task in ("anonymize", "hide")
}
"""The same toward a persona, or toward the first face of a person in a video, which has farther to go than away from the
original."""
