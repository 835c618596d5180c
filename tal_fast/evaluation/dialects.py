# SPDX-License-Identifier: Apache-2.0
"""The rules of the evaluator, as values.

Evaluators of other codebases differ in small rules that move mAP by up to several points. Each set
of rules is one :class:`Dialect` in :data:`DIALECTS`; the code asks a dialect's flags and never its
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DIALECTS", "TAL_FAST", "Dialect"]


@dataclass(frozen=True)
class Dialect:
    """One set of evaluation rules.

    Attributes:
        name: how a result names the rules it was computed with.
        guard_union: the tIoU of two zero-length segments is 0. The original ActivityNet evaluator
            divides zero by zero there and counts the outcome as a hit.
    """

    name: str
    guard_union: bool


#: ActivityNet's rules with stable ties and a guarded union.
TAL_FAST = Dialect(name="tal_fast", guard_union=True)

#: By name.
DIALECTS: Mapping[str, Dialect] = MappingProxyType({TAL_FAST.name: TAL_FAST})
