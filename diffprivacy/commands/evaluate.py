"""``diffprivacy evaluate``: do recognizers still match protected images with their originals?"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import demo
from ..errors import DiffPrivacyError, UsageError
from ..evaluation.comparison import FaceComparison, clean_pairs, judge, table
from ..evaluation.drawing import cosine_plot
from ..faces.detectors import load_detector
from ..identity.recognizers import Recognizer, load_recognizer
from ..identity.thresholds import FAR, kept_thresholds, write_threshold
from ..identity.verification import operating_point
from ..media.images import Picture, read_picture, write_picture
from ..progress import progress_over
from .inputs import layout, pictures_in
from .options import add_detector_option, recognizer_file
from .requests import EvaluateRequest, RecognizerFile


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("evaluate", help="judge protected and recovered images against their originals")
    add = parser.add_argument
    add("originals", type=Path, metavar="ORIGINALS", help="image, or folder of images")
    add("protected", type=Path, metavar="PROTECTED", help="folder that anonymize or hide wrote them to")
    add("--recovered", type=Path, metavar="FOLDER", help="folder that recover wrote to")
    add(
        "--recognizer",
        action="append",
        default=[],
        type=recognizer_file,
        metavar="FILE[:RGB|:BGR]",
        help="ONNX recognizer that judges; may be repeated; never one that guided (default: the embedded judge)",
    )
    add_detector_option(parser)
    add(
        "--clean",
        type=Path,
        metavar="FOLDER",
        help=f"unprotected photos, in one folder for each person, to measure the thresholds on, at a false accept rate of "
        f"{FAR:g} (default: those kept beside the recognizers)",
    )
    add(
        "--keep-thresholds",
        action="store_true",
        help="write the thresholds measured on --clean beside the recognizers, for later runs",
    )
    add("--plot", type=Path, metavar="PNG", help="write a plot of all cosines")
    parser.set_defaults(run=lambda options: evaluate(_request(options)))


def _request(options: argparse.Namespace) -> EvaluateRequest:
    return EvaluateRequest(
        originals=options.originals,
        protected=options.protected,
        recovered=options.recovered,
        recognizers=tuple(options.recognizer),
        detector=options.detector,
        clean=options.clean,
        keep_thresholds=options.keep_thresholds,
        plot=options.plot,
    )


def evaluate(request: EvaluateRequest) -> int:
    """Print the table; returns the exit code."""
    if request.keep_thresholds and not (request.clean and request.recognizers):
        raise UsageError("--keep-thresholds needs --clean, the photos, and --recognizer, the file to keep it beside.")
    detector = load_detector(request.detector)
    judges = _judges(request.recognizers)
    thresholds = kept_thresholds(judges)
    if request.clean:
        pairs = clean_pairs(pictures_in(request.clean), judges, detector)
        points = {name: operating_point(*cosines, FAR) for name, cosines in pairs.items()}
        for name, point in points.items():
            print(f"{name}: threshold {point.threshold:.3f}, TAR of clean pairs {100 * point.tar:.1f} %")
        thresholds = {name: point.threshold for name, point in points.items()}
    if request.keep_thresholds and request.clean:
        detected_by = "builtin" if request.detector is None else request.detector.name
        photos = f"photos of {request.clean.resolve().name}, {detected_by} detector"
        for file, (name, cosines) in zip(request.recognizers, pairs.items(), strict=True):
            source = f"{photos}, {judges[name].channels}, embeddings fused with the mirror image's"
            write_threshold(file.path, *cosines, FAR, source)
    folders = {"protected": request.protected} | ({"recovered": request.recovered} if request.recovered else {})
    versions: dict[str, list[FaceComparison]] = {}
    for name, folder in folders.items():
        judged = versions.setdefault(name, [])
        for original, others in progress_over(_matches(request.originals, folder), name, "image"):
            picture = read_picture(original).rgb
            faces = detector.detect(picture)
            if not faces:
                print(f"warning: {original} is left out: no face was found in it", file=sys.stderr)
            people = [f"{original}, face {i}" for i in range(len(faces))]
            for other in others:
                try:
                    judged += judge(picture, read_picture(other).rgb, faces, people, judges, detector)
                except DiffPrivacyError as error:
                    raise DiffPrivacyError(f"{other}: {error}") from error
        if not judged:
            raise DiffPrivacyError(f"No face was found in {request.originals}; name a better one with --detector.")
    print(table(versions, thresholds))
    for name in judges.keys() - thresholds.keys():
        print(f"no TAR for {name}: no threshold at FAR {FAR:g} is kept beside it; give --clean", file=sys.stderr)
    if request.plot:
        write_picture(request.plot, Picture(cosine_plot(versions, thresholds)))
    return 0


def _judges(files: Sequence[RecognizerFile]) -> dict[str, Recognizer]:
    if not files:
        judge = demo.load_recognizer("judge")
        return {judge.name: judge}
    judges = {file.path.stem: load_recognizer(file.path, file.channels) for file in files}
    if len(judges) < len(files):
        raise DiffPrivacyError(
            f"{', '.join(str(file.path) for file in files)}: two of these have one file name; give each another."
        )
    return judges


def _matches(originals: Path, folder: Path) -> list[tuple[Path, list[Path]]]:
    """Every original with its versions in a folder: ``name.png``, or ``name-1.png`` and so on for variants.

    Raises DiffPrivacyError for an original without one.
    """
    return [(source, list(_versions(file))) for source, (file,) in layout([originals], folder).targets.items()]


def _versions(file: Path) -> Iterator[Path]:
    if file.exists():
        yield file
        return
    variant = re.compile(re.escape(file.stem) + r"-\d+\.png")
    found = sorted(path for path in file.parent.glob("*.png") if variant.fullmatch(path.name))
    if not found:
        raise DiffPrivacyError(f"{file} does not exist, and no variant of it such as {file.stem}-1.png does.")
    yield from found
