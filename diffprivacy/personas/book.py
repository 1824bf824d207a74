"""Who has which persona: a synthetic identity that a person gets in all images and videos.

A person is known by a template, the mean of the first faces met. Their persona is drawn: an embedding for guidance to
approach, a random mixture of what faces differ by, and the key of the noise that sampling starts from, which follow from
the book's secret and the person's number.
Another secret gives unrelated ones: nothing of a person's photos goes into their persona.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import NoiseKey
from ..errors import DiffPrivacyError
from ..faces.alignment import template
from ..identity.recognizers import FaceMatcher
from ..identity.strangers import SPREAD, Strangers
from .mixtures import PEOPLE, differences

TEMPLATE_FACES = 5
"""Faces that a person's template is the mean of, the first that are met."""
ALIKE = 0.95
"""Cosine to the template from which a face adds nothing to it, such as one that is met again."""
CROP = 112
"""Side in pixels of the image that tells how long embeddings are."""


@dataclass(frozen=True, eq=False)
class Persona:
    """A person's synthetic identity.

    target: unit vectors (1,D), one for each network of the recognizer, for guidance to approach.
    """

    number: int
    target: tuple[Tensor, ...]
    noise_key: NoiseKey


class PersonaBook:
    """The people met so far, numbered from 0, and their personas.

    secret: what all personas follow from; by default a fresh one. recognizer: digest of the networks that tell people, see
    :func:`recognizer_digest`; lengths: of their embeddings, D in all.
    templates: sums (P,D) of the people's embeddings, counts (P,) of how many. targets: what was drawn, (P,D), unit vectors
    for each network; faces: in the same form what guidance approaches instead, zeros for nothing else: books begun by
    earlier versions hold their personas' first faces there.
    """

    def __init__(
        self,
        secret: NoiseKey | None = None,
        recognizer: str = "",
        lengths: Sequence[int] = (),
        templates: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        faces: np.ndarray | None = None,
    ):
        self.secret = secret or NoiseKey()
        self.recognizer = recognizer
        self.lengths = tuple(lengths)
        size = sum(self.lengths)
        self.templates = np.zeros((0, size), np.float32) if templates is None else templates
        self.counts = np.zeros(0, np.int64) if counts is None else counts
        self.targets = np.zeros((0, size), np.float32) if targets is None else targets
        self.faces = np.zeros((0, size), np.float32) if faces is None else faces

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, other: PersonaBook) -> None:
        """Become equal to another book."""
        self.__dict__.update(other.copy().__dict__)

    def copy(self) -> PersonaBook:
        """Another book with the same people and personas."""
        arrays = (array.copy() for array in (self.templates, self.counts, self.targets, self.faces))
        return PersonaBook(self.secret, self.recognizer, self.lengths, *arrays)

    @property
    def fingerprint(self) -> str:
        """Tells this book's personas from those of another secret, and tells nothing of either."""
        return hashlib.sha256(b"diff-privacy personas\0" + self.secret.derive("fingerprint").key).hexdigest()[:32]

    def use(self, recognizer: FaceMatcher) -> None:
        """Begin with these networks; raises DiffPrivacyError for a book that was begun with others."""
        digest = recognizer_digest(recognizer)
        if not self.recognizer:
            self.recognizer, self.lengths = digest, embedding_lengths(recognizer)
            self.templates = self.targets = self.faces = np.zeros((0, sum(self.lengths)), np.float32)
        elif self.recognizer != digest:
            raise DiffPrivacyError(
                "The personas were made with other recognizers: take the same ones, or begin another file.", "personas"
            )

    def assign(self, embeddings: np.ndarray, recognizer: FaceMatcher, threshold: float) -> list[int]:
        """The numbers of the people with these embeddings (F,D), as :func:`..identity.embedding.embed_face` gives them.

        They are F different people, as in one image. A face is somebody's whose template has a cosine of at least
        ``threshold``, else somebody's who is new here.
        """
        from scipy.optimize import linear_sum_assignment

        self.use(recognizer)
        known = self.templates / np.maximum(np.linalg.norm(self.templates, axis=1, keepdims=True), 1e-12)
        cosines = embeddings @ known.T
        rows, columns = linear_sum_assignment(np.where(cosines >= threshold, -cosines, 2.0))
        owners = {int(f): int(p) for f, p in zip(rows, columns, strict=True) if cosines[f, p] >= threshold}
        for face, person in owners.items():
            if self.counts[person] < TEMPLATE_FACES and cosines[face, person] < ALIKE:
                self.templates[person] += embeddings[face]
                self.counts[person] += 1
        for face in sorted(set(range(len(embeddings))) - set(owners)):
            owners[face] = self._add(embeddings[face].astype(np.float32), recognizer)
        return [owners[face] for face in range(len(embeddings))]

    def persona(self, person: int) -> Persona:
        """The persona of the person with this number."""
        vector = (self.faces if self.faces[person].any() else self.targets)[person].copy()
        parts = torch.from_numpy(vector)[None].split(self.lengths, dim=1)
        return Persona(person, tuple(parts), self.secret.derive("persona", person, "noise"))

    def _add(self, embedding: np.ndarray, recognizer: FaceMatcher) -> int:
        key = self.secret.derive("persona", len(self), "target")
        weights, aims = key.normal((PEOPLE,), "weights"), key.normal((len(self.lengths),), "aims")
        target = []
        networks = zip(self._places(), recognizer.strangers, differences(recognizer), aims.tolist(), strict=True)
        for where, strangers, between, aim in networks:
            person = _unit(embedding[None, where])[0]
            known = _unit(np.concatenate([self.targets[:, where], self.templates[:, where]]))
            target.append(drawn_target(weights.double().numpy() @ between, aim, person, known, strangers))
        self.templates = np.concatenate([self.templates, embedding[None]])
        self.counts = np.append(self.counts, 1)
        self.targets = np.concatenate([self.targets, np.concatenate(target)[None].astype(np.float32)])
        self.faces = np.concatenate([self.faces, np.zeros((1, sum(self.lengths)), np.float32)])
        return len(self) - 1

    def _places(self) -> Iterator[slice]:
        """Of each network's part in the vectors."""
        end = 0
        for length in self.lengths:
            yield slice(end, end + length)
            end += length


def drawn_target(
    direction: np.ndarray, aim: float, person: np.ndarray, known: np.ndarray, strangers: Strangers
) -> np.ndarray:
    """The unit vector (D,) along a direction (D,), at a stranger's cosine from a person (D,) and from those known (N,D).

    aim: a standard normal number, by which the cosine to the person is spread as strangers' are, so that no search finds
    the person by it. The cosine to the others, people and personas, is strangers' mean: exactly to those whom the
    direction is most or least like, a quarter of as many as there are dimensions in which mixtures differ. The rest are
    strangers anyhow.
    """
    away = np.abs(known @ direction)
    nearest = known[np.argsort(-away, kind="stable")[: min(len(person), PEOPLE) // 4]]
    fixed = np.concatenate([person[None], nearest]).astype(np.float64)
    cosines = np.full(len(fixed), strangers.mean)
    cosines[0] += SPREAD * strangers.std * aim
    inverse = np.linalg.pinv(fixed)
    inside = inverse @ cosines
    outside = direction - inverse @ (fixed @ direction)
    return inside + outside * np.sqrt(max(1 - inside @ inside, 0.0)) / np.linalg.norm(outside)


def recognizer_digest(recognizer: FaceMatcher) -> str:
    """SHA-256 of the networks' parameters and of their weights in the ensemble, whatever holds them."""
    if recognizer not in _digests:
        total = hashlib.sha256(repr(tuple(round(weight, 6) for weight in recognizer.weights)).encode())
        for tensor in recognizer.state_dict().values():
            total.update(repr(tuple(tensor.shape)).encode() + tensor.float().cpu().contiguous().numpy().tobytes())
        _digests[recognizer] = total.hexdigest()
    return _digests[recognizer]


_digests: WeakKeyDictionary[FaceMatcher, str] = WeakKeyDictionary()


def embedding_lengths(recognizer: FaceMatcher) -> tuple[int, ...]:
    """How many numbers each network's embedding has."""
    parts = recognizer.reference(torch.zeros(1, 3, CROP, CROP), template(CROP)[None])
    return tuple(part.shape[1] for part in parts)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return F.normalize(torch.from_numpy(vectors).double(), dim=1).numpy()
