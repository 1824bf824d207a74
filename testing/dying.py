"""Processes that die as by ``kill -9`` at a chosen moment of their work.

Moments are counted by what happens to files in a folder: before one is opened, renamed or removed. In between, nothing
that outlives the process changes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


def die_at(folder: str, moment: int) -> Callable[[], int]:
    """From now on count moments in a folder, and die at this one; returns what tells how many there were."""
    seen = 0

    def count(event: str, values: tuple[object, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(values[0]).startswith(folder):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    return lambda: seen


def plan_deaths(output: Path, moments: dict[str, list[int]]) -> None:
    """Of the workers that are given inputs of these names by :func:`dying`, one after the other."""
    folder = output.with_name(f"{output.name}-deaths")
    folder.mkdir()
    for name, of_input in moments.items():
        for moment in of_input:
            (folder / f"{name}.{moment}").touch()


def dying(source: Path, files: Any, request: Any, manifest: Any, use: Any) -> Any:
    """``protect_input`` by a worker that dies at a moment that was planned and has not been."""
    from diffprivacy.commands.protect import protect_input

    for death in request.output.with_name(f"{request.output.name}-deaths").glob(f"{source.name}.*"):
        death.unlink()
        die_at(str(request.output), int(death.suffix[1:]))
        break
    return protect_input(source, files, request, manifest, use)
