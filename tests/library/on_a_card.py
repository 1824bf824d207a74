"""Runs in a process of its own: the library on a card, pretended or real, with real numbers and real gradients.

python -m tests.library.on_a_card DEVICE FOLDER SCENARIO… with the device card (pretended) or cuda prints what each scenario found as one line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo, devices, redrawing
from diffprivacy.cli import main
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.guidance import Guidance, guided
from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.diffusion.sampling import ddim_sigmas
from diffprivacy.evaluation.comparison import judge
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import Crop, crop_face, crop_landmarks
from diffprivacy.identity.energies import augmented, identity_away, latent_gradient
from diffprivacy.media.images import Picture
from diffprivacy.msi.module import new_msi
from diffprivacy.msi.training import Settings, Training
from diffprivacy.msi.training_data import prepare
from diffprivacy.recovery.replay import Replay, record, recover
from diffprivacy.regeneration import anonymizing, hiding
from testing import pretended_card

name, folder, *scenarios = sys.argv[1:]
CPU, CARD = torch.device("cpu"), pretended_card.install() if name == "card" else torch.device(name)
torch.backends.cudnn.allow_tf32 = False  # A real card's own shortcut, which is no mistake of the library's.
photo = torch.from_numpy(skimage.data.astronaut()).float() / 255
(face,) = load_detector(None).detect(photo)
crop = crop_face(photo, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]
CROP = Crop(demo.IMAGE_SIZE, demo.MARGIN)
points = crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN)[None]


def relative(made: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((made.cpu() - wanted).norm() / wanted.norm())


def mixing() -> dict:
    """What happens to mistakes."""
    found = {}
    for name, mistake in (
        ("mixed", lambda: torch.ones(2, device=CARD) + torch.ones(2)),
        ("read", lambda: torch.ones(2, device=CARD).numpy()),
    ):
        try:
            mistake()
            found[name] = "nothing"
        except (RuntimeError, TypeError) as error:
            found[name] = str(error)
    return found


def gradients() -> dict:
    """The gradient of an energy through decoder, views, alignment and recognizer, against the CPU's."""
    made = {}
    for device in (CPU, CARD):
        diffusion_model, recognizer = load_diffusion_model().to(device), demo.load_recognizer("guide").to(device)
        energy = identity_away(recognizer, recognizer.reference(crop, points), points, form="smooth")
        gradient = latent_gradient(augmented(energy, points), diffusion_model.differentiable_decoder())
        latents = diffusion_model.encode(crop.to(device))
        made[device.type] = gradient(latents, 7).cpu()
    return {"error": relative(made[CARD.type], made["cpu"])}


def repeats() -> dict:
    """Whether the same gradient comes out twice where PyTorch is told to be deterministic, as ComfyUI's --deterministic does."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    diffusion_model, recognizer = load_diffusion_model().to(CARD), demo.load_recognizer("guide").to(CARD)
    energy = identity_away(recognizer, recognizer.reference(crop, points), points, form="smooth")
    gradient = latent_gradient(augmented(energy, points), diffusion_model.differentiable_decoder())
    latents = diffusion_model.encode(crop.to(CARD))
    made = [gradient(latents, 7).cpu() for _ in range(3)]
    torch.use_deterministic_algorithms(False)
    return {"same": all(torch.equal(made[0], again) for again in made)}


def waits() -> dict:
    """How often a guided step waits for the card, its network being free."""
    devices.QUEUING.append("card")
    recognizer = demo.load_recognizer("guide").to(CARD)
    noise = torch.randn(2, 4, 4, 4)
    energy = anonymizing(recognizer, variants=2)(crop, points, noise) + hiding(recognizer)(crop, points, noise)
    decoder = load_diffusion_model().to(CARD).differentiable_decoder()
    levels, sigmas = NoiseLevels.scaled_linear(), ddim_sigmas(NoiseLevels.scaled_linear(), 50)
    guidance = Guidance(repeats=1)
    latents = torch.randn(2, demo.LATENT_CHANNELS, 16, 16).to(CARD)
    step = guided(lambda x, sigma: x, latent_gradient(energy, decoder), sigmas, guidance, levels)
    step(latents, sigmas[0])
    if CARD.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step(latents, sigmas[1])
        return {"waits": [str(warning.message) for warning in said]}
    pretended_card.WAITS.clear()
    step(latents, sigmas[1])
    return {"waits": pretended_card.WAITS}


def training() -> dict:
    """Two steps of MSI against the CPU's: the gradients of the first, and the losses before, between and after.

    Without dropout, which each device draws for itself. Not the weights: Adam's first steps are as long for a gradient
    of nothing but rounding as for any other.
    """
    gradients, losses = {}, {}
    for device in (CPU, CARD):
        diffusion_model = load_diffusion_model().to(device)
        settings = Settings(steps=2, batch=4, chunk=2, validation=2, validate_every=1)
        msi = new_msi(diffusion_model)
        for layer in msi.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        run = Training(msi, diffusion_model, prepare(diffusion_model, crop), settings, device=device)
        run.bfloat16 = False
        taken: list[torch.Tensor] = []
        run.optimizer.register_step_pre_hook(lambda *_: taken.append(_gradient(run.msi)))  # noqa: B023
        run.run()
        gradients[device.type], losses[device.type] = taken[0], torch.tensor([loss for *_, loss in run.history])
    errors = [relative(of[CARD.type], of["cpu"]) for of in (gradients, losses)]
    return {"gradients": errors[0], "losses": errors[1], "steps": run.step}


def _gradient(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.grad.flatten().cpu() for weight in network.parameters() if weight.grad is not None])


def keys() -> dict:
    """How far faces come back from the keys of each inversion."""
    found = {}
    original = Picture(photo)
    diffusion_model = load_diffusion_model().to(CARD)
    for method in ("fixed point", "belm"):
        key = record(original, [face], diffusion_model, CROP, how=Replay(method=method, steps=4)).bound_to(original)
        restored = recover(original, [key], diffusion_model).rgb
        found[method] = [restored.device.type, float((restored - photo).abs().mean())]
    return found


def judging() -> dict:
    judge(photo, photo, [face], ["somebody"], {"judge": demo.load_recognizer("judge").to(CARD)})
    return {}


def commands() -> dict:
    """A photo anonymized there and here from the same noise."""
    source = Path(folder) / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(source)
    redrawing.RECOGNIZED = math.inf  # Two steps make no strangers.
    made = {}
    for device in (CPU.type, CARD.type):
        out = Path(folder) / device
        arguments = ["anonymize", source, "-o", out, "--steps", 2, "--variants", 2, "--seed", 3, "--device", device]
        assert main([*map(str, arguments), "-v"]) == 0
        made[device] = [np.asarray(Image.open(file)).astype(int) for file in sorted(out.glob("*.png"))]
    differences = [np.abs(a - b) for a, b in zip(made["cpu"], made[CARD.type], strict=True)]
    return {"pictures": len(differences), "most": max(int(d.max()) for d in differences)}


for scenario in scenarios:
    print(json.dumps({scenario: globals()[scenario]()}), flush=True)
