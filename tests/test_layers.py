# SPDX-License-Identifier: Apache-2.0
"""The import rules of the library, over the imports that are really in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tal_fast

PACKAGE = Path(tal_fast.__file__).parent
ROOT = PACKAGE.parent

# Importable from everywhere; page and threads import the errors, the others nothing of ours.
LEAVES = {
    "averaging", "errors", "interrupts", "page", "progress", "ranges", "threads", "typing",
    "waiting",
}  # fmt: skip

# Who may import whom. What is not listed as a key fails, so that a new part gets its place here.
BELOW_MODELS = {"_C", "ops"}
BELOW_TRAINING = BELOW_MODELS | {"models", "evaluation", "data"}
BELOW_STUDY = BELOW_TRAINING | {"training", "curves", "info"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "page": {"errors"},
    "averaging": set(),
    "interrupts": set(),
    "progress": set(),
    "ranges": set(),
    "threads": {"errors"},
    "typing": set(),
    "waiting": set(),
    "reference": set(),
    "ops": {"_C", "_C_cuda"},
    "info": BELOW_MODELS,
    "data": BELOW_MODELS,
    "evaluation": BELOW_MODELS | {"data"},
    "models": BELOW_MODELS | {"data", "evaluation"},
    "training": BELOW_TRAINING | {"info"},
    "profiling": BELOW_STUDY,
    "curves": {"data"},
    "study": BELOW_STUDY,
    "compat": BELOW_MODELS | {"data", "evaluation"},
    "api": BELOW_STUDY | {"study"},
    "cli": BELOW_STUDY | {"study", "profiling", "api"},
    "__main__": {"cli"},
}


def part_of(module: str) -> str | None:
    """The part of tal_fast that a dotted name belongs to; None for other packages."""
    names = module.split(".")
    return names[1] if names[0] == "tal_fast" and len(names) > 1 else None


def for_types_alone(tree: ast.Module) -> set[ast.AST]:
    """What is under ``if TYPE_CHECKING``, and so is never run."""
    guards = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    return {inner for guard in guards for item in guard.body for inner in ast.walk(item)}


def imported(path: Path, *, run: bool = False) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at the top or in a function, with its line.

    ``run``: only what is imported when the file runs.
    """
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = for_types_alone(tree) if run else set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(name for name in (base, node.module) if name)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}" if module == "tal_fast" else module


# What training and what stands on it may know of models: the class, how to find one and to call it.
OF_MODELS = {"base", "called", "registry", "settings"}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_of_the_rules_exists() -> None:
    # Native libraries by their stubs: _C_cuda is built only where torch is a CUDA build.
    parts = {p.name.split(".")[0] for p in PACKAGE.iterdir() if p.is_dir() or "py" in p.suffix}
    phantoms = LEAVES.union(ALLOWED, *ALLOWED.values()) - parts
    assert not phantoms, f"no part of the package is called {sorted(phantoms)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        found = [m for _, m in imported(path, run=True) if part_of(m)]
        assert not found, "tal_fast itself stays light"
        return
    assert part in ALLOWED, f"{part} has no place in ALLOWED yet"
    for line, module in imported(path):
        target = part_of(module)
        # `from tal_fast import __version__` is fine everywhere.
        if target in (None, part, "__version__"):
            continue
        fits = target in ALLOWED[part] or (target in LEAVES and part not in LEAVES | {"reference"})
        assert fits, f"{path.relative_to(ROOT)}:{line}: {part} may not import tal_fast.{target}"


@pytest.mark.parametrize("part", ["training", "profiling", "study", "api.py", "cli"])
def test_the_harness_knows_no_model(part: str) -> None:
    place = PACKAGE / part
    for path in [place] if place.is_file() else place.rglob("*.py"):
        for line, module in imported(path):
            if module.startswith("tal_fast.models."):
                assert module.split(".")[2] in OF_MODELS, f"{path}:{line}: imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "reference").glob("*.py")), ids=lambda p: p.name)
def test_reference_imports_torch_alone(path: Path) -> None:
    for line, module in imported(path):
        top = module.split(".")[0]
        fits = top == "torch" or top in sys.stdlib_module_names
        assert fits, f"{path.name}:{line}: imports {module}"


@pytest.mark.parametrize("modules", ["tal_fast, tal_fast.cli", "tal_fast.study.report.page"])
def test_the_package_the_command_line_and_a_report_are_light(modules: str) -> None:
    # -h must answer in under a second, so torch and scipy come in where they are needed; a report
    # whose fits were kept needs neither.
    code = (
        f"import sys, {modules}\n"
        "print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["utils", "helpers", "common"])
def test_no_catch_all_modules(name: str) -> None:
    assert not [p for p in SOURCES if name in (p.stem, *p.relative_to(PACKAGE).parts[:-1])]


def test_native_code_keeps_its_layers() -> None:
    """Kernels, reader and evaluator see neither torch nor Python; bindings.cpp sees no torch."""
    forbidden = {
        "math": ("torch/", "pybind11", "Python.h", "ops/", "cpu/", "cuda/"),
        "cpu": ("torch/", "pybind11", "Python.h", "ops/", "cuda/"),
        "cuda/*.cuh": ("torch/", "pybind11", "Python.h", "ops/", "cpu/"),
        "cuda/*.cu": ("pybind11", "Python.h", "ATen/", "torch/extension.h", "c10/", "cpu/"),
        "cuda/module.cpp": ("torch/", "pybind11", "ops/", "cpu/"),
        "reader": ("torch/", "pybind11", "Python.h", "ops/", "evaluation/"),
        "evaluation": ("torch/", "pybind11", "Python.h", "ops/", "reader/"),
        "ops": ("pybind11", "Python.h", "ATen/", "torch/extension.h", "c10/", "cuda/"),
        "bindings.cpp": ("torch/", "ops/"),
    }
    csrc = ROOT / "csrc"
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in (".cpp", ".h", ".cu", ".cuh"):
            continue
        part = path.relative_to(csrc).parts[0]
        if part == "cuda":  # kernels, launchers, module
            torch_free = path.suffix == ".cuh"
            part = "cuda/*.cuh" if torch_free else "cuda/*.cu"
            part = "cuda/module.cpp" if path.name == "module.cpp" else part
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#include"):
                found = [name for name in forbidden[part] if name in line]
                assert not found, f"{path.relative_to(ROOT)}: {line}"
