# SPDX-License-Identifier: Apache-2.0
"""Profilers of others around a training: the exact command, and what they found, in the profile.

Which flags a tool knows is asked of the version that is installed. A tool that is not there, or not
allowed to look, is no error: the profile says why there is nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tal_fast.data.files import check_writable
from tal_fast.errors import ConfigError, TrainingError, nearest
from tal_fast.profiling.profile import FORMAT
from tal_fast.profiling.recording import CAPTURE, write_files
from tal_fast.profiling.report import read_profile
from tal_fast.profiling.tool_output import Rows, ncu_tables, nsys_rows, speedscope_rows
from tal_fast.training.environment import describe_environment

__all__ = ["TOOLS", "Found", "external_command", "folder_of", "run_external"]

_NSYS_REPORTS = (
    "nvtx_sum",
    "nvtx_gpu_proj_sum",
    "cuda_gpu_kern_sum",
    "cuda_api_sum",
    "cuda_gpu_mem_time_sum",
    "osrt_sum",
)
_KEPT_LINES = 40  # of what a tool says


@dataclass(frozen=True)
class Tool:
    """A profiler.

    Attributes:
        name: as it is called.
        verb: words behind its name.
        flags: words to give it; ``{out}`` is the file without its ending. Each begins with the name
            by which its help knows it.
        cuda_flags: further ones, where there is a GPU.
        joined: whether a flag and its value are one word.
        droppable: name of a flag to do without where it is not permitted.
        stem: of its file.
        ending: of its file.
        denied: how it says that it may not look.
        right: what would let it.
        environment: of the training.
    """

    name: str
    verb: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    cuda_flags: tuple[tuple[str, ...], ...]
    stem: str
    ending: str
    denied: str
    right: str
    joined: bool = False
    droppable: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            name="nsys",
            verb=("profile",),
            flags=(
                ("--trace", "cuda,nvtx,osrt"),
                ("--pytorch", "autograd-nvtx"),
                ("--force-overwrite", "true"),
                ("--output", "{out}"),
            ),
            cuda_flags=(
                ("--capture-range", "cudaProfilerApi"),
                ("--capture-range-end", "stop"),
                ("--gpu-metrics-devices", "cuda-visible"),
            ),
            stem="nsys",
            ending=".nsys-rep",
            denied=r"ERR_NVGPUCTRPERM|[Ii]nsufficient privilege|[Pp]ermission",
            right="GPU metrics need root, or NVreg_RestrictProfilingToAdminUsers=0 for the driver",
            joined=True,
            droppable="--gpu-metrics-devices",
            environment={"TAL_FAST_NVTX": "1", CAPTURE: "1"},
        ),
        Tool(
            name="ncu",
            verb=(),
            flags=(
                ("--set", "roofline"),
                ("--launch-count", "300"),
                ("--nvtx",),
                ("--csv",),
                ("--log-file", "{out}.csv"),
            ),
            cuda_flags=(("--profile-from-start", "off"),),
            stem="ncu",
            ending=".csv",
            denied=r"ERR_NVGPUCTRPERM",
            right="kernel counters need root, or NVreg_RestrictProfilingToAdminUsers=0 for the "
            "driver",
            environment={"TAL_FAST_NVTX": "1", CAPTURE: "1"},
        ),
        Tool(
            name="py-spy",
            verb=("record",),
            flags=(
                ("--native",),
                ("--format", "speedscope"),
                ("--rate", "20"),
                ("--output", "{out}.speedscope.json"),
                ("--",),
            ),
            cuda_flags=(),
            stem="stacks",
            ending=".speedscope.json",
            denied=r"[Pp]ermission [Dd]enied|Operation not permitted|EPERM|requires root",
            right="it looks by ptrace: root, the capability SYS_PTRACE, or "
            "kernel.yama.ptrace_scope=0",
        ),
    )
}


@dataclass
class Found:
    """What came of a tool.

    Attributes:
        command: that was printed, fit for a shell.
        reason: why there is nothing, if so.
        notes: what was left out.
        tables: of what it found, by name.
        file: its own, to be opened with it.
    """

    command: str
    reason: str | None = None
    notes: list[str] = field(default_factory=list)
    tables: dict[str, Rows] = field(default_factory=dict)
    file: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return dict(vars(self))


def folder_of(arguments: Sequence[str], out: Path | None) -> Path:
    """Returns where a profile goes: as given, else beside what ``train --out`` writes.

    Raises:
        ConfigError: nothing says where; or the arguments are of no training.
    """
    if not arguments or arguments[0] != "train":
        got = arguments[0] if arguments else "nothing"
        hint = nearest(got, ["train"])
        raise ConfigError(f"expected `-- train ...` behind the options, got {got!r}{hint}")
    if out is not None:
        return out
    for place, word in enumerate(arguments):
        if word == "--out" and place + 1 < len(arguments):
            return Path(arguments[place + 1]) / "profile"
        if word.startswith("--out="):
            return Path(word.removeprefix("--out=")) / "profile"
    raise ConfigError("--out: expected it here or in the command of the training")


def external_command(
    tool: Tool, arguments: Sequence[str], file: Path, known: str | None, without: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Returns a tool's command around a training, and what was left out.

    Args:
        tool: the tool.
        arguments: of ``tal-fast``.
        file: that it writes, without ending.
        known: its help; None where it is not installed, and all flags are taken for known.
        without: names of flags to leave out.
    """
    flags = [*tool.flags]
    if _on_gpu():
        flags[:0] = tool.cuda_flags
    command, notes = [tool.name, *tool.verb], []
    for name, *values in flags:
        if name in without:
            continue
        if name != "--" and known is not None and not _has_flag(known, name):
            notes.append(f"this {tool.name} has no {name}: it was left out")
            continue
        words = [name, *(value.format(out=file) for value in values)]
        command += ["=".join(words)] if tool.joined else words
    training = list(arguments)
    if CAPTURE in tool.environment and not any(w.startswith("--profile") for w in training):
        training.append("--profile=20")  # whose steps are the ones to look at
    return [*command, sys.executable, "-m", "tal_fast", *training], notes


def _on_gpu() -> bool:
    return torch.cuda.is_available()


def _has_flag(help_text: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", help_text) is not None


def run_external(
    name: str, arguments: Sequence[str], folder: Path, said: Callable[[str], None]
) -> Found:
    """Runs a training under a tool and writes what it found into the profile.

    Args:
        name: of :data:`TOOLS`.
        arguments: of ``tal-fast``, beginning with ``train``.
        folder: of the profile.
        said: told the command, then all that is printed.

    Raises:
        TrainingError: the training failed.
        DataError: ``folder`` cannot be written, or holds a profile that cannot be read.
    """
    tool = TOOLS[name]
    check_writable(folder)
    # Before the training: what it took would be lost.
    if (folder / "profile.json").is_file():
        read_profile(folder)
    file = (folder / tool.stem).resolve()
    path = shutil.which(name)
    known = None if path is None else _help_of(tool)
    command, notes = external_command(tool, arguments, file, known)
    outcome = Found(_shell(tool, command), notes=notes)
    said(outcome.command)
    if path is None:
        outcome.reason = f"{name} is not installed, or not on PATH"
    else:
        _run(tool, command, arguments, file, outcome, said)
    _keep(folder, name, outcome)
    return outcome


def _shell(tool: Tool, command: Sequence[str]) -> str:
    variables = [f"{key}={shlex.quote(value)}" for key, value in tool.environment.items()]
    return " ".join([*variables, shlex.join(command)])


def _help_of(tool: Tool) -> str | None:
    """Returns what a tool says of its flags; None where it says nothing."""
    try:
        done = subprocess.run(
            [tool.name, *tool.verb, "--help"], capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{done.stdout}\n{done.stderr}".strip() or None


def _run(
    tool: Tool,
    command: list[str],
    arguments: Sequence[str],
    file: Path,
    outcome: Found,
    said: Callable[[str], None],
) -> None:
    status, lines = _watched(command, tool.environment, said)
    denied = [line for line in lines if re.search(tool.denied, line)]
    if status and denied and tool.droppable and tool.droppable in " ".join(command):
        outcome.notes.append(f"{tool.droppable} was left out: {tool.right}")
        known = _help_of(tool)
        command, _ = external_command(tool, arguments, file, known, [tool.droppable])
        outcome.command = _shell(tool, command)
        said(outcome.command)
        status, lines = _watched(command, tool.environment, said)
        denied = [line for line in lines if re.search(tool.denied, line)]
    written = file.with_name(file.name + tool.ending)
    if not status:  # what the training said of permissions is its own business
        denied = []
    if written.is_file() and tool.name == "ncu":
        denied += [x for x in written.read_text("utf-8", "replace").splitlines()
                   if re.search(tool.denied, x)]  # fmt: skip
    if denied:
        outcome.reason = (
            f"{tool.name} was not permitted to look ({denied[0].strip()}): {tool.right}"
        )
        return
    if status:
        last = lines[-1].strip() if lines else "it said nothing"
        raise TrainingError(f"{tool.name} ended with status {status}: {last}")
    if not written.is_file():
        outcome.reason = f"{tool.name} wrote no {written.name}"
        return
    outcome.file = written.name
    outcome.tables, notes = _DIGESTS[tool.name](written)
    outcome.notes += notes
    if not outcome.tables:
        outcome.reason = f"{written.name} holds nothing of the training"


def _watched(
    command: Sequence[str], variables: Mapping[str, str], said: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Runs a command; passes on what it prints, and returns its status and last lines."""
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            said(line.rstrip("\n"))
            lines = [*lines[-_KEPT_LINES:], line]
    return process.returncode, lines


def _nsys(file: Path) -> tuple[dict[str, Rows], list[str]]:
    tables, notes = {}, []
    for report in _NSYS_REPORTS:
        command = ["nsys", "stats", "--format", "csv", "--report", report, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = nsys_rows(done.stdout) if done.returncode == 0 else []
        if rows:
            tables[report] = rows
        else:
            lines = (done.stderr or done.stdout).strip().splitlines()
            notes.append(f"no {report}: {lines[-1] if lines else 'nothing was recorded'}")
    return tables, notes


def _ncu(file: Path) -> tuple[dict[str, Rows], list[str]]:
    return ncu_tables(file.read_text("utf-8", "replace")), []


def _py_spy(file: Path) -> tuple[dict[str, Rows], list[str]]:
    try:
        rows = speedscope_rows(json.loads(file.read_text("utf-8")))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return {}, [f"{file.name} cannot be read: {type(error).__name__}: {error}"]
    return ({"functions": rows} if rows else {}), []


_DIGESTS: dict[str, Callable[[Path], tuple[dict[str, Rows], list[str]]]] = {
    "nsys": _nsys,
    "ncu": _ncu,
    "py-spy": _py_spy,
}


def _keep(folder: Path, name: str, outcome: Found) -> None:
    """Adds what was found to the profile in a directory, or begins one with it."""
    if (folder / "profile.json").is_file():
        profile = read_profile(folder)
    else:
        profile = {
            "format": FORMAT,
            "command": f"profile {name}",
            "environment": describe_environment(),
        }
    profile["external"] = {**profile.get("external", {}), name: outcome.to_dict()}
    write_files(folder, {"profile.json": profile})
