"""``--jobs``: inputs by several processes at once, with what each says in the order of the inputs.

The record of the output folder, its locks and the files that appear together serve processes of one run as they serve
runs beside each other.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ..progress import say
from .batch import Batch, Outcome, StopBatch, reason
from .manifest import Manifest
from .requests import ProtectRequest
from .resources import Resources, load_resources

log = logging.getLogger(__name__)

One = Callable[[Path, Sequence[Path], ProtectRequest, Manifest, Callable[[], Resources]], Outcome | None]
"""``one(source, files, request, manifest, use)``: the work on one input; None if it was done already."""


@dataclass(frozen=True)
class Result:
    """What a worker hands back. why: the input failed. stops: so would all others. said: on the standard error."""

    outcome: Outcome | None = None
    why: str | None = None
    stops: Exception | None = None
    said: str = ""


class Worker:
    """Does one input after the other, by one thread, with what it loads for the first."""

    def __init__(self, one: One, request: ProtectRequest, manifest: Manifest, verbose: bool):
        torch.set_num_threads(1)
        if verbose:
            logging.getLogger(__name__.split(".")[0]).setLevel(logging.DEBUG)
        self._one, self._request, self._manifest = one, request, manifest
        self._resources = cache(self._load)

    def _load(self) -> Resources:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the first process has said it
                return load_resources(self._request)
        except Exception as error:
            raise StopBatch(error) from error

    def do(self, source: Path, files: Sequence[Path]) -> Result:
        """The work on one input; whatever is raised in it is part of the result."""
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger(__package__).addHandler(handler)
        with contextlib.redirect_stderr(said):
            try:
                outcome = self._one(source, files, self._request, self._manifest, self._resources)
                return Result(outcome, said=said.getvalue())
            except StopBatch as error:
                return Result(stops=error.args[0], said=said.getvalue())
            except Exception as error:
                log.debug("%s", source, exc_info=True)
                return Result(why=reason(error), said=said.getvalue())
            finally:
                logging.getLogger(__package__).removeHandler(handler)


def work(batch: Batch, jobs: int, one: One, request: ProtectRequest, manifest: Manifest) -> None:
    """Do all inputs of a batch in so many processes of one thread each; raises StopBatch where none can be done."""
    context = multiprocessing.get_context("spawn")
    with (
        environment(OMP_NUM_THREADS="1"),
        ProcessPoolExecutor(jobs, context, _begin, (one, request, manifest, is_verbose())) as pool,
    ):
        results: dict[Path, Future[Result]] = {
            source: pool.submit(_do, source, files) for source, files in batch.targets.items()
        }
        try:
            for source, _ in batch.sources():
                with batch.input(source):
                    report(batch, source, results.pop(source).result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def report(batch: Batch, source: Path, result: Result) -> None:
    """Say what became of an input; raises StopBatch for a result that stops all."""
    if result.said:
        say(result.said.rstrip("\n"), sys.stderr)
    if result.stops is not None:
        raise StopBatch(result.stops)
    if result.why is not None:
        batch.fail(source, result.why)
    elif result.outcome is None:
        batch.is_done_already(source)
    else:
        batch.finished(source, result.outcome)


def is_verbose() -> bool:
    """Whether workers are to log."""
    return logging.getLogger(__package__).isEnabledFor(logging.INFO)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables for processes that begin meanwhile, and for libraries that look at them when they are loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_worker: Worker
"""Of a process of the pool."""


def _begin(one: One, request: ProtectRequest, manifest: Manifest, verbose: bool) -> None:
    global _worker
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    _worker = Worker(one, request, manifest, verbose)


def _end_with_the_first() -> None:
    """A worker whose first process was killed would wait for its next input forever."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _do(source: Path, files: Sequence[Path]) -> Result:
    return _worker.do(source, files)
