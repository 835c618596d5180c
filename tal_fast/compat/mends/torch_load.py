# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that hold plain data beside the weights, read without running what a pickle may ask.

Since torch 2.6 ``torch.load`` takes weights and little else, and old code knows no
``weights_only``. A call that fails for that is repeated with an unpickler that knows what torch
itself allows, NumPy's arrays, and containers that configurations are kept in. Anything else is
refused by name.
"""

from __future__ import annotations

import collections
import functools
import pickle
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tal_fast.compat.reporting import Report
from tal_fast.compat.user_code import caller, place

__all__ = ["mend"]

#: Containers without behaviour, by module and name.
_CONTAINERS = frozenset(
    {
        ("argparse", "Namespace"),
        ("builtins", "complex"),
        ("builtins", "frozenset"),
        ("builtins", "range"),
        ("builtins", "set"),
        ("builtins", "slice"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("easydict", "EasyDict"),
        ("mmengine.config.config", "ConfigDict"),
        ("pathlib", "Path"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "PureWindowsPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "PosixPath"),
        ("pathlib._local", "PurePosixPath"),
    }
)


def mend(torch: ModuleType, report: Report) -> Callable[[], None]:
    """Wraps ``torch.load``, and returns what undoes that."""
    original = torch.load

    @functools.wraps(original)
    def load(f: Any, *args: Any, **kwargs: Any) -> Any:
        begin = f.tell() if hasattr(f, "tell") and hasattr(f, "seek") else None
        try:
            return original(f, *args, **kwargs)
        except pickle.UnpicklingError as error:
            told = {"weights_only", "pickle_module"} & kwargs.keys() or len(args) > 1
            frame = caller(1)
            if told or frame is None or "weights_only" not in str(error):
                raise
            if begin is not None:
                f.seek(begin)
            used: set[str] = set()
            try:
                found = original(
                    f, *args, weights_only=False, pickle_module=_restricted(torch, used), **kwargs
                )
            except pickle.UnpicklingError as refused:
                raise pickle.UnpicklingError(
                    f"{place(frame)}: torch.load: {refused}; "
                    "weights_only=False reads it, and runs what it says"
                ) from error
            names = ", ".join(sorted(used)) or "plain data"
            report.add("mended", "torch.load", f"{place(frame)}: {names}").count()
            return found

    torch.load = load  # type: ignore[attr-defined]

    def undo() -> None:
        if torch.load is load:
            torch.load = original  # type: ignore[attr-defined]

    return undo


def _restricted(torch: ModuleType, used: set[str]) -> ModuleType:
    """Returns a module that torch can use as ``pickle``; what it found goes into ``used``."""
    # Here: it brings NumPy and more, which a script may not need.
    from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

    from tal_fast.data.unpickling import array_globals

    allowed = {**_get_allowed_globals(), **_get_user_allowed_globals()}
    storages = {f"torch.{name}" for name in vars(torch) if name.endswith("Storage")}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full in allowed:
                return allowed[full]
            if full in array_globals():
                used.add(f"numpy.{name}")
                return array_globals()[full]
            if (module, name) in _CONTAINERS or module == "numpy.dtypes" or full in storages:
                if full not in storages:
                    used.add(full)
                return super().find_class(module, name)
            raise pickle.UnpicklingError(
                f"{full} in the file is neither weights nor plain data, so it is not read"
            )

    module = types.ModuleType("tal_fast_restricted_pickle")
    vars(module).update({name: value for name, value in vars(pickle).items() if name[0] != "_"})
    vars(module).update(
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
        OrderedDict=collections.OrderedDict,
    )
    return module
