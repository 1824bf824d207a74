"""The embedded demo model: its files, what its parts can do, and the machinery that trained it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffprivacy import demo
from diffprivacy.backends.tokenizer import PLACEHOLDER_TOKEN, tokenize
from diffprivacy.demo import load
from diffprivacy.demo.autoencoder import Autoencoder
from diffprivacy.demo.recognizers import DlibResNet, MobileFace
from diffprivacy.demo.text import VOCABULARY_SIZE, CompactEmbedding, full_table
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks
from training.autoencoder import principal_components
from training.data import Augmenter, arcface_crop, in_colour, luminance
from training.evaluate import samples
from training.loop import Run, checkpoint_weights, shipped_weights, train
from training.unet import CaptionTable, Model

CPU = torch.device("cpu")
ASTRONAUT_LANDMARKS = np.array([[203, 104], [248, 104], [224, 128], [204, 143], [243, 144]], dtype=np.float32)


def astronaut_crop(size: int = demo.IMAGE_SIZE, margin: float = 1.45) -> Tensor:
    """The astronaut's face, (size,size,3) in [0,1]."""
    from skimage import data

    picture = torch.from_numpy(data.astronaut()).float() / 255
    return crop_face(picture, Face((180, 70, 270, 180), ASTRONAUT_LANDMARKS, 1.0), size, margin)


@pytest.fixture(scope="module")
def face() -> Tensor:
    return astronaut_crop().permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return demo.load_autoencoder()


def test_weights_stay_within_what_a_pack_may_weigh():
    assert sum(path.stat().st_size for path in load.WEIGHTS.iterdir()) <= 56_000_000


def test_model_card_says_what_is_shipped_from_where_and_how_to_make_it_again():
    card = (load.FOLDER / "MODEL_CARD.md").read_text()
    for path in load.WEIGHTS.glob("*.safetensors"):
        assert f"`{path.name}`" in card
    for script in ("autoencoder", "unet", "freeze", "msi", "evaluate"):
        assert f"python -m training.{script} " in card
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL))
    assert "MIT licence" in sections["Data and rights"]
    assert "public domain" in sections["Data and rights"]
    assert "under-represented" in sections["Limits"]
    assert re.search(r"^\| run \| pictures \| seconds \| device \|$", sections["Training"], re.MULTILINE)


def test_damaged_weight_file_is_refused_with_its_checksum(tmp_path: Path):
    for name in ("autoencoder.safetensors", load.CHECKSUMS):
        shutil.copy(load.WEIGHTS / name, tmp_path)
    path = tmp_path / "autoencoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    published = json.loads((tmp_path / load.CHECKSUMS).read_text())[path.name]
    with pytest.raises(DiffPrivacyError, match=f"autoencoder.safetensors is damaged: .*{published}"):
        load.weights("autoencoder", tmp_path)


def test_missing_weight_file_is_named(tmp_path: Path):
    shutil.copy(load.WEIGHTS / load.CHECKSUMS, tmp_path)
    with pytest.raises(DiffPrivacyError, match=r"unet\.safetensors is missing"):
        load.weights("unet", tmp_path)


def test_autoencoder_keeps_picture_and_identity(autoencoder: Autoencoder, face: Tensor):
    restored = (autoencoder(face * 2 - 1) / 2 + 0.5).clamp(0, 1)
    assert psnr(restored[0].permute(1, 2, 0), face[0].permute(1, 2, 0)) > 27
    for which in ("guide", "judge"):
        recognizer = demo.load_recognizer(which)
        assert (recognizer(arcface_crop(restored)) * recognizer(arcface_crop(face))).sum() > 0.8


def test_latents_have_the_scale_of_the_noise_and_an_eighth_of_the_size(autoencoder: Autoencoder, face: Tensor):
    latents = autoencoder.encode(face * 2 - 1)
    assert latents.shape == (1, demo.LATENT_CHANNELS, 16, 16)
    assert 0.5 < latents.std() < 2


def test_autoencoder_takes_any_multiple_of_eight(autoencoder: Autoencoder):
    picture = astronaut_crop(192).permute(2, 0, 1)[None, :, :, :136]
    restored = (autoencoder(picture * 2 - 1) / 2 + 0.5).clamp(0, 1)
    assert psnr(restored[0].permute(1, 2, 0), picture[0].permute(1, 2, 0)) > 27


def test_gradients_reach_the_latents_through_decoder_and_recognizer(autoencoder: Autoencoder, face: Tensor):
    latents = autoencoder.encode(face * 2 - 1).detach().requires_grad_()
    decoded = autoencoder.decode(latents) / 2 + 0.5
    demo.load_recognizer("guide")(arcface_crop(decoded))[0, 0].backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize("which", ["guide", "judge"])
def test_thresholds_from_clean_pairs_are_shipped_beside_the_recognizers(which):
    """Reading them also checks that they were measured on the weights shipped."""
    kept = demo.load_recognizer(which).threshold(1e-3)
    assert (kept.same_pairs, kept.different_pairs) == (450, 4500)
    assert 0.1 < kept.cosine < 0.9


def test_the_judge_computes_what_dlib_computes():
    """The reference is dlib's own answer, by dlib-bin 20.0.1, for the same pixels; the weights are in half precision."""
    from skimage import data

    crop = torch.from_numpy(data.astronaut()[40:190, 150:300].copy()).permute(2, 0, 1)[None].float()
    network = demo.load_recognizer("judge").network
    assert isinstance(network, DlibResNet)
    reference = np.load(Path(__file__).parent / "reference" / "dlib_descriptor.npy")
    with torch.no_grad():
        assert abs(network.descriptor(crop)[0].numpy() - reference).max() < 1e-3


def test_the_guide_computes_what_its_weights_say():
    plain = MobileFace().eval()
    plain.load_state_dict(load.weights("mobileface"))
    crop = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(demo.load_recognizer("guide").network(crop), plain(crop))


@pytest.mark.parametrize("which", ["guide", "judge"])
def test_recognizers_tell_the_six_friends_apart(which):
    import cv2
    import insightface

    photo = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    picture = cv2.imread(str(photo))
    assert picture is not None
    rgb = torch.from_numpy(np.ascontiguousarray(picture[..., ::-1])).float() / 255
    recognizer = demo.load_recognizer(which)
    views = []
    for turn in (0.0, 3.0):
        faces = [_moved(face, turn) for face in SIX_FRIENDS]
        crops = torch.stack([crop_face(rgb, face, 160, 1.45) for face in faces]).permute(0, 3, 1, 2)
        points = torch.stack([crop_landmarks(face, 160, 1.45) for face in faces])
        if turn:
            crops, points = crops.flip(-1), points[:, [1, 0, 2, 4, 3]] * torch.tensor([-1, 1]) + torch.tensor([159, 0])
        views.append(recognizer.embed(crops, points)[0])
    cosines = views[0] @ views[1].T
    same, different = cosines.diagonal(), cosines[~torch.eye(6, dtype=torch.bool)]
    assert same.mean() - different.mean() > 0.4
    assert same.min() > different.mean()


SIX_FRIENDS = [
    Face((0, 0, 1, 1), np.array(landmarks, dtype=np.float32), 1.0)
    for landmarks in (
        [[491, 323], [541, 332], [508, 361], [484, 373], [528, 381]],
        [[915, 121], [942, 112], [919, 152], [932, 172], [955, 163]],
        [[85, 320], [130, 306], [118, 333], [103, 361], [142, 349]],
        [[1156, 321], [1199, 323], [1172, 346], [1156, 365], [1193, 366]],
        [[763, 400], [806, 400], [775, 427], [768, 444], [803, 444]],
        [[288, 206], [328, 196], [305, 226], [303, 248], [335, 239]],
    )
]
"""The faces of insightface's group photo, as YuNet finds them."""


def _moved(face: Face, pixels: float) -> Face:
    return Face(face.box, face.landmarks + pixels / 3, face.score)


def test_unet_takes_most_of_the_noise_off_a_face_it_never_saw(demo_model, face: Tensor):
    diffusion_model = demo_model
    clean = diffusion_model.encode(face)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    anyone = diffusion_model.text_conditioning("")
    for timestep, left in ((100, 0.6), (300, 0.35), (600, 0.15)):
        sigma = diffusion_model.noise_levels.sigmas[timestep]
        denoised = diffusion_model.denoise(clean + sigma * noise, sigma, anyone)
        assert (denoised - clean).square().mean() < left * sigma**2


def test_prompts_draw_faces_and_heed_the_colour():
    from diffprivacy.faces.detectors import load_detector

    drawn = {
        words: samples(f"a {words} photo of a person", 4, CPU, steps=12, seed=5)
        for words in ("color", "black and white")
    }
    chroma = {words: (pictures.amax(1) - pictures.amin(1)).mean() for words, pictures in drawn.items()}
    assert chroma["black and white"] < 0.85 * chroma["color"]
    detector = load_detector(None)
    found = [detector.detect(picture.permute(1, 2, 0)) for pictures in drawn.values() for picture in pictures]
    assert sum(len(faces) == 1 for faces in found) >= 6


def test_diffusion_model_offers_every_part_of_the_method(demo_model, face: Tensor):
    diffusion_model = demo_model
    assert (diffusion_model.image_size, diffusion_model.downscale, diffusion_model.latent_channels) == (128, 8, 16)
    restored = diffusion_model.decode(diffusion_model.encode(face))
    assert psnr(restored[0].permute(1, 2, 0), face[0].permute(1, 2, 0)) > 27
    features = diffusion_model.image_features(face, (1, 2, 3, 4, 6))
    assert [f.shape for f in features] == [(1, 65, 192)] * 5
    plain = diffusion_model.text_conditioning("a photo of a person").context
    assert plain.shape == (1, 77, 256)
    pseudo = diffusion_model.text_conditioning("a photo of *", torch.ones(1, 256)).context
    assert not torch.equal(pseudo, diffusion_model.text_conditioning("a photo of *", -torch.ones(1, 256)).context)


def test_words_outside_the_captions_share_one_embedding():
    table = demo.weights("text_encoder")["embeddings.token_embedding.weight"]
    assert table.shape[0] == VOCABULARY_SIZE
    unicorn, zebra, photo = (tokenize(word)[1] for word in ("unicorn", "zebra", "photo"))
    assert torch.equal(table[unicorn], table[zebra])
    assert not torch.equal(table[photo], table[zebra])


def test_full_table_and_compact_embedding_agree():
    compact = CompactEmbedding([5, 265], 4, placeholder=265)
    ids = torch.tensor([[5, 7, 265]])
    assert torch.equal(compact(ids), full_table(compact.weight.detach(), compact.token_ids)[ids])
    compact.pseudo_words = torch.full((1, 4), 9.0)
    assert torch.equal(compact(ids)[0, 2], torch.full((4,), 9.0))
    assert torch.equal(compact(ids)[0, 0], compact.weight[0])


def test_principal_components_are_the_best_linear_code():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 4, 4, generator=generator) * 2 - 1
    images = nn.functional.interpolate(coarse, size=64, mode="bilinear")
    mean, basis, deviations = principal_components(images, 16)
    model = Autoencoder(16, 32, 32, 1, 1)
    model.set_linear(mean, basis, deviations**-0.5)
    nn.init.zeros_(model.decoder.conv_out.weight)
    with torch.no_grad():
        error = (model(images) - images).square().mean()
        assert error < 1e-3 * images.var()
        before, latents = model(images), model.encode(images)
        model.rescale(0.5)
        assert torch.allclose(model(images), before, atol=1e-5)
        assert torch.allclose(model.encode(images), latents / 2, atol=1e-5)


def test_arcface_crop_of_a_portrait_is_the_recognizers_own_crop(face: Tensor):
    direct = astronaut_crop(112, 1.0).permute(2, 0, 1)[None]
    through = arcface_crop(face)
    assert psnr(through[0].permute(1, 2, 0), direct[0].permute(1, 2, 0)) > 30


def test_toned_prints_are_not_in_colour(face: Tensor):
    sepia = luminance(face) * torch.tensor([1.0, 0.85, 0.6]).view(1, 3, 1, 1)
    assert in_colour(torch.cat([face, sepia, luminance(face).expand(-1, 3, -1, -1)])).tolist() == [True, False, False]


def test_tint_colours_a_grey_portrait_and_keeps_its_luminance(face: Tensor):
    grey = luminance(face) * 0.6 + 0.2
    tinted = Augmenter(torch.Generator().manual_seed(1)).tinted(grey)
    assert (luminance(tinted) - grey).abs().max() < 0.02
    centre = tinted[0, :, 50:80, 50:80].mean((1, 2))
    assert centre[0] > centre[1] > centre[2]


def test_views_depend_on_the_seed_alone(face: Tensor):
    faces, colour = face.repeat(4, 1, 1, 1), torch.ones(4, dtype=torch.bool)
    views = [Augmenter(torch.Generator().manual_seed(s))(faces, colour)[0] for s in (3, 3, 4)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert views[0].min() >= 0
    assert views[0].max() <= 1


def _fit(out: Path, steps: int, total: int) -> dict[str, Tensor]:
    """A line fitted for some steps of a schedule of ``total``, as if the machine had stopped there."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    out.mkdir(exist_ok=True)
    taken = 0

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise InterruptedError
        x = torch.randn(8, 3, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    run = Run(out, total, float("inf"), 8, 1e-2, 0, CPU, warmup=2, checkpoint_minutes=0)
    with contextlib.suppress(InterruptedError):
        train(module, loss, run)
    return checkpoint_weights(out)


def test_interrupted_training_resumes_to_the_same_weights(tmp_path: Path):
    whole = _fit(tmp_path / "whole", 20, 20)
    _fit(tmp_path / "parts", 9, 20)
    resumed = _fit(tmp_path / "parts", 11, 20)
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-7) for name in whole)


def test_training_logs_its_progress_and_its_cost(tmp_path: Path, capsys):
    _fit(tmp_path, 9, 20)
    _fit(tmp_path, 11, 20)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "log.txt").read_text()
    assert re.search(r"^step 20 \d+ s \d+ pictures/s lr ", printed, re.MULTILINE)
    assert re.search(r"^finished at step 20: 160 pictures in \d+ s on cpu", printed, re.MULTILINE)


def test_captions_are_empty_as_often_as_asked_for():
    table = CaptionTable(CPU)
    drawn = table.draw(torch.arange(4000) % 4 == 0, 0.15, 0.10, torch.Generator().manual_seed(0))
    empty = (drawn == table.empty).all(1)
    placeholder = (drawn == PLACEHOLDER_TOKEN).any(1)
    assert 0.12 < empty.float().mean() < 0.18
    assert 0.07 < (~empty & ~placeholder).float().mean() < 0.13


def test_training_can_go_on_from_the_shipped_weights():
    """Every part is shipped under the names, and with the vocabulary, that the training scripts use."""
    model = Model(CaptionTable(CPU).token_ids, identity_width=256, coarse_width=16)
    for module, part in ((model.unet, "unet"), (model.text, "text_encoder"), (model.vision, "image_encoder")):
        module.load_state_dict(shipped_weights(part))
    Autoencoder(**demo.config("autoencoder")).load_state_dict(shipped_weights("autoencoder"))
