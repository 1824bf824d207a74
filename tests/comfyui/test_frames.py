"""Faces that are followed through frames, and new faces that do not flicker, with the embedded model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffprivacy import demo
from tests.comfyui.graphs import Graph, slot
from tests.comfyui.photos import pixels, write_group
from tests.comfyui.server import ComfyServer, PromptError

HEAD = (slice(60, 190), slice(70, 200))
"""Where the astronaut's head is in every frame."""
FACE = slice(demo.IMAGE_SIZE // 4, -demo.IMAGE_SIZE // 4)
"""Rows and columns of the face in every crop."""


def moving(photo: np.ndarray, top: int, left: int, height: int, width: int, count: int) -> np.ndarray:
    """The frames of a camera that moves over a photo."""
    return np.stack([photo[top + i : top + height + i, left + 2 * i : left + width + 2 * i] for i in range(count)])


def astronaut(count: int) -> np.ndarray:
    return moving(skimage.data.astronaut(), 0, 90, 288, 288, count)


def write_frames(file: Path, frames: np.ndarray) -> str:
    """The name of a PNG file that Load Image takes for a batch."""
    first, *others = map(Image.fromarray, frames)
    first.save(file, save_all=True, append_images=others)
    return file.name


@pytest.fixture(scope="module")
def shot(server: ComfyServer) -> str:
    return write_frames(server.base / "input" / "shot.png", astronaut(6))


class Clip:
    """A graph that redraws the faces in the frames of a file, with one noise for all crops."""

    def __init__(self, file: str, select: str = "all"):
        self.graph = graph = Graph()
        self.loader = self.model = graph.add("DiffPrivacyLoadDemoModel")
        self.image = graph.add("LoadImage", image=file)
        detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
        self.faces = graph.add(
            "DiffPrivacyDetectFaces",
            **{"image": self.image, "detector": detector, "select": select, "without_face": "keep unchanged"},
        )

    def follow(self, recognizer: bool = False) -> Clip:
        guide = {"recognizer": slot(self.loader, 4)} if recognizer else {}
        self.faces = self.graph.add(
            "DiffPrivacyFollowFaces", image=self.image, faces=self.faces, frame_rate=25.0, **guide
        )
        self.people = slot(self.faces, 1)
        return self

    def crop(self, variants: int = 1) -> Clip:
        self.crops = self.graph.add(
            "DiffPrivacyCropFaces",
            **{"image": self.image, "faces": self.faces, "size": demo.IMAGE_SIZE, "margin": demo.MARGIN},
            variants=variants,
        )
        self.faces = slot(self.crops, 2)
        return self

    def steady(self) -> Clip:
        self.model = self.graph.add("DiffPrivacySteadyFrames", model=self.model, faces=self.faces, frame_rate=25.0)
        return self

    def redrawn(self, crops: list | None = None) -> list:
        vae = slot(self.loader, 2)
        prompt = self.graph.add("CLIPTextEncode", clip=slot(self.loader, 1), text="")
        latent = self.graph.add("VAEEncode", pixels=crops or self.crops, vae=vae)
        samples = self.graph.add(
            "KSampler",
            **{"model": self.model, "positive": prompt, "negative": prompt, "seed": 7, "steps": 6, "cfg": 1.0},
            **{"sampler_name": "euler", "scheduler": "normal", "denoise": 0.6},
            latent_image=self.graph.add("LatentBatchSeedBehavior", samples=latent, seed_behavior="fixed"),
        )
        return self.graph.add("VAEDecode", samples=samples, vae=vae)

    def pasted(self) -> list:
        return self.graph.add("DiffPrivacyPasteFaces", image=self.image, crops=self.redrawn(), faces=self.faces)

    def run(self, server: ComfyServer, images: list) -> np.ndarray:
        """The pictures (N,H,W,3) that an output of the graph gives."""
        (node, _) = self.graph.add("DiffPrivacySaveProtected", image=images, filename_prefix="frames")
        references = server.run(self.graph)[node]["images"]
        return np.stack([server.picture(reference) for reference in references]).astype(int)


def test_a_face_that_the_detector_misses_in_a_frame_is_protected_there(server):
    frames = astronaut(5)
    frames[2][HEAD] = 128
    file = write_frames(server.base / "input" / "covered.png", frames)

    def change(clip: Clip) -> np.ndarray:
        changed = np.abs(clip.run(server, clip.pasted()) - frames)
        return np.array([frame[HEAD].mean() for frame in changed])

    alone, followed = change(Clip(file).crop()), change(Clip(file).follow().crop())
    assert alone[2] == 0
    assert min(alone[[0, 1, 3, 4]]) > 5
    assert min(followed) > 5


def followed(server: ComfyServer, file: str, recognizer: bool) -> tuple[int, str]:
    """Number of crops, and of people as it is shown."""
    clip = Clip(file).follow(recognizer).crop()
    (shown, _) = clip.graph.add("PreviewAny", source=clip.people)
    return len(clip.run(server, clip.crops)), server.run(clip.graph)[shown]["text"][0]


@pytest.mark.parametrize(("recognizer", "people"), [(False, "2"), (True, "1")])
def test_nobody_is_followed_over_a_cut_but_a_recognizer_knows_them_again(server, recognizer, people):
    mirrored = moving(skimage.data.astronaut()[:, ::-1], 0, 90, 288, 288, count=3)
    file = write_frames(server.base / "input" / "shots.png", np.concatenate([astronaut(3), mirrored]))
    assert followed(server, file, recognizer) == (6, people)


def test_a_face_is_followed_through_a_flash(server):
    frames = astronaut(6)
    frames[2:4] = 255
    file = write_frames(server.base / "input" / "flash.png", frames)
    assert followed(server, file, recognizer=False) == (6, "1")


def test_steady_frames_take_the_flicker_away(server, shot):
    def jitter(clip: Clip) -> float:
        crops = clip.run(server, clip.redrawn())
        return np.abs(np.diff(crops[:, FACE, FACE], n=2, axis=0)).mean()

    assert jitter(Clip(shot).follow().crop().steady()) < 0.5 * jitter(Clip(shot).follow().crop())


def test_one_frame_alone_is_the_plain_model_bit_for_bit(server):
    file = write_frames(server.base / "input" / "one.png", astronaut(1))
    plain, steady = Clip(file).follow().crop(), Clip(file).follow().crop().steady()
    assert np.array_equal(plain.run(server, plain.redrawn()), steady.run(server, steady.redrawn()))


def test_each_persons_variants_are_steadied_for_themselves(server):
    """Two people with two variants each give in one batch what each of them gives alone."""
    group = pixels(write_group(server.base / "input"))
    file = write_frames(server.base / "input" / "two.png", moving(group, 100, 10, 380, 420, count=3))
    both = Clip(file).follow().crop(variants=2).steady()
    together = both.run(server, both.redrawn()).reshape(3, 2, 2, *[demo.IMAGE_SIZE] * 2, 3)
    for person in range(2):
        one = Clip(file, select=str(person)).follow().crop().steady()
        alone = one.run(server, one.redrawn())
        for variant in range(2):
            assert np.abs(together[:, person, variant] - alone).max() <= 2
            assert np.abs(together[:, 1 - person, variant] - alone).mean() > 20


@pytest.mark.parametrize(
    "clip", [lambda file: Clip(file).crop(), lambda file: Clip(file).follow()], ids=["not followed", "not cropped"]
)
def test_steady_frames_need_faces_that_were_followed_and_cropped(server, shot, clip):
    steady = clip(shot).steady()
    steady.graph.add("PreviewAny", source=steady.model)
    with pytest.raises(PromptError, match="Socket `faces`: Connect Follow Faces before Crop Faces"):
        server.run(steady.graph)


def test_steady_frames_need_all_crops(server, shot):
    clip = Clip(shot).follow().crop(variants=2).steady()
    some = clip.graph.add("ImageFromBatch", image=clip.crops, batch_index=0, length=5)
    with pytest.raises(PromptError, match=r"predicts 5 images for 12 \(6 faces, 2 variant\(s\) each\)"):
        clip.run(server, clip.redrawn(some))


def test_frames_other_than_those_with_the_faces(server, shot):
    clip = Clip(shot)
    clip.image = clip.graph.add("ImageFromBatch", image=clip.image, batch_index=0, length=5)
    clip.follow().crop()
    with pytest.raises(PromptError, match="Socket `image`: 5 images of 288x288, but the faces were found in 6"):
        clip.run(server, clip.crops)


def test_frames_without_any_face(server):
    file = write_frames(server.base / "input" / "empty.png", np.full((3, 96, 96, 3), 128, np.uint8))
    clip = Clip(file).follow().crop()
    with pytest.raises(PromptError, match="Socket `faces`: There is no face in any frame"):
        clip.run(server, clip.crops)
