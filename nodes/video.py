"""Whole videos, streamed: no more than a piece of one is in memory."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import InputImpl, io, ui
from torch import Tensor

from ..diffprivacy.diffusion.noise import NoiseKey
from ..diffprivacy.diffusion.sampling import strength_steps
from ..diffprivacy.errors import NoFaceError
from ..diffprivacy.faces.geometry import Crop
from ..diffprivacy.faces.prompts import parse_prompts, prompts_of
from ..diffprivacy.media.atomic import atomic_path
from ..diffprivacy.media.disclosure import disclose_video
from ..diffprivacy.presets import PRESETS
from ..diffprivacy.regeneration import Regeneration, task_energy
from ..diffprivacy.video import report
from ..diffprivacy.video.files import clip, open_video
from ..diffprivacy.video.frames import Video
from ..diffprivacy.video.protect import Followed, Pasting, Regenerate, follow_faces, pieces, protect_pieces, tracks_in
from ..diffprivacy.video.regeneration import one_face_each
from ..diffprivacy.video.resume import ResumeState
from ..diffprivacy.video.sound import check_sound
from ..diffprivacy.video.tracks import Track, select_people
from ..diffprivacy.video.writing import join
from . import sockets
from .comfy.model import GuidedModel
from .comfy.training import check_interrupted, progress_bar

CATEGORY = "Diff-Privacy/frames"


def _model_inputs() -> list:
    return [
        io.Video.Input(
            "video", tooltip="From Load Video. It is read piece by piece: an hour needs no more memory than a minute."
        ),
        io.Model.Input("model", tooltip="Stable Diffusion 1.x, 2.x, XL or the demo model."),
        io.Clip.Input("clip"),
        io.Vae.Input("vae"),
        sockets.FaceDetector.Input("detector"),
        sockets.FaceRecognizer.Input("recognizer", tooltip="Guides, and tells people apart."),
    ]


def _face_inputs() -> list:
    return [
        io.Combo.Input(
            "task",
            options=["anonymize", "hide"],
            tooltip="anonymize: another identity. hide: another look that recognizers still match.",
        ),
        io.String.Input(
            "faces",
            default="all",
            tooltip="all, largest, or people such as 0,2, counted as they appear.",
        ),
        io.Int.Input(
            "size", default=512, min=64, max=2048, step=8, tooltip="Side of the crops; 128 for the demo model."
        ),
        io.Float.Input(
            "margin",
            default=Crop(512).margin,
            min=1.0,
            max=4.0,
            step=0.05,
            tooltip="As in Crop Faces; 1.45 for the demo model.",
        ),
        io.Int.Input(
            "steps", default=50, min=1, max=1000, tooltip="Of the full schedule, of which strength runs a share."
        ),
        io.Float.Input(
            "strength",
            default=0.6,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="How far faces are regenerated: 0.6 to anonymize, 0.8 to hide.",
        ),
        io.Combo.Input(
            "without_face",
            options=["error", "keep unchanged"],
            tooltip="What to do with a video in which no face is found.",
        ),
        io.Combo.Input(
            "if_impossible",
            options=["cover", "error"],
            advanced=True,
            tooltip="For a face that cannot be made new: cover it with its skin's mean colour, or stop.",
        ),
        io.String.Input("prompt", default="", advanced=True, tooltip="What new faces are to be, as in Prompt Faces."),
    ]


class ProtectVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyProtectVideo",
            display_name="Protect Video",
            category=CATEGORY,
            description="One new face for each person of a whole video, piece by piece, and an MP4 file with its sound and no prompt, "
            "workflow or other metadata.",
            search_aliases=["anonymize video", "long video", "blur faces video", "deidentify video", "face privacy"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                *_model_inputs(),
                *_face_inputs(),
                io.Boolean.Input("sound", default=True, tooltip="Keep the sound as it is. Voices identify people."),
                io.Boolean.Input(
                    "disclosure", default=True, advanced=True, tooltip="Mark the file as made in part by a model."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="protected/video",
                    tooltip="Name in the output folder, without the ending; choose one that reveals nothing.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The protected file."),
                io.String.Output(
                    display_name="report",
                    tooltip="Frames and people, who could only be covered, and where no face was found.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        video,
        model,
        clip,
        vae,
        detector,
        recognizer,
        task,
        faces,
        size,
        margin,
        steps,
        strength,
        without_face,
        if_impossible,
        prompt,
        sound,
        disclosure,
        filename_prefix,
    ) -> io.NodeOutput:
        preset = dataclasses.replace(PRESETS[task]["default"], steps=steps, strength=strength)
        sampled = strength_steps(steps, strength)
        with tempfile.TemporaryDirectory(dir=_temporary()) as folder:
            source = _opened(video, Path(folder))
            if sound:
                check_sound(source)
            followed, tracks = _followed(source, detector, recognizer, faces, without_face)
            texts = prompts_of(parse_prompts(prompt), 1 + max((track.person for track in followed.tracks), default=0))
            state = ResumeState(Path(folder) / "video.mp4", "", NoiseKey())

            def how(person: int, target: Sequence[Tensor] | None) -> Regeneration:
                energy = task_energy(task, recognizer, preset.form, target=target)
                return Regeneration(preset, energy, text=texts[person])

            def regenerated(callback: Callable[[object], None]) -> Regenerate:
                keep = recognizer if task == "anonymize" else None
                return one_face_each(state, GuidedModel(model, clip, vae), crop, how, keep, callback)

            crop = Crop(size, margin)
            cover = None if if_impossible == "error" else functools.partial(_keep_covered, state)
            chosen = dataclasses.replace(followed, tracks=tracks)
            parts = _parts(source, chosen, state, sampled, regenerated, Pasting(crop, cover=cover))
            whole = Path(folder) / "whole.mp4"
            join(parts, source, whole, sound)
            spans = report.covered_spans(state)
            if disclosure and report.is_made_new(tracks, spans):
                disclose_video(whole)
            target, shown = _placed(whole, source, filename_prefix)
        covered = report.spans_in_words(spans, followed)
        said = [report.summary(followed.frames, tracks), covered and f"covered: {covered}", report.gaps(followed)]
        made = InputImpl.VideoFromFile(str(target))
        return io.NodeOutput(made, "\n".join(filter(None, said)), ui=ui.PreviewVideo([shown]))


def _parts(
    video: Video,
    chosen: Followed,
    state: ResumeState,
    sampled: int,
    regenerated: Callable[[Callable[[object], None]], Regenerate],
    how: Pasting,
) -> list[Path]:
    """The pieces of a video, protected; sampled: steps that a face takes in a piece."""
    plan = [(piece, state.piece(number)) for number, piece in enumerate(pieces(video, chosen.frames))]
    count = _counting(max(1, sampled * sum(len(tracks_in(chosen.tracks, piece)) for piece, _ in plan)))
    protect_pieces(video, plan, chosen, regenerated(count), how)
    return [path for _, path in plan]


def _keep_covered(state: ResumeState, track: Track, piece: range, _: Exception) -> None:
    state.keep_covered(track.person, piece, max(piece.start, track.start), min(piece.stop, track.stop))


def _opened(video, folder: Path) -> Video:
    """The file behind a VIDEO, or a file of it in the folder, with what was trimmed left out."""
    source = video.get_stream_source()
    start, duration = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)
    if not isinstance(source, str):
        (folder / "source").write_bytes(source.getvalue())
        source = folder / "source"
    opened = open_video(source)
    return clip(opened, start or None, start + duration if duration else None) if start or duration else opened


def _followed(video: Video, detector, recognizer, faces: str, without_face: str) -> tuple[Followed, list[Track]]:
    """All faces of a video, and those that are to be protected."""
    followed = follow_faces(video, detector, recognizer, _counting(max(1, video.frames)))
    try:
        return followed, select_people(followed.tracks, faces)
    except NoFaceError as error:
        if without_face == "error":
            raise NoFaceError(
                f"{error.message} To take such a video as it is, set `without_face` to `keep unchanged`.", "video"
            ) from error
        return followed, []


def _counting(total: int) -> Callable[[object], None]:
    """A callback that moves a bar on the node, and stops where the user has stopped the prompt."""
    bar = progress_bar(total)

    def count(_: object) -> None:
        check_interrupted()
        bar.update(1)

    return count


def _temporary() -> str:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _placed(whole: Path, video: Video, prefix: str) -> tuple[Path, ui.SavedResult]:
    """The finished file under its name in the output folder, and what the page shows of it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), video.width, video.height
    )
    target = Path(folder) / f"{name}_{counter:05}_.mp4"
    with atomic_path(target) as temporary:
        shutil.copyfile(whole, temporary)
    return target, ui.SavedResult(target.name, subfolder, io.FolderType.output)


NODES = [ProtectVideo]
