"""Images a second against the number of processes and the size of batches, and how memory grows with the number of inputs.

    python -m benchmarks.throughput [--inputs 16] [--runs 1x1 2x1 2x4] [--before COMMIT]
    python -m benchmarks.throughput --full-size --inputs 1 --steps 2 --runs 1x1
    python -m benchmarks.throughput --parts 1 4 8
    python -m benchmarks.throughput --memory 300

A run is jobs x batch, on the embedded model and a processor. Starting a process counts: rates are of the whole command.
On a machine that does other things too compare images in a second of computing. --before: the first row is the command of
an earlier commit, one input after the other, by its defaults. --full-size: by seeded weights of Stable Diffusion 1.5's
size, 512 pixels a face. --parts: what a face costs in one step of
sampling, by the size of the batch. --memory: the largest memory of one process at that many inputs over that at 10.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffprivacy import demo
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.conditioning import stage_denoiser
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, crop_landmarks
from diffprivacy.identity.energies import latent_gradient
from diffprivacy.regeneration import anonymizing, latent_shape
from testing.checkpoints import write_full_size_folder
from testing.folders import FACE, photo

MEASURED = """
import json, resource, sys
from diffprivacy.cli import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), file=sys.stderr)
"""


COMPILED = str(Path(tempfile.gettempdir()) / "throughput-compiled")


@dataclass(frozen=True)
class Run:
    """seconds: of the clock; computing: of all processors together. peak: largest memory of the first process in kB."""

    seconds: float
    computing: float
    peak: int


def run(inputs: int, *options: object, version: Path = Path()) -> Run:
    """The command of a version's folder on so many photos. Its modules are compiled beforehand, as by an installation."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": COMPILED}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(inputs):
            photo(folder / "in" / f"{i}.png", bool(i % 2))
        command = ["anonymize", folder / "in", "-o", folder / "out", "--device", "cpu", *options]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, command)],
            capture_output=True,
            text=True,
            check=True,
            cwd=version,
            env=environment,
        )
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(done.stderr.splitlines()[-1])
        if found["code"] or len(list((folder / "out").glob("*.png"))) != inputs:
            raise SystemExit(done.stderr)
        computing = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return Run(seconds, computing, found["peak"])


def parts(sizes: list[int]) -> None:
    """Print milliseconds of computing, by one thread, for one face in one step."""
    torch.set_num_threads(1)
    model, guide = load_diffusion_model(), demo.load_recognizer("guide")
    picture = torch.from_numpy(FACE.copy()).float() / 255
    detector = load_detector(None)
    (face,) = detector.detect(picture)
    crop = crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]
    points = crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN)[None]
    energy_of, denoise = anonymizing(guide), stage_denoiser(model)
    print(f"an image: detection {1000 * computing(detector.detect, picture):.0f} ms")
    print("| batch | network | gradient of guidance | decoding |\n|---|---|---|---|")
    for size in sizes:
        x = torch.randn(size, *latent_shape(model, demo.IMAGE_SIZE), generator=torch.manual_seed(0))
        energy = energy_of(crop.expand(size, -1, -1, -1), points.expand(size, -1, -1), x)
        assert energy is not None
        gradient = latent_gradient(energy, model.differentiable_decoder())
        costs = [
            computing(denoise, x, torch.tensor(2.0)),
            computing(gradient, x, 5),
            computing(model.decode, x),
        ]
        print(f"| {size} | " + " | ".join(f"{1000 * cost / size:.0f} ms" for cost in costs) + " |", flush=True)


def computing(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of the processor, the least of three times."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work(*arguments)
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=16)
    parser.add_argument("--runs", nargs="+", default=["1x1", "2x1", "1x4", "2x4"], metavar="JOBSxBATCH")
    parser.add_argument("--steps", type=int, default=50, help="of the full schedule (default 50, as the command's)")
    parser.add_argument("--before", metavar="COMMIT", help="compare with the command of this commit")
    parser.add_argument("--full-size", action="store_true", help="by a model of Stable Diffusion 1.5's size")
    parser.add_argument("--memory", type=int, metavar="N", help="compare memory at 10 and at N inputs instead")
    parser.add_argument("--parts", type=int, nargs="+", metavar="BATCH", help="what a face costs in one step instead")
    options = parser.parse_args()
    if options.parts:
        parts(options.parts)
        return
    if options.memory:
        quick = ("--steps", 2, "--strength", 0.5, "--unguided", "--batch", 4)
        few, many = (run(inputs, *quick).peak for inputs in (10, options.memory))
        print(f"memory at {options.memory} inputs over that at 10: {many / few:.3f} ({many / 1e6:.2f} GB)")
        return
    print("| jobs | batch | images a second | images in a second of computing | cores busy |\n|---|---|---|---|---|")
    steps: tuple[object, ...] = ("--steps", options.steps)
    rows: list[tuple[str, str, Callable[[int], Run]]] = []
    with tempfile.TemporaryDirectory() as name:
        if options.full_size:
            checkpoint = write_full_size_folder(Path(name) / "full-size")
            steps += "--checkpoint", checkpoint
        if options.before:
            archive = subprocess.run(["git", "archive", options.before], capture_output=True, check=True).stdout
            subprocess.run(["tar", "x", "-C", name], input=archive, check=True)
            rows.append((options.before, "-", lambda inputs: run(inputs, *steps, version=Path(name))))
        for each in options.runs:
            jobs, batch = each.split("x")
            rows.append(
                (
                    jobs,
                    batch,
                    lambda inputs, jobs=jobs, batch=batch: run(inputs, *steps, "--jobs", jobs, "--batch", batch),
                )
            )
        table(rows, options.inputs)


def table(rows: Sequence[tuple[str, str, Callable[[int], Run]]], inputs: int) -> None:
    """Print what each row's command does, also as a multiple of the first's."""
    cores = len(os.sched_getaffinity(0))
    first: tuple[float, float] | None = None
    for jobs, batch, command in rows:
        command(1)  # what it loads is compiled, and in memory
        done = command(inputs)
        rate, computed = inputs / done.seconds, inputs / done.computing
        first = first or (rate, computed)
        busy = f"{100 * done.computing / done.seconds / cores:.0f} %"
        print(
            f"| {jobs} | {batch} | {rate:.2g} ({rate / first[0]:.2f} times) | {computed:.2g} ({computed / first[1]:.2f} times) "
            f"| {busy} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
