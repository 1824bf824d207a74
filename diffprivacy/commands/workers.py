"""``--jobs``: inputs by several processes at once, with what each says in the order of the inputs.

The record of the output folder, its locks and the files that appear together serve processes of one run as they serve
runs beside each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..progress import say
from .batch import Batch, Outcome, StopBatch, reason
from .batching import Batcher, OneAtATime, in_threads
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


Inputs = Sequence[tuple[Path, Sequence[Path]]]
"""With the files that they become."""


class Worker:
    """Does one input after the other, or several at once where faces are batched, with what it loads for the first."""

    def __init__(self, one: One, request: ProtectRequest, manifest: Manifest, verbose: bool):
        if verbose:
            logging.getLogger(__name__.split(".")[0]).setLevel(logging.DEBUG)
        self._one, self._request, self._manifest = one, request, manifest
        self._loading = threading.Lock()
        self._loaded: Resources | None = None
        self._batcher = Batcher(request.batch) if request.batch > 1 else None

    def _use(self) -> Resources:
        with self._loading:
            if self._loaded is None:
                try:
                    self._loaded = load_resources(self._request)
                except Exception as error:
                    raise StopBatch(error) from error
                if (batcher := self._batcher) is not None:
                    self._loaded = dataclasses.replace(
                        self._loaded,
                        detector=OneAtATime(self._loaded.detector),
                        regenerate=batcher.regenerate,
                        network=batcher.network,
                    )
            return self._loaded

    def results(self, inputs: Inputs) -> Iterator[Result]:
        """What comes of the inputs, in their order; whatever is raised in one is part of its result."""
        if self._batcher is None:
            return itertools.starmap(self._result, inputs)
        return in_threads(inputs, self._result, self._batcher, 2 * self._request.batch)

    def _result(self, source: Path, files: Sequence[Path]) -> Result:
        try:
            return Result(self._one(source, files, self._request, self._manifest, self._use))
        except StopBatch as error:
            return Result(stops=error.args[0])
        except Exception as error:
            log.debug("%s", source, exc_info=True)
            return Result(why=reason(error))

    def do(self, inputs: Inputs) -> list[Result]:
        """The work on some inputs, in a process whose standard error nobody reads: the first result has what was said."""
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger(__package__).addHandler(handler)
        try:
            with contextlib.redirect_stderr(said):
                first, *others = self.results(inputs)
            return [dataclasses.replace(first, said=said.getvalue()), *others]
        finally:
            logging.getLogger(__package__).removeHandler(handler)


def chunks(batch: Batch, size: int, workers: int) -> list[Inputs]:
    """What is given to one of so many workers at once: one input, or as many as fill some batches of faces."""
    inputs = list(batch.targets.items())
    several = min(4 * size, -(-len(inputs) // workers)) if size > 1 else 1
    return [inputs[start : start + several] for start in range(0, len(inputs), several)]


def work_here(batch: Batch, one: One, request: ProtectRequest, manifest: Manifest) -> None:
    """Do all inputs in this process, in batches; raises StopBatch where none can be done."""
    results = Worker(one, request, manifest, verbose=False).results(list(batch.targets.items()))
    with contextlib.closing(results) if isinstance(results, Generator) else contextlib.nullcontext():
        for source, _ in batch.sources():
            with batch.input(source):
                report(batch, source, next(results))


def work(batch: Batch, jobs: int, one: One, request: ProtectRequest, manifest: Manifest) -> None:
    """Do all inputs of a batch in so many processes of one thread each; raises StopBatch where none can be done."""
    context = multiprocessing.get_context("spawn")
    with (
        environment(OMP_NUM_THREADS="1"),
        ProcessPoolExecutor(jobs, context, _begin, (one, request, manifest, is_verbose())) as pool,
    ):
        futures: dict[Path, Future[list[Result]]] = {}
        for chunk in chunks(batch, request.batch, jobs):
            future = pool.submit(_do, chunk)
            futures |= dict.fromkeys((source for source, _ in chunk), future)
        try:
            for source, _ in batch.sources():
                with batch.input(source):
                    report(batch, source, futures.pop(source).result().pop(0))
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
    torch.set_num_threads(1)
    _worker = Worker(one, request, manifest, verbose)


def _end_with_the_first() -> None:
    """A worker whose first process was killed would wait for its next input forever."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _do(inputs: Inputs) -> list[Result]:
    return _worker.do(inputs)
