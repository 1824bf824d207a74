"""Another device than the CPU: no operation mixes tensors of the two. Nothing is computed, so that any machine can tell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image
from pyrage import x25519
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersBackbone
from diffprivacy.backends.diffusers import load_backbone as load_checkpoint
from diffprivacy.backends.vision import load_vision_encoder
from diffprivacy.cli import main
from diffprivacy.demo.backend import load_backbone
from diffprivacy.diffusion.sampling import ddim_sigmas
from diffprivacy.evaluation.comparison import judge
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks
from diffprivacy.identity.recognizers import load_recognizer
from diffprivacy.media.images import Picture
from diffprivacy.msi.module import new_msi, save_msi
from diffprivacy.msi.training import Progress, Settings, Training
from diffprivacy.msi.training_data import prepare
from diffprivacy.presets import Preset
from diffprivacy.recovery.replay import Replay, record, recover
from diffprivacy.regeneration import Regeneration, anonymizing, regenerate_crops
from testing.onnx_files import write_onnx

OTHER = torch.device("cuda", 0)


ATEN = torch.ops.aten
LAYERS = {
    operation.default
    for operation in (ATEN.convolution, ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.native_group_norm, ATEN.native_layer_norm)
}


class Ones(TorchDispatchMode):
    """Every number that is read from a tensor without data is 1; layers raise for numbers of another type than theirs."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1
        if func in LAYERS and len({x.dtype for x in args if isinstance(x, Tensor)}) > 1:
            raise RuntimeError("two different types")
        return func(*args, **(kwargs or {}))


def with_data(function: Callable) -> Callable:
    """The function, called as if outside :func:`another_device`: it reads a file, or makes something from one."""

    def call(*arguments: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments, **options)

    return call


def filled(tensor: Tensor) -> Tensor:
    """A tensor with data for one that has none."""
    with unset_fake_temporarily():
        return torch.ones(tensor.shape, dtype=tensor.dtype) if isinstance(tensor, FakeTensor) else tensor


def writing(save: Callable) -> Callable:
    """A function that saves tensors, for those without data."""
    return lambda tensors, *rest: with_data(save)({name: filled(tensor) for name, tensor in tensors.items()}, *rest)


@contextlib.contextmanager
def opened(path: Path, framework: str, device: str = "cpu") -> Iterator[SimpleNamespace]:
    """``safe_open`` for a device that need not be there."""
    with safe_open(path, framework) as file:
        get = with_data(file.get_tensor)
        yield SimpleNamespace(
            metadata=file.metadata,
            keys=file.keys,
            get_slice=file.get_slice,
            get_tensor=lambda name: get(name).to(device),
        )


def to_numpy(tensor: Tensor, numpy: Callable = Tensor.numpy) -> Any:
    if tensor.device.type != "cpu":
        raise TypeError("can't convert a tensor of another device to numpy")
    return with_data(numpy)(filled(tensor))


def backward(tensor: Tensor, slope: Tensor | None = None) -> None:
    """Gradients for all leaves that the tensor was computed from."""
    assert slope is None or slope.device == tensor.device
    nodes = {tensor.grad_fn}
    seen = set()
    while nodes := nodes - seen - {None}:
        seen |= nodes
        for leaf in [node.variable for node in nodes if hasattr(node, "variable")]:
            leaf.grad = torch.zeros_like(leaf)
        nodes = {node for parent in nodes for node, _ in parent.next_functions}


def copied(tensor: Tensor, memo: dict) -> Tensor:
    """``Tensor.__deepcopy__``, which would copy the whole of FakeTensorMode too."""
    new = tensor.detach().clone()
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def applied(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply``, which ``to`` calls: its own fails at weights without data that are moved once more."""
    for child in module.children():
        applied(child, function)
    for name, weight in module._parameters.items():
        if weight is not None:
            module._parameters[name] = nn.Parameter(function(weight.detach()), weight.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


STAND_INS = {
    "torch.Tensor.__deepcopy__": copied,
    "torch.nn.Module._apply": applied,
    "torch.autograd.grad": lambda y, x, slope: (torch.zeros_like(x) + slope.sum(),),
    "torch.Tensor.backward": backward,
    "torch.Tensor.numpy": to_numpy,
    "torch.Tensor.unique": lambda x, return_inverse: (x, torch.arange(len(x), device=x.device)),
    "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
    "torch.cuda.is_bf16_supported": lambda: True,
    "torch.cuda.get_rng_state": lambda device: None,
    "torch.cuda.set_rng_state": lambda state, device: None,
    "torch.amp.GradScaler._maybe_opt_step": lambda scaler, optimizer, state: optimizer.step(),
    "diffprivacy.diffusion.conditioning.EmbeddingSchedule.mix_at": lambda schedule, timestep: dict.fromkeys(
        schedule.names, 1.0
    ),
    "diffprivacy.diffusion.sampling.check_sigmas": lambda sigmas: None,
    "diffprivacy.recovery.key.check_sigmas": lambda sigmas: None,
    "diffprivacy.recovery.keyed.keyed_sigmas": lambda backbone: torch.tensor([2.0, 1.0, 0.1]),
    "diffprivacy.recovery.keyed.derive": lambda secret, salt: b"",
    "diffprivacy.recovery.replay.ddim_sigmas": lambda levels, steps: ddim_sigmas(levels, 3),
    "diffprivacy.recovery.keyed.rotate": lambda noise_map, mask, seed, back: noise_map,
    "diffprivacy.msi.module.MSI.check": lambda msi, backbone: None,
    "diffprivacy.recovery.replay.check_places": lambda *_: None,
    "diffprivacy.recovery.keyed.check_places": lambda *_: None,
    "diffprivacy.recovery.replay._check_backbone": lambda key, backbone: None,
    "diffprivacy.msi.module.save_file": writing(save_file),
    "diffprivacy.msi.training.save_file": writing(save_file),
    "diffprivacy.msi.module.safe_open": opened,
    "diffprivacy.msi.training.safe_open": opened,
    "safetensors.torch.save": writing(safetensors.torch.save),
    "safetensors.torch.load": with_data(safetensors.torch.load),
    "diffprivacy.demo.load_recognizer": with_data(demo.load_recognizer),
    "diffprivacy.commands.model.load_demo_backbone": with_data(load_backbone),
    "diffprivacy.commands.model.load_backbone": with_data(load_checkpoint),
    "diffprivacy.commands.model.load_vision_encoder": with_data(load_vision_encoder),
    "diffprivacy.commands.model.load_recognizer": with_data(load_recognizer),
}
"""Instead of what needs the numbers in tensors, or a GPU that is there, or would take long."""


@contextlib.contextmanager
def another_device() -> Iterator[None]:
    """Tensors on a GPU that has no data and need not be there; mixing them with the CPU's raises.

    Gradients are not computed either: they go back the way that the values came.
    """
    with contextlib.ExitStack() as stack:
        for name, stand_in in STAND_INS.items():
            stack.enter_context(patch(name, stand_in))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Ones())
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def run(command: str, *options: Any) -> None:
    """A command of the command line, there."""
    with another_device():
        assert main([command, *map(str, options), "-v", "--device", str(OTHER)]) == 0


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.from_numpy(skimage.data.astronaut()).float() / 255


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def face(picture) -> Iterator[Face]:
    """Its face, which is found beforehand."""
    found = load_detector(None).detect(picture)
    with patch("diffprivacy.faces.detectors.OnnxDetector.detect", lambda self, picture, *limits: found):
        yield found[0]


@pytest.fixture(scope="module")
def crop(picture, face) -> Tensor:
    """The face as the demo model takes it, (1,3,128,128)."""
    return crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]


@pytest.fixture
def backbone() -> DiffusersBackbone:
    """The demo model, to be moved there."""
    return load_backbone()


@dataclass(frozen=True)
class Model:
    """Options of the command line: those that name the checkpoint, and what goes with it."""

    checkpoint: list[Any]
    size: list[Any]
    recognizers: list[Any]
    vision: list[Any]
    msi: Path


@pytest.fixture(scope="module", params=["demo", "half precision"])
def model(request, folders, tmp_path_factory) -> Model:
    """The demo model, and one in half precision with two text encoders, two recognizers and a CLIP vision model."""
    if request.param == "demo":
        return Model([], [], [], [], demo.load.WEIGHTS / "msi.safetensors")
    folder = tmp_path_factory.mktemp("model")
    recognizers = [write_onnx(folder / "one.onnx"), write_onnx(folder / "another.onnx", length=128)]
    backbone = load_checkpoint(folders["sdxl"])
    backbone.vision_encoder = demo.load_image_encoder()
    vision = backbone.vision_encoder.state_dict()
    names = {name: f"vision_model.{name.removeprefix('vision_model.')}" for name in vision}
    save_file({names[name]: weight for name, weight in vision.items()}, folder / "vision.safetensors")
    save_msi(new_msi(backbone), folder / "msi.safetensors")
    return Model(
        ["--checkpoint", folders["sdxl"]],
        ["--size", 64],
        ["--recognizer", recognizers[0], "--recognizer", f"{recognizers[1]}:BGR"],
        ["--clip-vision", folder / "vision.safetensors"],
        folder / "msi.safetensors",
    )


def test_mixing_devices_is_noticed():
    with another_device():
        with pytest.raises(RuntimeError, match="two different devices"):
            torch.ones(2, 3, device=OTHER) @ torch.ones(3, 4)
        with pytest.raises(RuntimeError, match="two different types"):
            torch.ones(2, 3, device=OTHER) @ torch.ones(3, 4, device=OTHER).half()
        with pytest.raises(TypeError, match="another device"):
            torch.ones(2, device=OTHER).numpy()


@pytest.mark.parametrize(("task", "preset"), [("anonymize", "paper"), ("hide", "default")])
def test_protecting_a_picture(photo, model, task, preset, tmp_path):
    options = [*model.checkpoint, *model.size, *model.recognizers, *model.vision, "--msi", model.msi]
    run(task, photo, "-o", tmp_path, *options, "--preset", preset, "--steps", 2, "--variants", 2)


@pytest.mark.parametrize("fidelity", ["latent", "compact"])
def test_sealing_and_recovering(photo, model, fidelity, tmp_path):
    identity = x25519.Identity.generate()
    (tmp_path / "identity.txt").write_text(str(identity))
    protected = tmp_path / "protected"
    seal = ["--seal-to", identity.to_public(), "--fidelity", fidelity]
    run("anonymize", photo, "-o", protected, *model.checkpoint, *model.size, "--steps", 2, *seal)
    run("recover", protected, "-o", tmp_path, *model.checkpoint, "--identity-file", tmp_path / "identity.txt")


def test_keyed_mode_and_back(photo, model, tmp_path):
    (tmp_path / "passphrase.txt").write_text("secret")
    secret = ["--passphrase-file", tmp_path / "passphrase.txt"]
    run("anonymize", photo, "-o", tmp_path / "protected", *model.checkpoint, *model.size, "--keyed", *secret)
    run("recover", tmp_path / "protected", "-o", tmp_path, *model.checkpoint, *secret)


@pytest.mark.parametrize("options", [[], ["--preset", "paper", "--checkpointing", "--chunk", 9]])
def test_training_msi(photo, model, options, tmp_path):
    options = [*model.checkpoint, *model.size, *model.vision, *options]
    run("train-msi", photo, "-o", tmp_path / "msi.safetensors", *options, "--steps", 1)


def test_training_goes_on_where_it_stopped(backbone, crop, tmp_path):
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    def training() -> Training:
        return Training(new_msi(backbone), backbone, data, settings, None, OTHER, tmp_path / "unfinished")

    settings = Settings(steps=2, batch=2, validation=2, validate_every=1)
    with another_device():
        backbone.to(OTHER)
        data = prepare(backbone, crop)
        with pytest.raises(KeyboardInterrupt):
            training().run(stop)
        continued = training()
        assert continued.step == 1
        continued.run()


@pytest.mark.parametrize("method", ["ddim", "belm"])
def test_keys_of_other_inversions(backbone, picture, face, method):
    original = Picture(picture)
    with another_device():
        backbone.to(OTHER)
        key = record(original, [face], backbone, demo.CROP, how=Replay(method)).bound_to(original)
        assert recover(original, [key], backbone).rgb.device.type == "cpu"


def test_frames_of_a_video(backbone, crop, face):
    points = crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN)
    recognizer = demo.load_recognizer("guide")
    with another_device():
        energy = anonymizing(recognizer.to(OTHER), target=[torch.randn(1, 256)])
        how = Regeneration(
            Preset(strength=1.0, steps=2, switch=None, scale=1.0), energy, smoothing=torch.full((3, 3), 1 / 3)
        )
        crops, landmarks = crop.expand(3, -1, -1, -1), points.expand(3, -1, -1)
        regenerate_crops(crops, landmarks, torch.randn(3, 16, 16, 16), backbone.to(OTHER), how)


def test_judging_with_recognizers_there(picture, face):
    recognizer = demo.load_recognizer("judge")
    with another_device():
        judge(picture, picture, [face], ["somebody"], {"judge": recognizer.to(OTHER)})
