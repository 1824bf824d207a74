"""MSI in graphs: train it, keep it, and turn faces into conditioning with it."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths
import node_helpers
import torch
from comfy_api.v0_0_2 import io, ui
from PIL import Image
from safetensors.torch import save_file

from ..diffprivacy.diffusion.conditioning import EmbeddingSchedule, percent_range
from ..diffprivacy.diffusion.model import FlowLevels
from ..diffprivacy.errors import DiffPrivacyError, at_field
from ..diffprivacy.evaluation.drawing import loss_curve
from ..diffprivacy.msi.module import load_msi, new_msi, save_msi, textual_inversions
from ..diffprivacy.msi.training import Settings, Training
from ..diffprivacy.msi.training_data import prepare
from . import models, sockets
from .comfy.memory import release
from .comfy.model import ComfyModel, noise_levels
from .comfy.training import Interrupted, check_interrupted, progress_bar

CATEGORY = "Diff-Privacy/msi"
FOLDER = "msi"
CHUNK = 4
"""Time steps at once that, by count of their tensors, a card of 8 GB holds at 512x512."""


class TrainMSI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyTrainMSI",
            display_name="Train MSI",
            category=CATEGORY,
            description="Learns pseudo-words that describe a face, one for each time stage. Interrupting ends the training; "
            "the graph continues with what was learnt.",
            search_aliases=["textual inversion", "image inversion", "learn face", "multi-scale image inversion"],
            inputs=[
                io.Image.Input("images", tooltip="Crops from Crop Faces: one face, or many."),
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.ClipVision.Input("clip_vision", tooltip="CLIP's ViT-L/14 as in the paper, or ViT-H/14."),
                io.Int.Input(
                    "steps",
                    default=Settings.steps,
                    min=1,
                    max=100000,
                    tooltip="Maximum; stops early when the validation loss plateaus.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="The same seed gives the same MSI."),
                sockets.MSI.Input("msi", optional=True, tooltip="Start from this MSI instead of the word `face`."),
                io.Int.Input(
                    "batch",
                    default=Settings.batch,
                    min=1,
                    max=1024,
                    advanced=True,
                    tooltip="Time steps learnt from at each step.",
                ),
                io.Int.Input(
                    "chunk",
                    default=CHUNK,
                    min=0,
                    max=1024,
                    advanced=True,
                    tooltip="How many of the batch go through the network at once; 0 for all. Less needs less memory.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    advanced=True,
                    tooltip="Saves memory by recomputing activations, which takes more time.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=Settings.lr,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    advanced=True,
                    tooltip="0: automatic; lower when resuming from a trained MSI.",
                ),
                io.Boolean.Input("flips", default=True, advanced=True, tooltip="Learn from the mirror images too."),
            ],
            outputs=[
                sockets.MSI.Output(display_name="msi"),
                io.Image.Output(display_name="loss_curve", tooltip="Loss on time steps and noise kept for measuring."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images,
        model,
        clip,
        vae,
        clip_vision,
        steps,
        seed,
        msi=None,
        batch=Settings.batch,
        chunk=CHUNK,
        checkpointing=True,
        learning_rate=Settings.lr,
        flips=True,
    ) -> io.NodeOutput:
        diffusion_model = ComfyModel(model, clip, vae, clip_vision)
        if isinstance(noise_levels(model), FlowLevels):
            raise DiffPrivacyError(
                "MSI learns through the text encoder, a language model of billions of weights here; "
                "train it on Stable Diffusion 1.x, 2.x or XL.",
                "model",
            )
        with torch.inference_mode(False), torch.enable_grad():
            start = new_msi(diffusion_model, seed=seed) if msi is None else msi
            _check(start, diffusion_model)
        with at_field("images"):
            data = prepare(diffusion_model, _pixels(images), flips)
        settings = Settings(
            steps=steps, batch=batch, chunk=chunk, lr=learning_rate, checkpointing=checkpointing, seed=seed
        )
        try:
            learnt, history = _train(start, diffusion_model, data, settings)
        finally:
            release()
        return io.NodeOutput(learnt, loss_curve(history)[None])


def _train(start, diffusion_model, data, settings):
    """The module and its losses, also when the user interrupts after the first step."""
    bar = progress_bar(settings.steps)

    def progress(now) -> None:
        preview = None
        if now.preview is not None:
            with torch.inference_mode():
                preview = ("JPEG", _picture(diffusion_model.decode(now.preview)[0]), 512)
        bar.update_absolute(now.step, now.steps, preview)
        check_interrupted()

    with torch.inference_mode(False), torch.enable_grad():
        training = Training(start, diffusion_model, data, settings, device=diffusion_model.model.load_device)
        try:
            training.run(progress)
        except Interrupted:
            training.validate()
        return training.learnt(), training.history


def _picture(image) -> Image.Image:
    return Image.fromarray((image.movedim(0, -1).clamp(0, 1) * 255).round().byte().cpu().numpy())


def _pixels(images) -> torch.Tensor:
    return images[..., :3].movedim(-1, 1).cpu().float()


def _check(msi, diffusion_model) -> None:
    _ = (
        diffusion_model.text_encoder_identity,
        diffusion_model.image_encoder_identity,
    )  # Their own errors name their own sockets.
    with at_field("msi"):
        msi.check(diffusion_model)


class SaveMSI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacySaveMSI",
            display_name="Save MSI",
            category=CATEGORY,
            description="Writes an MSI to models/msi, where Load MSI finds it. One trained on a face can generate that face: "
            "protect it as you would the photo.",
            search_aliases=["save msi", "save embedding"],
            is_output_node=True,
            inputs=[
                sockets.MSI.Input("msi"),
                io.String.Input("filename_prefix", default="msi", tooltip="Name in models/msi; a number is added."),
            ],
        )

    @classmethod
    def execute(cls, msi, filename_prefix) -> io.NodeOutput:
        root = Path(folder_paths.models_dir) / FOLDER
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, str(root))
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        save_msi(msi, path)
        return io.NodeOutput(ui=ui.PreviewText(f"saved {path.relative_to(root).as_posix()}"))


class LoadMSI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyLoadMSI",
            display_name="Load MSI",
            category=CATEGORY,
            description="Reads an MSI from models/msi, trained on one face or pretrained on many.",
            search_aliases=["load msi", "load embedding"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=models.files(".safetensors", FOLDER),
                    tooltip="From Save MSI or `diffprivacy train-msi`.",
                )
            ],
            outputs=[sockets.MSI.Output(display_name="msi")],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        return True

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(
                load_msi(models.find(file, ".safetensors", "what Save MSI or `diffprivacy train-msi` wrote", FOLDER))
            )


class InvertMSI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyInvertMSI",
            display_name="Face to Conditioning (MSI)",
            category=CATEGORY,
            description="Describes each crop's face by pseudo-words, one for each time stage, and puts them into a prompt. "
            "The conditioning holds in ten time ranges and works with any sampler.",
            search_aliases=["invert", "textual inversion", "face prompt", "image to conditioning"],
            inputs=[
                sockets.MSI.Input("msi"),
                io.Image.Input("image", tooltip="Crops from Crop Faces; the latent batch must have the same order."),
                io.Clip.Input("clip"),
                io.ClipVision.Input("clip_vision"),
                io.String.Input(
                    "prompt", default="a photo of *", multiline=True, tooltip="Each * stands for the face."
                ),
                io.String.Input(
                    "save_embeddings",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="A name: also write the pseudo-words to models/embeddings as NAME-0 (fine stages) to NAME-9 "
                    "(coarse), for `embedding:NAME-9` in any prompt. They describe the face. Empty: do not.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, msi, image, clip, clip_vision, prompt, save_embeddings="") -> io.NodeOutput:
        if "*" not in prompt:
            raise DiffPrivacyError("It holds no `*`; write one where the face belongs, as in `a photo of *`.", "prompt")
        diffusion_model = ComfyModel(clip=clip, clip_vision=clip_vision)
        _check(msi, diffusion_model)
        words = msi.words(diffusion_model, _pixels(image))
        if save_embeddings:
            _save_embeddings(save_embeddings, words, msi.text_encoder)
        spans = EmbeddingSchedule.stages([str(stage) for stage in range(words.shape[1])]).spans
        entries = []
        for stage, span in enumerate(spans):
            faces = [
                diffusion_model.text_conditioning(prompt, word.expand(prompt.count("*"), -1))
                for word in words[:, stage]
            ]
            start, end = percent_range(span.low, span.high)
            ranges = {"start_percent": start, "end_percent": end}
            entries += node_helpers.conditioning_set_values(_batched(faces), ranges)
        return io.NodeOutput(entries)


def _batched(faces: list) -> list:
    """The conditionings of several faces as one whose rows are theirs."""
    entries = []
    for rows in zip(*faces, strict=True):
        options = dict(rows[0][1])
        if options.get("pooled_output") is not None:
            options["pooled_output"] = torch.cat([row[1]["pooled_output"] for row in rows])
        entries.append([torch.cat([row[0] for row in rows]), options])
    return entries


def _save_embeddings(name: str, words, text_encoder) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise DiffPrivacyError(f"{name!r} is no name; use letters, digits, - and _ only.", "save_embeddings")
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    for face, of_face in enumerate(words):
        owner = name if len(words) == 1 else f"{name}-face{face + 1}"
        for stage, tensors in enumerate(textual_inversions(of_face, text_encoder)):
            save_file(tensors, folder / f"{owner}-{stage}.safetensors")


NODES = [TrainMSI, SaveMSI, LoadMSI, InvertMSI]
