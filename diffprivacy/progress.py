"""Progress on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from .diffusion.sampling import Callback

Item = TypeVar("Item")


def begin_bars() -> None:
    """Give the bars of a command a lock of their own.

    tqdm's is one for the process, and stays taken where a command is interrupted while it draws a bar.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def progress_bar(name: str, total: int | None = None, unit: str = "step", leave: bool = False, initial: int = 0) -> Any:
    """A bar of tqdm with the time left, shown on terminals only. total: None if it is not known.

    leave: the bar stays when it is done. initial: what is done already.
    """
    from tqdm import tqdm

    return tqdm(desc=name, total=total, unit=unit, leave=leave, initial=initial, disable=None)


def say(line: str, stream: TextIO) -> None:
    """Print a line above the bars that are shown."""
    from tqdm import tqdm

    tqdm.write(line, file=stream)


def progress_over(items: Sequence[Item], name: str, unit: str) -> Iterable[Item]:
    """The items one by one, with a progress bar that stays."""
    with progress_bar(name, len(items), unit, leave=True) as bar:
        for item in items:
            yield item
            bar.update(1)


@contextmanager
def sampling_progress(name: str, leave: bool = False) -> Iterator[Callback]:
    """A progress bar of sampling, as the callback that moves it."""
    with progress_bar(name, leave=leave) as bar:

        def report(step: dict[str, Any]) -> None:
            bar.total = step["steps"]
            bar.update(1)

        yield report
