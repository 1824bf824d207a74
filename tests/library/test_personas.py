"""Personas: a person gets one new face in all images, and another secret gives another one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pyrage
import pytest
import skimage.data
import torch
from torch import nn

from diffprivacy import regeneration
from diffprivacy.commands import protect_picture
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.identity.recognizers import Ensemble, Recognizer
from diffprivacy.identity.strangers import Strangers
from diffprivacy.personas.book import TEMPLATE_FACES, PersonaBook, drawn_target
from diffprivacy.personas.files import PersonaFile, from_bytes, to_bytes
from diffprivacy.personas.mixtures import PEOPLE, differences
from diffprivacy.regeneration import becoming, looking_different
from testing.folders import photo, run
from testing.videos import write_source

THRESHOLD = 0.35
STRANGERS = Strangers(0.03, 0.1, 100, "test")


def network(length: int, seed: int = 0) -> Recognizer:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(48, length))
    return Recognizer(layers, strangers=STRANGERS)


RECOGNIZER = Ensemble([(network(64), 1.0), (network(96, 1), 3.0)])


def anonymize(source: Path, output: Path, *options: object) -> int:
    return run("anonymize", source, "-o", output, "--steps", 2, "--strength", 0.5, *options)


def faces(count: int, seed: int = 0) -> np.ndarray:
    """Embeddings of strangers, as embed_face joins them."""
    generator = np.random.default_rng(seed)
    parts = [generator.normal(size=(count, length)) for length in (64, 96)]
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    return np.concatenate([units[0] * 0.25**0.5, units[1] * 0.75**0.5], axis=1).astype(np.float32)


def met(people: int, secret: int = 1) -> PersonaBook:
    book = PersonaBook(NoiseKey.from_seed(secret))
    for one in faces(people):
        book.assign(one[None], RECOGNIZER, THRESHOLD)
    return book


def test_people_are_known_again_and_two_in_one_image_are_two():
    book, known = met(5), faces(5)
    seen = 0.9 * known + 0.1 * faces(5, 1)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    assert book.assign(seen[[3, 1, 4]], RECOGNIZER, THRESHOLD) == [3, 1, 4]
    assert book.assign(np.stack([seen[2], known[2]]), RECOGNIZER, THRESHOLD) == [5, 2]
    before = to_bytes(book)
    assert book.assign(known[[1, 0]], RECOGNIZER, THRESHOLD) == [1, 0] and to_bytes(book) == before
    for other in faces(2 * TEMPLATE_FACES, 2):
        assert book.assign(0.8 * known[:1] + 0.6 * other[None], RECOGNIZER, THRESHOLD) == [0]
    assert book.counts.tolist() == [TEMPLATE_FACES, 1, 1, 1, 1, 1]


def test_personas_are_strangers_to_their_person_to_each_other_and_under_another_secret():
    """Each network for itself. Up to D / 4 at exactly the mean cosine of strangers; their own person within 4 deviations
    of how aims are drawn. Between secrets, of 15 people the mean cosine is within 4 of its deviations of none."""
    book, other = met(15), met(15, secret=2)
    own = faces(15)
    for where, scale in ((slice(0, 64), 0.25**0.5), (slice(64, 160), 0.75**0.5)):
        targets, people = book.targets[:, where], own[:, where] / scale
        assert np.allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)
        assert abs((targets * people).sum(1) - STRANGERS.mean).max() < 4 * 0.55 * STRANGERS.std
        earlier = [(targets[i] @ targets[:i].T, targets[i] @ people[:i].T) for i in range(1, 8)]
        assert np.allclose(np.concatenate([np.concatenate(each) for each in earlier]), STRANGERS.mean, atol=1e-4)
        across = targets @ other.targets[:, where].T
        assert abs(np.diag(across).mean()) < 4 * across.std() / 15**0.5
    assert not torch.equal(book.persona(0).noise_key.normal((4,)), other.persona(0).noise_key.normal((4,)))
    assert np.array_equal(met(15).targets, book.targets)


def test_personas_look_like_faces():
    """They lie along the directions in which a recognizer's embeddings of people differ most; of 64 random directions 8 have
    an eighth. Where there are many people, a mixture is still what was drawn, and nobody else's."""
    between = differences(RECOGNIZER)[0]
    assert between.shape == (PEOPLE, 64) and abs(between.mean(0)).max() < 1e-6
    axes = np.linalg.svd(between, full_matrices=False)[2]
    shares = ((met(15).targets[:, :64] @ axes.T) ** 2).mean(0)
    assert shares[:8].sum() > 3 * 8 / 64
    mixtures = np.random.default_rng(0).normal(size=(301, PEOPLE - 1)) @ np.eye(PEOPLE - 1, 512)
    mixtures /= np.linalg.norm(mixtures, axis=1, keepdims=True)
    target = drawn_target(mixtures[0], 0.0, np.eye(512)[-1], mixtures[1:], STRANGERS)
    assert target @ mixtures[0] > 0.5 and abs(mixtures[1:] @ target).max() < 0.3


def test_people_of_earlier_books_keep_the_faces_that_they_got():
    book = met(2)
    drawn = book.persona(0).target
    book.faces[1] = 0.1
    again = from_bytes(to_bytes(book))
    assert all(torch.equal(a, b) for a, b in zip(again.persona(0).target, drawn, strict=True))
    assert all((part == np.float32(0.1)).all() for part in again.persona(1).target)


def test_a_book_keeps_to_its_recognizer_and_comes_back_from_bytes():
    book = met(3)
    again = from_bytes(to_bytes(book))
    assert to_bytes(again) == to_bytes(book)
    assert again.fingerprint == book.fingerprint != met(3, secret=2).fingerprint
    with pytest.raises(DiffPrivacyError, match="made with other recognizers"):
        again.assign(faces(1), network(64, 2), THRESHOLD)
    for damaged in (b"", to_bytes(book)[:-8], to_bytes(book).replace(b'"counts"', b'"kounts"')):
        with pytest.raises(DiffPrivacyError, match="It holds no personas"):
            from_bytes(damaged)


def test_the_file_tells_nothing_and_opens_with_its_secret_alone(tmp_path):
    identity, path = pyrage.x25519.Identity.generate(), tmp_path / "album.age"
    file = PersonaFile(path, str(identity))
    with file.changing() as book:
        book.assign(faces(2), RECOGNIZER, THRESHOLD)
    sealed = path.read_bytes()
    assert book.secret.key not in sealed and book.targets[0].tobytes() not in sealed
    assert path.stat().st_mode & 0o077 == 0 or os.name == "nt"
    assert len(PersonaFile(path, str(identity)).read()) == 2
    with file.changing():
        pass
    assert path.read_bytes() == sealed
    for secret, damage in ((str(pyrage.x25519.Identity.generate()), b""), ("a passphrase", b""), (str(identity), b"x")):
        path.write_bytes(sealed[: len(sealed) - len(damage)])
        with pytest.raises(
            DiffPrivacyError, match=r"album\.age, the persona file, does not open: .* begin another file"
        ):
            PersonaFile(path, secret).read()
    with pytest.raises(DiffPrivacyError, match="there is no such file"):
        PersonaFile(tmp_path / "none.age", "a passphrase").read()


def test_those_who_work_at_once_share_a_book(tmp_path):
    """Each has opened the file for itself, as processes do."""
    secret, found = str(pyrage.x25519.Identity.generate()), []
    start = threading.Barrier(4)

    def work() -> None:
        file = PersonaFile(tmp_path / "album.age", secret)
        start.wait()
        for one in faces(3):
            with file.changing() as book:
                found.append((int(one[0] * 1e6), *book.assign(one[None], RECOGNIZER, THRESHOLD)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 3 == len(PersonaFile(tmp_path / "album.age", secret).read())


def test_the_energy_ends_at_the_persona():
    """It is away from the original up to a stranger's cosine, toward the persona, and away in structure where asked."""
    crops = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[[38.0, 52], [74, 52], [56, 72], [42, 92], [71, 92]]])
    judge, noise = network(64), NoiseKey.from_seed(0).normal((1, 4, 4, 4))
    own = judge.reference(crops, points)
    for target, toward in ((own, 0.0), ((-own[0],), 2.0)):
        energy = becoming(judge, target)(crops, points, noise)
        assert float(energy(crops)) == pytest.approx(1 - STRANGERS.mean + toward, abs=5 * STRANGERS.std)
        assert (
            float(looking_different(becoming(judge, target))(crops, points, noise)(crops)) > float(energy(crops)) + 0.5
        )
    with pytest.raises(DiffPrivacyError, match="needs a recognizer"):
        becoming(None, own)


@pytest.mark.usefixtures("models_loaded_once")
def test_one_face_in_photos_and_a_film(tmp_path, capsys, monkeypatch):
    """The same noise and target, run after run, until another file of personas is taken."""
    source, out, book, starts = tmp_path / "in", tmp_path / "out", tmp_path / "album.age", []
    photo(source / "a.png")
    photo(source / "b.png", mirrored=True)
    write_source(source / "c.mp4", [np.ascontiguousarray(skimage.data.astronaut()[20:180, 150:310])] * 2)
    monkeypatch.setenv("ALBUM", "passphrase")
    noise_to = regeneration.noise_to

    def seen(latents, sigma, noise):
        starts.extend(noise)
        return noise_to(latents, sigma, noise)

    monkeypatch.setattr(regeneration, "noise_to", seen)
    monkeypatch.setattr(protect_picture, "checked", lambda how, *_: how)  # two steps may miss their aim

    def again(file: Path, *options: object) -> int:
        return anonymize(source, out, "--personas", file, "--personas-secret", "env:ALBUM", *options)

    assert again(book) == 0
    assert len(PersonaFile(book, "passphrase").read()) == 1
    assert len(starts) == 4 and all(torch.equal(start, starts[0]) for start in starts)
    assert again(book) == 0 and "3 already done" in capsys.readouterr().out
    first = starts[0]
    (source / "c.mp4").unlink()
    other = tmp_path / "other.age"
    assert again(other, "--batch", 2) == 0
    assert len(starts) == 6 and torch.equal(starts[-1], starts[-2]) and not torch.equal(starts[-1], first)
    assert len(PersonaFile(other, "passphrase").read()) == 1
    monkeypatch.setenv("ALBUM", "wrong")
    before = {path: path.read_bytes() for path in (*out.iterdir(), book)}
    assert again(book, "--overwrite") == 1
    assert "album.age, the persona file, does not open: The passphrase is wrong." in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (*out.iterdir(), book)}


def test_what_does_not_go_with_personas_is_said(tmp_path, capsys, monkeypatch):
    source, book = photo(tmp_path / "a.png"), tmp_path / "album.age"
    monkeypatch.setenv("ALBUM", "passphrase")
    place = ["--personas-secret", "env:ALBUM"]
    for options, message in (
        (["--personas", book], "--personas and --personas-secret go together"),
        (["--personas", book, *place, "--unguided"], "--personas takes no --unguided; leave it out"),
        (["--personas", book, *place, "--seed", 1, "--variants", 2], "no --variants or --seed"),
    ):
        assert anonymize(source, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
    assert anonymize(source, tmp_path / "out", "--personas", book, "--personas-secret", "open sesame") == 1
    assert "--personas-secret: The secret of the personas must be env:NAME or file:PATH" in (
        said := capsys.readouterr().err
    )
    assert "sesame" not in said
    assert anonymize(source, tmp_path / "out", "--personas", book, *place, "--dry-run") == 0
    assert not book.exists() and not (tmp_path / "out").exists()
