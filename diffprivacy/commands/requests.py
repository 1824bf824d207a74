"""Frozen, typed requests, which each command makes of its options.

The digest of a request identifies its result: files count by their content, and fields marked ``ASIDE``, which do not
change the result, do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..faces.detectors import MIN_SIZE
from ..media.images import QUALITY
from ..msi.training import Settings
from ..regeneration import Task

Engine = Literal["local", "ray"]
OutputFormat = Literal["png", "jpg", "webp", "same"]
ASIDE: Any = {"aside": True}
"""Metadata of fields that do not change what a finished file holds."""


@dataclass(frozen=True)
class RecognizerFile:
    """An ONNX recognizer, and the order in which it takes colours; None: found by experiment."""

    path: Path
    channels: Literal["RGB", "BGR"] | None = None


@dataclass(frozen=True)
class ModelRequest:
    """The diffusion model and what goes with it.

    checkpoint: None for the embedded demo model. recognizers: that guide, none for the embedded one; unguided: none
    guides, and they only tell people. size: side of the face crops in pixels, None
    for what the checkpoint was made for.
    """

    checkpoint: Path | None = None
    device: str | None = field(default=None, metadata=ASIDE)
    recognizers: tuple[RecognizerFile, ...] = ()
    unguided: bool = False
    size: int | None = None
    clip_vision: Path | None = None


@dataclass(frozen=True)
class PeopleRequest:
    """People told by photos of them: protected alone, or spared. threshold: cosine, None for the recognizer's own."""

    only: tuple[Path, ...] = ()
    spared: tuple[Path, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class PersonasRequest:
    """One new face for each person in all inputs: the sealed file of personas, and where the secret that opens it is.

    book: fingerprint of the personas, once the file was opened: it grows with every new person, but they stay the same.
    """

    file: Path = field(metadata=ASIDE)
    secret: str = field(metadata=ASIDE)
    book: str = ""


@dataclass(frozen=True)
class PassphraseRequest:
    """Where a passphrase comes from. What it is counts in no digest."""

    file: Path | None = field(default=None, metadata=ASIDE)
    env: str | None = field(default=None, metadata=ASIDE)


@dataclass(frozen=True)
class SealRequest:
    """The recovery key: whom it is encrypted to, who signs it, what it holds, and where it goes."""

    recipients: tuple[str, ...] = ()
    passphrase: PassphraseRequest = PassphraseRequest()
    ask_passphrase: bool = False
    sign_with: Path | None = field(default=None, metadata=ASIDE)
    fidelity: str = "latent"
    beside: bool = False
    per_face: bool = False
    keyed: bool = False


@dataclass(frozen=True)
class CredentialsRequest:
    """Who signs finished files: the PEM files of a certificate chain and of its private key."""

    certificate: Path
    key: Path = field(metadata=ASIDE)


@dataclass(frozen=True)
class ProtectRequest:
    """``anonymize`` or ``hide``. detector: None for the built-in one.

    min_score, min_size: of a face, see :class:`..faces.detectors.Detector`. boxes: JSON file of faces that it misses.
    personas: None for a new face in each image or video. keep: parts of the face that stay. match_colors: of new faces, at
    their border. prompt: what new faces are to be, see :mod:`..faces.prompts`. if_impossible: what becomes of a face that
    cannot be made new, None for an error in images and a cover in videos. output_format: of images; "same" is the input's,
    PNG where it is none of them. disclosure: mark what a model made a part of; credentials: and sign it, None for no
    signature. start, end: of videos, in seconds from the first frame.
    jobs: inputs worked on at once, None for what suits the engine. batch: faces of several inputs made new at once.
    """

    task: Task
    inputs: tuple[Path, ...] = field(metadata=ASIDE)
    output: Path = field(metadata=ASIDE)
    model: ModelRequest = ModelRequest()
    detector: Path | None = None
    min_score: float | None = None
    min_size: int = MIN_SIZE
    boxes: Path | None = None
    faces: str = "all"
    people: PeopleRequest = PeopleRequest()
    personas: PersonasRequest | None = None
    keep: tuple[str, ...] = ()
    match_colors: bool = False
    prompt: str = ""
    if_impossible: Literal["error", "cover"] | None = None
    without_face: Literal["error", "copy"] = "error"
    preset: str = "default"
    strength: float | None = None
    steps: int | None = None
    msi: Path | None = None
    variants: int = 1
    seed: int | None = None
    sound: bool = True
    start: float | None = None
    end: float | None = None
    sealing: SealRequest = SealRequest()
    output_format: OutputFormat = "png"
    quality: int = QUALITY
    disclosure: bool = True
    credentials: CredentialsRequest | None = None
    overwrite: bool = field(default=False, metadata=ASIDE)
    engine: Engine = field(default="local", metadata=ASIDE)
    jobs: int | None = field(default=None, metadata=ASIDE)
    batch: int = field(default=1, metadata=ASIDE)
    dry_run: bool = field(default=False, metadata=ASIDE)
    as_json: bool = field(default=False, metadata=ASIDE)


@dataclass(frozen=True)
class RecoverRequest:
    """``recover``: what decrypts the keys, and where they are if not in or beside the images."""

    inputs: tuple[Path, ...] = field(metadata=ASIDE)
    output: Path = field(metadata=ASIDE)
    identity_files: tuple[Path, ...] = field(default=(), metadata=ASIDE)
    passphrase: PassphraseRequest = PassphraseRequest()
    key_files: tuple[Path, ...] = ()
    faces: str = "all"
    signer: str | None = None
    accept_changed: bool = False
    model: ModelRequest = ModelRequest()
    overwrite: bool = field(default=False, metadata=ASIDE)
    as_json: bool = field(default=False, metadata=ASIDE)


@dataclass(frozen=True)
class EvaluateRequest:
    """``evaluate``. protected: folders, each with protections of the same originals. recognizers: that judge, none for the
    demo model's judge. judge_guides: also those that guided.

    attributes: network of age and sex. attacks: names of those to make. report: folder for report.html and report.json. max_tar,
    min_found, max_link: bounds in [0,1] for the protected faces.
    """

    originals: Path
    protected: tuple[Path, ...]
    recovered: Path | None = None
    recognizers: tuple[RecognizerFile, ...] = ()
    detector: Path | None = None
    clean: Path | None = None
    keep_thresholds: bool = False
    plot: Path | None = None
    judge_guides: bool = False
    attributes: Path | None = None
    attacks: tuple[str, ...] = ()
    report: Path | None = None
    max_tar: float | None = None
    min_found: float | None = None
    max_link: float | None = None


@dataclass(frozen=True)
class TrainRequest:
    """``train-msi``. init: a trained MSI to begin at."""

    inputs: tuple[Path, ...]
    output: Path
    model: ModelRequest
    detector: Path | None
    faces: str
    init: Path | None
    preset: str
    settings: Settings
    minutes: float
    flips: bool


def digest(request: ProtectRequest | RecoverRequest) -> bytes:
    """SHA-256 of the version and of everything that a finished file depends on besides its source."""
    total = hashlib.sha256(__version__.encode())
    for part in _parts(request):
        total.update(len(part).to_bytes(8, "big") + part)
    return total.digest()


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file, or of all files in a folder with their places there; raises OSError where they cannot be read."""
    total = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            total.update(hashlib.sha256(str(file.relative_to(path)).encode(errors="surrogateescape")).digest())
            total.update(content_digest(file))
        return total.digest()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.digest()


def _parts(value: Any) -> Iterator[bytes]:
    """The names and values of all fields that count, one after the other."""
    if is_dataclass(value):
        for each in fields(value):
            if not each.metadata.get("aside"):
                yield each.name.encode()
                yield from _parts(getattr(value, each.name))
    elif isinstance(value, tuple):
        yield f"{len(value)} of".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Path):
        # What is missing is named by who needs it.
        yield content_digest(value) if value.exists() else b"missing"
    else:
        yield repr(value).encode()
