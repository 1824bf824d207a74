"""What the commands do: many pictures, one after the other, with progress; what is finished stays finished."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import __version__, demo, pipeline
from .demo.host import load_backbone as load_demo_backbone
from .detectors import Detector, load_detector
from .errors import DiffPrivacyError, NoFaceError
from .faces import MARGIN
from .hosts.diffusers import DiffusersBackbone, load_backbone
from .images import Picture, read_picture, write_picture
from .recognizers import Ensemble, FaceMatcher, load_recognizer
from .sampling import strength_steps
from .selection import select_faces
from .stages import PRESETS, Preset

if TYPE_CHECKING:
    from tqdm import tqdm

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone, the crops it was made for (side in pixels, margin), and the recognizer that guides it."""

    backbone: DiffusersBackbone
    size: int
    margin: float
    recognizer: FaceMatcher | None


def anonymize(options: argparse.Namespace) -> int:
    """The command ``anonymize``; returns the exit code."""
    from tqdm import tqdm

    targets = plan(options.inputs, options.output, options.variants)
    todo = {source: files for source, files in targets.items() if options.overwrite or not all_exist(files)}
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} already done (--overwrite does them again)")
    if not todo:
        return 0
    if options.seed is not None:
        print("warning: --seed makes the noise predictable; leave it out for pictures that matter", file=sys.stderr)
    preset = _preset(options)
    detector = load_detector(None if options.detector == "builtin" else Path(options.detector))
    model = load_model(options)
    failed = 0
    for source, files in todo.items():
        try:
            with tqdm(desc=source.name, unit="step", disable=None, leave=False) as bar:
                pictures = _anonymize(source, options, preset, detector, model, bar)
        except DiffPrivacyError as error:
            print(f"error: {source}: {error}", file=sys.stderr)
            failed += 1
            continue
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, picture in zip(files, pictures, strict=True):
            write_picture(file, picture)
            print(file)
    return 1 if failed else 0


def _anonymize(
    source: Path,
    options: argparse.Namespace,
    preset: Preset,
    detector: Detector,
    model: Model,
    bar: tqdm,
) -> list[Picture]:
    picture = read_picture(source)
    try:
        faces = select_faces(detector.detect(picture.rgb), options.faces)
    except NoFaceError:
        if options.without_face == "error":
            raise
        return [picture] * options.variants

    def progress(step: dict) -> None:
        bar.total = step["steps"]
        bar.update(1)

    protected = pipeline.anonymize(
        picture.rgb,
        faces,
        model.backbone,
        size=model.size,
        preset=preset,
        recognizer=model.recognizer,
        variants=options.variants,
        margin=model.margin,
        seed=options.seed,
        callback=progress,
    )
    return [dataclasses.replace(picture, rgb=rgb) for rgb in protected]


def plan(inputs: Iterable[Path], output: Path, variants: int = 1) -> dict[Path, list[Path]]:
    """Every picture among the inputs, files or folders, with the PNG files it becomes in the output folder.

    Raises DiffPrivacyError for a missing input, a folder without pictures, and two inputs with one name.
    """
    targets: dict[Path, list[Path]] = {}
    owners: dict[Path, Path] = {}
    for given in inputs:
        for source in _pictures(given):
            place = source.relative_to(given).parent if given.is_dir() else Path()
            endings = [""] if variants == 1 else [f"-{i + 1}" for i in range(variants)]
            targets[source] = [output / place / f"{source.stem}{ending}.png" for ending in endings]
            for file in targets[source]:
                if owners.setdefault(file, source) != source:
                    raise DiffPrivacyError(f"{source} and {owners[file]} would both become {file}; rename one.")
    if clash := {file.absolute() for file in owners} & {source.absolute() for source in targets}:
        raise DiffPrivacyError(f"{min(clash)} is an input and would be overwritten; choose another output folder.")
    return targets


def _pictures(given: Path) -> list[Path]:
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not found:
            raise DiffPrivacyError(f"Folder {given} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
        return found
    if not given.exists():
        raise DiffPrivacyError(f"{given} does not exist; give a picture or a folder of pictures.")
    return [given]


def all_exist(files: Iterable[Path]) -> bool:
    """Whether a picture is finished: files appear only once they are complete."""
    return all(file.exists() for file in files)


def _preset(options: argparse.Namespace) -> Preset:
    changes = {"strength": options.strength, "steps": options.steps}
    preset = dataclasses.replace(
        PRESETS["anonymize"][options.preset], **{name: value for name, value in changes.items() if value is not None}
    )
    strength_steps(preset.steps, preset.strength)
    return preset


def load_model(options: argparse.Namespace) -> Model:
    """The checkpoint that the options name, or the embedded demo model, which brings a recognizer of its own."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = options.device or _first_device()
    members = [load_recognizer(path).to(device) for path in options.recognizer or []]
    recognizer = Ensemble([(member, 1.0) for member in members]) if members else None
    if options.checkpoint is None:
        print("using the embedded demo model, 128x128 pixels a face; --checkpoint gives real quality", file=sys.stderr)
        backbone = load_demo_backbone().to(device)
        return Model(
            backbone,
            options.size or demo.IMAGE_SIZE,
            demo.MARGIN,
            recognizer or demo.load_recognizer("guide").to(device),
        )
    backbone = load_backbone(options.checkpoint).to(device, torch.float32 if device == "cpu" else torch.float16)
    return Model(backbone, options.size or backbone.image_size, MARGIN, recognizer)


def _first_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def demonstrate(options: argparse.Namespace) -> int:
    """The command ``demo``; returns the exit code."""
    from .demo import showcase

    showcase.run(options.photo, options.output, options.seed)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """The command ``doctor``: what is installed, what is missing and how to get it; 1 if something is."""
    print(f"diffprivacy {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"device: {_first_device()}")
    missing = 0
    for module, package in {
        "diffusers": "diffusers",
        "transformers": "transformers",
        "insightface": "insightface",
        "onnxruntime": "onnxruntime",
        "onnx2torch": "onnx2torch",
        "cv2": "opencv-python",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
    }.items():
        there = importlib.util.find_spec(module) is not None
        missing += not there
        print(f"{module}: {'installed' if there else f'missing, run: pip install {package}'}")
    return 1 if missing else 0
