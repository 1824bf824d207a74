"""Starts ComfyUI with the pack mounted, sends it prompts, fetches what they made."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

HERE = Path(__file__).parent
PACK = HERE.parents[1]
HANGING = 3000
"""Seconds after which something hangs; a busy machine may take many minutes."""


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, the installation that this pack lies in, or comfy-cli's default folder."""
    candidates = [os.environ.get("COMFYUI_PATH"), PACK.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((Path(c) for c in candidates if c and (Path(c) / "comfy" / "sd.py").is_file()), None)


class PromptError(Exception):
    """ComfyUI refused or failed a prompt; the message holds what it reported."""


class ComfyServer:
    """``main.py --cpu`` on a free port; a context manager. pack: None for a ComfyUI without it."""

    def __init__(self, comfyui: Path, pack: Path | None, base: Path, checkpoint: Path, *options: str):
        self.base = base
        self.log_file = base / "comfyui.log"
        self.environment: dict[str, str] = {}
        for folder in ("custom_nodes", "models/checkpoints", "input", "output"):
            (base / folder).mkdir(parents=True)
        if pack:
            (base / "custom_nodes" / "diff-privacy").symlink_to(pack, target_is_directory=True)
            for nodes in ("extra_nodes.py", "segs_nodes.py"):
                (base / "custom_nodes" / nodes).symlink_to(HERE / nodes)
        (base / "models" / "checkpoints" / "tiny.safetensors").symlink_to(checkpoint)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            *(sys.executable, str(comfyui / "main.py"), "--cpu", "--port", str(self.port)),
            *("--base-directory", str(base), "--disable-api-nodes", "--disable-auto-launch", *options),
        ]

    def __enter__(self) -> ComfyServer:
        # One thread: on these small tensors more of them only wait for each other, badly so on a busy machine.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **self.environment}
        self.process = subprocess.Popen(
            self.command, stdout=self.log_file.open("w"), stderr=subprocess.STDOUT, env=environment
        )
        deadline = time.monotonic() + HANGING
        while True:
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}") from None
                time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(HANGING)

    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path) as response:
            return json.load(response)

    def post(self, path: str, body: dict | None = None) -> Any:
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                return json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from error

    def queue(self, graph: dict[str, dict]) -> str:
        """Queue an API-format prompt; raises PromptError when it is refused, also in part."""
        answer = self.post("/prompt", {"prompt": graph})
        if answer["node_errors"]:
            raise PromptError(json.dumps(answer["node_errors"]))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = HANGING) -> dict[str, Any]:
        """The history entry of a finished prompt; raises PromptError when it failed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["completed"]:
                return entry
            if entry and entry["status"]["status_str"] == "error":
                errors = [m[1] for m in entry["status"]["messages"] if m[0].startswith("execution_")]
                raise PromptError(json.dumps(errors[-1]))
            time.sleep(0.02)
        raise TimeoutError(f"prompt {prompt_id} took more than {seconds} s:\n{self.log()[-4000:]}")

    def run(self, graph: dict[str, dict], seconds: float = HANGING) -> dict[str, dict[str, Any]]:
        """Outputs of a prompt by node id."""
        return self.wait(self.queue(graph), seconds)["outputs"]

    def free(self) -> None:
        """Unload all models and forget all results, before the next prompt runs.

        ComfyUI frees when its queue wakes up, and then takes the next prompt first if there is one: hence a small one
        in between.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run(
            {
                "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
                "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            }
        )

    def file(self, reference: dict[str, str]) -> bytes:
        """The bytes of an output picture that a prompt's outputs refer to."""
        with urllib.request.urlopen(f"{self.url}/view?{urlencode(reference)}") as response:
            return response.read()

    def picture(self, reference: dict[str, str]) -> np.ndarray:
        """An output picture as (H,W,3) uint8."""
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.file(reference))).convert("RGB"))
