# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can show, in two calls: ``make gpu-check``.

The first call (300 s) builds the library for the GPU at hand, offline and into this checkout,
compares bits, and times the kernels; the second (400 s), at once after it on the same machine,
profiles them, runs compute-sanitizer, all tests of the ops, and the peers that torch has to
compile. ``--call 1`` and ``--call 2`` run one of them, else both. A step that fails or runs out of
time does not stop the others.

Whatever ends a call, and when: its report, with every row that was measured until a second before,
is a whole JSON file (``benchmarks/results/<date>-<device>-gpu-check-<call>.json``; with ``--out``
there, too, beside the logs). A table at the end compares with predictions and goals;
``benchmarks/gpu_report.py`` prints it of kept reports.

Needs a Python with a CUDA build of torch, numpy, scipy, pytest, hypothesis, cmake, ninja, pybind11,
and nvcc; pytest-xdist, ncu, compute-sanitizer and what training needs are used where they are.
Installs nothing. ``--dry-run`` lists the steps with their commands; ``--rehearse`` runs all that
needs no GPU on this machine: every step up to its first call of the device.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gpu_report import counters, table, write_json
from gpu_steps import CALL_SECONDS, Step, steps

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/gpu-check"

_KEPT = 6000  # characters of a step's output in the report
_LOG = 1 << 20  # bytes of each step's log beside it
_TICK = 1.0  # seconds between two looks at a step that runs


def log_of(step: Step) -> Path:
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', step.name)}.log"


def _text(path: Path, last: int) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - last))
        return file.read().decode(errors="replace")
    return ""


def run(step: Step, command: list[str], seconds: float) -> dict[str, Any]:
    """Runs a command within ``seconds`` and says how it went; its output goes to its log."""
    began = time.monotonic()
    entry: dict[str, Any] = {"step": step.name, "command": shlex.join(command)}
    log = log_of(step)
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                # The library is in this checkout, and nowhere else.
                env=os.environ
                | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
                | step.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        _running.add(process)
        try:
            status: int | None = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        text = _text(log, _LOG)
        profiled = step.needs is not None and command[0] == step.needs
        problem = step.expects(text) if profiled else None
        if status is None:
            entry |= {"status": "timeout", "problem": f"longer than {seconds:.0f} s"}
        elif status or problem:
            entry |= {"status": "failed", "problem": problem or f"exit {status}"}
        else:
            entry |= {"status": "passed", "problem": None}
        found = counters(text) if profiled else []
        if found:
            entry["counters"] = found
        entry["output"] = text[-_KEPT:]
    except OSError as error:
        entry |= {"status": "failed", "problem": str(error), "output": ""}
    entry["seconds"] = round(time.monotonic() - began, 1)
    return entry


_running: set[subprocess.Popen[bytes]] = set()


def _children(pid: int) -> list[int]:
    """Returns the processes that a process has started, and theirs (Linux; else none)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_children(child)]
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it has started: else a profiler's program keeps the GPU."""
    if process.poll() is None:
        for pid in [*_children(process.pid), process.pid]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    _running.discard(process)


def _quiet(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def machine(python: str, commit: str | None) -> dict[str, Any]:
    """Device, versions and commit: what the numbers depend on.

    Args:
        python: that has torch.
        commit: of the sources; git says it where it is None.
    """
    code = (
        "import json, torch; c = torch.cuda; ok = c.is_available(); "
        "p = c.get_device_properties(0) if ok else None; "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, "
        "'device': p.name if ok else None, 'memory_gib': round(p.total_memory / 2**30, 1) if ok "
        "else None, 'multiprocessors': p.multi_processor_count if ok else None, "
        "'l2_mib': round(p.L2_cache_size / 2**20) if ok else None}))"
    )
    try:
        facts: dict[str, Any] = json.loads(_quiet(python, "-c", code) or "{}")
    except ValueError:
        facts = {}
    smi = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"]
    return {
        **facts,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _quiet("git", "rev-parse", "--short", "HEAD") or None,
        "dirty": bool(_quiet("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "nvcc": (_quiet("nvcc", "--version").splitlines() or [None])[-1],
        "driver, clocks, power": _quiet(*smi, "--format=csv,noheader") or None,
        "cores": os.cpu_count(),
    }


def sources(torch: str | None) -> str:
    """Returns a hash of all that the library is built from."""
    found = hashlib.sha256(str(torch).encode())
    for path in sorted([*ROOT.glob("csrc/**/*"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]):
        if path.is_file():
            found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


class Report:
    """The file of a call, written anew whenever something is known, and its copy."""

    def __init__(self, path: Path, out: Path | None, content: dict[str, Any]) -> None:
        self.path = path
        self.out = out
        self.content = content
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, int]] = {}

    def write(self, names: list[str], logs: list[Path]) -> None:
        """Writes what there is.

        Args:
            names: of benchmarks whose rows are taken in.
            logs: of steps, for the copy.
        """
        with self._lock:
            for name in names:
                with contextlib.suppress(OSError, ValueError):
                    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
                    self.content["benches"][name] = content
            for folder in filter(None, (self.path.parent, self.out)):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / self.path.name, self.content)
            if self.out is not None:
                text = "".join(f"==== {log.name}\n{_text(log, _LOG)}\n" for log in logs)
                (self.out / "logs.txt").write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def followed(self, names: list[str], logs: list[Path]) -> Iterator[None]:
        """Writes every second while steps run, and once more at their end."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_TICK):
                # What has changed since the last look, if anything.
                paths = [*(FOLDER / f"{name}.json" for name in names), *logs]
                now = {str(p): (s.st_mtime_ns, s.st_size) for p in paths if (s := _stat(p))}
                if now != self._seen:
                    self._seen = now
                    self.write(names, logs)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


class Call:
    """Runs the steps of a call and keeps its report."""

    def __init__(self, planned: list[Step], report: Report, seconds: float, rehearse: bool) -> None:
        self.planned = planned
        self.report = report
        self.seconds = seconds
        self.rehearse = rehearse

    def run(self) -> None:
        """Runs all steps; those beside each other at once."""
        self.began = time.monotonic()
        logs: list[Path] = []
        for _, members in itertools.groupby(self.planned, key=lambda s: s.beside or s.name):
            neighbours = list(members)
            logs += map(log_of, neighbours)
            names = [step.bench for step in neighbours if step.bench is not None]
            try:
                with (
                    self.report.followed(names, logs),
                    ThreadPoolExecutor(len(neighbours)) as pool,
                ):
                    try:
                        self.report.content["steps"] += pool.map(self._perform, neighbours)
                    finally:
                        for process in list(_running):
                            _end(process)
            finally:
                self.report.write(names, logs)

    def _left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def _perform(self, step: Step) -> dict[str, Any]:
        command = step.rehearsal if self.rehearse else step.command
        nothing: dict[str, Any] = {"step": step.name, "seconds": 0.0, "problem": None}
        if command is None:
            return {**nothing, "status": "needs a GPU"}
        missing = None if self.rehearse else step.missing()
        if missing is not None:
            return {**nothing, "status": "absent", "problem": missing}
        if self._left() < 5 and not self.rehearse:
            return {**nothing, "status": "no time"}
        if step.name == "build" and not self.rehearse and self._is_built():
            return {**nothing, "status": "passed", "problem": "built before, of these sources"}
        if step.name == "build" and self.rehearse:
            step.environment.update(TAL_FAST_CUDA="auto", TAL_FAST_CUDA_EMULATOR="1")
        print(f"{step.name}: {step.what}", flush=True)
        entry = self._run(step, command)
        if entry["status"] == "failed" and step.otherwise and not self.rehearse:
            entry = {**self._run(step, step.otherwise), "first": entry["output"][-500:]}
        if step.name == "build" and entry["status"] == "passed" and not self.rehearse:
            (FOLDER / "built").write_text(self._sources(), encoding="utf-8")
        print(f"{step.name}: {entry['status']} in {entry['seconds']} s", flush=True)
        return entry

    def _run(self, step: Step, command: list[str]) -> dict[str, Any]:
        limit = 10 * step.limit if self.rehearse else min(step.limit, self._left())
        return run(step, command, limit)

    def _sources(self) -> str:
        return sources(self.report.content["machine"].get("torch"))

    def _is_built(self) -> bool:
        """Whether an earlier call left the library of these very sources."""
        there = any((ROOT / "tal_fast").glob("_C_cuda*.so"))
        return there and _text(FOLDER / "built", 100) == self._sources()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Runs the steps; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="list the steps, run nothing")
    parser.add_argument("--rehearse", action="store_true", help="what works without a GPU")
    parser.add_argument("--call", type=int, choices=CALL_SECONDS, help="this one alone")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--out", type=Path, help="folder for copies of the reports, and the logs")
    parser.add_argument("--seconds", type=float, help="of a call; 300 and 400 when not given")
    parser.add_argument("--commit", help="of the sources, where this is no git checkout")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    calls = steps(sys.executable, arguments.jobs, FOLDER)
    if arguments.call is not None:
        calls = {arguments.call: calls[arguments.call]}
    if arguments.only:
        names = dict.fromkeys(step.name for planned in calls.values() for step in planned)
        unknown = set(arguments.only) - set(names)
        if unknown:
            parser.error(
                f"no step {', '.join(sorted(unknown))}; expected some of {', '.join(names)}"
            )
        calls = {
            call: [step for step in planned if step.name in arguments.only]
            for call, planned in calls.items()
        }
    if arguments.dry_run:
        for call, planned in calls.items():
            print(f"call {call}, at most {CALL_SECONDS[call]:.0f} s")
            for number, step in enumerate(planned, 1):
                settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in step.environment.items())
                print(f"{number}. {step.name}: {step.what} (at most {step.limit:.0f} s)")
                print(f"   {settings + ' ' if settings else ''}{shlex.join(step.command)}")
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    facts = machine(sys.executable, arguments.commit)
    if not arguments.rehearse and not facts.get("device"):
        print("gpu-check: torch finds no GPU; --rehearse runs what needs none", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    name = re.sub(r"[^a-z0-9]+", "-", (facts.get("device") or "no-gpu").lower()).strip("-")
    folder = FOLDER if arguments.rehearse else ROOT / "benchmarks/results"
    reports: list[Report] = []
    status = 0
    for call, planned in calls.items():
        for step in planned:
            if step.bench is not None:  # rows of an earlier run are none of this one
                (FOLDER / f"{step.bench}.json").unlink(missing_ok=True)
        content = {
            "machine": facts,
            "call": call,
            "rehearsed": arguments.rehearse,
            "steps": [],
            "benches": {},
        }
        path = folder / f"{facts['date'][:10]}-{name}-gpu-check-{call}.json"
        report = Report(path, arguments.out, content)
        report.write([], [])
        reports.append(report)
        seconds = arguments.seconds or CALL_SECONDS[call]
        try:
            Call(planned, report, seconds, arguments.rehearse).run()
        except KeyboardInterrupt:
            print("gpu-check: interrupted", file=sys.stderr)
            status = 130
            break
    print()
    print(table([report.content for report in reports]))
    for report in reports:
        print(report.path.relative_to(ROOT))
    entries = [entry for report in reports for entry in report.content["steps"]]
    bad = [entry for entry in entries if entry["status"] in ("failed", "timeout")]
    return status or (1 if bad else 0)


if __name__ == "__main__":
    sys.exit(main())
