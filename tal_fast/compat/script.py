# SPDX-License-Identifier: Apache-2.0
"""Runs a script as Python itself would, with a look at its functions before its main block."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from tal_fast.compat.installation import current
from tal_fast.errors import ConfigError

__all__ = ["check_script", "imports_of", "run_module", "run_script"]

_EXAMINE = "__tal_fast_compat_examine__"


def check_script(path: str) -> None:
    """Refuses what cannot be run as a script.

    Raises:
        ConfigError: it does not exist, is no file, or something beside it has our name.
    """
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "nothing there"
        raise ConfigError(f"tal_fast.compat: expected a script, got {path!r}: {what}")
    folder = Path(path).resolve().parent
    own = Path(__file__).resolve().parents[1]
    for other in (folder / "tal_fast", folder / "tal_fast.py"):
        if other.exists() and other.resolve() != own:
            raise ConfigError(
                f"tal_fast.compat: {other} and this library would shadow each other; rename it"
            )


def run_script(path: str, args: Sequence[str]) -> None:
    """Runs ``python path args…`` in this process."""
    _as_main(path, args, _code_of(path))


def run_module(name: str, args: Sequence[str]) -> None:
    """Runs ``python -m name args…`` in this process."""
    sys.argv = [name, *args]
    sys.path[0] = os.getcwd()
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def imports_of(path: str, args: Sequence[str]) -> None:
    """Runs what a script does before its main block, so that its modules are loaded and examined.

    Without such a block only imports, definitions and changes of ``sys.path`` are run. What fails
    is shown, and the rest goes on.
    """
    tree = _parse(path)
    guarded = any(_is_main_block(node) for node in tree.body)
    main = _main_module(path, args)
    # The names of the script's own functions; its main block would run under this one.
    main.__name__ = "__dry_run__"
    sys.modules["__dry_run__"] = main
    for node in tree.body:
        if _is_main_block(node) or not (guarded or _prepares(node)):
            continue
        piece = ast.Module([node], [])
        try:
            exec(compile(piece, os.path.abspath(path), "exec", dont_inherit=True), vars(main))
        except (Exception, SystemExit):
            print(f"{path}:{node.lineno}: not run:", file=sys.stderr)
            traceback.print_exc(limit=0)
    current().examiner.examine(main)


def _as_main(path: str, args: Sequence[str], code: CodeType) -> None:
    main = _main_module(path, args)
    before = sys.modules["__main__"]
    sys.modules["__main__"] = main
    vars(builtins)[_EXAMINE] = lambda: current().examiner.examine(main)
    try:
        exec(code, vars(main))
    finally:
        vars(builtins).pop(_EXAMINE, None)
        # Of the launcher nothing is left to find; its globals must live as long as it runs.
        main.__dict__.setdefault("__tal_fast_launcher__", before)


def _main_module(path: str, args: Sequence[str]) -> ModuleType:
    sys.argv = [path, *args]
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    main = ModuleType("__main__")
    main.__file__ = os.path.abspath(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    vars(main)["__builtins__"] = builtins
    return main


def _parse(path: str) -> ast.Module:
    return ast.parse(Path(path).read_bytes(), path)


def _code_of(path: str) -> CodeType:
    """Compiles a script; a call that examines it stands before its main block."""
    tree = _parse(path)
    tree.body = list(_with_examination(tree.body))
    code: CodeType = compile(tree, os.path.abspath(path), "exec", dont_inherit=True)
    return code


def _with_examination(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if _is_main_block(node):
            call = ast.parse(f"{_EXAMINE}()").body[0]
            for part in ast.walk(call):
                ast.copy_location(part, node)
            yield call
        yield node


def _is_main_block(node: ast.stmt) -> bool:
    """Whether it is ``if __name__ == "__main__":``."""
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    parts = [node.test.left, *node.test.comparators]
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    words = {part.value for part in parts if isinstance(part, ast.Constant)}
    return "__name__" in names and "__main__" in words


def _prepares(node: ast.stmt) -> bool:
    """Whether a statement only loads, defines, or changes ``sys.path``."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
        return True
    if isinstance(node, ast.Try):
        return all(map(_prepares, node.body))
    return "sys.path" in ast.unparse(node)
