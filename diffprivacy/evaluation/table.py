"""The table of a report: one line for each version of the same faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .comparison import FaceComparison
from .intervals import Share
from .verdict import Verdict, found, verdict


def judges_of(versions: Mapping[str, Sequence[FaceComparison]]) -> list[str]:
    """The names of the judges of a report."""
    return list(next(iter(versions.values()))[0].original)


def table(versions: Mapping[str, Sequence[FaceComparison]], thresholds: Mapping[str, float]) -> str:
    """A Markdown table with one line for each version of the same faces.

    Of every judge: the mean cosine to the original and, beside it, to the other people's originals, which a stranger's
    equals; the share accepted as the same person (TAR) where it has a threshold; the shares whose nearest and whose
    farthest face among all originals is the same person's (re-identification rank-1 from both ends); and how surely two
    protections of one face are linked (AUC). "–" stands for what the faces or thresholds do not tell.
    """
    names = judges_of(versions)
    head = [
        "",
        *(f"{name}: cosine (others), TAR, nearest, farthest, link" for name in names),
        "found",
        "NME",
        "PSNR",
        "SSIM",
        "structure similarity",
    ]
    lines = [head, ["---"] * len(head)]
    for version, faces in versions.items():
        cells = [_cell(verdict(faces, name, thresholds.get(name))) for name in names]
        errors = [face.nme for face in faces if np.isfinite(face.nme)]
        cells.append(str(found(faces) or "–"))
        cells.append(f"{np.mean(errors):.3f}" if errors else "–")
        cells.append(f"{np.mean([face.psnr for face in faces]):.1f} dB")
        cells += [f"{np.mean([getattr(face, measure) for face in faces]):.3f}" for measure in ("ssim", "similarity")]
        lines.append([version, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval_table(versions: Mapping[str, Sequence[FaceComparison]], thresholds: Mapping[str, float]) -> str:
    """A Markdown table of the shares with their 95 % intervals over people, a line for each judge and version."""
    lines = [["", "judge", "accepted (TAR)", "nearest", "farthest", "linked"], ["---"] * 6]
    for judge in judges_of(versions):
        for version, faces in versions.items():
            of = verdict(faces, judge, thresholds.get(judge))
            shares = [_with_interval(share) for share in (of.tar, of.nearest, of.farthest, of.linked)]
            lines.append([version, judge, *shares])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_interval(share: Share | None) -> str:
    return "–" if share is None else f"{share} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _cell(of: Verdict) -> str:
    shares = [str(share or "–") for share in (of.tar, of.nearest, of.farthest)]
    return ", ".join([f"{of.cosine:.2f} ({_number(of.others)})", *shares, _number(of.link)])


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"
