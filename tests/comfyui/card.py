"""Run by inside.py: ComfyUI's memory management as on an NVIDIA card, on a machine without one.

card.py PACK SCENARIO… prints what each scenario found as one line of JSON. ComfyUI's native part loads on
any Linux machine, so its dynamic patchers are real; testing.pretended_pages stands for what that part keeps on a card. The device "meta" stands for the card.
"""

import copy
import gc
import itertools
import json
import sys
from importlib import import_module
from unittest.mock import patch

import comfy.model_management as management
import comfy.model_patcher as patchers
import comfy.ops
import comfy.samplers
import comfy.sd
import torch
from torch import nn

from testing import pretended_pages

pack, *scenarios = sys.argv[1:]
prefix = pack.replace(".", "_x_") + "."
memory, sampling, guiding = (sys.modules[f"{prefix}nodes.comfy.{name}"] for name in ("memory", "sampling", "guiding"))
CARD, CPU = torch.device("meta"), torch.device("cpu")
PAGES = pretended_pages.install()
FREE = {"card": 2**40}
"""Bytes that the card has free."""
management.get_free_memory = lambda device=None, torch_free_too=False: (
    (FREE["card"], 0) if torch_free_too else FREE["card"]
)


class Autoencoder(nn.Module):
    """Encoder and decoder of ComfyUI's own layers."""

    def __init__(self):
        super().__init__()
        layer = comfy.ops.disable_weight_init.Conv2d
        self.encoder = nn.Sequential(layer(64, 64, 3))
        self.decoder = nn.Sequential(layer(64, 64, 3), layer(64, 64, 3))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.05)

    def forward(self, x):
        return self.decoder(x)


def state(network: nn.Module) -> list[str]:
    return sorted({name for module in network.modules() for name in vars(module) if name.startswith(memory.STATE)})


def prompts() -> dict:
    """Encode, guide, sample, decode, free, three times over, with a VAE that the dynamic patcher holds."""
    vae = Autoencoder().requires_grad_(False)
    original = patchers.ModelPatcherDynamic(vae, CARD, CPU)
    found: dict = {"dynamic": original.is_dynamic()}
    with torch.inference_mode():
        for turn in range(3):
            if turn != 1:  # Once the guidance comes before the VAE was ever used.
                original.partially_load(CARD, 1e32)
            private = memory.private_copy(vae, without=("encoder",))
            found["left"], found["encoder"] = state(private), private.encoder is None
            decoder = memory.Resident(private, CPU, CPU)
            memory.load([decoder])
            with torch.inference_mode(False), torch.enable_grad():
                x = torch.ones(1, 64, 8, 8, requires_grad=True)
                found["gradient"] = float(torch.autograd.grad(private(x).square().sum(), x)[0].abs().sum())
            original.partially_load(CARD, 1e32)
            del decoder, private
            memory.release()
            original.partially_load(CARD, 1e32)
    found["pages"] = len(PAGES.there)
    original.detach()
    del original, vae
    gc.collect()
    return found | {"mistakes": PAGES.mistakes, "pages after": len(PAGES.there)}


def no_room() -> dict:
    """What Energy Guidance says where there is no room for one image, with each decoder."""
    demo_model, guidance = sys.modules[f"{prefix}nodes.comfy.demo_model"], sys.modules[f"{prefix}nodes.guidance"]
    energies, found = guidance.energies, {}

    def full(*_):
        raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory.")

    with torch.inference_mode(), patch.object(energies, "latent_gradient", lambda *_: full):
        model, clip, vae = demo_model.load_model(), demo_model.load_clip(), demo_model.load_vae()
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        there = guidance.differentiable_decoder(vae, model.get_model_object("latent_format"))
        settings = {"rule": "paper", "scale": 1.0, "from_step": 999, "to_step": 0, "every": 1, "chunk": 0}
        latent, sigmas = {"samples": torch.zeros(2, 16, 8, 8)}, torch.tensor([3.0, 0.0])
        for decoder in ("VAE", "TAESD if present"):
            energy = energies.Energy(lambda images, seed: images)
            with patch.object(guidance, "tiny_decoder", lambda *_: there):
                guided = guidance.EnergyGuidance.execute(model, vae, energy, decoder=decoder, **settings).result[0]
            try:
                sampling.run_sampler(guided, empty, latent, sigmas, _euler)
            except torch.OutOfMemoryError as error:
                found[decoder] = str(error)
    return found


def reloaded() -> dict:
    """Gradients after ComfyUI has moved a network off and on again inside inference mode, as VAE Decode makes it do."""
    plain_to = nn.Module.to

    def to(self, target, *rest):  # Another precision stands for another device.
        if isinstance(target, torch.device):
            return plain_to(self, torch.float64 if target == CARD else torch.float32)
        return plain_to(self, target, *rest)

    network = Autoencoder().requires_grad_(False)
    exact = copy.deepcopy(network).double()
    patcher = memory.Resident(network, CARD, CPU)
    errors = []
    with patch.object(nn.Module, "to", to), torch.inference_mode():
        for _ in range(3):
            management.load_models_gpu([patcher])
            with torch.inference_mode(False), torch.enable_grad():
                x = torch.ones(1, 64, 8, 8, dtype=torch.float64, requires_grad=True)
                gradient = torch.autograd.grad(network(x).square().sum(), x)[0]
                expected = torch.autograd.grad(exact(x).square().sum(), x)[0]
                errors.append(float((gradient - expected).norm() / expected.norm()))
            management.unload_all_models()
    return {"errors": errors}


def uploads() -> dict:
    """Bytes moved to the card when a recognizer of plain torch layers is loaded at three calls one after another."""
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3)).requires_grad_(False)
    size = management.module_size(network)
    patcher, moved, calls = memory.Resident(network, CARD, CPU), [0], []
    plain_to = torch.Tensor.to

    def to(self, *arguments, **options):
        result = plain_to(self, *arguments, **options)
        if self.device.type == "cpu" and result.device.type == "meta":
            moved[0] += self.nbytes
        return result

    with patch.object(torch.Tensor, "to", to):
        for _ in range(3):
            moved[0] = 0
            memory.load([patcher])
            calls.append(moved[0])
    devices = sorted({tensor.device.type for tensor in (*network.parameters(), *network.buffers())})
    return {"size": size, "calls": calls, "devices": devices}


def crowded() -> dict:
    """A private network where ComfyUI would let layers share a buffer, as with too little memory or --novram."""
    found = {}
    for name, vram in (("low", management.VRAMState.LOW_VRAM), ("none", management.VRAMState.NO_VRAM)):
        network = nn.Sequential(*(comfy.ops.disable_weight_init.Linear(64, 64) for _ in range(8)))
        with patch.object(management, "vram_state", vram), patch.dict(FREE, {"card": 1}):
            management.load_models_gpu([memory.Resident(network.requires_grad_(False), CARD, CPU)])
        found[name] = [layer.weight.device.type for layer in network]
        found[f"{name}_casts"] = any(layer.comfy_cast_weights for layer in network)
    return found


def quantized() -> dict:
    """What a copy of weights says that have no gradients."""
    from comfy.quant_ops import QuantizedTensor

    found = {}
    half = torch.randn(16, 16, dtype=torch.float16)
    kinds = {
        "fp8": half.to(torch.float8_e4m3fn),
        "quantized": QuantizedTensor.from_float(half, "TensorCoreFP8Layout"),
    }
    for name, weight in kinds.items():
        network = nn.Sequential(nn.Linear(16, 16))
        network[0].weight = nn.Parameter(weight, requires_grad=False)
        try:
            memory.private_copy(network)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def loads_while_sampling() -> dict:
    """At which point of a guided sampling run ComfyUI is asked to load something."""
    demo_model, decoders = (sys.modules[f"{prefix}nodes.comfy.{name}"] for name in ("demo_model", "decoders"))
    events = []
    load_models_gpu = management.load_models_gpu

    def recording(*arguments, **options):
        events.append("load")
        return load_models_gpu(*arguments, **options)

    with torch.inference_mode():
        model, clip, vae = demo_model.load_model(), demo_model.load_clip(), demo_model.load_vae()
        decoder = decoders.differentiable_decoder(vae, model.get_model_object("latent_format"))
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))

        def guide(prediction):
            events.append("guide")
            with torch.inference_mode(False), torch.enable_grad():
                z = prediction.denoised.clone().requires_grad_()
                torch.autograd.grad(decoder(z).sum(), z)
            return prediction.denoised

        guided = guiding.guide_model(model, guide, [decoder.patcher], decoder.memory)
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        with patch.object(management, "load_models_gpu", recording):
            for _ in range(2):
                events.append("run")
                sampling.run_sampler(guided, empty, latent, torch.tensor([3.0, 1.0, 0.3, 0.0]), _euler)
                management.unload_all_models()
    return {"events": events}


def _euler(denoiser, x, sigmas, callback):
    for sigma, lower in itertools.pairwise(sigmas):
        x = x + (x - denoiser(x, sigma)) / sigma * (lower - sigma)
    return x


def attention() -> dict:
    """Whose attention a training copy of the UNet uses, whatever ComfyUI has chosen."""
    demo_model, comfy_model = (sys.modules[f"{prefix}nodes.comfy.{name}"] for name in ("demo_model", "model"))
    import comfy.ldm.modules.attention as attention

    @torch.library.custom_op("diffprivacy_test::attention", mutates_args=())
    def without_gradient(q: torch.Tensor) -> torch.Tensor:
        return q.clone()

    @attention.wrap_attn
    def chosen(q, k, v, heads, *rest, **options):
        return without_gradient(q)

    with torch.inference_mode():
        denoise = comfy_model.ComfyModel(demo_model.load_model()).differentiable_denoiser()
    conditioning = import_module(f"{prefix}diffprivacy.diffusion.model").TextConditioning
    with patch.object(attention, "optimized_attention", chosen), torch.enable_grad():
        context = torch.randn(1, 77, 256, requires_grad=True)
        denoised = denoise(torch.randn(1, 16, 8, 8), torch.tensor([2.0]), conditioning(context, None))
        gradient = torch.autograd.grad(denoised.square().sum(), context)[0]
    return {"gradient": float(gradient.abs().sum())}


def displacements() -> dict:
    """How far one guided step of each sampler goes in the variance-preserving form, and of each guider, as multiples
    of the scale: 1 is what is asked for."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    demo_model = sys.modules[f"{prefix}nodes.comfy.demo_model"]
    guidance = import_module(f"{prefix}diffprivacy.diffusion.guidance")
    scale, found, sigmas = 0.05, {}, torch.tensor([3.0, 2.0])
    slope = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))

    def guide(prediction):
        strength = guidance.Guidance("paper", scale * prediction.share())
        of = prediction.denoised, lambda z0, seed: slope, prediction.sigma, prediction.sigmas
        return guidance.guide(*of, strength, prediction.levels)

    def last(guider, sampler):
        """Where one step ends; the sampler must not know that there is no other."""
        torch.manual_seed(0)
        noise = torch.randn(1, 16, 8, 8)
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)

    def multiple(guider_of, sampler):
        plain, moved = (last(guider_of(each), sampler) for each in (model, guiding.guide_model(model, guide)))
        return float(((plain - moved) / (1 + sigmas[1] ** 2).sqrt() * slope).sum() / slope.square().sum() / scale)

    with torch.inference_mode():
        model, clip = demo_model.load_model(), demo_model.load_clip()
        empty, face = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", "a face"))

        def usual(of):
            guider = comfy.samplers.CFGGuider(of)
            guider.set_conds(face, empty)
            guider.set_cfg(3.0)
            return guider

        def dual(nested):
            def guider_of(of):
                guider = Guider_DualCFG(of)
                guider.set_conds(face, empty, empty)
                guider.set_cfg(4.0, 3.0, nested)
                return guider

            return guider_of

        for name in ("euler", "euler_cfg_pp", "lcm", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "ddpm"):
            found[name] = multiple(usual, comfy.samplers.sampler_object(name))
        for name, nested in (("Dual CFG", False), ("Dual CFG, nested", True)):
            found[name] = multiple(dual(nested), comfy.samplers.sampler_object("euler"))
    return found


def shares() -> dict:
    """Euler's share of a change of z0 against that of every sampler that ComfyUI has, in the middle of a schedule."""
    demo_model = sys.modules[f"{prefix}nodes.comfy.demo_model"]
    model = demo_model.load_model()
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_model = model.model
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5, 0.0])
    before = torch.get_rng_state()
    found = {
        name: guiding.Run(comfy.samplers.sampler_object(name), guider, sigmas).share(sigmas[1])
        for name in comfy.samplers.SAMPLER_NAMES
    }

    class Frozen:
        """A sampler that takes nothing of a prediction."""

        def __init__(self):
            self.extra_options = {}

        def sampler_function(self, model, x, sigmas, **_):
            return x

    try:
        guiding.Run(Frozen(), guider, sigmas).share(sigmas[1])
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return {**found, "numbers drawn": not torch.equal(before, torch.get_rng_state())}


def half_precision() -> dict:
    """Evaluations and errors of a fixed-point inversion and its replay, of a UNet in float16, with its tolerance and with
    that of float32."""
    demo_model, recovery = sys.modules[f"{prefix}nodes.comfy.demo_model"], sys.modules[f"{prefix}nodes.recovery"]
    evaluations, found = [0], {}
    with torch.inference_mode():
        model, clip = demo_model.load_model(), demo_model.load_clip()
        network = model.model.diffusion_model
        network.half()
        network.dtype = torch.float16

        def counted(apply, given):
            evaluations[0] += 1
            return apply(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(counted)
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        latent = {"samples": torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))}
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 30)
        plain = recovery.inversion.tolerance_for
        for name, tolerance in (("own", plain), ("float32's", lambda dtype: plain(torch.float32))):
            evaluations[0] = 0
            with patch.object(recovery.inversion, "tolerance_for", tolerance):
                noise, _ = recovery.InvertLatent.execute(model, empty, latent, sigmas, "fixed point", 20).result
            count = evaluations[0]
            back = sampling.run_sampler(model, empty, noise, sigmas, _euler)
            found[name] = [count, float((back - latent["samples"]).square().mean().sqrt())]
    return found


for scenario in scenarios:
    print(json.dumps({scenario: globals()[scenario]()}))
