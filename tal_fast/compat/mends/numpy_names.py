# SPDX-License-Identifier: Apache-2.0
"""Names that NumPy took away (``np.float``, ``np.in1d``, …), for the user's files only."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tal_fast.compat.reporting import Report
from tal_fast.compat.user_code import caller, place

__all__ = ["mend"]

# Gone in 1.24: they were Python's types.
_TYPES: dict[str, Any] = {
    "bool": bool,
    "complex": complex,
    "float": float,
    "int": int,
    "long": int,
    "object": object,
    "str": str,
    "unicode": str,
}
# Gone in 2.0 to 2.4: other names of what is there.
_RENAMED = {
    "Inf": "inf",
    "Infinity": "inf",
    "NaN": "nan",
    "alltrue": "all",
    "cfloat": "complex128",
    "complex_": "complex128",
    "cumproduct": "cumprod",
    "float_": "float64",
    "in1d": "isin",
    "infty": "inf",
    "product": "prod",
    "row_stack": "vstack",
    "singlecomplex": "complex64",
    "sometrue": "any",
    "string_": "bytes_",
    "trapz": "trapezoid",
    "unicode_": "str_",
}


def mend(numpy: ModuleType, report: Report) -> Callable[[], None]:
    """Lets ``numpy.__getattr__`` know the names, and returns what undoes that."""
    before = numpy.__dict__.get("__getattr__")

    def __getattr__(name: str) -> Any:
        frame = caller(1) if name in _TYPES or name in _RENAMED else None
        if frame is None:
            if before is None:
                raise AttributeError(f"module 'numpy' has no attribute {name!r}")
            return before(name)
        try:
            if before is not None:
                with warnings.catch_warnings():  # about what the name may mean one day
                    warnings.simplefilter("ignore")
                    return before(name)
        except AttributeError:
            pass
        found = _TYPES[name] if name in _TYPES else getattr(numpy, _RENAMED[name])
        report.add("mended", f"numpy.{name}", place(frame)).count()
        return found

    numpy.__dict__["__getattr__"] = __getattr__

    def undo() -> None:
        if numpy.__dict__.get("__getattr__") is __getattr__:
            if before is None:
                del numpy.__dict__["__getattr__"]
            else:
                numpy.__dict__["__getattr__"] = before

    return undo
