# SPDX-License-Identifier: Apache-2.0
"""The options of the NMS ops: listed here, and in the schemas that say in which order they go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, position, widened
from tal_fast.ops.registration import refuse_derivatives

__all__ = ["COMPARISONS", "METHODS", "WEIGHTS", "NMSOptions", "by_name", "solve"]

METHODS = ("hard", "linear", "gaussian", "length_gaussian")
"""Words for ``method``; their positions are the numbers that the native ops take."""

COMPARISONS = ("gt", "ge")
"""Words for ``iou_comparison``: an IoU equal to the threshold does not act, or acts."""

WEIGHTS = ("score", "score_iou")
"""Words for ``voting_weight``; their positions are the numbers that the native ops take."""


# Not frozen: one that is takes ten times as long to make, longer than a small problem.
@dataclass(slots=True, kw_only=True)
class NMSOptions:
    """How segments act on each other; ``tal_fast.ops.batched_nms`` says what each means.

    A default changes nothing: an op names the options that it has. ``op`` is its name.
    """

    op: str
    iou_threshold: float
    method: str = "hard"
    iou_comparison: str = "gt"
    length_eps: float = 0.0
    sigma: float = 1.0
    t1: float = 0.0
    t2: float = 0.0
    min_score: float = -math.inf
    max_segments: int | None = None
    max_per_class: int | None = None
    num_videos: int = 1
    per_class: bool = True
    voting_threshold: float | None = None
    voting_weight: str = "score"
    spare_first: bool = False
    validate: bool = True

    # Words are numbers in the schemas: see csrc/ops/nms.cpp.

    @property
    def method_number(self) -> int:
        """Which of ``METHODS``; a ValueError if it is none of them, as below."""
        return position(self.op, "method", self.method, METHODS)

    @property
    def acts_on_threshold(self) -> bool:
        """Whether an IoU equal to the threshold acts."""
        return position(self.op, "iou_comparison", self.iou_comparison, COMPARISONS) == 1

    @property
    def voting_weight_number(self) -> int:
        """Which of ``WEIGHTS``."""
        return position(self.op, "voting_weight", self.voting_weight, WEIGHTS)


_NUMBERS = {"method": "method_number", "voting_weight": "voting_weight_number"}

_OPS: dict[str, Any] = {
    op: getattr(torch.ops.tal_fast, op).default
    for kind in ("nms", "soft_nms", "batched_nms")
    for op in (kind, f"{kind}_padded")
}
# The options of each in the order of its schema.
_NAMES = {
    op: [x.name for x in native._schema.arguments if "Tensor" not in str(x.type)]
    for op, native in _OPS.items()
}
_ATTRIBUTES = {op: [_NUMBERS.get(name, name) for name in names] for op, names in _NAMES.items()}


def solve(op: str, segments: Tensor, scores: Tensor, **given: Any) -> Any:
    """Calls a native op once its tensors can be taken, with its options in their order.

    Args:
        op: its name.
        segments: Tensor[N, 2].
        scores: Tensor[N].
        given: the options by name. Labels and videos among them are tensors of integers, the latter
            perhaps None; the native op takes them first.
    """
    tensors = {name: given.pop(name) for name in ("labels", "videos") if name in given}
    check_tensors(op, segments=segments, scores=scores, optional="videos", **tensors)
    refuse_derivatives(op, segments=segments, scores=scores)
    options = NMSOptions(op=op, **given)
    groups = [None if numbers is None else widened(numbers) for numbers in tensors.values()]
    values = [getattr(options, name) for name in _ATTRIBUTES[op]]
    return _OPS[op](segments, scores, *groups, *values)


def by_name(op: str, options: Sequence[Any]) -> dict[str, Any]:
    """Returns the options that a fake was called with by their names in the schema."""
    return dict(zip(_NAMES[op], options, strict=False))
