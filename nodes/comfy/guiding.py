"""Changing what a MODEL predicts, under any guider and any sampler."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...diffprivacy.diffusion.guidance import step_of
from ...diffprivacy.diffusion.model import Levels
from ...diffprivacy.diffusion.sampling import check_frames
from ...diffprivacy.errors import DiffPrivacyError
from .border import Border

LOG = logging.getLogger(__name__)
RUN = "diffprivacy_run"
"""Where a sampling run's options hold what its steps have in common."""
REFERENCE_WARNING = (
    "Energy Guidance: the conditioning holds reference latents. An edit model takes the original identity from them at "
    "every step; protect without them, and edit the protected image after."
)
TOO_LITTLE = 0.02
"""A share of a change of z0 this far below Euler's is none."""


@dataclass(frozen=True)
class Prediction:
    """A predicted clean latent, after CFG, at a step of a sampling run, in the library's convention.

    denoised: (B,C,h,w) or (B,C,1,h,w) in the network's units. sigma: 0-d, sigmas: (N+1,) descending, both on the CPU.
    levels: the model's. share: Euler's share of a change of z0 in this step, divided by the sampler's.
    """

    denoised: Tensor
    sigma: Tensor
    sigmas: Tensor
    levels: Levels
    share: Callable[[], float]


class Run:
    """What the steps of one sampling run have in common.

    guided: intervals of training time steps, both ends inclusive, in which an energy guides.
    """

    def __init__(self, sampler: Any, guider: Any, sigmas: Tensor, guided: Sequence[tuple[int, int]] = ()):
        self._sampler, self._guider, self.guided = sampler, guider, guided
        self.border = Border(guider.inner_model.model_sampling)
        self.levels = self.border.levels
        self.schedule = sigmas.float().cpu().clone()  # UniPC writes into its own.
        self.sigmas = self.border.sigma(self.schedule)
        self._shares: dict[tuple[float, float], float] = {}

    def prediction(self, denoised: Tensor, level: Tensor) -> Prediction:
        """level: ComfyUI's sigma, 0-d, on the CPU."""
        return Prediction(
            denoised, self.border.sigma(level), self.sigmas, self.levels, functools.partial(self.share, level)
        )

    @functools.cached_property
    def guides(self) -> bool:
        """Whether an energy guides at any of the steps."""
        timesteps = [int(self.levels.timestep(sigma)) for sigma in self.sigmas[:-1]]
        return any(low <= timestep <= high for low, high in self.guided for timestep in timesteps)

    def share(self, level: Tensor) -> float:
        """Euler's share of a change of z0 in the step from ComfyUI's noise level, divided by the sampler's.

        1 for samplers that follow the same equation. Those that draw new noise (ancestral, SDE, LCM) or step from the
        prediction itself (CFG++) take more. It is measured: the sampler makes this step on a latent of one number,
        twice, with predictions that differ by 1. The last step, to 0, always takes all.
        Raises DiffPrivacyError for a sampler that cannot be measured.
        """
        upper, lower = (float(bound) for bound in step_of(level, self.schedule))
        if lower == 0:
            return 1.0
        if (upper, lower) not in self._shares:
            self._shares[upper, lower] = self._measured(upper, lower)
        return self._shares[upper, lower]

    def _measured(self, upper: float, lower: float) -> float:
        name = getattr(getattr(self._sampler, "sampler_function", None), "__name__", type(self._sampler).__name__)
        levels = torch.tensor([upper, lower])
        try:
            with torch.random.fork_rng(devices=[]):
                taken = self._made(1.0, levels) - self._made(0.0, levels)
                if taken == 0:  # UniPC makes no step with two levels only.
                    levels = torch.tensor([upper, (upper * lower) ** 0.5, lower])
                    taken = self._made(1.0, levels) - self._made(0.0, levels)
        except Exception as error:  # A sampler may be anybody's, and fail in any way.
            raise DiffPrivacyError(
                f"Energy Guidance cannot measure the sampler {name} ({error}); choose euler, dpmpp_2m or res_multistep."
            ) from error
        euler = 1 - lower / upper
        if not taken > TOO_LITTLE * euler:
            raise DiffPrivacyError(
                f"The sampler {name} takes over {taken:.2g} of a change of its predictions in a step from {upper:.3g} to "
                f"{lower:.3g}, too little to guide it; choose euler, dpmpp_2m or res_multistep."
            )
        return 1.0 if abs(taken / euler - 1) < 1e-3 else euler / taken

    def _made(self, value: float, levels: Tensor) -> float:
        """What the sampler makes of a latent of zero down these levels with this prediction."""
        torch.manual_seed(0)
        model = _Pretended(self._guider, value)
        options = {"model_options": {"transformer_options": {}}, "seed": 0, "denoise_mask": None}
        made = self._sampler.sampler_function(
            model,
            torch.zeros(1, 1, 1, 1),
            levels,
            extra_args=options,
            callback=None,
            disable=True,
            **self._sampler.extra_options,
        )
        return float(made)


class _Pretended:
    """A model for samplers that always predicts one number; without a prompt it predicts 0, as CFG++ asks."""

    def __init__(self, guider: Any, value: float):
        self.inner_model, self._value = guider, value

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict | None = None, **_: Any) -> Tensor:
        denoised, none = torch.full_like(x, self._value), torch.zeros_like(x)
        arguments = {"uncond_denoised": none, "cond_denoised": none, "sigma": sigma, "input": x, "model": None}
        for function in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = function({"denoised": denoised, "model_options": model_options, **arguments})
        return denoised


def guide_model(
    model: Any,
    function: Callable[[Prediction], Tensor],
    patchers: Sequence[Any] = (),
    memory: Callable[[Sequence[int]], float] = lambda shape: 0.0,
    interval: tuple[int, int] | None = None,
) -> Any:
    """A copy of a MODEL whose predictions pass through a function; it can be interrupted at every step.

    The function sees what the guider hands to the sampler, however many predictions it mixes (CFG, Dual CFG).
    patchers: of the networks that the function uses. They are loaded with the model, before sampling begins: loaded in
    the middle of a step they might push the model off its device. memory: bytes that the function needs for latents
    of a shape; they are free when sampling begins. interval: lowest and highest training time step at which the function is
    the guidance of an energy; None for one that is none.
    """
    guided, key = model.clone(), uuid.uuid4().hex

    def sample(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *arguments: Any, **options: Any) -> Any:
        if any("reference_latents" in entry for entries in guider.conds.values() for entry in entries):
            LOG.warning(REFERENCE_WARNING)
        shared = extra_args["model_options"]["transformer_options"]
        around = shared[RUN].guided if RUN in shared else ()
        shared[RUN] = Run(executor.class_obj, guider, sigmas, [*around, *([interval] if interval else [])])
        return executor(guider, sigmas, extra_args, *arguments, **options)

    def predict(
        executor: Any, x: Tensor, sigma: Tensor, model_options: dict, *arguments: Any, **options: Any
    ) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        check_frames(x)
        level = sigma.flatten()[0].float().cpu()  # Waits for the card: before it is given work.
        denoised = executor(x, sigma, model_options, *arguments, **options)
        return function(model_options["transformer_options"][RUN].prediction(denoised, level))

    def prepare(executor: Any, model: Any, shape: Sequence[int], *arguments: Any, **options: Any) -> Any:
        prepared = executor(model, shape, *arguments, **options)
        management, needed = comfy.model_management, memory(shape)
        if not management.is_device_cpu(model.load_device) and needed > management.get_free_memory(model.load_device):
            management.load_models_gpu([model, *prepared[2]], memory_required=needed)
        return prepared

    guided.set_additional_models(key, list(patchers))
    guided.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, sample)
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, RUN, predict)
    chain = guided.get_wrappers(WrappersMP.PREDICT_NOISE, RUN)
    chain.insert(0, chain.pop())  # The outermost sees a prediction last.
    guided.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, key, prepare)
    return guided
