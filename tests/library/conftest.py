"""Fixtures of the library tests."""

import functools
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
from diffprivacy.commands import model, resources, train_msi
from diffprivacy.diffusion import noise
from diffprivacy.msi.training import Settings
from diffprivacy.recovery import keyed
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


@pytest.fixture(scope="module")
def models_loaded_once():
    """The models are the real ones; a module's tests share them."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name in ((model, "load_demo_model"), (demo, "load_recognizer"), (resources, "load_detector")):
            patch.setattr(place, name, functools.cache(getattr(place, name)))
        yield
