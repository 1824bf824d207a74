"""The oldest ComfyUI that pyproject.toml names has what the nodes use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2]
SINCE = {
    "CoreModelPatcher": (0, 12),
    "search_aliases=": (0, 12),
    "model_override=": (0, 16),
    "has_intermediate_output=": (0, 19),
    "unload_model_and_clones": (0, 23),
}
"""The youngest of ComfyUI's names that the nodes use or used, and the release that brought each; add those you take up."""


@pytest.fixture(scope="module")
def required() -> tuple[int, int]:
    (found,) = re.findall(r'^requires-comfyui = ">=(\d+)\.(\d+)\.\d+"$', (PACK / "pyproject.toml").read_text(), re.M)
    return int(found[0]), int(found[1])


def test_it_is_the_release_that_brought_the_youngest_name_in_use(required):
    code = "".join(file.read_text() for file in (PACK / "nodes").rglob("*.py"))
    used = {name: release for name, release in SINCE.items() if name in code}
    assert required == max(used.values()), used
