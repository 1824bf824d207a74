"""What a run is asked for: its digest changes with whatever the result depends on, and with nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diffprivacy.commands.requests import (
    CredentialsRequest,
    ModelRequest,
    PeopleRequest,
    PersonasRequest,
    ProtectRequest,
    RecognizerFile,
    SealRequest,
    digest,
)


@pytest.fixture
def request_with_files(tmp_path) -> ProtectRequest:
    for name in ("model/unet.bin", "model/vae.bin", "guide.onnx", "msi.safetensors", "photo.png", "detector.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return ProtectRequest(
        task="anonymize",
        inputs=(tmp_path / "in",),
        output=tmp_path / "out",
        model=ModelRequest(tmp_path / "model", recognizers=(RecognizerFile(tmp_path / "guide.onnx"),)),
        detector=tmp_path / "detector.onnx",
        people=PeopleRequest(only=(tmp_path / "photo.png",)),
        msi=tmp_path / "msi.safetensors",
    )


@pytest.mark.parametrize(
    "name", ["model/unet.bin", "model/vae.bin", "guide.onnx", "msi.safetensors", "photo.png", "detector.onnx"]
)
def test_files_count_by_what_they_hold(request_with_files, tmp_path, name):
    before = digest(request_with_files)
    (tmp_path / name).write_text("something else")
    assert digest(request_with_files) != before
    (tmp_path / name).write_text(name)
    assert digest(request_with_files) == before


def test_a_file_under_another_name_is_the_same(request_with_files, tmp_path):
    (tmp_path / "moved.safetensors").write_text("msi.safetensors")
    moved = dataclasses.replace(request_with_files, msi=tmp_path / "moved.safetensors")
    assert digest(moved) == digest(request_with_files)


CHANGES = {
    "task": "hide",
    "model": ModelRequest(size=64),
    "detector": None,
    "min_score": 0.1,
    "min_size": 99,
    "boxes": Path("boxes.json"),
    "faces": "largest",
    "keep": ("eyes",),
    "match_colors": True,
    "prompt": "an old man",
    "if_impossible": "cover",
    "people": PeopleRequest(threshold=0.3),
    "personas": PersonasRequest(Path("album.age"), "env:ALBUM", "another book"),
    "without_face": "copy",
    "preset": "paper",
    "strength": 0.5,
    "steps": 5,
    "msi": None,
    "variants": 2,
    "seed": 1,
    "sound": False,
    "disclosure": False,
    "start": 1.0,
    "end": 9.5,
    "output_format": "jpg",
    "quality": 50,
    "credentials": CredentialsRequest(Path("certificate.pem"), Path("key.pem")),
    "sealing": SealRequest(fidelity="compact"),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ProtectRequest)])
def test_every_option_counts_but_where_things_lie(request_with_files, field):
    """A new option counts unless it is set aside."""
    aside = {"inputs": (Path("other"),), "output": Path("other")}
    aside |= dict.fromkeys(("overwrite", "dry_run", "as_json"), True) | {"jobs": 2, "engine": "ray", "batch": 2}
    if field in aside:
        changed = aside[field]
        assert digest(dataclasses.replace(request_with_files, **{field: changed})) == digest(request_with_files)
    else:
        changed = dataclasses.replace(request_with_files, **{field: CHANGES[field]})
        assert digest(changed) != digest(request_with_files)


def test_the_device_does_not_count(request_with_files):
    elsewhere = dataclasses.replace(request_with_files.model, device="cuda")
    assert digest(dataclasses.replace(request_with_files, model=elsewhere)) == digest(request_with_files)


def test_one_photo_more_is_another_request(request_with_files, tmp_path):
    """Lists do not run into each other."""
    photo = tmp_path / "photo.png"
    requests = [
        dataclasses.replace(request_with_files, people=PeopleRequest(only, spared))
        for only, spared in [((photo,), ()), ((), (photo,)), ((photo, photo), ()), ((photo,), (photo,))]
    ]
    assert len({digest(each) for each in requests}) == 4
