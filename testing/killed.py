"""The command line in processes of their own, killed as by ``kill -9`` at a chosen moment; and modules, run to their end.

The processes are forked from one that has loaded the models.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.commands import model
from diffprivacy.media.atomic import Together
from testing.dying import die_at

# CUDA that was asked whether it is there cannot be used in a fork; NVIDIA's management library can be asked, too.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
NEVER = 10**9

_loaded = [
    (place, name, functools.cache(getattr(place, name)))
    for place, name in ((model, "load_demo_model"), (demo, "load_recognizer"))
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


class Run:
    """A command line that works on a folder, begun at once.

    moment: at which it dies. before: it dies where the file of this name is written and not yet in its place.
    """

    peak = 0
    """Bytes that were resident at most, known once it has finished."""

    def __init__(self, folder: Path, *arguments: object, moment: int = NEVER, before: str = ""):
        self._log = folder.with_name(f"{folder.name}-{os.urandom(4).hex()}.log")
        texts = [str(argument) for argument in arguments]
        self._process = _context.Process(target=_run, args=(str(folder), moment, before, texts, str(self._log)))
        self._process.start()

    def finish(self) -> tuple[int, str, int]:
        """The exit code, what was printed, and how many moments there were (0 for a run that was killed)."""
        self._process.join()
        printed, _, counts = self._log.read_text().partition("\0")
        seen, peak = map(int, counts.split() or (0, 0))
        assert "Traceback" not in printed, printed
        assert self._process.exitcode is not None
        self.peak = peak
        return self._process.exitcode, printed, seen


def run_module(name: str, log: Path, *arguments: object) -> str:
    """What a module prints, run as by ``python -m``; where it fails, that is the error."""
    texts = [str(argument) for argument in arguments]
    process = _context.Process(target=_run_module, args=(name, texts, str(log)))
    process.start()
    process.join()
    printed = log.read_text()
    assert process.exitcode == 0, printed[-3000:]
    return printed


def _run_module(name: str, arguments: list[str], log: str) -> None:
    torch.set_num_threads(1)
    sys.argv = [name, *arguments]
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except BaseException:
            traceback.print_exc()
            raise


def _run(folder: str, moment: int, before: str, arguments: list[str], log: str) -> None:
    torch.set_num_threads(1)
    commit = Together.commit

    def commit_or_die(files: Together) -> None:
        if any(path.name == before for path in files.files):
            os.kill(os.getpid(), signal.SIGKILL)
        commit(files)

    Together.commit = commit_or_die
    for place, name, load in _loaded:
        setattr(place, name, load)
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        seen = die_at(folder, moment)
        code = main(arguments)
        file.write(f"\0{seen()} {_peak()}")
    sys.exit(code)


def _peak() -> int:
    """Of this process since it was forked, where there is /proc."""
    status = Path("/proc/self/status")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 if status.exists() else 0


_loaded[0][2]()
_loaded[1][2]("guide")
