"""What an interrupted video goes on from: its finished pieces, its noise, and what its new faces look like."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.noise import NoiseKey
from ..media.atomic import PREFIX, write_atomically

FORMAT = 3
"""Of the job file; a job in another is begun anew."""


def unfinished(target: Path) -> Path:
    """The hidden folder beside a protected video, there until that is complete."""
    # A name of its own length, as the video's may be as long as names can be.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f"{PREFIX}{name}.unfinished")


def forget(target: Path) -> None:
    """Delete the folder of a complete video, whose run was killed before it could."""
    shutil.rmtree(unfinished(target), ignore_errors=True)


class ResumeState:
    """A hidden folder beside the protected video, there until that is complete. It holds nothing of the original.

    noise_key: what the noise follows from, in a file that only its owner can read. faces: of each person, the embeddings (1,D) of the new face, one for each recognition network.
    covered: who is covered in a piece, by the piece's first frame: person, first frame, and the frame after the last.
    """

    def __init__(self, target: Path, settings: str, noise_key: NoiseKey):
        """settings: whatever the result depends on; a folder from other settings is begun anew.

        noise_key: of a job that is begun; one that goes on keeps its own.
        """
        self.folder = unfinished(target)
        self.settings = f"{FORMAT} {settings}"
        self.noise_key = noise_key
        self.faces: dict[int, list[Tensor]] = {}
        self.covered: dict[int, list[tuple[int, int, int]]] = {}
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

    def keep_covered(self, person: int, piece: range, first: int, stop: int) -> None:
        """Remember that a person is covered in a piece, from frame ``first`` to the one before ``stop``."""
        self.covered.setdefault(piece.start, []).append((person, first, stop))
        self._save()

    def forget_covered(self, piece: range) -> None:
        """A piece is begun anew."""
        self.covered.pop(piece.start, None)

    def remove(self) -> None:
        """Delete the folder: the video is complete."""
        shutil.rmtree(self.folder)

    @property
    def _file(self) -> Path:
        return self.folder / "job.json"

    def _load(self) -> bool:
        if not self._file.exists():
            return False
        try:
            kept = json.loads(self._file.read_text())
            if kept["settings"] != self.settings:
                return False
            noise_key = NoiseKey(bytes.fromhex(kept["noise"]))
            faces = {int(person): [torch.tensor([v]) for v in vectors] for person, vectors in kept["faces"].items()}
            covered = {
                int(piece): [(int(person), int(first), int(stop)) for person, first, stop in spans]
                for piece, spans in kept["covered"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return False  # damaged, as by a power cut
        self.noise_key, self.faces, self.covered = noise_key, faces, covered
        return True

    def _save(self) -> None:
        faces = {person: [vector[0].tolist() for vector in vectors] for person, vectors in self.faces.items()}
        content = {
            "settings": self.settings,
            "noise": self.noise_key.key.hex(),
            "faces": faces,
            "covered": self.covered,
        }
        write_atomically(self._file, json.dumps(content).encode(), secret=True)
