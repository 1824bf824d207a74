"""``--batch``: faces of several images made new together, each as if it were alone."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from diffprivacy.commands import batching
from diffprivacy.commands.batch import Batch
from diffprivacy.commands.batching import Batcher, Stopped, in_threads
from diffprivacy.commands.inputs import Plan
from diffprivacy.commands.workers import chunks
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.identity.energies import Energy, augmented
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration
from testing.folders import anonymize, photo, wall

HOW = Regeneration(PRESETS["anonymize"]["default"])


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """Of the batches that reach a network that doubles crops, and fails over those below 0."""
    seen: list[int] = []

    def network(crops, landmarks, noise, diffusion_model, how, callback):
        seen.append(len(crops))
        callback({"i": 0, "steps": 1})
        if bool((crops < 0).any()):
            raise DiffPrivacyError("below 0")
        return 2 * crops

    monkeypatch.setattr(batching, "regenerate_crops", network)
    return seen


def doubled(batcher: Batcher, source: Path, value: float, how: Regeneration = HOW) -> float:
    crops = torch.full((1, 3, 8, 8), value)
    return float(batcher.regenerate(crops, torch.zeros(1, 5, 2), torch.zeros(1, 4, 1, 1), None, how).mean())


def test_faces_of_several_inputs_are_made_together_in_the_order_of_the_inputs(sizes):
    batcher = Batcher(3)
    inputs = [(Path(f"{i}.png"), float(i)) for i in range(7)]
    made = list(in_threads(inputs, lambda source, value: doubled(batcher, source, value), batcher, 3))
    assert made == [2.0 * i for i in range(7)]
    assert sum(sizes) == 7
    assert max(sizes) <= 3
    assert sizes[0] == 3


def test_what_fails_one_face_fails_no_other(sizes):
    batcher = Batcher(3)

    def work(source: Path, value: float) -> float | str:
        try:
            return doubled(batcher, source, value)
        except DiffPrivacyError as error:
            return error.message

    inputs = [(Path("a"), 1.0), (Path("b"), -1.0), (Path("c"), 3.0)]
    assert list(in_threads(inputs, work, batcher, 3)) == [2.0, "below 0", 6.0]
    assert sizes == [3, 1, 1, 1]


def test_faces_of_other_words_go_alone(sizes):
    batcher = Batcher(2)
    hows = [HOW, Regeneration(HOW.preset, text="an old man")]
    made = in_threads(
        [(Path(f"{i}"), i) for i in range(2)], lambda source, i: doubled(batcher, source, 1.0, hows[i]), batcher, 2
    )
    assert list(made) == [2.0, 2.0]
    assert sizes == [1, 1]


def test_no_thread_outlives_a_run_that_ends(sizes):
    batcher = Batcher(1)
    done = in_threads([(Path(f"{i}"), 1.0) for i in range(50)], lambda s, v: doubled(batcher, s, v), batcher, 2)
    assert next(done) == 2.0
    done.close()
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]
    batcher.begin(1, 1)
    with pytest.raises(Stopped):
        doubled(batcher, Path("late"), 1.0)


def test_large_images_are_worked_on_alone(sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "PIXELS", 100)
    for name, side in (("small", 6), ("large", 20), ("other", 6)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    batcher, at_work, most = Batcher(3), [], []

    def work(source: Path, value: float) -> float:
        at_work.append(source.stem)
        most.append(sorted(at_work))
        made = doubled(batcher, source, value)
        at_work.remove(source.stem)
        return made

    names = ["small", "large", "other"]
    assert list(in_threads([(tmp_path / f"{n}.png", 1.0) for n in names], work, batcher, 3)) == [2.0] * 3
    assert all(together == ["large"] for together in most if "large" in together)


@pytest.mark.parametrize(
    ("inputs", "size", "workers", "expected"),
    [(3, 1, 2, [1, 1, 1]), (12, 4, 2, [6, 6]), (40, 4, 2, [16, 16, 8]), (1, 4, 2, [1])],
)
def test_every_worker_gets_its_part(tmp_path, inputs, size, workers, expected):
    plan = Plan({Path(f"{i}.png"): [tmp_path / f"{i}.png"] for i in range(inputs)})
    assert [len(chunk) for chunk in chunks(Batch("protected", plan), size, workers)] == expected


def test_views_of_a_face_are_those_it_would_get_alone():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 64, 64, generator=generator)
    points = torch.tensor([[20.0, 24], [44, 24], [32, 36], [23, 48], [41, 48]]).expand(3, -1, -1)
    weights = torch.rand(64, 64, generator=generator)

    def energy(landmarks: torch.Tensor, alone: bool) -> Energy:
        plain = Energy(lambda seen, _: (seen.images * weights).mean(dim=(1, 2, 3)), landmarks)
        return augmented(plain, landmarks, draws=2, alone=alone)

    together = energy(points, True)(images, 5)
    each = torch.cat([energy(points[:1], False)(images[i : i + 1], 5) for i in range(3)])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(energy(points, False)(images, 5), each, rtol=1e-5)


def test_batches_make_what_single_inputs_make_up_to_rounding(tmp_path, capsys):
    for i in range(3):
        photo(tmp_path / "in" / f"{i}.png", bool(i % 2))
    wall(tmp_path / "in" / "wall.png")
    tqdm.get_lock().acquire()  # as a command does that is interrupted while it draws a bar
    said = []
    for name, options in (("one", []), ("batch", ["--batch", 2])):
        assert anonymize(tmp_path / "in", tmp_path / name, "--seed", 1, *options) == 1
        printed = capsys.readouterr()
        assert printed.err.count("wall.png: No face was found") == 1
        said.append(printed.out.replace(str(tmp_path / name), "out"))
    assert said[0] == said[1]
    for i in range(3):
        one, other = (np.asarray(Image.open(tmp_path / name / f"{i}.png")).astype(int) for name in ("one", "batch"))
        assert np.abs(one - other).max() <= 2
