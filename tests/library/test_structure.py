"""What keeps the sources readable: short modules, short functions, and tests and benchmarks that know nothing of each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "diffprivacy", "nodes", "testing", "tests", "training")
MODULES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 60
"""But for the schemas of nodes, which are lists."""
PARAMETERS = 8
"""Of a public function of the library, those with defaults included; more travel together in a class."""


@pytest.mark.parametrize("path", MODULES, ids=Path.as_posix)
def test_modules_and_functions_are_short(path: Path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LINES_OF_A_MODULE
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno is not None}
    lengths.pop("define_schema", None)
    assert {name: length for name, length in lengths.items() if length > LINES_OF_A_FUNCTION} == {}


def test_public_functions_take_few_parameters():
    many = []
    for path in MODULES:
        if path.parts[0] == "diffprivacy":
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    names = [
                        each.arg for each in node.args.args + node.args.kwonlyargs if each.arg not in ("self", "cls")
                    ]
                    many += [(path.as_posix(), node.name, names)] if len(names) > PARAMETERS else []
    assert not many


@pytest.mark.parametrize(("folder", "other"), [("tests", "benchmarks"), ("benchmarks", "tests"), ("testing", "tests")])
def test_neither_imports_the_other(folder: str, other: str):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[0] == other], path
