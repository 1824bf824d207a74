"""Run by inside.py: what Private Noise gives samplers for latents of any kind.

probe_noise.py OUTPUTS.safetensors
"""

import importlib
import sys

import comfy.nested_tensor
import torch
from safetensors.torch import save_file

import nodes

(outputs_file,) = sys.argv[1:]
node = nodes.NODE_CLASS_MAPPINGS["DiffPrivacyPrivateNoise"]
(noise,) = node.execute().args

with torch.inference_mode():
    image = torch.zeros(3, 4, 64, 64)
    video = torch.zeros(2, 16, 5, 12, 8, dtype=torch.float16)
    nested = comfy.nested_tensor.NestedTensor([torch.zeros(2, 8, 3, 6, 4), torch.zeros(2, 8, 30, 16)])
    outputs = {
        "once": noise.generate_noise({"samples": image}),
        "again": noise.generate_noise({"samples": image}),
        "rows": noise.generate_noise({"samples": image, "batch_index": [7, 2, 7]}),
        "video": noise.generate_noise({"samples": video}),
    }
    guidance, sockets = (
        importlib.import_module(node.__module__.replace("noise", of)) for of in ("guidance", "sockets")
    )
    followed = sockets.FaceBatch(((None,),) * 3, (8, 8), variants=2, tracks=((0,), (1,), (0,)))
    outputs["tracks"] = guidance._private_rows(noise, followed)
    outputs |= {f"nested {i}": part for i, part in enumerate(noise.generate_noise({"samples": nested}).unbind())}

assert len({noise.seed for _ in range(8)}) == 8
save_file({name: tensor.clone() for name, tensor in outputs.items()}, outputs_file)
