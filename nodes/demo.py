"""The embedded demo model, and a photo to try it on."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy import demo
from ..diffprivacy.demo import showcase
from . import sockets
from .comfy.demo_model import load_clip, load_clip_vision, load_model, load_vae
from .comfy.memory import ManagedRecognizer

CATEGORY = "Diff-Privacy/demo"


class LoadDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyLoadDemoModel",
            display_name="Load Demo Model",
            category=CATEGORY,
            description="The small face model that comes with the pack, for crops of 128x128 pixels with a margin of "
            f"{demo.MARGIN}. Use it for a first look; for images that matter use a Stable Diffusion checkpoint.",
            search_aliases=["example model", "diff-privacy demo", "tiny checkpoint"],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.ClipVision.Output(),
                sockets.FaceRecognizer.Output(display_name="guide", tooltip="A small recognizer to guide with."),
                sockets.FaceRecognizer.Output(display_name="judge", tooltip="Another one, to judge the result."),
                sockets.MSI.Output(display_name="msi", tooltip="Faces to pseudo-words of this model, pretrained."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):
            guide, judge = (ManagedRecognizer(demo.load_recognizer(name)) for name in ("guide", "judge"))
            networks = load_model(), load_clip(), load_vae(), load_clip_vision()
            return io.NodeOutput(*networks, guide, judge, demo.load_msi())


class ExamplePhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyExamplePhoto",
            display_name="Example Photo",
            category=CATEGORY,
            description="A portrait in the public domain, so that a workflow runs before you have chosen a photo.",
            search_aliases=["example image", "test photo", "sample portrait"],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(showcase.example_photo().rgb[None])


NODES = [LoadDemoModel, ExamplePhoto]
