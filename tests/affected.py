# SPDX-License-Identifier: Apache-2.0
"""Which test files ``make check`` runs: those of what changed, and of its neighbours.

``python tests/affected.py [--base COMMIT]`` prints them, one a line. Changed is what differs from
the commit where this branch left ``origin/main`` or ``main``, what is not committed included.

- A changed module of the library stands for the tests that import it or name it in full, for those
  called like it (``test_nms*.py`` of ``nms.py``), and for those called like a module that imports
  it. Where that is nothing, for the tests of its folder, or called like that.
- A name from a package leads to the module that defines it, not to all that the package imports.
- A changed source in ``csrc`` stands for the ops, readers and evaluators whose sources include it.
- A changed test stands for itself, a helper for the tests that import it, a ``conftest.py`` for its
  folder. Any other file stands for the tests and modules that mention its name.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

NATIVE = (".cpp", ".h", ".cu", ".cuh")
#: Names of files that too many others mention.
EVERYWHERE = {"__init__.py", "conftest.py", "README.md", "CHANGELOG.md", ".gitignore"}
#: For every change of the library.
ALWAYS = "tests/test_layers.py"


class Project:
    """The files of a checkout, and who imports whom."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = {
            _dotted(path): path for path in self._files("tal_fast", "*.py", "*.pyi")
        }  # a stub stands for its native library
        self.tests = self._files("tests", "test_*.py")
        self._helpers = {
            path.stem: path
            for folder in ("tests", "benchmarks", "build_backend")
            for path in self._files(folder, "*.py")
            if path not in self.tests and path.name not in EVERYWHERE
        }
        conftests = self._files("tests", "conftest.py")
        everything = (*self.modules.values(), *self.tests, *self._helpers.values(), *conftests)
        self._nodes = {
            path: [
                node
                for node in ast.walk(ast.parse(self.text(path), str(path)))
                if isinstance(node, (ast.Import, ast.ImportFrom, ast.Constant, ast.Attribute))
            ]
            for path in everything
        }
        packages = [name for name, path in self.modules.items() if path.stem == "__init__"]
        self._defined_in = {name: self._exports(name) for name in packages}
        self.importers: defaultdict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
        for path in everything:
            for target in self._imports(path):
                self.importers[target].add(path)

    def _files(self, folder: str, *patterns: str) -> list[PurePosixPath]:
        found = (path for pattern in patterns for path in (self.root / folder).rglob(pattern))
        return sorted(PurePosixPath(path.relative_to(self.root).as_posix()) for path in found)

    def text(self, path: PurePosixPath) -> str:
        """The text of a file of the checkout."""
        return (self.root / path).read_text("utf-8", errors="replace")

    def _exports(self, package: str) -> dict[str, str]:
        """Name -> module, of the names that a package takes from its modules."""
        return {
            alias.asname or alias.name: node.module
            for node in self._nodes[self.modules[package]]
            if isinstance(node, ast.ImportFrom) and node.module in self.modules
            for alias in node.names
        }

    def _module_of(self, dotted: str) -> PurePosixPath | None:
        """The file behind ``package.module`` or ``package.module.name``, if it is ours."""
        if dotted in self.modules:
            return self.modules[dotted]
        owner, _, name = dotted.rpartition(".")
        for _ in range(3):  # a package may pass on what another one passed on
            if owner not in self._defined_in:
                break
            if f"{owner}.{name}" in self.modules:
                return self.modules[f"{owner}.{name}"]
            if name not in self._defined_in[owner]:
                break
            owner = self._defined_in[owner][name]
        return self.modules.get(owner) or (self._module_of(owner) if "." in owner else None)

    def _imports(self, path: PurePosixPath) -> Iterator[PurePosixPath]:
        """The files of ours that a file uses, at any place in it."""
        packages: dict[str, str] = {}  # as they are called in this file
        names: set[str] = set()
        for node in self._nodes[path]:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    names.add(alias.name)
                    if alias.asname:
                        packages[alias.asname] = alias.name
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}"
                    names.add(dotted)
                    packages[alias.asname or alias.name] = dotted
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # A monkeypatch, a program of its own, a command.
                names.update(re.findall(r"\btal_fast(?:\.\w+)+", node.value))
        used = {
            f"{packages[node.value.id]}.{node.attr}"
            for node in self._nodes[path]
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and packages.get(node.value.id) in self._defined_in
        }
        # A package whose names are used one by one is not used as a whole.
        whole = {name.rpartition(".")[0] for name in used}
        for name in (names - whole) | used:
            target = self._helpers.get(name.split(".")[0]) or self._module_of(name)
            if target is not None and target != path:
                yield target

    def called_like(self, stem: str) -> list[PurePosixPath]:
        """The tests called ``test_STEM.py`` or ``test_STEM_more.py``."""
        pattern = re.compile(rf"test_{re.escape(stem)}(_\w+)?\.py")
        return [test for test in self.tests if stem and pattern.fullmatch(test.name)]

    def mentioning(self, name: str) -> list[PurePosixPath]:
        """The tests and modules whose text has this name of a file."""
        found = re.compile(rf"(?<![\w-]){re.escape(name)}(?!\w)")
        users = (*self.tests, *self.modules.values())
        return [path for path in users if found.search(self.text(path))]


def _dotted(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Selection:
    """What a set of changed files stands for."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._seen: set[PurePosixPath] = set()
        self.tests: set[PurePosixPath] = set()

    def add(self, path: PurePosixPath) -> None:
        """Adds the tests of a changed file, which may be gone."""
        if path in self._seen:
            return
        self._seen.add(path)
        project, part = self._project, path.parts[0]
        if part in ("tal_fast", "csrc"):
            self.tests.add(PurePosixPath(ALWAYS))
        if path in project.tests:
            self.tests.add(path)
        elif part == "tests" and path.name == "conftest.py":
            self._add_folder(path.parent)
        elif part == "tal_fast" and path.suffix in (".py", ".pyi"):
            self._add_module(path)
        elif part == "csrc" and path.suffix in NATIVE:
            self._add_native(path)
        elif path.suffix == ".py" and path in project.importers:
            self._add_importers(path)
        elif path.name not in EVERYWHERE or len(path.parts) == 1:
            for user in project.mentioning(path.name):
                self.add(user)
            if part == "tests":  # part of what a folder of tests is made of
                self.tests.update(project.called_like(path.parent.name))

    def _add_folder(self, folder: PurePosixPath) -> None:
        self.tests.update(test for test in self._project.tests if folder in test.parents)

    def _add_importers(self, helper: PurePosixPath) -> None:
        """A helper of tests or benchmarks stands for its users, which are what it is for."""
        for user in self._project.importers[helper]:
            if user in self._project.tests:
                self.tests.add(user)
            elif user.parts[0] != "tal_fast":
                self.add(user)

    def _add_module(self, path: PurePosixPath) -> None:
        project = self._project
        own = path.stem if path.stem != "__init__" else path.parent.name
        found = set(project.called_like(own))
        for user in project.importers[path]:
            if user in project.tests:
                found.add(user)
            elif user.stem != "__init__":
                found.update(project.called_like(user.stem))
        self.tests |= found
        if not found and len(path.parts) > 2:
            self._add_folder(PurePosixPath("tests", path.parts[1]))
            self.tests.update(project.called_like(path.parts[1]))

    def _add_native(self, path: PurePosixPath) -> None:
        """Follows the includes up to sources, and from a source to the Python of the same stem."""
        root = self._project.root
        sources = [p for p in (root / "csrc").rglob("*") if p.suffix in NATIVE]
        includes = {
            PurePosixPath(p.relative_to(root).as_posix()): set(
                re.findall(r'#include "([^"]+)"', p.read_text("utf-8"))
            )
            for p in sources
        }
        reached, queue = {path}, [path]
        header = path.with_suffix(".h")
        if self._op_of(path) is None and header in includes:  # what it defines is for others
            queue.append(header)
        while queue:
            name = queue.pop().relative_to("csrc").as_posix()
            new = {source for source, wanted in includes.items() if name in wanted} - reached
            reached |= new
            queue += new
        for source in reached:
            self._add_source(source)

    def _add_source(self, source: PurePosixPath) -> None:
        project, part = self._project, source.parts[1]
        if part == "evaluation":
            self._add_folder(PurePosixPath("tests/evaluation"))
        elif part in ("reader", "bindings.cpp"):
            for user in project.importers[PurePosixPath("tal_fast/_C.pyi")]:
                if user.parts[0] == "tal_fast" and (part != "reader" or "data" in user.parts):
                    self._add_module(user)
        elif (op := self._op_of(source)) is not None:
            self._add_module(op)

    def _op_of(self, source: PurePosixPath) -> PurePosixPath | None:
        """The Python module of an op that a source is part of, by the beginning of its name."""
        stem = source.stem
        while stem:
            if f"tal_fast.ops.{stem}" in self._project.modules:
                return self._project.modules[f"tal_fast.ops.{stem}"]
            stem = stem.rpartition("_")[0]  # deform_attn_backward, nms_hard
        return None


def select(root: Path, changed: Iterable[str]) -> list[str]:
    """Chooses the test files for a change.

    Args:
        root: the checkout.
        changed: paths of changed files, relative to it.

    Returns:
        Paths of test files, relative to it, sorted.
    """
    selection = Selection(Project(root))
    for path in changed:
        selection.add(PurePosixPath(path))
    return sorted(str(test) for test in selection.tests if (root / test).exists())


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def changed_files(root: Path, base: str | None = None) -> tuple[str, list[str]]:
    """Asks git what has changed.

    Args:
        root: the checkout.
        base: what to compare with; None for where the branch left ``origin/main`` or ``main``.

    Returns:
        The commit compared with, and the changed files, those not committed and not tracked too.

    Raises:
        SystemExit: not a git checkout, or no such commit.
    """
    for name in (base,) if base else ("origin/main", "main", "HEAD"):
        found = _git(root, "merge-base", name, "HEAD")
        if found:
            commit = found.strip()
            differing = _git(root, "diff", "--name-only", "-z", "--no-renames", commit) or ""
            untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z") or ""
            return commit, sorted({*differing.split("\0"), *untracked.split("\0")} - {""})
    raise SystemExit(f"affected.py: expected a git checkout with the commit {base or 'HEAD'}")


def main(arguments: list[str]) -> int:
    """Prints the test files; on standard error, compared with what, and how many of them."""
    parser = argparse.ArgumentParser(description="Prints the tests of what changed.")
    parser.add_argument("--base", help="compare with this commit (default: origin/main, main)")
    base = parser.parse_args(arguments).base
    root = Path(__file__).resolve().parents[1]
    commit, changed = changed_files(root, base)
    tests = select(root, changed)
    every = len(list((root / "tests").rglob("test_*.py")))
    print(
        f"{len(changed)} files differ from {commit[:12]}: {len(tests)} of {every} test files",
        file=sys.stderr,
    )
    print(*tests, sep="\n" if tests else "", end="\n" if tests else "")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
