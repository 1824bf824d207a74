"""Personas: one new face for each person, the same in all images that a sealed file knows."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.errors import DiffPrivacyError, NoFaceError
from ..diffprivacy.identity.embedding import embed_face
from ..diffprivacy.identity.recognizers import FaceMatcher
from ..diffprivacy.identity.thresholds import person_threshold
from ..diffprivacy.personas.book import Persona, PersonaBook
from ..diffprivacy.personas.files import PersonaFile
from ..diffprivacy.regeneration import becoming
from . import secret_sources, sockets
from .faces import check_pictures, person_threshold_input
from .guidance import reference_crops

CATEGORY = "Diff-Privacy/personas"
FOLDER = "personas"
NAME = re.compile(r"\w[\w .-]{0,63}")


@dataclass(frozen=True)
class OpenPersonas:
    """What PERSONAS holds: a book and the file that it belongs to."""

    book: PersonaBook
    file: PersonaFile


class PersonaNoise:
    """ComfyUI's NOISE: the same at every call, for each variant of each crop that of its persona."""

    def __init__(self, personas: Sequence[Persona], variants: int):
        self._keys = [(persona.noise_key, variant) for persona in personas for variant in range(variants)]

    @property
    def seed(self) -> int:
        """For samplers that add noise of their own."""
        return int.from_bytes(self._keys[0][0].derive("sampler").key[:8], "big")

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """Unit Gaussian noise of a LATENT's shape and type, on the CPU."""
        samples = input_latent["samples"]
        if samples.is_nested or len(samples) != len(self._keys):
            raise DiffPrivacyError(
                f"Assign Personas: the sampler has no latent for each of {len(self._keys)} crops; connect that of all crops "
                "(Crops to Latent)."
            )
        return torch.stack(
            [key.normal(tuple(samples.shape[1:]), "variant", variant) for key, variant in self._keys]
        ).to(samples.dtype)


class LoadPersonas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyLoadPersonas",
            display_name="Load Personas",
            category=CATEGORY,
            description="Opens the sealed file of who has which persona, or begins one where there is none. A persona is one new "
            "face that a person gets in all images.",
            search_aliases=["persona", "consistent face", "same face", "album", "face privacy"],
            inputs=[
                io.String.Input(
                    "name",
                    default="album",
                    tooltip="Of the file in models/personas, without .age. Another file has other personas for the same people.",
                ),
                io.String.Input(
                    "secret",
                    default="env:DIFFPRIVACY_SECRET",
                    tooltip="env:NAME or file:PATH, where the passphrase or the age identity is found that opens and seals the "
                    "file. Never the secret itself: ComfyUI writes this value into workflows.",
                ),
            ],
            outputs=[sockets.Personas.Output(display_name="personas")],
        )

    @classmethod
    def validate_inputs(cls, secret) -> bool | str:
        return secret_sources.fault(secret)

    @classmethod
    def fingerprint_inputs(cls, name="", secret="") -> list[str]:
        """A file that is not there yet is begun anew at every run."""
        content = secrets.token_hex(16)
        if NAME.fullmatch(name) and _place(name).is_file():
            content = secret_sources.digest(_place(name).read_bytes())
        return [name, content, secret_sources.fingerprint(secret)]

    @classmethod
    def execute(cls, name, secret) -> io.NodeOutput:
        if not NAME.fullmatch(name):
            raise DiffPrivacyError("Give a name of letters, digits, spaces, dots and hyphens, such as album.", "name")
        file = PersonaFile(_place(name), secret_sources.read(secret, "secret of the personas"))
        return io.NodeOutput(OpenPersonas(file.read() if file.path.exists() else PersonaBook(), file))


class AssignPersonas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyAssignPersonas",
            display_name="Assign Personas",
            category=CATEGORY,
            description="Tells who is in the images and gives each person their persona; people who are met for the first time "
            "get a new one. Connect the noise to the sampler and the energy to Energy Guidance.",
            search_aliases=["persona", "consistent face", "same face", "same person", "anonymize"],
            has_intermediate_output=True,
            inputs=[
                sockets.Personas.Input("personas"),
                io.Image.Input("image", tooltip="The images that went into Detect Faces."),
                io.Image.Input("reference", tooltip="The crops that will be sampled, from Crop Faces."),
                sockets.Faces.Input("faces", tooltip="From Crop Faces."),
                sockets.FaceRecognizer.Input(
                    "recognizer",
                    tooltip="Tells people, and guides toward their personas. A file keeps to its recognizer.",
                ),
                person_threshold_input(),
            ],
            outputs=[
                sockets.Personas.Output(display_name="personas", tooltip="For Save Personas."),
                io.Noise.Output(
                    display_name="noise", tooltip="For SamplerCustomAdvanced: each persona's own, in every run."
                ),
                sockets.Energy.Output(
                    display_name="energy",
                    tooltip="Falls toward the personas and away from the originals; for Energy Guidance.",
                ),
            ],
        )

    @classmethod
    def execute(cls, personas, image, reference, faces, recognizer, person_threshold=0.0) -> io.NodeOutput:
        check_pictures(image, faces)
        if not len(faces):
            raise NoFaceError("There is no face in any image, so nothing would be protected.", "faces")
        book, before = personas.book.copy(), len(personas.book)
        crops, landmarks = reference_crops(reference, faces)
        owners = _assigned(book, image.cpu().float(), faces, recognizer, person_threshold)
        chosen = [book.persona(owner) for owner in owners]
        noise = PersonaNoise(chosen, faces.variants)
        target = tuple(torch.cat(parts) for parts in zip(*(persona.target for persona in chosen), strict=True))
        rows = noise.generate_noise({"samples": torch.zeros(len(chosen) * faces.variants, 1, 4, 4)})
        energy = becoming(recognizer, target)(crops, landmarks, rows)
        people = len(set(owners))
        text = f"{people} people, {len(book) - before} of them new; the file knows {len(book)}"
        return io.NodeOutput(OpenPersonas(book, personas.file), noise, energy, ui=ui.PreviewText(text))


def _assigned(
    book: PersonaBook, frames: torch.Tensor, faces: sockets.FaceBatch, recognizer: FaceMatcher, threshold: float
) -> list[int]:
    """Whose each face is; the faces of a track are one person's."""
    threshold = threshold or person_threshold(recognizer)
    embeddings = [
        [embed_face(recognizer, frame, face) for face in found]
        for frame, found in zip(frames, faces.faces, strict=True)
    ]
    if faces.tracks is None:
        images = [book.assign(np.stack(vectors), recognizer, threshold) for vectors in embeddings if vectors]
        return [owner for owners in images for owner in owners]
    tracks = [track for of_image in faces.tracks for track in of_image]
    flat = np.array([vector for of_image in embeddings for vector in of_image])
    owners = {}
    for track in dict.fromkeys(tracks):
        mean = flat[np.array(tracks) == track].mean(axis=0)
        (owners[track],) = book.assign(mean[None] / np.linalg.norm(mean), recognizer, threshold)
    return [owners[track] for track in tracks]


class SavePersonas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacySavePersonas",
            display_name="Save Personas",
            category=CATEGORY,
            description="Seals who has which persona into the file of Load Personas, so that the next images get the same new "
            "faces. Who is who is never written in clear.",
            search_aliases=["persona", "save persona"],
            is_output_node=True,
            inputs=[
                sockets.Personas.Input("personas", tooltip="From Assign Personas."),
            ],
        )

    @classmethod
    def execute(cls, personas) -> io.NodeOutput:
        personas.file.keep(personas.book)
        return io.NodeOutput(ui=ui.PreviewText(f"{personas.file.path.name} knows {len(personas.book)} people"))


def _place(name: str) -> Path:
    return Path(folder_paths.models_dir) / FOLDER / f"{name}.age"


NODES = [LoadPersonas, AssignPersonas, SavePersonas]
