# SPDX-License-Identifier: Apache-2.0
"""``python -m tal_fast.compat``: runs a script, or a module, with everything installed."""

from __future__ import annotations

import argparse
import ast
import os
import sys
import traceback
import zipfile
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tal_fast.compat import hook, script
from tal_fast.compat.installation import install
from tal_fast.compat.options import NMS
from tal_fast.compat.script import check_script, imports_of, run_module, run_script
from tal_fast.compat.user_code import is_user_file
from tal_fast.errors import ConfigError

__all__ = ["main"]

Hook = Callable[[type[BaseException], BaseException, "TracebackType | None"], Any]

#: Files between Python and a script.
_LAUNCHERS = frozenset(
    {
        "<frozen runpy>",
        __file__,
        ast.__file__,
        script.__file__,
        os.path.join(os.path.dirname(__file__), "__main__.py"),
    }
)

#: What torch says where it finds no GPU.
_NO_GPU = ("NVIDIA driver", "not compiled with CUDA", "CUDA is not available", "No CUDA GPUs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; what the script raises goes on.

    Returns:
        The exit status: 2 if the command line is wrong.
    """
    given = _parser().parse_args(arguments)
    command = [*given.command]
    try:
        if not command:
            raise ConfigError("tal_fast.compat: expected a script, got none")
        if not given.m:
            check_script(command[0])
            if given.dry_run and zipfile.is_zipfile(command[0]):
                raise ConfigError("tal_fast.compat: expected a script with --dry-run, got a zip")
        elif given.dry_run:
            raise ConfigError("tal_fast.compat: expected a script with --dry-run, got -m")
        report = install(
            skip=_split(given.skip),
            only=_split(given.only),
            mend=not given.no_mend,
            nms=given.nms,
            device=given.device,
            report=given.report,
            quiet=given.quiet,
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if given.dry_run:
        imports_of(command[0], command[1:])
        report.quiet = True
        print(report.text().replace("__dry_run__.", "__main__."))
        print("  Modules that are imported later are not among them.")
        return 0
    try:
        (run_module if given.m else run_script)(command[0], command[1:])
    except SystemExit:
        raise
    except BaseException:
        # Not before: a script may look at the hook, or set its own.
        sys.excepthook = _shown_by(sys.excepthook, hint=given.device is None)
        raise
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tal_fast.compat",
        description="Runs a script of another codebase with the native ops of tal_fast.",
        epilog="docs/drop-in.md has the codebases.",
    )
    add = parser.add_argument
    add("-m", action="store_true", help="SCRIPT is the name of a module")
    add("--dry-run", action="store_true", help="import what the script imports, and show the table")
    add("--skip", action="append", default=[], metavar="NAME", help="leave it; may be repeated")
    add("--only", action="append", default=[], metavar="NAME", help="replace nothing else")
    add("--no-mend", action="store_true", help="make no mends for old code")
    add("--nms", default="literal", metavar="|".join(NMS), help="order of ties; default literal")
    add("--device", metavar="cpu", help="cpu: what the script sends to CUDA stays on the CPU")
    add("--report", metavar="FILE", help="write the report as JSON, too")
    add("--quiet", action="store_true", help="print no report")
    add("command", nargs=argparse.REMAINDER, metavar="SCRIPT ARGS…")
    return parser


def _split(names: Sequence[str]) -> list[str]:
    return [part for name in names for part in name.split(",")]


def _shown_by(shown: Hook, *, hint: bool) -> Hook:
    """Returns a hook that shows an error of the script as ``python SCRIPT`` shows it.

    Args:
        shown: what shows it.
        hint: say what can be done where a GPU is missing.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lines = _without_launcher(trace)
        if lines is not None or isinstance(error, SyntaxError):
            trace = lines
        shown(kind, error.with_traceback(trace), trace)
        if hint and any(words in str(error) for words in _NO_GPU):
            _explain_missing_gpu(trace)

    return show


def _without_launcher(trace: TracebackType | None) -> TracebackType | None:
    """Returns the traceback from the script's first frame on, without those of the import hook."""
    frames: list[TracebackType] = []
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != hook.__file__ and (frames or file not in _LAUNCHERS):
            frames.append(trace)
        trace = trace.tb_next
    kept: TracebackType | None = None
    for part in reversed(frames):
        kept = TracebackType(kept, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return kept


def _explain_missing_gpu(trace: TracebackType | None) -> None:
    for frame in reversed(traceback.extract_tb(trace)):
        if is_user_file(frame.filename):
            print(
                f"tal_fast.compat: {frame.filename}:{frame.lineno}: `{frame.line}` needs a GPU; "
                "python -m tal_fast.compat --device cpu runs it on the CPU",
                file=sys.stderr,
            )
            return
