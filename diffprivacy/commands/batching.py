"""``--batch``: new faces for several inputs at once, while others are read and written.

Each input has a thread of its own and is worked on as without. Where it needs a new face it waits for others, until
enough have come or none can come any more; then one of the threads makes them all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..diffusion.model import DiffusionModel
from ..diffusion.sampling import Callback
from ..errors import DiffPrivacyError
from ..faces.detectors import Detector
from ..regeneration import Regeneration, regenerate_crops
from .inputs import is_video

PIXELS = 2**25
"""Of the images that are worked on at once; a larger one is worked on alone, as is a video."""

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Stopped(BaseException):
    """The run has ended before its inputs."""


@dataclass(eq=False)
class _Faces:
    """What :func:`..regeneration.regenerate_crops` takes, and the future of what it gives."""

    crops: Tensor
    landmarks: Tensor
    noise: Tensor
    how: Regeneration
    callback: Callback | None
    new: Future[Tensor] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Those alike may go through the network together; pseudo-words and personas are a face's own."""
        how = self.how
        own = id(how.words), id(how.noise_key)
        return how.preset, how.text, how.prompt, how.variants, how.keep, *own, self.crops.shape[1:]


class Batcher:
    """Makes faces that several threads bring, so many at once.

    network: held by whoever uses the network.
    """

    def __init__(self, size: int):
        self._size = size
        self.network = threading.RLock()
        self._changed = threading.Condition()
        self._waiting: list[_Faces] = []
        self._to_come = self._held_up = 0
        self._threads = 0
        self._busy = False
        self._stopped = False

    def begin(self, inputs: int, threads: int) -> None:
        """So many threads begin to work on so many inputs; each is told with :meth:`done`."""
        self._to_come, self._threads = inputs, threads

    def stop(self) -> None:
        """Let all threads end with Stopped, at the next step of sampling."""
        self._stopped = True

    def done(self) -> None:
        """An input is done."""
        with self._changed:
            self._to_come -= 1
            self._changed.notify_all()

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """While a thread waits for something else than new faces."""
        with self._changed:
            self._held_up += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held_up -= 1

    def regenerate(
        self,
        crops: Tensor,
        landmarks: Tensor,
        noise: Tensor,
        diffusion_model: DiffusionModel,
        how: Regeneration,
        callback: Callback | None = None,
    ) -> Tensor:
        """As :func:`..regeneration.regenerate_crops`; energies of faces of one kind are to be the same functions."""
        mine = _Faces(crops, landmarks, noise, how, callback)
        with self._changed:
            self._waiting.append(mine)
            self._changed.notify_all()
            while not mine.new.done():
                if self._busy or not self._is_due():
                    self._changed.wait()
                    continue
                faces = self._taken()
                self._busy = True
                self._changed.release()
                try:
                    self._make(faces, diffusion_model)
                finally:
                    self._changed.acquire()
                    self._busy = False
                    self._changed.notify_all()
        return mine.new.result()

    def _is_due(self) -> bool:
        """Whether there are enough faces, or no other thread can bring one now."""
        coming = min(self._threads, self._to_come) - self._held_up
        return len(self._waiting) >= max(1, min(self._size, coming))

    def _taken(self) -> list[_Faces]:
        """The first that waits, and those of its kind."""
        kind = self._waiting[0].kind
        taken = [faces for faces in self._waiting if faces.kind == kind][: self._size]
        self._waiting = [faces for faces in self._waiting if faces not in taken]
        return taken

    def _make(self, faces: Sequence[_Faces], diffusion_model: DiffusionModel) -> None:
        def count(step: dict[str, Any]) -> None:
            if self._stopped:
                raise Stopped
            for each in faces:
                if each.callback is not None:
                    each.callback(step)

        crops, landmarks, noise = (
            torch.cat([getattr(each, name) for each in faces]) for name in ("crops", "landmarks", "noise")
        )
        try:
            with self.network:
                new = regenerate_crops(crops, landmarks, noise, diffusion_model, faces[0].how, count)
        except (DiffPrivacyError, RuntimeError, MemoryError) as error:
            if len(faces) == 1:
                faces[0].new.set_exception(error)
                return
            for each in faces:  # What is wrong with one of them is not wrong with the others.
                self._make([each], diffusion_model)
        except BaseException as error:
            for each in faces:
                each.new.set_exception(error)
        else:
            for each, of_face in zip(faces, new.split([len(each.noise) for each in faces]), strict=True):
                each.new.set_result(of_face)


class OneAtATime:
    """A detector that several threads may ask."""

    def __init__(self, detector: Detector):
        self._detector = detector
        self._lock = threading.Lock()

    def detect(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            return self._detector.detect(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)


class _Room:
    """For the images that are worked on at once, first come, first served."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._changed = threading.Condition()
        self._queue: deque[Path] = deque()
        self._free = PIXELS

    @contextmanager
    def of(self, source: Path) -> Iterator[None]:
        pixels = min(_pixels(source), PIXELS)

        def is_next() -> bool:
            return self._queue[0] == source and self._free >= pixels

        with self._changed:
            self._queue.append(source)
            if not is_next():
                with self._batcher.held_up():
                    self._changed.wait_for(is_next)
            self._queue.popleft()
            self._free -= pixels
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


def _pixels(source: Path) -> int:
    from PIL import Image

    if is_video(source):
        return PIXELS
    try:
        with Image.open(source) as image:
            return image.width * image.height
    except Exception:  # whatever it is, it is said when the image is read
        return 0


def in_threads(
    inputs: Sequence[tuple[Path, Item]], work: Callable[[Path, Item], Outcome], batcher: Batcher, threads: int
) -> Iterator[Outcome]:
    """What comes of the inputs, in their order, each worked on in one of so many threads."""
    room = _Room(batcher)

    def do(source: Path, item: Item) -> Outcome:
        try:
            with room.of(source):
                return work(source, item)
        finally:
            batcher.done()

    batcher.begin(len(inputs), threads)
    with ThreadPoolExecutor(threads) as pool:
        futures = deque(pool.submit(do, *each) for each in inputs)
        try:
            while futures:
                yield futures.popleft().result()
        except BaseException:
            batcher.stop()
            pool.shutdown(cancel_futures=True)
            raise
