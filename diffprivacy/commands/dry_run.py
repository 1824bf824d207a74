"""``--dry-run``: what ``anonymize`` and ``hide`` would do. Nothing is written to the output, no diffusion model loaded."""

from __future__ import annotations

from pathlib import Path

from .. import demo
from ..errors import DiffPrivacyError, NoFaceError
from ..faces.detectors import load_detector
from ..faces.geometry import Crop, Face
from ..faces.prompts import parse_prompts, prompts_of
from ..faces.regions import BoxFile, entry_of, read_boxes, upright_face
from ..media.images import read_picture
from .batch import Batch, Outcome, StopBatch
from .face_finder import FaceFinder, for_programs, in_words, warn_of_boxes
from .inputs import Plan, folder_of, is_video
from .manifest import Entry, Manifest
from .model import load_guides
from .people import load_people
from .protect_video import open_range
from .requests import ProtectRequest, digest


def dry_run(request: ProtectRequest, found: Plan) -> int:
    """Say it; returns the exit code of the run itself, as far as that can be told."""
    batch = Batch("to be protected", found, request.as_json)
    manifest = Manifest(folder_of(request.output), digest(request), request.overwrite)
    boxes = _boxes(request, found)
    finder = None
    for source, files in batch.sources():
        with batch.input(source):
            if Entry(manifest, source, files).is_done():
                batch.is_done_already(source)
                continue
            if is_video(source):
                batch.finished(source, _video(source, files[0], request, boxes))
                continue
            finder = finder or _finder(request, boxes)
            batch.finished(source, _picture(source, files, request, finder))
    return batch.finish()


def _boxes(request: ProtectRequest, found: Plan) -> BoxFile | None:
    if request.boxes is None:
        return None
    boxes = read_boxes(request.boxes)
    warn_of_boxes(boxes, found)
    return boxes


def _finder(request: ProtectRequest, boxes: BoxFile | None) -> FaceFinder:
    try:
        detector = load_detector(request.detector, request.min_score, request.min_size)
        people = request.people
        guide = load_guides(request.model) if people.only or people.spared else None
        return FaceFinder(
            detector,
            boxes,
            None if guide is None else load_people(people, detector, guide),
            demo.MARGIN if request.model.checkpoint is None else Crop(1).margin,
        )
    except DiffPrivacyError as error:
        raise StopBatch(error) from error


def _picture(source: Path, files: list[Path], request: ProtectRequest, finder: FaceFinder) -> Outcome:
    picture = read_picture(source)
    faces = finder.find(source, picture)
    chosen: list[Face] = []
    try:
        chosen = finder.choose(source, picture, faces, request.faces)
    except NoFaceError:
        if request.without_face == "error":
            raise
    if chosen:
        prompts_of(parse_prompts(request.prompt), len(faces))
    said = [f"{source} -> {', '.join(map(str, files))}: {len(chosen)} of {len(faces)} faces"]
    said += [f"  {line}" for line in in_words(faces, chosen)]
    return Outcome(said, details={"faces": for_programs(faces, chosen)})


def _video(source: Path, file: Path, request: ProtectRequest, boxes: BoxFile | None) -> Outcome:
    """Faces are not looked for: those that are given are listed."""
    video = open_range(source, request)
    said = [f"{source} -> {file}: video of about {video.frames} frames, {video.width}x{video.height} pixels"]
    details = {"frames": video.frames, "width": video.width, "height": video.height}
    if boxes is None:
        return Outcome(said, details=details)
    boxes.check_size(source, (video.height, video.width))
    given = [
        {"frame": frame} | entry_of(upright_face(box), (video.height, video.width))
        for frame, found in sorted(boxes.of_file(source).items(), key=lambda item: item[0] or 0)
        for box in found
        if frame is None or (video.first <= frame and (video.stop is None or frame < video.first + video.frames))
    ]
    for each in given:
        where = "every frame" if each["frame"] is None else f"frame {each['frame']}"
        said.append(f"  {where}: face given at {{x}},{{y}}, {{width}}x{{height}} pixels".format(**each))
    return Outcome(said, details=details | {"faces given": given})
