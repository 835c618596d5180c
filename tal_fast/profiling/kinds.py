# SPDX-License-Identifier: Apache-2.0
"""What a step spends its time on, by op and by kind of work, from a trace of ``torch.profiler``.

The trace has each call with those that it makes. An op here is the outermost call that is not made
of other ops alone, with all that it calls: casts to its dtype, allocations, the kernel. What lies
between ops (Python, autograd's bookkeeping, views) is ``dispatch``. Times are wall times under the
profiler.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tal_fast.profiling.cost import Cost

__all__ = [
    "DISPATCH",
    "KINDS",
    "OTHER",
    "OpRow",
    "STEP",
    "StepOps",
    "counted_name",
    "kind_of",
    "op_rows",
    "products_of",
    "step_ops",
    "time_by_kind",
]

DISPATCH = "dispatch"
OTHER = "other ops"
STEP = "tal_fast.step"

#: Kinds of work and how their ops are named; the first match counts.
KINDS: dict[str, tuple[str, ...]] = {
    "deformable attention": ("deform_attn",),
    "local attention": ("local_attn",),
    "RoI": ("roi_align", "boundary_max_pool"),
    "dropout": ("dropout", "bernoulli"),
    "normalisation": ("layer_norm", "group_norm", "batch_norm", "LayerNorm", "GroupNorm"),
    "matching": ("matching_cost", "linear_assignment"),
    "optimiser": ("adam", "vector_norm", "_foreach", "clip_grad", "_amp_"),
    "products": (
        "::mm", "addmm", "bmm", "::linear", "mkldnn", "convolution", "scaled_dot_product", "addmv",
        "::dot", "::mv",
    ),
    "copies": (
        "copy", "::cat", "::stack", "::clone", "gather_windows", "::fill_", "::zero_",
        "zeros", "::ones", "ones_like", "pad", "::repeat", "::full", "full_like",
    ),
    "element-wise": (
        "::add", "::mul", "::div", "::sub", "::rsub", "::neg", "::pow", "::log", "::exp", "::sum",
        "::mean", "::abs", "::sqrt", "::rsqrt", "::max", "::min", "::sign", "::clamp", "softmax",
        "sigmoid", "relu", "gelu", "silu", "tanh", "softplus", "masked_fill", "threshold",
        "::where", "::eq", "::ne", "::ge", "::gt", "::le", "::lt", "::bitwise", "::logical",
        "::reciprocal", "::lerp", "::sin", "::cos", "::cumsum", "binary_cross_entropy",
        "_loss", "segment_iou", "to_tiles", "to_rows",
    ),
}  # fmt: skip
# Ops that only look at a tensor in another way, make one, or ask about it: the cost of calling.
_VIEWS = frozenset(
    (
        "view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "t", "permute", "expand",
        "slice", "select", "unsqueeze", "squeeze", "as_strided", "detach", "detach_", "alias",
        "unbind", "split", "split_with_sizes", "narrow", "chunk", "diagonal", "unfold",
        "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resolve_conj",
        "resolve_neg", "result_type", "item", "_local_scalar_dense", "is_nonzero", "resize_",
        "view_as_real", "real", "set_", "lift_fresh", "requires_grad_", "random_", "randint",
    )
)  # fmt: skip
# Everything within these ranges is of one kind, whatever op it is.
_BY_RANGE = {
    "tal_fast.optimizer": "optimiser",
    "tal_fast.matching": "matching",
    "tal_fast.transfer": "copies",
}
# What is no work of a step: waiting for a batch, and what only some steps have.
_APART = frozenset(("tal_fast.data", "tal_fast.rate", "tal_fast.save"))
_GENERATED = "GeneratedBackwardFor_tal_fast_"


def kind_of(op: str, within: str | None = None) -> str:
    """Returns the kind of work of an op.

    Args:
        op: its name, as in ``aten::addmm``.
        within: the range around it (``tal_fast.optimizer``), which may decide by itself.
    """
    if within in _BY_RANGE:
        return _BY_RANGE[within]
    if op.rpartition("::")[2] in _VIEWS:
        return DISPATCH
    kinds = (kind for kind, words in KINDS.items() if any(word in op for word in words))
    return next(kinds, OTHER)


@dataclass(frozen=True)
class OpRow:
    """What an op takes in a step.

    Attributes:
        op: its name.
        kind: of :data:`KINDS`, ``dispatch`` or ``other ops``.
        calls: in a step.
        seconds: of the host in a step, under the profiler; the median over the steps.
        device_seconds: of its kernels on a GPU; None on a CPU.
        flops: in a step, two per multiply-add.
        bytes: in a step, each distinct input and output of a call once.
    """

    op: str
    kind: str
    calls: float
    seconds: float
    device_seconds: float | None
    flops: int
    bytes: int

    @property
    def time(self) -> float:
        """Seconds of a step on the device that computes."""
        return self.seconds if self.device_seconds is None else self.device_seconds

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte; None where nothing is touched."""
        return self.flops / self.bytes if self.bytes else None

    def roof(self, flops_rate: float, bytes_rate: float) -> tuple[str, float] | None:
        """Returns what limits it at best, and the share of that limit which it reaches.

        Args:
            flops_rate: FLOPs in a second at most.
            bytes_rate: bytes in a second at most, from memory.

        Returns:
            ``compute`` or ``memory`` and the share, above 1 where data came from a cache; None
            where nothing was counted or timed.
        """
        if not self.bytes or not self.time:
            return None
        compute, memory = self.flops / flops_rate, self.bytes / bytes_rate
        limit = "compute" if compute >= memory else "memory"
        return limit, max(compute, memory) / self.time


@dataclass
class StepOps:
    """The ops of one step.

    Attributes:
        seconds: of the step, without waiting for its batch.
        ops: calls, seconds of the host and of a GPU by (op, kind).
        launches: kernels that were launched on a GPU.
    """

    seconds: float = 0.0
    ops: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    launches: int = 0


def step_ops(events: Iterable[Any]) -> list[StepOps]:
    """Reads a trace with steps marked by the range ``tal_fast.step``; steps without work are none.

    Args:
        events: of ``torch.profiler.profile.events()``.
    """
    events = [event for event in events if event.device_type.name == "CPU"]
    marks = [event for event in events if event.name == STEP]
    ops = []
    # Backward ops of a GPU run in a thread of their own: they belong to the step of their time.
    elsewhere = [e for e in events if e.cpu_parent is None and e.name != STEP]
    for mark in marks:
        step = StepOps(mark.cpu_time_total / 1e6)
        _walk(mark.cpu_children, None, step)
        if not step.ops:
            continue
        time = mark.time_range
        of_step = [e for e in elsewhere if time.start <= e.time_range.start < time.end]
        _walk([e for e in of_step if e.thread != mark.thread], None, step)
        ops.append(step)
    return ops


def _walk(events: Iterable[Any], within: str | None, step: StepOps) -> None:
    for event in events:
        if event.name in _APART:
            step.seconds -= event.cpu_time_total / 1e6
            continue
        op = _op_of(event.name)
        if op is None:
            inner = event.name if event.name in _BY_RANGE else within
            _walk(event.cpu_children, inner, step)
            continue
        sums = step.ops.setdefault((op, kind_of(op, within)), [0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += event.cpu_time_total / 1e6
        sums[2] += event.device_time_total / 1e6
        step.launches += sum(1 for _ in _kernels(event))


def _kernels(event: Any) -> Iterator[Any]:
    yield from event.kernels
    for child in event.cpu_children:
        yield from _kernels(child)


@functools.cache
def _op_of(name: str) -> str | None:
    """Returns the op that an event is; None for what only calls others: ranges, nodes, composites.

    Where Python registered the gradient, the kernel of ``tal_fast::x`` runs under a generated name.
    """
    if name.startswith(_GENERATED):
        op, _, backward = name.removeprefix(_GENERATED).rpartition("_default")
        return f"tal_fast::{op}{'_backward' if backward else ''}"
    space, separator, op = name.partition("::")
    if not separator or space in ("autograd", "profiler") or not hasattr(torch.ops, space):
        return None
    packet = getattr(getattr(torch.ops, space), op, None)
    if packet is None:
        return None
    # Variants that write into a given tensor are no composites where the op is one.
    composite = [
        is_composite
        for overload in packet.overloads()
        if not overload.endswith("out")
        and (is_composite := _is_composite(packet._qualified_op_name, overload)) is not None
    ]
    return None if all(composite) else counted_name(name)


def _is_composite(op: str, overload: str) -> bool | None:
    name = op if overload == "default" else f"{op}.{overload}"
    key = "CompositeImplicitAutograd"
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
    except RuntimeError:  # an overload of TorchScript's alone
        return None


def counted_name(op: str) -> str:
    """Returns the name under which an op is listed.

    Autograd adds up gradients in place, but not while its ops are counted.
    """
    return "aten::add" if op == "aten::add_" else op


def op_rows(steps: Sequence[StepOps], counted: Mapping[tuple[str, str], Cost]) -> list[OpRow]:
    """Returns the ops of a median step, the longest first; what lies between them is one of them.

    Args:
        steps: not empty.
        counted: cost of a step by (op, kind), of a counted one.
    """
    on_gpu = any(sums[2] for step in steps for sums in step.ops.values())
    rows = []
    for key in dict.fromkeys(key for step in steps for key in step.ops):
        calls, host, device = (
            statistics.median(step.ops.get(key, (0, 0.0, 0.0))[i] for step in steps)
            for i in range(3)
        )
        cost = counted.get(key, Cost())
        rows.append(OpRow(*key, calls, host, device if on_gpu else None, cost.flops, cost.bytes))
    between = statistics.median(
        max(0.0, step.seconds - sum(sums[1] for sums in step.ops.values())) for step in steps
    )
    rows.append(OpRow("(between ops)", DISPATCH, 1, between, 0.0 if on_gpu else None, 0, 0))
    return sorted(rows, key=lambda row: -row.time)


def time_by_kind(rows: Sequence[OpRow]) -> dict[str, float]:
    """Returns the seconds of a step by kind of work, the longest first."""
    sums: dict[str, float] = {}
    for row in rows:
        sums[row.kind] = sums.get(row.kind, 0.0) + row.time
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def products_of(events: Iterable[Any], most: int = 5) -> list[tuple[int, int, int, int]]:
    """Returns the products of matrices that compute most, as (batch, rows, inner, columns).

    Args:
        events: of a profiler that recorded shapes.
        most: how many.
    """
    totals: dict[tuple[int, int, int, int], int] = {}
    for event in events:
        name = event.name.rpartition("::")[2]
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(name)
        shapes = event.input_shapes or []
        if first is None or len(shapes) < first + 2:
            continue
        left, right = shapes[first], shapes[first + 1]
        if len(left) != len(right) or len(left) not in (2, 3):
            continue
        batch = left[0] if len(left) == 3 else 1
        key = (batch, left[-2], left[-1], right[-1])
        totals[key] = totals.get(key, 0) + batch * left[-2] * left[-1] * right[-1]
    return sorted((key for key in totals if totals[key]), key=lambda key: -totals[key])[:most]
