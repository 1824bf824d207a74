"""What guided runs and training leave behind in ComfyUI: no memory, no model, no changed bit of what plain nodes compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.comfyui.graphs import Graph, saved_latent, slot
from tests.comfyui.guided import anonymized, run
from tests.comfyui.photos import write_astronaut
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_msi import face_graph, train

WARM_UP, RUNS = 2, 1
"""Runs after which what stays as long as the process is there, and those that must add nothing."""
SLACK = 2**20
"""Bytes of small tensors that may come and go."""


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


def held(server: ComfyServer, when: int) -> tuple[int, int]:
    """How many models ComfyUI's memory management holds, and the bytes of all tensors that are alive."""
    graph = Graph()
    counted = graph.add("Held", when=when)
    shown = [graph.add("PreviewAny", source=slot(counted, index)) for index in range(2)]
    outputs = server.run(graph)
    models, tensors = (int(outputs[name]["text"][0]) for name, _ in shown)
    return models, tensors


def assert_nothing_grows(server: ComfyServer, graph: Callable[[int], Graph], first: int) -> None:
    """By the tensors that are alive: a process's resident memory jumps by more than a leak, run by run."""
    kept = []
    for seed in range(first, first + WARM_UP + RUNS):
        server.run(graph(seed))
        kept.append(held(server, seed))
    models, tensors = zip(*kept, strict=True)
    assert max(models[WARM_UP:]) <= max(models[:WARM_UP])
    assert max(tensors[WARM_UP:]) <= max(tensors[:WARM_UP]) + SLACK, tensors


def test_guided_runs_leave_memory_where_it_was(server):
    """A kept copy of the decoder alone would be 12 MiB a run."""
    assert_nothing_grows(server, guided, 0)


def test_training_gives_all_memory_back(server):
    """A kept copy of the UNet's 9 million weights would be 17 MiB a run even in half precision."""

    def trained(seed: int) -> Graph:
        graph, loader, crops = face_graph(size=64)
        train(graph, loader, crops, "memory", steps=1, batch=2, seed=seed)
        return graph

    assert_nothing_grows(server, trained, 100)


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
