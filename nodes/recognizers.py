"""Face recognizers, to guide with and to know people by."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from comfy_api.v0_0_2 import io

from ..diffprivacy.identity.recognizers import Ensemble, load_recognizer
from . import models, sockets
from .comfy.memory import ManagedEnsemble, ManagedRecognizer

CATEGORY = "Diff-Privacy/guidance"
RECOGNIZER_FOLDERS = ("insightface",)
NO_FILE = "none"
BY_EXPERIMENT = "by experiment"


class LoadRecognizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = models.files(".onnx", *RECOGNIZER_FOLDERS)
        return io.Schema(
            node_id="DiffPrivacyLoadRecognizer",
            display_name="Load Face Recognizer",
            category=CATEGORY,
            description="A face recognizer from models/insightface. Several of them, joined by Combine Recognizers, guide so that "
            "it carries over better to recognizers they have never seen.",
            search_aliases=["arcface", "insightface", "face recognition", "face embedding"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files,
                    tooltip="ArcFace ONNX file in models/insightface, such as models/antelopev2/glintr100.onnx.",
                ),
                *(
                    io.Combo.Input(
                        name,
                        options=[NO_FILE, *files],
                        default=NO_FILE,
                        optional=True,
                        advanced=True,
                        tooltip="As in older workflows; Combine Recognizers takes any number.",
                    )
                    for name in ("second_file", "third_file")
                ),
                io.Combo.Input(
                    "channels",
                    options=[BY_EXPERIMENT, "RGB", "BGR"],
                    default=BY_EXPERIMENT,
                    optional=True,
                    advanced=True,
                    tooltip="Channel order of the files. By experiment: RGB, or BGR where that is clearly better, and a file that "
                    "tells nobody apart is an error. With an order stated it is used with a warning in the log.",
                ),
            ],
            outputs=[
                sockets.FaceRecognizer.Output(display_name="recognizer"),
                io.String.Output(
                    display_name="fed",
                    tooltip="Range of values and order of channels that each file is fed, and how that was found out.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file, second_file=NO_FILE, third_file=NO_FILE) -> bool | str:
        return True

    @classmethod
    def execute(
        cls,
        file,
        second_file=NO_FILE,
        third_file=NO_FILE,
        channels: Literal["by experiment", "RGB", "BGR"] = BY_EXPERIMENT,
    ) -> io.NodeOutput:
        chosen = [name for name in (file, second_file, third_file) if name != NO_FILE]
        stated = None if channels == BY_EXPERIMENT else channels
        networks = [load_recognizer(_recognizer_path(name), stated) for name in chosen]
        recognizer = networks[0] if len(networks) == 1 else Ensemble([(network, 1.0) for network in networks])
        fed = "\n".join(f"{network.name}: {network.feeding}" for network in networks)
        return io.NodeOutput(ManagedRecognizer(recognizer), fed)


def _recognizer_path(file: str) -> Path:
    return models.find(file, ".onnx", "an ArcFace ONNX file such as insightface's w600k_r50.onnx", *RECOGNIZER_FOLDERS)


class CombineRecognizers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        recognizer = sockets.FaceRecognizer.Input("recognizer", tooltip="From Load Face Recognizer or Load Demo Model.")
        return io.Schema(
            node_id="DiffPrivacyCombineRecognizers",
            display_name="Combine Recognizers",
            category=CATEGORY,
            description="Several face recognizers as one, each with the same say: what they guide carries over better to "
            "recognizers they have never seen.",
            search_aliases=["ensemble", "arcface", "face recognition"],
            inputs=[
                io.Autogrow.Input(
                    "recognizers",
                    template=io.Autogrow.TemplatePrefix(recognizer, prefix="recognizer", min=2, max=16),
                    tooltip="The list grows as you connect.",
                )
            ],
            outputs=[sockets.FaceRecognizer.Output(display_name="recognizer")],
        )

    @classmethod
    def execute(cls, recognizers) -> io.NodeOutput:
        return io.NodeOutput(ManagedEnsemble([one for one in recognizers.values() if one is not None]))


NODES = [LoadRecognizer, CombineRecognizers]
