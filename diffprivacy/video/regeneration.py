"""One new face for each person of a video: the same noise, the same pseudo-words and, after cuts, the same identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from ..diffusion.model import DiffusionModel
from ..diffusion.sampling import Callback
from ..errors import DiffPrivacyError
from ..faces.geometry import Crop
from ..identity.recognizers import FaceMatcher
from ..msi.module import MSI
from ..redrawing import RECOGNIZED, likeness, remedy
from ..regeneration import Regeneration, latent_shape, regenerate_crops, starting_noise
from .frames import Video
from .protect import Regenerate, face_at
from .resume import ResumeState
from .tracks import Track

HowOf = Callable[[int, Sequence[Tensor] | None], Regeneration]
"""``how(person, target)``: how a person's faces are made new; target: embeddings (1,D) of the new face, one for each
recognition network, where the person has got one already."""


def one_face_each(
    state: ResumeState,
    diffusion_model: DiffusionModel,
    crop: Crop,
    how: HowOf,
    keep: FaceMatcher | None = None,
    callback: Callback | None = None,
    check: FaceMatcher | None = None,
) -> Regenerate:
    """What makes crops of the people of a video new.

    Each person's noise, one for all frames, follows from the state's key, or is that of their persona. keep: measures the
    face that a person first got, which the state keeps as the target of their later crops; None: there is no target.
    callback: of every sampling step. check: what is not to take a new face for the person; see check_unrecognized.
    """
    shape = latent_shape(diffusion_model, crop.size)

    def regenerate(crops: Tensor, landmarks: Tensor, person: int, smoothing: Tensor) -> Tensor:
        of_person = dataclasses.replace(how(person, state.faces.get(person)), smoothing=smoothing)
        if of_person.noise_key is None:
            same = state.noise_key.normal(shape, "person", person)
        else:
            (same,) = starting_noise(of_person, shape, of_person.noise_key)
        noise = same.expand(len(crops), -1, -1, -1)
        new = regenerate_crops(crops, landmarks, noise, diffusion_model, of_person, callback)
        if not bool(new.isfinite().all()):
            raise DiffPrivacyError(f"The model's result for person {person} is no image; try another precision.")
        if check is not None:
            check_unrecognized(check, crops, new, landmarks, person, of_person)
        if keep is not None and person not in state.faces:
            state.keep_face(person, mean_face(keep, new, landmarks))
        return new

    return regenerate


def check_unrecognized(
    recognizer: FaceMatcher, crops: Tensor, new: Tensor, landmarks: Tensor, person: int, how: Regeneration
) -> None:
    """Raises DiffPrivacyError where the recognizer takes what a person's new crops have in common for that person."""
    faces = [mean_face(recognizer, images, landmarks) for images in (crops, new)]
    if bool((likeness(recognizer, *faces) > RECOGNIZED).any()):
        raise DiffPrivacyError(f"A recognizer still takes the new face of person {person} for theirs: {remedy(how)}.")


def words_of_people(
    video: Video, tracks: Sequence[Track], diffusion_model: DiffusionModel, crop: Crop, msi: MSI | None
) -> dict[int, Tensor]:
    """Pseudo-words (S,D) that describe each person, by their largest face; none without an MSI."""
    words: dict[int, Tensor] = {}
    if msi is not None:
        for person in {track.person for track in tracks}:
            largest = max((track for track in tracks if track.person == person), key=lambda track: track.area)
            words[person] = msi.words(diffusion_model, face_at(video, largest, crop)[None])[0]
    return words


def mean_face(recognizer: FaceMatcher, crops: Tensor, landmarks: Tensor) -> list[Tensor]:
    """The embeddings (1,D), one for each network, of what several crops of one face have in common."""
    means = [vectors.mean(dim=0, keepdim=True) for vectors in recognizer.reference(crops, landmarks)]
    return [F.normalize(mean) for mean in means]
