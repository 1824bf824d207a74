"""What the commands promise of a face is checked, and drawn again where it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.demo.showcase import PORTRAITS, example_photo
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, TEMPLATE_SIZE
from diffprivacy.media.images import read_picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.redrawing import DRAWS, checked
from diffprivacy.regeneration import Regeneration, Task

LANDMARKS = ((ARCFACE_TEMPLATE - TEMPLATE_SIZE / 2) * demo.IMAGE_SIZE / TEMPLATE_SIZE / demo.MARGIN)[None]
POINTS = torch.from_numpy(LANDMARKS + demo.IMAGE_SIZE / 2)


@pytest.fixture(scope="module")
def people() -> list[Tensor]:
    """Four people, each (1,3,S,S)."""
    sheet = read_picture(PORTRAITS).rgb
    return [person.movedim(-1, 0)[None] for person in sheet.split(demo.IMAGE_SIZE, dim=1)]


def drawn(
    task: Task, original: Tensor, drawings: list[Tensor], keep: tuple[str, ...] = ()
) -> tuple[Tensor, list[Tensor], list[str]]:
    """What comes out when a model draws these one after the other; the noise it was given, and the warnings."""
    noises: list[Tensor] = []
    warnings: list[str] = []

    def regenerate(crops: Tensor, landmarks: Tensor, noise: Tensor, *_) -> Tensor:
        noises.append(noise)
        return drawings[len(noises) - 1]

    preset = PRESETS[task]["default"]
    how = checked(
        Regeneration(preset, by=regenerate, keep=keep), task, demo.load_recognizer("guide"), "face 2", warnings.append
    )  # fmt: skip
    assert isinstance(how.by, Callable)
    noise = torch.randn(len(drawings[0]), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return how.by(original, POINTS, noise, None, how), noises, warnings


def test_a_face_that_is_still_recognized_is_drawn_again(people):
    me, other, *_ = people
    new, noises, _ = drawn("anonymize", me, [me, 0.8 * me, other])
    assert torch.equal(new, other)
    assert len(noises) == 3
    assert not any(torch.equal(a, b) for a, b in combinations(noises, 2))


def test_one_variant_that_is_recognized_is_enough(people):
    me, other, third, _ = people
    new, noises, _ = drawn("anonymize", me, [torch.cat([other, me]), torch.cat([other, third])])
    assert torch.equal(new, torch.cat([other, third]))
    assert len(noises) == 2


def test_a_face_that_stays_recognized_is_an_error(people):
    me = people[0]
    with pytest.raises(DiffPrivacyError, match="face 2 for the original after 3 draws: choose a higher strength"):
        drawn("anonymize", me, [me] * DRAWS)
    with pytest.raises(DiffPrivacyError, match="face 2 for the original after 3 draws: keep less of it"):
        drawn("anonymize", me, [me] * DRAWS, keep=("eyes", "mouth"))


def test_a_hidden_face_is_drawn_again_until_it_matches(people):
    me, other, *_ = people
    new, noises, warnings = drawn("hide", me, [other, me])
    assert torch.equal(new, me)
    assert (len(noises), warnings) == (2, [])


def test_the_nearest_hidden_face_is_kept_and_said_not_to_match(people):
    me, other, third, fourth = people
    guide = demo.load_recognizer("guide")
    near = {id(p): guide.cosine(guide.reference(me, POINTS), guide.reference(p, POINTS)).item() for p in people[1:]}
    new, _, warnings = drawn("hide", me, [other, third, fourth])
    assert near[id(new)] == max(near.values())
    assert warnings == ["face 2 is hidden, but the recognizer does not match it: choose more steps."]


@pytest.mark.usefixtures("models_loaded_once")
@pytest.mark.parametrize("task", ["anonymize", "hide"])
def test_a_command_that_would_leave_a_face_as_it_is_writes_nothing(tmp_path, capsys, monkeypatch, task):
    """Nor does one that hides a person behind their persona."""
    photo, book = tmp_path / "photo.png", tmp_path / "album.age"
    write_picture(photo, example_photo())
    monkeypatch.setenv("ALBUM", "passphrase")
    personas = ["--personas", str(book), "--personas-secret", "env:ALBUM"] if task == "hide" else []
    assert main([task, str(photo), "-o", str(tmp_path / "out"), "--strength", "0.1", "--steps", "10", *personas]) == 1
    assert "face 0 for the original after 3 draws: choose a higher strength or more steps" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.png")) == [photo]
