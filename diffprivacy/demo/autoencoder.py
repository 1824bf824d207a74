"""The autoencoder: a linear transform of 8x8 pixel blocks, corrected by small convolutional networks.

The linear part starts at the principal components of face blocks and alone reaches 30 dB; the networks learn what it
misses. There is no normalisation layer, so brightness passes unchanged and any multiple of eight pixels will do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 8
UNSHUFFLE = 4


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the second starts at zero, so that the block starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _blocks(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels) for _ in range(depth)])


class Encoder(nn.Module):
    """Images (B,3,H,W) in [-1,1] to latents (B,C,H/8,W/8)."""

    def __init__(self, latent_channels: int, fine: int, coarse: int, depth: int):
        super().__init__()
        self.linear = nn.Conv2d(3, latent_channels, BLOCK, stride=BLOCK)
        self.conv_in = nn.Conv2d(3 * UNSHUFFLE**2, fine, 3, padding=1)
        self.fine = _blocks(fine, depth)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse = _blocks(coarse, depth)
        self.conv_out = nn.Conv2d(coarse, latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(images, UNSHUFFLE))
        x = self.coarse(self.down(self.fine(x)))
        return self.linear(images) + self.conv_out(F.silu(x))


class Decoder(nn.Module):
    """Latents (B,C,h,w) to images (B,3,8h,8w), about [-1,1]."""

    def __init__(self, latent_channels: int, fine: int, coarse: int, depth: int):
        super().__init__()
        self.linear = nn.ConvTranspose2d(latent_channels, 3, BLOCK, stride=BLOCK)
        self.conv_in = nn.Conv2d(latent_channels, coarse, 3, padding=1)
        self.coarse = _blocks(coarse, depth)
        self.up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.fine = _blocks(fine, depth)
        self.conv_out = nn.Conv2d(fine, 3 * UNSHUFFLE**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, latents: Tensor) -> Tensor:
        x = self.coarse(self.conv_in(latents))
        x = self.conv_out(F.silu(self.fine(self.up(x))))
        return self.linear(latents) + F.pixel_shuffle(x, UNSHUFFLE)


class Autoencoder(nn.Module):
    """Faces at an eighth of their size: 128x128 pixels become ``latent_channels`` x 16 x 16 numbers of unit scale.

    ``encode`` and ``decode`` speak images in [-1,1], as ComfyUI's VAE expects of its ``first_stage_model``.
    """

    def __init__(
        self, latent_channels: int, fine: int, coarse: int, encoder_depth: int, decoder_depth: int, **_: object
    ):
        super().__init__()
        self.encoder = Encoder(latent_channels, fine, coarse, encoder_depth)
        self.decoder = Decoder(latent_channels, fine, coarse, decoder_depth)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images (B,3,H,W) in [-1,1]; H and W multiples of 8."""
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W), about [-1,1], of latents."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    @torch.no_grad()
    def set_linear(self, mean: Tensor, basis: Tensor, gains: Tensor) -> None:
        """Start at z = gains * basis^T (x - mean): mean (3,), orthonormal basis (3*64, C), gains (C,)."""
        channels = basis.shape[1]
        encode = (basis * gains).T
        self.encoder.linear.weight.copy_(encode.reshape(channels, 3, BLOCK, BLOCK))
        self.encoder.linear.bias.copy_(-encode @ mean.repeat_interleave(BLOCK**2))  # pyright: ignore
        self.decoder.linear.weight.copy_((basis / gains).T.reshape(channels, 3, BLOCK, BLOCK))
        self.decoder.linear.bias.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply the latents by a factor and undo it in the decoder, so that pictures stay the same."""
        for layer in (self.encoder.linear, self.encoder.conv_out):
            for parameter in layer.parameters():
                parameter.mul_(factor)
        for layer in (self.decoder.linear, self.decoder.conv_in):
            layer.weight.div_(factor)
