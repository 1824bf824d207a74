"""What ``pip install`` of the pack's list adds to a plain ComfyUI, and whether it changes anything that is there.

    COMFYUI_PATH=... python -m testing.fresh_install

Resolved, not installed: it asks the package index for versions.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    comfyui = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI")) / "requirements.txt"
    with tempfile.TemporaryDirectory() as folder:
        alone, both = Path(folder) / "alone.txt", Path(folder) / "both.txt"
        before = resolved(alone, comfyui)
        after = resolved(both, comfyui, ROOT / "requirements.txt", "-c", alone)
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    print(f"ComfyUI: {len(before)} packages; the pack adds {len(after.keys() - before.keys())}:")
    print(", ".join(f"{name} {after[name]}" for name in sorted(after.keys() - before.keys())))
    print(f"changed: {changed or 'none'}")
    sys.exit(bool(changed))


def resolved(output: Path, *sources: Path | str) -> dict[str, str]:
    """The versions that pip would have, by name."""
    subprocess.run([sys.executable, "-m", "uv", "pip", "compile", "-q", *map(str, sources), "-o", output], check=True)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", output.read_text(), re.MULTILINE))


if __name__ == "__main__":
    main()
