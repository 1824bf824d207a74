"""A report that opens in a browser without a network, and the same figures for programs."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..identity.thresholds import FAR
from ..identity.verification import Scores
from ..media.images import Picture, encode_png
from .attacks import Attack
from .comparison import FaceComparison
from .drawing import histogram, roc_plot
from .intervals import Mean, Share
from .table import judges_of
from .utility import MEASURES, Changes, changes_of, lacking, mean_change, number
from .verdict import Verdict, found, verdict

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1e293b }
table { border-collapse: collapse; margin: 1rem 0 } th, td { border-bottom: 1px solid #cbd5e1; padding: .3rem .8rem }
th { text-align: left } td { text-align: right } td:first-child { text-align: left } small { color: #64748b }
figure { display: inline-block; margin: .5rem; vertical-align: top } figcaption { font-size: 13px; max-width: 22rem }
.pair img { width: 10rem } .plot img { width: 32rem } .bad { color: #b91c1c }
"""
MEANINGS = {
    "accepted": "share of faces that the judge takes for the same person at its threshold (TAR)",
    "nearest": "share whose nearest original among all is their own; chance is one in the number of originals",
    "farthest": "share whose farthest original is their own; chance is the same",
    "linked": "share of pairs of two protections of one person that the judge takes for one person",
    "link AUC": "how surely such pairs are told from those of two people; 0.5 is chance",
}


@dataclass(frozen=True)
class Worst:
    """A protected face that a judge still takes for much like its original: crops (H,W,3) in [0,1]."""

    label: str
    original: Tensor
    version: Tensor


@dataclass(frozen=True)
class Evidence:
    """All that a report says.

    versions: the comparisons of each version of the same originals. thresholds: of each judge that has one. clean: each
    judge's cosines of unprotected pairs, of one person and of two. guides: the judges that guided, whose figures say
    little. worst, missing: the faces that are most like their originals, and the names of those in whose place no face
    is found; left_out: originals without a face; left: faces that the run left on purpose, which nothing here judges;
    covered: those that it could only cover. unrecorded: whether that is not known of some images, because no record of
    their run is there. floors: what the measures of utility say of images of one person that
    were not protected. attacks: by the judge that searches.
    """

    versions: Mapping[str, Sequence[FaceComparison]]
    thresholds: Mapping[str, float]
    clean: Mapping[str, tuple[Scores, Scores]] = field(default_factory=dict)
    guides: Sequence[str] = ()
    worst: Sequence[Worst] = ()
    missing: Sequence[str] = ()
    left_out: Sequence[str] = ()
    left: Sequence[str] = ()
    covered: Sequence[str] = ()
    unrecorded: bool = False
    floors: Mapping[str, Changes] = field(default_factory=dict)
    attacks: Mapping[str, Sequence[Attack]] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Changes]:
        """What utility is told of: every version, then the noise floors."""
        return changes_of(self.versions) | dict(self.floors)


def as_json(evidence: Evidence) -> dict[str, Any]:
    """The figures for programs; shares have their 95 % interval over people, and NaN is null."""
    judges = {
        judge: {
            "threshold": evidence.thresholds.get(judge),
            "guided": judge in evidence.guides,
            "versions": {
                name: _plain(asdict(verdict(faces, judge, evidence.thresholds.get(judge))))
                for name, faces in evidence.versions.items()
            },
        }
        for judge in judges_of(evidence.versions)
    }
    versions = {name: _plain(_fidelity(faces)) for name, faces in evidence.versions.items()}
    named = {
        "no face in its place": list(evidence.missing),
        "originals without a face": list(evidence.left_out),
        "left on purpose": list(evidence.left),
        "covered": list(evidence.covered),
        "every face counted as to be protected for lack of a record": evidence.unrecorded,
    }
    attacks = {judge: {attack.name: asdict(attack) for attack in of} for judge, of in evidence.attacks.items()}
    utility = {
        measure: {
            name: _plain(asdict(mean)) for name, of in evidence.changes.items() if (mean := mean_change(of, measure))
        }
        for measure in MEASURES
    }
    return {
        "false accept rate": FAR,
        "judges": judges,
        "versions": versions,
        "utility": utility,
        "attacks": attacks,
        **named,
    }


def as_html(evidence: Evidence) -> str:
    """The report as one file: no script, and nothing is fetched."""
    parts = [
        "<h1>Do recognizers still match?</h1>",
        "<p><b>Keep this file as you keep the originals:</b> it shows faces of both.</p>",
    ]
    for judge in judges_of(evidence.versions):
        parts += _of_judge(evidence, judge)
    parts.append("<h2>Found again, and fidelity</h2>" + _table(_fidelity_rows(evidence.versions)))
    parts.append("<p><small>PSNR and SSIM compare pixels: they judge a recovery, not a new face.</small></p>")
    parts += _utility(evidence) + _attacks(evidence)
    if evidence.worst:
        parts.append("<h2>Most like their originals</h2><div class='pair'>")
        parts += [
            _figure(worst.label, _image(worst.original), _image(worst.version), title="original and protected")
            for worst in evidence.worst
        ]
        parts.append("</div>")
    parts += _names(evidence)
    head = f"<meta charset='utf-8'><title>Diff-Privacy: evaluation</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def plotted(
    versions: Mapping[str, Sequence[FaceComparison]], judge: str, clean: tuple[Scores, Scores] | None = None
) -> tuple[dict[str, tuple[Scores, Scores]], dict[str, Scores]]:
    """What the ROC curves and the histogram of a judge show: cosines of one person and of two, and groups of cosines.

    clean: cosines of unprotected pairs, of one person and of two. Versions of one person alone have no curve.
    """
    pairs = {name: _pairs(faces, judge) for name, faces in versions.items()}
    curves: dict[str, tuple[Scores, Scores]] = {
        name: (same, others) for name, (same, others) in pairs.items() if len(others)
    }
    groups: dict[str, Scores] = {f"{name}, to its original": same for name, (same, _) in pairs.items()}
    groups |= {f"{name}, to others": others for name, (_, others) in pairs.items() if len(others)}
    if clean is not None:
        curves["unprotected"] = clean
        groups["unprotected, one person"] = clean[0]
    return curves, groups


def _pairs(faces: Sequence[FaceComparison], judge: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the versions to their own originals, and to other people's."""
    people = np.array([face.person for face in faces])
    versions, originals = (
        np.stack([getattr(face, which)[judge] for face in faces]) for which in ("version", "original")
    )
    cosines = versions @ originals.T
    return cosines.diagonal(), cosines[people[:, None] != people[None]]


def _names(evidence: Evidence) -> list[str]:
    parts = []
    for title, names in (
        ("Covered, as they could not be made new", evidence.covered),
        ("No face is found in its place: covered, or no longer a face", evidence.missing),
        ("Left as they are on purpose, and not judged", evidence.left),
        ("Originals without a face, left out", evidence.left_out),
    ):
        parts.append(f"<h2>{title}: {len(names)}</h2>")
        parts.append("<ul>" + "".join(f"<li>{html.escape(name)}</li>" for name in names) + "</ul>" if names else "")
    if evidence.unrecorded:
        parts.append(
            "<p><small>For some images no record of the run is there, or not yours, or one of an earlier version: all their "
            "faces count as to be protected, also those that were left on purpose.</small></p>"
        )
    return parts


def _of_judge(evidence: Evidence, judge: str) -> list[str]:
    threshold = evidence.thresholds.get(judge)
    parts = [f"<h2>Judge: {html.escape(judge)}</h2>"]
    if judge in evidence.guides:
        parts.append(
            "<p class='bad'>This recognizer guided: it is fooled by construction, whatever its figures say.</p>"
        )
    parts.append(
        f"<p>No threshold at a false accept rate of {FAR:g} is known; it needs {math.ceil(1 / FAR)} pairs of different "
        "people or more (--clean).</p>"
        if threshold is None
        else f"<p>Threshold {threshold:.3f}, at a false accept rate of {FAR:g}.</p>"
    )
    rows = [["", "cosine", "to others", *MEANINGS]]
    for name, faces in evidence.versions.items():
        rows.append([name, *_cells(verdict(faces, judge, threshold))])
    parts.append(_table(rows))
    said = "; ".join(f"<i>{name}</i>: {meaning}" for name, meaning in MEANINGS.items())
    parts.append(f"<p><small>{said}. In brackets: 95 % interval over people.</small></p>")
    curves, groups = plotted(evidence.versions, judge, evidence.clean.get(judge))
    parts.append("<div class='plot'>")
    if curves:
        parts.append(_figure("ROC: dashed, the false accept rate in use", _image(roc_plot(curves, FAR))))
    dashed = "" if threshold is None else ": dashed, the threshold"
    parts.append(_figure(f"Cosines{dashed}", _image(histogram(groups, threshold))))
    return [*parts, "</div>"]


def _utility(evidence: Evidence) -> list[str]:
    columns = evidence.changes
    rows, unmeasured = [["", "unit", *columns]], []
    for measure, (unit, _) in MEASURES.items():
        means = [mean_change(of, measure) for of in columns.values()]
        if any(means):
            rows.append([measure, unit, *(_mean(mean, unit) for mean in means)])
        else:
            unmeasured.append(f"{measure} ({lacking(measure)})")
    said = "; ".join(f"<i>{name}</i>: {html.escape(meaning)}" for name, (_, meaning) in MEASURES.items())
    return [
        "<h2>Utility: how much else changed</h2>",
        _table(rows),
        f"<p><small>{said}. In brackets: 95 % interval over people. Compare with the last columns: no two photos of one "
        "person have zeros.</small></p>",
        f"<p><small>Not measured: {', '.join(unmeasured)}.</small></p>" if unmeasured else "",
    ]


def _attacks(evidence: Evidence) -> list[str]:
    rows = [["attack", "judge that searches", "found", "chance"]]
    for judge, of in evidence.attacks.items():
        rows += [[a.name, html.escape(judge), _with_interval(a.found), f"{100 * a.chance:.1f} %"] for a in of]
    said = (
        "<i>parrot</i>, <i>undo</i>: learned on half of the people, whose originals and protections are known; the others "
        "are searched for among their originals. <i>averaging</i>: by the mean of all protections of a face. "
        "<i>surroundings</i>: with the face in grey, for the same photo, which nothing hides, and where originals lie in "
        "folders of their people for other photos of the person. <i>look</i>: by the structure that people see. In "
        "brackets: 95 % interval over people."
    )
    return ["<h2>Attacks</h2>", _table(rows), f"<p><small>{said}</small></p>"] if evidence.attacks else []


def _mean(mean: Mean | None, unit: str) -> str:
    if mean is None:
        return "–"
    low, high = (number(value, unit) for value in (mean.low, mean.high))
    return f"{number(mean.value, unit)} <small>({low} to {high})</small>"


def _cells(of: Verdict) -> list[str]:
    shares = [_with_interval(share) for share in (of.tar, of.nearest, of.farthest, of.linked)]
    return [f"{of.cosine:.2f}", _number(of.others), *shares, _number(of.link)]


def _with_interval(share: Share | None) -> str:
    return "–" if share is None else f"{share} <small>({100 * share.low:.1f} to {100 * share.high:.1f})</small>"


def _fidelity(faces: Sequence[FaceComparison]) -> dict[str, Any]:
    share, errors = found(faces), [face.nme for face in faces if np.isfinite(face.nme)]
    means = {name: float(np.mean([getattr(face, name) for face in faces])) for name in ("psnr", "ssim", "similarity")}
    return {
        "faces": len(faces),
        "found": None if share is None else asdict(share),
        "nme": float(np.mean(errors)) if errors else None,
    } | means


def _fidelity_rows(versions: Mapping[str, Sequence[FaceComparison]]) -> list[list[str]]:
    rows = [["", "faces", "found again", "NME", "PSNR", "SSIM", "structure similarity"]]
    for name, faces in versions.items():
        of = _fidelity(faces)
        nme = "–" if of["nme"] is None else f"{of['nme']:.3f}"
        rows.append([name, str(of["faces"]), _with_interval(found(faces)), nme, f"{of['psnr']:.1f} dB"])
        rows[-1] += [f"{of[measure]:.3f}" for measure in ("ssim", "similarity")]
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are HTML already; the first is the head, and the first of each a name."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><td>{html.escape(row[0])}</td>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(label: str, *images: str, title: str = "") -> str:
    return f"<figure title='{title}'>{''.join(images)}<figcaption>{html.escape(label)}</figcaption></figure>"


def _image(picture: Tensor) -> str:
    data = base64.b64encode(encode_png(Picture(picture))).decode()
    return f"<img alt='' src='data:image/png;base64,{data}'>"


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _plain(value: Any) -> Any:
    """A value of dictionaries and numbers without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
