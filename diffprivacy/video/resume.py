"""What an interrupted video goes on from: its finished pieces, its noise, and what its new faces look like."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..media.images import write_atomically


class Job:
    """A hidden folder beside the protected video, there until that is complete. It holds nothing of the original.

    seed: of the noise. faces: of each person, the embeddings (1,D) of the new face, one for each recognition network.
    """

    def __init__(self, target: Path, settings: str, seed: int | None = None):
        """settings: whatever the result depends on; a folder from other settings is begun anew.

        seed: by default the operating system's entropy.
        """
        self.folder = target.with_name(f".{target.name}.unfinished")
        self.settings = settings
        self.seed = secrets.randbits(63) if seed is None else seed
        self.faces: dict[int, list[Tensor]] = {}
        if not self._load():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._save()

    def piece(self, number: int) -> Path:
        """The file of a piece."""
        return self.folder / f"{number:06}.nut"

    def keep_face(self, person: int, embeddings: Sequence[Tensor]) -> None:
        """Remember a person's new face, (1,D) each."""
        self.faces[person] = [vector.cpu() for vector in embeddings]
        self._save()

    def remove(self) -> None:
        """Delete the folder: the video is complete."""
        shutil.rmtree(self.folder)

    @property
    def _file(self) -> Path:
        return self.folder / "job.json"

    def _load(self) -> bool:
        if not self._file.exists():
            return False
        kept = json.loads(self._file.read_text())
        if kept["settings"] != self.settings:
            return False
        self.seed = kept["seed"]
        self.faces = {int(person): [torch.tensor([v]) for v in vectors] for person, vectors in kept["faces"].items()}
        return True

    def _save(self) -> None:
        faces = {person: [vector[0].tolist() for vector in vectors] for person, vectors in self.faces.items()}
        content = json.dumps({"settings": self.settings, "seed": self.seed, "faces": faces})
        write_atomically(self._file, content.encode())
        os.chmod(self._file, 0o600)
