"""The astronaut's face anonymized by the demo model, as a graph."""

from __future__ import annotations

import numpy as np

from tests.comfyui.graphs import Graph, demo_crops, slot

STEPS = 6


def anonymized(
    sampler: str = "euler", scheduler: str = "normal", custom: bool = False, expression: float = 0, **guidance
) -> Graph:
    """One demo crop redrawn; guidance are the inputs of Energy Guidance, none for the plain model.

    expression: weight of keeping it.
    """
    graph = Graph()
    loader, image, crops = demo_crops(graph, variants=2)
    model, clip, vae, guide = loader, slot(loader, 1), slot(loader, 2), slot(loader, 4)
    if guidance:
        energy = graph.add(
            "DiffPrivacyAnonymizeEnergy",
            **{"recognizer": guide, "reference": crops, "faces": slot(crops, 2), "identity": 1.0, "diversity": 1.0},
            **{"form": "smooth", "augmentations": 0},
        )
        if expression:
            keep = graph.add(
                "DiffPrivacyKeepExpressionEnergy", reference=crops, faces=slot(crops, 2), weight=expression
            )
            both = {"energy_1": energy, "energy_2": keep, "weight_1": 1.0, "weight_2": 1.0}
            energy = graph.add("DiffPrivacyCombineEnergies", **both)
        settings = {"rule": "normalized", "scale": 0.1, "from_step": 999, "to_step": 0, "every": 1}
        settings |= {"decoder": "VAE", "chunk": 0} | guidance
        model = graph.add("DiffPrivacyEnergyGuidance", model=model, vae=vae, energy=energy, **settings)
    prompt = graph.add("CLIPTextEncode", clip=clip, text="")
    latent = graph.add("VAEEncode", pixels=crops, vae=vae)
    if custom:
        samples = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=7),
            guider=graph.add("BasicGuider", model=model, conditioning=prompt),
            sampler=graph.add("KSamplerSelect", sampler_name=sampler),
            sigmas=graph.add("BasicScheduler", model=model, scheduler=scheduler, steps=STEPS, denoise=0.6),
            latent_image=latent,
        )
    else:
        samples = graph.add(
            "KSampler",
            **{"model": model, "positive": prompt, "negative": prompt, "latent_image": latent, "seed": 7},
            **{"steps": STEPS, "cfg": 1.0, "sampler_name": sampler, "scheduler": scheduler, "denoise": 0.6},
        )
    pasted = graph.add(
        "DiffPrivacyPasteFaces",
        image=image,
        crops=graph.add("VAEDecode", samples=samples, vae=vae),
        faces=slot(crops, 2),
    )
    graph.add("DiffPrivacySaveProtected", image=pasted, filename_prefix="guided")
    return graph


def run(server, graph: Graph) -> list[np.ndarray]:
    (node,) = (name for name, entry in graph.items() if entry["class_type"] == "DiffPrivacySaveProtected")
    return [server.picture(reference) for reference in server.run(graph)[node]["images"]]
