"""A Python process of ComfyUI's own, on the CPU, with the pack loaded, that runs scripts in forks of itself.

python inside.py COMFYUI PACK takes lines of JSON, [script, argument, ...], and answers each with "exit STATUS".
"""

import asyncio
import json
import os
import runpy
import sys
import traceback

comfyui, pack = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import nodes  # noqa: E402

assert asyncio.run(nodes.load_custom_node(pack))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = json.loads(line)
        try:
            runpy.run_path(sys.argv[0])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
