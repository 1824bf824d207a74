"""Train UNet, text encoder and image encoder together: ``python -m training.unet DATA.tar OUT …``.

The UNet predicts the noise in the autoencoder's latents. Its captions hold a pseudo-word made of the image encoder's
features, as MSI will make it: a scale for each pair of time stages, a learned factor for each stage. Some captions are
empty, so that the empty prompt draws anyone, and some are words alone. The image encoder also learns to foretell the
teacher's identity vector and the coarse latent, and the conditioning the coarse latent, which gives both meaning long
before the diffusion loss would.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffprivacy.backends.tokenizer import PLACEHOLDER_TOKEN, tokenize
from diffprivacy.demo.load import WEIGHTS, load_autoencoder
from diffprivacy.demo.text import CompactEmbedding
from diffprivacy.diffusion.model import NoiseLevels

from .data import Augmenter, arcface_crop, in_colour, read_portraits, split
from .loop import autocast, channels_last, checkpoint_weights, parser, run_of, shipped_weights, train
from .teacher import Teacher

CONFIGS = WEIGHTS.parent / "configs"
LEVELS = (1, 2, 3, 4, 6)
STAGES = 10
COARSE = 4
"""Side of the pooled latent that the image encoder foretells."""
WORD_NORM = 0.3
"""Length of a token embedding drawn with deviation 0.02 in 256 dimensions; pseudo-words get the same."""

TEMPLATES = (
    "a photo of *",
    "a photo of a *",
    "a portrait of *",
    "a picture of *",
    "a rendering of *",
    "a good photo of *",
    "a close-up photo of *",
    "the face of *",
    "*",
)
COLOUR_WORDS = ("", "color ", "colour ")
GREY_WORDS = ("black and white ", "grey ", "monochrome ")
SUBJECTS = ("a person", "someone", "a face", "a man or a woman")


def captions(template: str, words: tuple[str, ...]) -> list[str]:
    """A template with an adjective before its noun."""
    return [
        template.replace("photo", f"{word}photo").replace("portrait", f"{word}portrait").replace("picture", f"{word}picture")
        for word in words
    ]  # fmt: skip


class CaptionTable:
    """All captions as token ids, in the order (subject or pseudo-word, colour or grey)."""

    def __init__(self, device: torch.device):
        def table(texts: list[str]) -> Tensor:
            return torch.tensor([tokenize(text) for text in texts], device=device)

        self.empty = table([""])[0]
        self.image = {
            colour: table([c for t in TEMPLATES for c in captions(t, COLOUR_WORDS if colour else GREY_WORDS)])
            for colour in (True, False)
        }
        nouns = [t for t in TEMPLATES[:1] + TEMPLATES[2:7]]
        self.words = {
            colour: table(
                [c.replace("*", s) for t in nouns for c in captions(t, COLOUR_WORDS if colour else GREY_WORDS)
                 for s in SUBJECTS]
            )
            for colour in (True, False)
        }  # fmt: skip
        spoilt = table(["blurred", "deformed"])  # Of training.unet_only.
        everything = [self.empty[None], *self.image.values(), *self.words.values(), spoilt]
        self.token_ids = sorted(set(torch.cat(everything).flatten().tolist()))

    def draw(self, colour: Tensor, empty: float, words: float, generator: torch.Generator) -> Tensor:
        """Token ids (B,77) for pictures that are in colour or not, (B,) bool."""
        kind, place = torch.rand(2, len(colour), generator=generator, device=colour.device)
        drawn = self.empty.expand(len(colour), -1)
        for is_colour in (True, False):
            for source, chosen in ((self.words, kind < empty + words), (self.image, kind >= empty + words)):
                table = source[is_colour]
                here = chosen & (kind >= empty) & (colour == is_colour)
                drawn = torch.where(here[:, None], table[(place * len(table)).long()], drawn)
        return drawn


class PseudoWord(nn.Module):
    """Image features to one word for each picture and time step: pooled, projected, scaled by the time stage."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(features, width, bias=False) for _ in LEVELS)
        self.stages = nn.Parameter(torch.ones(STAGES, width))

    def forward(self, hidden: list[Tensor], timesteps: Tensor) -> Tensor:
        """Words (B,D) from five hidden states, each (B,N,F), at timesteps (B,)."""
        stage = timesteps * STAGES // 1000
        words = [p(h.mean(1)) for p, h in zip(self.projections, hidden, strict=True)]
        words = torch.stack([F.normalize(w.float(), dim=1) for w in words], 1)
        return WORD_NORM * words[torch.arange(len(stage)), stage // 2] * self.stages[stage]


class Model(nn.Module):
    """Everything that learns from the diffusion loss."""

    def __init__(self, token_ids: list[int], identity_width: int, coarse_width: int):
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.unet = UNet2DConditionModel(**json.loads((CONFIGS / "unet.json").read_text()))
        text = json.loads((CONFIGS / "text_encoder.json").read_text())
        self.text = CLIPTextModel(CLIPTextConfig(**text))
        self.text.set_input_embeddings(CompactEmbedding(token_ids, text["hidden_size"], PLACEHOLDER_TOKEN))
        vision = json.loads((CONFIGS / "image_encoder.json").read_text())
        self.vision = CLIPVisionModel(CLIPVisionConfig(**vision))
        self.register_buffer("mean", torch.tensor(vision["image_mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(vision["image_std"]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.deviation: Tensor
        self.word = PseudoWord(vision["hidden_size"], text["hidden_size"])
        self.identity_head = nn.Linear(vision["hidden_size"], identity_width)
        self.coarse_head = nn.Linear(vision["hidden_size"], coarse_width)
        self.context_head = nn.Linear(text["hidden_size"], coarse_width)

    def contexts(self, token_ids: Tensor, words: Tensor | None) -> Tensor:
        """Conditioning (B,77,D) of token ids (B,77) whose placeholder stands for words (B,D)."""
        embedding = self.text.get_input_embeddings()
        assert isinstance(embedding, CompactEmbedding)
        embedding.pseudo_words = words
        return self.text(input_ids=token_ids).last_hidden_state

    def features(self, images: Tensor) -> list[Tensor]:
        """Hidden states of images (B,3,128,128) in [0,1] at the five levels, each (B,65,F)."""
        hidden = self.vision(
            pixel_values=(images - self.mean) / self.deviation, output_hidden_states=True
        ).hidden_states
        return [hidden[level] for level in LEVELS]


def _options() -> argparse.Namespace:
    arguments = parser("Train the demo model's UNet, text and image encoder.", steps=120_000, batch=32, lr=8e-4)
    arguments.add_argument("--autoencoder", type=Path, help="run folder of the autoencoder; default: the shipped one")
    arguments.add_argument("--draws", type=int, default=2, help="time steps drawn for each picture of a batch")
    arguments.add_argument("--empty", type=float, default=0.15, help="share of empty prompts")
    arguments.add_argument("--words", type=float, default=0.10, help="share of prompts without a pseudo-word")
    return arguments.parse_args()


def main() -> None:
    options = _options()
    run = run_of(options)
    device = run.device
    autoencoder = load_autoencoder()
    if options.autoencoder:
        autoencoder.load_state_dict(checkpoint_weights(options.autoencoder))
    autoencoder = channels_last(autoencoder, device).requires_grad_(False)
    teacher = Teacher(device)
    training = split(read_portraits(options.data))[0].to(device)
    colours = torch.cat([in_colour(chunk / 255) for chunk in training.split(512)])
    identities = torch.cat([teacher(arcface_crop(chunk / 255)) for chunk in training.split(64)])
    tables = CaptionTable(device)
    latent_width = json.loads((CONFIGS / "unet.json").read_text())["in_channels"]
    model = Model(tables.token_ids, identities.shape[1], latent_width * COARSE**2).to(device)
    if options.shipped:
        for module, part in ((model.unet, "unet"), (model.text, "text_encoder"), (model.vision, "image_encoder")):
            module.load_state_dict(shipped_weights(part))
    if device.type == "cuda":  # On CPUs the backward pass of torch 2.11's channels-last GroupNorm crashes.
        channels_last(model.unet, device)
    sigmas = NoiseLevels.scaled_linear().sigmas.to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(training), (run.batch // options.draws,), generator=generator, device=device)
        images, colour = Augmenter(generator)(training[chosen] / 255, colours[chosen])
        timesteps = torch.randint(len(sigmas), (run.batch,), generator=generator, device=device)
        token_ids = tables.draw(colour.repeat(options.draws), options.empty, options.words, generator)
        sigma = sigmas[timesteps].view(-1, 1, 1, 1)
        with autocast(device):
            with torch.no_grad():
                clean = autoencoder.encode(images * 2 - 1).float().contiguous()
            hidden = model.features(images)
            pooled = hidden[-1].mean(1)
            foretold = F.normalize(model.identity_head(pooled).float(), dim=1)
            coarse = F.adaptive_avg_pool2d(clean, COARSE).flatten(1)
            coarse_error = (model.coarse_head(pooled) - coarse).square().mean()
            words = model.word([h.repeat(options.draws, 1, 1) for h in hidden], timesteps)
            contexts = model.contexts(token_ids, words)
            worded = (token_ids == PLACEHOLDER_TOKEN).any(1)
            context_errors = (model.context_head(contexts.mean(1)) - coarse.repeat(options.draws, 1)).square().mean(1)
            context_error = (worded * context_errors).mean()
            repeated = clean.repeat(options.draws, 1, 1, 1)
            noise = torch.randn(repeated.shape, generator=generator, device=device)
            noisy = (repeated + sigma * noise) / (1 + sigma**2).sqrt()
            predicted = model.unet(noisy, timesteps, contexts).sample
        # Min-SNR weighting (arXiv 2303.09556) for noise prediction, min(SNR, 5) / SNR, leaning toward the large sigmas,
        # where a face's layout is decided and the prompt has something to say.
        weight = (5 * sigma.flatten() ** 2).clamp(max=1) * (1 + sigma.flatten() ** 2).sqrt().clamp(max=4)
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        cosine = (foretold * identities[chosen]).sum(1).mean()
        total = (weight * errors).mean() + 0.05 * (1 - cosine + coarse_error + context_error)
        parts = {"weighted": (weight * errors).mean(), "eps": errors.mean(), "cosine": cosine}
        parts |= {"coarse": coarse_error, "context": context_error}
        return total, {name: part.item() for name, part in parts.items()}

    train(model, loss, run)


if __name__ == "__main__":
    main()
