"""Training MSI: it learns, it repeats itself, and it survives what happens to it."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.diffusion.model import EncoderIdentity
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.drawing import loss_curve
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face
from diffprivacy.media.images import read_picture
from diffprivacy.msi.module import DEFAULT, MSI, PAPER, load_msi, new_msi
from diffprivacy.msi.training import Settings, Training, suited_rate
from diffprivacy.msi.training_data import prepare, readable_crops
from testing.fixed_prompts import FIXED, fixed_prompt
from testing.fixed_prompts import photo as photo_of

QUICK = Settings(steps=4, batch=4, lr=1e-2, validate_every=2, validation=6, patience=0, warmup=1)


@pytest.fixture(scope="module")
def diffusion_model(demo_model):
    return demo_model


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A real face, (1,3,128,128)."""
    picture = torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255)
    (face,) = load_detector(None).detect(picture)
    return crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]


@pytest.fixture(scope="module")
def data(diffusion_model, photo):
    return prepare(diffusion_model, photo, flips=False)


@pytest.fixture
def start(diffusion_model):
    return new_msi(diffusion_model, DEFAULT)


def same(a, b) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def test_constants_are_those_of_the_picture_and_of_its_mirror_image(diffusion_model, photo):
    data = prepare(diffusion_model, photo, flips=True)
    assert data.features.shape == (2, 5, 192)
    for i, image in enumerate((photo, photo.flip(-1))):
        assert torch.allclose(data.latents[i : i + 1], diffusion_model.encode(image), atol=1e-4)
        states = diffusion_model.image_features(image, [1, 6])
        assert torch.allclose(data.features[i, 0], states[0].mean(1)[0], atol=1e-4)
        assert torch.allclose(data.features[i, 4], states[1].mean(1)[0], atol=1e-4)


def test_the_loss_is_the_diffusion_model_s_own(diffusion_model, data, start):
    """Mean squared error of the predicted noise, from the host's plain denoiser and text encoder."""
    training = Training(start, diffusion_model, data, QUICK)
    words = start.eval()(data.features)[0]
    generator = torch.Generator().manual_seed(-1)
    noise = torch.randn(6, *data.latents.shape[1:], generator=generator)
    errors = []
    for i, eps in enumerate(noise):
        t = int((i + 0.5) * 1000 / 6)
        sigma = diffusion_model.noise_levels.sigmas[t]
        conditioning = diffusion_model.text_conditioning("a photo of *", words[t // 100][None])
        x = data.latents + sigma * eps
        predicted = (x - diffusion_model.denoise(x, sigma, conditioning)) / sigma
        errors.append((predicted - eps).square().mean())
    expected = torch.stack(errors).mean().item()
    assert training.validation_loss(start)[0] == pytest.approx(expected, rel=1e-3)  # Perhaps in bfloat16.
    training.bfloat16 = False
    assert training.validation_loss(start)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", [DEFAULT, PAPER])
def test_training_lowers_the_loss_and_reaches_only_msi(diffusion_model, data, config):
    start = new_msi(diffusion_model, config)
    before = [p.clone() for p in diffusion_model.unet.parameters()]
    settings = dataclasses.replace(QUICK, steps=8, batch=8, lr=0.0, validation=10, ema=0.5)
    training = Training(start, diffusion_model, data, settings)
    learnt = training.run()
    assert training.best_loss < training.history[0][2]
    assert not same(learnt, start)
    for network in (
        diffusion_model.unet,
        diffusion_model.text_encoders[0],
        diffusion_model.vision_encoder,
        diffusion_model.autoencoder,
    ):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, diffusion_model.unet.parameters(), strict=True))


def test_gradients_reach_all_of_msi_that_the_batch_reads(diffusion_model, data, start):
    torch.nn.init.normal_(start.out.weight, std=0.1)
    training = Training(start, diffusion_model, data, dataclasses.replace(QUICK, batch=10))
    training._train_step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in training.msi.parameters())


def test_checkpointing_and_chunks_change_nothing_but_memory(diffusion_model, data, start):
    plain = Training(start, diffusion_model, data, dataclasses.replace(QUICK, lr=1e-3)).run()
    sparing = dataclasses.replace(QUICK, lr=1e-3, checkpointing=True, chunk=2)
    start.config = plain.config = dataclasses.replace(start.config, dropout=0.0)
    words = Training(start, diffusion_model, data, sparing).run()(data.features)
    assert torch.allclose(words, plain(data.features), atol=0.02 * words.norm(dim=-1).mean().item())


@pytest.mark.parametrize("name", ["012"])
def test_ten_words_say_a_real_face_better_than_one_and_one_better_than_any_prompt(diffusion_model, data_dir, name):
    data = prepare(diffusion_model, photo_of(data_dir, name), flips=False)
    settings = Settings(steps=24, batch=10, validate_every=12, validation=20, patience=0)
    untrained = Training(new_msi(diffusion_model), diffusion_model, data, settings)
    losses = {"best fixed prompt": min(fixed_prompt(untrained, diffusion_model, prompt) for prompt in FIXED)}
    for stages in (1, 10):
        msi = new_msi(diffusion_model, dataclasses.replace(DEFAULT, stages=stages))
        training = Training(msi, diffusion_model, data, settings)
        training.run()
        losses[f"pseudo-words: {stages}"] = training.best_loss
    fixed, one, ten = losses.values()
    assert ten < one < fixed


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_the_first_step_moves_a_word_by_half_its_size_whatever_its_width(width):
    """Adam's first step, and a whole one of the suited rate, moves each weight by that rate, whatever the gradient."""
    torch.manual_seed(0)
    word = 0.01 * torch.randn(width)
    msi = MSI(EncoderIdentity((width,), 2, "t"), EncoderIdentity((24,), 6, "v"), DEFAULT, word).eval()
    features = torch.randn(8, 5, 24)
    rate = suited_rate(msi)
    inputs = []
    msi.out.register_forward_hook(lambda _, x, y: inputs.append(x[0]))
    before = msi(features)
    msi.out.weight.data += rate * inputs[0][0, 0].sign()
    moved = (msi(features) - before)[0, 0].norm() / before[0, 0].norm()
    assert 0.4 < moved < 0.6
    assert suited_rate(msi) == pytest.approx(rate / 10)


def test_learning_rate_rises_and_falls_and_the_average_follows(diffusion_model, data, start):
    settings = dataclasses.replace(QUICK, steps=6, batch=2, lr=0.01, warmup=2, ema=0.3, validate_every=6)
    training = Training(start, diffusion_model, data, settings)
    rates, states = [], [start.out.weight.detach().clone()]

    def note(_):
        rates.append(training.optimizer.param_groups[0]["lr"])
        states.append(training.msi.out.weight.detach().clone())

    training.run(note)
    cosine = [0.02 + 0.98 * (1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    assert np.allclose(rates, [settings.lr * c * min(1, (i + 1) / 2) for i, c in enumerate(cosine)])
    average = states[0]
    for step, state in enumerate(states[1:]):
        decay = min(settings.ema, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state
    assert torch.allclose(training.average["out.weight"], average, atol=1e-6)


def test_a_seed_decides_everything(diffusion_model, data, start):
    a, b, c = (
        Training(start, diffusion_model, data, dataclasses.replace(QUICK, seed=seed)).run() for seed in (3, 3, 4)
    )
    assert same(a, b)
    assert not same(a, c)


def test_an_interrupted_run_keeps_what_it_learnt_and_goes_on_to_the_same_end(diffusion_model, data, start, tmp_path):
    settings = dataclasses.replace(QUICK, batch=10, validation=10)
    whole = Training(start, diffusion_model, data, settings)
    whole.run()
    checkpoint = tmp_path / "run"

    def interrupt(now):
        if now.step == 2:
            raise KeyboardInterrupt

    broken = Training(start, diffusion_model, data, settings, checkpoint=checkpoint)
    with pytest.raises(KeyboardInterrupt):
        broken.run(interrupt)
    assert broken.best_loss < broken.history[0][2]
    assert not same(broken.learnt(), start)
    resumed = Training(start, diffusion_model, data, settings, checkpoint=checkpoint)
    assert resumed.step == 2
    assert same(resumed.run(), whole.learnt())
    assert [loss for _, _, loss in resumed.history] == [loss for _, _, loss in whole.history]
    with pytest.raises(DiffPrivacyError, match="other images or settings"):
        Training(start, diffusion_model, data, dataclasses.replace(QUICK, lr=1), checkpoint=checkpoint)
    checkpoint.write_bytes(b"half a file")
    with pytest.raises(DiffPrivacyError, match="cannot be read"):
        Training(start, diffusion_model, data, settings, checkpoint=checkpoint)


def test_training_stops_once_nothing_is_gained(diffusion_model, data, start):
    settings = dataclasses.replace(QUICK, steps=100, lr=1e-30, patience=2, validate_every=1)
    training = Training(start, diffusion_model, data, settings)
    training.run()
    assert training.step == 2


def test_out_of_memory_halves_what_runs_at_once_and_says_so(diffusion_model, data, start, caplog):
    training = Training(start, diffusion_model, data, dataclasses.replace(QUICK, steps=1))
    network, sizes = training.denoise, []

    def small(x, *others):
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("no room")
        return network(x, *others)

    training.denoise = small
    with caplog.at_level(logging.WARNING, "diffprivacy"):
        training.run()
    assert sizes[:3] == [4, 2, 1]
    assert "with 1 time steps at once" in caplog.text
    assert training.step == 1
    training.denoise = lambda x, *others: small(x.repeat(2, 1, 1, 1), *others)
    with pytest.raises(DiffPrivacyError, match="checkpointing"):
        training.validate()


def test_out_of_memory_encodes_fewer_pictures_at_once_and_says_so(diffusion_model, photo, monkeypatch, caplog):
    encode, sizes, room = diffusion_model.encode, [], 2

    def small(images):
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("no room")
        return encode(images)

    pictures = torch.cat([photo, photo.flip(-1), 1 - photo])
    whole = prepare(diffusion_model, pictures)
    monkeypatch.setattr(diffusion_model, "encode", small)
    with caplog.at_level(logging.WARNING, "diffprivacy"):
        parts = prepare(diffusion_model, pictures)
    assert sizes == [6, 6, 4, 2, 2, 2]
    assert "encoding 2 images at once" in caplog.text
    assert torch.allclose(parts.latents, whole.latents, atol=1e-4)
    assert torch.allclose(parts.features, whole.features, atol=1e-4)
    room = 0
    with pytest.raises(DiffPrivacyError, match="smaller crops"):
        prepare(diffusion_model, photo)


def test_bad_pictures(diffusion_model, photo, tmp_path, caplog):
    with pytest.raises(DiffPrivacyError, match=r"32x32.*at least 64x64"):
        prepare(diffusion_model, photo[..., :32, :32])
    with pytest.raises(DiffPrivacyError, match=r"100x100.*multiples of 8"):
        prepare(diffusion_model, photo[..., :100, :100])
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    bad = sorted(tmp_path.iterdir())
    with pytest.raises(DiffPrivacyError, match="No image"):
        readable_crops(bad, lambda rgb: [rgb], 20)
    assert "broken.png" in caplog.text
    assert "tiny.png" in caplog.text


@pytest.mark.usefixtures("models_loaded_once")
def test_command_line(diffusion_model, tmp_path, capsys, caplog):
    folder = tmp_path / "people"
    folder.mkdir()
    with pytest.raises(SystemExit):
        main(["train-msi", str(folder)])
    assert main(["train-msi", str(folder), "-o", str(tmp_path / "a.safetensors")]) == 2
    assert "holds no image" in capsys.readouterr().err
    Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "new" / "astronaut.safetensors"
    train = ["train-msi", str(folder), "-o", str(out), "--steps", "1", "--batch", "2", "--no-flips"]
    assert main([*train, "--init", str(folder / "missing.safetensors")]) == 1
    assert "missing.safetensors does not exist" in capsys.readouterr().err
    assert main(train) == 0
    assert "broken.jpg" in caplog.text
    assert "validation loss" in capsys.readouterr().out
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    assert load_msi(out).words(diffusion_model, torch.rand(2, 3, 128, 128)).shape == (2, 10, 256)
    quick = ["--steps", "2", "--strength", "1", "--unguided", "--seed", "1"]
    protect = ["anonymize", str(folder / "astronaut.png"), *quick]
    assert main([*protect, "-o", str(tmp_path / "plain")]) == 0
    assert main([*protect, "-o", str(tmp_path / "said"), "--msi", str(out)]) == 0
    plain, said = (read_picture(tmp_path / name / "astronaut.png").rgb for name in ("plain", "said"))
    assert not torch.equal(plain, said)


def test_loss_curve_shows_the_fall():
    """The line, in matplotlib's first colour, is lower on the right."""
    image = loss_curve([(0, 0.0, 0.2), (10, 1.0, 0.15), (20, 2.0, 0.12)])
    rows, columns = ((image - torch.tensor([31, 119, 180]) / 255).abs().sum(-1) < 0.05).nonzero().T
    thirds = columns.float().quantile(torch.tensor([1 / 3, 2 / 3]))
    left, right = rows[columns < thirds[0]].float().mean(), rows[columns > thirds[1]].float().mean()
    assert right - left > len(image) / 4
    assert loss_curve([(0, 0.0, 0.2)]).shape == image.shape
