"""MSI in ComfyUI: what it trains is what the library trains, and any sampler takes what it says."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffprivacy import demo
from diffprivacy.backends import diffusers as diffusers_host
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face
from diffprivacy.msi.module import load_msi, new_msi, save_msi
from diffprivacy.msi.training import Settings, Training
from diffprivacy.msi.training_data import prepare
from tests.comfyui.conftest import PACK
from tests.comfyui.graphs import Graph, saved_latent, slot, write_latent, write_lora, write_text_lora
from tests.comfyui.photos import pixels, write_astronaut
from tests.comfyui.server import HANGING, PromptError

MSI_SLOT = 6
STEPS, BATCH, RATE, VALIDATION = 3, 5, 0.1, 4
"""Of trainings; extra_nodes.py sees to the last."""
LAST_SAVE = ["latent", 0]


@pytest.fixture(scope="module", autouse=True)
def files(server):
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    write_lora(server.base / "models" / "loras" / "lora.safetensors")
    write_text_lora(server.base / "models" / "loras" / "text.safetensors")
    return write_astronaut(server.base / "input")


@pytest.fixture(scope="module")
def crop(files) -> torch.Tensor:
    """The crop that the graphs train on, (1,3,128,128)."""
    picture = torch.from_numpy(pixels(files).astype(np.float32) / 255)
    (face,) = load_detector(None).detect(picture)
    return crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]


def face_graph(size: int = demo.IMAGE_SIZE) -> tuple[Graph, list, list]:
    """A graph with the demo model and the astronaut's crop."""
    graph = Graph()
    loader = graph.add("DiffPrivacyLoadDemoModel")
    image = graph.add("LoadImage", image="astronaut.png")
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    faces = graph.add("DiffPrivacyDetectFaces", image=image, detector=detector, select="all", without_face="error")
    crops = graph.add("DiffPrivacyCropFaces", image=image, faces=faces, size=size, margin=demo.MARGIN, variants=1)
    return graph, loader, crops


def train(graph: Graph, loader: list, crops: list, name: str, model=None, clip=None, vae=None, **settings) -> tuple:
    """Train MSI and Save MSI; returns their outputs."""
    inputs = {"steps": STEPS, "seed": 0, "batch": BATCH, "chunk": 0, "checkpointing": True, "flips": False}
    inputs |= {"learning_rate": RATE, "model": model or loader, "clip": clip or slot(loader, 1)}
    inputs |= {"vae": vae or slot(loader, 2), "clip_vision": slot(loader, 3), "images": crops}
    msi = graph.add("DiffPrivacyTrainMSI", **inputs | settings)
    return msi, graph.add("DiffPrivacySaveMSI", msi=msi, filename_prefix=name)


def watched(server, graph: Graph, on_step: Callable[[int], object] = lambda step: None) -> tuple[dict, list, list]:
    """Outputs of a prompt; its steps, as (step, of how many), and its preview pictures, as the page gets them."""
    import aiohttp

    steps, previews = [], []

    async def watch() -> str:
        url = f"{server.url}/ws?clientId=watcher"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            prompt_id = server.post("/prompt", {"prompt": graph, "client_id": "watcher"})["prompt_id"]
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:  # Kind of event, kind of picture, picture.
                    previews.append(Image.open(io.BytesIO(message.data[8:])).convert("RGB"))
                    continue
                event = json.loads(message.data)
                if event["type"] == "progress" and event["data"]["max"] > 1:
                    steps.append((event["data"]["value"], event["data"]["max"]))
                    on_step(event["data"]["value"])
                if event["type"] == "executing" and event["data"]["node"] is None:
                    return prompt_id
        raise ConnectionError("the server closed the connection")

    with ThreadPoolExecutor() as pool:  # The page tests leave an event loop running in this thread.
        prompt_id = pool.submit(asyncio.run, asyncio.wait_for(watch(), HANGING)).result()
    return server.wait(prompt_id)["outputs"], steps, previews


def written(server, outputs: dict, node: list) -> Path:
    return server.base / "models" / "msi" / outputs[node[0]]["text"][0].removeprefix("saved ")


def test_it_trains_what_the_library_trains_and_says_it_in_ordinary_embeddings(server, crop):
    graph, loader, crops = face_graph()
    msi, saved = train(graph, loader, crops, "parity")
    curve = graph.add("PreviewImage", images=slot(msi, 1))
    words = {"clip": slot(loader, 1), "clip_vision": slot(loader, 3), "image": crops, "msi": msi}
    said = graph.add("DiffPrivacyInvertMSI", prompt="a photo of *", save_embeddings="astronaut", **words)
    samples = graph.add(
        "KSampler",
        **{"model": loader, "positive": said, "negative": said, "latent_image": graph.add("VAEEncode", pixels=crops, vae=slot(loader, 2))},
        **{"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5},
    )  # fmt: skip
    graph.add("PreviewImage", images=graph.add("VAEDecode", samples=samples, vae=slot(loader, 2)))
    outputs, steps, previews = watched(server, graph)
    assert server.picture(outputs[curve[0]]["images"][0]).shape == (432, 768, 3)
    assert {(1, STEPS), (STEPS, STEPS)} <= set(steps)  # ComfyUI itself may leave out what lies between.

    diffusion_model = load_diffusion_model()
    start = new_msi(diffusion_model)
    settings = Settings(steps=STEPS, batch=BATCH, lr=RATE, validation=VALIDATION)
    there = load_msi(written(server, outputs, saved)).words(diffusion_model, crop)[0]
    training, shown = Training(start, diffusion_model, prepare(diffusion_model, crop, flips=False), settings), []
    here = training.run(lambda now: shown.append(now.preview)).words(diffusion_model, crop)[0]
    reconstruction = diffusion_model.decode(shown[-1])[0].movedim(0, -1)
    preview = torch.from_numpy(np.asarray(previews[0].resize((demo.IMAGE_SIZE,) * 2, Image.Resampling.BOX)) / 255)
    assert (preview - reconstruction).abs().mean() < 0.03
    before = start.words(diffusion_model, crop)[0]
    assert (here - before).norm() > 0.01 * before.norm()
    assert (there - here).norm() < 0.2 * (here - before).norm()
    embeddings = server.base / "models" / "embeddings"
    for stage, word in enumerate(there):
        file = load_file(embeddings / f"astronaut-{stage}.safetensors")
        assert torch.allclose(file["clip_l"], word[None], atol=1e-3)


@pytest.mark.parametrize("checkpoint", ["demo", "tiny"])
def test_a_prompt_with_each_stage_s_embedding_in_its_time_range_is_the_same_conditioning(
    server, tiny_checkpoint, checkpoint
):
    """Stock blocks alone say the same, `a photo of embedding:NAME-k, smiling` from time step 100 k to 100 k + 99."""
    diffusion_model = load_diffusion_model()
    if checkpoint == "tiny":
        vision, diffusion_model = diffusion_model.vision_encoder, diffusers_host.load_diffusion_model(tiny_checkpoint)
        diffusion_model.vision_encoder = vision
    msi = new_msi(diffusion_model)
    torch.nn.init.normal_(msi.out.weight, generator=torch.Generator().manual_seed(1))
    file = f"wild-{checkpoint}.safetensors"
    save_msi(msi, server.base / "models" / "msi" / file)

    def sampled(stages: list[int] | None) -> torch.Tensor:
        """Samples under the MSI, or under stock conditionings that say the words of these stages one after the other."""
        graph, loader, crops = face_graph(size=64)
        model = loader if checkpoint == "demo" else graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
        clip = slot(model, 1)
        if stages is None:
            said = graph.add(
                "DiffPrivacyInvertMSI",
                **{"msi": graph.add("DiffPrivacyLoadMSI", file=file), "image": crops, "clip": clip},
                **{"clip_vision": slot(loader, 3), "prompt": "a photo of *, smiling", "save_embeddings": checkpoint},
            )
        else:
            parts = []
            for place, stage in enumerate(stages):
                text = f"a photo of embedding:{checkpoint}-{stage}, smiling"
                ends = [1 - (t - 0.5) / 999 for t in (100 * place + 100, 100 * place)]
                parts.append(
                    graph.add(
                        "ConditioningSetTimestepRange",
                        conditioning=graph.add("CLIPTextEncode", clip=clip, text=text),
                        **{"start": max(0.0, ends[0]), "end": min(1.0, ends[1])},
                    )
                )
            said = parts[0]
            for part in parts[1:]:
                said = graph.add("ConditioningCombine", conditioning_1=said, conditioning_2=part)
        samples = graph.add(
            "KSampler",
            **{"model": model, "positive": said, "negative": said, "seed": 1, "steps": 10, "cfg": 1.0, "denoise": 1.0},
            **{"sampler_name": "euler", "scheduler": "normal"},
            latent_image=graph.add("VAEEncode", pixels=crops, vae=slot(model, 2)),
        )
        return saved_latent(server, server.run(graph | save_latent(graph, samples)), LAST_SAVE)

    said, written, reversed_ = (sampled(stages) for stages in (None, list(range(10)), list(range(9, -1, -1))))
    assert torch.allclose(said, written, atol=1e-4 * said.std().item())
    assert (said - reversed_).abs().max() > 1e-2 * said.std()


def test_pseudo_words_of_other_families_are_ordinary_embeddings_too(inside, tmp_path):
    """SD 2.x and SDXL, at their text encoders' widths: said, written as `embedding:`, and while training, all the same."""
    inside("probe_text.py", PACK, tmp_path)
    results = load_file(tmp_path / "results.safetensors")
    for kind, width in (("sd2", 1024), ("sdxl", 768 + 1280)):
        said = results[f"{kind}.said"]
        assert said.shape == (1, 77, width)
        assert torch.allclose(said, results[f"{kind}.written"], atol=1e-4)
        assert torch.allclose(results[f"{kind}.said.pooled"], results[f"{kind}.written.pooled"], atol=1e-4)
        assert torch.allclose(said, results[f"{kind}.differentiable"], atol=1e-3)
        assert torch.allclose(results[f"{kind}.face"], results[f"{kind}.plain"], atol=1e-4)
        assert (said - results[f"{kind}.plain"]).abs().max() > 0.1
        assert results[f"{kind}.gradient"].any()


def test_saved_modules_load_again(server):
    graph, loader, _ = face_graph()
    saved = graph.add("DiffPrivacySaveMSI", msi=slot(loader, MSI_SLOT), filename_prefix="kept/demo")
    path = written(server, server.run(graph), saved)
    graph = Graph()
    loaded = graph.add("DiffPrivacyLoadMSI", file=path.relative_to(server.base / "models" / "msi").as_posix())
    again = graph.add("DiffPrivacySaveMSI", msi=loaded, filename_prefix="again")
    tensors = load_file(written(server, server.run(graph), again))
    assert tensors.keys() == load_file(path).keys()
    assert all(torch.equal(tensor, load_file(path)[name]) for name, tensor in tensors.items())


def test_faces_of_a_batch_keep_their_order(server):
    """A batch of two different crops is sampled as each of them alone, each under its own words."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, demo.LATENT_CHANNELS, 16, 16, generator=generator)
    results = []
    for which in ((0,), (1,), (0, 1)):
        graph, loader, crops = face_graph()
        both = {0: crops, 1: graph.add("ImageInvert", image=crops)}
        image = both[which[0]]
        if len(which) == 2:
            image = graph.add("ImageBatch", image1=crops, image2=both[1])
        write_latent(server, f"msi-{which}.latent", latents[list(which)] * 5)
        said = graph.add(
            "DiffPrivacyInvertMSI",
            **{"msi": slot(loader, MSI_SLOT), "image": image, "clip": slot(loader, 1), "clip_vision": slot(loader, 3)},
            prompt="a photo of *, smiling",
        )
        samples = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("DisableNoise"),
            guider=graph.add("BasicGuider", model=loader, conditioning=said),
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.add("BasicScheduler", model=loader, scheduler="normal", steps=3, denoise=1.0),
            latent_image=graph.add("LoadLatent", latent=f"msi-{which}.latent"),
        )
        results.append(saved_latent(server, server.run(graph | save_latent(graph, samples)), LAST_SAVE))
    first, second, batch = results
    assert torch.allclose(batch, torch.cat([first, second]), atol=1e-3)


def save_latent(graph: Graph, samples: list) -> dict:
    return {LAST_SAVE[0]: {"class_type": "SaveLatent", "inputs": {"samples": samples, "filename_prefix": "msi"}}}


def test_training_sees_the_loras_of_model_and_clip_and_leaves_no_trace(server):
    words, pictures = [], []
    for lora in (None, "lora.safetensors", "text.safetensors"):
        graph, loader, crops = face_graph(size=64)
        checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
        clip, vae, model = slot(checkpoint, 1), slot(checkpoint, 2), checkpoint
        prompt = graph.add("CLIPTextEncode", clip=clip, text="a face")
        if lora:
            strengths = {"strength_model": 1.0, "strength_clip": 1.0}
            model = graph.add("LoraLoader", model=model, clip=clip, lora_name=lora, **strengths)
            clip = slot(model, 1)
        _, saved = train(graph, loader, crops, "lora", model, clip, vae, steps=1, batch=2)
        inputs = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        samples = graph.add(
            "KSampler", model=checkpoint, positive=prompt, negative=prompt, latent_image=latent, **inputs
        )
        outputs = server.run(graph | save_latent(graph, samples))
        pictures.append(saved_latent(server, outputs, LAST_SAVE))
        words.append(load_file(written(server, outputs, saved)))
    weights = [learnt["out.weight"] for learnt in words]
    assert not any(torch.equal(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


def test_interrupting_keeps_what_was_learnt(server, crop):
    graph, loader, crops = face_graph()
    _, saved = train(graph, loader, crops, "interrupted", steps=100000, seed=9, learning_rate=0.01)
    outputs, steps, _ = watched(server, graph, lambda step: step >= 5 and server.post("/interrupt"))
    assert 5 <= steps[-1][0] < 100000  # How many more depends on how busy the machine is.
    diffusion_model = load_diffusion_model()
    learnt = load_msi(written(server, outputs, saved)).words(diffusion_model, crop)
    untrained = new_msi(diffusion_model, seed=9).words(diffusion_model, crop)
    assert (learnt - untrained).norm() > 0.01 * untrained.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a photo"}, "`prompt`.*no `\\*`"),
        ({"save_embeddings": "../elsewhere"}, "`save_embeddings`.*no name"),
        ({"clip": "tiny"}, "`msi`.*another text encoder"),
    ],
)
def test_bad_input_names_the_socket(server, change, message):
    graph, loader, crops = face_graph()
    if change.get("clip") == "tiny":
        change = {"clip": slot(graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"), 1)}
    inputs = {"msi": slot(loader, MSI_SLOT), "image": crops, "clip": slot(loader, 1), "clip_vision": slot(loader, 3)}
    said = graph.add("DiffPrivacyInvertMSI", **inputs | {"prompt": "a photo of *"} | change)
    latent = graph.add("VAEEncode", pixels=crops, vae=slot(loader, 2))
    inputs = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    samples = graph.add("KSampler", model=loader, positive=said, negative=said, latent_image=latent, **inputs)
    with pytest.raises(PromptError, match=message):
        server.run(graph | save_latent(graph, samples))


def test_pictures_too_small_to_learn_from(server):
    graph, loader, crops = face_graph()
    small = graph.add("ImageScale", image=crops, upscale_method="area", width=32, height=32, crop="disabled")
    train(graph, loader, small, "small")
    with pytest.raises(PromptError, match=r"`images`.*32x32"):
        server.run(graph)


@pytest.mark.parametrize("node", ["DiffPrivacyTrainMSI", "DiffPrivacyInvertMSI"])
@pytest.mark.parametrize(
    ("kind", "mark", "message"),
    [
        ("dinov2", "encoder.layer.23.layer_scale2.lambda1", '"Socket `clip_vision`: This .* is no CLIP vision model'),
        ("vit-h", "vision_model.encoder.layers.30.layer_norm1.weight", "`msi`.*vision model.*32 layers of 1280"),
    ],
)
def test_a_clip_vision_file_of_the_wrong_kind(server, node, kind, mark, message):
    """DINOv2, which is no CLIP, and ViT-H, which this MSI was not trained with; by the tensors that ComfyUI knows them by."""
    folder = server.base / "models" / "clip_vision"
    folder.mkdir(exist_ok=True)
    save_file({mark: torch.zeros({"dinov2": 1024, "vit-h": 1280}[kind])}, folder / f"{kind}.safetensors")
    graph, loader, crops = face_graph()
    other = graph.add("CLIPVisionLoader", clip_name=f"{kind}.safetensors")
    if node == "DiffPrivacyTrainMSI":
        train(graph, loader, crops, "other", clip_vision=other, msi=slot(loader, MSI_SLOT))
    else:
        inputs = {"msi": slot(loader, MSI_SLOT), "image": crops, "clip": slot(loader, 1), "clip_vision": other}
        graph.add("PreviewAny", source=graph.add(node, prompt="a photo of *", **inputs))
    with pytest.raises(PromptError, match=message):
        server.run(graph)
    server.free()
