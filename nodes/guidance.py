"""Energies, and the guidance that lowers them while any sampler runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.diffusion.guidance import Guidance, guide
from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.identity import energies
from ..diffprivacy.identity.recognizers import Ensemble, load_recognizer
from . import models, sockets
from .comfy.decoders import differentiable_decoder, tiny_decoder, tiny_decoder_files
from .comfy.memory import ManagedRecognizer
from .comfy.model import noise_levels
from .comfy.sampling import guide_model

CATEGORY = "Diff-Privacy/guidance"
RECOGNIZER_FOLDERS = ("insightface",)
NO_FILE = "none"


class LoadRecognizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = models.files(".onnx", *RECOGNIZER_FOLDERS)
        return io.Schema(
            node_id="DiffPrivacyLoadRecognizer",
            display_name="Load Face Recognizer",
            category=CATEGORY,
            description="One to three face recognizers from models/insightface; several make an ensemble, whose guidance "
            "carries over better to recognizers it has never seen.",
            search_aliases=["arcface", "insightface", "face recognition", "face embedding"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files,
                    tooltip="ArcFace ONNX file in models/insightface, such as models/antelopev2/glintr100.onnx.",
                ),
                io.Combo.Input("second_file", options=[NO_FILE, *files], default=NO_FILE, optional=True),
                io.Combo.Input("third_file", options=[NO_FILE, *files], default=NO_FILE, optional=True),
                io.Combo.Input(
                    "channels",
                    options=["RGB", "BGR"],
                    default="RGB",
                    optional=True,
                    advanced=True,
                    tooltip="Channel order of the files, which none of them states: RGB for insightface's, BGR for AdaFace's.",
                ),
            ],
            outputs=[sockets.FaceRecognizer.Output(display_name="recognizer")],
        )

    @classmethod
    def validate_inputs(cls, file, second_file=NO_FILE, third_file=NO_FILE) -> bool | str:
        return True

    @classmethod
    def execute(
        cls, file, second_file=NO_FILE, third_file=NO_FILE, channels: Literal["RGB", "BGR"] = "RGB"
    ) -> io.NodeOutput:
        chosen = [name for name in (file, second_file, third_file) if name != NO_FILE]
        networks = [load_recognizer(_recognizer_path(name), channels) for name in chosen]
        recognizer = networks[0] if len(networks) == 1 else Ensemble([(network, 1.0) for network in networks])
        return io.NodeOutput(ManagedRecognizer(recognizer))


def _recognizer_path(file: str) -> Path:
    return models.find(file, ".onnx", "an ArcFace ONNX file such as insightface's w600k_r50.onnx", *RECOGNIZER_FOLDERS)


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
        tooltip="Random views of each image the energy is averaged over, against patterns that fool one network only. "
        "0 for none, as in the paper.",
    )


class AnonymizeEnergy(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyAnonymizeEnergy",
            display_name="Anonymize Energy",
            category=CATEGORY,
            description="Falls as recognizers stop matching the original, and as variants differ from each other.",
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
                    options=["smooth", "paper"],
                    advanced=True,
                    tooltip="paper: max(cos, 0), which stops pulling once the cosine is 0. smooth: softplus; its gradient decays but never vanishes.",
                ),
                _augmentation_input(),
            ],
            outputs=[sockets.Energy.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, recognizer, reference, faces, identity, diversity, form, augmentations) -> io.NodeOutput:
        images, landmarks = _reference(reference, faces)
        embeddings = recognizer.reference(images, landmarks)
        energy = energies.identity_away(recognizer, embeddings, landmarks, form) * identity
        if faces.variants > 1:
            energy = energy + energies.diversity(recognizer, landmarks, form) * diversity
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
            ],
            outputs=[sockets.Energy.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, recognizer, reference, faces, identity, visual_distance, augmentations) -> io.NodeOutput:
        images, landmarks = _reference(reference, faces)
        energy = energies.identity_toward(recognizer, recognizer.reference(images, landmarks), landmarks) * identity
        if augmentations:
            energy = energies.augmented(energy, landmarks, augmentations)
        if visual_distance:
            energy = energy + energies.visual_distance(images, landmarks, landmarks) * visual_distance
        return io.NodeOutput(energy)


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
                    tooltip="normalized: every step moves by the same amount (MPGD). paper: moves by scale x gradient.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.015,
                    min=0.0,
                    max=1000.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="0 is off. normalized: 0.01 to 0.05, more leaves traces. paper: 1 for anonymizing, 1.5 to 2.5 for hiding.",
                ),
                io.Int.Input(
                    "from_step", default=999, min=0, max=999, advanced=True, tooltip="Highest time step it guides at."
                ),
                io.Int.Input(
                    "to_step", default=0, min=0, max=999, advanced=True, tooltip="Lowest time step it guides at."
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
                    tooltip="What the energy looks through: a TAESD in models/vae_approx, or the VAE connected.",
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
        levels = noise_levels(model)
        guidance = Guidance(rule, scale, (to_step, from_step), every)
        latent_format = model.get_model_object("latent_format")
        decode = tiny_decoder(latent_format) if decoder != "VAE" else None
        if decode is None:
            decode = differentiable_decoder(vae, latent_format)
        elif energy.landmarks is not None:
            decode = energies.near_faces(decode, energy.landmarks)
        gradient = energies.latent_gradient(energy, decode, chunk or None)

        def post_cfg(args: dict) -> torch.Tensor:
            sigma = args["sigma"][0]
            sigmas = args["model_options"]["transformer_options"]["sample_sigmas"]
            return guide(args["denoised"], gradient, sigma, sigmas, guidance, levels)

        return io.NodeOutput(guide_model(model, post_cfg))


def _reference(reference: torch.Tensor, faces: sockets.FaceBatch) -> tuple[torch.Tensor, torch.Tensor]:
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


NODES = [LoadRecognizer, AnonymizeEnergy, HideEnergy, CombineEnergies, EnergyGuidance]
