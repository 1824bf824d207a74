"""A real ComfyUI on a real graphics card, under each way in which it manages memory, against the same prompts on the CPU.

    COMFYUI_PATH=... python -m tests.comfyui.real_card --out FOLDER             # every way, and a checkpoint of SD 1.5's size
    python -m tests.comfyui.real_card --out FOLDER --ways CPU --tiny            # a test of the script, without a card

Anonymize, hide and recover, seal and open, guidance through a VAE and a TAESD, and MSI training run one after the other;
then everything is freed, and they run again. Prints a table and writes results.json, sheet.png and logs.txt. Ends with 1
where a server did not start or did not live to the end, or a prompt failed that is not expected to.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyrage
import torch
from PIL import Image

from diffprivacy.faces.detectors import load_detector
from testing.checkpoints import write_tiny_sd1
from tests.comfyui.graphs import saved_latent, slot
from tests.comfyui.guided import anonymized, run
from tests.comfyui.photos import write_astronaut
from tests.comfyui.server import PACK, ComfyServer, find_comfyui
from tests.comfyui.test_guidance import likeness, picture, stable_diffusion_guided, write_taesd
from tests.comfyui.test_memory import held
from tests.comfyui.test_msi import face_graph, train
from tests.comfyui.test_recovery import opening, published, sealing
from tests.comfyui.test_recovery import run as saved
from tests.comfyui.test_workflows import of_type, pictures, quick
from tests.comfyui.workflows import changed, load_prompt, with_known_noise

LEGACY = "--disable-dynamic-vram"
WAYS: dict[str, tuple[str, ...]] = {
    "CPU": ("--cpu",),
    "dynamic": (),
    "legacy": (LEGACY,),
    "highvram": ("--highvram",),
    "dynamic, little free": ("--reserve-vram", "LITTLE"),
    "legacy, little free": (LEGACY, "--reserve-vram", "LITTLE"),
    "lowvram": (LEGACY, "--lowvram"),
    "novram": ("--novram",),
    "fp16": ("--force-fp16", "--fp16-vae"),
    "bf16": ("--bf16-unet", "--bf16-vae"),
    "out of memory": (LEGACY, "CAP"),
    "fp32": ("--force-fp32",),
    "deterministic": ("--deterministic",),
}
"""Options of main.py; LITTLE is all memory that is free now but one GB, CAP makes PyTorch's fail early."""
CAP = """import torch

if torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / torch.cuda.mem_get_info()[1])
NODE_CLASS_MAPPINGS = {}
"""
"""A custom node: memory that ComfyUI believes to be free and that is not to be had."""
LIMIT = 60
"""Seconds for one prompt."""
SUSPECT = re.compile(r"leak|Traceback|\bError\b|out of memory|Fatal|Segmentation|not found", re.IGNORECASE)
NOISE = re.compile(r"alembic|database|sqlalche|comfy_kitchen backend|embedded-docs|\*{5} ERROR", re.IGNORECASE)
"""What ComfyUI itself says on some machines."""
EXPECTED = {"novram": "leaves no room to train", "out of memory": "Out of memory with "}
"""What a prompt may say under a way, and be well."""


class CardServer(ComfyServer):
    """A ComfyUI that may take the card, and is not waited for long."""

    def __init__(self, comfyui: Path, base: Path, checkpoint: Path, options: list[str]):
        super().__init__(comfyui, PACK, base, checkpoint, *options)
        self.command.remove("--cpu")

    def run(self, graph: dict[str, dict], seconds: float = LIMIT) -> dict[str, dict[str, Any]]:
        for node in graph.values():
            if node["class_type"] == "LoadImage":  # It would need PyAV, which no part of this does.
                node["class_type"] = "DiffPrivacyLoadProtected"
        return super().run(graph, seconds)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Way:
    """One way of managing memory: what its prompts gave."""

    def __init__(self, name: str, server: CardServer, size: int, quickly: bool):
        self.name, self.server, self.size, self.quickly = name, server, size, quickly
        self.photo = write_astronaut(server.base / "input")
        write_taesd(server.base / "models" / "vae_approx")
        self.results: dict[str, dict[str, Any]] = {}
        self.made: dict[str, np.ndarray] = {}

    def do(self, name: str, prompt: Callable[[], np.ndarray | None]) -> None:
        """One prompt; what goes wrong is a result, too."""
        began = time.monotonic()
        try:
            if (made := prompt()) is not None:
                self.made[name] = made
            said = "ok"
        except Exception as error:
            said = f"{type(error).__name__}: {_short(error)}"
        self.results[name] = {"said": said, "seconds": round(time.monotonic() - began, 1)}
        print(f"{self.name}: {name}: {said}, {self.results[name]['seconds']} s", flush=True)

    def run(self, again: str = "") -> None:
        """All prompts in turn."""
        (face,) = load_detector(None).detect(picture(self.photo))
        for scale in (0.015, 0.05):
            name = f"anonymize at {scale}{again}"
            self.do(name, lambda scale=scale: np.concatenate(run(self.server, anonymized(scale=scale)), 1))
            if name in self.made:
                faces = np.split(self.made[name], 2, axis=1)
                self.results[name]["cosine to the original"] = round(likeness(faces, self.photo, face), 3)
        if not again:
            self.do("hide and recover", self.hide)
            self.do("seal and open", self.seal)
        self.do(f"train{again}", lambda: self.train(False))
        if self.size > 128 and self.name == "CPU":  # Minutes.
            return
        for decoder in ("VAE", "TAESD if present"):
            self.do(f"checkpoint through {decoder}{again}", lambda decoder=decoder: self.checkpoint(decoder))
        self.do(f"train on the checkpoint{again}", lambda: self.train(True))

    def hide(self) -> np.ndarray:
        server = self.server
        file = PACK / "workflows" / "hide-and-recover.json"
        prompt = with_known_noise(quick(load_prompt(file, server.get("/object_info")), steps=8))
        outputs = server.run(prompt)
        shown = [*of_type(prompt, "DiffPrivacySaveProtected"), *of_type(prompt, "PreviewImage")]
        return np.concatenate([pictures(server, outputs, node)[0] for node in shown], 1)

    def seal(self) -> np.ndarray:
        server = self.server
        key = pyrage.x25519.Identity.generate()  # pyright: ignore[reportAttributeAccessIssue]
        (server.base / "identity.txt").write_text(str(key))
        (server.base / "input" / "jane-doe.png").write_bytes(self.photo.read_bytes())
        graph, node = sealing(server, "fixed point", fidelity="latent", recipients=str(key.to_public()))
        name = published(server, saved(server, graph, node))
        graph, node = opening(name, f"file:{server.base / 'identity.txt'}", replayed=True)
        return np.asarray(Image.open(saved(server, graph, node)).convert("RGB"))

    def train(self, on_checkpoint: bool) -> None:
        graph, loader, crops = face_graph(size=self.size if on_checkpoint else 128)
        parts = {}
        if on_checkpoint:
            other = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
            parts = {"model": other, "clip": slot(other, 1), "vae": slot(other, 2)}
        train(graph, loader, crops, "trained", **parts, steps=2, batch=4, chunk=2, seed=0)
        self.server.run(graph)

    def checkpoint(self, decoder: str) -> np.ndarray:
        graph = changed(stable_diffusion_guided(decoder), DiffPrivacyCropFaces__size=self.size)
        return saved_latent(self.server, self.server.run(graph), [str(len(graph)), 0]).float().numpy()

    def ended(self) -> int | None:
        """The server's exit status, waited for where it answers no more; None while it lives."""
        try:
            self.server.get("/system_stats")
        except OSError:
            return self.server.process.wait(LIMIT)
        return self.server.process.poll()

    def well(self) -> bool:
        """Whether the server lived, and every prompt gave what it should."""
        said = [result["said"] for result in self.results.values() if "said" in result]
        allowed = EXPECTED.get(self.name)
        fine = all(each == "ok" or (allowed is not None and allowed in each) for each in said)
        return fine and self.results.get("server", {}).get("alive", False)

    def finish(self) -> None:
        """Twice, with everything freed in between and afterwards."""
        self.run()
        kept = []
        for turn, again in enumerate(("", "" if self.quickly else " again")):
            if again:
                self.run(again)
            if turn and not again:
                continue
            self.do(f"free{again}", lambda: self.server.free())
            self.do(f"held{again}", lambda turn=turn: kept.append(held(self.server, turn)))
        code = self.ended()
        plain = re.sub("\x1b\\[[0-9;]*m", "", self.server.log())
        suspect = list(
            dict.fromkeys(
                line.strip()[:300] for line in plain.splitlines() if SUSPECT.search(line) and not NOISE.search(line)
            )
        )
        self.results["server"] = {"alive": code is None, "code": code, "held after free": kept}
        self.results["server"]["suspect lines"] = suspect[:60]


def _short(error: Exception) -> str:
    text = str(error)
    try:
        told = json.loads(text)
        text = f"{told['node_type']}: {told['exception_type']}: {told['exception_message']}"
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:600]


def little() -> str:
    """GB to reserve so that one is left."""
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 2 * 2**30
    return f"{free / 2**30 - 1:.1f}"


def run_way(name: str, comfyui: Path, checkpoint: Path, options: argparse.Namespace, folder: Path) -> Way | None:
    """Everything under one way; None where its server did not start."""
    if time.monotonic() > options.deadline:
        print(f"{name}: not begun, the time is up", flush=True)
        return None
    arguments = [little() if each == "LITTLE" else each for each in WAYS[name]] + shlex.split(options.options)
    capped = "CAP" in arguments
    arguments = [each for each in arguments if each != "CAP"]
    if options.tiny and "--cpu" not in arguments:
        arguments = ["--cpu", *arguments]
    server = CardServer(comfyui, folder / re.sub(r"\W+", "-", name), checkpoint, arguments)
    (server.base / "user").mkdir()
    if capped:
        (server.base / "custom_nodes" / "cap.py").write_text(CAP)
    way = None
    try:
        with server:
            way = Way(name, server, 128 if options.tiny else 512, options.quickly)
            way.finish()
    except Exception as error:
        print(f"{name}: the server: {_short(error)}", flush=True)
    with WRITING, (options.out / "logs.txt").open("a") as logs:
        logs.write(f"\n===== {name}: {' '.join(arguments)}\n{server.log()[-1_200_000:]}")
    return way


WRITING = threading.Lock()


def compare(ways: dict[str, Way]) -> None:
    """How far each way's results are from the CPU's (a checkpoint's: from those with everything on the card)."""
    for way in ways.values():
        for name, made in way.made.items():
            base = ways.get("CPU")
            if base is None or (name.startswith("checkpoint") and name not in base.made):
                base = ways.get("highvram")
            other = base.made.get(name) if base else None
            if base and other is not None and base is not way and other.shape == made.shape:
                difference = np.abs(made.astype(float) - other.astype(float))
                way.results[name][f"from {base.name}"] = [
                    round(float(f), 3) for f in (difference.mean(), difference.max())
                ]
            first = way.made.get(name.removesuffix(" again"))
            if first is not None and first is not made:
                way.results[name]["same as at first"] = bool(np.array_equal(first, made))


def sheet(ways: dict[str, Way], file: Path) -> None:
    """A row for each way: its pictures beside one another."""
    rows = []
    for way in ways.values():
        shown = [made for made in way.made.values() if made.dtype == np.uint8]
        if shown:
            small = [Image.fromarray(each).resize((160 * each.shape[1] // each.shape[0], 160)) for each in shown]
            rows.append(np.concatenate([np.asarray(each) for each in small], 1))
    if rows:
        width = max(row.shape[1] for row in rows)
        Image.fromarray(np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tiny", action="store_true", help="a tiny checkpoint, and everything on the CPU")
    parser.add_argument("--quickly", action="store_true", help="each prompt once")
    parser.add_argument("--at-once", type=int, default=1, help="servers side by side")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no other way begins")
    parser.add_argument("--options", default="", help="more options of ComfyUI's main.py, in one string")
    options = parser.parse_args()
    options.deadline = time.monotonic() + options.seconds
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("No ComfyUI found: set COMFYUI_PATH to one.")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        if options.tiny:
            write_tiny_sd1(checkpoint)
        else:
            command = [sys.executable, "-m", "testing.full_size_checkpoint", str(comfyui), str(checkpoint)]
            subprocess.run(command, check=True, cwd=PACK)
        with ThreadPoolExecutor(options.at_once) as pool:
            made = list(pool.map(lambda name: run_way(name, comfyui, checkpoint, options, Path(folder)), options.ways))
    report({way.name: way for way in made if way is not None}, options.out)
    sys.exit(0 if all(way is not None and way.well() for way in made) else 1)


def report(ways: dict[str, Way], out: Path) -> None:
    compare(ways)
    usual = (
        set(ways["CPU"].results["server"]["suspect lines"])
        if "CPU" in ways and "server" in ways["CPU"].results
        else set()
    )
    for way in ways.values():
        if way.name != "CPU" and (server := way.results.get("server")):
            server["suspect lines"] = [line for line in server["suspect lines"] if line not in usual]
    (out / "results.json").write_text(json.dumps({name: way.results for name, way in ways.items()}, indent=1))
    sheet(ways, out / "sheet.png")
    print("\n| way | prompts | well | server | of the CPU's picture, mean grey levels | warnings |\n|" + "---|" * 6)
    for name, way in ways.items():
        asked = {key: result for key, result in way.results.items() if "said" in result}
        well = sum(result["said"] == "ok" for result in asked.values())
        server = way.results.get("server", {})
        far = way.results.get("anonymize at 0.015", {}).get("from CPU", ["–"])[0]
        alive = "alive" if server.get("alive") else "ended"
        print(f"| {name} | {len(asked)} | {well} | {alive} | {far} | {len(server.get('suspect lines', []))} |")
    for name, way in ways.items():
        for key, result in way.results.items():
            print(f"{name}: {key}: {json.dumps(result)}")


if __name__ == "__main__":
    main()
