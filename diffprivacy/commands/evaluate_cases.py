"""What ``evaluate`` compares: every face of every original with its places in the other folders."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DiffPrivacyError
from ..evaluation.comparison import FaceComparison, judge
from ..faces.attributes import Attributes
from ..faces.detectors import Detector
from ..faces.geometry import Face
from ..identity.recognizers import Recognizer
from ..media.images import read_picture
from ..progress import progress_over
from .inputs import layout
from .manifest import Manifest

ENDINGS = (".png", ".jpg", ".webp")
"""Of protected and recovered images."""
MOST_NAMED = 10
"""Missing files that an error names."""


@dataclass(frozen=True)
class Looking:
    """Who looks at the faces."""

    judges: Mapping[str, Recognizer]
    detector: Detector
    attributes: Attributes | None


@dataclass(frozen=True)
class Case:
    """One face of an original, and what became of it in another image."""

    original: Path
    version: Path
    face: Face
    comparison: FaceComparison

    @property
    def name(self) -> str:
        return _named(self.version, self.comparison.person)


@dataclass
class Cases:
    """of: the cases of each version. without_face: originals in which none is found. left, covered: names of the faces
    that the run left on purpose, which are no cases, and that it could only cover. unrecorded: whether some protected
    images are of no recorded run, so that all their faces count as protected.
    """

    of: dict[str, list[Case]]
    without_face: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)
    unrecorded: bool = False


def compared(originals: Path, protected: Sequence[Path], recovered: Path | None, by: Looking) -> Cases:
    """Compare every face of every original with its places in the folders, but for those left on purpose.

    Raises DiffPrivacyError, naming the files, where an original has no version in a folder, and where nothing is left
    to compare.
    """
    folders = {"protected": list(protected)} | ({"recovered": [recovered]} if recovered else {})
    cases = Cases({name: [] for name in folders})
    versions = {name: _all_versions(originals, of) for name, of in folders.items()}
    records = [Manifest(folder, b"") for folder in protected if folder.is_dir()]
    kept: dict[Path, list[int]] = {}
    for name, of_originals in versions.items():
        for original, others in progress_over(list(of_originals.items()), name, "image"):
            picture = read_picture(original).rgb
            faces = by.detector.detect(picture)
            if not faces and str(original) not in cases.without_face:
                print(f"warning: {original} is left out: no face was found in it", file=sys.stderr)
                cases.without_face.append(str(original))
            numbers = list(range(len(faces)))
            for other in others:
                if name == "protected":
                    made_new = _made_new(original, other, faces, records, cases)
                    kept[original] = sorted({*kept.get(original, []), *made_new})
                else:
                    made_new = [i for i in numbers if i in kept.get(original, numbers)]
                people = [f"{original}, face {i}" for i in made_new]
                chosen = [faces[i] for i in made_new]
                try:
                    judged = judge(
                        picture, read_picture(other).rgb, chosen, people, by.judges, by.detector, by.attributes
                    )
                except DiffPrivacyError as error:
                    raise DiffPrivacyError(f"{other}: {error}") from error
                cases.of[name] += [Case(original, other, face, each) for face, each in zip(chosen, judged, strict=True)]
        if not cases.of[name]:
            raise DiffPrivacyError(
                f"Every face in {originals} was left as it is on purpose, so nothing can be judged."
                if cases.left
                else f"No face was found in {originals}; name a better one with --detector."
            )
    return cases


def _made_new(
    original: Path, version: Path, faces: Sequence[Face], records: Sequence[Manifest], cases: Cases
) -> list[int]:
    """Numbers of the faces that the run was to protect; notes in the cases those left on purpose and those covered."""
    record = next((record for record in records if record.knows(version)), None)
    if record is None:
        cases.unrecorded = True
        return list(range(len(faces)))
    made_new = []
    for i, face in enumerate(faces):
        decision = record.decision(version, face)
        if decision != "left":
            made_new.append(i)
        if decision is not None:
            {"left": cases.left, "covered": cases.covered}[decision].append(_named(version, f"{original}, face {i}"))
    return made_new


def _named(version: Path, person: str) -> str:
    return f"{version} ({person.rsplit(', ', 1)[-1]})"


def _all_versions(originals: Path, folders: Sequence[Path]) -> dict[Path, list[Path]]:
    """Every original with its versions in all folders."""
    versions: dict[Path, list[Path]] = {}
    for folder in folders:
        for original, others in _matches(originals, folder):
            versions.setdefault(original, []).extend(others)
    return versions


def _matches(originals: Path, folder: Path) -> list[tuple[Path, list[Path]]]:
    """Every original with its versions in a folder: under its own name, or ``name-1`` and so on for variants.

    Raises DiffPrivacyError that lists the originals without one.
    """
    matches = [(source, _versions(file)) for source, (file,) in layout([originals], folder).targets.items()]
    if missing := [str(source) for source, versions in matches if not versions]:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise DiffPrivacyError(
            f"{folder} holds nothing under the names of {', '.join(missing[:MOST_NAMED])}{more} ({len(missing)} of "
            f"{len(matches)}): name the folder that they were written to, or take these out."
        )
    return matches


def _versions(file: Path) -> list[Path]:
    """The file itself, or its variants, in any format that images are written in."""
    endings = "|".join(re.escape(ending) for ending in ENDINGS)
    name = re.compile(rf"{re.escape(file.stem)}(-\d+)?({endings})")
    there = sorted(file.parent.iterdir()) if file.parent.is_dir() else []
    found = [path for path in there if name.fullmatch(path.name)]
    alone = [path for path in found if path.stem == file.stem]
    return alone or found
