"""Train the UNet alone, on a graphics card in minutes: ``python -m training.unet_only PORTRAITS.tar OUT``.

All encoders and the MSI stay as shipped, so what is shipped beside the UNet stays valid. Views are encoded all the time and
replace the oldest of a store. Spoilt views say so in their caption, blurred or deformed, so that a negative prompt leads
away from them. Muon moves matrices and convolutions, AdamW the rest; averages over about the last 5
and 10 % of the run are kept (arXiv 2312.02696), and held-out portraits tell which is best.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.backends.tokenizer import PLACEHOLDER_TOKEN, tokenize
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.demo.load import config, load_msi, load_unet
from diffprivacy.demo.text import CompactEmbedding
from diffprivacy.diffusion.model import DiffusionModel, NoiseLevels
from diffprivacy.msi.module import MSI, image_scales

from .data import in_colour, read_portraits, split
from .loop import autocast, channels_last, shipped_weights
from .muon import Muon
from .unet import STAGES, CaptionTable
from .views import BLURRED, IS_DEFORMED, Views

TRAINING_STEPS = 1000
DETAIL = (40, 450)
"""Time steps that decide the eyes; a share of the draws is theirs alone."""
AVERAGES = {"ema05": 17.0, "ema10": 6.94}
"""Exponents of the power-function averages over about the last 5 and 10 % of the steps."""
MEASURED = (50, 100, 200, 300, 450, 600, 850)
SPOILT_WORDS = {BLURRED: ("blurred",), IS_DEFORMED: ("deformed",), 3: ("blurred, deformed", "deformed, blurred")}
State = dict[str, Tensor]


class Captions:
    """Captions as training.unet draws them, and those of spoilt views, encoded by the frozen text encoder."""

    def __init__(self, device: torch.device, empty: float, words: float):
        self.device, self.empty, self.words = device, empty, words
        self.table = CaptionTable(device)
        self.spoilt = {
            wrong: torch.tensor([tokenize(text) for word in of for text in _spoilt_texts(word)], device=device)
            for wrong, of in SPOILT_WORDS.items()
        }
        self.encoder, self.embedding = frozen_text_encoder(device)

    @torch.no_grad()
    def draw(self, colour: Tensor, words: Tensor, wrong: Tensor, generator: torch.Generator) -> Tensor:
        """Contexts (B,77,D) of views, with the pseudo-words (B,D) of their time steps."""
        token_ids = self.table.draw(colour, self.empty, self.words, generator)
        place = torch.rand(len(colour), generator=generator, device=self.device)
        for bits, table in self.spoilt.items():
            token_ids = torch.where((wrong == bits)[:, None], table[(place * len(table)).long()], token_ids)
        self.embedding.pseudo_words = words.float()
        return self.encoder(input_ids=token_ids).last_hidden_state


def _spoilt_texts(word: str) -> list[str]:
    return [word, word, f"a {word} photo", f"a {word} photo of a person", f"a {word} face", f"a {word} photo of *"]


def frozen_text_encoder(device: torch.device) -> tuple[CLIPTextModel, CompactEmbedding]:
    """The shipped text encoder, and its table, which takes pseudo-words."""
    shipped = shipped_weights("text_encoder")
    encoder = CLIPTextModel(CLIPTextConfig(**config("text_encoder")))
    known = shipped["embeddings.token_embedding.token_ids"].tolist()
    embedding = CompactEmbedding(known, encoder.config.hidden_size, PLACEHOLDER_TOKEN)
    encoder.set_input_embeddings(embedding)
    encoder.load_state_dict(shipped)
    nn.Module.to(encoder, device)
    return encoder.eval().requires_grad_(False), embedding


def pseudo_words(msi: MSI, model: DiffusionModel, images: Tensor) -> Tensor:
    """Pseudo-words (B,10,D) of images (B,3,128,128) in [0,1], on their device."""
    return msi(image_scales(model, images, msi.levels))


class Store:
    """Encoded views on the device; every batch replaces some of the oldest."""

    def __init__(self, views: Views, model: DiffusersModel, size: int, fresh: int, chunk: int = 256):
        self.views, self.model, self.fresh = views, model, fresh
        self.msi = load_msi().to(views.portraits.device).eval()
        parts = [self._encoded(chunk) for _ in range(math.ceil(size / chunk))]
        self.parts = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        self.oldest = 0

    @torch.no_grad()
    def _encoded(self, count: int) -> tuple[Tensor, ...]:
        images, colour, wrong = self.views.draw(count)
        words = pseudo_words(self.msi, self.model, images)
        return self.model.encode(images).half(), words.half(), colour, wrong

    def batch(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Latents (B,16,16,16), pseudo-words (B,10,D), in colour (B,), what is wrong (B,)."""
        places = (self.oldest + torch.arange(self.fresh, device=generator.device)) % len(self.parts[0])
        for kept, new in zip(self.parts, self._encoded(self.fresh), strict=True):
            kept[places] = new
        self.oldest += self.fresh
        chosen = torch.randint(len(self.parts[0]), (count,), generator=generator, device=generator.device)
        return [part[chosen] for part in self.parts]


def draw_timesteps(count: int, detail: float, generator: torch.Generator) -> Tensor:
    """Time steps (count,), evenly spread over [0,1000) but for the share ``detail`` that is spread over DETAIL."""
    device = generator.device
    places = (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / count
    low, high = DETAIL
    early = low + (high - low) * places / max(detail, 1e-9)
    return torch.where(places < detail, early, (places - detail) / (1 - detail) * TRAINING_STEPS).long().clamp(max=999)


def predicted_error(
    unet: nn.Module, clean: Tensor, timesteps: Tensor, contexts: Tensor, noise: Tensor, sigmas: Tensor
) -> Tensor:
    """Mean squared error (B,) of the predicted noise."""
    sigma = sigmas[timesteps].view(-1, 1, 1, 1)
    noisy = (clean + sigma * noise) / (1 + sigma**2).sqrt()
    predicted = unet(noisy, timesteps, contexts, return_dict=False)[0]
    return (predicted.float() - noise).square().mean((1, 2, 3))


class HeldOut:
    """Pictures (N,3,128,128) in [0,1] with fixed noise: how much of it a UNet leaves, some under the empty prompt."""

    def __init__(self, images: Tensor, model: DiffusersModel, captions: Captions):
        with torch.no_grad():
            self.clean = model.encode(images)
            self.words = pseudo_words(load_msi().to(images.device).eval(), model, images)
        self.colour, self.captions = in_colour(images), captions
        self.sigmas = model.noise_levels.sigmas.to(images.device)

    @torch.no_grad()
    def noise_left(self, unet: nn.Module) -> dict[int, float]:
        left, device = {}, self.clean.device
        for timestep in MEASURED:
            generator = torch.Generator(device).manual_seed(timestep)
            words = self.words[:, timestep * STAGES // TRAINING_STEPS]
            contexts = self.captions.draw(
                self.colour, words, torch.zeros_like(self.colour, dtype=torch.long), generator
            )
            noise = torch.randn(self.clean.shape, generator=generator, device=device)
            timesteps = torch.full((len(noise),), timestep, device=device)
            with autocast(device):
                left[timestep] = float(
                    predicted_error(unet, self.clean, timesteps, contexts, noise, self.sigmas).mean()
                )
        return left


class Trainer:
    """The UNet, its optimizers and its averages."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        unet = load_unet().train().requires_grad_(True)
        nn.Module.to(unet, device)
        self.unet: nn.Module = channels_last(unet, device) if device.type == "cuda" else unet
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D):
                module.dropout.p = options.dropout
        self.named = dict(self.unet.named_parameters())
        matrices = [n for n, p in self.named.items() if p.ndim > 1 and not n.startswith(("conv_in.", "conv_out."))]
        rest = [p for n, p in self.named.items() if n not in matrices]
        self.rest, decay = rest, options.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, options.lr, betas=(0.9, 0.99), weight_decay=decay, fused=True),
            Muon([self.named[n] for n in matrices], options.lr, weight_decay=decay),
        ]
        self.averages = {kind: [p.detach().clone() for p in self.named.values()] for kind in AVERAGES}
        self.step = 0

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """One step of the optimizers along the gradients, and of the averages."""
        nn.utils.clip_grad_norm_(self.rest, 1.0, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        for kind, exponent in AVERAGES.items():
            torch._foreach_lerp_(
                self.averages[kind], list(self.named.values()), min(1.0, (exponent + 1) / (self.step + exponent))
            )

    def weights(self) -> dict[str, State]:
        """The raw weights and every average."""
        return {
            kind: dict(zip(self.named, [t.detach() for t in tensors], strict=True))
            for kind, tensors in {"raw": list(self.named.values()), **self.averages}.items()
        }


class Log:
    """Lines with the seconds since the beginning, printed and kept."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.started = folder / "log.txt", time.time()

    def __call__(self, line: str) -> None:
        line = f"{time.time() - self.started:.0f} s {line}"
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


class Judge:
    """Measures a trainer's weights on held-out pictures, and keeps the best as unet.safetensors."""

    def __init__(self, trainer: Trainer, held_out: dict[str, HeldOut], out: Path, log: Log):
        self.trainer, self.held_out, self.out, self.log = trainer, held_out, out, log
        self.unet = copy.deepcopy(trainer.unet).eval()
        self.best = math.inf

    def measure(self, *kinds: str) -> None:
        """Log the noise left, and write each kind's weights in half precision."""
        for kind in kinds:
            weights, score = self.trainer.weights()[kind], 0.0
            self.unet.load_state_dict(weights)
            for name, pictures in self.held_out.items():
                left = pictures.noise_left(self.unet)
                score += sum(map(math.log, left.values()))
                numbers = " ".join(f"{timestep}: {value:.4f}" for timestep, value in left.items())
                self.log(f"step {self.trainer.step} {kind} {name} {numbers}")
            halves = {n: t.half().contiguous().cpu() for n, t in weights.items()}
            save_file(halves, self.out / f"{kind}.safetensors")
            if score < self.best:
                self.best = score
                save_file(halves, self.out / "unet.safetensors")


def losses(
    trainer: Trainer, store: Store, captions: Captions, options: argparse.Namespace, unet: nn.Module
) -> Iterator[Tensor]:
    """The loss of one batch after another, its gradients computed."""
    device = store.views.portraits.device
    generator = torch.Generator(device).manual_seed(options.seed)
    sigmas = NoiseLevels.scaled_linear().sigmas.to(device)
    while True:
        clean, words, colour, wrong = store.batch(options.batch, generator)
        timesteps = draw_timesteps(options.batch, options.detail, generator)
        words = words[torch.arange(len(clean), device=device), timesteps * STAGES // TRAINING_STEPS]
        noise = torch.randn(clean.shape, generator=generator, device=device)
        # Errors fall about as this power rises, so that every noise level has the same say.
        weight = (1 + sigmas[timesteps] ** 2) ** 0.8
        with autocast(device):
            contexts = captions.draw(colour, words, wrong, generator)
            loss = (weight * predicted_error(unet, clean.float(), timesteps, contexts, noise, sigmas)).mean()
        loss.backward()
        yield loss.detach()


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description="Train the demo model's UNet alone.")
    arguments.add_argument("data", type=Path, help="tar of 128x128 portraits")
    arguments.add_argument("out", type=Path, help="folder for the weights and the log")
    arguments.add_argument(
        "--seconds", type=float, default=480, help="length of the run, what is made before it included"
    )
    arguments.add_argument("--batch", type=int, default=1024)
    arguments.add_argument("--lr", type=float, default=1e-3)
    arguments.add_argument("--weight-decay", type=float, default=0.05)
    arguments.add_argument("--dropout", type=float, default=0.05)
    arguments.add_argument("--warmup", type=int, default=200)
    arguments.add_argument("--steady", type=float, default=0.4, help="share of the run before the learning rate falls")
    arguments.add_argument("--store", type=int, default=65536, help="views kept")
    arguments.add_argument("--fresh", type=int, default=64, help="views made for each batch")
    arguments.add_argument("--empty", type=float, default=0.2, help="share of empty prompts")
    arguments.add_argument("--words", type=float, default=0.1, help="share of prompts without a pseudo-word")
    arguments.add_argument("--detail", type=float, default=0.35, help=f"share of draws from the time steps {DETAIL}")
    arguments.add_argument("--others", type=Path, help="safetensors with uint8 pictures (N,3,128,128) to measure, too")
    arguments.add_argument("--evaluate-seconds", type=float, default=60)
    arguments.add_argument("--compile", action="store_true", help="torch.compile the network")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return arguments.parse_args()


def main() -> None:
    options, started = _options(), time.time()
    log = Log(options.out)
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    model = load_diffusion_model().to(device)
    captions = Captions(device, options.empty, options.words)
    training, held_out = (part.to(device) for part in split(read_portraits(options.data)))
    judged = {"portraits": HeldOut(held_out / 255, model, captions)}
    if options.others:
        judged["others"] = HeldOut(load_file(options.others)["images"].to(device) / 255, model, captions)
    trainer = Trainer(options, device)
    judge = Judge(trainer, judged, options.out, log)
    judge.measure("raw")
    views = Views(training, torch.Generator(device).manual_seed(options.seed + 1))
    store = Store(views, model, options.store, options.fresh)
    log(f"{len(store.parts[0])} views")
    unet: Any = torch.compile(trainer.unet) if options.compile else trainer.unet
    total, logged, since, marked = torch.zeros((), device=device), 0, time.time(), time.time()
    for loss in losses(trainer, store, captions, options, unet):
        progress = (time.time() - started) / options.seconds
        if progress >= 1:
            break
        lr = options.lr * min((trainer.step + 1) / options.warmup, 1.0, (1 - progress) / (1 - options.steady))
        trainer.update(lr)
        total += loss
        if trainer.step % 100 == 0:
            mean, now = float(total) / (trainer.step - logged), time.time()
            speed = (trainer.step - logged) * options.batch / (now - since)
            log(f"step {trainer.step} {speed:.0f} pictures/s lr {lr:.1e} loss {mean:.4f}")
            total.zero_()
            logged, since = trainer.step, now
        if time.time() - marked > options.evaluate_seconds:
            judge.measure("ema10")
            marked = since = time.time()
    judge.measure("raw", *AVERAGES)
    log(f"finished: {trainer.step * options.batch} pictures in {trainer.step} steps")


if __name__ == "__main__":
    main()
