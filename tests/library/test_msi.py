"""MSI: the paper's module to the letter, its generalisation, and its files."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprivacy import demo
from diffprivacy.backends import diffusers as diffusers_host
from diffprivacy.backends.vision import load_vision_encoder
from diffprivacy.diffusion.model import EncoderIdentity, weights_fingerprint
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.msi.module import (
    DEFAULT,
    MSI,
    PAPER,
    MSIConfig,
    load_msi,
    new_msi,
    relative_levels,
    save_msi,
    scale_of,
    textual_inversions,
)
from diffprivacy.msi.training import Settings, Training
from diffprivacy.msi.training_data import prepare

CLIP_L = EncoderIdentity((768,), 12, "text")
SDXL = EncoderIdentity((768, 1280), 12, "text")
TWO = EncoderIdentity((24, 40), 12, "text")
VIT_L = EncoderIdentity((1024,), 24, "vision")
VIT_H = EncoderIdentity((1280,), 32, "vision")


@pytest.fixture(scope="module")
def diffusion_model(demo_model):
    return demo_model


@pytest.fixture
def small():
    torch.manual_seed(0)
    return MSI(EncoderIdentity((32,), 2, "t"), EncoderIdentity((24,), 6, "v"), DEFAULT, torch.randn(32))


def test_levels_lie_at_the_same_relative_depth():
    assert relative_levels(24) == (3, 7, 11, 15, 24)
    assert relative_levels(32) == (4, 9, 15, 20, 32)
    assert relative_levels(6) == (1, 2, 3, 4, 6)


def test_stage_k_reads_level_k_half():
    assert [scale_of(stage) for stage in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    torch.manual_seed(0)
    msi = MSI(CLIP_L, VIT_L, PAPER).eval()
    features = torch.randn(1, 5, 1024)
    before = msi(features)
    for level in range(5):
        changed = features.clone()
        changed[:, level] += 1
        moved = (msi(changed) - before).abs().amax(-1)[0] > 1e-6
        assert moved.nonzero().flatten().tolist() == [2 * level, 2 * level + 1]


def test_the_paper_s_module_is_the_published_formula():
    """Projected, normalised, scaled by the stage; attention over one token is what its values make of the context."""
    torch.manual_seed(0)
    msi = MSI(CLIP_L, VIT_L, PAPER).eval()
    features = torch.randn(2, 5, 1024)
    words = msi(features)
    assert words.shape == (2, 10, 768)
    w = {name: tensor.double() for name, tensor in msi.state_dict().items()}
    for stage in (0, 5, 9):
        level = stage // 2
        x = features[:, level].double() @ w[f"projectors.{level}.linear1.weight"].T
        x = x @ w[f"projectors.{level}.linear2.weight"].T
        x = x / x.norm(dim=1, keepdim=True) * w["stages"][stage]
        x = x @ w["attentions.1.value.weight"].T
        x = x @ w["attentions.1.out.0.weight"].T + w["attentions.1.out.0.bias"]
        x = x @ w["out.weight"].T + w["out.bias"]
        assert torch.allclose(words[:, stage].double(), x, atol=1e-5)
    shapes = {name: tuple(tensor.shape) for name, tensor in msi.named_parameters()}
    assert shapes["projectors.4.linear1.weight"] == (768, 1024)
    assert shapes["stages"] == (10, 768)
    assert shapes["attentions.0.query.weight"] == (8 * 64, 768)


@pytest.mark.parametrize(("text", "vision"), [(CLIP_L, VIT_H), (TWO, VIT_L)])
@pytest.mark.parametrize("stages", [1, 7, 10])
def test_any_encoders_and_stages(text, vision, stages):
    width = sum(text.widths)
    word = torch.randn(width)
    msi = MSI(text, vision, MSIConfig(stages=stages, heads=0, anchored=True, scaled=True), word).eval()
    features = torch.randn(3, 5, vision.widths[0])
    words = msi(features)
    assert torch.allclose(words, word.expand(3, stages, width), atol=1e-5)
    torch.nn.init.normal_(msi.out.weight)
    words = msi(features)
    assert not torch.allclose(words, word.expand(3, stages, width), atol=0.1)
    for part, of_word in zip(words.split(list(text.widths), -1), word.split(list(text.widths)), strict=True):
        assert torch.allclose(part.norm(dim=-1), of_word.norm().expand(3, stages), rtol=1e-4)


def test_an_untrained_module_says_its_word(diffusion_model):
    words = new_msi(diffusion_model, DEFAULT).words(diffusion_model, torch.rand(1, 3, 128, 128))
    for prompt in ("a photo of {}", "{}, a portrait"):
        said = diffusion_model.text_conditioning(prompt.format("*"), words[0, 3:4])
        written = diffusion_model.text_conditioning(prompt.format("face"))
        assert torch.allclose(said.context, written.context, atol=1e-4)


@pytest.mark.parametrize(("kind", "width"), [("sd2", 48), ("sdxl", 32 + 48)])
def test_other_families_say_a_face_and_learn_it(folders, kind, width):
    """Velocity prediction, and two text encoders with a pooled output: the loss is the plain denoiser's there too."""
    host = diffusers_host.load_diffusion_model(folders[kind])
    host.vision_encoder = demo.load_image_encoder()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    start = new_msi(host)
    words = start.words(host, image)[0]
    assert words.shape == (10, width)
    said, written = host.text_conditioning("a photo of *", words[:1]), host.text_conditioning("a photo of face")
    assert torch.allclose(said.context, written.context, atol=1e-4)
    settings = Settings(steps=3, batch=5, validation=3, validate_every=1, lr=0.05, patience=0)
    training = Training(start, host, data := prepare(host, image, flips=False), settings)
    noise = torch.randn(3, *data.latents.shape[1:], generator=torch.Generator().manual_seed(-1))
    errors = []
    for t, eps in zip((166, 500, 833), noise, strict=True):
        sigma = host.noise_levels.sigmas[t]
        denoised = host.denoise(data.latents + sigma * eps, sigma, written)
        errors.append(((data.latents + sigma * eps - denoised) / sigma - eps).square().mean().item())
    assert training.validation_loss(start)[0] == pytest.approx(sum(errors) / 3, rel=1e-3)
    training.run()
    assert (training.msi.cpu().words(host, image)[0] - words).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_module(diffusion_model):
    a, b, c = (new_msi(diffusion_model, PAPER, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stages"], c["stages"])


def test_files_keep_everything(small, tmp_path):
    torch.nn.init.normal_(small.out.weight)
    save_msi(small, tmp_path / "new" / "msi.safetensors")
    loaded = load_msi(tmp_path / "new" / "msi.safetensors")
    features = torch.randn(2, 5, 24)
    assert torch.equal(loaded(features), small.eval()(features))
    assert (loaded.text_encoder, loaded.image_encoder, loaded.config) == (
        small.text_encoder,
        small.image_encoder,
        small.config,
    )
    save_msi(small, tmp_path / "half.safetensors", half=True)
    assert torch.allclose(load_msi(tmp_path / "half.safetensors")(features), small(features), atol=1e-2)


def encoder(*widths):
    return json.dumps({"widths": widths, "depth": 12, "signs": "0"})


def written(small, path, **metadata):
    save_msi(small, path)
    tensors = load_file(path)
    about = {"format": "diffprivacy-msi", "version": "1", "config": "{}"}
    for kind, identity in (("text_encoder", small.text_encoder), ("image_encoder", small.image_encoder)):
        about[kind] = json.dumps({"widths": identity.widths, "depth": identity.depth, "signs": identity.signs})
    save_file(tensors, path, about | metadata)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda small, path: None, "does not exist"),
        (lambda small, path: path.write_bytes(b"not tensors"), "not a readable safetensors"),
        (lambda small, path: save_file({"clip_l": torch.zeros(1, 768)}, path), "no MSI file"),
        (lambda small, path: written(small, path, version="9"), "version 9.*update"),
        (lambda small, path: written(small, path, config='{"stages": 3}'), "(?s)damaged.*stages"),
        (lambda small, path: written(small, path, text_encoder='{"width": 1}'), "damaged"),
        (lambda small, path: written(small, path, text_encoder=encoder(30000)), "8192 is the most"),
        (lambda small, path: written(small, path, image_encoder=encoder(30000, 30000)), "8192 is the most"),
        (lambda small, path: written(small, path, text_encoder=encoder("wide")), "8192 is the most"),
        (lambda small, path: written(small, path, text_encoder=encoder(8192)), "damaged: not of the shape"),
        (
            lambda small, path: written(small, path, config='{"heads": 100000, "head_width": 8192}'),
            "damaged: not of the shape",
        ),
        (lambda small, path: written(small, path, config='{"heads": 9000000000, "head_width": 9000000000}'), "damaged"),
        (lambda small, path: written(small, path, config="[" * 100000), "damaged"),
    ],
)
def test_a_file_that_cannot_serve_is_one_clear_error(small, tmp_path, spoil, message):
    spoil(small, tmp_path / "a.safetensors")
    with pytest.raises(DiffPrivacyError, match=message) as caught:
        load_msi(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value)


def test_another_encoder_is_refused_by_name(diffusion_model):
    text, image = diffusion_model.text_encoder_identity, diffusion_model.image_encoder_identity
    MSI(text, image).check(diffusion_model)
    with pytest.raises(DiffPrivacyError, match=r"another text encoder.*12 layers of 768.*2 layers of 256"):
        MSI(CLIP_L, image).check(diffusion_model)
    with pytest.raises(DiffPrivacyError, match=r"another CLIP vision model.*24 layers of 1024.*6 layers of 192"):
        MSI(text, VIT_L).check(diffusion_model)


def test_identity_of_an_encoder_is_that_of_its_weights_in_any_precision(diffusion_model):
    table = diffusion_model.text_encoders[0].get_input_embeddings().weight
    for dtype in (torch.float16, torch.bfloat16):
        assert EncoderIdentity.of((256,), 2, [table.to(dtype)]) == EncoderIdentity.of((256,), 2, [table])
    assert EncoderIdentity.of((256,), 2, [-table]) != EncoderIdentity.of((256,), 2, [table])


def test_weights_made_in_inference_mode_are_identified_outside_it(diffusion_model):
    """So ComfyUI makes them, and may move them outside that mode."""
    encoder = diffusion_model.text_encoders[0]
    with torch.inference_mode():
        made = copy.deepcopy(encoder)
    for moved in (made, made.double()):
        table, own = moved.get_input_embeddings().weight, encoder.get_input_embeddings().weight
        assert EncoderIdentity.of((256,), 2, [table]) == EncoderIdentity.of((256,), 2, [own])
        assert weights_fingerprint([moved]) == weights_fingerprint([encoder])


def test_without_a_vision_model_the_error_says_how_to_give_one(tiny_checkpoint):
    host = diffusers_host.load_diffusion_model(tiny_checkpoint)
    with pytest.raises(DiffPrivacyError, match="MSI needs a CLIP vision model"):
        new_msi(host)


def test_a_clip_vision_file_of_the_usual_names_is_read(diffusion_model, tmp_path):
    state = diffusion_model.vision_encoder.state_dict()
    names = {name: name if name.startswith("vision_model.") else f"vision_model.{name}" for name in state}
    save_file({names[name]: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vision.safetensors")
    encoder = load_vision_encoder(tmp_path / "vision.safetensors")
    pixels = torch.rand(1, 3, 128, 128)
    hidden, expected = (
        network(pixels, output_hidden_states=True).hidden_states
        for network in (encoder, diffusion_model.vision_encoder)
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(hidden, expected, strict=True))


@pytest.mark.parametrize(("width", "activation"), [(1024, "quick_gelu"), (1280, "gelu")], ids=["vit-l", "vit-h"])
def test_the_vision_models_that_users_have_are_read_with_their_heads_and_activation(tmp_path, width, activation):
    """ViT-L/14 and ViT-H/14 of two layers, as transformers itself computes them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16}
    expected = CLIPVisionModel(CLIPVisionConfig(patch_size=14, image_size=28, hidden_act=activation, **shape)).eval()
    state = expected.state_dict()
    names = {name: name if name.startswith("vision_model.") else f"vision_model.{name}" for name in state}
    save_file({names[name]: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vision.safetensors")
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        found = load_vision_encoder(tmp_path / "vision.safetensors")(pixels).last_hidden_state
        assert torch.allclose(found, expected(pixels).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"x"), "not a readable safetensors"),
        (lambda path: save_file({"text_model.embeddings.weight": torch.zeros(1)}, path), "no CLIP vision model"),
    ],
)
def test_a_clip_vision_file_of_the_wrong_kind(tmp_path, spoil, message):
    spoil(tmp_path / "clip.safetensors")
    with pytest.raises(DiffPrivacyError, match=rf"clip.safetensors.*{message}"):
        load_vision_encoder(tmp_path / "clip.safetensors")


def test_textual_inversion_files():
    words = torch.randn(10, 2048)
    files = textual_inversions(words, SDXL)
    assert len(files) == 10
    assert torch.equal(torch.cat([files[3]["clip_l"], files[3]["clip_g"]], dim=1), words[3:4])
    assert textual_inversions(words[:, :768], CLIP_L)[0]["clip_l"].shape == (1, 768)
    assert textual_inversions(words[:, :1024], EncoderIdentity((1024,), 23, ""))[0].keys() == {"clip_h"}
