"""``diffprivacy doctor``: what is installed, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from typing import Any

import torch

from .. import __version__
from ..errors import DiffPrivacyError
from ..video.files import load_av
from .model import first_device


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("doctor", help="list what is installed and what is missing")
    parser.set_defaults(run=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Print the list; returns 1 if something is missing, else 0."""
    print(f"diffprivacy {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"device: {first_device()}")
    missing = 0
    for module, package in {
        "diffusers": "diffusers",
        "transformers": "transformers",
        "insightface": "insightface",
        "onnxruntime": "onnxruntime",
        "onnx2torch": "onnx2torch",
        "cv2": "opencv-python",
        "pyrage": "pyrage",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
    }.items():
        there = importlib.util.find_spec(module) is not None
        missing += not there
        print(f"{module}: {'installed' if there else f'missing, run: pip install {package}'}")
    try:
        load_av()
        print("av: installed")
    except DiffPrivacyError as error:
        missing += 1
        print(f"av: {error}")
    return 1 if missing else 0
