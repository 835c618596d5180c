# SPDX-License-Identifier: Apache-2.0
"""Runs a script as Python itself would, with a look at its functions before its main block."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from tal_fast.compat.installation import current
from tal_fast.compat.options import FUNCTIONS
from tal_fast.errors import ConfigError

__all__ = ["check_script", "imports_of", "run_module", "run_script"]

_EXAMINE = "__tal_fast_compat_examine__"


def check_script(path: str) -> None:
    """Refuses what cannot be run as a script, or as a folder or zip file with ``__main__.py``.

    Raises:
        ConfigError: there is no such thing, or something beside it has our name.
    """
    if not os.path.isfile(path) and not _is_application(path):
        what = "a folder without __main__.py" if os.path.isdir(path) else "nothing there"
        raise ConfigError(f"tal_fast.compat: expected a script, got {path!r}: {what}")
    folder = Path(path).resolve()
    folder = folder if folder.is_dir() else folder.parent
    library = Path(__file__).resolve().parents[1]
    for other in (folder / "tal_fast", folder / "tal_fast.py"):
        if other.exists() and other.resolve() != library:
            raise ConfigError(
                f"tal_fast.compat: {other} and this library would shadow each other; rename it"
            )


def run_script(path: str, args: Sequence[str]) -> None:
    """Runs ``python path args…`` in this process."""
    if _is_application(path):
        sys.argv = [path, *args]
        if not _keeps_path():
            del sys.path[0]  # of the launcher; runpy puts the path itself there
        # Absolute, for it goes into sys.path, and a script may change the folder.
        runpy.run_path(os.path.abspath(path), run_name="__main__")
    else:
        _as_main(path, args, _code_of(path))


def run_module(name: str, args: Sequence[str]) -> None:
    """Runs ``python -m name args…`` in this process."""
    sys.argv = [name, *args]
    if not _keeps_path():
        sys.path[0] = os.getcwd()
    try:
        missing = importlib.util.find_spec(name) is None
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # of a package around it
        raise SystemExit(
            f"{sys.executable}: Error while finding module specification for {name!r} "
            f"(ModuleNotFoundError: {error})"
        ) from None
    if missing:
        raise SystemExit(f"{sys.executable}: No module named {name}")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _is_application(path: str) -> bool:
    """Whether it is a folder or zip file that Python would run."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "__main__.py"))
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def _keeps_path() -> bool:
    """Whether Python was told (``-P``) to put nothing of a script in front of ``sys.path``."""
    return bool(getattr(sys.flags, "safe_path", False))


def imports_of(path: str, args: Sequence[str]) -> None:
    """Runs what a script does before its main block, so that its modules are loaded and examined.

    Without such a block only imports, definitions and changes of ``sys.path`` are run. What fails
    is shown, and the rest goes on.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "__main__.py")
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
    if not _keeps_path():
        # As Python has it: where the script lies, not where a link to it does.
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    main = ModuleType("__main__")
    main.__file__ = os.path.abspath(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    vars(main).update(__builtins__=builtins, __cached__=None)
    if sys.version_info < (3, 14):  # there they come when they are asked for
        vars(main)["__annotations__"] = {}
    return main


def _parse(path: str) -> ast.Module:
    return ast.parse(Path(path).read_bytes(), os.path.abspath(path))


def _code_of(path: str) -> CodeType:
    """Compiles a script, with a call that examines it before its main block.

    Without such a block the call stands behind the last known function that it defines.
    """
    tree = _parse(path)
    tree.body = list(_with_examination(tree.body))
    code: CodeType = compile(tree, os.path.abspath(path), "exec", dont_inherit=True)
    return code


def _with_examination(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    known = [n for n in body if isinstance(n, ast.FunctionDef) and n.name in FUNCTIONS]
    last = None if any(map(_is_main_block, body)) or not known else known[-1]
    for node in body:
        if _is_main_block(node):
            yield _examination(node)
        yield node
        if node is last:
            yield _examination(node)


def _examination(beside: ast.stmt) -> ast.stmt:
    call = ast.parse(f"{_EXAMINE}()").body[0]
    for part in ast.walk(call):
        ast.copy_location(part, beside)
    return call


def _is_main_block(node: ast.stmt) -> bool:
    """Whether it is ``if __name__ == "__main__":``, perhaps with another condition."""
    if not isinstance(node, ast.If):
        return False
    parts = list(ast.walk(node.test))
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
