"""``diffprivacy doctor``: what is installed, what is missing and how to get it, and whether the embedded model works."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__, demo, pipeline
from ..demo.backend import load_diffusion_model
from ..demo.load import WEIGHTS
from ..errors import DiffPrivacyError
from ..faces.geometry import ARCFACE_TEMPLATE, Face
from ..presets import PRESETS
from ..regeneration import Regeneration, anonymizing
from ..video.files import load_av
from .model import first_device

PACKAGES = {
    "diffusers": "diffusers",
    "transformers": "transformers",
    "insightface": "insightface",
    "onnxruntime": "onnxruntime",
    "onnx2torch": "onnx2torch",
    "cv2": "opencv-python",
    "pyrage": "pyrage",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "filelock": "filelock",
}
"""Modules, and the packages that they come in."""
OPTIONAL = {"ray": ("ray>=2.52", "--engine ray"), "cryptography": ("cryptography", "signed keys")}
"""Modules, the packages that they come in, and what alone needs them."""
MODEL_FOLDERS = {
    "checkpoints": "Stable Diffusion 1.x, 2.x or XL",
    "insightface": "recognizers and detectors as ONNX",
    "clip_vision": "for MSI",
    "vae_approx": "TAESD",
}
"""Folders of ComfyUI's models that are used, and what lies in them."""
FEW_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the list. remedy: what to do; None where all is well or nothing needs doing."""

    name: str
    found: str
    remedy: str | None = None
    level: Literal["ok", "hint", "problem"] = "ok"


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor", help="list what is installed and what is missing, and test the embedded model"
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="for programs: one JSON object")
    parser.set_defaults(run=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Print the list; returns 1 if something is missing or does not work, else 0."""
    findings = []
    for finding in [*_platform(), *_packages(), *_models(), _self_test()]:
        findings.append(finding)
        if not options.as_json:
            print(f"{finding.name}: {finding.found}" + (f"; {finding.remedy}" if finding.remedy else ""))
    problems = sum(finding.level == "problem" for finding in findings)
    if options.as_json:
        print(json.dumps({"findings": list(map(dataclasses.asdict, findings)), "problems": problems}, indent=2))
    return 1 if problems else 0


def _platform() -> Iterator[Finding]:
    yield Finding("diffprivacy", f"{__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    device = first_device()
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Finding("device", f"cuda ({torch.cuda.get_device_name()}, {memory}), checkpoints in float16")
    elif device == "mps":
        yield Finding("device", "mps, checkpoints in float16")
    else:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no graphics card"
        remedy = f"{why}; with a card a face at 512 pixels takes seconds, here minutes"
        yield Finding("device", f"cpu ({os.cpu_count()} cores), checkpoints in float32", remedy, "hint")
    if hasattr(os, "sysconf"):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("memory", f"{size / 1e9:.1f} GB")


def _packages() -> Iterator[Finding]:
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(module, "missing", f"run: pip install {package}", "problem")
        else:
            yield Finding(module, "installed")
    for module, (package, use) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(module, f"missing, needed for {use} alone", f"run: pip install '{package}'", "hint")
        else:
            yield Finding(module, "installed")
    try:
        load_av()
        yield Finding("av", "installed")
    except DiffPrivacyError as error:
        yield Finding("av", "missing or too old", error.message, "problem")


def _models() -> Iterator[Finding]:
    """The embedded files, and what ComfyUI's folders hold where there is a ComfyUI."""
    yield Finding("embedded model", str(WEIGHTS))
    root = _comfyui()
    if root is None:
        yield Finding("ComfyUI", "not found", "set COMFYUI_PATH to its folder if there is one", "hint")
        return
    yield Finding("ComfyUI", str(root))
    for name, what in MODEL_FOLDERS.items():
        folder = root / "models" / name
        kinds = (".safetensors", ".onnx")
        files = sorted(path.name for path in folder.rglob("*") if path.suffix in kinds) if folder.is_dir() else []
        remedy = None if files else f"put files here: {what}"
        yield Finding(str(folder), ", ".join(files) or "no model", remedy, "ok" if files else "hint")


def _comfyui() -> Path | None:
    """The installation that COMFYUI_PATH names, that this pack lies in, or in the default folder of comfy-cli."""
    candidates = [Path(os.environ["COMFYUI_PATH"])] if os.environ.get("COMFYUI_PATH") else []
    here = Path(__file__).resolve()
    candidates += [parent.parent for parent in here.parents if parent.name == "custom_nodes"]
    candidates.append(Path.home() / "comfy" / "ComfyUI")
    return next((path for path in candidates if (path / "models").is_dir()), None)


def _self_test() -> Finding:
    """One made-up face by the embedded model, guided as faces are."""
    face = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_TEMPLATE, 1.0)
    picture = torch.linspace(0, 1, 112)[:, None, None].expand(112, 112, 3).contiguous()
    try:
        device = first_device()
        diffusion_model = load_diffusion_model().to(device)
        energy = anonymizing(demo.load_recognizer("guide").to(device))
        preset = dataclasses.replace(PRESETS["anonymize"]["default"], steps=FEW_STEPS)
        start = time.perf_counter()
        (made,) = pipeline.protect(picture, [face], diffusion_model, demo.CROP, Regeneration(preset, energy))
        seconds = (time.perf_counter() - start) * PRESETS["anonymize"]["default"].steps / FEW_STEPS
    except Exception as error:  # whatever it is, it is what is to be found out
        return Finding("self-test", f"failed: {type(error).__name__}: {error}", "install the pack again", "problem")
    if torch.equal(made, picture) or not bool(made.isfinite().all()):
        return Finding("self-test", "the face was not made new", "install the pack again", "problem")
    return Finding("self-test", f"the embedded model works; about {seconds:.1f} s for a face on {device}")
