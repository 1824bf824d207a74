"""Keys and protected images that version 0.1.0 wrote in its first format still recover what they did then.

``old/`` holds them with what was recovered; all are made with the demo model. Their secrets are for tests alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffprivacy.cli import main
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.media.images import read_picture
from diffprivacy.recovery import png
from diffprivacy.recovery.encryption import Decryptor
from diffprivacy.recovery.key import RecoveryKey
from diffprivacy.recovery.replay import recover

pytestmark = pytest.mark.usefixtures("models_loaded_once")
OLD = Path(__file__).parent / "old"
IDENTITY = "AGE-SECRET-KEY-1L7ZM2GXYUZ4LFCM7VV9HEHUCW9PTW6ZSLWL5278QHTZJKDEH4THQL8SHR6"


@pytest.mark.parametrize(
    ("name", "secret", "at_least"),
    [
        ("latent", "identity", 45),
        ("faces", "identity", float("inf")),
        ("pair", "identity", 40),
        ("compact", "passphrase", 45),
        ("keyed", "passphrase", 40),
    ],
)
def test_images_of_the_first_format_recover(tmp_path, name, secret, at_least):
    (tmp_path / "identity").write_text(IDENTITY)
    (tmp_path / "passphrase").write_text("correct horse\n")
    options = [f"--{secret}-file", str(tmp_path / secret)]
    assert main(["recover", str(OLD / f"{name}.png"), "-o", str(tmp_path / "back"), *options]) == 0
    back, then = (
        read_picture(path / file).rgb
        for path, file in ((tmp_path / "back", f"{name}.png"), (OLD, f"{name}.recovered.png"))
    )
    assert torch.equal(back, then) or psnr(back, then) > at_least


def opened(name: str) -> RecoveryKey:
    return RecoveryKey.from_bytes(Decryptor(identities=[IDENTITY]).decrypt((OLD / name).read_bytes()))


def test_a_belm_key_of_the_first_format_replays():
    protected = read_picture(OLD / "latent.png")
    back = recover(protected, [opened("belm.key.age")], load_diffusion_model("0.1")).rgb
    assert psnr(back, read_picture(OLD / "latent.recovered.png").rgb) > 40


def test_a_graphs_key_of_the_first_format_opens():
    key = opened("graph.key.age")
    assert key.neighbours is None
    assert key.embeddings[0].options == {"start_percent": 0.0, "end_percent": 1.0}
    assert key.noise_map is not None and tuple(key.noise_map.shape) == (1, 16, 16, 16)
    with pytest.raises(DiffPrivacyError, match="made in a graph"):
        key.each()


def test_keys_of_neighbours_in_the_first_format_hold_whole_masks():
    """They overlap, and still no two of them count as keys of one face."""
    decryptor = Decryptor(identities=[IDENTITY])
    keys = [RecoveryKey.from_bytes(decryptor.decrypt(sealed)) for sealed in png.carried(OLD / "faces.png")]
    assert [len(key.faces) for key in keys] == [1, 1]
    assert torch.equal(
        recover(read_picture(OLD / "faces.png"), keys[::-1]).rgb, read_picture(OLD / "faces.recovered.png").rgb
    )
