"""Many inputs, one after the other: an error ends one input, never the run, and the end says what became of each."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ..errors import DiffPrivacyError
from .inputs import Plan
from .options import option_at_fault

log = logging.getLogger(__name__)


class StopBatch(Exception):
    """Something that no input can do without has failed, for the reason in its cause."""


class Batch:
    """What became of the inputs of a command. verb: of what is done, such as "protected"."""

    def __init__(self, verb: str, found: Plan):
        self.verb = verb
        self.done = 0
        self.already = 0
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

    def finished(self, said: Sequence[str]) -> None:
        """An input is done, of which this is to be said."""
        self.done += 1
        for line in said:
            print(line)

    def fail(self, source: Path, why: str) -> None:
        """Say at once that an input has failed."""
        self.failed[source] = why
        print(f"error: {_about(source, why)}", file=sys.stderr)

    def finish(self) -> int:
        """Print the summary where there is more to say than was said; returns the exit code."""
        if self.already:
            print(f"{self.already} already done (--overwrite does them again)")
        if self.done + self.already + len(self.failed) + len(self.skipped) > 1:
            counts = {self.verb: self.done, "skipped": len(self.skipped), "failed": len(self.failed)}
            print(", ".join(f"{count} {what}" for what, count in counts.items() if count or what == self.verb))
            for what, each in (("skipped", self.skipped), ("failed", self.failed)):
                for source, why in each.items():
                    print(f"  {what}: {_about(source, why)}")
        return 1 if self.failed else 0


def reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, DiffPrivacyError):
        return option_at_fault(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error).lower():
        return "memory ran out; a smaller image, a smaller --size or fewer --variants take less."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the file'}: {error.strerror}."
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, RuntimeError) and "CUDA error" in first:
        return f"the device failed ({first[:200]}); what follows may fail too: start the command again for it."
    return f"unexpected {type(error).__name__}: {first[:200]} (-v shows where)"


def _give_back() -> None:
    """Free what the failed input left on the device; after an error of the device itself that fails too."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def _about(source: Path, why: str) -> str:
    """The reason, with the input's name unless it stands there already."""
    return why if str(source) in why else f"{source}: {why}"
