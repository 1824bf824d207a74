"""What each new face is to be, in words."""

from __future__ import annotations

import math

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.errors import DiffPrivacyError, at_field
from ..diffprivacy.faces.prompts import parse_prompts, prompts_of
from . import sockets

CATEGORY = "Diff-Privacy/faces"


class PromptFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyPromptFaces",
            display_name="Prompt Faces",
            category=CATEGORY,
            description="A prompt for each face, as one conditioning whose rows are the crops of Crop Faces.",
            search_aliases=["prompt per face", "regional prompt", "age", "expression", "clip text encode"],
            inputs=[
                io.Clip.Input("clip"),
                sockets.Faces.Input("faces", tooltip="From Crop Faces."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="0: an old man; 1: a young woman, smiling",
                    tooltip="A prompt for all faces, or by number, separated by semicolons. Faces count as their crops "
                    "do, and after Follow Faces by its numbers of people; one that is not named has the empty prompt, or "
                    "that without a number.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the sampler of all crops.")],
        )

    @classmethod
    def execute(cls, clip, faces, prompts) -> io.NodeOutput:
        if faces.variants is None:
            raise DiffPrivacyError("Connect the output of Crop Faces, which knows how many crops there are.", "faces")
        numbers = [*range(len(faces))] if faces.people is None else [who for found in faces.people for who in found]
        with at_field("prompts"):
            of_number = prompts_of(parse_prompts(prompts), 1 + max(numbers, default=-1))
        texts = [of_number[number] for number in numbers]
        known = {text: _encoded(clip, text) for text in dict.fromkeys(texts)}
        rows = [known[text] for text in texts for _ in range(faces.variants)]
        length = math.lcm(*(cond.shape[1] for cond, _ in rows))
        crossed = torch.cat([cond.repeat(1, length // cond.shape[1], 1) for cond, _ in rows])
        pooled = [vector for _, vector in rows if vector is not None]
        extra = {"pooled_output": torch.cat(pooled)} if len(pooled) == len(rows) else {}
        return io.NodeOutput([[crossed, extra]])


def _encoded(clip, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A prompt's embeddings (1,n,D), and its pooled one (1,D) where the model has it."""
    ((cond, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return cond, extra.get("pooled_output")


NODES = [PromptFaces]
