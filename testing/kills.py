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
            self._wait(process, lambda: any(once.glob(f"{atomic.PREFIX}*")))
            begin = time.monotonic()
            assert process.wait() == 0
        self.seconds = time.monotonic() - begin
        self._expected = {file.name: content(file) for file in once.glob("[!.]*")}

    def kill(self, moment: float, worker: bool) -> bool:
        """Whether the run was killed so many seconds after its work began, or had ended by then."""
        with self._begun(self.out) as process:
            self._wait(process, lambda: any(self.out.glob(f"{atomic.PREFIX}*")))
            begin = time.monotonic()
            self._wait(process, lambda: time.monotonic() - begin > moment)
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                workers = [each for each in family if any(word in " ".join(each.cmdline()) for word in WORKERS)]
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

    def check(self) -> None:
        """What bears a final name is whole."""
        for file in self.out.glob("[!.]*"):
            assert content(file) == self._expected[file.name], f"{file} is not what it is to be"
            self.seen += 1

    def _begun(self, out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
        while process.poll() is None and not until():
            self.check()
            time.sleep(PAUSE)


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
            moment, worker = random.uniform(0, runs.seconds), bool(done % 2)
            if runs.kill(moment, worker):
                done += 1
                kept = len(list(runs.out.glob("[!.]*")))
                whom = "a worker" if worker else "the command"
                print(f"{done}: {whom} killed after {moment:.1f} s of work; {kept} files are there", flush=True)
            if worker:
                runs.finish()
                for file in runs.out.iterdir():
                    file.unlink()
        runs.finish()
        print(f"{done} kills; final files were looked at {runs.seen} times, and were those of an uninterrupted run")


if __name__ == "__main__":
    main()
