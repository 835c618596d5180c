# SPDX-License-Identifier: Apache-2.0
"""Pools of workers that become loops, in modules that hold a replaced evaluator or NMS.

What they computed takes milliseconds now, less than a worker needs to start. Elsewhere pools stay.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, ModuleType
from typing import Any

__all__ = ["loops_for"]

#: By these the processes of a module talk with each other: such ones cannot run one by one.
_TALK = frozenset(
    {"Barrier", "Condition", "Event", "JoinableQueue", "Pipe", "Queue", "Semaphore", "SimpleQueue"}
)


class Parallel:
    """``joblib.Parallel`` in a loop."""

    def __init__(self, n_jobs: Any = None, *args: Any, **options: Any) -> None:
        """Takes what joblib's takes; only ``return_as`` has a say."""
        self.n_jobs = n_jobs
        self.return_as = options.get("return_as", "list")

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, tasks: Iterable[Any]) -> Any:
        """Runs what ``joblib.delayed`` has made of calls."""
        results: Iterator[Any] = (
            function(*args, **kwargs) for function, args, kwargs in (task[:3] for task in tasks)
        )
        return list(results) if self.return_as == "list" else results


class ProcessPoolExecutor(concurrent.futures.Executor):
    """A pool that runs what it is given before it returns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Takes what a pool takes; none of it matters here."""

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        """Returns a future that is done."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Process:
    """A process that runs when it is started, in this one."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        """Keeps the call."""
        self.name = name or "Process"
        self.daemon = bool(daemon)
        self.exitcode: int | None = None
        self._call = functools.partial(target, *args, **(kwargs or {})) if target else None

    def start(self) -> None:
        """Runs it; an error is raised here."""
        if self._call is not None:
            self._call()
        self.exitcode = 0

    def join(self, timeout: float | None = None) -> None:
        """Returns: it has ended."""

    def is_alive(self) -> bool:
        """Says that it has ended."""
        return False


class Manager:
    """A manager whose shared values are plain ones."""

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Returns a dict."""
        return dict(*args, **kwargs)

    def list(self, *args: Any) -> list[Any]:
        """Returns a list."""
        return list(*args)

    def shutdown(self) -> None:
        """Does nothing."""


class _Instead:
    """A module with some names of ours."""

    def __init__(self, module: Any, **ours: Any) -> None:
        self.__dict__.update(ours)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def loops_for(module: ModuleType) -> dict[str, tuple[Any, str]] | str:
    """Returns name in the module -> (what takes its place, what it was).

    Or, in words, why its pools stay.
    """
    loops: dict[str, tuple[Any, str]] = {}
    processes = False
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "") or ""
        if isinstance(value, type) and value.__name__ == "Parallel" and home.startswith("joblib"):
            loops[name] = (Parallel, "joblib.Parallel")
        elif value is concurrent.futures.ProcessPoolExecutor:
            loops[name] = (ProcessPoolExecutor, "concurrent.futures.ProcessPoolExecutor")
        elif isinstance(value, ModuleType):
            if value.__name__ == "multiprocessing" or value.__name__ == "torch.multiprocessing":
                processes = True
                loops[name] = (_Instead(value, Process=Process, Manager=Manager), value.__name__)
            elif value.__name__ == "joblib":
                loops[name] = (_Instead(value, Parallel=Parallel), "joblib.Parallel")
            elif value.__name__ in ("concurrent.futures", "concurrent"):
                ours = _Instead(concurrent.futures, ProcessPoolExecutor=ProcessPoolExecutor)
                if value.__name__ == "concurrent":
                    ours = _Instead(value, futures=ours)
                loops[name] = (ours, "concurrent.futures.ProcessPoolExecutor")
    talking = _TALK & _names_used(module) if processes else set()
    if talking:
        return f"its processes talk with each other ({', '.join(sorted(talking))})"
    return loops


def _names_used(module: ModuleType) -> set[str]:
    """Returns the names that the module's functions and methods use."""
    names: set[str] = set()
    codes: list[CodeType] = []
    for value in vars(module).values():
        members = vars(value).values() if isinstance(value, type) else (value,)
        for member in members:
            code = getattr(member, "__code__", None)
            if isinstance(code, CodeType) and getattr(value, "__module__", "") == module.__name__:
                codes.append(code)
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes.extend(const for const in code.co_consts if isinstance(const, CodeType))
    return names
