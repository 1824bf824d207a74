"""Loading the demo model's parts; each file is checked against its published SHA-256 first.

Weights have the names that diffusers and transformers give them. ComfyUI's names follow from its own tables: see
``comfy.utils.unet_to_diffusers``, and the prefixes ``text_model.`` and ``vision_model.``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import DiffPrivacyError
from ..faces.geometry import Crop
from ..identity.recognizers import Recognizer
from ..identity.thresholds import read_strangers, read_thresholds
from ..msi.module import MSI
from ..msi.module import load_msi as read_msi
from .autoencoder import Autoencoder
from .recognizers import DlibResNet, MobileFace, fold_normalization
from .text import full_table

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPVisionModel

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
CHECKSUMS = "checksums.json"
SCALE = ".scale"
RECOGNIZERS = {"guide": WEIGHTS / "mobileface.safetensors", "judge": WEIGHTS / "dlib.safetensors"}
IMAGE_SIZE = 128
LATENT_CHANNELS = 16
Part = Literal["autoencoder", "unet", "unet-0.1", "text_encoder", "image_encoder", "mobileface", "dlib"]
MARGIN = 1.45
"""Side of the crops that the model was trained on, in sides of the ArcFace crop; see diffprivacy.faces.geometry."""
CROP = Crop(IMAGE_SIZE, MARGIN)

SPOILT = "blurred, deformed"
"""What the captions of spoilt views said while the UNet was trained."""

Version = Literal["0.2", "0.1"]
"""Of the UNet: the pack's version that brought it."""
NEWEST: Version = "0.2"
UNETS: dict[Version, Part] = {"0.2": "unet", "0.1": "unet-0.1"}
FINGERPRINTS: dict[Version, str] = {"0.1": "c141ad7f7609aa1fd2cd726ef7e5ea9e"}
"""Of older versions before they were rounded to 8 bits, see diffprivacy.diffusion.model.weights_fingerprint."""


def config(part: str) -> dict[str, Any]:
    """The configuration of a part: autoencoder, unet, text_encoder or image_encoder."""
    return json.loads((FOLDER / "configs" / f"{part}.json").read_text())


def weights(part: Part, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a part in float32, under the names of diffusers or transformers.

    Raises DiffPrivacyError when the file is missing or its SHA-256 is not the published one.
    """
    content = _checked(folder / f"{part}.safetensors")
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in dequantized(load(content)).items()}
    if part == "text_encoder":
        kept = tensors.pop("embeddings.token_embedding.weight"), tensors.pop("embeddings.token_embedding.token_ids")
        tensors["embeddings.token_embedding.weight"] = full_table(*kept)
    return tensors


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, those of 8 bits multiplied by NAME.scale, a factor for each row."""
    plain = {name: t for name, t in tensors.items() if not name.endswith(SCALE)}
    for name, tensor in plain.items():
        if tensor.dtype == torch.int8:
            rows = tensors[name + SCALE].float()
            plain[name] = tensor.float() * rows.view(-1, *[1] * (tensor.ndim - 1))
    return plain


def _checked(path: Path) -> bytes:
    """The content of a file of the demo model, which must be the published one."""
    published = json.loads((path.parent / CHECKSUMS).read_text())[path.name]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DiffPrivacyError(f"The demo model's file {path} is missing; install the pack again.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != published:
        raise DiffPrivacyError(
            f"The demo model's file {path} is damaged: its SHA-256 is {found} and should be {published}; "
            "install the pack again."
        )
    return content


def _filled(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    module.load_state_dict(tensors)
    module.eval().requires_grad_(False)


def load_autoencoder() -> Autoencoder:
    """The autoencoder: encode and decode images in [-1,1]; its latents are in the UNet's units, scaling factor 1."""
    module = Autoencoder(**config("autoencoder"))
    _filled(module, weights("autoencoder"))
    return module


def version_of(checkpoint: str) -> Version:
    """The version with a fingerprint; the first for none, which it did not always record; else the newest."""
    return "0.1" if checkpoint in ("", FINGERPRINTS["0.1"]) else NEWEST


def load_unet(version: Version = NEWEST) -> UNet2DConditionModel:
    """The UNet as diffusers' own class: predicts noise, 1000 steps, betas scaled-linear as in SD 1.x."""
    from diffusers import UNet2DConditionModel

    module = UNet2DConditionModel(**config("unet"))
    _filled(module, weights(UNETS[version]))
    return module


def load_text_encoder() -> CLIPTextModel:
    """The text encoder as transformers' own class; token ids are CLIP's, padded with the end token."""
    from transformers import CLIPTextConfig, CLIPTextModel

    module = CLIPTextModel(CLIPTextConfig(**config("text_encoder")))
    _filled(module, weights("text_encoder"))
    return module


def load_image_encoder() -> CLIPVisionModel:
    """The image encoder as transformers' own class: 128x128 pixels, CLIP's normalisation, seven hidden states."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    module = CLIPVisionModel(CLIPVisionConfig(**config("image_encoder")))
    _filled(module, weights("image_encoder"))
    return module


def load_recognizer(which: Literal["guide", "judge"]) -> Recognizer:
    """The recognizer that guides, or the independent one that judges, with what was measured for it."""
    file = RECOGNIZERS[which]
    measured: Any = {"thresholds": read_thresholds(file), "strangers": read_strangers(file)}
    if which == "guide":
        _filled(network := MobileFace(), weights("mobileface"))
        fold_normalization(network)
        return Recognizer(network, name="demo guide", **measured)
    _filled(network := DlibResNet(), weights("dlib"))
    points = torch.tensor(DlibResNet.POINTS)
    return Recognizer(network, 150, 255.0, 0.0, name="demo judge", points=points, **measured)


def recognizer_digest(which: Literal["guide", "judge"]) -> bytes:
    """SHA-256 of the file of a recognizer."""
    return hashlib.sha256(RECOGNIZERS[which].read_bytes()).digest()


def load_msi() -> MSI:
    """The MSI module pretrained for the demo model: faces to pseudo-words without any training."""
    path = WEIGHTS / "msi.safetensors"
    _checked(path)
    return read_msi(path)
