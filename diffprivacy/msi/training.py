"""Fits MSI to pictures: one face, a few photos of a person, or many people (pretraining).

The loss is the diffusion model's own (arXiv 2309.05330, section on MSI), its weights frozen. Against the released
recipe: latents and image features are constants, ten time steps share a batch spread evenly over the schedule, each
pseudo-word is encoded once, its gradient is whitened, and the network runs in half precision where that is faster.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..diffusion.conditioning import TRAINING_STEPS
from ..diffusion.model import DiffusionModel, TextConditioning
from ..errors import DiffPrivacyError
from .module import MSI
from .training_data import TrainingData
from .whitening import Whitening

LOG = logging.getLogger("diffprivacy")
PROMPTS = (
    "a photo of *",
    "a portrait of *",
    "a picture of *",
    "a good photo of *",
    "a close-up photo of *",
    "a rendering of *",
)
PREVIEW_STEP = 600
"""Time step whose predicted clean latent shows the person at the screen what was learnt."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    steps: at most so many; batch: (picture, time step) pairs a step; chunk: of these at once, 0 for all.
    lr: highest learning rate, 0 for :func:`suited_rate`; it rises over ``warmup`` steps and falls as a cosine to a fiftieth.
    ema: decay of the average that is kept; whiten: the words' gradients.
    validate_every, validation: steps between validations, and (t, noise) pairs in each.
    patience: validations without a relative gain of ``gain`` after which training stops; 0 never stops early.
    checkpointing: less memory for more time.
    """

    steps: int = 100
    batch: int = 10
    chunk: int = 0
    lr: float = 0.0
    warmup: int = 5
    weight_decay: float = 0.01
    ema: float = 0.98
    whiten: bool = True
    validate_every: int = 10
    validation: int = 40
    patience: int = 5
    gain: float = 1e-3
    checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """What a callback gets after each step.

    loss: of this step's batch; validation: the newest validation loss; preview: (1,C,h,w) predicted clean
    latent of the first picture, when a validation has just been made.
    """

    step: int
    steps: int
    loss: float
    validation: float
    preview: Tensor | None


class Training:
    """One run. ``run`` may be interrupted by any exception; ``learnt`` then returns what was learnt until then."""

    def __init__(
        self,
        msi: MSI,
        diffusion_model: DiffusionModel,
        data: TrainingData,
        settings: Settings = Settings(),
        validation: TrainingData | None = None,
        device: torch.device | str = "cpu",
        checkpoint: Path | None = None,
        minutes: float = math.inf,
    ):
        """Start at msi, which stays as it is, or where ``checkpoint`` was left.

        validation: pictures that measure the progress; by default those trained on, under noise never trained on.
        device: where MSI and the diffusion model's networks are. checkpoint: file to resume from and to write to.

        Raises DiffPrivacyError when msi does not fit the diffusion model, or the checkpoint is of another run.
        """
        msi.check(diffusion_model)
        self.settings, self.device, self.checkpoint, self.minutes = settings, torch.device(device), checkpoint, minutes
        self.msi = copy.deepcopy(msi).to(self.device).requires_grad_(True)
        self.data = data.to(self.device)
        self.validation_data = self.data if validation is None else validation.to(self.device)
        self.bfloat16 = _is_fast_in_bfloat16(self.device)
        self.sigmas = diffusion_model.noise_levels.sigmas.to(self.device)
        self.encode_text = diffusion_model.differentiable_text_encoder()
        self.denoise = diffusion_model.differentiable_denoiser(settings.checkpointing)
        self.lr = settings.lr or suited_rate(msi)
        self.optimizer = torch.optim.AdamW(
            self.msi.parameters(), lr=self.lr, betas=(0.8, 0.99), eps=1e-12, weight_decay=settings.weight_decay
        )
        self.whitening = Whitening(msi.text_encoder.widths, self.device) if settings.whiten else None
        # A backend's half-precision conditioning would lose small gradients.
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**12, enabled=self.device.type == "cuda")
        self.chunk = settings.chunk or settings.batch
        self.average = _tensors(self.msi)
        self.best, self.best_loss = _tensors(self.msi), math.inf
        self.step, self.seconds = 0, 0.0
        self.history: list[tuple[int, float, float]] = []
        """(step, seconds of training, validation loss), the first before any training."""
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    def learnt(self) -> MSI:
        """The averaged module with the lowest validation loss so far, on the CPU, ready for use."""
        result = copy.deepcopy(self.msi)
        result.load_state_dict(self.best)
        return result.cpu().eval().requires_grad_(False)

    def run(self, callback: Callable[[Progress], None] | None = None) -> MSI:
        """Train to the end, or until the validation loss no longer falls; returns :meth:`learnt`."""
        began = time.monotonic() - self.seconds
        if not self.history:
            self.validate()
        while self.step < self.settings.steps and self.seconds < self.minutes * 60 and not self._has_settled():
            loss = self._train_step()
            self.step += 1
            self.seconds = time.monotonic() - began
            preview = None
            if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
                preview = self.validate()
                if self.checkpoint is not None:
                    self._save(self.checkpoint)
            if callback is not None:
                callback(Progress(self.step, self.settings.steps, loss, self.history[-1][2], preview))
        return self.learnt()

    def _has_settled(self) -> bool:
        patience = self.settings.patience
        losses = [loss for _, _, loss in self.history]
        if not patience or len(losses) <= patience:
            return False
        return min(losses[-patience:]) > (1 - self.settings.gain) * min(losses[:-patience])

    def _learning_rate(self) -> float:
        done = max(self.step / self.settings.steps, self.seconds / (self.minutes * 60))
        rise = min(1.0, (self.step + 1) / max(1, self.settings.warmup))
        return self.lr * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _train_step(self) -> float:
        """One update; its draws depend on the seed and the step alone. Returns the mean squared error of the noise."""
        settings = self.settings
        seed = settings.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        spread = torch.rand(settings.batch, generator=generator) + torch.arange(settings.batch)
        timesteps = (spread * TRAINING_STEPS / settings.batch).long().clamp(max=TRAINING_STEPS - 1)
        pictures = torch.randint(len(self.data), (settings.batch,), generator=generator)
        noise = torch.randn(settings.batch, *self.data.latents.shape[1:], generator=generator)
        prompt = PROMPTS[int(torch.randint(len(PROMPTS), (1,), generator=generator))]
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        while True:
            try:
                self.optimizer.zero_grad(set_to_none=True)
                with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                    torch.manual_seed(seed)
                    loss = self._backward(pictures, timesteps, noise, prompt)
                break
            except torch.OutOfMemoryError:
                self._halve_chunk()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        for name, tensor in self.msi.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)
        return loss

    def _backward(self, pictures: Tensor, timesteps: Tensor, noise: Tensor, prompt: str) -> float:
        """Gradients of MSI's parameters: first those of its words, part by part, then, whitened, through the module."""
        words, row = self._words(self.msi.train(), self.data, pictures, timesteps)
        timesteps, noise = timesteps.to(self.device), noise.to(self.device)
        leaves = words.detach().requires_grad_()
        total = torch.zeros((), device=self.device)
        for part in torch.arange(len(row)).split(self.chunk):
            z, t = self.data.latents[pictures[part]], timesteps[part]
            used, said = row[part].unique(return_inverse=True)
            errors, _ = self._errors(z, t, noise[part], self._encode(prompt, leaves[used]).rows(said))
            self.scaler.scale(errors.sum() / len(row)).backward()
            total += errors.sum().detach()
        assert leaves.grad is not None
        gradients = leaves.grad
        if self.whitening is not None and gradients.isfinite().all():
            scale = self.scaler.get_scale()
            gradients = self.whitening(gradients / scale) * scale
        words.backward(gradients)
        return total.item() / len(row)

    def _words(self, msi: MSI, data: TrainingData, pictures: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The pseudo-words (N,D) that these pictures need at these time steps, each once, and which of them each needs.

        Pictures, time steps and the answer are on the CPU: what is found there makes no device wait.
        """
        stages = msi.config.stages
        shown, position = pictures.unique(return_inverse=True)
        used, row = (position * stages + timesteps * stages // TRAINING_STEPS).unique(return_inverse=True)
        return msi(data.features[shown]).flatten(0, 1)[used], row

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _encode(self, prompt: str, words: Tensor) -> TextConditioning:
        with self._autocast():
            return self.encode_text(prompt, words)

    def _errors(
        self, z: Tensor, timesteps: Tensor, noise: Tensor, conditioning: TextConditioning
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error (B,) of the predicted noise, and the predicted clean latents, of latents z (B,C,h,w)."""
        sigmas = self.sigmas[timesteps]
        sigma = sigmas.view(-1, 1, 1, 1)
        with self._autocast():
            denoised = self.denoise(z + sigma * noise, sigmas, conditioning)
        return ((denoised.float() - z) / sigma).square().mean((1, 2, 3)), denoised

    @torch.no_grad()
    def validate(self) -> Tensor:
        """Measure the average on the fixed (t, noise) pairs, keep it if it is the best; returns the preview."""
        msi = copy.deepcopy(self.msi).eval()
        msi.load_state_dict(self.average)
        loss, preview = self.validation_loss(msi)
        self.history.append((self.step, self.seconds, loss))
        if loss < self.best_loss:
            self.best, self.best_loss = {name: t.clone() for name, t in self.average.items()}, loss
        return preview

    @torch.no_grad()
    def validation_loss(self, msi: MSI, prompt: str = PROMPTS[0]) -> tuple[float, Tensor]:
        """Mean squared error of the predicted noise on the fixed (t, noise) pairs, as the paper's loss, and the preview.

        msi: a module on the training's device.
        """
        count, data = self.settings.validation, self.validation_data
        generator = torch.Generator().manual_seed(-1 - self.settings.seed)
        timesteps = ((torch.arange(count) + 0.5) * TRAINING_STEPS / count).long()
        noise = torch.randn(count, *data.latents.shape[1:], generator=generator)
        pictures = torch.randperm(count, generator=generator) % len(data)
        nearest = int((timesteps - PREVIEW_STEP).abs().argmin())
        pictures[nearest] = 0
        words, row = self._words(msi, data, pictures, timesteps)
        timesteps, noise = timesteps.to(self.device), noise.to(self.device)
        conditioning = self._encode(prompt, words)
        while True:
            try:
                parts = (t.split(self.chunk) for t in (data.latents[pictures], timesteps, noise, row))
                measured = [self._errors(z, t, eps, conditioning.rows(i)) for z, t, eps, i in zip(*parts, strict=True)]
                break
            except torch.OutOfMemoryError:
                self._halve_chunk()
        errors, denoised = (torch.cat(values) for values in zip(*measured, strict=True))
        return errors.mean().item(), denoised[nearest : nearest + 1].float().cpu()

    def _halve_chunk(self) -> None:
        if self.chunk == 1:
            raise DiffPrivacyError(
                "Out of memory with a single time step at once: turn on checkpointing, or train on smaller crops."
            )
        self.chunk = -(-self.chunk // 2)
        LOG.warning("out of memory: going on with %d time steps at once", self.chunk)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _run_digest(self) -> str:
        """Tells whether a checkpoint belongs to this run."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.settings) | {"chunk": 0}).encode())
        digest.update(json.dumps(dataclasses.asdict(self.msi.config)).encode())
        digest.update(self.data.features.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _save(self, path: Path) -> None:
        tensors = {f"model.{name}": t for name, t in self.msi.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        if self.whitening is not None:
            tensors |= {f"whitening.{name}": t for name, t in self.whitening.state().items()}
        for name, parameter in self.msi.named_parameters():
            tensors |= {f"optimizer.{name}.{key}": t for key, t in self.optimizer.state[parameter].items()}
        progress = {"step": self.step, "seconds": self.seconds, "best_loss": self.best_loss, "history": self.history}
        temporary = path.with_name(path.name + ".part")
        metadata = {"run": self._run_digest, "progress": json.dumps(progress)}
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)

    def _resume(self, path: Path) -> None:
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                metadata = file.metadata() or {}
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise DiffPrivacyError(f"Checkpoint {path} cannot be read ({error}); delete it to begin anew.") from error
        if metadata.get("run") != self._run_digest:
            raise DiffPrivacyError(
                f"Checkpoint {path} is of a run with other images or settings; give those again, or delete it."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.msi.load_state_dict(part("model."))
        self.average, self.best = part("average."), part("best.")
        for name, parameter in self.msi.named_parameters():
            self.optimizer.state[parameter] = part(f"optimizer.{name}.")
        if self.whitening is not None:
            self.whitening.restore(part("whitening."))
        progress = json.loads(metadata["progress"])
        self.step, self.seconds, self.best_loss = progress["step"], progress["seconds"], progress["best_loss"]
        self.history = [(step, seconds, loss) for step, seconds, loss in progress["history"]]


def suited_rate(msi: MSI) -> float:
    """The learning rate that measured best: for the paper's module, one that begins at a word, and one that has learnt.

    An anchored module's first step moves every coordinate of a word by about as much, in units of the word's own size,
    as this times the root of the width.
    """
    if not msi.config.anchored:
        return 1e-3
    return (0.08 if msi.out.weight.any() else 0.8) * len(msi.word) ** -0.5


def _tensors(msi: MSI) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in msi.state_dict().items()}


def _is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are computed as such; a processor that only converts them is slower for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
