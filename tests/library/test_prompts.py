"""Prompts by face: how they are written, and that each face is regenerated under its own."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy.cli import main
from diffprivacy.diffusion.inpainting import latent_mask
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE
from diffprivacy.faces.keeping import replaced_part
from diffprivacy.faces.prompts import parse_prompts, prompts_of
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import TEXT_SCALE, Regeneration, latent_shape, regenerate_crops


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["", ""]),
        ("an old man", ["an old man", "an old man"]),
        ("0: an old man; 1: a young woman, smiling", ["an old man", "a young woman, smiling"]),
        ("1: smiling; a man;", ["a man", "smiling"]),
        ("a scene at 10:30", ["a scene at 10:30", "a scene at 10:30"]),
    ],
)
def test_prompts_are_for_all_faces_or_by_number(text, words):
    assert prompts_of(parse_prompts(text), 2) == words


def test_two_prompts_for_one_face_and_one_for_no_face_are_errors():
    with pytest.raises(DiffPrivacyError, match="two prompts for face 0"):
        parse_prompts("0: a man; 0: a woman")
    with pytest.raises(DiffPrivacyError, match="two prompts for all others"):
        parse_prompts("a man; a woman")
    with pytest.raises(DiffPrivacyError, match="There is no face 2; there are 2, numbered 0 to 1"):
        prompts_of(parse_prompts("2: a man"), 2)


def test_predictions_go_from_the_empty_prompt_toward_the_text(demo_model):
    diffusion_model = demo_model
    crops, landmarks = torch.rand(1, 3, 64, 64), torch.from_numpy(ARCFACE_TEMPLATE / 2 + 4)[None]
    seen = []

    def denoise(x, sigma, conditioning):
        seen.append(conditioning)
        return x * 0 + (1.0 if conditioning == "an old man" else 0.0)

    with (
        patch.object(diffusion_model, "denoise", denoise),
        patch.object(diffusion_model, "text_conditioning", lambda prompt: prompt),
        patch.object(diffusion_model, "decode", lambda z: z),
    ):
        noise = torch.randn(1, *latent_shape(diffusion_model, 64))
        made = regenerate_crops(
            crops, landmarks, noise, diffusion_model, Regeneration(PRESETS["anonymize"]["default"], text="an old man")
        )
    assert set(seen) == {"", "an old man"}
    drawn = latent_mask(replaced_part(landmarks[0], 64)[None], made.shape[-2:]).expand_as(made) == 1
    torch.testing.assert_close(made[drawn], torch.full_like(made[drawn], TEXT_SCALE))


def test_each_face_of_a_photo_has_its_own_words(tmp_path: Path):
    photo = np.concatenate([skimage.data.astronaut()[:240, 100:340]] * 2, axis=1)
    Image.fromarray(photo).save(tmp_path / "pair.png")
    command = ["anonymize", str(tmp_path / "pair.png"), "-o", str(tmp_path / "out"), "--unguided"]
    with patch("diffprivacy.pipeline.regenerate_crops", side_effect=lambda crops, *rest: crops) as regenerate:
        assert main([*command, "--faces", "1", "--prompt", "0: an old man; 1: a young woman, smiling"]) == 0
    assert [call.args[4].text for call in regenerate.call_args_list] == ["a young woman, smiling"]


def test_a_number_that_no_face_has_is_one_error(tmp_path: Path, capsys):
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "one.png")
    command = ["anonymize", str(tmp_path / "one.png"), "-o", str(tmp_path / "out"), "--unguided"]
    assert main([*command, "--prompt", "1: an old man"]) == 1
    assert "--prompt: There is no face 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
