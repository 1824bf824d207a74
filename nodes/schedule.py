"""Which conditioning holds at which time step, as ComfyUI's own time ranges."""

from __future__ import annotations

import node_helpers
from comfy_api.v0_0_2 import io

from ..diffprivacy.diffusion.conditioning import LAST, EmbeddingSchedule, Span, percent_range
from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.presets import PRESETS

CATEGORY = "Diff-Privacy/conditioning"
CUSTOM = "custom"


class ScheduleEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyEmbeddingSchedule",
            display_name="Embedding Schedule",
            category=CATEGORY,
            description="One conditioning while the image is mostly noise, another after. At every time step exactly "
            "one holds, so any sampler and any scheduler may follow. Chain two of these nodes for a second switch.",
            search_aliases=["prompt schedule", "timestep range", "prompt switch", "diff-privacy schedule"],
            inputs=[
                io.Conditioning.Input("early", tooltip="Holds first, at high noise: the identity (MSI) or a prompt."),
                io.Conditioning.Input("late", tooltip="Holds after the switch: usually the empty prompt."),
                io.Combo.Input(
                    "preset",
                    options=["anonymize", "hide", "recover", CUSTOM],
                    tooltip="The paper's switches: anonymize at time step 400, hide at 600, recover never.",
                ),
                io.Int.Input(
                    "switch_step",
                    default=400,
                    min=0,
                    max=LAST - 1,
                    tooltip="Custom only: early holds while the time step (0 to 999) is above this.",
                ),
                io.Int.Input(
                    "blend",
                    default=0,
                    min=0,
                    max=LAST - 1,
                    advanced=True,
                    tooltip="Custom only: time steps below the switch over which early fades into late; 0 for a hard switch.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, early, late, preset, switch_step, blend) -> io.NodeOutput:
        if preset != CUSTOM:
            schedule = PRESETS[preset]["paper"].schedule("early", "late")
        elif blend:
            low = max(switch_step - blend, 0)
            schedule = EmbeddingSchedule.blend("early", "late", switch_step, low, pieces=min(10, switch_step - low))
        else:
            schedule = EmbeddingSchedule.switch(["early", "late"], at=[switch_step])
        sources = {"early": early, "late": late}
        return io.NodeOutput(
            [
                entry
                for span in schedule.spans
                for name, share in span.mix.items()
                for entry in _restrict(name, sources[name], span, share)
            ]
        )


def _restrict(socket: str, conditioning: list, span: Span, share: float) -> list:
    """The entries of a CONDITIONING that hold within the span, cut to it; the time ranges they have are kept."""
    start, end = percent_range(span.low, span.high)
    entries = []
    steps = range(span.low, span.high + 1)
    uncovered = set(steps)
    for entry in conditioning:
        options = entry[1]
        first = max(start, options.get("start_percent", 0.0))
        last = min(end, options.get("end_percent", 1.0))
        held = {step for step in steps if first <= 1 - step / LAST <= last}
        if not held:
            continue
        uncovered -= held
        values = {"start_percent": first, "end_percent": last}
        if share != 1:
            values["strength"] = share * options.get("strength", 1.0)
        entries += node_helpers.conditioning_set_values([entry], values)
    if uncovered:
        raise DiffPrivacyError(
            f"Its time ranges leave the steps {min(uncovered)} to {max(uncovered)} without any "
            "conditioning, where the model would see nothing; extend a range or move the switch.",
            socket,
        )
    return entries


NODES = [ScheduleEmbeddings]
