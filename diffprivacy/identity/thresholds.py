"""From which cosine on two faces are one person's: thresholds measured on clean pairs and kept beside a recognizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiffPrivacyError
from .strangers import ASSUMED, Strangers, check_number
from .verification import Scores, operating_point

if TYPE_CHECKING:
    from .recognizers import FaceMatcher

FAR = 1e-3
"""The false accept rate of the thresholds in use."""
SAME_PERSON = 0.35
"""The threshold of recognizers for which none was measured."""


@dataclass(frozen=True)
class Threshold:
    """The cosine at which a recognizer accepts two faces as one person, measured on clean pairs.

    far is the false accept rate asked for, tar the share of same-person pairs accepted; source names the pairs.
    """

    far: float
    cosine: float
    tar: float
    same_pairs: int
    different_pairs: int
    source: str

    def __post_init__(self) -> None:
        for name, lowest in (("far", 0), ("cosine", -1), ("tar", 0)):
            check_number(name, getattr(self, name), lowest)


def person_threshold(recognizer: FaceMatcher) -> float:
    """Cosine from which the recognizer takes two faces for one person: measured at FAR, or else SAME_PERSON."""
    return kept_thresholds({"": recognizer}).get("", SAME_PERSON)


def kept_thresholds(judges: Mapping[str, FaceMatcher], far: float = FAR) -> dict[str, float]:
    """The thresholds at a false accept rate that are kept beside the judges, of those that have one."""
    return {name: kept.cosine for name, judge in judges.items() for kept in judge.thresholds if kept.far == far}


def thresholds_path(model_path: str | Path) -> Path:
    """Where a model's thresholds are kept: w600k_r50.onnx has w600k_r50.thresholds.json beside it."""
    return Path(model_path).with_suffix(".thresholds.json")


def read_thresholds(model_path: str | Path) -> tuple[Threshold, ...]:
    """The thresholds kept beside a model; none when the file does not exist.

    Raises DiffPrivacyError when the file is not as write_threshold left it, or was measured on another model.
    """
    return _kept(model_path)[0]


def read_strangers(model_path: str | Path) -> Strangers:
    """What the model sees in two different people, as kept beside it, or else as assumed; raises as read_thresholds."""
    return _kept(model_path)[1] or ASSUMED


def _kept(model_path: str | Path) -> tuple[tuple[Threshold, ...], Strangers | None]:
    path = thresholds_path(model_path)
    if not path.is_file():
        return (), None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest, thresholds = content["sha256"], tuple(Threshold(**entry) for entry in content["thresholds"])
        strangers = Strangers(**content["strangers"]) if "strangers" in content else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DiffPrivacyError(f"{path} is no file of thresholds ({error!r}); delete it and measure again.") from error
    if digest != _sha256(model_path):
        raise DiffPrivacyError(f"The thresholds in {path} were measured on another model; delete it and measure again.")
    return thresholds, strangers


def write_threshold(model_path: str | Path, same: Scores, different: Scores, far: float, source: str) -> Threshold:
    """Measure the threshold at a false accept rate on clean pairs' cosines and keep it beside the model.

    What the model sees in two different people is kept with it.
    same, different: cosines of pairs of one person and of two; source says which photos, aligned and embedded how.
    Raises DiffPrivacyError when the different pairs are too few for this rate.
    """
    point = operating_point(same, different, far)
    measured = Threshold(far, point.threshold, point.tar, len(same), len(different), source)
    kept = [threshold for threshold in read_thresholds(model_path) if threshold.far != far]
    content = {
        "sha256": _sha256(model_path),
        "thresholds": [asdict(threshold) for threshold in [*kept, measured]],
        "strangers": asdict(Strangers.of(different, source)),
    }
    thresholds_path(model_path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return measured


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
