"""Pretrain the demo model's MSI: ``python -m training.msi DATA.tar OUT [--words RUNS/unet]``.

Needs the shipped UNet and encoders, so run it after ``freeze``. ``--words`` begins at the pseudo-words that the UNet was
trained with, ``--shipped`` at the shipped MSI. Latents and features are computed once into OUT, and a run found there
is resumed. Writes weights/msi.safetensors in half precision and its checksum, if the loss on held-out portraits fell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.demo.load import CHECKSUMS, WEIGHTS
from diffprivacy.msi.module import DEFAULT, MSI, MSIConfig, Projector, load_msi, new_msi, save_msi
from diffprivacy.msi.training import Progress, Settings, Training
from diffprivacy.msi.training_data import TrainingData, prepare

from .data import Augmenter, in_colour, read_portraits, split
from .freeze import MSI_FILE
from .loop import checkpoint_weights, parser
from .unet import WORD_NORM

VALIDATED = 40
CHUNK = 128


def pseudo_word_msi(msi: MSI, tensors: dict[str, Tensor]) -> MSI:
    """The module filled so that it gives what ``train.unet.PseudoWord`` with these tensors gives."""
    for i, projector in enumerate(msi.projectors):
        assert isinstance(projector, Projector)
        projector.linear1.weight.data = tensors[f"projections.{i}.weight"].float()
        torch.nn.init.eye_(projector.linear2.weight)
    msi.stages.data = tensors["stages"].float()
    msi.out.weight.data = WORD_NORM * torch.eye(len(msi.out.weight))
    torch.nn.init.zeros_(msi.out.bias)
    return msi


def constants(diffusion_model, tar: Path, cache: Path, seed: int) -> TrainingData:
    """Latents and features of one random view of every portrait, the held-out ones last and as they are."""
    owner = f"{diffusion_model.image_encoder_identity} {json.loads((WEIGHTS / CHECKSUMS).read_text())['autoencoder.safetensors']}"
    if cache.exists() and cache.with_suffix(".txt").read_text() == owner:
        return TrainingData(**load_file(cache))
    training, held_out = split(read_portraits(tar))
    view = Augmenter(torch.Generator().manual_seed(seed))
    views = [view(part / 255, in_colour(part / 255))[0] for part in training.split(CHUNK)]
    views.append(held_out[:VALIDATED] / 255)
    parts = [
        prepare(diffusion_model, part, flips=False) for part in tqdm(views, desc="latents and features", disable=None)
    ]
    data = TrainingData(torch.cat([p.latents for p in parts]), torch.cat([p.features for p in parts]))
    save_file({"latents": data.latents, "features": data.features}, cache)
    cache.with_suffix(".txt").write_text(owner)
    return data


def main() -> None:
    arguments = parser("Pretrain the demo model's MSI.", steps=600, batch=32, lr=1e-2)
    arguments.add_argument("--words", type=Path, metavar="RUN", help="run folder of the UNet to take pseudo-words from")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    diffusion_model = load_diffusion_model().to(options.device)
    training, held_out = constants(
        diffusion_model, options.data, options.out / "constants.safetensors", options.seed
    ).split(VALIDATED)
    if options.words:
        words = checkpoint_weights(options.words)
        tensors = {name.removeprefix("word."): t for name, t in words.items() if name.startswith("word.")}
        msi = pseudo_word_msi(new_msi(diffusion_model, MSIConfig(heads=0)), tensors)
    elif options.shipped:
        msi = load_msi(WEIGHTS / MSI_FILE)
        msi.text_encoder, msi.image_encoder = (
            diffusion_model.text_encoder_identity,
            diffusion_model.image_encoder_identity,
        )
    else:
        msi = new_msi(diffusion_model, dataclasses.replace(DEFAULT, scaled=True), options.seed)
    settings = Settings(
        options.steps, options.batch, lr=options.lr, ema=0.99, validate_every=25, validation=400, patience=0,
        seed=options.seed,
    )  # fmt: skip
    run = Training(
        msi, diffusion_model, training, settings, held_out, options.device, options.out / "checkpoint.safetensors",
        options.minutes,
    )  # fmt: skip
    with tqdm(total=options.steps, initial=run.step, unit="step", disable=None) as bar:

        def progress(now: Progress) -> None:
            bar.update(1)
            if now.preview is not None:
                print(f"step {now.step} {run.seconds:.0f} s held out {now.validation:.5f}", flush=True)

        try:
            run.run(progress)
        except KeyboardInterrupt:
            print("interrupted; keeping what was learnt")
    path = WEIGHTS / MSI_FILE
    save_msi(run.learnt(), path, half=True)
    sums = json.loads((WEIGHTS / CHECKSUMS).read_text())
    sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (WEIGHTS / CHECKSUMS).write_text(json.dumps(dict(sorted(sums.items())), indent=2) + "\n")
    print(f"{path.name} {path.stat().st_size / 1e6:.2f} MB; held out {run.history[0][2]:.5f} -> {run.best_loss:.5f}")


if __name__ == "__main__":
    main()
