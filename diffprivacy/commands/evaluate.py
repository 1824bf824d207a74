"""``diffprivacy evaluate``: do recognizers still match protected images with their originals?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import demo
from ..errors import DiffPrivacyError, UsageError
from ..evaluation.attacks import Attack, attack_table
from ..evaluation.comparison import clean_photos
from ..evaluation.drawing import cosine_plot
from ..evaluation.report import Evidence
from ..evaluation.table import interval_table, table
from ..evaluation.utility import Changes, changes_of, utility_table
from ..faces.attributes import load_attributes
from ..faces.detectors import load_detector
from ..identity.recognizers import Recognizer, load_recognizer
from ..identity.thresholds import FAR, kept_thresholds, write_threshold
from ..identity.verification import operating_point
from ..media.images import Picture, write_picture
from .evaluate_attacks import ATTACKS, attacked
from .evaluate_cases import Cases, Looking, compared
from .evaluate_report import broken_bounds, jpegs, worst_cases, write_report
from .inputs import pictures_in
from .manifest import Manifest
from .options import add_detector_option, recognizer_file, score
from .requests import EvaluateRequest, RecognizerFile, content_digest


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("evaluate", help="judge protected and recovered images against their originals")
    add = parser.add_argument
    add("originals", type=Path, metavar="ORIGINALS", help="image, or folder of images")
    add(
        "protected",
        nargs="+",
        type=Path,
        metavar="PROTECTED",
        help="folder that anonymize or hide wrote them to; several of them hold protections of the same originals under "
        "different keys, and tell how surely these are linked",
    )
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
    add(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write report.html (table, ROC curves, histograms, worst cases) and report.json there; they show originals",
    )
    add(
        "--judge-guides",
        action="store_true",
        help="judge also with recognizers that guided these images; the report marks their figures",
    )
    _add_measures(parser)
    _add_bounds(parser)
    parser.set_defaults(run=lambda options: evaluate(_request(options)))


def _add_measures(parser: Any) -> None:
    """What is measured beside the judges' figures."""
    add = parser.add_argument
    add(
        "--attributes",
        type=Path,
        metavar="FILE",
        help="genderage.onnx of insightface (for research only): also measure how much age and sex change",
    )
    add(
        "--attack",
        action="append",
        default=[],
        choices=ATTACKS,
        help="parrot and undo learn from half of the people what protecting does, by embeddings or by a network on images "
        "(minutes), and search for the others; averaging searches by the mean of several protections, surroundings by "
        "what is around the face, look by the structure that people see; may be repeated",
    )


def _add_bounds(parser: Any) -> None:
    add = parser.add_argument
    bound = {"type": score, "metavar": "SHARE"}
    add("--max-tar", **bound, help="exit with 1 if a judge accepts more of the protected faces than this, such as 0.01")
    add("--min-found", **bound, help="exit with 1 if the detector finds fewer of the protected faces than this")
    add(
        "--max-link",
        **bound,
        help="exit with 1 if a judge takes more pairs of two protections of one face for one person than this",
    )


def _request(options: argparse.Namespace) -> EvaluateRequest:
    return EvaluateRequest(
        originals=options.originals,
        protected=tuple(options.protected),
        recovered=options.recovered,
        recognizers=tuple(options.recognizer),
        detector=options.detector,
        clean=options.clean,
        keep_thresholds=options.keep_thresholds,
        plot=options.plot,
        judge_guides=options.judge_guides,
        attributes=options.attributes,
        attacks=tuple(options.attack),
        report=options.report,
        max_tar=options.max_tar,
        min_found=options.min_found,
        max_link=options.max_link,
    )


def evaluate(request: EvaluateRequest) -> int:
    """Print the table and write the report; returns the exit code, 1 where a bound is broken."""
    if request.keep_thresholds and not (request.clean and request.recognizers):
        raise UsageError("--keep-thresholds needs --clean, the photos, and --recognizer, the file to keep it beside.")
    judges = _judges(request.recognizers)
    guides = _guides(request, list(judges))
    detector = load_detector(request.detector)
    attributes = load_attributes(request.attributes) if request.attributes else None
    clean = clean_photos(pictures_in(request.clean), judges, detector, attributes) if request.clean else None
    thresholds = _thresholds(request, judges, clean.pairs if clean else {})
    cases = compared(request.originals, request.protected, request.recovered, Looking(judges, detector, attributes))
    versions = {name: [case.comparison for case in of] for name, of in cases.of.items()}
    print(f"{table(versions, thresholds)}\n\n{interval_table(versions, thresholds)}")
    if cases.left:
        print(f"\nleft as they are on purpose, and not judged: {len(cases.left)} face{'s' * (len(cases.left) > 1)}")
    floors = jpegs(cases.of["protected"], detector, attributes)
    if clean:
        floors["two photos of one person"] = clean.changes
    print(f"\n{utility_table(changes_of(versions) | floors)}")
    for name in judges.keys() - thresholds.keys():
        print(f"no TAR for {name}: no threshold at FAR {FAR:g} is kept beside it; give --clean", file=sys.stderr)
    attacks = attacked(request.attacks, cases.of["protected"], judges)
    if attacks:
        print(f"\n{attack_table(attacks)}")
    if request.plot:
        write_picture(request.plot, Picture(cosine_plot(versions, thresholds)))
    if request.report:
        pairs = clean.pairs if clean else {}
        write_report(request.report, _evidence(cases, thresholds, pairs, guides, floors, attacks))
    broken = broken_bounds(versions["protected"], thresholds, request)
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    return 1 if broken else 0


def _evidence(
    cases: Cases,
    thresholds: Mapping[str, float],
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    guides: Sequence[str],
    floors: Mapping[str, Changes],
    attacks: Mapping[str, Sequence[Attack]],
) -> Evidence:
    protected = cases.of["protected"]
    return Evidence(
        {name: [case.comparison for case in of] for name, of in cases.of.items()},
        thresholds,
        pairs,
        guides,
        worst_cases(protected, list(protected[0].comparison.original)),
        [case.name for case in protected if case.comparison.found is False],
        cases.without_face,
        cases.left,
        cases.covered,
        cases.unrecorded,
        floors,
        attacks,
    )


def _guides(request: EvaluateRequest, judges: Sequence[str]) -> list[str]:
    """The judges that guided, by the record of the folder. Raises DiffPrivacyError for them unless they are asked for."""
    records = [Manifest(folder, b"") for folder in request.protected if folder.is_dir()]
    digests = [content_digest(file.path) for file in request.recognizers] or [demo.recognizer_digest("judge")]
    guides = [
        name for name, digest in zip(judges, digests, strict=True) if any(record.is_guide(digest) for record in records)
    ]
    if guides and not request.judge_guides:
        raise DiffPrivacyError(
            f"{', '.join(guides)} guided when {', '.join(map(str, request.protected))} was made, and is fooled by construction: name another "
            "with --recognizer, or add --judge-guides to see its figures marked."
        )
    return guides


def _thresholds(
    request: EvaluateRequest, judges: Mapping[str, Recognizer], clean: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Measured on clean pairs if there are any, and kept where that is wanted; else those kept."""
    if not clean:
        return kept_thresholds(judges)
    points = {name: operating_point(*cosines, FAR) for name, cosines in clean.items()}
    for name, point in points.items():
        print(f"{name}: threshold {point.threshold:.3f}, TAR of clean pairs {100 * point.tar:.1f} %")
    if request.keep_thresholds and request.clean:
        detected_by = "builtin" if request.detector is None else request.detector.name
        photos = f"photos of {request.clean.resolve().name}, {detected_by} detector"
        for file, (name, cosines) in zip(request.recognizers, clean.items(), strict=True):
            source = f"{photos}, {judges[name].channels}, embeddings fused with the mirror image's"
            write_threshold(file.path, *cosines, FAR, source)
    return {name: point.threshold for name, point in points.items()}


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
