# SPDX-License-Identifier: Apache-2.0
"""Fast native building blocks and data-efficiency studies for temporal action localization.

The five things that most users do are a call each::

    import tal_fast

    data = tal_fast.open_dataset("data/mine")
    run = tal_fast.train(data, "runs/first")
    found = tal_fast.predict(run, data)
    score = tal_fast.evaluate(data, found)
    study = tal_fast.run_study(data, "results/mine")

Everything else is in the packages ``tal_fast.ops``, ``data``, ``models``, ``evaluation``,
``training``, ``curves``, ``profiling``, ``study`` and ``compat``, which need no import of their
own. They and the five calls are loaded on first use: importing ``tal_fast`` imports neither torch
nor the native library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tal_fast import (
        compat,
        curves,
        data,
        errors,
        evaluation,
        models,
        ops,
        profiling,
        study,
        training,
    )
    from tal_fast.api import evaluate, open_dataset, predict, run_study, train

__all__ = [
    "__version__",
    "compat",
    "curves",
    "data",
    "errors",
    "evaluate",
    "evaluation",
    "models",
    "open_dataset",
    "ops",
    "predict",
    "profiling",
    "run_study",
    "study",
    "train",
    "training",
]

__version__ = "0.1.0"

_CALLS = frozenset({"evaluate", "open_dataset", "predict", "run_study", "train"})


def __getattr__(name: str) -> Any:
    """Imports a package or a call on first use."""
    if name in _CALLS:
        found = getattr(importlib.import_module("tal_fast.api"), name)
        globals()[name] = found
        return found
    if name in __all__:
        return importlib.import_module(f"tal_fast.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
