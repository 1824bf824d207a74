"""What ``evaluate`` writes beside its table, and the bounds that it holds a result to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..errors import DiffPrivacyError
from ..evaluation.comparison import FaceComparison, jpeg_changes
from ..evaluation.intervals import Share
from ..evaluation.report import Evidence, Worst, as_html, as_json
from ..evaluation.utility import JPEG_QUALITY, Changes
from ..evaluation.verdict import found, verdict
from ..faces.attributes import Attributes
from ..faces.detectors import Detector
from ..faces.geometry import Face, crop_face
from ..media.atomic import write_atomically
from ..media.images import read_picture
from ..progress import progress_over
from .evaluate_cases import Case
from .requests import EvaluateRequest

WORST = 8
"""Pairs of an original and a protected face that a report shows."""
SIDE = 192
"""Of their crops, in pixels."""


def jpegs(cases: Sequence[Case], detector: Detector, attributes: Attributes | None) -> dict[str, Changes]:
    """What the measures of utility say of a JPEG of each original."""
    faces: dict[Path, dict[str, Face]] = {}
    for case in cases:
        faces.setdefault(case.original, {})[case.comparison.person] = case.face
    measured: list[tuple[str, Mapping[str, float]]] = []
    for original, people in progress_over(list(faces.items()), "noise floor", "image"):
        of = jpeg_changes(read_picture(original).rgb, list(people.values()), detector, attributes)
        measured += zip(people, of, strict=True)
    return {f"JPEG of quality {JPEG_QUALITY}": measured}


def worst_cases(cases: Sequence[Case], judges: Sequence[str]) -> list[Worst]:
    """The faces that any judge takes for most like their originals, worst first."""

    def worst(case: Case) -> float:
        return max(case.comparison.cosine(judge) for judge in judges)

    def crop(path: Path, face: Face) -> Tensor:
        return crop_face(read_picture(path).rgb, face, SIDE, 1.4)

    return [
        Worst(f"{case.name}, cosine {worst(case):.2f}", crop(case.original, case.face), crop(case.version, case.face))
        for case in sorted(cases, key=worst, reverse=True)[:WORST]
    ]


def write_report(folder: Path, evidence: Evidence) -> None:
    """Write report.html and report.json, readable by their owner only, as they show and name originals.

    Raises DiffPrivacyError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffPrivacyError(f"{folder}, the report's folder, cannot be made: {error.strerror}.") from error
    write_atomically(folder / "report.html", as_html(evidence).encode(), secret=True)
    write_atomically(folder / "report.json", (json.dumps(as_json(evidence), indent=2) + "\n").encode(), secret=True)


def broken_bounds(
    faces: Sequence[FaceComparison], thresholds: Mapping[str, float], request: EvaluateRequest
) -> list[str]:
    """One line for each bound that the protected faces break; what could not be measured keeps no bound."""
    of = {judge: verdict(faces, judge, thresholds.get(judge)) for judge in faces[0].original}
    lines = []
    for judge, measured in of.items():
        accepted = f"{judge} accepts", "of the faces as their originals"
        lines += _above("--max-tar", request.max_tar, measured.tar, *accepted, "a threshold (--clean)")
        linked = f"{judge} accepts", "of the pairs of two protections of one face"
        lines += _above(
            "--max-link", request.max_link, measured.linked, *linked, "two folders or variants, and a threshold"
        )
    if request.min_found is not None:
        seen = found(faces)
        assert seen is not None
        if seen.value < request.min_found:
            lines.append(f"a face is found in the place of {seen}, less than --min-found {request.min_found:g}")
    return lines


def _above(option: str, bound: float | None, share: Share | None, who: str, what: str, needs: str) -> list[str]:
    if bound is None:
        return []
    if share is None:
        return [f"{who} cannot be held to {option}: that needs {needs}"]
    return [f"{who} {share} {what}, more than {option} {bound:g}"] if share.value > bound else []
