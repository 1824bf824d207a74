"""The progress of sampling on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .diffusion.sampling import Callback


@contextmanager
def sampling_progress(name: str, leave: bool = False) -> Iterator[Callback]:
    """A progress bar, as the callback that moves it; shown on terminals only. leave: it stays when it is done."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="step", disable=None, leave=leave) as bar:

        def report(step: dict[str, Any]) -> None:
            bar.total = step["steps"]
            bar.update(1)

        yield report
