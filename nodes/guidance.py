"""Energies, and the guidance that lowers them while any sampler runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.diffusion.guidance import Guidance, guide
from ..diffprivacy.diffusion.out_of_memory import SMALLER, halving
from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.identity import energies
from ..diffprivacy.identity.expression import EXPRESSION_WEIGHT, keep_expression
from ..diffprivacy.identity.strangers import AWAY, DECOY, DECOY_WEIGHT, drawn_aims, drawn_decoys
from ..diffprivacy.presets import GUIDED
from . import sockets
from .comfy.decoders import differentiable_decoder, tiny_decoder, tiny_decoder_files
from .comfy.guiding import Prediction, guide_model
from .comfy.model import noise_levels
from .noise import FreshNoise

CATEGORY = "Diff-Privacy/guidance"
INSTEAD_OF_A_VAE = (
    "a TAESD in models/vae_approx, which Energy Guidance takes in place of the VAE where its widget `decoder` says "
    "`TAESD if present`, takes a fraction of the memory; a smaller image takes less, too"
)


def _energy_inputs() -> list:
    return [
        sockets.FaceRecognizer.Input("recognizer"),
        io.Image.Input("reference", tooltip="The crops that will be sampled, from Crop Faces."),
        sockets.Faces.Input("faces", tooltip="From Crop Faces: where eyes, nose and mouth are in the crops."),
    ]


def _augmentation_input() -> io.Int.Input:
    return io.Int.Input(
        "augmentations",
        default=4,
        min=0,
        max=32,
        advanced=True,
        tooltip="Random views of each image that the energy is averaged over, against patterns that fool one network only. "
        "0 for none, as in the paper.",
    )


def _noise_input() -> io.Noise.Input:
    return io.Noise.Input(
        "noise",
        optional=True,
        tooltip="The noise of the sampler; the aims are drawn from it. Without it they are drawn from the operating system "
        "whenever this node runs.",
    )


class AnonymizeEnergy(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyAnonymizeEnergy",
            display_name="Anonymize Energy",
            category=CATEGORY,
            description="Falls as recognizers stop matching the original, and as variants differ from each other. It ends at "
            "strangers, before a face becomes the opposite of the original.",
            search_aliases=["identity loss", "face privacy", "anonymize", "deidentify", "blur face alternative"],
            inputs=[
                *_energy_inputs(),
                io.Float.Input(
                    "identity",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight of leaving the original identity.",
                ),
                io.Float.Input(
                    "diversity",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight of variants differing from each other.",
                ),
                io.Combo.Input(
                    "form",
                    options=["stranger", "smooth", "paper"],
                    advanced=True,
                    tooltip="stranger: ends where the recognizer sees a stranger. paper: max(cos, 0). smooth: softplus; "
                    "its gradient decays but never vanishes, so faces become opposites of the original.",
                ),
                _augmentation_input(),
                io.Float.Input(
                    "aim",
                    default=AWAY,
                    min=-5.0,
                    max=5.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="For stranger: standard deviations above (or below) the mean cosine of strangers, around which "
                    "each face's aim is drawn. Guidance goes a little farther, hence the default above 0.",
                ),
                io.Float.Input(
                    "decoy",
                    default=DECOY_WEIGHT,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="For stranger: weight of a weak pull toward another person, drawn at random, which makes two "
                    "protections of one face harder to link.",
                ),
                _noise_input(),
            ],
            outputs=[sockets.Energy.Output(display_name="energy")],
        )

    @classmethod
    def execute(
        cls,
        recognizer,
        reference,
        faces,
        identity,
        diversity,
        form,
        augmentations,
        aim=AWAY,
        decoy=DECOY_WEIGHT,
        noise=None,
    ) -> io.NodeOutput:
        images, landmarks = reference_crops(reference, faces)
        embeddings = recognizer.reference(images, landmarks)
        rows = _private_rows(noise, faces)
        aims = drawn_aims(recognizer.strangers, rows, aim)
        energy = energies.identity_away(recognizer, embeddings, landmarks, aims, form) * identity
        if form == "stranger" and decoy:
            decoys = drawn_decoys(embeddings, rows)
            energy = energy + energies.identity_toward(recognizer, decoys, landmarks, DECOY) * decoy
        if faces.variants > 1:
            energy = energy + energies.diversity(recognizer, landmarks, aims, form) * diversity
        return io.NodeOutput(energies.augmented(energy, landmarks, augmentations) if augmentations else energy)


class HideEnergy(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyHideEnergy",
            display_name="Hide Energy",
            category=CATEGORY,
            description="Falls as recognizers match the original person while the image looks different.",
            search_aliases=["identity loss", "visual identity hiding", "face privacy"],
            inputs=[
                *_energy_inputs(),
                io.Float.Input(
                    "identity", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Weight of recognizers matching."
                ),
                io.Float.Input(
                    "visual_distance", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Weight of looking different."
                ),
                _augmentation_input(),
                io.Float.Input(
                    "accepted",
                    default=energies.ACCEPTED,
                    min=0.0,
                    max=20.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip="How surely recognizers must match, in standard deviations above strangers: about 3 is the "
                    "threshold at a false accept rate of 1e-3. 20 never ends, as in the paper.",
                ),
                io.Float.Input(
                    "structure",
                    default=energies.STRUCTURE,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How similar faces may stay, as squared structure similarity: two strangers have 0.25.",
                ),
            ],
            outputs=[sockets.Energy.Output(display_name="energy")],
        )

    @classmethod
    def execute(
        cls,
        recognizer,
        reference,
        faces,
        identity,
        visual_distance,
        augmentations,
        accepted=energies.ACCEPTED,
        structure=energies.STRUCTURE,
    ) -> io.NodeOutput:
        images, landmarks = reference_crops(reference, faces)
        embeddings = recognizer.reference(images, landmarks)
        energy = energies.identity_toward(recognizer, embeddings, landmarks, accepted) * identity
        if augmentations:
            energy = energies.augmented(energy, landmarks, augmentations)
        if visual_distance:
            energy = energy + energies.visual_distance(images, landmarks, landmarks, structure) * visual_distance
        return io.NodeOutput(energy)


class KeepExpressionEnergy(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyKeepExpressionEnergy",
            display_name="Keep Expression Energy",
            category=CATEGORY,
            description="Falls as faces smile, look and open eyes and mouth as the originals do. Add it to another energy "
            "with Combine Energies. It costs some privacy: recognizers that did not guide see more of the original.",
            search_aliases=["keep expression", "expression loss", "blendshapes", "facial expression", "gaze", "mouth"],
            inputs=[
                io.Image.Input("reference", tooltip="The crops that will be sampled, from Crop Faces."),
                sockets.Faces.Input("faces", tooltip="From Crop Faces: where eyes, nose and mouth are in the crops."),
                io.Float.Input(
                    "weight",
                    default=EXPRESSION_WEIGHT,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Against the other energies. More than 0.25 keeps hardly more, and every bit costs some privacy.",
                ),
            ],
            outputs=[sockets.Energy.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, reference, faces, weight) -> io.NodeOutput:
        return io.NodeOutput(keep_expression(*reference_crops(reference, faces)) * weight)


class CombineEnergies(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyCombineEnergies",
            display_name="Combine Energies",
            category=CATEGORY,
            description="The weighted sum of two energies.",
            search_aliases=["add energies", "energy sum"],
            inputs=[
                sockets.Energy.Input("energy_1"),
                sockets.Energy.Input("energy_2"),
                io.Float.Input("weight_1", default=1.0, min=-10.0, max=10.0, step=0.05),
                io.Float.Input("weight_2", default=1.0, min=-10.0, max=10.0, step=0.05),
            ],
            outputs=[sockets.Energy.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, energy_1, energy_2, weight_1, weight_2) -> io.NodeOutput:
        return io.NodeOutput(energy_1 * weight_1 + energy_2 * weight_2)


class EnergyGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyEnergyGuidance",
            display_name="Energy Guidance",
            category=CATEGORY,
            description="A model whose predictions lower an energy at every step, under any sampler and scheduler. "
            "No backward pass through the UNet.",
            search_aliases=["classifier guidance", "mpgd", "identity guidance", "diff-privacy"],
            inputs=[
                io.Model.Input("model"),
                io.Vae.Input("vae", tooltip="Decodes for the energy. A TAESD loaded with Load VAE is much faster."),
                sockets.Energy.Input("energy"),
                io.Combo.Input(
                    "rule",
                    options=["normalized", "paper"],
                    tooltip="normalized: moves by the same amount for each time that a step covers (MPGD), so that "
                    "few steps guide nearly as far as many; take 20 or more. paper: every step moves by scale x gradient.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.03,
                    min=0.0,
                    max=1000.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="0 is off. normalized, for 20 time steps: 0.03 for anonymizing, 0.04 for hiding with euler_ancestral, half "
                    "with samplers that add no noise. paper, for each step: 1 for anonymizing, 1.5 to 2.5 for hiding.",
                ),
                io.Int.Input(
                    "from_step", default=999, min=0, max=999, advanced=True, tooltip="Highest time step it guides at."
                ),
                io.Int.Input(
                    "to_step",
                    default=GUIDED[0],
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Lowest time step it guides at. Below 250 the model can no longer clean up after it.",
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Guide at every k-th step only, to save time.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=["TAESD if present", "VAE"],
                    advanced=True,
                    tooltip="What decodes for the energy: a TAESD (tiny decoder) in models/vae_approx, or the connected VAE.",
                ),
                io.Int.Input(
                    "chunk",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="Images decoded at once, to save memory; 0 for all.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, decoder, **_: object) -> list[str]:
        """A TAESD that was added or taken away since changes the result."""
        return [] if decoder == "VAE" else tiny_decoder_files()

    @classmethod
    def execute(cls, model, vae, energy, rule, scale, from_step, to_step, every, decoder, chunk) -> io.NodeOutput:
        if to_step > from_step:
            raise DiffPrivacyError(
                f"Widgets `from_step` and `to_step`: sampling goes from {from_step} down to {to_step}; swap them."
            )
        if scale == 0:
            return io.NodeOutput(model)
        noise_levels(model)  # Its own error for models without.
        latent_format = model.get_model_object("latent_format")
        tiny = tiny_decoder(latent_format, model.load_device) if decoder != "VAE" else None
        guidance = Guidance(rule, scale, (to_step, from_step), every, repeats=4 if tiny else 1)
        decode = network = tiny or differentiable_decoder(vae, latent_format)
        if tiny and tiny.local and energy.landmarks is not None:
            decode = energies.near_faces(tiny, energy.landmarks, tiny.downscale)
        gradient_of = functools.partial(energies.latent_gradient, energy, decode)
        gradient = halving(gradient_of, chunk or None, SMALLER if tiny else INSTEAD_OF_A_VAE)

        def guided(prediction: Prediction) -> torch.Tensor:
            stronger = dataclasses.replace(guidance, scale=scale * prediction.share())
            denoised, sigma, sigmas = prediction.denoised, prediction.sigma, prediction.sigmas
            return guide(denoised, gradient, sigma, sigmas, stronger, prediction.levels)

        patchers = [network.patcher, *(patcher for recognizer in energy.recognizers for patcher in recognizer.patchers)]

        def memory(shape: Sequence[int]) -> float:
            return network.memory((min(chunk or shape[0], shape[0]), *shape[1:]))

        return io.NodeOutput(guide_model(model, guided, patchers, memory, guidance.interval))


def _private_rows(noise: Any, faces: sockets.FaceBatch) -> torch.Tensor:
    """Numbers that nobody can guess, a row for each image that will be sampled; the frames of a track share theirs."""
    variants = faces.variants or 1
    people = range(len(faces)) if faces.tracks is None else [track for of_image in faces.tracks for track in of_image]
    rows = [person * variants + variant for person in people for variant in range(variants)]
    return (noise or FreshNoise()).generate_noise({"samples": torch.zeros(len(rows), 1, 4, 4), "batch_index": rows})


def reference_crops(reference: torch.Tensor, faces: sockets.FaceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """One crop (F,3,H,W) of each face, and its five points (F,5,2) in pixels of the crop."""
    landmarks = faces.crop_landmarks(reference.shape[1])
    variants, rest = divmod(len(reference), len(landmarks))
    if rest or variants != faces.variants:
        raise DiffPrivacyError(
            f"{len(reference)} images for {len(faces)} faces with {faces.variants} variant(s) each; "
            "connect the crops of Crop Faces.",
            "reference",
        )
    return reference[::variants].movedim(-1, 1).cpu().float(), landmarks


NODES = [AnonymizeEnergy, HideEnergy, KeepExpressionEnergy, CombineEnergies, EnergyGuidance]
