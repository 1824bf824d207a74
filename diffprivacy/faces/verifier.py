"""A small network that tells a face from what only resembles one, and says where its five landmarks are.

It plays the part of the refining network in a cascaded detector (Zhang et al., "Joint Face Detection and Alignment
using Multitask Cascaded Convolutional Networks", arXiv 1604.02878): the built-in detector proposes windows, this
network scores them. Its weights lie beside this module; benchmarks/train_verifier.py made them.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

CROP_SIZE = 48
CONTEXT = 1.5
"""Side of the crop that the network sees, in sides of the proposed window."""
WEIGHTS = Path(__file__).with_name("verifier.safetensors")


class FaceVerifier(nn.Module):
    """Grey crops (B,1,48,48) in [0,1] -> (face logits (B,), landmarks (B,5,2) in pixels of the crop)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 24), (24, 48), (48, 64)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, 96), nn.ReLU())
        self.head = nn.Linear(96, 11)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        centred = crops - crops.mean(dim=(2, 3), keepdim=True)
        contrast = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
        out = self.head(self.features(centred / (contrast + 0.02)))
        landmarks = (CROP_SIZE - 1) / 2 + out[:, 1:].unflatten(1, (5, 2)) * CROP_SIZE / 4
        return out[:, 0], landmarks


def load_verifier() -> FaceVerifier:
    """The trained network, on the CPU, in evaluation mode."""
    verifier = FaceVerifier()
    verifier.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return verifier.eval().requires_grad_(False)
