"""What is shipped has a licence whose text is shipped too, and what is imported is listed."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from diffprivacy import __version__
from testing import sbom

PACKAGES = {
    "google": "protobuf",
    "cv2": "opencv-python",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Names of packages by what is imported, where they differ."""
EXTRAS = {"torch", "diffusers", "av", "c2pa", "cryptography", "ray"}


def test_every_shipped_binary_has_a_licence_and_its_text():
    assert sbom.binaries() == set(sbom.SHIPPED)
    for name, (_, text, _) in sbom.SHIPPED.items():
        assert (sbom.ROOT / text).is_file(), name


def test_the_bill_of_materials_is_up_to_date():
    assert sbom.FILE.read_text() == sbom.text(), "run python -m testing.sbom"


def imported() -> set[str]:
    """Top-level packages that the library imports, anywhere in it."""
    names = set()
    for path in Path(sbom.FILE.parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_what_is_imported_is_listed():
    listed = set(re.findall(r"^[A-Za-z0-9_.-]+", (sbom.ROOT / "requirements.txt").read_text(), re.MULTILINE))
    needed = {PACKAGES.get(name, name) for name in imported() - set(sys.stdlib_module_names)} - {"diffprivacy"}
    assert needed - EXTRAS <= listed
    assert re.search(r"^onnx>=1\.21", (sbom.ROOT / "requirements.txt").read_text(), re.MULTILINE)


def test_requirements_are_listed_alike_for_pip_for_comfyui_manager_and_for_its_registry():
    """The registry reads static dependencies alone, ComfyUI Manager requirements.txt alone."""
    project = (sbom.ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert re.findall(r'"(.+)"', listed) == (sbom.ROOT / "requirements.txt").read_text().split()


def test_version_and_changelog_agree():
    (version,) = re.findall(r'^version = "(.+)"$', (sbom.ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version == __version__
    releases = re.findall(r"^## \[?([0-9.]+)\]?", (sbom.ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == version
