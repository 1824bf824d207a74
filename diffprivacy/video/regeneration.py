"""One new face for each person of a video: the same noise, the same pseudo-words and, after cuts, the same identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .. import pipeline
from ..diffusion.model import Backbone
from ..diffusion.sampling import Callback
from ..diffusion.temporal import radius
from ..identity.recognizers import FaceMatcher
from ..msi.module import MSI
from ..presets import Preset
from .files import Video
from .protect import Redraw, face_at
from .resume import Job
from .tracks import Track


def one_face_each(
    video: Video,
    tracks: Sequence[Track],
    job: Job,
    task: Literal["anonymize", "hide"],
    backbone: Backbone,
    size: int,
    margin: float,
    preset: Preset,
    recognizer: FaceMatcher | None = None,
    msi: MSI | None = None,
    callback: Callback | None = None,
) -> Redraw:
    """What makes crops of ``size`` pixels of the people in the tracks new.

    Each person's noise follows from the job's key. When anonymizing under a recognizer it keeps the face that a person first got,
    toward which that person's later crops are guided. callback: of every sampling step.
    """
    people = max((track.person for track in tracks), default=-1) + 1
    shape = pipeline.latent_shape(backbone, size)
    noise = [job.noise_key.normal(shape, "person", person) for person in range(people)]
    words: dict[int, Tensor] = {}
    if msi is not None:
        for person in {track.person for track in tracks}:
            largest = max((track for track in tracks if track.person == person), key=lambda track: track.area)
            words[person] = msi.words(backbone, face_at(video, largest, size, margin)[None])[0]

    def redraw(crops: Tensor, landmarks: Tensor, person: int) -> Tensor:
        if task == "anonymize":
            energy = pipeline.anonymizing(recognizer, target=job.faces.get(person))
        else:
            energy = pipeline.hiding(recognizer)
        new = pipeline.redraw_crops(
            crops,
            landmarks,
            noise[person].expand(len(crops), -1, -1, -1),
            backbone,
            preset,
            energy,
            words.get(person),
            steadiness=radius(float(video.rate)),
            callback=callback,
        )
        if task == "anonymize" and recognizer is not None and person not in job.faces:
            job.keep_face(person, mean_face(recognizer, new, landmarks))
        return new

    return redraw


def mean_face(recognizer: FaceMatcher, crops: Tensor, landmarks: Tensor) -> list[Tensor]:
    """The embeddings (1,D), one for each network, of what several crops of one face have in common."""
    means = [vectors.mean(dim=0, keepdim=True) for vectors in recognizer.reference(crops, landmarks)]
    return [F.normalize(mean) for mean in means]
