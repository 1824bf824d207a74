"""From a latent to the noise map that brings it back."""

from __future__ import annotations

import functools

import comfy.samplers
from comfy_api.v0_0_2 import io

from ..diffprivacy import inversion, sampling
from ..diffprivacy.errors import DiffPrivacyError
from . import host

CATEGORY = "Diff-Privacy/recovery"


class InvertLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyInvertLatent",
            display_name="Invert Latent to Noise Map",
            category=CATEGORY,
            description="Runs the sampler backwards: finds the noise map from which the same model, conditioning and "
            "sigmas give the latent back (SamplerCustomAdvanced with DisableNoise, CFG 1).",
            search_aliases=["ddim inversion", "noise map", "unsampler", "exact inversion", "belm", "fixed point"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Latent.Input("latent_image", tooltip="A noise mask restricts the inversion to its inside."),
                io.Sigmas.Input("sigmas", tooltip="Descending, the same as for the way back."),
                io.Combo.Input(
                    "method",
                    options=["fixed point", "belm", "ddim"],
                    tooltip="fixed point: exact, replays with the stock euler sampler. belm: exact in one evaluation a "
                    "step, needs the replay sampler of this block. ddim: the paper's, approximate.",
                ),
                io.Int.Input(
                    "iterations",
                    default=20,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Most fixed-point iterations a step; it stops early once converged.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="noise_map"),
                io.Sampler.Output(display_name="replay_sampler", tooltip="euler, or for belm the sampler it needs."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent_image, sigmas, method, iterations) -> io.NodeOutput:
        host.noise_levels(model)
        try:
            sampling.check_latent(latent_image["samples"], model.get_model_object("latent_format").latent_channels)
        except DiffPrivacyError as error:
            raise DiffPrivacyError(f"Socket `latent_image`: {error}") from error
        try:
            sampling.check_sigmas(sigmas)
        except DiffPrivacyError as error:
            raise DiffPrivacyError(f"Socket `sigmas`: {error}") from error
        if method == "belm":
            samples, replay = _invert_belm(model, positive, latent_image, sigmas)
        else:
            invert = inversion.invert_ddim
            if method == "fixed point":
                invert = functools.partial(inversion.invert_fixed_point, iterations=iterations)
            samples = host.run_sampler(model, positive, latent_image, sigmas, invert)
            replay = comfy.samplers.sampler_object("euler")
        return io.NodeOutput({**latent_image, "samples": samples.cpu()}, replay)


def _invert_belm(model, positive, latent_image, sigmas):
    """The noise map and a SAMPLER that holds BELM's second state."""
    before = []

    def invert(denoiser, x, sigmas, callback):
        x, x_before = inversion.invert_belm(denoiser, x, sigmas, callback)
        before.append(x_before)
        return x

    samples = host.run_sampler(model, positive, latent_image, sigmas, invert)

    def replay(denoiser, x, sigmas, callback):
        return inversion.sample_belm(denoiser, (x, before[0].to(x.device)), sigmas, callback)

    return samples, host.sampler(replay)


NODES = [InvertLatent]
