"""Imports go downward only; the client knows nothing of the server; importing stays light.

Every import counts, also one inside a function or for type checking.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convserve

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "clients" / "python" / "src" / "convserve_client"

FILES = {"_npz", "preprocessing", "presets", "model_file", "images", "image_memory", "feature_maps"}
BELOW_PLAN = {"errors", "kernels", "graph"} | FILES
# What each part of convserve may import, itself apart.
ALLOWED = {
    "errors": set(),
    "kernels": {"errors"},
    "graph": {"errors", "kernels"},
    "layers": {"graph"},
    **dict.fromkeys(FILES, BELOW_PLAN),
    "plan": BELOW_PLAN,
    "engine": BELOW_PLAN | {"plan"},
    "serving": BELOW_PLAN | {"plan", "engine"},
    "convert": BELOW_PLAN,
    "datasets": BELOW_PLAN,
    "training": BELOW_PLAN | {"plan", "datasets"},
}
ALLOWED["cli"] = set(ALLOWED) | {"cli"}
ALLOWED["__main__"] = {"cli"}
# Outside libraries that only these parts may import at all.
ONLY_IN = {
    "grpc": {"serving", "cli"},
    "grpc_health": {"serving"},
    "grpc_reflection": {"serving"},
    "prometheus_client": {"serving"},
    "convserve_client": {"serving", "cli"},
    "onnx": {"convert"},
    "matplotlib": {"training"},
    "click": {"cli"},
    "rich": {"cli"},
}


def python_files() -> list[tuple[str, Path]]:
    """(part of convserve, file) for every Python file but the package's own __init__."""
    found = []
    for path in sorted((ROOT / "convserve").rglob("*.py")):
        part = path.relative_to(ROOT / "convserve").parts[0].removesuffix(".py")
        if part != "__init__":
            found.append((part, path))
    return found + [("kernels", path) for path in sorted((ROOT / "kernels").glob("*.py"))]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a Python file, `convserve.x` attributes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            if node.module == "convserve":
                yield from ((node.lineno, f"convserve.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, str(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "convserve":
            yield node.lineno, f"convserve.{node.attr}"


def part_of(module: str) -> str | None:
    """The part of convserve that a dotted name leads to; None for the package and its version."""
    _, _, rest = module.partition(".")
    name = rest.split(".")[0]
    if name in ("", "__version__"):
        return None
    if name in convserve._LAZY and name not in ALLOWED:  # convserve.load: where it lives
        return part_of(convserve._LAZY[name][0])
    return name


@pytest.mark.parametrize("part, path", python_files(), ids=lambda v: getattr(v, "name", v))
def test_imports_go_downward(part: str, path: Path) -> None:
    assert part in ALLOWED, f"{path}: a new part of convserve needs its place among the layers"
    for line, module in imported(path):
        top = module.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        if top == "convserve":
            target = part_of(module)
            fits = target in (None, part) or target in ALLOWED[part]
            assert fits, f"{where}: {part} may not import {module}"
        elif top in ONLY_IN:
            assert part in ONLY_IN[top], f"{where}: {part} may not import {top}"


def test_compiled_modules_import_nothing_above_kernels() -> None:
    for path in sorted((ROOT / "kernels").glob("*.p[yx][xdi]")):
        for target in re.findall(r"(?:from|import|cimport)\s+convserve\.(\w+)", path.read_text()):
            assert target in ("errors", "kernels"), f"{path.name} imports convserve.{target}"


def test_the_client_imports_nothing_of_convserve() -> None:
    files = sorted(CLIENT.rglob("*.py"))
    assert files
    for path in files:
        for line, module in imported(path):
            assert module.split(".")[0] != "convserve", f"{path.name}:{line} imports {module}"


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return {name.split(".")[0] for name in result.stdout.split()}


HEAVY = {"grpc", "PIL", "onnx", "matplotlib", "rich", "click", "prometheus_client", "pyarrow"}


@pytest.mark.parametrize(
    "statement, absent",
    [
        ("import convserve", HEAVY | {"numpy", "google"}),
        ("import convserve.graph, convserve.model_file", HEAVY | {"google"}),
        ("import convserve; convserve.load", HEAVY | {"google"}),
        ("import convserve.cli", HEAVY - {"click"} | {"numpy", "google"}),
        ("import convserve.cli.serve", {"PIL", "onnx", "matplotlib", "rich", "pyarrow"}),
        ("import convserve_client", {"convserve", "PIL", "onnx", "matplotlib", "rich", "click"}),
    ],
)
def test_importing_stays_light(statement: str, absent: set[str]) -> None:
    assert not modules_after(statement) & absent
