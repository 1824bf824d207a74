"""Fixtures of the library tests."""

import copy
import functools
import hashlib
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyrage
import pytest
import torch

from diffprivacy import demo, redrawing
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.commands import model, protect_picture, resources, train_msi
from diffprivacy.diffusion import noise
from diffprivacy.faces import detectors
from diffprivacy.faces.geometry import Face
from diffprivacy.faces.tiling import Network, find_faces
from diffprivacy.identity import recognizers
from diffprivacy.identity.feeding import Feeding, find_feeding
from diffprivacy.media.images import levels
from diffprivacy.msi.training import Settings
from diffprivacy.recovery import keyed
from diffprivacy.recovery.replay import Replay
from testing import cheap_passphrase
from testing.wheel import build_wheel, install

torch.set_num_threads(1)  # Small tensors: threads cost more than they give, many times more on a busy machine.


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real faces and recognizers that DIFFPRIVACY_DATA names."""
    folder = os.environ.get("DIFFPRIVACY_DATA")
    if not folder:
        pytest.skip("needs real faces and recognizers: set DIFFPRIVACY_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a file."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command ``diffprivacy`` of an environment with the wheel and without the source."""
    return install(wheel, tmp_path_factory.mktemp("installed") / "environment") / "diffprivacy"


@pytest.fixture(autouse=True)
def known_noise(monkeypatch: pytest.MonkeyPatch):
    """Keys of noise and salts, which are the operating system's otherwise, so that what a test finds is no luck."""
    for module in (noise, keyed):
        monkeypatch.setattr(module, "secrets", SimpleNamespace(token_bytes=random.Random(0).randbytes))


@pytest.fixture(scope="session", autouse=True)
def cheap_passphrases():
    """Files encrypted to a passphrase cost nothing; test_encryption tries pyrage's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyrage.passphrase, "encrypt", cheap_passphrase.encrypt)
        yield


@dataclass(frozen=True)
class LittleValidation(Settings):
    """Validations are most of a short training's time."""

    validation: int = 4


@pytest.fixture(scope="session", autouse=True)
def little_validation():
    """``train-msi`` measures its progress on few pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_msi, "Settings", LittleValidation)
        yield


@pytest.fixture
def whatever_is_drawn(monkeypatch: pytest.MonkeyPatch):
    """New faces are taken at the first draw, as few steps make no strangers."""
    monkeypatch.setattr(redrawing, "RECOGNIZED", math.inf)
    monkeypatch.setattr(redrawing, "MATCHED", -math.inf)


MODELS = [
    (place, name, functools.cache(getattr(place, name)))
    for place, name in ((model, "load_demo_model"), (demo, "load_recognizer"), (resources, "load_detector"))
]


@pytest.fixture(scope="module")
def models_loaded_once():
    """The commands' models are the real ones; all modules share them."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name, load in MODELS:
            patch.setattr(place, name, load)
        yield


@pytest.fixture(scope="session")
def demo_model() -> DiffusersModel:
    """The demo model, which all tests share: none may change it."""
    return MODELS[0][2]()


@pytest.fixture(scope="session", autouse=True)
def faces_found_once():
    """The faces of an image that was searched before are known; test_detectors searches anew."""
    known: dict[tuple, list[Face]] = {}

    def find(picture: torch.Tensor, network: Network, min_score: float, min_size: float) -> list[Face]:
        digest = hashlib.sha256(levels(picture.detach(), 8).tobytes()).digest()
        search = (digest, picture.shape, network.scan, min_score, min_size)
        if search not in known:
            known[search] = find_faces(picture, network, min_score, min_size)
        return copy.deepcopy(known[search])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors, "_load_yunet", functools.cache(detectors._load_yunet))
        patch.setattr(detectors, "find_faces", find)
        yield


@pytest.fixture(scope="session", autouse=True)
def feeding_found_once():
    """How a file's network is fed is known if it was found before; test_feeding finds it anew."""
    known: dict[tuple, Feeding] = {}

    def find(network: torch.nn.Module, size: int, of_graph: tuple | None, channels: str | None, name: str) -> Feeding:
        file = (hashlib.sha256(Path(name).read_bytes()).digest(), channels)
        if file not in known:
            known[file] = find_feeding(network, size, of_graph, channels, name)
        return known[file]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognizers, "find_feeding", find)
        yield


@pytest.fixture
def short_keys(monkeypatch: pytest.MonkeyPatch):
    """Latent keys of few steps, which are as exact on the demo model: test_recovery measures those of as many as in use."""
    monkeypatch.setattr(protect_picture, "record", functools.partial(protect_picture.record, how=Replay(steps=4)))
