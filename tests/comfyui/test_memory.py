"""What guided runs and training leave behind in ComfyUI: no memory, no model, no changed bit of what plain nodes compute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import scipy.stats
import torch

from tests.comfyui.graphs import Graph, saved_latent
from tests.comfyui.guided import anonymized, run
from tests.comfyui.photos import write_astronaut
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_msi import face_graph, train

WARM_UP = 10
"""Runs after which the allocators have what they want; measured: up to eight, by 120 MiB in all, and then none more."""


@pytest.fixture(scope="module", autouse=True)
def photo(server: ComfyServer) -> None:
    write_astronaut(server.base / "input")


@pytest.fixture(scope="module")
def plain(comfyui: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """A ComfyUI without the pack."""
    with ComfyServer(comfyui, None, tmp_path_factory.mktemp("plain"), tiny_checkpoint) as running:
        yield running


def guided(seed: int) -> Graph:
    graph = anonymized(scale=0.015)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"].update(seed=seed, steps=1)
    return graph


def resident(server: ComfyServer) -> int:
    """Resident memory of the process in MiB."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert match is not None
    return int(match[1]) // 1024


def growth(memory: list[int]) -> float:
    """MiB a run, as the median over all pairs of runs (Theil and Sen): allocators jump to and fro by up to 50 MiB."""
    return float(scipy.stats.theilslopes(memory).slope)


def test_growth_tells_a_leak_from_jumps():
    jumps = [1340, 1346, 1298, 1327, 1334, 1338, 1345, 1321, 1338, 1334, 1341]
    assert abs(growth(jumps)) < 2
    assert 10 < growth([resident + 12 * run for run, resident in enumerate(jumps)]) < 14


def loaded_models(server: ComfyServer, when: int) -> int:
    graph = Graph()
    shown = graph.add("PreviewAny", source=graph.add("LoadedModels", when=when))
    return int(server.run(graph)[shown[0]]["text"][0])


def test_ten_runs_leave_memory_where_it_was(server):
    """A kept copy of the decoder alone would be 12 MiB a run."""
    memory, models = [], []
    for seed in range(WARM_UP + 10):
        run(server, guided(seed))
        memory.append(resident(server))
        models.append(loaded_models(server, seed))
    assert growth(memory[WARM_UP - 1 :]) < 6
    assert max(models[WARM_UP:]) <= max(models[:WARM_UP])


def test_training_gives_all_memory_back(server):
    """A kept copy of the UNet's 9 million weights would be 17 MiB a run even in half precision."""
    memory, models = [], []
    for seed in range(WARM_UP + 5):
        graph, loader, crops = face_graph(size=64)
        train(graph, loader, crops, "memory", steps=1, batch=8, seed=seed)
        server.run(graph)
        memory.append(resident(server))
        models.append(loaded_models(server, 100 + seed))
    assert growth(memory[WARM_UP - 1 :]) < 8
    assert max(models[WARM_UP:]) <= max(models[:WARM_UP])


def plain_graph() -> Graph:
    graph = Graph()
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    positive, negative = (graph.add("CLIPTextEncode", clip=[loader[0], 1], text=text) for text in ("a face", ""))
    samples = graph.add(
        "KSampler",
        **{"model": loader, "positive": positive, "negative": negative, "seed": 3, "steps": 3, "cfg": 4.0},
        **{"sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0},
        latent_image=graph.add("EmptyLatentImage", width=64, height=64, batch_size=2),
    )
    graph.add("SaveLatent", samples=samples, filename_prefix="plain")
    pixels = graph.add("VAEDecode", samples=samples, vae=[loader[0], 2])
    graph.add("SaveLatent", samples=graph.add("VAEEncode", pixels=pixels, vae=[loader[0], 2]), filename_prefix="again")
    return graph


def latents(server: ComfyServer) -> list[torch.Tensor]:
    server.free()
    graph = plain_graph()
    outputs = server.run(graph)
    nodes = [[name, 0] for name, node in graph.items() if node["class_type"] == "SaveLatent"]
    return [saved_latent(server, outputs, node) for node in nodes]


def test_plain_nodes_compute_the_same_with_and_without_the_pack(server, plain):
    expected = latents(plain)
    before = latents(server)
    run(server, guided(99))
    for results in (before, latents(server)):
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
