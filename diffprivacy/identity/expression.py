"""An energy that keeps what a face does: expression, gaze, and how far eyes and mouth are open."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import upload
from ..faces.facemesh import EYES, MOUTH, load_face_mesh
from .energies import Energy, Seen

EXPRESSION_WEIGHT = 0.25
"""Against an energy of identity; twice as much keeps hardly more."""


def keep_expression(reference: Tensor, landmarks: Tensor) -> Energy:
    """Falls as the faces being made do what the reference's do.

    The mean change of MediaPipe's blendshapes, of which those say nothing of the identity, and of gaze, lids and lips
    in widths of eyes and mouth; times ten, so that a usual change counts as much as one of identity.
    reference: (F,3,H,W) in [0,1], landmarks: (F,5,2) in pixels, also those of the faces being made.
    """
    network = load_face_mesh(str(reference.device))
    with torch.inference_mode(False), torch.no_grad():
        images = reference.detach().clone().float()
        places = network.places(images, landmarks.detach().clone())
        points = network.read(images, places)
        aim = network.shapes(points), openness(points)

    def energy(seen: Seen, _: int) -> Tensor:
        images = seen.images.float()
        network = load_face_mesh(str(images.device))
        variants = len(images) // len(places)
        points = network.read(images, places.repeat_interleave(variants, dim=0))
        return torch.stack(
            [
                10 * (now - upload(before, now.device, now.dtype).repeat_interleave(variants, dim=0)).abs().mean(dim=1)
                for now, before in zip((network.shapes(points), openness(points)), aim, strict=True)
            ]
        ).sum(dim=0)

    return Energy(energy)


def openness(points: Tensor) -> Tensor:
    """Of points (B,478,3) the lips' and the lids' distance in widths of mouth and eyes, and where the irises lie (B,7)."""
    parts = [points[:, list(part)] for part in (MOUTH, *EYES)]
    widths = [(part[:, 0] - part[:, 1]).norm(dim=-1) for part in parts]
    gaps = [(part[:, 2] - part[:, 3]).norm(dim=-1) / width for part, width in zip(parts, widths, strict=True)]
    irises = [
        ((part[:, 4] - (part[:, 0] + part[:, 1]) / 2) / width[:, None])[:, :2]
        for part, width in zip(parts[1:], widths[1:], strict=True)
    ]
    return torch.cat((torch.stack(gaps, dim=1), *irises), dim=1)
