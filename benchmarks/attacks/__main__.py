"""Run the attacks that are named, all by default, each with its own defaults."""

from __future__ import annotations

import argparse
import importlib

ATTACKS = ("identity", "averaging", "surroundings", "seeds", "sealed", "keys")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], default=list(ATTACKS))
    for name in parser.parse_args().attacks:
        print(f"\n## {name}\n", flush=True)
        importlib.import_module(f"{__package__}.{name}").main([])


if __name__ == "__main__":
    main()
