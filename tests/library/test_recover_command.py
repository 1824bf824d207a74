"""``recover`` and the sealing options as a person uses them: files in, originals or one clear line out."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import pyrage
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.media.images import Picture, read_picture
from diffprivacy.recovery import keyed, png
from testing.folders import friends
from tests.library.test_old_keys import IDENTITY

pytestmark = pytest.mark.usefixtures("models_loaded_once", "short_keys")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(skimage.data.astronaut()).save(folder / "jane-doe.png")
    friends(folder / "group.png")
    return folder


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An identity file and its public key."""
    key = pyrage.x25519.Identity.generate()
    path = tmp_path_factory.mktemp("identity") / "identity.txt"
    path.write_text(f"# mine\n{key}\n")
    return path, str(key.to_public())


QUICK = ["--steps", "3", "--strength", "0.4", "--unguided"]


def protect(photo: Path, out: Path, *options: str) -> None:
    assert main(["anonymize", str(photo), "-o", str(out), *QUICK, *options]) == 0


def test_keys_of_both_versions_share_a_checkpoint_of_ones_own(photos, identity, tmp_path, monkeypatch, capsys):
    """A stand-in loads it, as no other checkpoint is at hand; the old key, made with the first UNet, does not fit."""
    loaded = []
    monkeypatch.setattr(
        "diffprivacy.commands.recover.load_checkpoint", lambda *_: loaded.append(load_diffusion_model()) or loaded[0]
    )
    own, recipient = identity
    out, identities = tmp_path / "out", tmp_path / "identities"
    protect(photos / "jane-doe.png", out, "--seal-to", recipient)
    shutil.copy(Path(__file__).parent / "old" / "latent.png", out)
    identities.write_text(f"{own.read_text()}\n{IDENTITY}\n")
    options = ["--identity-file", str(identities), "--checkpoint", str(tmp_path)]
    assert main(["recover", str(out), "-o", str(tmp_path / "back"), *options]) == 1
    assert "latent.png: --checkpoint: The image was protected with another checkpoint" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "back").glob("*.png")] == ["jane-doe.png"]
    assert len(loaded) == 1


def test_folder_round_trip(photos, identity, tmp_path):
    """Lossless, a key for each face, inside the PNG."""
    path, recipient = identity
    protect(photos, tmp_path / "out", "--seal-to", recipient, "--fidelity", "lossless", "--key-per-face")
    assert len(png.carried(tmp_path / "out" / "group.png")) == 6
    assert main(["recover", str(tmp_path / "out"), "-o", str(tmp_path / "back"), "--identity-file", str(path)]) == 0
    for name in ("jane-doe.png", "group.png"):
        protected, back, original = (read_picture(p / name).rgb for p in (tmp_path / "out", tmp_path / "back", photos))
        assert not torch.equal(protected, original)
        assert torch.equal(back, original)


def test_passphrase_beside_and_single_faces(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "correct horse")
    options = ["--passphrase-env", "SECRET", "--fidelity", "lossless", "--key-beside"]
    protect(photos / "group.png", tmp_path / "out", *options)
    assert "sealed lossless key beside" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").glob("group*")} == {"group.png", "group.png.age"}
    (tmp_path / "secret.txt").write_text("correct horse\n")
    recover_one = ["recover", str(tmp_path / "out" / "group.png"), "-o", str(tmp_path / "one"), "--faces", "2"]
    assert main([*recover_one, "--passphrase-file", str(tmp_path / "secret.txt")]) == 0
    back, original = read_picture(tmp_path / "one" / "group.png").rgb, read_picture(photos / "group.png").rgb
    faces = load_detector(None).detect(original)
    mask = protected_mask(original.shape, [faces[2]], demo.MARGIN) > 0
    assert torch.equal(back[mask], original[mask])
    others = protected_mask(original.shape, [faces[0], faces[5]], demo.MARGIN) == 1
    assert not torch.equal(back[others], original[others])


def test_latent_keys_of_variants(photos, identity, tmp_path):
    path, recipient = identity
    protect(photos / "jane-doe.png", tmp_path / "out", "--seal-to", recipient, "--variants", "2")
    first, second = (png.carried(tmp_path / "out" / f"jane-doe-{i}.png")[0] for i in (1, 2))
    assert first != second
    assert main(["recover", str(tmp_path / "out"), "-o", str(tmp_path / "back"), "--identity-file", str(path)]) == 0
    one, two = (read_picture(tmp_path / "back" / f"jane-doe-{i}.png").rgb for i in (1, 2))
    assert torch.equal(one, two)
    assert psnr(one, read_picture(photos / "jane-doe.png").rgb) > 35


@pytest.fixture(scope="module")
def sealed(photos, identity, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sealed")
    protect(photos / "jane-doe.png", out, "--seal-to", identity[1], "--fidelity", "lossless")
    return out / "jane-doe.png"


def resaved(path: Path, folder: Path) -> Path:
    Image.open(path).save(folder / "again.png")
    return folder / "again.png"


def damaged(path: Path, folder: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    (folder / "damaged.png").write_bytes(data)
    return folder / "damaged.png"


def swapped(path: Path, folder: Path) -> Path:
    """The key of this picture in another one."""
    picture = read_picture(path)
    png.save(folder / "swapped.png", Picture(picture.rgb.flip(1)), png.carried(path))
    return folder / "swapped.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [(resaved, "saved it anew and lost the key"), (damaged, "damaged"), (swapped, "belongs to another image")],
)
def test_what_recover_says(sealed, identity, tmp_path, capsys, change, message):
    path = change(sealed, tmp_path)
    assert main(["recover", str(path), "-o", str(tmp_path / "out"), "--identity-file", str(identity[0])]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert path.name in errors[0]
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_what_recover_says_of_identities(sealed, tmp_path, capsys, monkeypatch):
    (tmp_path / "other.txt").write_text(str(pyrage.x25519.Identity.generate()))
    (tmp_path / "bad.txt").write_text("AGE-SECRET-KEY-1NONSENSE")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for options, message in (
        ([], "give the file of an identity"),
        (["--identity-file", str(tmp_path / "other.txt")], "encrypted to other recipients"),
        (["--identity-file", str(tmp_path / "bad.txt")], "none that can be used"),
        (["--identity-file", str(tmp_path / "absent.txt")], "absent.txt"),
        (["--key-file", str(tmp_path / "absent.age")], "absent.age"),
    ):
        assert main(["recover", str(sealed), "-o", str(tmp_path / "out"), *options]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "NONSENSE" not in error


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--seal-to", "nobody"], 1, "is no public key"),
        (["--fidelity", "lossless"], 2, "need --seal-to"),
        (["--passphrase-env", "NOT_SET"], 1, "NOT_SET"),
        (["--passphrase-file", "absent.txt"], 1, "absent.txt"),
        (["--passphrase-env", "HOME", "--seal-to", "age1x"], 2, "choose one"),
    ],
)
def test_wrong_seals_stop_before_anything_is_written(photos, tmp_path, capsys, options, code, message):
    assert main(["anonymize", str(photos), "-o", str(tmp_path / "out"), *options]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_written_holds_the_secret_or_the_inputs_name(photos, tmp_path, monkeypatch, capfdbinary):
    """Everything a run leaves: pictures, keys, what it printed, temporary files."""
    secret = "correct-horse-battery"
    (tmp_path / "tmp").mkdir()
    for variable, value in {"SECRET": secret, "TMPDIR": tmp_path / "tmp", "HOME": tmp_path / "tmp"}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(tempfile, "tempdir", None)
    protect(photos / "jane-doe.png", tmp_path / "out", "--passphrase-env", "SECRET", "--fidelity", "lossless")
    os.replace(tmp_path / "out" / "jane-doe.png", tmp_path / "out" / "published.png")
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 1
    for content in [*written, *capfdbinary.readouterr()]:
        assert secret.encode() not in content
    assert not any(b"jane-doe" in content for content in written)


def test_keyed_mode(photos, tmp_path, monkeypatch, capsys):
    """No key is stored; a wrong passphrase gives a picture, of another face."""
    monkeypatch.setattr(keyed, "STEPS", 6)
    monkeypatch.setitem(keyed.SCRYPT, "n", 2**10)
    pictures = {}
    for secret in ("right", "wrong"):
        monkeypatch.setenv("SECRET", secret)
        if secret == "right":
            protect(photos / "jane-doe.png", tmp_path / "out", "--keyed", "--passphrase-env", "SECRET")
            printed = capsys.readouterr()
            assert "jane-doe.png (keyed mode, experimental)" in printed.out
            assert "warning: keyed mode is experimental" in printed.err
        recover_all = ["recover", str(tmp_path / "out"), "-o", str(tmp_path / secret)]
        assert main([*recover_all, "--passphrase-env", "SECRET"]) == 0
        pictures[secret] = read_picture(tmp_path / secret / "jane-doe.png").rgb
    assert "a wrong passphrase gives another face, not an error" in capsys.readouterr().err
    original = read_picture(photos / "jane-doe.png").rgb
    assert psnr(pictures["right"], original) > psnr(pictures["wrong"], original) + 3


@pytest.mark.parametrize("options", [["--seal-to", "age1x"], ["--variants", "2"], []])
def test_keyed_mode_needs_a_passphrase_and_one_variant(photos, tmp_path, capsys, options):
    assert main(["anonymize", str(photos), "-o", str(tmp_path / "out"), "--keyed", *options]) == 2
    assert "passphrase" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--prompt", "an old man"],
        ["--keep", "eyes"],
        ["--msi", "none.safetensors"],
        ["--if-impossible", "cover"],
        ["--match-colors"],
    ],
)
def test_keyed_mode_names_the_options_it_would_not_heed(photos, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setenv("SECRET", "correct horse")
    command = ["anonymize", str(photos), "-o", str(tmp_path / "out"), "--keyed", "--passphrase-env", "SECRET"]
    assert main([*command, *option]) == 2
    assert f"--keyed takes no {option[0]}; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
