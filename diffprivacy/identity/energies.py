"""Energies: what guidance lowers. Functions of pictures that add, scale, and know nothing of diffusion.

Pictures come face by face: with F faces and V variants of each, row f * V + v is variant v of face f.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import upload
from ..errors import DiffPrivacyError
from ..faces.alignment import align, template
from ..faces.geometry import TEMPLATE_SIZE
from ..faces.similarity import similarity
from .augmentations import Generator, SameForAll, random_view
from .recognizers import Embeddings, FaceMatcher, weighted_sum

JITTER = 8
"""Pixels around ArcFace's 112 that random views read."""
HALO = 3
"""Latents around the window of :func:`near_faces` that still matter to a pixel inside it."""


class Seen:
    """Images (B,3,H,W) in [0,1], and what recognizers see in them, computed once for all energies that ask."""

    def __init__(self, images: Tensor):
        self.images = images
        self._embeddings: dict[tuple[FaceMatcher, int], Embeddings] = {}

    def by(self, recognizer: FaceMatcher, landmarks: Tensor) -> Embeddings:
        """The embeddings of the F faces' variants; landmarks: (F,5,2), which energies that share them hold in common."""
        key = recognizer, id(landmarks)
        if key not in self._embeddings:
            points = landmarks.repeat_interleave(_variants(self.images, len(landmarks)), dim=0)
            self._embeddings[key] = recognizer.embed(self.images, points)
        return self._embeddings[key]


class Energy:
    """A function from pictures (B,3,H,W) in [0,1] to energies (B,), lower being better.

    It keeps no state: what is random in it is drawn from the seed of the call.
    function: of what is seen and the seed.
    landmarks: (F,5,2) in pixels, of the faces outside whose crops it reads nothing; None when it may read anything.
    recognizers: those that it asks, which a backend brings to its device before sampling.
    """

    def __init__(
        self,
        function: Callable[[Seen, int], Tensor],
        landmarks: Tensor | None = None,
        recognizers: tuple[FaceMatcher, ...] = (),
    ):
        self._function = function
        self.landmarks = landmarks
        self.recognizers = recognizers

    def __call__(self, images: Tensor | Seen, seed: int = 0) -> Tensor:
        return self._function(images if isinstance(images, Seen) else Seen(images), seed)

    def __add__(self, other: Energy) -> Energy:
        both = [energy.landmarks for energy in (self, other) if energy.landmarks is not None]
        landmarks = torch.cat(both) if len(both) == 2 else None
        recognizers = tuple(dict.fromkeys((*self.recognizers, *other.recognizers)))
        return Energy(lambda seen, seed: self(seen, seed) + other(seen, seed), landmarks, recognizers)

    def __mul__(self, weight: float) -> Energy:
        return Energy(lambda seen, seed: self(seen, seed) * weight, self.landmarks, self.recognizers)

    __rmul__ = __mul__


Form = Literal["stranger", "smooth", "paper"]
"""How an energy of identity falls with the cosine c.

"stranger" is max(c - aim, 0): it is flat once the two are strangers. "paper" is max(c, 0) (Diff-Privacy, arXiv
2309.05330). "smooth" is a softplus, which never ends: it makes opposites, and whoever ranks a gallery from its other
end finds the person.
"""
ACCEPTED = 7.0
"""Standard deviations above strangers' mean that machines shall see of a hidden face, with room for those that did not
guide; about 3 of them are the threshold at a false accept rate of 1e-3."""
STRUCTURE = 0.25
"""The energy of :func:`visual_distance` between two strangers: 0.26 over CelebA-HQ, 0.25 over LFW."""


def identity_away(
    recognizer: FaceMatcher,
    reference: Embeddings,
    landmarks: Tensor,
    aims: Sequence[Tensor] | None = None,
    form: Form = "stranger",
) -> Energy:
    """Falls until every network of the recognizer sees somebody else than the reference, and is flat from there.

    reference: recognizer.reference(...) of the F people, landmarks: (F,5,2) of the faces being made, in pixels.
    aims: cosines (F * V,) of each network for form "stranger", see :func:`..strangers.drawn_aims`; by default the means
    of strangers, the same for all faces.
    """

    def energy(seen: Seen, _: int) -> Tensor:
        cosines = _cosines(seen.by(recognizer, landmarks), reference)
        return weighted_sum(recognizer.weights, _repulsions(cosines, recognizer, aims, form))

    return Energy(energy, landmarks, (recognizer,))


def identity_toward(
    recognizer: FaceMatcher, reference: Embeddings, landmarks: Tensor, deviations: float | None = None
) -> Energy:
    """Falls as machines take the face for the reference person.

    reference: recognizer.reference(...) of the F people, or F * V embeddings, one for each variant.
    landmarks: (F,5,2) of the faces being made, in pixels.
    deviations: how many standard deviations above strangers' mean the cosine has to be, where the energy ends; None for
    1 - cos, which has no end (arXiv 2309.05330, hiding).
    """

    def energy(seen: Seen, _: int) -> Tensor:
        cosines = _cosines(seen.by(recognizer, landmarks), reference)
        if deviations is None:
            return weighted_sum(recognizer.weights, [1 - cosine for cosine in cosines])
        enough = [kind.at(deviations) for kind in recognizer.strangers]
        terms = [(aim - cosine).clamp(min=0) for aim, cosine in zip(enough, cosines, strict=True)]
        return weighted_sum(recognizer.weights, terms)

    return Energy(energy, landmarks, (recognizer,))


def diversity(
    recognizer: FaceMatcher, landmarks: Tensor, aims: Sequence[Tensor] | None = None, form: Form = "stranger"
) -> Energy:
    """Falls until the V variants of each face are strangers; zero when there is one variant only.

    landmarks: (F,5,2) of the F faces. aims: cosines (F * V,) of each network to the other variants for form "stranger".
    A variant's energy is the mean over the V - 1 others; the paper's sum over the pairs of a face is (V - 1) / 2 times
    the sum of the energies of its variants.
    """

    def energy(seen: Seen, _: int) -> Tensor:
        variants = _variants(seen.images, len(landmarks))
        grouped = [e.unflatten(0, (-1, variants)) for e in seen.by(recognizer, landmarks)]
        cosines = [(e @ e.mT).flatten(0, 1).T for e in grouped]  # (V,F * V): of every row with the v-th of its face
        terms = []
        for values in _repulsions(cosines, recognizer, aims, form):
            others = 1 - upload(torch.eye(variants), values.device, values.dtype).repeat(1, len(landmarks))
            terms.append((values * others).sum(dim=0) / max(variants - 1, 1))
        return weighted_sum(recognizer.weights, terms)

    return Energy(energy, landmarks, (recognizer,))


def visual_distance(reference: Tensor, reference_landmarks: Tensor, landmarks: Tensor, aim: float = 0.0) -> Energy:
    """Falls as people see another face: local structure unlike the reference's, whatever the light and the colours.

    It is the squared structural similarity (the structure term of SSIM, Wang et al., 2004: local correlation) of the
    aligned faces in grey, at 28 x 28 pixels; negative values count as 0, so that nothing is driven to a photographic
    negative. People tell faces by 8 to 16 cycles per face (Costen et al., 1996), which is what that size keeps. Of the
    candidates of ``benchmarks/visual_distance.py`` it is least lowered by changes that leave a face the same.
    reference: (F,3,H,W) in [0,1] with reference_landmarks (F,5,2); landmarks: (F,5,2) of the faces being made.
    aim: the squared similarity at which the energy ends; that of two strangers is STRUCTURE.
    """
    with torch.inference_mode(False), torch.no_grad():
        original = _structure_view(reference.clone(), reference_landmarks.clone())

    def energy(seen: Seen, _: int) -> Tensor:
        variants = _variants(seen.images, len(landmarks))
        view = _structure_view(seen.images, landmarks.repeat_interleave(variants, dim=0))
        similarity = _structural_similarity(
            view, upload(original, view.device, view.dtype).repeat_interleave(variants, dim=0)
        )
        return (similarity.clamp(min=0).square().mean(dim=(1, 2, 3)) - aim).clamp(min=0)

    return Energy(energy, landmarks)


def augmented(energy: Energy, landmarks: Tensor, draws: int = 4, alone: bool = False) -> Energy:
    """The energy's mean over random views of the pictures, so that lowering it is no pattern for one network's pixels.

    landmarks: (F,5,2) of the faces being made, in pixels. The views depend on the call's seed: give each step its own.
    alone: each face gets the views that it would get were it alone.
    """

    def mean(seen: Seen, seed: int) -> Tensor:
        images = seen.images
        generator: Generator = torch.Generator().manual_seed(seed)
        if alone:
            generator = SameForAll(generator, len(landmarks))
        points = landmarks.repeat_interleave(_variants(images, len(landmarks)), dim=0)
        values = [energy(random_view(images, points, generator), seed) for _ in range(draws)]
        return torch.stack(values).mean(dim=0)

    return Energy(mean, energy.landmarks, energy.recognizers)


def near_faces(
    decoder: Callable[[Tensor], Tensor], landmarks: Tensor, downscale: int = 8
) -> Callable[[Tensor], Tensor]:
    """A decoder that decodes no more than what energies of these faces read, and repeats its border around that.

    decoder: latents to pictures ``downscale`` times their size, convolutional, so that what lies far away has no say in
    a pixel: a TAESD, not a VAE with attention. landmarks: (F,5,2) in pixels of the whole pictures.
    """
    to_picture = torch.linalg.inv(similarity(landmarks.detach().float().cpu(), template(TEMPLATE_SIZE)))
    low, high = -JITTER, TEMPLATE_SIZE - 1 + JITTER
    corners = torch.tensor([[x, y, 1.0] for x in (low, high) for y in (low, high)])
    cells = (corners @ to_picture[:, :2].mT).flatten(0, 1) / downscale
    left, top = (int(v) for v in cells.amin(0).floor() - HALO)
    right, bottom = (int(v) for v in cells.amax(0).ceil() + HALO)

    def decode(latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        around = (columns.start, width - columns.stop, rows.start, height - rows.stop)
        window = decoder(latents[..., rows, columns])
        return F.pad(window, [downscale * cells for cells in around], mode="replicate")

    return decode


def latent_gradient(
    energy: Energy, decoder: Callable[[Tensor], Tensor], chunk: int | None = None
) -> Callable[..., Tensor]:
    """``gradient(z0, seed=None)``: the gradient (B,C,h,w) of the energies' sum by the latents z0 (B,C,h,w).

    decoder: differentiable, latents to pictures (B,3,H,W) in [0,1], its weights no inference tensors.
    chunk: latents whose decoding is held in memory at once, all by default. With fewer, each latent is decoded once
    more, without gradients, beforehand, so that energies that couple variants stay exact.
    seed: of the energy's random views; by default it follows from z0's bits. Works inside torch.inference_mode.
    """

    def gradient(z0: Tensor, seed: int | None = None) -> Tensor:
        size = chunk or len(z0)
        with torch.inference_mode(False), torch.enable_grad():
            latents = z0.detach().clone()
            if seed is None:
                seed = crc32(latents.float().cpu().numpy().tobytes())
            if size >= len(latents):
                return _gradient(lambda z: energy(decoder(z), seed), latents)
            with torch.no_grad():
                images = torch.cat([decoder(part) for part in latents.split(size)])
            slopes = _gradient(lambda x: energy(x, seed), images)
            parts = zip(latents.split(size), slopes.split(size), strict=True)
            return torch.cat([_gradient(decoder, part, slope) for part, slope in parts])

    return gradient


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor | None = None) -> Tensor:
    """The vector-Jacobian product of a function at x with slope, ones by default."""
    x = x.detach().requires_grad_()
    y = function(x)
    return torch.autograd.grad(y, x, torch.ones_like(y) if slope is None else slope)[0]


def _structure_view(images: Tensor, landmarks: Tensor) -> Tensor:
    """The faces as people tell them: grey, without the crop's left and right edge, (B,1,28,20)."""
    grey = align(images, landmarks).mean(dim=1, keepdim=True)
    return F.avg_pool2d(grey, 4)[..., 4:-4]


def _structural_similarity(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Structure term of SSIM in every window, in [-1,1]: the correlation, where there is more contrast than noise.

    The constant stands inside the root, so that a window that was painted over is unlike one with structure.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    constant = 1e-4
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = (mean(x * x) - m.square() + constant for x, m in ((a, mean_a), (b, mean_b)))
    return (mean(a * b) - mean_a * mean_b + constant) / (variance_a * variance_b).sqrt()


_TEMPERATURE = 0.1


def _repulsions(
    cosines: Sequence[Tensor], recognizer: FaceMatcher, aims: Sequence[Tensor] | None, form: Form
) -> list[Tensor]:
    """The energy of each network's cosines (..., F * V)."""
    if form == "smooth":
        return [_TEMPERATURE * F.softplus(cosine / _TEMPERATURE) for cosine in cosines]
    if form == "paper":
        return [cosine.clamp(min=0) for cosine in cosines]
    ends = [torch.tensor(kind.mean) for kind in recognizer.strangers] if aims is None else aims
    return [
        (cosine - upload(end, cosine.device, cosine.dtype)).clamp(min=0)
        for cosine, end in zip(cosines, ends, strict=True)
    ]


def _cosines(embeddings: Embeddings, reference: Embeddings) -> list[Tensor]:
    """The cosine (F * V,) of every embedding to its reference (F,D) or (F * V,D), for each network."""
    return [
        (e * upload(r, e.device, e.dtype).repeat_interleave(len(e) // len(r), dim=0)).sum(dim=1)
        for e, r in zip(embeddings, reference, strict=True)
    ]


def _variants(images: Tensor, faces: int) -> int:
    variants, rest = divmod(len(images), faces)
    if rest or not variants:
        raise DiffPrivacyError(
            f"{len(images)} images are no whole number of variants of the {faces} reference faces: "
            "make the batch a multiple of the faces."
        )
    return variants
