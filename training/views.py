"""Views of the portraits for the UNet: faces of new proportions, likely colours, and spoilt ones that say so."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from .data import SIZE, Augmenter, in_colour, luminance

PROPORTIONS = 0.025
"""Deviation of the smooth displacement that gives a face other proportions, in half sides of the picture."""
DEFORMED = 0.09
"""That of a displacement that spoils a face."""
CANDIDATES = 48
"""Colour portraits among which the one with the likest lights lends its colours to a grey portrait."""
SOFTEST = 0.15
"""Share of the portraits that count as blurred as they are."""
BLURRED, IS_DEFORMED = 1, 2


class Views:
    """Random views of portraits (N,3,128,128) uint8 on a device, with what is wrong with each.

    Grey portraits take the colours of a colour portrait with similar lights: all are aligned, so skin, lips and background
    lie at the same places. Half of all views are of colour portraits, whatever their share.
    """

    def __init__(self, portraits: Tensor, generator: torch.Generator, spoilt: float = 0.12, coloured: float = 0.8):
        self.portraits, self.generator = portraits, generator
        self.spoilt, self.coloured = spoilt, coloured
        self.augment = Augmenter(generator, tint=0, grey=0.1)
        chunks = [chunk / 255 for chunk in portraits.split(256)]
        self.colour = torch.cat([in_colour(chunk) for chunk in chunks])
        detail = torch.cat([_detail(chunk) for chunk in chunks])
        self.soft = detail < detail.quantile(SOFTEST)
        lights = torch.cat([F.adaptive_avg_pool2d(luminance(chunk), 16).flatten(1) for chunk in chunks])
        self.lights = F.normalize(lights - lights.mean(1, keepdim=True), dim=1)
        self.which = {kind: (self.colour == kind).nonzero().flatten() for kind in (True, False)}

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """count views (B,3,128,128) in [0,1], which are in colour (B,) bool, and what is wrong with them (B,) as bits."""
        chosen = torch.cat(
            [self._some(self.which[True], count // 2), self._some(self.which[False], count - count // 2)]
        )
        images, colour = self.portraits[chosen] / 255, self.colour[chosen]
        lent = ~colour & (self._uniform(count) < self.coloured)
        images = torch.where(lent.view(-1, 1, 1, 1), self._lent(chosen, images), images)
        images, now = self.augment(images, colour | lent)
        spoilt = torch.randint(1, 4, (count,), generator=self.generator, device=images.device)
        spoilt = torch.where(self._uniform(count) < self.spoilt, spoilt, 0)
        images = self._displaced(images, (spoilt & IS_DEFORMED) > 0)
        images = torch.where((spoilt & BLURRED).view(-1, 1, 1, 1) > 0, self._blurred(images), images)
        return images, now, torch.where(self.soft[chosen], spoilt | BLURRED, spoilt)

    def _some(self, among: Tensor, count: int) -> Tensor:
        return among[torch.randint(len(among), (count,), generator=self.generator, device=among.device)]

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.portraits.device)

    def _lent(self, chosen: Tensor, images: Tensor) -> Tensor:
        """The grey of images in the colours of other portraits."""
        count = len(chosen)
        candidates = self._some(self.which[True], count * CANDIDATES).view(count, CANDIDATES)
        likeness = (self.lights[candidates] * self.lights[chosen][:, None]).sum(-1)
        lender = self.portraits[candidates.gather(1, likeness.argmax(1, keepdim=True)).flatten()] / 255
        y, lender_y = luminance(images), luminance(lender)
        chroma = gaussian_blur(lender - lender_y, [13, 13], [3.0, 3.0])
        room = gaussian_blur(lender_y * (1 - lender_y), [13, 13], [3.0, 3.0])
        return (y + chroma / (room + 0.03) * (y * (1 - y) + 0.01)).clamp(0, 1)

    def _displaced(self, images: Tensor, deformed: Tensor) -> Tensor:
        """Faces of other proportions, as symmetric as they were; the deformed ones out of shape."""
        count, device = len(images), images.device
        coarse = torch.randn(2, count, 2, 5, 5, generator=self.generator, device=device)
        fields = F.interpolate(coarse.flatten(0, 1), SIZE, mode="bicubic", align_corners=True).view(
            2, count, 2, SIZE, SIZE
        )
        mirrored = fields[0].flip(-1) * torch.tensor([-1.0, 1.0], device=device).view(2, 1, 1)
        symmetric = PROPORTIONS * (fields[0] + mirrored) / 2**0.5
        field = symmetric + deformed.view(-1, 1, 1, 1) * DEFORMED * fields[1]
        places = torch.linspace(-1, 1, SIZE, device=device)
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        grid = torch.stack([columns, rows]) + field
        return F.grid_sample(
            images, grid.permute(0, 2, 3, 1), mode="bicubic", padding_mode="reflection", align_corners=True
        ).clamp(0, 1)

    def _blurred(self, images: Tensor) -> Tensor:
        """Each blurred by a deviation of 1.2 to 3 pixels of its own."""
        little, much = (gaussian_blur(images, [15, 15], [sigma, sigma]) for sigma in (1.2, 3.0))
        return torch.lerp(little, much, self._uniform(len(images)).view(-1, 1, 1, 1))


def _detail(images: Tensor) -> Tensor:
    """Energy of the Laplacian of the inner face of images (B,3,128,128), relative to their contrast, (B,)."""
    inner = luminance(images)[..., 24:104, 24:104]
    laplacian = 4 * inner[..., 1:-1, 1:-1] - (
        inner[..., :-2, 1:-1] + inner[..., 2:, 1:-1] + inner[..., 1:-1, :-2] + inner[..., 1:-1, 2:]
    )
    return laplacian.square().mean((1, 2, 3)) / inner.var((1, 2, 3))
