# SPDX-License-Identifier: Apache-2.0
"""``Tensor.bernoulli_`` on the CPU, which dropout draws its mask with: torch's own numbers, sooner.

Values and the state of the generator are torch's, bit for bit (``ops/mt19937_bernoulli.py``), so a
training goes as it would have gone. What is replaced is torch's kernel, below autograd,
``torch.compile`` and TorchScript, which do not notice.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tal_fast.compat.proof import quietly
from tal_fast.compat.reporting import Report

__all__ = ["KERNEL", "replace_bernoulli"]

#: The name in ``skip``, ``only`` and the report, behind ``torch.``.
KERNEL = "bernoulli_"

_OP = f"aten::{KERNEL}.float"
_FULL = f"torch.{KERNEL}"
#: Elements from which on it pays to read and set the generator's state (10 microseconds).
_ENOUGH = 4096


def replace_bernoulli(torch: ModuleType, report: Report) -> Callable[[], None]:
    """Puts ours in front of torch's kernel, and returns what undoes that.

    Nothing native is loaded before the first call of enough elements, which makes the proof.
    """
    # Here: torch.library comes with torch.
    get_kernel = getattr(torch.library, "get_kernel", None)
    if get_kernel is None:
        report.add("left", _FULL, f"torch {torch.__version__} does not give its kernels away")
        return _nothing
    original = get_kernel(_OP, "CPU")
    chosen: list[Callable[..., Any] | None] = []

    def bernoulli_(keys: Any, self: Any, p: float = 0.5, *, generator: Any = None) -> Any:
        suits = (
            generator is None
            and self.dtype is torch.float32
            and self.numel() >= _ENOUGH
            and self.is_contiguous()
            # Another thread may draw between our reading the state and our setting it.
            and threading.current_thread() is threading.main_thread()
            and 0 <= p <= 1
        )
        if suits and not chosen:
            chosen.append(None)  # for what the proof itself draws
            chosen[0] = _prove(torch, report, lambda x, p: original.call_boxed(keys, x, p))
        if suits and chosen[0] is not None:
            return chosen[0](self, p)
        return original.call_boxed(keys, self, p, generator=generator)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced is what we are here for
        warnings.simplefilter("ignore")
        library.impl(f"{KERNEL}.float", bernoulli_, "CPU", with_keyset=True)
    return library._destroy


def _nothing() -> None:
    pass


def _prove(
    torch: ModuleType, report: Report, original: Callable[[Any, float], Any]
) -> Callable[[Any, float], Any] | None:
    """Returns ours, counted; None if a number or the state differs."""
    generator = torch.default_generator
    before = generator.get_state()
    try:
        with quietly():
            from tal_fast.ops.mt19937_bernoulli import mt19937_bernoulli_

            differs = any(
                _differs(torch, original, mt19937_bernoulli_, draws, p)
                for draws in (0, 1, 624)
                for p in (0.1, 0.5, 0.9)
            )
    except Exception as error:
        report.add("left", _FULL, f"the proof failed: {type(error).__name__}: {error}")
        return None
    finally:
        generator.set_state(before)
    if differs:
        report.add("left", _FULL, "draws other numbers")
        return None
    entry = report.add("replaced", _FULL, "on the CPU, for dropout: the same numbers and state")

    def ours(values: Any, p: float) -> Any:
        begin = time.perf_counter()
        state = generator.get_state()
        mt19937_bernoulli_(values, state, p)
        generator.set_state(state)
        entry.count(time.perf_counter() - begin)
        return values

    return ours


def _differs(
    torch: ModuleType,
    original: Callable[[Any, float], Any],
    ours: Callable[[Any, Any, float], None],
    draws: int,
    p: float,
) -> bool:
    generator = torch.default_generator
    generator.manual_seed(draws)
    torch.empty(draws, dtype=torch.int32, device="cpu").random_()
    expected, found = (torch.empty(1001, dtype=torch.float32, device="cpu") for _ in range(2))
    state = generator.get_state()
    original(expected, p)
    ours(found, state, p)
    same = torch.equal(found, expected) and torch.equal(state, generator.get_state())
    return not same
