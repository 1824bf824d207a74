"""Whole videos, streamed: no more than a piece of one is in memory."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import InputImpl, io, ui
from torch import Tensor

from ..diffprivacy.diffusion.noise import NoiseKey
from ..diffprivacy.diffusion.sampling import strength_steps
from ..diffprivacy.errors import DiffPrivacyError, NoFaceError, at_field
from ..diffprivacy.faces.detectors import MIN_SIZE, Detector, Limited
from ..diffprivacy.faces.geometry import Crop, Face
from ..diffprivacy.faces.keeping import check_parts, parse_parts
from ..diffprivacy.faces.prompts import parse_prompts, prompts_of
from ..diffprivacy.faces.regions import assumed_in_words, faces_in_boxes
from ..diffprivacy.media.atomic import atomic_path
from ..diffprivacy.media.disclosure import disclose_video
from ..diffprivacy.presets import PERSONAS
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
from .regions import lists_of_boxes

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
            default=0.8,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="How far faces are regenerated. 0.6 keeps more of pose and light, and one person's faces less alike.",
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


def _more_inputs() -> list:
    """Inputs that came later, so that saved workflows go on without them."""
    options = {"optional": True, "advanced": True}
    return [
        sockets.BoundingBoxes.Input(
            "boxes",
            optional=True,
            extra_dict={"forceInput": True},
            tooltip="Of faces that the detector misses: one box or list for all frames, or a list for each frame.",
        ),
        io.Float.Input(
            "min_score",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Score from which a face counts; 0 is the detector's own. Lower ones count along a face's track.",
            **options,
        ),
        io.Int.Input(
            "min_size",
            default=MIN_SIZE,
            min=4,
            max=4096,
            tooltip="Longer side in pixels from which a face is looked for.",
            **options,
        ),
        io.String.Input("keep", default="", tooltip="Parts of each face that stay, as in Crop Faces.", **options),
        io.Boolean.Input("match_colors", default=False, tooltip="As in Paste Faces.", **options),
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
                *_more_inputs(),
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
        boxes=None,
        min_score=0.0,
        min_size=MIN_SIZE,
        keep="",
        match_colors=False,
    ) -> io.NodeOutput:
        preset = dataclasses.replace(PERSONAS[task]["default"], steps=steps, strength=strength)
        sampled = strength_steps(steps, strength)
        detector = Limited(detector, min_score or detector.min_score, min_size)
        with tempfile.TemporaryDirectory(dir=_temporary()) as folder:
            source = _opened(video, Path(folder))
            if sound:
                check_sound(source)
            state = ResumeState(Path(folder) / "video.mp4", "", NoiseKey())
            pasting = _pasting(Crop(size, margin), keep, state, if_impossible)
            in_boxes = None if boxes is None else InBoxes(boxes, source, detector)
            followed, tracks = _followed(source, detector, recognizer, faces, without_face, in_boxes)
            texts = prompts_of(parse_prompts(prompt), 1 + max((track.person for track in followed.tracks), default=0))

            def how(person: int, target: Sequence[Tensor] | None) -> Regeneration:
                energy = task_energy(task, recognizer, preset.form, target=target)
                return Regeneration(preset, energy, text=texts[person], match_colors=match_colors, keep=pasting.keep)

            def regenerated(callback: Callable[[object], None]) -> Regenerate:
                judge = recognizer if task == "anonymize" else None
                return one_face_each(state, GuidedModel(model, clip, vae), pasting.crop, how, judge, callback, judge)

            chosen = dataclasses.replace(followed, tracks=tracks)
            whole = Path(folder) / "whole.mp4"
            join(_parts(source, chosen, state, sampled, regenerated, pasting), source, whole, sound)
            if disclosure and report.is_made_new(tracks, report.covered_spans(state)):
                disclose_video(whole)
            target, shown = _placed(whole, source, filename_prefix)
        said = _said(followed, tracks, state, () if in_boxes is None else in_boxes.found)
        return io.NodeOutput(InputImpl.VideoFromFile(str(target)), said, ui=ui.PreviewVideo([shown]))


class InBoxes:
    """The faces in the boxes that are given for a video's frames; ``found`` takes all of them."""

    def __init__(self, boxes: Any, video: Video, detector: Detector):
        with at_field("boxes"):
            self._lists = lists_of_boxes(boxes, (video.height, video.width))
        self._detector = detector
        self.found: list[Face] = []

    def __call__(self, number: int, picture: Tensor) -> list[Face]:
        row = 0 if len(self._lists) == 1 else number
        faces = faces_in_boxes(picture, self._lists[row] if row < len(self._lists) else (), self._detector)
        self.found.extend(faces)
        return faces

    def check_frames(self, frames: int) -> None:
        """Raises DiffPrivacyError for lists of more or fewer frames than these, but for one that is for all."""
        if len(self._lists) not in (1, frames):
            raise DiffPrivacyError(
                f"Boxes for {len(self._lists)} frames, but the video has {frames}; give a list for each frame, or one box "
                "or list for all.",
                "boxes",
            )


def _pasting(crop: Crop, keep: str, state: ResumeState, if_impossible: str) -> Pasting:
    parts = parse_parts(keep)
    if parts:
        check_parts(parts, crop.margin, "the video")
    return Pasting(crop, parts, None if if_impossible == "error" else functools.partial(_keep_covered, state))


def _said(followed: Followed, tracks: Sequence[Track], state: ResumeState, in_boxes: Sequence[Face]) -> str:
    """What became of the video, a line for each matter."""
    covered = report.spans_in_words(report.covered_spans(state), followed)
    lines = [
        report.summary(followed.frames, tracks),
        covered and f"covered: {covered}",
        assumed_in_words(in_boxes),
        report.gaps(followed),
    ]
    return "\n".join(filter(None, lines))


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


def _followed(
    video: Video, detector: Detector, recognizer, faces: str, without_face: str, in_boxes: InBoxes | None
) -> tuple[Followed, list[Track]]:
    """All faces of a video, and those that are to be protected."""
    followed = follow_faces(video, detector, recognizer, _counting(max(1, video.frames)), in_boxes)
    if in_boxes is not None:
        in_boxes.check_frames(followed.frames)
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
