"""Measure the shipped weights: ``python -m training.evaluate DATA OUT``.

DATA is a folder with portraits128.tar, photos/lfw250 (a folder for each person), photos/celebahq512, detectors/yunet_n.onnx
and recognizers/*.onnx. Writes reconstructions.png and samples.png (64 each, the former beside their originals) to OUT and prints the model card's numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffprivacy.backends.tokenizer import tokenize
from diffprivacy.demo import load_msi
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.demo.load import (
    IMAGE_SIZE,
    LATENT_CHANNELS,
    MARGIN,
    WEIGHTS,
    load_autoencoder,
    load_recognizer,
    load_text_encoder,
    load_unet,
)
from diffprivacy.diffusion.conditioning import TRAINING_STEPS
from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler
from diffprivacy.faces.geometry import Face, crop_face
from diffprivacy.identity.recognizers import load_recognizer as load_onnx
from diffprivacy.identity.thresholds import write_threshold
from diffprivacy.identity.verification import operating_point, pair_cosines

from .data import five_points, read_portraits, split

SHIPPED = {"guide": "mobileface.safetensors", "judge": "dlib.safetensors"}
Embed = Callable[[Tensor], Tensor]


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Images (B,3,H,W) in [0,1] as one PNG."""
    from PIL import Image

    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    sheet = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(sheet.cpu().numpy()).save(path)


def face_crops(folder: Path, detector: Path) -> tuple[Tensor, list[str]]:
    """The largest face of every photo as (N,3,128,128) in [0,1], and the name of its folder: the person in LFW."""
    import cv2

    yunet = cv2.FaceDetectorYN.create(str(detector), "", (1, 1), 0.6)
    crops, people = [], []
    for path in sorted(folder.rglob("*.jpg")):
        picture = cv2.imread(str(path))
        assert picture is not None
        yunet.setInputSize((picture.shape[1], picture.shape[0]))
        found = yunet.detect(picture)[1]
        if found is None:
            print(f"no face in {path}")
            continue
        row = max(found, key=lambda f: f[2] * f[3])
        face = Face((row[0], row[1], row[0] + row[2], row[1] + row[3]), row[4:14].reshape(5, 2), row[14])
        rgb = torch.from_numpy(np.ascontiguousarray(picture[..., ::-1])).float() / 255
        crops.append(crop_face(rgb, face, IMAGE_SIZE, MARGIN))
        people.append(path.parent.name)
    return torch.stack(crops).permute(0, 3, 1, 2), people


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(16)])


def embedders(folder: Path, device: torch.device) -> dict[str, Embed]:
    """Portrait crops (B,3,128,128) in [0,1] to unit vectors, for the shipped pair and the ONNX files of a folder."""
    networks = {which: load_recognizer(which) for which in ("guide", "judge")}
    networks |= {path.stem: load_onnx(path) for path in sorted(folder.glob("*.onnx"))}
    for network in networks.values():
        network.to(device)
    return {
        name: lambda x, network=network: network.embed(x, five_points(len(x)))[0] for name, network in networks.items()
    }


def samples(prompt: str, count: int, device: torch.device, steps: int = 50, seed: int = 0) -> Tensor:
    """Pictures (B,3,128,128) in [0,1] drawn for a prompt with DDIM, without classifier-free guidance."""
    unet, text, autoencoder = load_unet(), load_text_encoder(), load_autoencoder()
    for part in (unet, text, autoencoder):
        nn.Module.to(part, device)
    levels = NoiseLevels.scaled_linear()
    context = text(input_ids=torch.tensor([tokenize(prompt)], device=device)).last_hidden_state

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        timestep = levels.timestep(sigma.cpu()).to(device)
        eps = unet(x / (1 + sigma**2).sqrt(), timestep, context.expand(len(x), -1, -1)).sample
        return x - sigma * eps

    sigmas = ddim_sigmas(levels, steps).to(device)
    shape = (count, LATENT_CHANNELS, IMAGE_SIZE // 8, IMAGE_SIZE // 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        latents = sample_euler(denoise, noise * (1 + sigmas[0] ** 2).sqrt(), sigmas)
        return (autoencoder.decode(latents) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def noise_left(images: Tensor, timestep: int, words: Tensor | None = None, seed: int = 0) -> float:
    """Share of the noise's energy that the UNet leaves in images (B,3,128,128) in [0,1].

    words: (B,10,D) of "a photo of *", a row for each picture; without them the prompt is empty.
    """
    diffusion_model = load_diffusion_model().to(images.device)
    clean = diffusion_model.encode(images)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    sigma = diffusion_model.noise_levels.sigmas[timestep]
    if words is None:
        conditioning = diffusion_model.text_conditioning("")
    else:
        stage = timestep * words.shape[1] // TRAINING_STEPS
        conditioning = diffusion_model.differentiable_text_encoder()("a photo of *", words[:, stage])
    denoised = diffusion_model.denoise(clean + sigma * noise, sigma, conditioning)
    return float((denoised - clean).square().mean() / sigma**2)


def main() -> None:
    arguments = argparse.ArgumentParser(description="Measure the demo model.")
    arguments.add_argument("data", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--threads", type=int, default=0)
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    held_out = split(read_portraits(options.data / "portraits128.tar"))[1].to(device) / 255
    detector = options.data / "detectors" / "yunet_n.onnx"
    lfw, people = face_crops(options.data / "photos" / "lfw250", detector)
    celebrities, _ = face_crops(options.data / "photos" / "celebahq512", detector)
    autoencoder = load_autoencoder().to(device)
    embed_with = embedders(options.data / "recognizers", device)

    lfw_embedded = {name: in_batches(embed, lfw.to(device)) for name, embed in embed_with.items()}
    thresholds = {}
    for name, embedding in lfw_embedded.items():
        same, different = pair_cosines(embedding.cpu().numpy(), people)
        point = operating_point(same, different, 1e-3)
        thresholds[name] = point.threshold
        if name in SHIPPED:
            write_threshold(
                WEIGHTS / SHIPPED[name], same, different, 1e-3, "LFW subset, 10 people, YuNet points, no flip"
            )
        agreement = np.corrcoef(
            np.concatenate([same, different]), np.concatenate(pair_cosines(lfw_embedded["mobileface_v2"].cpu(), people))
        )[0, 1]
        print(
            f"LFW {name}: same {same.mean():.3f} different {different.mean():.3f} TAR@FAR=1e-3 {point.tar:.3f} "
            f"at cosine {point.threshold:.3f}; correlation of pair cosines with mobileface_v2 {agreement:.3f}"
        )
    for source, images in {"held-out portraits": held_out, "celebahq512": celebrities, "lfw250": lfw}.items():
        images = images.to(device)
        restored = in_batches(lambda x: (autoencoder(x * 2 - 1) / 2 + 0.5).clamp(0, 1), images)
        error = (restored - images).square().mean((1, 2, 3))
        print(f"round trip {source}: {float((-10 * error.log10()).mean()):.2f} dB")
        for name, embed in embed_with.items():
            cosine = (in_batches(embed, images) * in_batches(embed, restored)).sum(1)
            accepted = (cosine > thresholds[name]).float().mean()
            print(f"  {name}: cosine {float(cosine.mean()):.3f}, accepted {float(accepted):.3f}")
    left = {timestep: f"{noise_left(held_out[:64], timestep):.0%}" for timestep in (100, 300, 600)}
    print(f"noise left by the UNet at time steps, 64 held-out portraits: {left}")
    words = load_msi().to(device).words(load_diffusion_model().to(device), held_out[:64])
    for timestep in (250, 450, 650, 850):
        kinds = {"own words": words, "another's": words.roll(1, 0), "empty prompt": None}
        print(timestep, ", ".join(f"{k} {noise_left(held_out[:64], timestep, w):.4f}" for k, w in kinds.items()))
    some = held_out[:64]
    restored = in_batches(lambda x: (autoencoder(x * 2 - 1) / 2 + 0.5).clamp(0, 1), some)
    save_grid(torch.stack([some, restored], 1).flatten(0, 1), options.out / "reconstructions.png", columns=16)
    save_grid(samples("", 64, device), options.out / "samples.png")


if __name__ == "__main__":
    main()
