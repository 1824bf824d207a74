"""Images a second against the number of processes, and how memory grows with the number of inputs.

    python -m benchmarks.throughput [--inputs 12] [--jobs 1 2]

On the embedded model. Starting a process counts: the first table's rates are of the whole command. The second compares
the largest memory of one process at 10 and at 50 inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from testing.folders import photo

MEASURED = """
import json, resource, sys
from diffprivacy.cli import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), file=sys.stderr)
"""


def run(inputs: int, jobs: int, steps: int) -> tuple[float, int]:
    """Seconds of the command, and the largest memory of its first process in kB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(inputs):
            photo(folder / "in" / f"{i}.png", bool(i % 2))
        command = [
            "anonymize",
            folder / "in",
            "-o",
            folder / "out",
            "--steps",
            steps,
            "--jobs",
            jobs,
            "--device",
            "cpu",
        ]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, command)], capture_output=True, text=True, check=True
        )
        seconds = time.perf_counter() - start
        found = json.loads(done.stderr.splitlines()[-1])
        if found["code"] or len(list((folder / "out").glob("*.png"))) != inputs:
            raise SystemExit(done.stderr)
        return seconds, found["peak"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=12)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--memory", action="store_true", help="compare memory at 10 and 50 inputs as well")
    options = parser.parse_args()
    print("| jobs | images a second | times one job |\n|---|---|---|")
    rates: list[float] = []
    for jobs in options.jobs:
        seconds, _ = run(options.inputs, jobs, options.steps)
        rates.append(options.inputs / seconds)
        print(f"| {jobs} | {rates[-1]:.2f} | {rates[-1] / rates[0]:.2f} |", flush=True)
    if options.memory:
        few, many = (run(inputs, 1, 2)[1] for inputs in (10, 50))
        print(f"\nmemory at 50 inputs over that at 10: {many / few:.3f}")


if __name__ == "__main__":
    main()
