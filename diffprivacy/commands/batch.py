"""Many inputs, one after the other: an error ends one input, never the run, and the end says what became of each.

For people in lines of text, or with ``--json`` for programs: on the standard output a JSON object for each input, then
one with the key "summary".
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import DiffPrivacyError
from ..faces.geometry import Face
from ..progress import progress_bar, say
from .inputs import Plan
from .options import option_at_fault

log = logging.getLogger(__name__)


NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
"""What errors of no type of their own say when there is no memory left."""


class StopBatch(Exception):
    """Something that no input can do without has failed, for the reason in its cause."""


@dataclass
class Outcome:
    """A finished input. said: of it, in words.

    covered: numbers of the faces that could only be covered, in videos of people. which: the same in words. details:
    more, for programs. decided: of an image the faces that were not made new, by what was decided for them.
    """

    said: Sequence[str]
    covered: Sequence[int] = ()
    which: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    decided: Mapping[str, Sequence[Face]] = field(default_factory=dict)


class Batch:
    """What became of the inputs of a command. verb: of what is done, such as "protected"."""

    def __init__(self, verb: str, found: Plan, as_json: bool = False):
        self.verb = verb
        self.as_json = as_json
        self.faces_covered = 0
        self.targets = found.targets
        self.done = 0
        self.already = 0
        self.covered: dict[Path, str] = {}
        self.failed: dict[Path, str] = {}
        self.skipped = found.skipped
        for source, why in found.refused.items():
            self.fail(source, why)

    @contextmanager
    def input(self, source: Path) -> Iterator[None]:
        """The work on one input: whatever is raised in it becomes one line, and the input has failed."""
        try:
            yield
        except StopBatch:
            raise
        except Exception as error:
            log.debug("%s", source, exc_info=True)
            self.fail(source, reason(error))
            if torch.cuda.is_available():
                _give_back()

    def sources(self) -> Iterator[tuple[Path, list[Path]]]:
        """The inputs and the files that they become, with a progress bar over them where there are several."""
        if len(self.targets) < 2:
            yield from self.targets.items()
            return
        with progress_bar("all", len(self.targets), "file") as bar:
            for item in self.targets.items():
                yield item
                bar.update(1)

    def finished(self, source: Path, outcome: Outcome) -> None:
        """An input is done."""
        self.done += 1
        said = list(outcome.said)
        if outcome.covered:
            self.faces_covered += len(outcome.covered)
            self.covered[source] = outcome.which
            said.append(f"  covered: {outcome.which}")
        files = [str(file) for file in self.targets[source]]
        self._tell(source, self.verb, said, outputs=files, covered=list(outcome.covered), **outcome.details)

    def is_done_already(self, source: Path) -> None:
        """An input was done by an earlier run."""
        self.already += 1
        self._tell(source, "already done", outputs=[str(file) for file in self.targets[source]])

    def fail(self, source: Path, why: str) -> None:
        """Say at once that an input has failed."""
        self.failed[source] = why
        say(f"error: {_about(source, why)}", sys.stderr)
        self._tell(source, "failed", reason=why)

    def _tell(self, source: Path, status: str, said: Sequence[str] = (), **details: Any) -> None:
        """In words, or for programs."""
        if self.as_json:
            said = [json.dumps({"input": str(source), "status": status, **details})]
        for line in said:
            say(line, sys.stdout)

    def finish(self) -> int:
        """Print the summary where there is more to say than was said; returns the exit code."""
        if self.as_json:
            self._finish_for_programs()
            return 1 if self.failed else 0
        if self.faces_covered:
            print(f"{self.faces_covered} {'face' if self.faces_covered == 1 else 'faces'} covered, not made new")
        if self.already:
            print(f"{self.already} already done (--overwrite does them again)")
        if self.done + self.already + len(self.failed) + len(self.skipped) > 1:
            counts = {
                self.verb: self.done,
                "with covered faces": len(self.covered),
                "skipped": len(self.skipped),
                "failed": len(self.failed),
            }
            print(", ".join(f"{count} {what}" for what, count in counts.items() if count or what == self.verb))
            for what, each in (("covered", self.covered), ("skipped", self.skipped), ("failed", self.failed)):
                for source, why in each.items():
                    print(f"  {what}: {_about(source, why)}")
        return 1 if self.failed else 0

    def _finish_for_programs(self) -> None:
        for source, why in self.skipped.items():
            self._tell(source, "skipped", reason=why)
        counts = {self.verb: self.done, "already done": self.already, "faces covered": self.faces_covered}
        print(json.dumps({"summary": counts | {"skipped": len(self.skipped), "failed": len(self.failed)}}))


def reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, DiffPrivacyError):
        return option_at_fault(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing: run pip install {error.name}"
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in NO_MEMORY):
        return "memory ran out; a smaller image, a smaller --size or fewer --variants take less."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the file'}: {error.strerror}."
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, RuntimeError) and ("CUDA error" in first or "HIP error" in first):
        return f"the device failed ({first[:200]}); what follows may fail too: start the command again for it."
    return f"unexpected {type(error).__name__}: {first[:200]} (-v shows where)"


def _give_back() -> None:
    """Free what the failed input left on the device; after an error of the device itself that fails too."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def _about(source: Path, why: str) -> str:
    """The reason, with the input's name unless it stands there already."""
    return why if str(source) in why else f"{source}: {why}"
