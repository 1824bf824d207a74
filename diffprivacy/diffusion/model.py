"""What the method needs of a diffusion model, whether ComfyUI or diffusers loaded it.

Everything on the sampling path is a denoiser in the k-diffusion convention (Karras et al., arXiv 2206.00364):
x = z + sigma * eps, with z the latent in the units the network was trained on, float32, batch first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..devices import upload

FINGERPRINT_SAMPLES = 64
"""Values of each tensor that a fingerprint looks at."""
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x, sigma) -> z0``: x (B,C,h,w) float32, sigma a 0-d tensor, z0 the predicted clean latent."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of a checkpoint's training schedule.

    sigmas: (T,) float32, ascending; sigmas[t] = sqrt((1 - abar_t) / abar_t) for the training time step t.
    """

    sigmas: Tensor

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> NoiseLevels:
        """The schedule of Stable Diffusion 1.x, 2.x and XL: betas linear in their square root."""
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        abar = torch.cumprod(1 - betas, dim=0)
        return cls((((1 - abar) / abar) ** 0.5).float())

    def __len__(self) -> int:
        return len(self.sigmas)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Nearest training time step in log sigma, as int64 of sigma's shape; the step the network is told."""
        distance = sigma.log()[..., None] - upload(self.sigmas, sigma.device, sigma.dtype).log()
        return distance.abs().argmin(dim=-1)

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Noise level at a fractional time step, log-linear between the neighbours, clamped to the schedule."""
        t = torch.as_tensor(timestep, dtype=torch.float32).clamp(0, len(self) - 1)
        low = t.floor().long()
        high = t.ceil().long()
        weight = t - low
        log_sigmas = self.sigmas.log()
        return ((1 - weight) * log_sigmas[low] + weight * log_sigmas[high]).exp()


@dataclass(frozen=True)
class FlowLevels:
    """The noise levels of a flow model: sigma = scale u / (1 - u) at u = time step / 999, infinite at the last step.

    scale: the model's shift (SD3, Wan, Qwen-Image) or exp(mu) (Flux), times its noise scale.
    """

    scale: float = 1.0

    def __len__(self) -> int:
        return 1000

    @property
    def sigmas(self) -> Tensor:
        """(1000,) float32, ascending."""
        return self.sigma(torch.arange(len(self)))

    def timestep(self, sigma: Tensor) -> Tensor:
        """The time step of sigma, as int64 of its shape, with the boundaries of :func:`..conditioning.percent_range`.

        Schedules of a flow model fall on midpoints between time steps, where the nearest is ambiguous.
        """
        sigma = torch.as_tensor(sigma).double()
        u = torch.where(sigma.isinf(), 1.0, sigma / (self.scale + sigma))
        return (u * (len(self) - 1) - 0.5 - 1 / 4096).ceil().long().clamp(min=0)

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Noise level at a fractional time step."""
        u = torch.as_tensor(timestep, dtype=torch.float64) / (len(self) - 1)
        return (self.scale * u / (1 - u)).float()


Levels = NoiseLevels | FlowLevels


@dataclass(frozen=True)
class TextConditioning:
    """The text encoder's output: context (B,77,D) and, for SDXL, the pooled vector (B,P)."""

    context: Tensor
    pooled: Tensor | None = None

    def rows(self, index: Tensor) -> TextConditioning:
        """The conditioning of a batch whose row i is row index[i] of this one."""
        index = index.to(self.context.device)  # A text encoder may have stayed on the CPU.
        return TextConditioning(self.context[index], None if self.pooled is None else self.pooled[index])


DifferentiableTextEncoder = Callable[[str, Tensor], TextConditioning]
"""``encode(prompt, words)``: a prompt with one ``*``, encoded once for each word (B,D); carries gradients to the words."""

DifferentiableDenoiser = Callable[[Tensor, Tensor, TextConditioning], Tensor]
"""``denoise(x, sigmas, conditioning) -> z0``: x (B,C,h,w) at noise levels sigmas (B,); carries gradients to the conditioning."""


@dataclass(frozen=True)
class EncoderIdentity:
    """What tells one text or image encoder from another: its widths, its number of layers and the signs of its weights.

    widths: of the token embeddings (two of them in SDXL) or of the image encoder's hidden states.
    """

    widths: tuple[int, ...]
    depth: int
    signs: str

    @classmethod
    def of(cls, widths: Sequence[int], depth: int, weights: Sequence[Tensor]) -> EncoderIdentity:
        """The identity of an encoder with these embedding weights, the same in every floating-point precision."""
        digest = hashlib.sha256()
        for weight in weights:
            digest.update((sampled(weight, 4096).float() > 0).cpu().numpy().tobytes())
        return cls(tuple(widths), depth, digest.hexdigest()[:12])

    def __str__(self) -> str:
        return f"{self.depth} layers of {'+'.join(map(str, self.widths))} ({self.signs})"


def weights_fingerprint(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of a fixed sample of all weights, in half precision: the same on every device, in float32 and float16."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                sample = sampled(tensor, FINGERPRINT_SAMPLES)[:FINGERPRINT_SAMPLES]
                digest.update(sample.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def sampled(weight: Tensor, count: int) -> Tensor:
    """About so many values of a weight, evenly spaced, with no gradient.

    Through its data: of a weight made in inference mode and moved outside it PyTorch refuses views.
    """
    return weight.data.flatten()[:: max(1, weight.numel() // count)]


class DiffusionModel(Protocol):
    """A latent diffusion model with its autoencoder, text encoder and image encoder.

    Images are (B,3,H,W) float32 RGB in [0,1]. Latents are (B,C,h,w) float32 in the units of the network
    (the autoencoder's latent times its scaling factor). ``conditioning`` is the backend's own type, as returned
    by :meth:`text_conditioning`.
    """

    @property
    def noise_levels(self) -> Levels: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def downscale(self) -> int:
        """Pixels per latent element along each side."""
        ...

    @property
    def spoilt(self) -> str | None:
        """The words for spoilt pictures, away from which guided sampling goes, see :mod:`.sharpening`; None for none."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        """Predicted clean latent z0 (B,C,h,w) for x (B,C,h,w) at noise level sigma (0-d tensor); no gradients."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Latent of images; sides must be multiples of ``downscale``."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0,1] of latents; no gradients."""
        ...

    def differentiable_decoder(self) -> Callable[[Tensor], Tensor]:
        """A function like :meth:`decode` through which autograd reaches the latents."""
        ...

    def text_conditioning(self, prompt: str, pseudo_words: Tensor | None = None) -> Any:
        """Conditioning of a prompt; each ``*`` token is replaced by the next row of pseudo_words (n, D).

        Raises DiffPrivacyError when the prompt's placeholders and the pseudo-words differ in number.
        """
        ...

    def image_features(self, images: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Hidden states of the image encoder at ``levels`` (0 is the embedding output), each (B,N,D)."""
        ...

    @property
    def text_encoder_identity(self) -> EncoderIdentity: ...

    @property
    def image_encoder_identity(self) -> EncoderIdentity: ...

    def word_embedding(self, word: str) -> Tensor:
        """Token embedding (D,) of a word, the mean of its tokens' if there are several."""
        ...

    def differentiable_text_encoder(self) -> DifferentiableTextEncoder:
        """The text encoder with frozen weights, for training pseudo-words."""
        ...

    def differentiable_denoiser(self, checkpointing: bool = False) -> DifferentiableDenoiser:
        """The denoiser with frozen weights, for training what conditions it.

        checkpointing: activations are computed again in the backward pass, which saves memory and costs time.
        """
        ...
