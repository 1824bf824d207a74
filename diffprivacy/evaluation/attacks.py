"""What an attacker gains who learns from people whose originals and protections are both known.

Every attack learns on half of the people and searches for the others among their originals, and then the other way round,
so that each person is searched for once, by who has never met them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DiffPrivacyError
from ..identity.verification import rank1_hits
from .intervals import Share

FEWEST = 20
"""People from which on an attack can be measured."""
STEPS = 200
BATCH = 8
Learner = Literal["linear map", "network"]


@dataclass(frozen=True)
class Attack:
    """found: share of faces whose person the search finds; chance: the share that guessing finds."""

    name: str
    found: Share
    chance: float


def parrot(protected: np.ndarray, originals: np.ndarray, people: Sequence[str], learner: Learner) -> Attack:
    """Learn what a protected face's embedding says of the original's: embeddings (N,D), unit vectors.

    A linear map (ridge regression, its strength by leave-one-out), or a network with one hidden layer.
    Raises DiffPrivacyError for fewer than FEWEST people.
    """
    hits = np.zeros(len(people), bool)
    for test in _halves(people):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of not having converged: the number of steps is a choice.
            model = _learner(learner).fit(protected[~test], originals[~test])
        hits[test] = _search(model.predict(protected[test]), originals[test], np.asarray(people)[test])
    return Attack(f"parrot, {learner}", Share.of(hits, people), _chance(people))


def undo(
    protected: Tensor,
    originals: Tensor,
    people: Sequence[str],
    embed: Callable[[Tensor], Tensor],
    steps: int = STEPS,
) -> Attack:
    """Train a small U-Net (Ronneberger et al., arXiv 1505.04597) from protected faces to the originals.

    protected, originals: crops (N,3,S,S) in [0,1], S a multiple of 4. embed: crops to unit vectors (B,D), of the
    recognizer that searches; it also teaches the network. Raises DiffPrivacyError for fewer than FEWEST people.
    """
    hits = np.zeros(len(people), bool)
    with torch.no_grad():
        known = torch.cat([embed(part) for part in originals.split(BATCH)])
    for test in _halves(people):
        of_test, rest = torch.from_numpy(test), torch.from_numpy(~test)
        network = _trained(protected[rest], originals[rest], known[rest], embed, steps)
        with torch.no_grad():
            undone = torch.cat([embed(network(part)) for part in protected[of_test].split(BATCH)])
        hits[test] = _search(undone.numpy(), known[of_test].numpy(), np.asarray(people)[test])
    return Attack("undo, U-Net", Share.of(hits, people), _chance(people))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N,D) of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)


def attack_table(attacks: Mapping[str, Sequence[Attack]]) -> str:
    """A Markdown table with a line for each attack and each judge that searches."""
    lines = ["| attack | judge | found (95 % interval) | chance |", "| --- | --- | --- | --- |"]
    for judge, of in attacks.items():
        for attack in of:
            found = attack.found
            share = f"{found} ({100 * found.low:.1f} to {100 * found.high:.1f})"
            lines.append(f"| {attack.name} | {judge} | {share} | {100 * attack.chance:.1f} % |")
    return "\n".join(lines)


class _UNet(nn.Module):
    """What is added to an image to undo a change, at three resolutions."""

    def __init__(self, width: int = 16):
        super().__init__()

        def block(before: int, after: int) -> nn.Module:
            layers: list[nn.Module] = []
            for channels in (before, after):
                layers += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList((block(3, width), block(width, 2 * width)))
        self.middle = block(2 * width, 4 * width)
        self.up = nn.ModuleList((block(6 * width, 2 * width), block(3 * width, width)))
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, kept = images, []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat((F.interpolate(x, scale_factor=2), kept.pop()), dim=1))
        return torch.sigmoid(torch.logit(images, eps=0.02) + self.last(x))


def _trained(
    protected: Tensor, originals: Tensor, known: Tensor, embed: Callable[[Tensor], Tensor], steps: int
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _UNet()
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(steps):
        rows = torch.randint(len(protected), (BATCH,), generator=random)
        undone = network(protected[rows])
        loss = F.l1_loss(undone, originals[rows]) + (1 - (embed(undone) * known[rows]).sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _learner(kind: Learner) -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.neural_network import MLPRegressor

    if kind == "linear map":
        return RidgeCV(np.logspace(-4, 3, 8))
    return MLPRegressor(
        hidden_layer_sizes=(256,),
        alpha=1e-2,
        learning_rate_init=3e-3,
        max_iter=300,
        tol=0,
        n_iter_no_change=300,
        random_state=0,
    )


def _halves(people: Sequence[str]) -> Iterator[np.ndarray]:
    """Masks (N,) of every second person, and of the others."""
    names, place = np.unique(np.asarray(people), return_inverse=True)
    if len(names) < FEWEST:
        raise DiffPrivacyError(
            f"Attacks that learn need {FEWEST} people, not {len(names)}: give more images.", "attack"
        )
    yield place % 2 == 0
    yield place % 2 == 1


def _search(guessed: np.ndarray, originals: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Of each guess (N,D), whether its nearest original is of the same person, once both are centred."""
    guesses, gallery = (unit(vectors - originals.mean(axis=0)) for vectors in (guessed, originals))
    return rank1_hits(guesses, list(people), gallery, list(people))


def _chance(people: Sequence[str]) -> float:
    """Of guessing among half of the people."""
    return float(np.mean([1 / len(set(np.asarray(people)[test])) for test in _halves(people)]))
