"""``--engine ray``: inputs by workers on the machines of a Ray cluster, which share their folders.

Each worker is an actor with a model of its own, and a graphics card where there are any. It does what a process of
``--jobs`` does, so that outputs are the same. An input whose worker dies is given to another one; files appear complete or
not at all, so that nothing is lost by beginning it again. Ray Data would move the content of files through its object
store, and says nothing of single failed inputs: plain actors are less.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import DiffPrivacyError
from .batch import Batch, StopBatch
from .manifest import Manifest
from .requests import ProtectRequest
from .workers import Inputs, One, Result, Worker, chunks, environment, is_verbose, report

ATTEMPTS = 3
"""Workers that may die over one input."""
NONE = -1
"""In place of the number of inputs that a worker has been given."""
FOLDER = "diffprivacy-ray"
"""How names of folders for local clusters begin."""
OLD = 3600
"""Seconds after which nobody writes any more into the folder of a cluster that was killed."""
OBJECT_STORE = 2**27
"""Bytes of a local cluster's object store: nothing but paths and results goes through it."""

TOKEN = secrets.token_hex(32)
"""Of this process's local cluster."""


def work(batch: Batch, one: One, request: ProtectRequest, manifest: Manifest) -> None:
    """Do all inputs of a batch on the cluster; raises StopBatch where none can be done."""
    with _cluster(request) as ray:
        cards, cores = (int(ray.cluster_resources().get(what, 0)) for what in ("GPU", "CPU"))
        if request.model.device == "cpu":
            cards = 0
        actor = ray.remote(num_cpus=1, num_gpus=1 if cards else 0)(RemoteWorker)
        task = ray.put((one, request, manifest, is_verbose(), os.getcwd()))
        count = min(request.jobs or cards or cores, cards or cores)
        some = chunks(batch, request.batch, count)
        finished = _finished(ray, lambda: actor.remote(task), min(count, len(some)), some)
        results: dict[Path, Result] = {}
        for source, _ in batch.sources():
            with batch.input(source):
                while source not in results:
                    chunk, done = next(finished)
                    results |= zip((source for source, _ in chunk), done, strict=True)
                report(batch, source, results.pop(source))


class RemoteWorker:
    """A worker in the folder from which the command was given."""

    def __init__(self, task: tuple[One, ProtectRequest, Manifest, bool, str]):
        one, request, manifest, verbose, folder = task
        os.chdir(folder)
        torch.set_num_threads(1)
        self._worker = Worker(one, request, manifest, verbose)

    def ready(self) -> None:
        """Return once the worker is there."""

    def do(self, inputs: Inputs) -> list[Result]:
        return self._worker.do(inputs)


def check_ray() -> None:
    """Raises DiffPrivacyError where the package is missing."""
    if importlib.util.find_spec("ray") is None:
        raise DiffPrivacyError("--engine ray needs the package ray: run pip install 'ray>=2.52'.")


def _finished(
    ray: Any, new_worker: Callable[[], Any], count: int, some: Sequence[Inputs]
) -> Iterator[tuple[Inputs, list[Result]]]:
    """The inputs with their results, as soon as they are done.

    A worker is given its first inputs once it is there, so that nothing waits for one that the cluster has no room for.
    """
    waiting = deque(range(len(some)))
    deaths: Counter[int] = Counter()
    running: dict[Any, tuple[Any, int]] = {}

    def begin() -> None:
        worker = new_worker()
        running[worker.ready.remote()] = worker, NONE

    for _ in range(count):
        begin()
    while running:
        (task, *_), _ = ray.wait(list(running))
        worker, at = running.pop(task)
        try:
            done = ray.get(task)
        except ray.exceptions.RayActorError as error:
            deaths[at] += 1
            begin()
            if deaths[at] < ATTEMPTS:
                waiting.extendleft([at] if at != NONE else [])
                continue
            died = f"{ATTEMPTS} workers of the cluster have died"
            if at == NONE:
                raise StopBatch(DiffPrivacyError(f"{died} before their first input: {error}")) from error
            yield some[at], [Result(why=f"{died} over it, perhaps as memory ran out.")] * len(some[at])
            continue
        if at == NONE:
            deaths[NONE] = 0
        else:
            yield some[at], done
        if waiting:
            following = waiting.popleft()
            running[worker.do.remote(some[following])] = worker, following


@contextlib.contextmanager
def _cluster(request: ProtectRequest) -> Iterator[Any]:
    """Ray, connected to the cluster at ``RAY_ADDRESS``, else to one of this machine alone that ends with the command.

    The latter reports nothing to anybody, has no dashboard, and takes work from nobody who has not its token. It ends,
    and its folder with it, also when the command is terminated; what a killed one left is swept by the next.
    """
    from filelock import FileLock

    address = os.environ.get("RAY_ADDRESS")
    variables = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if not address:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_worker_niceness": "0"}
    sweep()
    with environment(**variables), tempfile.TemporaryDirectory(prefix=FOLDER) as folder, FileLock(f"{folder}/lock"):
        import ray  # It looks at the variables when it is imported.

        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                ray.init(address, **quiet)
            else:
                own = {"num_cpus": request.jobs, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
                ray.init("local", _temp_dir=folder, **own, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {address} (RAY_ADDRESS)" if address else "on this machine"
            raise DiffPrivacyError(f"There is no Ray cluster {where}: {error}") from error
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own aborts
        try:
            yield ray
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def sweep() -> None:
    """Remove the folders of local clusters whose commands were killed.

    Ray's last processes may write into one that is removed already; it then has no lock, and goes when it is old.
    """
    from filelock import FileLock

    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(TimeoutError, OSError):
            lock = folder / "lock"
            if lock.exists():
                with FileLock(lock, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
            elif time.time() - folder.stat().st_mtime > OLD:
                shutil.rmtree(folder, ignore_errors=True)
