"""Run by inside.py: flow and video models of every family that can be made small.

flow.py PACK MODELS FAMILY… prints what each family's run found as one line of JSON.
"""

import inspect
import json
import logging
import sys
from importlib import import_module
from pathlib import Path

import comfy.model_base
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy_extras.nodes_custom_sampler as stock
import folder_paths
import pyrage
import torch

import nodes

pack, models, *families = sys.argv[1:]
folder_paths.add_model_folder_path("vae_approx", f"{models}/vae_approx", is_default=True)
prefix = pack.replace(".", "_x_") + "."
guidance, recovery, schedule, latents, decoders = (
    import_module(f"{prefix}nodes.{name}") for name in ("guidance", "recovery", "schedule", "latents", "comfy.decoders")
)
border = import_module(f"{prefix}nodes.comfy.border")
Energy = import_module(f"{prefix}diffprivacy.identity.energies").Energy
WIDTHS = {
    "sd3": (4096, 2048),
    "flux": (768, 768),
    "flux2": (768, None),
    "wan": (4096, None),
    "qwen_image": (3584, None),
}
WIDTHS |= {"cosmos": (1024, None), "krea2": (80, None)}
"""Of each family's text context and pooled vector."""
SIDE = {"flux2": 2}
"""Of the latents, 4 elsewhere: pictures have 32 pixels a side."""
RUNS = {"sd3": (("euler", 4), ("res_multistep", 8), ("dpmpp_2m", 20)), "wan": (("euler", 4), ("dpmpp_2m", 8))}
"""Samplers and steps: more for one family of images and one of videos, which are also inverted in 20 steps."""
ROWS = 2
USED = (0.1, 0.5, 0.9)
"""Shares of the way at which noise levels are compared."""


def conditioning(family: str, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    width, pooled = WIDTHS[family]
    options = {} if pooled is None else {"pooled_output": torch.randn(1, pooled, generator=generator)}
    if family.startswith("flux"):
        options["guidance"] = 3.5
    return [[torch.randn(1, 8, width, generator=generator), options]]


def view(images: torch.Tensor) -> torch.Tensor:
    """What the energy sees of pictures: 16 x 16 pixels, without their mean."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, 16).flatten(1)
    return torch.nn.functional.normalize(small - small.mean(dim=1, keepdim=True), dim=1)


GOAL = torch.nn.functional.normalize(torch.randn(1, 768, generator=torch.Generator().manual_seed(9)), dim=1)
ENERGY = Energy(lambda seen, seed: 1 - (view(seen.images) * GOAL).sum(1))


def guided(model, scale: float = 0.1):
    settings = ("normalized", scale, 999, 0, 1, "TAESD if present", 0)
    return guidance.EnergyGuidance.execute(model, None, ENERGY, *settings).result[0]


def sampled(model, positive, latent, sigmas, sampler="euler", noise_seed=None, object_=None):
    """SamplerCustomAdvanced with BasicGuider; without a seed with DisableNoise."""
    guider = stock.Guider_Basic(model)
    guider.set_conds(positive)
    samples = latent["samples"]
    if noise_seed is None:
        noise = torch.zeros_like(samples)
    else:
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(noise_seed))
    sampler = object_ or comfy.samplers.sampler_object(sampler)
    mask = latent.get("noise_mask")
    return guider.sample(noise, samples, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=1)


def schedule_of(model, steps, denoise=1.0):
    return stock.BasicScheduler.execute(model, "simple", steps, denoise).result[0]


def error(made, wanted):
    return float((made - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def message(function) -> str:
    try:
        function()
    except Exception as fault:
        return f"{type(fault).__name__}: {fault}"
    return "nothing"


def warned(model, positive, latent) -> dict:
    """What is said of reference latents."""
    said, found = [], []
    logger = logging.getLogger(f"{prefix}nodes.comfy.guiding")
    logger.addFilter(lambda record: said.append(record.getMessage()) or True)
    edited = [[positive[0][0], {**positive[0][1], "reference_latents": [latent["samples"][:1]]}]]
    for each in (positive, edited):
        sampled(guided(model), each, latent, schedule_of(model, 2, 0.6), noise_seed=2)
        found.append(len(said))
    return {"said": found, "warning": said[-1] if said else ""}


def video_refused(model, positive, latent) -> dict:
    """What is said of crops that became the frames of one video."""
    video = {"samples": torch.cat(latent["samples"].split(1), dim=2)}
    sigmas = schedule_of(model, 4, 0.6)
    return {
        "video, inverted": message(
            lambda: recovery.InvertLatent.execute(model, positive, video, sigmas, "automatic", 20)
        ),
        "video, guided": message(lambda: sampled(guided(model), positive, video, sigmas, noise_seed=2)),
    }


def sealed(model, positive, latent) -> dict:
    """What comes back from a sealed key, with the conditioning that it holds and with a part of that."""
    secret, picture = Path(models) / "identity.txt", torch.rand(1, 32, 32, 3)
    identity = pyrage.x25519.Identity.generate()
    secret.write_text(str(identity))
    sigmas = schedule_of(model, 4, 0.6)
    noise, _ = recovery.InvertLatent.execute(model, positive, latent, sigmas, "automatic", 40).result
    inputs = picture, "latent", str(identity.to_public()), "", "inside", noise, positive, sigmas
    (key,) = recovery.SealKey.execute(*inputs).result
    noise, opened, sigmas, sampler, *_ = recovery.OpenKey.execute(picture, key, f"file:{secret}").result
    less = [[context, {**options, "guidance": 1.0}] for context, options in opened]
    back, other = (sampled(model, each, noise, sigmas, object_=sampler) for each in (opened, less))
    return {"error": error(back, latent["samples"]), "without guidance": error(other, latent["samples"])}


def encoded() -> dict:
    """Shapes of three crops' latents."""
    vae = comfy.sd.VAE(comfy.utils.load_torch_file(f"{models}/vae/wan_vae.safetensors"))
    crops = torch.rand(3, 64, 64, 3)
    of_crops = latents.CropsToLatent.execute(crops, vae, torch.ones(3, 64, 64)).result[0]
    return {
        "stock latent": list(nodes.VAEEncode().encode(vae, crops)[0]["samples"].shape),
        "latent of crops": [list(of_crops[name].shape) for name in ("samples", "noise_mask")],
    }


def explore(family: str) -> dict:
    model = comfy.sd.load_diffusion_model(f"{models}/diffusion_models/{family}.safetensors")
    latent_format = model.get_model_object("latent_format")
    decode = decoders.tiny_decoder(latent_format, torch.device("cpu"))
    side, found = SIDE.get(family, 4), {}
    frames = (1,) if latent_format.latent_dimensions == 3 else ()
    shape = (ROWS, latent_format.latent_channels, *frames, side, side)
    original = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    latent = {"samples": latent_format.process_out(original)}
    positive, other = conditioning(family, 4), conditioning(family, 5)

    def energy(samples):
        with torch.inference_mode(False), torch.no_grad():
            return float(ENERGY(decode(latent_format.process_in(samples.clone()))).mean())

    found["dimensions"] = len(shape)
    found["off is the model"] = guided(model, 0.0) is model
    found["energies"] = {}
    for sampler, steps in RUNS.get(family, (("euler", 4),)):
        sigmas = schedule_of(model, steps, 0.6)
        plain, moved = (
            energy(sampled(each, positive, latent, sigmas, sampler, noise_seed=2)) for each in (model, guided(model))
        )
        found["energies"][f"{sampler}, {steps} steps"] = [plain, moved]
    whole = schedule_of(model, 4)  # From time 1, where sigma is infinite.
    found["whole"] = [energy(sampled(each, positive, latent, whole, noise_seed=2)) for each in (model, guided(model))]

    found["replayed"] = {}
    mixed = schedule.ScheduleEmbeddings.execute(positive, other, "custom", 500, 0).result[0]
    mask = torch.zeros(1, 1, *[1] * len(frames), side, side)
    mask[..., : side // 2] = 1
    for steps in (4, 20) if family in RUNS else (4,):
        sigmas = schedule_of(model, steps, 0.6)
        for name, of in (("plain", latent), ("masked", {**latent, "noise_mask": mask}))[: 2 if steps == 4 else 1]:
            noise, sampler = recovery.InvertLatent.execute(model, mixed, of, sigmas, "automatic", 40).result
            back = sampled(model, mixed, noise, sigmas, object_=sampler)
            found["replayed"][f"{name}, {steps} steps"] = error(back, latent["samples"])
            found["changed"] = error(noise["samples"], latent["samples"])
    found["sealed"] = sealed(model, mixed, latent)
    full = schedule_of(model, 8)
    found["time 1"] = float(full[0])
    found["from time 1"] = message(
        lambda: recovery.InvertLatent.execute(model, positive, latent, full, "automatic", 20)
    )
    if family == "flux":
        found |= warned(model, positive, latent)
    if frames:
        found |= video_refused(model, positive, latent)
    if family == "wan":
        found |= encoded()
    return found


def fixed_widths() -> dict:
    """Of families that cannot be made small: how far their noise levels are off, and what their latents are."""
    found = {}
    for name, base in (("ZImage", "Lumina2"), ("Lumina2", "Lumina2"), ("HiDream", "HiDream"), ("Chroma", "Chroma")):
        config = getattr(comfy.supported_models, name)({})
        kind = inspect.signature(getattr(comfy.model_base, base).__init__).parameters["model_type"].default
        sampling = comfy.model_base.model_sampling(config, kind)
        ours, latent_format = border.Border(sampling), config.latent_format
        levels = (float(ours.level(ours.levels.sigma(999 * u))) - sampling.percent_to_sigma(1 - u) for u in USED)
        off = max(abs(float(level)) for level in levels)
        shape = latent_format.latent_channels, latent_format.latent_dimensions, latent_format.spacial_downscale_ratio
        found[name] = [off, *shape, latent_format.taesd_decoder_name]
    return found


with torch.inference_mode():
    print(json.dumps({"fixed widths": fixed_widths()}), flush=True)
    for family in families:
        print(json.dumps({family: explore(family)}), flush=True)
