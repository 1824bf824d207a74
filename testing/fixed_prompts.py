"""What MSI is measured against: prompts without a pseudo-word, on the faces of CelebA-HQ photos."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face
from diffprivacy.faces.selection import select_faces
from diffprivacy.media.images import read_picture
from diffprivacy.msi.training import Training

FIXED = ("", "a photo of a face", "a photo of a person", "a portrait of someone", "a color photo of a man",
         "a colour portrait of a woman", "a close-up photo of a face", "a black and white photo of a person")  # fmt: skip


def photo(data: Path, name: str) -> Tensor:
    """The face of a CelebA-HQ photo, (1,3,128,128)."""
    picture = read_picture(data / "photos" / "celebahq512" / f"{name}.jpg").rgb
    (face,) = select_faces(load_detector(data / "detectors" / "yunet_n.onnx").detect(picture), "largest")
    return crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]


def fixed_prompt(training: Training, diffusion_model: DiffusersModel, prompt: str) -> float:
    """The validation loss under a prompt without a pseudo-word."""
    encode_text, conditioning = training.encode_text, diffusion_model.text_conditioning(prompt)
    training.encode_text = lambda _, words: conditioning.rows(torch.zeros(len(words), dtype=torch.int64))
    loss = training.validation_loss(training.msi)[0]
    training.encode_text = encode_text
    return loss
