"""MSI training against the released recipe, what ten stages give, what pretraining gives, and what each choice gives;
prints four tables.

    DIFFPRIVACY_DATA=... python -m benchmarks.msi                    # the demo model on CelebA-HQ faces
    python -m benchmarks.msi --full-size --device cuda               # time and peak memory at SD 1.5's size, seeded weights
    python -m benchmarks.msi --full-size --footprint                 # bytes of its tensors, with nothing computed

The released recipe (arXiv 2309.05330): the paper's module, one time step at a time, learning rate 1e-4, and latent,
image features and text computed again at every step, 6100 times. All are judged on the same fixed time steps and noise;
judging is not counted. The clock on the wall counts: run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersAutoencoder, DiffusersModel
from diffprivacy.backends.tokenizer import END_TOKEN
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.conditioning import TRAINING_STEPS
from diffprivacy.diffusion.model import EncoderIdentity, NoiseLevels
from diffprivacy.msi.module import DEFAULT, MSI, PAPER, MSIConfig, image_scales, new_msi
from diffprivacy.msi.training import PROMPTS, Progress, Settings, Training
from diffprivacy.msi.training_data import prepare
from testing.fixed_prompts import FIXED, fixed_prompt, photo
from testing.footprint import Footprint, cuda_autocast, without_data

OURS = Settings(patience=0)
LONG = 300
"""Steps of ours beside the recipe's 6100."""
JUDGED = Settings(validation=600, seed=1)
"""The time steps and noise by which the first table compares, on which no run is trained."""


History = list[tuple[int, float, float]]
"""(step, seconds, validation loss)."""


class Race:
    """Runs on one image, all judged alike."""

    def __init__(self, diffusion_model: DiffusersModel, image: Tensor) -> None:
        self.diffusion_model = diffusion_model
        began = time.monotonic()
        self.data = prepare(diffusion_model, image)
        self.constants = time.monotonic() - began
        self.judge = Training(
            new_msi(diffusion_model), diffusion_model, self.data, JUDGED, device=diffusion_model.device
        )

    def ours(self, name: str, config: MSIConfig, seed: int, judged: Container[int], **changes: Any) -> History:
        """A run of our training under changed settings, and what it is at some of its steps."""
        # No validation of its own, which the judge's replaces.
        settings = dataclasses.replace(OURS, validate_every=10**6, validation=1, seed=seed, **changes)
        msi = new_msi(self.diffusion_model, config, seed)
        training = Training(msi, self.diffusion_model, self.data, settings, device=self.diffusion_model.device)
        history = [(n, self.constants + seconds, loss) for n, seconds, loss in followed(training, self.judge, judged)]
        print(f"  {name}, seed {seed}: {min(loss for _, _, loss in history):.5f}", flush=True)
        return history


def released(diffusion_model: DiffusersModel, image: Tensor, judge: Training, steps: int, every: int) -> History:
    """The course of the released recipe."""
    msi = new_msi(diffusion_model, PAPER).to(diffusion_model.device).requires_grad_(True)
    optimizer = torch.optim.AdamW(msi.parameters(), lr=1e-4)
    encode_text, denoise = diffusion_model.differentiable_text_encoder(), diffusion_model.differentiable_denoiser()
    sigmas = diffusion_model.noise_levels.sigmas.to(diffusion_model.device)
    generator = torch.Generator().manual_seed(0)
    history, seconds = [(0, 0.0, judge.validation_loss(msi.eval())[0])], 0.0
    for step in range(1, steps + 1):
        began = time.monotonic()
        view = image if torch.rand((), generator=generator) < 0.5 else image.flip(-1)
        latent = diffusion_model.encode(view)
        features = image_scales(diffusion_model, view, msi.levels).to(latent)
        t = int(torch.randint(TRAINING_STEPS, (1,), generator=generator))
        prompt = PROMPTS[int(torch.randint(len(PROMPTS), (1,), generator=generator))]
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        word = msi.train()(features)[:, t * msi.config.stages // TRAINING_STEPS]
        denoised = denoise(latent + sigmas[t] * noise, sigmas[t : t + 1], encode_text(prompt, word))
        optimizer.zero_grad(set_to_none=True)
        ((denoised.float() - latent) / sigmas[t]).square().mean().backward()
        optimizer.step()
        seconds += time.monotonic() - began
        if step % every == 0:
            history.append((step, seconds, judge.validation_loss(msi.eval())[0]))
            print(f"  released {step} steps {seconds:.0f} s {history[-1][2]:.5f}", flush=True)
    return history


def followed(training: Training, judge: Training, judged: Container[int]) -> History:
    """The course of a training's average at some of its steps."""
    msi = copy.deepcopy(training.msi).eval()
    history: History = []
    seconds, began = 0.0, time.monotonic()

    def look(now: Progress | None) -> None:
        nonlocal seconds, began
        seconds += time.monotonic() - began
        if (step := now.step if now else 0) in judged:
            msi.load_state_dict(training.average)
            history.append((step, seconds, judge.validation_loss(msi)[0]))
        began = time.monotonic()

    look(None)
    training.run(look)
    return history


def reached(history: History, goal: float) -> tuple[int, float] | None:
    """(step, seconds) at which a run first had a validation loss of at most ``goal``."""
    return next(((step, seconds) for step, seconds, loss in history if loss <= goal), None)


def against_released(diffusion_model: DiffusersModel, image: Tensor, steps: int) -> None:
    race = Race(diffusion_model, image)
    runs = {
        f"{name}, seed {seed}": race.ours(name, config, seed, range(0, LONG + 1, 25), steps=LONG)
        for name, config in (("the paper's module, our training", PAPER), ("our module and training", DEFAULT))
        for seed in range(3)
    }
    recipe = released(diffusion_model, image, race.judge, steps, max(1, steps // 20))
    goals = sorted({recipe[i][2] for i in (2, 4, len(recipe) - 1) if i < len(recipe)}, reverse=True)
    goals.append(min(loss for _, _, loss in recipe))
    print(
        f"\n| validation loss reached | {' | '.join(f'{goal:.5f}' for goal in goals)} |\n"
        + "|---" * (1 + len(goals))
        + "|"
    )
    firsts = [reached(recipe, goal) for goal in goals]
    for name, history in ({"the released recipe": recipe} | runs).items():
        cells = []
        for goal, first in zip(goals, firsts, strict=True):
            hit = reached(history, goal)
            faster = f", {first[1] / hit[1]:.1f} times faster" if first and hit and history is not recipe else ""
            cells.append(f"{hit[0]} steps, {hit[1]:.1f} s{faster}" if hit else "never")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def ablations(diffusion_model: DiffusersModel, image: Tensor) -> None:
    race = Race(diffusion_model, image)
    variants: dict[str, tuple[MSIConfig, dict[str, Any]]] = {
        "ours": (DEFAULT, {}),
        "not whitened, lr 1e-2": (DEFAULT, {"whiten": False, "lr": 1e-2}),
        "not anchored, lr 3e-3": (dataclasses.replace(DEFAULT, anchored=False), {"lr": 3e-3}),
        "keeping a word's length, lr 1e-2": (dataclasses.replace(DEFAULT, scaled=True), {"lr": 1e-2}),
        "no average": (DEFAULT, {"ema": 0.0}),
        "four at a time": (DEFAULT, {"batch": 4}),
        "the paper's module": (PAPER, {}),
    }
    print("\n| run, three seeds | after 30 steps | after 100 |\n|---|---|---|")
    for name, (config, changes) in variants.items():
        seeds = [race.ours(name, config, seed, (30, 100), **changes) for seed in range(3)]
        losses = [" ".join(f"{loss:.5f}" for _, _, loss in row) for row in zip(*seeds, strict=True)]
        print(f"| {name} | {' | '.join(losses)} |", flush=True)


def stage_advantage(diffusion_model: DiffusersModel, images: dict[str, Tensor]) -> None:
    print("\n| face | best fixed prompt | one pseudo-word | ten |\n|---|---|---|---|")
    rows = []
    for name, image in images.items():
        data = prepare(diffusion_model, image, flips=False)
        settings = OURS
        ten = Training(
            new_msi(diffusion_model, DEFAULT), diffusion_model, data, settings, device=diffusion_model.device
        )
        one = dataclasses.replace(DEFAULT, stages=1)
        single = Training(new_msi(diffusion_model, one), diffusion_model, data, settings, device=diffusion_model.device)
        prompt = min(fixed_prompt(ten, diffusion_model, text) for text in FIXED)
        ten.run()
        single.run()
        rows.append([prompt, single.best_loss, ten.best_loss])
        print(f"| {name} | {prompt:.5f} | {single.best_loss:.5f} | {ten.best_loss:.5f} |", flush=True)
    print("| mean | {:.5f} | {:.5f} | {:.5f} |".format(*np.mean(rows, axis=0)))


def pretraining(diffusion_model: DiffusersModel, images: dict[str, Tensor], pretrained: MSI) -> None:
    print("\n| face | start | 0 steps | 10 steps | 30 steps |\n|---|---|---|---|---|")
    for name, image in images.items():
        data = prepare(diffusion_model, image, flips=False)
        for start, msi in (("pretrained", pretrained), ("the word face", new_msi(diffusion_model))):
            settings = dataclasses.replace(OURS, steps=30)
            training = Training(msi, diffusion_model, data, settings, device=diffusion_model.device)
            training.run()
            losses = {step: loss for step, _, loss in training.history}
            print(f"| {name} | {start} | {losses[0]:.5f} | {losses[10]:.5f} | {losses[30]:.5f} |", flush=True)


class WeightlessModel(DiffusersModel):
    """Networks without data, told apart by their sizes alone."""

    @property
    def text_encoder_identity(self) -> EncoderIdentity:
        return EncoderIdentity((768,), 12, "")

    @property
    def image_encoder_identity(self) -> EncoderIdentity:
        return EncoderIdentity((1024,), 24, "")

    def word_embedding(self, word: str) -> Tensor:
        return torch.ones(768)


def full_size_model(kind: type[DiffusersModel] = DiffusersModel) -> DiffusersModel:
    """SD 1.5's networks and ViT-L/14 at full size with seeded weights: good for time and memory, not for pictures."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    text: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    }
    vision: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    }
    autoencoder: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return kind(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval(),
        autoencoder=DiffusersAutoencoder(AutoencoderKL(**autoencoder)).eval(),
        text_encoders=[CLIPTextModel(CLIPTextConfig(**text)).eval()],
        pad_tokens=[END_TOKEN],
        latent_scale=0.18215,
        vision_encoder=CLIPVisionModel(CLIPVisionConfig(patch_size=14, image_size=224, **vision)).eval(),
    )


MEMORY_SETTINGS = (
    ("4 time steps at once", 4, False),
    ("12 GB: 4 at once, checkpointing", 4, True),
    ("8 GB: 1 at once, checkpointing", 1, True),
)
"""Name, time steps at once and checkpointing."""


def full_size(diffusion_model: DiffusersModel, side: int, settings: Settings) -> None:
    """Time and peak memory of training on one face at SD 1.5's size, as it is and sparing memory."""
    device = diffusion_model.device
    cuda = device.type == "cuda"
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    print("| setting | steps | seconds, all | seconds a step | peak GB |\n|---|---|---|---|---|")
    for name, chunk, checkpointing in MEMORY_SETTINGS:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        spared = dataclasses.replace(settings, chunk=chunk, checkpointing=checkpointing, patience=0)
        data = prepare(diffusion_model, image, flips=False)
        training = Training(new_msi(diffusion_model), diffusion_model, data, spared, device=device)
        training.run()
        seconds, steps = time.monotonic() - began, settings.steps
        peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if cuda else ""
        print(f"| {name} | {steps} | {seconds:.1f} | {seconds / steps:.2f} | {peak} |", flush=True)


def full_size_footprint(side: int) -> None:
    """Bytes of the tensors of the same training as it runs on CUDA, with nothing computed."""
    with torch.device("meta"):
        diffusion_model = full_size_model(WeightlessModel).to("meta", torch.bfloat16)
    diffusion_model.noise_levels = NoiseLevels.scaled_linear()
    networks = (
        diffusion_model.unet,
        diffusion_model.autoencoder,
        *diffusion_model.text_encoders,
        diffusion_model.vision_encoder,
    )
    without_data(*networks)
    image = torch.rand(1, 3, side, side)
    print("| setting | weights, GB | preparing, GB | training, GB |\n|---|---|---|---|")
    for name, chunk, checkpointing in MEMORY_SETTINGS:
        with Footprint(*networks) as footprint:
            weights = footprint.live
            data = prepare(diffusion_model, image, flips=False)
        preparing = footprint.peak
        settings = Settings(steps=1, validation=4, chunk=chunk, checkpointing=checkpointing)
        with Footprint(*networks) as footprint, cuda_autocast():
            Training(new_msi(diffusion_model), diffusion_model, data, settings).run()
        sizes = " | ".join(f"{size / 1e9:.1f}" for size in (weights, preparing, footprint.peak))
        print(f"| {name} | {sizes} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="1234", help="which of the four tables, such as 23")
    parser.add_argument("--steps", type=int, default=6100, help="of the released recipe; of ours with --full-size")
    parser.add_argument("--face", default="012", help="CelebA-HQ photo of the first table and the last")
    parser.add_argument("--faces", nargs="+", default=["000", "003", "007", "012"], help="those of the others")
    parser.add_argument("--full-size", action="store_true", help="SD 1.5's size instead of the demo model")
    parser.add_argument("--footprint", action="store_true", help="of --full-size the bytes of tensors, on any machine")
    parser.add_argument("--side", type=int, default=512, help="pixels of the face with --full-size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.footprint:
        full_size_footprint(options.side)
        return
    if options.full_size:
        diffusion_model = full_size_model().to(device, torch.bfloat16 if device.type == "cuda" else None)
        full_size(diffusion_model, options.side, Settings(steps=min(options.steps, 60)))
        return
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    diffusion_model = load_diffusion_model().to(device)
    faces = {name: photo(data, name) for name in options.faces}
    if "1" in options.tables:
        against_released(diffusion_model, photo(data, options.face), options.steps)
    if "2" in options.tables:
        stage_advantage(diffusion_model, faces)
    if "3" in options.tables:
        pretraining(diffusion_model, faces, demo.load_msi())
    if "4" in options.tables:
        ablations(diffusion_model, photo(data, options.face))


if __name__ == "__main__":
    main()
