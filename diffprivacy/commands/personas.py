"""``--personas``: one new face for each person in all inputs, also where several processes work on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UsageError, at_field
from ..faces.geometry import Face
from ..identity.embedding import embed_face
from ..identity.recognizers import FaceMatcher
from ..identity.thresholds import person_threshold
from ..personas.book import Persona
from ..personas.files import PersonaFile
from ..recovery.encryption import read_secret
from ..video.tracks import Track
from .requests import PersonasRequest, ProtectRequest


@dataclass(frozen=True)
class Personas:
    """Who has which persona. threshold: cosine from which a face is somebody's."""

    file: PersonaFile
    recognizer: FaceMatcher
    threshold: float

    def in_picture(self, picture: Tensor, faces: Sequence[Face]) -> list[Persona]:
        """Of each face of an image (H,W,3)."""
        return self._of(np.stack([embed_face(self.recognizer, picture, face) for face in faces]))

    def in_video(self, tracks: Sequence[Track]) -> dict[int, Persona]:
        """Of each person of a video."""
        found: dict[int, list[np.ndarray]] = {}
        for track in tracks:
            if track.embedding is not None:
                found.setdefault(track.person, []).append(track.embedding)
        means = {person: np.mean(vectors, axis=0) for person, vectors in found.items()}
        units = [mean / np.linalg.norm(mean) for mean in means.values()]
        return dict(zip(means, self._of(np.stack(units)), strict=True)) if units else {}

    def _of(self, embeddings: np.ndarray) -> list[Persona]:
        with self.file.changing() as book:
            return [book.persona(number) for number in book.assign(embeddings, self.recognizer, self.threshold)]


def with_personas(request: ProtectRequest) -> ProtectRequest:
    """The request with the fingerprint of its personas, whose file is begun where there is none.

    Raises DiffPrivacyError for a file that does not open, UsageError for options that do not go with personas.
    """
    if request.personas is None:
        return request
    given = {
        "--unguided": request.model.unguided,
        "--keyed": request.sealing.keyed,
        "--variants": request.variants > 1,
        "--seed": request.seed is not None,
        "--preset paper": request.preset == "paper",
    }
    if unheeded := [option for option, value in given.items() if value]:
        raise UsageError(f"--personas takes no {' or '.join(unheeded)}; leave it out.")
    file = _file(request.personas)
    if not file.path.exists() and request.dry_run:
        return request
    with file.changing() as book:
        known = dataclasses.replace(request.personas, book=book.fingerprint)
    return dataclasses.replace(request, personas=known)


def load_personas(request: ProtectRequest, recognizer: FaceMatcher) -> Personas | None:
    """The personas asked for, None for none; raises DiffPrivacyError for those of other recognizers."""
    if request.personas is None:
        return None
    file = _file(request.personas)
    with at_field("personas"), file.changing() as book:
        book.use(recognizer)
    threshold = request.people.threshold
    return Personas(file, recognizer, person_threshold(recognizer) if threshold is None else threshold)


def _file(request: PersonasRequest) -> PersonaFile:
    with at_field("personas_secret"):
        secret = read_secret(request.secret, "secret of the personas")
        return PersonaFile(request.file, secret)
