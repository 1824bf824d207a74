"""Folders at the command line: no input is lost, nothing slips through, one bad input ends nothing."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
import torch

from diffprivacy.commands import protect
from diffprivacy.commands.batch import reason
from diffprivacy.commands.inputs import Names, plan
from diffprivacy.commands.terminal import Lasting
from diffprivacy.media import atomic
from testing.folders import anonymize, photo, run, wall

RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())
pytestmark = pytest.mark.usefixtures("models_loaded_once")


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("."))


def test_another_folders_file_of_the_same_name_is_refused(tmp_path, capsys):
    first, second, out = photo(tmp_path / "A" / "1.png"), photo(tmp_path / "B" / "1.png", True), tmp_path / "out"
    assert anonymize(first.parent, out) == 0
    made = (out / "1.png").read_bytes()
    assert anonymize(second.parent, out) == 1
    assert "out/1.png is there already and was made from another file" in capsys.readouterr().err
    assert (out / "1.png").read_bytes() == made


def test_inputs_of_one_name_become_files_of_different_names(tmp_path):
    for name in ("a.jpg", "a.jpeg", "a.png", "a.bmp", "b.webp"):
        (tmp_path / name).touch()
    found = plan([tmp_path], tmp_path / "out", names=Names(picture_format="same"))
    names = {source.name: [file.name for file in files] for source, files in found.targets.items()}
    expected = {
        "a.jpg": "a.jpg.jpg",
        "a.jpeg": "a.jpeg.jpg",
        "a.png": "a.png.png",
        "a.bmp": "a.bmp.png",
        "b.webp": "b.webp",
    }
    assert names == {source: [file] for source, file in expected.items()}


def test_several_folders_keep_their_names(tmp_path):
    photo(tmp_path / "A" / "deep" / "1.png")
    photo(tmp_path / "B" / "1.png", True)
    arguments = ["--steps", 2, "--strength", 0.5, "--unguided"]
    assert run("anonymize", tmp_path / "A", tmp_path / "B", "-o", tmp_path / "out", *arguments) == 0
    assert visible(tmp_path / "out") == ["A", "A/deep", "A/deep/1.png", "B", "B/1.png"]


def test_an_unprotected_copy_is_not_done(tmp_path, capsys):
    source, out = photo(tmp_path / "in" / "a.png"), tmp_path / "out"
    photo(out / "a.png")
    assert anonymize(source, out) == 1
    assert "was not made by this command: choose another output folder, or replace it" in capsys.readouterr().err
    assert anonymize(source, out, "--overwrite") == 0
    assert (out / "a.png").read_bytes() != source.read_bytes()


def test_changed_inputs_and_settings_are_done_again_and_nothing_else(tmp_path, capsys):
    source, out = photo(tmp_path / "in" / "a.png"), tmp_path / "out"
    made = []
    for change in (
        lambda: None,
        lambda: photo(source, mirrored=True),
        lambda: (out / "a.png").unlink(),
    ):
        change()
        assert anonymize(source, out) == 0
        made.append((out / "a.png").read_bytes())
        capsys.readouterr()
        assert anonymize(source, out) == 0
        assert "1 already done" in capsys.readouterr().out
    assert anonymize(source, out, "--preset", "paper") == 0
    assert len({*made, (out / "a.png").read_bytes()}) == 4


def test_a_source_that_has_moved_is_done(tmp_path, capsys):
    source, out = photo(tmp_path / "in" / "a.png"), tmp_path / "out"
    assert anonymize(source, out) == 0
    source.parent.rename(tmp_path / "moved")
    assert anonymize(tmp_path / "moved", out) == 0
    assert "1 already done" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["link", "dots", "hard link"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_input_is_never_its_own_output(tmp_path, capsys, spelling, overwrite):
    source = photo(tmp_path / "in" / "a.png")
    before = source.read_bytes()
    output = tmp_path / "out"
    if spelling == "link":
        output.symlink_to(source.parent)
    elif spelling == "dots":
        output = tmp_path / "in" / ".." / "in"
    else:
        output.mkdir()
        (output / "a.png").hardlink_to(source)
    assert anonymize(source, output, *overwrite) == 1
    assert "a.png is the input" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert anonymize(source.parent, output, *overwrite) == (1 if spelling == "hard link" else 2)
    assert source.read_bytes() == before


def test_the_record_tells_nothing(tmp_path):
    source, out = photo(tmp_path / "in" / "jane-doe.png"), tmp_path / "out"
    assert anonymize(source, out) == 0
    record = (out / ".diffprivacy.json").read_bytes()
    key = (Path(os.environ["DIFFPRIVACY_STATE"]) / "manifest.key").read_bytes()
    for secret in (b"jane", str(tmp_path).encode(), key, key.hex().encode()):
        assert secret not in record


def test_everything_in_a_folder_is_named(tmp_path, capsys, monkeypatch):
    """A file that disappears during the run and a place that cannot be written too."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.jpg", "a.png", "日本 ü.png", "leaves.png", "no/place.png"):
        photo(folder / name)
    out.mkdir()
    (out / "no").touch()
    protect_picture = protect.protect_picture

    def leaving(*arguments):
        (folder / "leaves.png").unlink(missing_ok=True)
        return protect_picture(*arguments)

    monkeypatch.setattr(protect, "protect_picture", leaving)
    for name in ("._a.jpg", "b.heic", "c.flv", "notes.txt", "cut.png"):
        (folder / name).write_text("x")
    wall(folder / "wall.png")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    assert anonymize(folder, out) == 1
    assert visible(out) == ["a.jpg.png", "a.png.png", "no", "日本 ü.png"]
    said = capsys.readouterr().out
    assert "3 protected, 3 skipped, 7 failed" in said
    for line in (
        "failed: .*/leaves.png: No such file",
        "failed: .*/no/place.png: .*/out/no.* cannot be|failed: .*/no/place.png: .*/out/no.*: ",
        "skipped: .*/._a.jpg: hidden",
        "failed: .*/b.heic: files of this kind are not read: save it as PNG or JPEG",
        "failed: .*/c.flv: files of this kind are not read: convert it to MP4",
        "skipped: .*/notes.txt: this is neither an image nor a video",
        "failed: .*/cut.png is not an image",
        "failed: .*/wall.png: No face",
        "failed: .*/gone.png: this is no ordinary file, or a link that leads nowhere",
        "skipped: .*/loop: a link to a folder",
    ):
        assert any(re.search(line, each) for each in said.splitlines()), line
    assert anonymize(folder, out) == 1
    assert "3 already done" in capsys.readouterr().out


def test_an_output_inside_the_input_is_no_input(tmp_path, capsys):
    folder = photo(tmp_path / "in" / "a.png").parent
    for _ in range(2):
        assert anonymize(folder, folder / "out") == 0
    assert "1 already done" in capsys.readouterr().out
    assert visible(folder) == ["a.png", "out", "out/a.png"]
    assert anonymize(folder, folder) == 2
    assert "is input and output" in capsys.readouterr().err


def test_one_picture_becomes_the_file_that_is_named(tmp_path, capsys):
    source = photo(tmp_path / "a.jpg")
    assert anonymize(source, tmp_path / "new" / "b.png") == 0
    assert anonymize(source, tmp_path / "c.png", "--variants", 2) == 0
    assert visible(tmp_path) == ["a.jpg", "c-1.png", "c-2.png", "new", "new/b.png"]
    assert anonymize(source, tmp_path / "d.jpg") == 2
    assert "d.jpg: a.jpg becomes a .png file" in capsys.readouterr().err
    assert run("anonymize", source, photo(tmp_path / "e.png"), "-o", tmp_path / "f.png") == 2
    assert "is the name of one file, and there is more to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "nan"], "--strength: nan is not above 0"),
        (["--strength", "0"], "--strength: 0 is not above 0"),
        (["--person-threshold", "inf"], "--person-threshold: inf is not from -1 to 1"),
        (["--steps", "-3"], "--steps: -3 is not 1 or more"),
        (["--device", "nonsense"], "There is no device nonsense here"),
        (["--device", "cuda:99"], "There is no device cuda:99 here"),
    ],
)
def test_wrong_options_are_found_before_the_work(tmp_path, capsys, options, message):
    source = photo(tmp_path / "a.png")
    assert run("anonymize", source, "-o", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_are_found_before_the_work(tmp_path, capsys):
    source, file = photo(tmp_path / "a.png"), tmp_path / "file"
    file.write_text("x")
    for output in (file, file / "deeper"):
        assert anonymize(source, output) == 2
        assert "file is a file; choose a folder" in capsys.readouterr().err
    assert run("anonymize", tmp_path / "missing.png", "-o", tmp_path / "out") == 2
    assert "missing.png does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out"),
        (torch.AcceleratorError("CUDA error: an illegal memory access\nmore\nlines"), "a.png: the device failed (CUDA"),
        (RecursionError("maximum recursion depth"), "unexpected RecursionError: maximum recursion depth (-v shows"),
        (OSError(28, "No space left on device", "x.png"), "x.png: No space left on device"),
    ],
)
def test_any_error_ends_one_input(tmp_path, capsys, monkeypatch, error, message):
    folder = photo(tmp_path / "in" / "a.png").parent
    photo(folder / "b.png")
    real: Callable = protect.protect_picture

    def failing(source: Path, *arguments: object) -> object:
        if source.name == "a.png":
            raise error
        return real(source, *arguments)

    monkeypatch.setattr(protect, "protect_picture", failing)
    assert anonymize(folder, tmp_path / "out") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert visible(tmp_path / "out") == ["b.png"]
    assert anonymize(folder, tmp_path / "out", "-v") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CUDA error: out of memory", "memory ran out"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory ran out"),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "memory ran out"),
        (
            "CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA",
            "the device failed (CUDA error: dev",
        ),
        ("HIP error: invalid device function", "the device failed (HIP error: invalid device function)"),
    ],
)
def test_errors_of_a_device_are_told_from_too_little_memory(text, message):
    assert reason(RuntimeError(text)).startswith(message)
    assert "\n" not in reason(RuntimeError(text))


def test_names_that_the_terminal_lacks_and_a_reader_that_has_gone():
    terminal = io.TextIOWrapper(io.BytesIO(), "cp1252")
    Lasting(terminal).write("a日ü")
    terminal.flush()
    assert terminal.buffer.getvalue() == b"a\\u65e5\xfc"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as pipe:
        for _ in range(3):
            print("nobody reads this", file=Lasting(pipe), flush=True)


@pytest.mark.parametrize(
    "options", [["--variants", 3], ["--seal-to", RECIPIENT, "--key-beside", "--fidelity", "lossless"]]
)
def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch, options):
    """Wherever it is that the disk is full."""
    source = photo(tmp_path / "a.png")
    fsync = os.fsync
    for place in range(1, 4):
        left = iter(range(place))

        def full(descriptor: int, left=left) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert anonymize(source, tmp_path / "out", *options) == 1
        assert "No space left" in capsys.readouterr().err
        assert not list(tmp_path.glob("out/[!.]*"))
        assert not list(tmp_path.glob(f"out/{atomic.PREFIX}*"))


def test_a_run_killed_while_files_take_their_places_is_done_again(tmp_path, capsys, monkeypatch):
    source, out = photo(tmp_path / "a.png"), tmp_path / "out"

    class Killed(BaseException):
        pass

    def killed(made: atomic.Together) -> None:
        first, temporary = next(iter(made.files.items()))
        temporary.replace(first)
        made.files.clear()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(atomic.Together, "commit", killed)
        patch.setattr("diffprivacy.commands.manifest.write_atomically", lambda path, data: path.write_bytes(data))
        anonymize(source, out, "--variants", 2)
    assert visible(out) == ["a-1.png"]
    assert anonymize(source, out, "--variants", 2) == 0
    assert visible(out) == ["a-1.png", "a-2.png"]
    assert "already done" not in capsys.readouterr().out


def test_what_killed_runs_left_is_swept_and_what_is_in_use_is_not(tmp_path):
    source, out = photo(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    stale, alone = out / f"{atomic.PREFIX}0.0.part", out / f"{atomic.PREFIX}1.lock"
    stale.write_text("half")
    alone.touch()
    with atomic.Together() as files:
        used = files.add(out / "b.png")
        assert anonymize(source, out) == 0
        assert used.exists()
    assert visible(out) == ["a.png"]
    assert not list(out.glob(f"{atomic.PREFIX}*"))


def test_two_processes_do_not_do_the_same_file(tmp_path):
    """One waits, and finds it done."""
    order = []
    lock = tmp_path / "lock"

    def other() -> None:
        with atomic.alone(lock):
            order.append("second")

    with atomic.alone(lock):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not lock.exists()


def test_temporaries_are_private_and_names_may_be_long(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    with atomic.atomic_path(path) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_bytes(b"x")
    assert path.read_bytes() == b"x"
    atomic.write_atomically(tmp_path / "secret", b"x", secret=True)
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
