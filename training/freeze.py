"""Freeze finished runs into the shipped weights: ``python -m training.freeze RUNS [--to FOLDER]``.

RUNS holds the run folders autoencoder-final, unet, and unet-only; what is missing there stays as shipped. Averaged weights
are written in half precision beside their checksums, those of the UNets and the image encoder in 8 bits; the sum of the
sizes must stay below 45 MB. unet-0.1 recovers what the first version protected.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from diffprivacy.demo.load import CHECKSUMS, SCALE, WEIGHTS
from diffprivacy.demo.recognizers import DlibResNet
from diffprivacy.faces.alignment import align
from diffprivacy.identity.thresholds import thresholds_path

from .convert import dlib_weights, mobileface_weights
from .data import five_points, read_portraits
from .loop import checkpoint_weights, shipped_weights

LIMIT = 45_000_000
MSI_FILE = "msi.safetensors"
PARTS = {"unet": "unet.", "text_encoder": "text.", "image_encoder": "vision."}
WHOLE = {"unet": ("conv_in.", "conv_out."), "unet-0.1": ("conv_in.", "conv_out."), "image_encoder": ("embeddings.",)}
"""Parts that are written in 8 bits, and the first words of the tensors in them that are not."""


def halves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in half precision, the others as they are."""
    return {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}


def quantized(tensors: dict[str, Tensor], whole: tuple[str, ...]) -> dict[str, Tensor]:
    """Matrices and convolutions as 8 bits a value and a factor for each row, but for those that begin as ``whole`` says."""
    made = {}
    for name, tensor in halves(tensors).items():
        made[name] = tensor
        if tensor.ndim > 1 and not name.startswith(whole):
            rows = tensor.float().flatten(1)
            made[name + SCALE] = (rows.abs().amax(1) / 127).half()
            steps = rows / made[name + SCALE].float()[:, None]
            made[name] = steps.round().clamp(-127, 127).to(torch.int8).view_as(tensor)
    return made


@torch.no_grad()
def centred(dlib: dict[str, Tensor], portraits: Tensor) -> dict[str, Tensor]:
    """dlib's weights with the mean of its descriptors over every tenth portrait (N,3,128,128) uint8 as their centre."""
    network = DlibResNet()
    network.load_state_dict(dlib | {"centre": network.centre})
    some = portraits[::10] / 255
    crops = align(some, five_points(len(some)), 150, torch.tensor(DlibResNet.POINTS))
    descriptors = torch.cat([network.descriptor(255 * part) for part in crops.split(32)])
    return dlib | {"centre": descriptors.mean(0)}


def main() -> None:
    arguments = argparse.ArgumentParser(description="Write the demo model's weights and their checksums.")
    arguments.add_argument("runs", type=Path)
    arguments.add_argument("--mobileface", type=Path, help="mobileface_v2.onnx; without it the shipped one stays")
    arguments.add_argument("--dlib", nargs=2, metavar=("DAT", "PORTRAITS"), help="dlib's file and the portraits' tar")
    arguments.add_argument("--to", type=Path, default=WEIGHTS)
    options = arguments.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    parts = {name: shipped_weights(name) for name in (*PARTS, "unet-0.1", "autoencoder", "dlib", "mobileface")}
    if (options.runs / "unet").exists():
        together = checkpoint_weights(options.runs / "unet")
        parts |= {
            part: {name.removeprefix(prefix): t for name, t in together.items() if name.startswith(prefix)}
            for part, prefix in PARTS.items()
        }
    if (trained := options.runs / "unet-only" / "unet.safetensors").exists():
        parts["unet"] = load_file(trained)
    if (options.runs / "autoencoder-final").exists():
        parts["autoencoder"] = checkpoint_weights(options.runs / "autoencoder-final")
    if options.dlib:
        parts["dlib"] = centred(dlib_weights(options.dlib[0]), read_portraits(options.dlib[1]))
    if options.mobileface:
        parts["mobileface"] = mobileface_weights(options.mobileface)
    sums, total = {}, 0
    for name in sorted(parts):
        path = options.to / f"{name}.safetensors"
        content = save(quantized(parts[name], WHOLE[name]) if name in WHOLE else halves(parts[name]))
        if (
            not path.exists() or content != path.read_bytes()
        ):  # Thresholds measured on the older recognizer no longer hold.
            thresholds_path(path).unlink(missing_ok=True)
        path.write_bytes(content)
        total += len(content)
        sums[path.name] = hashlib.sha256(content).hexdigest()
        print(f"{path.name} {len(content) / 1e6:.2f} MB")
    msi = options.to / MSI_FILE
    if msi.exists():
        total += msi.stat().st_size
        sums[msi.name] = hashlib.sha256(msi.read_bytes()).hexdigest()
        print(f"{msi.name} {msi.stat().st_size / 1e6:.2f} MB; new encoders need a new one: train.msi")
    (options.to / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
    print(f"together {total / 1e6:.2f} MB of {LIMIT / 1e6:.0f} MB")
    if total > LIMIT:
        raise SystemExit("The weights are larger than the pack may be.")


if __name__ == "__main__":
    main()
