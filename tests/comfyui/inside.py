"""A Python process of ComfyUI's own, on the CPU, with the pack loaded, that runs scripts in forks of itself.

python inside.py COMFYUI PACK takes lines of JSON, [file for its output, file for its errors, script, argument, ...], and
answers each with "exit STATUS". ComfyUI's native part is there as on a machine with an NVIDIA card.
"""

import asyncio
import faulthandler
import json
import os
import runpy
import sys
import traceback

comfyui, pack = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)
sys.path.append(pack)

import comfy_aimdo.control  # noqa: E402

comfy_aimdo.control.init(implementation="cuda")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import nodes  # noqa: E402

assert asyncio.run(nodes.load_custom_node(pack))


def run(output: str, errors: str, *arguments: str) -> None:
    """Run a script in this process and end it; a crash is told in the file of errors."""
    for file, stream in ((output, sys.stdout), (errors, sys.stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    faulthandler.enable()
    sys.argv = list(arguments)
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(*json.loads(line))
    print(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
