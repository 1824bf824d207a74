"""Run by inside.py: prompts one after the other on a card that computes, with its memory.

rounds.py PACK FOLDER PATCHER:MEMORY:ROUNDS… prints what each gave as one line of JSON. PATCHER is
"dynamic" or "legacy", MEMORY "all", "half" or "little". The card is testing.pretended_card's: its tensors are apart from
the CPU's, so that a weight left behind is an error. FOLDER gets a TAESD.
"""

import copy
import functools
import gc
import json
import logging
import sys
import weakref
from importlib import import_module
from pathlib import Path

import comfy.cli_args
import comfy.memory_management
import comfy.model_management as management
import comfy.model_patcher as patchers
import comfy.sd
import folder_paths
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import nodes
from testing import pretended_card, pretended_pages

logging.basicConfig(level=logging.INFO, force=True)  # At this level ComfyUI says that it looks for a leak.
comfy.cli_args.args.fp32_text_enc = True
pack, folder, *runs = sys.argv[1:]
CARD, CPU = pretended_card.install(), torch.device("cpu")
MEMORY = {"card": 2**40}
"""Bytes of the card."""
ALWAYS = 2**20
"""Bytes that are free whatever is loaded: ComfyUI's attention divides by them."""


def free_memory(device=None, torch_free_too=False):
    loaded = (each for each in management.current_loaded_models if each.model is not None and each.device == CARD)
    free = 2**40 if device == CPU else max(ALWAYS, MEMORY["card"] - sum(each.model_loaded_memory() for each in loaded))
    return (free, 0) if torch_free_too else free


management.get_torch_device = lambda: CARD
management.get_free_memory = free_memory
management.minimum_inference_memory = management.extra_reserved_memory = lambda: 0
management.vram_state = management.VRAMState.NORMAL_VRAM
PAGES = pretended_pages.install()
PATCHERS = {"dynamic": patchers.ModelPatcherDynamic, "legacy": patchers.ModelPatcher}

prefix = pack.replace(".", "_x_") + "."
demo_model, memory, guidance_nodes, msi_nodes = (
    sys.modules[f"{prefix}nodes.{name}"] for name in ("comfy.demo_model", "comfy.memory", "guidance", "msi")
)
demo, backend, energies, msi_module, training, training_data, errors = (
    import_module(f"{prefix}diffprivacy.{name}")
    for name in (
        "demo",
        "demo.backend",
        "identity.energies",
        "msi.module",
        "msi.training",
        "msi.training_data",
        "errors",
    )
)

SIZE, STEPS = 64, 2
NARROW = {"double_z": True, "z_channels": 16, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32}
NARROW |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
CONFIG = {"params": {"embed_dim": 16, "ddconfig": NARROW}}
LEARNING = {"steps": STEPS, "batch": 2, "chunk": 2, "checkpointing": True, "seed": 0}
RATE = 1e-5
"""Learning rate: so low that rounding, which Adam takes for a gradient, does not tell in the next step."""
Settings = msi_nodes.Settings = functools.partial(training.Settings, validation=1)
generator = torch.Generator().manual_seed(0)
pixels = torch.rand(1, SIZE, SIZE, 3, generator=generator)
small = pixels[:, ::2, ::2]
points = torch.tensor([[[11.0, 13], [21, 13], [16, 18], [12, 23], [20, 23]]])


def seeded(network: nn.Module) -> nn.Module:
    """A network on the CPU that no patcher ever holds, its weights of ordinary size and exact in float16."""
    for weight in network.parameters():
        bound = weight.shape[1:].numel() ** -0.5 if weight.ndim > 1 else 0.0
        weight.data = torch.randn(weight.shape, generator=generator) * bound + float(weight.ndim == 1) * 0.1
        weight.data = weight.data.half().float()
    return network.requires_grad_(False).eval()


plain_vae, plain_tiny = seeded(AutoencoderKL(**CONFIG["params"])), seeded(TAESD(latent_channels=16))
plain_tiny.vae_scale.data, plain_tiny.vae_shift.data = torch.ones(()), torch.zeros(())
save_file(plain_tiny.taesd_decoder.state_dict(), Path(folder) / "tiny_decoder.safetensors")
folder_paths.add_model_folder_path("vae_approx", folder)
demo_model.DemoLatent.taesd_decoder_name = "tiny_decoder"
plain_decoders = {
    "VAE": lambda z: (plain_vae.decode(z) / 2 + 0.5).clamp(0, 1),
    "TAESD if present": lambda z: (plain_tiny.decode(z) / 2 + 0.5).clamp(0, 1),
}


def identity(recognizer):
    crop = small.movedim(-1, 1)
    return energies.identity_away(recognizer, recognizer.reference(crop, points), points, form="smooth")


def relative(made: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((made.cpu() - wanted).norm() / wanted.norm())


def learn() -> list[torch.Tensor]:
    """The gradients of MSI's steps by the library alone, on the CPU, in float32."""
    plain = backend.load_diffusion_model()
    plain.encode = lambda images: plain_vae.encode(images * 2 - 1)
    data = training_data.prepare(plain, pixels.movedim(-1, 1), flips=False)
    run = training.Training(msi_module.new_msi(plain, seed=0), plain, data, Settings(**LEARNING, lr=RATE))
    run.bfloat16 = False
    run.run()
    return taken()


steps: list[torch.Tensor] = []
register_optimizer_step_pre_hook(
    lambda optimizer, *_: steps.append(
        torch.cat([p.grad.flatten().cpu() for group in optimizer.param_groups for p in group["params"]])
    )
)


def taken() -> list[torch.Tensor]:
    """What optimizers were given since the last call."""
    gradients, steps[:] = list(steps), []
    return gradients


class Networks:
    """What the loaders gave, and a check of every guided gradient against plain modules'."""

    def __init__(self):
        self.model, self.clip, self.vision = (
            demo_model.load_model(),
            demo_model.load_clip(),
            demo_model.load_clip_vision(),
        )
        weights = {name: tensor.half() for name, tensor in plain_vae.state_dict().items()}  # As most files hold.
        self.vae = comfy.sd.VAE(sd=weights, config=CONFIG, dtype=torch.float32)
        self.vae.latent_channels = 16
        with torch.inference_mode(False):
            self.recognizer = memory.ManagedRecognizer(demo.load_recognizer("guide"))
        self.patchers = [each.patcher for each in (self.clip, self.vision, self.vae)] + [self.model]
        self.patchers += self.recognizer.patchers
        self.errors: list[float] = []

    def size(self) -> int:
        return sum(patcher.model_size() for patcher in self.patchers if patcher.load_device == CARD)

    def guided(self, decoder: str, scale: float):
        latent_gradient = energies.latent_gradient

        def checked(energy, decode, chunk=None):
            gradient, exact = (
                latent_gradient(energy, decode, chunk),
                latent_gradient(identity(plain_recognizer), plain_decoders[decoder]),
            )

            def both(z0, seed=None):
                made = gradient(z0, seed)
                self.errors.append(relative(made, exact(z0.cpu(), seed)))
                return made

            return both

        energies.latent_gradient = checked
        try:
            settings = {"rule": "paper", "scale": scale, "from_step": 999, "to_step": 0, "every": 1}
            energy = identity(self.recognizer)
            made = guidance_nodes.EnergyGuidance.execute(
                self.model, self.vae, energy, **settings, decoder=decoder, chunk=0
            )
            return made.result[0]
        finally:
            energies.latent_gradient = latent_gradient

    def prompts(self) -> None:
        """Encode, guide through each decoder, sample, decode, guide otherwise."""
        (latent,) = nodes.VAEEncode().encode(self.vae, small)
        (empty,) = nodes.CLIPTextEncode().encode(self.clip, "")
        how = {"seed": 1, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
        for decoder, scale in (("VAE", 1.0), ("TAESD if present", 1.0), ("VAE", 2.0)):
            model = self.guided(decoder, scale)
            (made,) = nodes.KSampler().sample(model, **how, positive=empty, negative=empty, latent_image=latent)
            (picture,) = nodes.VAEDecode().decode(self.vae, made)
            assert picture.isfinite().all()

    def train(self) -> None:
        msi_nodes.TrainMSI.execute(
            pixels, self.model, self.clip, self.vae, self.vision, **LEARNING, learning_rate=RATE, flips=False
        )


def free_everything() -> None:
    management.unload_all_models()
    management.soft_empty_cache()
    gc.collect()


def rounds(patcher: str, how: str, count: int) -> dict:
    """What every prompt and training gave, and what they left behind."""
    patchers.CoreModelPatcher, comfy.memory_management.aimdo_enabled = PATCHERS[patcher], patcher == "dynamic"
    MEMORY["card"] = 2**40
    found = {"gradients": [], "training": [], "refused": []}
    with torch.inference_mode():
        networks = Networks()
        MEMORY["card"] = {"all": 2**40, "half": networks.size() // 2, "little": ALWAYS}[how]
        for _ in range(count):
            try:
                networks.prompts()
                free_everything()
                networks.train()
                found["training"] += [relative(a, b) for a, b in zip(taken(), expected, strict=True)]
            except errors.DiffPrivacyError as error:
                found["refused"].append(str(error))
            free_everything()
        found |= {"gradients": networks.errors, "dynamic": networks.model.is_dynamic()}
        held = [weakref.ref(patcher.model) for patcher in networks.patchers]
        del networks
        free_everything()
        management.cleanup_models()
    found["left"] = [type(network()).__name__ for network in held if network() is not None]
    loaded, mistakes = len(management.current_loaded_models), list(PAGES.mistakes)
    return found | {"loaded": loaded, "pages": len(PAGES.there), "mistakes": mistakes}


plain_recognizer = copy.deepcopy(demo.load_recognizer("guide")).eval()
expected = learn()
gc.collect()
gc.freeze()  # What lives as long as the process need not be searched again at every collection.
for run in runs:
    patcher, how, count = run.split(":")
    print(json.dumps({f"{patcher}, {how}": rounds(patcher, how, int(count))}), flush=True)
