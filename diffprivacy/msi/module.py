"""MSI, multi-scale image inversion: a face becomes one pseudo-word for each time stage (arXiv 2309.05330).

Early layers of an image encoder see fine detail, late ones coarse structure; so do small and large time steps. Five
levels of the encoder therefore feed ten stages. :data:`PAPER` is the published module; :data:`DEFAULT` starts at an
ordinary word and leaves out what has no effect.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.conditioning import STAGES
from ..diffusion.model import DiffusionModel, EncoderIdentity
from ..errors import DiffPrivacyError

FORMAT = "diffprivacy-msi"
VERSION = 1
PAPER_LEVELS = (3, 7, 11, 15, 24)
PAPER_DEPTH = 24
MAX_WIDTH = 8192
"""Largest width of an encoder that a file is read for; SDXL's text encoders have 768 and 1280."""
WORD = "face"
CHUNK = 16


def relative_levels(depth: int) -> tuple[int, ...]:
    """The five levels of an image encoder of ``depth`` layers at the relative depth of 3, 7, 11, 15 and 24 of 24."""
    return tuple(max(1, round(level * depth / PAPER_DEPTH)) for level in PAPER_LEVELS)


def scale_of(stage: int, stages: int = STAGES) -> int:
    """Which of the five levels a stage reads: that at the stage's middle, stage // 2 for ten stages."""
    return (2 * stage + 1) * len(PAPER_LEVELS) // (2 * stages)


@dataclass(frozen=True)
class MSIConfig:
    """What an MSI module is made of, besides the widths of its encoders.

    heads, head_width: of its two attentions; with no heads there are none, as over a single token attention is linear
    and a linear layer follows it.
    anchored: the words start at the embedding of an ordinary word; scaled: and they keep its length.
    """

    stages: int = STAGES
    heads: int = 8
    head_width: int = 64
    dropout: float = 0.05
    anchored: bool = False
    scaled: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stages <= 1000 or self.heads < 0 or self.head_width < 1 or not 0 <= self.dropout < 1:
            raise DiffPrivacyError(f"An MSI of {self} is impossible: stages from 1 to 1000, dropout from 0 to below 1.")


PAPER = MSIConfig()
DEFAULT = MSIConfig(heads=0, anchored=True)


class Projector(nn.Module):
    """Pooled hidden states (B,F) to unit vectors (B,D)."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.linear1 = nn.Linear(features, width, bias=False)
        self.linear2 = nn.Linear(width, width, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.linear2(self.linear1(pooled)).float(), dim=-1)


class Attention(nn.Module):
    """Multi-head attention of x (B,N,D) against context (B,M,D)."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float):
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(context), self.value(context))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MSI(nn.Module):
    """Image features to pseudo-words, for one text encoder and one image encoder.

    word: (D,) token embedding that anchored words start at and that gives scaled words their length.
    """

    def __init__(
        self,
        text_encoder: EncoderIdentity,
        image_encoder: EncoderIdentity,
        config: MSIConfig = DEFAULT,
        word: Tensor | None = None,
    ):
        super().__init__()
        self.text_encoder, self.image_encoder, self.config = text_encoder, image_encoder, config
        self.levels = relative_levels(image_encoder.depth)
        width = sum(text_encoder.widths)
        self.projectors = nn.ModuleList(Projector(image_encoder.widths[0], width) for _ in self.levels)
        self.stages = nn.Parameter(torch.randn(config.stages, width))
        attention = (width, config.heads, config.head_width, config.dropout)
        self.attentions = nn.ModuleList(Attention(*attention) for _ in range(2 if config.heads else 0))
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(width, width)
        self.register_buffer("word", torch.zeros(width) if word is None else word.detach().float().clone())
        self.word: Tensor
        if config.anchored:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Pseudo-words (B,S,D) of :func:`image_scales` features (B,5,F)."""
        scales = torch.stack([project(features[:, i]) for i, project in enumerate(self.projectors)], dim=1)
        chosen = torch.tensor([scale_of(stage, self.config.stages) for stage in range(self.config.stages)])
        x = (scales[:, chosen] * self.stages).flatten(0, 1)[:, None]
        if self.config.heads:
            first, second = self.attentions
            x = second(first(x, x), x)
        words = self.out(self.dropout(x)).float().view(len(features), self.config.stages, -1)
        if self.config.anchored:  # In units of the word's own size, so that one learning rate serves all encoders.
            words = self.word + self.word.square().mean().sqrt() * words
        return self._rescaled(words) if self.config.scaled else words

    def _rescaled(self, words: Tensor) -> Tensor:
        """Words of the length of ``word``, for each text encoder's part on its own."""
        widths = list(self.text_encoder.widths)
        parts = zip(words.split(widths, dim=-1), self.word.split(widths), strict=True)
        return torch.cat([F.normalize(part, dim=-1) * word.norm() for part, word in parts], dim=-1)

    def check(self, diffusion_model: DiffusionModel) -> None:
        """Raise DiffPrivacyError unless the diffusion model has the encoders that this module was trained with."""
        for what, trained, loaded in (
            ("text encoder", self.text_encoder, diffusion_model.text_encoder_identity),
            ("CLIP vision model", self.image_encoder, diffusion_model.image_encoder_identity),
        ):
            if trained != loaded:
                raise DiffPrivacyError(
                    f"This MSI was trained with another {what}: with {trained}, but {loaded} is loaded. "
                    f"Load that {what}, or train an MSI for this one."
                )

    @torch.no_grad()
    def words(self, diffusion_model: DiffusionModel, images: Tensor) -> Tensor:
        """Pseudo-words (B,S,D) of images (B,3,H,W) in [0,1], on the CPU; raises as :meth:`check`."""
        self.check(diffusion_model)
        features = image_scales(diffusion_model, images, self.levels)
        return self.eval()(features.to(self.word.device)).cpu()


def new_msi(diffusion_model: DiffusionModel, config: MSIConfig = DEFAULT, seed: int = 0, word: str = WORD) -> MSI:
    """An untrained module for the diffusion model's encoders, started at ``word``; deterministic for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MSI(
            diffusion_model.text_encoder_identity,
            diffusion_model.image_encoder_identity,
            config,
            diffusion_model.word_embedding(word).cpu(),
        )


@torch.no_grad()
def image_scales(diffusion_model: DiffusionModel, images: Tensor, levels: Iterable[int]) -> Tensor:
    """Mean over the tokens of the image encoder's hidden states at ``levels``: (B,5,F) float32."""
    levels = list(levels)
    chunks = [diffusion_model.image_features(chunk, levels) for chunk in images.split(CHUNK)]
    return torch.cat([torch.stack([h.float().mean(1) for h in hidden], dim=1) for hidden in chunks])


def save_msi(msi: MSI, path: Path, half: bool = False) -> None:
    """Write a module as safetensors with its configuration in the metadata; the file appears only when complete."""
    tensors = {name: (t.half() if half else t).detach().cpu().contiguous() for name, t in msi.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(dataclasses.asdict(msi.config)),
        "text_encoder": json.dumps(dataclasses.asdict(msi.text_encoder)),
        "image_encoder": json.dumps(dataclasses.asdict(msi.image_encoder)),
    }
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata)
    except OSError as error:
        raise DiffPrivacyError(f"{path} cannot be written ({error}); choose another place.") from error
    os.replace(temporary, path)


def load_msi(path: Path) -> MSI:
    """The module of a file that :func:`save_msi` wrote, on the CPU.

    Raises DiffPrivacyError that names the file when it is missing, no MSI, of a newer version or incomplete.
    """
    try:
        with safe_open(path, "pt") as file:
            msi = _empty(path, file.metadata() or {})
            wanted = {name: list(tensor.shape) for name, tensor in msi.state_dict().items()}
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            if wrong := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
                raise DiffPrivacyError(
                    f"MSI file {path} is damaged: not of the shape that it states are {', '.join(wrong)[:1000]}."
                )
            tensors = {name: file.get_tensor(name).float() for name in wanted}
    except FileNotFoundError:
        raise DiffPrivacyError(f"MSI file {path} does not exist; train one with `diffprivacy train-msi`.") from None
    except (SafetensorError, OSError) as error:
        raise DiffPrivacyError(f"MSI file {path} is not a readable safetensors file ({error}).") from error
    msi.load_state_dict(tensors, assign=True)
    return msi.eval().requires_grad_(False)


def _empty(path: Path, metadata: Mapping[str, str]) -> MSI:
    """The module that a file's metadata describe, without memory for its tensors; raises as :func:`load_msi`."""
    if metadata.get("format") != FORMAT:
        raise DiffPrivacyError(f"{path} is no MSI file; give one that `train-msi` or Save MSI wrote.")
    if metadata.get("version") != str(VERSION):
        raise DiffPrivacyError(
            f"MSI file {path} has version {metadata.get('version')}, this pack reads {VERSION}; update the pack."
        )
    try:
        identities = [EncoderIdentity(**json.loads(metadata[key])) for key in ("text_encoder", "image_encoder")]
        text, image = (dataclasses.replace(identity, widths=tuple(identity.widths)) for identity in identities)
        widths = [*text.widths, *image.widths]
        if not all(isinstance(width, int) and 0 < width <= MAX_WIDTH for width in widths):
            raise DiffPrivacyError(f"MSI file {path} is for encoders of widths {widths[:4]}; {MAX_WIDTH} is the most.")
        with torch.device("meta"):
            return MSI(text, image, MSIConfig(**json.loads(metadata["config"])))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, RecursionError) as error:
        raise DiffPrivacyError(f"MSI file {path} is damaged: {error}") from error


def textual_inversions(words: Tensor, text_encoder: EncoderIdentity) -> list[dict[str, Tensor]]:
    """Pseudo-words (S,D) as the contents of ordinary textual-inversion files, one for each stage.

    Each is {"clip_l": (1,768)} for SD 1.x, {"clip_h": (1,1024)} for SD 2.x, "clip_l" and "clip_g" for SDXL.
    """
    widths = list(text_encoder.widths)
    names = ["clip_l", "clip_g"] if len(widths) == 2 else ["clip_h" if widths == [1024] else "clip_l"]
    return [
        {name: part.contiguous() for name, part in zip(names, word[None].float().split(widths, dim=-1), strict=True)}
        for word in words
    ]
