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
class _Result:
    """What a worker hands back. why: the input failed. stops: so would all others. said: on the standard error."""

    outcome: Outcome | None = None
    why: str | None = None
    stops: Exception | None = None
    said: str = ""


def work(batch: Batch, jobs: int, one: One, request: ProtectRequest, manifest: Manifest) -> None:
    """Do all inputs of a batch in so many processes of one thread each; raises StopBatch where none can be done."""
    context = multiprocessing.get_context("spawn")
    verbose = logging.getLogger(__package__).isEnabledFor(logging.INFO)
    with (
        _one_thread_each(),
        ProcessPoolExecutor(jobs, context, _begin, (one, request, manifest, verbose)) as pool,
    ):
        results: dict[Path, Future[_Result]] = {
            source: pool.submit(_do, source, files) for source, files in batch.targets.items()
        }
        try:
            for source, _ in batch.sources():
                with batch.input(source):
                    _report(batch, source, results.pop(source).result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _report(batch: Batch, source: Path, result: _Result) -> None:
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


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """For libraries that ask the environment when they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


_task: tuple[One, ProtectRequest, Manifest]
"""Of a worker."""


def _begin(one: One, request: ProtectRequest, manifest: Manifest, verbose: bool) -> None:
    global _task
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    torch.set_num_threads(1)
    _task = one, request, manifest
    if verbose:
        logging.getLogger(__name__.split(".")[0]).setLevel(logging.DEBUG)


def _end_with_the_first() -> None:
    """A worker whose first process was killed would wait for its next input forever."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


@cache
def _resources() -> Resources:
    _, request, _ = _task
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the first process has said it
            return load_resources(request)
    except Exception as error:
        raise StopBatch(error) from error


def _do(source: Path, files: Sequence[Path]) -> _Result:
    one, request, manifest = _task
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger(__package__).addHandler(handler)
    with contextlib.redirect_stderr(said):
        try:
            return _Result(one(source, files, request, manifest, _resources), said=said.getvalue())
        except StopBatch as error:
            return _Result(stops=error.args[0], said=said.getvalue())
        except Exception as error:
            log.debug("%s", source, exc_info=True)
            return _Result(why=reason(error), said=said.getvalue())
        finally:
            logging.getLogger(__package__).removeHandler(handler)
