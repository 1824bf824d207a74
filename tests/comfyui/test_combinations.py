"""The pack's blocks among stock ones: LoRA, ControlNet, inpainting mask, other samplers, other families of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffprivacy.backends.single_file import UNET_PREFIX, part
from diffprivacy.msi.module import load_msi
from tests.comfyui.graphs import Graph, saved_latent, slot, write_controlnet, write_lora
from tests.comfyui.server import ComfyServer

STEPS = 4
SIZE = 64
WHOLE_SCHEDULE = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}


@pytest.fixture(scope="module", autouse=True)
def extras(server: ComfyServer, tiny_checkpoint: Path) -> None:
    for folder in ("loras", "controlnet"):
        (server.base / "models" / folder).mkdir(exist_ok=True)
    write_lora(server.base / "models" / "loras" / "tiny-lora.safetensors")
    unet = part(load_file(tiny_checkpoint), UNET_PREFIX)
    write_controlnet(server.base / "models" / "controlnet" / "tiny-controlnet.safetensors", unet)


class Redrawing:
    """The face of the example photo, cropped, encoded and redrawn under guidance; parts may be exchanged before run()."""

    def __init__(self, checkpoint: str = "tiny.safetensors", loader: str = "CheckpointLoaderSimple"):
        self.graph = graph = Graph()
        self.loader = graph.add(loader, ckpt_name=checkpoint)
        self.model, clip, self.vae = self.loader, slot(self.loader, 1), slot(self.loader, 2)
        self.photo = graph.add("DiffPrivacyExamplePhoto")
        detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
        found = graph.add(
            "DiffPrivacyDetectFaces", image=self.photo, detector=detector, select="all", without_face="error"
        )
        self.crops = graph.add("DiffPrivacyCropFaces", image=self.photo, faces=found, size=SIZE, margin=1.8, variants=1)
        self.mask, self.faces = slot(self.crops, 1), slot(self.crops, 2)
        self.energy = graph.add(
            "DiffPrivacyAnonymizeEnergy",
            **{"recognizer": slot(graph.add("DiffPrivacyLoadDemoModel"), 4), "reference": self.crops},
            **{"faces": self.faces, "identity": 1.0, "diversity": 1.0, "form": "smooth", "augmentations": 0},
        )
        self.scale = 0.1
        self.early = graph.add("CLIPTextEncode", clip=clip, text="a photo of a face")
        self.late = graph.add("ConditioningZeroOut", conditioning=self.early)
        self.positive = graph.add(
            "DiffPrivacyEmbeddingSchedule",
            **{"early": self.early, "late": self.late, "preset": "anonymize", "switch_step": 0, "blend": 0},
        )
        self.latent = graph.add("VAEEncode", pixels=self.crops, vae=self.vae)

    def guided(self) -> list:
        settings = {"rule": "normalized", "scale": self.scale, "from_step": 999, "to_step": 0, "every": 1}
        return self.graph.add(
            "DiffPrivacyEnergyGuidance",
            **{"model": self.model, "vae": self.vae, "energy": self.energy, "decoder": "VAE", "chunk": 0},
            **settings,
        )

    def sample(self) -> list:
        return self.graph.add(
            "KSampler",
            **{"model": self.guided(), "positive": self.positive, "negative": self.late, "latent_image": self.latent},
            **{"seed": 7, "steps": STEPS, "cfg": 1.0, "denoise": 0.6},
            **{"sampler_name": "dpmpp_2m", "scheduler": "karras"},
        )

    def run(self, server: ComfyServer) -> torch.Tensor:
        saved = self.graph.add("SaveLatent", samples=self.sample(), filename_prefix="latents/redrawn")
        return saved_latent(server, server.run(self.graph), saved)


def error(found: torch.Tensor, original: torch.Tensor) -> float:
    return float((found - original).square().mean().sqrt() / original.square().mean().sqrt())


@pytest.fixture(scope="module")
def plain(server, extras) -> torch.Tensor:
    return Redrawing().run(server)


def test_lora_under_guidance(server, plain):
    with_lora = Redrawing()
    with_lora.model = with_lora.graph.add(
        "LoraLoaderModelOnly", model=with_lora.loader, lora_name="tiny-lora.safetensors", strength_model=1.0
    )
    without = Redrawing()
    without.model = without.graph.add(
        "LoraLoaderModelOnly", model=without.loader, lora_name="tiny-lora.safetensors", strength_model=0.0
    )
    assert error(with_lora.run(server), plain) > 1e-2
    assert error(without.run(server), plain) < 1e-6


@pytest.mark.parametrize(("strength", "changes"), [(1.0, True), (0.0, False)])
def test_controlnet_around_an_embedding_schedule(server, plain, strength, changes):
    controlled = Redrawing()
    controlled.positive = controlled.graph.add(
        "ControlNetApplyAdvanced",
        **{"positive": controlled.positive, "negative": controlled.late, "image": controlled.crops},
        **{**WHOLE_SCHEDULE, "strength": strength},
        control_net=controlled.graph.add("ControlNetLoader", control_net_name="tiny-controlnet.safetensors"),
    )
    assert (error(controlled.run(server), plain) > 1e-2) is changes


def test_inpainting_mask_keeps_the_rest_of_the_crop(server):
    masked = Redrawing()
    masked.latent = masked.graph.add("SetLatentNoiseMask", samples=masked.latent, mask=masked.mask)
    before = masked.graph.add("SaveLatent", samples=masked.latent, filename_prefix="latents/before")
    shown = masked.graph.add(
        "DiffPrivacySaveProtected",
        image=masked.graph.add("MaskToImage", mask=masked.mask),
        filename_prefix="mask",
    )
    after = masked.graph.add("SaveLatent", samples=masked.sample(), filename_prefix="latents/after")
    outputs = server.run(masked.graph)
    before, after = (saved_latent(server, outputs, node) for node in (before, after))
    mask = server.picture(outputs[shown[0]]["images"][0])[..., 0]
    cells = mask.reshape(SIZE // 8, 8, SIZE // 8, 8)
    untouched, replaced = (cells.max((1, 3)) == 0), (cells.min((1, 3)) == 255)
    assert untouched.any() and replaced.any()
    change = (after - before).abs().mean((0, 1)).numpy()
    assert change[untouched].max() < 1e-4
    assert change[replaced].min() > 1e-2


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_other_families_of_checkpoints(server, single_files, kind):
    """Schedule, guidance, exact inversion and replay, and MSI, with the widths of SD 2.x and SDXL."""
    file = server.base / "models" / "checkpoints" / f"{kind}.safetensors"
    file.symlink_to(single_files[kind])
    guided = Redrawing(file.name, "LoadThinCheckpoint")
    graph = guided.graph
    sampled = graph.add("SaveLatent", samples=guided.sample(), filename_prefix="latents/guided")
    guided.scale = 0.0
    unguided = graph.add("SaveLatent", samples=guided.sample(), filename_prefix="latents/plain")
    sigmas = graph.add("BasicScheduler", model=guided.model, scheduler="normal", steps=3, denoise=1.0)
    inverted = graph.add(
        "DiffPrivacyInvertLatent",
        **{"model": guided.model, "positive": guided.positive, "latent_image": guided.latent, "sigmas": sigmas},
        **{"method": "belm", "iterations": 1},
    )
    replayed = graph.add(
        "SamplerCustomAdvanced",
        **{"noise": graph.add("DisableNoise"), "sampler": slot(inverted, 1), "sigmas": sigmas},
        **{"guider": graph.add("BasicGuider", model=guided.model, conditioning=guided.positive)},
        latent_image=inverted,
    )
    saved = {
        name: graph.add("SaveLatent", samples=samples, filename_prefix=f"latents/{name}")
        for name, samples in {"original": guided.latent, "noise": inverted, "replayed": replayed}.items()
    }
    vision, clip = slot(graph.add("DiffPrivacyLoadDemoModel"), 3), slot(guided.loader, 1)
    msi = graph.add(
        "DiffPrivacyTrainMSI",
        **{"images": guided.crops, "model": guided.model, "clip": clip, "vae": guided.vae, "clip_vision": vision},
        **{"steps": 1, "seed": 0, "batch": 2, "chunk": 0, "learning_rate": 0.1},
        **{"checkpointing": True, "flips": False},
    )
    module = graph.add("DiffPrivacySaveMSI", msi=msi, filename_prefix=f"families/{kind}")
    guided.positive = graph.add(
        "DiffPrivacyInvertMSI", msi=msi, image=guided.crops, clip=clip, clip_vision=vision, prompt="a photo of *"
    )
    saved["said"] = graph.add("SaveLatent", samples=guided.sample(), filename_prefix="latents/said")
    guided.positive = guided.early
    saved["prompt"] = graph.add("SaveLatent", samples=guided.sample(), filename_prefix="latents/prompt")

    outputs = server.run(graph)
    latents = {name: saved_latent(server, outputs, node) for name, node in saved.items()}
    assert error(latents["noise"], latents["original"]) > 0.5
    assert error(latents["replayed"], latents["original"]) < 1e-2
    assert error(saved_latent(server, outputs, sampled), saved_latent(server, outputs, unguided)) > 1e-3
    learnt = load_msi(server.base / "models" / "msi" / outputs[module[0]]["text"][0].removeprefix("saved "))
    assert learnt.text_encoder.widths == {"sd2": (1024,), "sdxl": (768, 1280)}[kind]
    assert learnt.out.weight.any() and learnt.out.weight.isfinite().all()
    assert error(latents["said"], latents["prompt"]) > 3e-4
    file.unlink()
    server.free()
