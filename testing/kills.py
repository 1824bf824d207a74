"""Kill -9 at random moments, again and again: a run over a folder or a film, by two processes or a Ray cluster.

    python -m testing.kills [--engine ray] [--film] [--times 10]

The command and one of its workers are killed in turn, at random moments of their work, and the command is given again.
All the while what bears a final name has to be what an uninterrupted run makes, and in the end nothing else may be there.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from diffprivacy.media import atomic

from .folders import FACE, photo
from .videos import pixels, write_source

WORKERS = ("RemoteWorker", "spawn_main")
"""What command lines of workers hold: Ray's, and those of --jobs."""
PAUSE = 0.05


class Kills:
    """A command line, given with one output folder after the other. seen: how often a final file was looked at."""

    def __init__(self, folder: Path, source: Path, options: list[str]):
        quick = ["--seed", "1", "--steps", "2", "--strength", "0.5", "--unguided"]
        self._command = [sys.executable, "-m", "diffprivacy", "anonymize", str(source), *quick, *options, "-o"]
        self.out = folder / "out"
        self.seen = 0
        self._expected: dict[str, bytes] = {}
        once = folder / "once"
        with self._begun(once) as process:
            while not any(once.glob(f"{atomic.PREFIX}*")):
                time.sleep(PAUSE)
            begin = time.monotonic()
            assert process.wait() == 0
        self.seconds = time.monotonic() - begin
        self._expected = {file.name: content(file) for file in once.glob("[!.]*")}
        self.files = len(self._expected)

    def kill(self, worker: bool) -> bool:
        """Whether the run was killed, or had ended by then; it is killed so long after one of its files appeared, or its work
        began, as the next may take."""
        with self._begun(self.out) as process:
            after = random.randrange(self.files)
            self._wait(process, lambda: any(self.out.glob(f"{atomic.PREFIX}*")) and len(self.there()) >= after)
            end = time.monotonic() + random.uniform(0, self.seconds if self.files == 1 else 1)
            self._wait(process, lambda: time.monotonic() > end)
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                workers = [each for each in family if is_worker(each)]
                if worker and workers:
                    random.choice(workers).kill()
                    self._wait(process, lambda: False)
                else:
                    process.kill()
                    process.wait()
                    _, alive = psutil.wait_procs(family, timeout=300)
                    assert not alive, f"these have outlived the command: {alive}"
                self.check()
                return True
        return False

    def finish(self) -> None:
        """One more run, which has to end with the files of the uninterrupted one and nothing else."""
        with self._begun(self.out) as process:
            assert process.wait() == 0
        self.check()
        names = {file.name for file in self.out.iterdir()}
        assert names == {*self._expected, ".diffprivacy.json"}, names

    def begin_anew(self) -> None:
        """Finish, and remove what was made."""
        self.finish()
        for file in self.out.iterdir():
            file.unlink()

    def there(self) -> list[Path]:
        """What bears a final name."""
        return list(self.out.glob("[!.]*"))

    def check(self) -> None:
        """What bears a final name is whole."""
        for file in self.there():
            assert content(file) == self._expected[file.name], f"{file} is not what it is to be"
            self.seen += 1

    def _begun(self, out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
        while process.poll() is None and not until():
            self.check()
            time.sleep(PAUSE)


def is_worker(process: psutil.Process) -> bool:
    """Not one that has ended in the meantime."""
    try:
        return any(word in " ".join(process.cmdline()) for word in WORKERS)
    except psutil.NoSuchProcess:
        return False


def content(file: Path) -> bytes:
    """Of a film what its frames show."""
    return b"".join(frame.tobytes() for frame in pixels(file)) if file.suffix == ".mp4" else file.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--film", action="store_true")
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        folder = Path(name)
        if options.film:
            source = write_source(folder / "film.mp4", [np.roll(FACE, i, axis=1) for i in range(24)])
        else:
            source = folder / "in"
            for i in range(8):
                photo(source / f"{i}.png", bool(i % 2))
        runs = Kills(folder, source, ["--engine", options.engine, "--jobs", "2"])
        done = 0
        while done < options.times:
            worker = bool(done % 2)
            if runs.kill(worker):
                done += 1
                whom = "a worker" if worker else "the command"
                print(f"{done}: {whom} killed; {len(runs.there())} files are there", flush=True)
            if worker or len(runs.there()) == runs.files:
                runs.begin_anew()
        runs.finish()
        print(f"{done} kills; final files were looked at {runs.seen} times, and were those of an uninterrupted run")


if __name__ == "__main__":
    main()
