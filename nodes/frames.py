"""Consecutive frames: who is where in each of them, and new faces that do not flicker from one to the next."""

from __future__ import annotations

from bisect import bisect_right

import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.diffusion.temporal import ABOVE, averaged, smoothing_weights
from ..diffprivacy.errors import DiffPrivacyError, NoFaceError
from ..diffprivacy.faces.preview import draw_people
from ..diffprivacy.identity.embedding import embed_face
from ..diffprivacy.identity.thresholds import SAME_PERSON, person_threshold
from ..diffprivacy.video.cuts import CutFinder
from ..diffprivacy.video.tracks import Track, track_faces
from . import sockets
from .comfy.guiding import Prediction, guide_model
from .faces import check_pictures

CATEGORY = "Diff-Privacy/frames"


def _frame_rate_input() -> io.Float.Input:
    return io.Float.Input(
        "frame_rate",
        default=24.0,
        min=1.0,
        max=240.0,
        step=0.01,
        tooltip="Frames per second: connect fps of Get Video Components.",
    )


class FollowFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyFollowFaces",
            display_name="Follow Faces",
            category=CATEGORY,
            description="Follows the faces through consecutive frames and fills in those that Detect Faces missed; "
            "shows where they are, numbered by person.",
            search_aliases=["track faces", "face tracking", "video face", "video anonymize"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image", tooltip="Consecutive frames, the same that went into Detect Faces."),
                sockets.Faces.Input("faces", tooltip="From Detect Faces, with without_face on keep unchanged."),
                _frame_rate_input(),
                sockets.FaceRecognizer.Input(
                    "recognizer",
                    optional=True,
                    tooltip="Tells people apart where they cross and after a cut. "
                    "Without it every appearance counts as another person.",
                ),
            ],
            outputs=[
                sockets.Faces.Output(display_name="faces", tooltip="For Crop Faces."),
                io.Int.Output(display_name="people", tooltip="Number of people in all frames."),
            ],
        )

    @classmethod
    def execute(cls, image, faces, frame_rate, recognizer=None) -> io.NodeOutput:
        check_pictures(image, faces)
        if not len(faces):
            raise NoFaceError(
                "There is no face in any frame, so nothing would be protected. "
                "Look at the preview of Detect Faces, and try another detector.",
                "faces",
            )
        frames = image.cpu().float()
        embeddings, same_person = None, SAME_PERSON
        if recognizer is not None:
            same_person = person_threshold(recognizer)
            embeddings = [
                [embed_face(recognizer, frame, face) for face in found]
                for frame, found in zip(frames, faces.faces, strict=True)
            ]
        times = [i / frame_rate for i in range(len(frames))]
        finder = CutFinder()
        for frame, time in zip(frames, times, strict=True):
            finder.add(frame, time)
        tracks = track_faces(
            faces.faces, faces.size, times, finder.cuts, embeddings, same_person, doubtful=faces.doubtful
        )
        chosen, numbers, who, previews = [], [], [], []
        for i, frame in enumerate(frames):
            present = _in_frame(tracks, i)
            followed = [tracks[number] for number in present]
            found = tuple(track.face(i) for track in followed)
            seen = [track.seen[i - track.start] for track in followed]
            chosen.append(found)
            numbers.append(tuple(present))
            who.append(tuple(track.person for track in followed))
            previews.append(draw_people(frame, found, who[-1], seen))
        batch = sockets.FaceBatch(
            tuple(chosen), faces.size, tracks=tuple(numbers), jumps=tuple(finder.jumps), people=tuple(who)
        )
        people = len({track.person for track in tracks})
        return io.NodeOutput(batch, people, ui=ui.PreviewImage(torch.stack(previews)))


def _in_frame(tracks: list[Track], frame: int) -> list[int]:
    """Numbers of the tracks that are in a frame, by person."""
    present = [i for i, track in enumerate(tracks) if track.start <= frame < track.stop]
    return sorted(present, key=lambda i: tracks[i].person)


class SteadyFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacySteadyFrames",
            display_name="Temporal Smoothing",
            category=CATEGORY,
            description="A model whose predictions for consecutive frames of a face are averaged while they are coarse, "
            "so that the new face does not flicker. Connect it after Energy Guidance.",
            search_aliases=["steady frames", "temporal consistency", "deflicker", "video smoothing", "video face"],
            inputs=[
                io.Model.Input("model", tooltip="From Energy Guidance."),
                sockets.Faces.Input("faces", tooltip="From Crop Faces, with Follow Faces before it."),
                _frame_rate_input(),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, faces, frame_rate) -> io.NodeOutput:
        if faces.tracks is None or faces.variants is None:
            raise DiffPrivacyError("Connect Follow Faces before Crop Faces, and here the faces of Crop Faces.", "faces")
        rows = len(faces) * faces.variants
        weights = _weights(faces, frame_rate)

        def smoothed(prediction: Prediction) -> torch.Tensor:
            denoised = prediction.denoised
            if len(denoised) != rows:
                raise DiffPrivacyError(
                    f"Temporal Smoothing: the sampler predicts {len(denoised)} images for {rows} ({len(faces)} faces, "
                    f"{faces.variants} variant(s) each); connect the latent of all crops of the same Crop Faces."
                )
            return _averaged(denoised, weights) if prediction.sigma > ABOVE else denoised

        return io.NodeOutput(guide_model(model, smoothed))


def _weights(faces: sockets.FaceBatch, frame_rate: float) -> torch.Tensor:
    """The weights (F,F) of the average over time of all F crops: of each track for itself, and not over a jump."""
    where = [(track, i) for i, of_frame in enumerate(faces.tracks or ()) for track in of_frame]
    tracks = torch.tensor([track for track, _ in where])
    weights = torch.zeros(len(where), len(where))
    for track in tracks.unique().tolist():
        frames = [i for of, i in where if of == track]
        lights = [bisect_right(faces.jumps, i) for i in frames]
        rows = torch.nonzero(tracks == track)[:, 0]
        weights[rows[:, None], rows] = smoothing_weights([i / frame_rate for i in frames], 1 / frame_rate, lights)
    return weights


def _averaged(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x (F*V, ...), V variants of F crops, averaged with weights (F,F)."""
    return averaged(x.unflatten(0, (len(weights), -1)), weights).flatten(0, 1)


NODES = [FollowFaces, SteadyFrames]
