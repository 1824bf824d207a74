"""New faces that miss their aim are drawn again, with other noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .diffusion.model import DiffusionModel
from .diffusion.sampling import Callback
from .errors import DiffPrivacyError
from .identity.recognizers import Embeddings, FaceMatcher
from .regeneration import Regeneration, Task, fresh_noise, regenerate_crops

DRAWS = 3
RECOGNIZED = 3.0
"""Standard deviations above strangers' mean from which a recognizer takes two faces for one person, about the threshold
at a false accept rate of 1e-3."""
MATCHED = 4.0
"""The same for a hidden face, with some room for recognizers that did not guide."""

log = logging.getLogger(__name__)


def checked(
    how: Regeneration, task: Task, recognizer: FaceMatcher, face: str, warn: Callable[[str], object]
) -> Regeneration:
    """The same, drawn again where the recognizer sees otherwise than the task promises; see :class:`Redrawing`."""
    return replace(how, by=Redrawing(task, recognizer, face, warn, how.by or regenerate_crops))


@dataclass(frozen=True)
class Redrawing:
    """Does the work of :func:`.regeneration.regenerate_crops`, again for faces that the recognizer sees otherwise than
    the task promises: at most ``DRAWS`` times.

    An anonymized face that is still recognized then is an error. Of hidden ones the nearest is kept, and ``warn`` is
    called if it is not recognized.
    face: what messages call it. regenerate: what makes the crops.
    """

    task: Task
    recognizer: FaceMatcher
    face: str
    warn: Callable[[str], object]
    regenerate: Callable[..., Tensor]

    def __call__(
        self,
        crops: Tensor,
        landmarks: Tensor,
        noise: Tensor,
        diffusion_model: DiffusionModel,
        how: Regeneration,
        callback: Callback | None = None,
    ) -> Tensor:
        """Raises DiffPrivacyError for an anonymized face that is still recognized after the last draw."""
        original = self.recognizer.reference(crops, landmarks)
        nearest, least = crops, float("inf")
        for draw in range(DRAWS):
            rows = fresh_noise(noise, draw, "draw") if draw else noise
            new = self.regenerate(crops, landmarks, rows, diffusion_model, how, None if draw else callback)
            missing = self._missing(original, new, landmarks)
            if not missing > 0:
                return new
            log.debug("%s misses its aim by %.1f standard deviations in draw %d", self.face, missing, draw + 1)
            if missing < least:
                nearest, least = new, missing
        if self.task == "anonymize":
            raise DiffPrivacyError(
                f"A recognizer still takes the new {self.face} for the original after {DRAWS} draws: {remedy(how)}."
            )
        if least > MATCHED - RECOGNIZED:
            self.warn(f"{self.face} is hidden, but the recognizer does not match it: choose more steps.")
        return nearest

    def _missing(self, original: Embeddings, new: Tensor, landmarks: Tensor) -> float:
        """How many standard deviations of strangers the worst of the new crops lies beyond the aim, for any network."""
        variants = len(new) // len(landmarks)
        seen = self.recognizer.reference(new, landmarks.repeat_interleave(variants, dim=0))
        originals = [vectors.repeat_interleave(variants, dim=0) for vectors in original]
        seen_alike = likeness(self.recognizer, originals, seen)
        return float(seen_alike.max() - RECOGNIZED if self.task == "anonymize" else MATCHED - seen_alike.min())


def remedy(how: Regeneration) -> str:
    """What makes a new face another one."""
    return "keep less of it" if how.keep else "choose a higher strength or more steps"


def likeness(recognizer: FaceMatcher, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """How many standard deviations above strangers' mean the cosines of embeddings (B,D) lie: (N,B) for N networks."""
    return torch.stack([
        (((x * y).sum(dim=1) - strangers.mean) / strangers.std).cpu()
        for strangers, x, y in zip(recognizer.strangers, a, b, strict=True)
    ])  # fmt: skip
