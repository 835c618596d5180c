# SPDX-License-Identifier: Apache-2.0
"""FLOPs, bytes, calls and saved bytes of what runs, op by op and part by part.

FLOPs follow torch's convention (products of matrices, convolutions, attention; two per
multiply-add) with the formulas of ``torch.utils.flop_counter``, where those of this library's ops
are registered beside them. Bytes are what an op must touch at least if nothing is in a cache.

Everything is exact where tensors have no values at all: on the ``meta`` device.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Cost", "CostCounter", "bytes_touched", "part_of", "tensor_bytes"]

_ALLOCATIONS = frozenset(
    ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
)
# In-place, but what was there is not read.
_OVERWRITES = frozenset(
    ("bernoulli_", "copy_", "exponential_", "fill_", "normal_", "random_", "uniform_", "zero_")
)
# torch has a formula for attention on a GPU alone.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        torch.ops.aten._scaled_dot_product_flash_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
_NO_WORK = ("prim", "profiler")


@dataclass
class Cost:
    """What some work takes.

    Attributes:
        flops: two per multiply-add.
        bytes: distinct inputs and outputs of each op, once each.
        calls: ops that compute or copy; on a GPU each is a kernel or more.
        views: ops that only look at a tensor in another way, and allocations.
        saved: bytes that were kept for the backward, parameters and buffers aside.
    """

    flops: int = 0
    bytes: int = 0
    calls: int = 0
    views: int = 0
    saved: int = 0

    @property
    def macs(self) -> float:
        """Multiply-adds, half the FLOPs."""
        return self.flops / 2

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte; None where nothing is touched."""
        return self.flops / self.bytes if self.bytes else None

    def add(self, other: Cost) -> None:
        """Adds another cost to this one."""
        self.flops += other.flops
        self.bytes += other.bytes
        self.calls += other.calls
        self.views += other.views
        self.saved += other.saved


def tensor_bytes(tensor: Tensor) -> int:
    """Returns the bytes that a pass over a tensor touches: expanded dimensions count once."""
    elements = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 0:
            return 0
        elements *= size if stride else 1
    return elements


def bytes_touched(op: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Returns the bytes that an op reads and writes; None for views and allocations.

    Each distinct input counts once and each output once, so what is changed in place counts twice.
    Ops that pick some rows of an input count all of it.

    Args:
        op: an ``OpOverload``.
        args: what it was called with.
        kwargs: what it was called with by name.
        out: what it returned.
    """
    name = op._schema.name.rpartition("::")[2]
    if name in _ALLOCATIONS:
        return None
    arguments = op._schema.arguments
    given = [*zip(arguments, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in arguments[len(args) :] if a.name in kwargs]
    read: dict[Any, int] = {}
    inputs: set[int] = set()
    written: list[Tensor] = []
    for argument, value in given:
        alias = argument.alias_info
        changed = alias is not None and alias.is_write
        for tensor in _tensors(value):
            inputs.add(_storage(tensor))
            if changed:
                written.append(tensor)
            if not (changed and (argument.kwarg_only or name in _OVERWRITES)):
                read[_identity(tensor)] = tensor_bytes(tensor)
    outputs = _tensors(out)
    if not written and outputs and all(_storage(tensor) in inputs for tensor in outputs):
        return None
    # What is changed in place is returned as well, by most such ops: once is enough.
    made = {_identity(tensor): tensor_bytes(tensor) for tensor in (*written, *outputs)}
    return sum(read.values()) + sum(made.values())


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return _storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def part_of(name: str, depth: int = 2) -> str:
    """Returns the part that a module belongs to: its name up to the first number.

    Args:
        name: of the module, as in ``transformer.encoder.layers.0.norm1``.
        depth: most names in it: ``transformer.encoder``.
    """
    parts: list[str] = []
    for word in name.split("."):
        if word.isdigit() or len(parts) == depth:
            break
        parts.append(word)
    return ".".join(parts)


class CostCounter:
    """Counts what runs within :meth:`counting`, by phase and part.

    A backward op belongs to the part whose forward made its node of the graph: nodes are numbered
    in the order of the forward, so the numbers of a part are known without a hook on any tensor.

    Args:
        model: whose modules are the parts.
        depth: see :func:`part_of`.

    Attributes:
        by_part: costs by (phase, part); the part of what runs outside all modules is ``""``.
        by_op: costs by (phase, op), without ``saved``.
        phase: of what runs now; may be changed meanwhile.
    """

    def __init__(self, model: nn.Module, depth: int = 2) -> None:
        self.by_part: dict[tuple[str, str], Cost] = {}
        self.by_op: dict[tuple[str, str], Cost] = {}
        self._model = model
        self._depth = depth
        self.phase = ""
        self._stack: list[str] = []
        # Number of the first node of each stretch of the forward, and the part it belongs to.
        self._firsts: list[int] = []
        self._parts: list[str] = []
        stored = [*model.parameters(), *model.buffers()]
        self._kept = {_storage(tensor): tensor.untyped_storage() for tensor in stored}

    @contextmanager
    def counting(self, phase: str) -> Iterator[None]:
        """Counts what the block runs as a phase of this name."""
        self.phase = phase
        self._note("")
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                part = part_of(name, self._depth)
                for hook in (
                    module.register_forward_pre_hook(_entering(self, part)),
                    module.register_forward_hook(_leaving(self), always_call=True),
                ):
                    stack.callback(hook.remove)
            stack.enter_context(
                torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
            )
            stack.enter_context(_Mode(self))
            yield

    def total(self, *phases: str) -> Cost:
        """Returns the cost of some phases together; of all without one."""
        total = Cost()
        for (phase, _), cost in self.by_part.items():
            if not phases or phase in phases:
                total.add(cost)
        return total

    def forget(self, phase: str) -> None:
        """Drops what was counted as a phase."""
        for table in (self.by_part, self.by_op):
            for key in [key for key in table if key[0] == phase]:
                del table[key]

    def enter(self, part: str) -> None:
        """Begins a part, within the one at hand."""
        self._stack.append(part)
        self._note(part)

    def leave(self) -> None:
        """Ends the part that began last."""
        self._stack.pop()
        self._note(self._stack[-1] if self._stack else "")

    def _note(self, part: str) -> None:
        self._firsts.append(torch._C._autograd._get_sequence_nr())
        self._parts.append(part)

    def _part(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return self._parts[-1]
        # Nodes that add up the gradients of a leaf have the greatest number of all.
        sequence_number = min(node._sequence_nr(), self._firsts[-1])
        return self._parts[max(0, bisect.bisect_right(self._firsts, sequence_number) - 1)]

    def _at(self, table: dict[tuple[str, str], Cost], name: str) -> Cost:
        return table.setdefault((self.phase, name), Cost())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self._kept:
            self._kept[storage] = tensor.untyped_storage()  # alive, so that its number stays its
            self._at(self.by_part, self._part()).saved += self._kept[storage].nbytes()
        return tensor

    def count(self, op: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Adds a call of an op."""
        touched = bytes_touched(op, args, kwargs, out)
        cost = Cost(views=1)
        if touched is not None:
            cost = Cost(flops=_flops(op, args, kwargs, out), bytes=touched, calls=1)
        self._at(self.by_part, self._part()).add(cost)
        self._at(self.by_op, op._schema.name).add(cost)


def _flops(op: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = _CPU_ATTENTION.get(op.overloadpacket, op.overloadpacket)
    if packet not in flop_registry:
        return 0
    if packet is torch.ops.aten.convolution_backward:
        return _convolution_backward_flops(*args)
    return int(flop_registry[packet](*args, **kwargs, out_val=out))


def _convolution_backward_flops(
    grad: Tensor, x: Tensor, weight: Tensor, _: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: list[bool],
) -> int:  # fmt: skip
    """Once the forward for each of both gradients; torch's own takes depthwise ones for full."""
    settings = (None, stride, padding, dilation, transposed, output_padding, groups)
    forward = flop_registry[torch.ops.aten.convolution](x, weight, *settings, out_val=grad)
    return int(forward) * (mask[0] + mask[1])


def _entering(counter: CostCounter, part: str) -> Any:
    def enter(*_: Any) -> None:
        counter.enter(part)

    return enter


def _leaving(counter: CostCounter) -> Any:
    def leave(*_: Any) -> None:
        counter.leave()

    return leave


class _Mode(TorchDispatchMode):
    """Sees every op below autograd."""

    def __init__(self, counter: CostCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or func.namespace in _NO_WORK:
            return func(*args, **kwargs)
        if func.overloadpacket not in flop_registry and func.overloadpacket not in _CPU_ATTENTION:
            # In inference mode also what is made of other ops comes here, whole.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._counter.count(func, args, kwargs, out)
        return out
